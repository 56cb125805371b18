"""DDP on the built-in street scenes: a first look at segmentation by denoising, no download.

python -m diffseg_jax.main --config=configs/ddp_scenes.py --workdir=runs/ddp_scenes

A narrow ConvNeXt and a map decoder of three layers learn from 200 labelled scenes to clean a noisy
label map, and then, in `align`, to continue from their own first prediction. The images in
pictures/ show the labels after every step, the uncertainty and the errors. Time and result on two
CPU cores: .docs/ddp.md.

python -m diffseg_jax.main --config=configs/ddp_scenes.py:depth --workdir=runs/ddp_depth

learns the depth of the same scenes, in metres, in place of their labels.
All numbers here are ours, chosen for a short run, not the paper's.
"""

from ml_collections import config_dict

PRESETS = ("segmentation", "depth")


def get_config(preset="segmentation"):
    return {"segmentation": get_segmentation, "depth": get_depth}[preset]()


def get_segmentation():
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="scenes", path="", options=dict(images=400, size=(96, 128), seed=0),
        train="train", val="val", fraction=1.0, count=200, subset_seed=0, list_path="",
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.new_head = False                    # True: the classes differ from the start's
    c.model = dict(
        backbone="convnext", channels=(32, 64, 96, 128), depths=(2, 2, 4, 2), heads=(), window=0,
        drop_path=0.0, down_epsilon=1e-5,
        width=64, layers=3, decoder_heads=4, points=4, mlp=256, groups=8, auxiliary_dropout=0.1,
    )
    c.diffusion = dict(                   # t ~ U[0, high); loss + auxiliary * auxiliary head's loss
        schedule="cosine", code="embedding", code_scale=0.01, high=0.999, auxiliary=0.4,
    )
    c.sampling = dict(
        steps=3, sampler="ddim", draws=1, time_difference=1, start=0.0,
        accumulate=True,
    )
    c.sweep = dict(steps=(1, 2, 3, 5, 10), draws=(1,))                    # for --mode=steps

    adamw = dict(
        name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=20, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=(r"backbone\..*norm",),
        clip_norm=1.0,
    )
    augment = dict(
        limit=(0, 0), short=0, scale=(0.75, 1.5), crop=(96, 128), max_class_share=1.0, flip=True,
        photometric=True,
    )
    every = dict(log=20, checkpoint=100, evaluate=100)                    # steps
    c.run = ("train", "align")
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=200, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
        align=dict(
            kind="align", start="train", steps=40, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw, peak_lr=1e-4), every=dict(every),
        ),
        plain=dict(                       # the same encoder with a convolutional head; not in run
            kind="plain", start="weights", steps=200, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=4,
        images=100, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c


def get_depth():
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.task = "depth"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(                        # the sky counts as not measured
        source="depth_scenes", path="", options=dict(images=400, size=(96, 128), seed=0),
        train="train", val="val", fraction=1.0, count=200, subset_seed=0, list_path="",
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.model = dict(
        backbone="convnext", channels=(32, 64, 96, 128), depths=(2, 2, 4, 2), heads=(), window=0,
        drop_path=0.0, down_epsilon=1e-5,
        width=64, layers=3, decoder_heads=4, points=4, mlp=256, groups=8,
    )
    c.depth = dict(                       # metres; timed: the decoder is told the noise level
        low=0.001, high=80.0, timed=True, bounded=True,                   # high * sigmoid
        warmup=0,                         # first updates with the mean of the logarithms alone
    )
    c.diffusion = dict(                   # t ~ U[0, high); normalised depth in +-code_scale
        schedule="cosine", code_scale=0.1, high=0.999,
    )
    c.sampling = dict(steps=3, sampler="ddim", draws=1, time_difference=1, start=0.0)
    c.sweep = dict(steps=(1, 2, 3, 5, 10), draws=(1, 3))                  # for --mode=steps

    adamw = dict(
        name="adamw", schedule="polynomial", peak_lr=1.5e-3, warmup_steps=20, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=(r"norm",), clip_norm=1.0,
    )
    augment = dict(                       # the size stays: depth follows from it
        limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(96, 128), flip=True,
        rotate=0.0, rotate_share=0.5,
        colour_share=0.5, gamma=(0.9, 1.1), brightness=(0.9, 1.1), channels=(0.9, 1.1),
    )
    every = dict(log=20, checkpoint=400, evaluate=400)                    # steps
    c.run = ("train",)                    # align may follow: ("train", "align")
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=800, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
        align=dict(
            kind="align", start="train", steps=40, batch_size=8, accumulate=1, ema=(),
            # 1e-4 undoes the end of train, also with true depth: see .docs/ddp.md
            augment=dict(augment), optim=dict(adamw, peak_lr=1e-5), every=dict(every),
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=True,
        limit=(0, 0), short=0, batch_size=4, crop="none",
        images=100, quick_images=24, checkpoint="last", pictures=4,
    )
    return c
