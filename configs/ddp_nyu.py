"""DDP for monocular depth on NYU Depth V2: every published backbone.

python -m diffseg_jax.main --config=configs/ddp_nyu.py:swin_t \
    --workdir=runs/ddp_nyu --config.data.path=nyu \
    --config.weights=swin_tiny_patch4_window7_224.pth

Presets: swin_t (default), swin_s, swin_b, swin_l. Weights are the ImageNet files of Swin's authors
or the safetensors of the Hugging Face hub: 1k of 224 pixels with windows of 7, for Swin-B 22k of
224 with windows of 7, for Swin-L 22k of 384 with windows of 12. The layout of the data is in
.docs/data.md. tiny is swin_t for a laptop: a narrow network, a few steps on the built-in scenes, no
data or weights needed, about a minute.

Time, estimated at 100 TFLOP/s per device, not measured: 38,400 steps of 16 crops through Swin-T,
forward and backward, are 3.9e17 operations, a bit more than one device-hour.
Published for Swin-L with three steps (Ji et al., 2023): abs_rel 0.094, rmse 0.329, log_10 0.040,
a1 0.921. Not reproduced here; the authors published no checkpoint.
"""

from ml_collections import config_dict

SWIN = dict(backbone="swin", drop_path=0.3, window=7)
BACKBONES = dict(
    swin_t=dict(SWIN, channels=(96, 192, 384, 768), depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    swin_s=dict(SWIN, channels=(96, 192, 384, 768), depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    swin_b=dict(SWIN, channels=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    swin_l=dict(SWIN, channels=(192, 384, 768, 1536), depths=(2, 2, 18, 2), heads=(6, 12, 24, 48),
                window=12),
    tiny=dict(SWIN, channels=(16, 32, 64, 128), depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4),
)
PRESETS = tuple(BACKBONES)
# The norms of backbone and decoder and the tables of positions are not decayed; those of the neck
# are, as their names in the original do not match its rules.
NO_DECAY = (r"bias_table", r"backbone\..*norm", r"decoder\..*norm")


def get_config(preset="swin_t"):
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.task = "depth"
    c.seed = 0
    c.dtype = "float32"                   # as published; bfloat16 takes half the memory
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="nyu", path="", options=dict(), train="train", val="val",
        fraction=1.0, count=0, subset_seed=0, list_path="",
        threads=16, workers=0, cache=False,
    )

    c.weights = ""                        # of the backbone, or a DDP checkpoint for depth
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.model = dict(
        BACKBONES[preset], down_epsilon=1e-5, width=256, layers=6, decoder_heads=8, points=4,
        mlp=1024, groups=32,
    )
    c.depth = dict(
        low=0.001, high=10.0,             # metres: of predictions, and of what is measured
        timed=True,                       # False: the released form, whose decoder ignores the time
        bounded=False,                    # outputs are low + ReLU; True: high * sigmoid
        warmup=0,                         # steps whose loss is that of the mean alone
    )
    c.diffusion = dict(schedule="cosine", code_scale=0.1, high=0.999)     # t ~ U[0, high)
    c.sampling = dict(steps=3, sampler="ddim", draws=1, time_difference=1, start=0.0)
    c.sweep = dict(steps=(1, 2, 3, 5, 10), draws=(1,))                    # for --mode=steps

    augment = dict(
        limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(416, 544), flip=True,
        rotate=2.5, rotate_share=0.5,                                     # degrees; of the images
        colour_share=0.5, gamma=(0.9, 1.1), brightness=(0.75, 1.25), channels=(0.9, 1.1),
    )
    adamw = dict(
        name="adamw", schedule="cosine_to_trace", peak_lr=6e-5, warmup_steps=12_800,
        warmup_ratio=1e-3, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=NO_DECAY,
        clip_norm=35.0,
    )
    c.run = ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=38_400, batch_size=16, accumulate=1, ema=(),
            augment=augment, optim=adamw,
            every=dict(log=50, checkpoint=1_600, evaluate=3_200),         # steps
        ),
    )
    c.evaluate = dict(                    # two views, mirrored and not, averaged in metres
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=True,
        limit=(0, 0), short=0, batch_size=1, crop="nyu",
        images=0, quick_images=100, checkpoint="best", pictures=4,
    )
    if preset == "tiny":
        c.data.update(
            source="depth_scenes", options=dict(images=16, size=(64, 96), seed=0), count=8,
            threads=2,
        )
        c.model.update(width=32, layers=2, decoder_heads=4, points=2, mlp=64, groups=8)
        c.depth.update(high=80.0)         # of streets, not of rooms
        c.stages.train.update(
            steps=10, batch_size=4, augment=dict(crop=(64, 64)), optim=dict(warmup_steps=2),
            every=dict(log=5, checkpoint=5, evaluate=10),
        )
        c.evaluate.update(images=4, quick_images=2, crop="none")
    return c
