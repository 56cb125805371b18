"""DDPM-Seg on CamVid (11 classes) from 20 labelled images, small enough for a laptop's processor.

python -m diffseg_jax.main --config=configs/ddpm_seg_camvid.py --workdir=runs/ddpm_seg_camvid \
    --config.data.path=camvid --config.unlabelled.path=camvid

The folder holds images/{train,val} and masks/{train,val}. First the diffusion model of
ddpm_camvid.py learns from the 367 unlabelled images, then ten classifiers learn from the pixels of
20 labelled images; if the model is trained already, give --config.run="('fit',)" and
--config.stages.fit.start=runs/ddpm_camvid/checkpoints/pretrain. Expected result:
.docs/ddpm_seg.md. The published size is in ddpm_seg_published.py; all numbers here are ours.

Presets: adm (default): the features are those of noised images, as above; clean: a copy of the
model first learns, without labels, to have such features for images without noise ("clean"), and
the classifiers read them in one pass instead of one for each noise level; pretrained: the features
are those of EfficientNet-Lite0, as in ddpm_seg_folder.py, and nothing is trained without labels.
"""

from ml_collections import config_dict

PRESETS = ("adm", "clean", "pretrained")


def get_config(preset="adm"):
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="camvid", path="", options=dict(), train="train", val="val",
        fraction=1.0, count=20, subset_seed=0, list_path="",              # 20 labelled images
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )
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
        ),
        fit=dict(
            kind="fit", start="pretrain",
            augment=dict(limit=(240, 180), short=0, crop=(180, 240)),     # half the image's sides
            every=dict(log=200, checkpoint=1_000),                        # steps
        ),
    )
    if preset == "clean":
        c.features.sources = ("clean",)
        c.clean = dict(
            blocks=(),                    # where the copy learns; () = those of features
            steps=(0, 399),               # noise levels of its teacher, from and to
        )
        c.stages.clean = dict(
            c.stages.pretrain, kind="clean", start="pretrain", steps=1_000,
            optim=dict(c.stages.pretrain.optim, peak_lr=2e-4),
        )
        c.stages.fit.start = "clean"
        c.run = ("pretrain", "clean", "fit")
    c.evaluate = dict(                    # all 101 images, probabilities enlarged to 360 x 480
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=1,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    if preset == "pretrained":
        read_pretrained_network(c)
    return c


def read_pretrained_network(c):
    """Features of EfficientNet-Lite0 in place of those of a diffusion model."""
    for name in ("model", "diffusion", "samples", "unlabelled", "weights", "weights_part",
                 "weights_order"):  # fmt: skip
        del c[name]
    c.features = dict(
        sources=("efficientnet_lite0",),  # or several, or with a file: .docs/features.md
        taps=tuple(f"efficientnet_lite0/block{i}" for i in (2, 4, 10, 15)),
        scales=(1.0, 2.0),                # factors by which images are enlarged first
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble.update(recipe="regularised", members=3, small_objects=0)
    c.run = ("fit",)
    c.stages = dict(
        fit=dict(
            kind="fit", start="weights",
            augment=dict(
                limit=(480, 360), short=0, crop=(360, 480),               # the images' size
                variants=3, scale=(0.75, 1.25), flip=True, photometric=False,  # 3 changed copies
            ),
            every=dict(log=200, checkpoint=1_000),                        # steps
        ),
    )
    c.evaluate.limit = (480, 360)
