"""MAE of your own images, then DDPM-Seg's classifiers from a few labelled ones; for a laptop.

python -m diffseg_jax.main --config=configs/mae_folder.py --workdir=runs/mine \
    --config.data.path=mine --config.unlabelled.path=all_of_them

"mine" holds the labelled images in images/ and masks/, or in images/{train,val}, masks/{train,val};
without val a part of them is held out to measure on (.docs/data.md). mine/classes.json holds the
names and colours of the classes, or give --config.data.options.num_classes=3. The unlabelled
images are those in the folder "train" of config.unlabelled.path, or in all of it without such a
folder; --config.run=mae learns from them alone. Images are fitted into 240 x 180 pixels, and
labelled ones must have one aspect ratio: an error names the crop that fits them. With a GPU, take
width=384, depth=12, heads=6, mlp=1536 and more steps; with fewer than a thousand images, features
of a network that was trained on more are usually better. All numbers here are ours.
"""

from ml_collections import config_dict


def get_config():
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
    c.unlabelled = dict(
        source="unlabelled", path="", split="train", options=dict(),
        threads=2, workers=0, cache=True,
    )

    c.weights = ""                        # an official MAE file, for start="weights" of mae
    c.weights_part = ""                   # of a file of several networks
    c.weights_order = "legacy"            # of diffusion models; MAE has no such order
    c.mae = dict(                         # 3.0 million parameters, 0.3 million in the decoder
        patch=8, width=192, depth=6, heads=3, mlp=768,
        decoder_width=96, decoder_depth=2, decoder_heads=3, decoder_mlp=384,
    )
    c.masking = dict(ratio=0.75, normalise=True)   # hidden patches; targets normalised in each

    c.features = dict(
        sources=("mae",),                 # of the stage to start from | mae=FILE or DIR
        taps=(),                          # () = the last half of the blocks
        scales=(1.0,),                    # factors by which images are enlarged first
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble = dict(
        recipe="fast",                    # fast | paper
        members=10, widths=(),            # () = 128, 32 below 30 classes, else 256, 128
        small_objects=20,                 # pixels; smaller objects are ignored in the fit
        classifiers="",                   # folder of published model_0.pth, ...: no fit
        probe=True,                       # a linear classifier beside it, as a baseline
    )

    c.run = ("mae", "fit")
    c.stages = dict(
        mae=dict(
            kind="mae", start="random", steps=3_000, batch_size=8, accumulate=1, ema=(),
            augment=dict(
                limit=(240, 180), short=0, scale=(1.0, 1.5), crop=(176, 240), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="cosine_after_warmup", peak_lr=5e-4, warmup_steps=100,
                warmup_ratio=0.0, b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.05,
                no_decay=(r"\.(bias|scale)$",), clip_norm=0.0,
            ),
            every=dict(log=50, checkpoint=500, evaluate=500),             # steps
            probe=dict(                       # linear, of the labels: .docs/training.md
                every=250, patience=0,        # steps; probes without a gain, then it ends; 0: never
                gain=0.005,                   # of mean IoU
            ),
        ),
        fit=dict(
            kind="fit", start="mae",
            augment=dict(limit=(240, 180), short=0, crop=(180, 240)),     # limit: width, height
            every=dict(log=200, checkpoint=1_000),                        # steps
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=1,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
