"""A run of seconds for the tests: DDP for depth on scenes of 32 x 48 with a tiny network.

python -m diffseg_jax.main --config=tests/configs/tiny_ddp_depth.py --workdir=runs/tiny
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.task = "depth"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="depth_scenes", path="", options=dict(images=10, size=(32, 48), seed=0),
        train="train", val="val", fraction=1.0, count=6, subset_seed=0, list_path="",
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""
    c.model = dict(
        backbone="convnext", channels=(8, 16, 24, 32), depths=(1, 1, 1, 1), heads=(), window=0,
        drop_path=0.0, down_epsilon=1e-5,
        width=16, layers=1, decoder_heads=2, points=2, mlp=32, groups=4,
    )
    c.depth = dict(low=0.001, high=80.0, timed=True, bounded=True, warmup=2)
    c.diffusion = dict(schedule="cosine", code_scale=0.1, high=0.999)
    c.sampling = dict(steps=3, sampler="ddim", draws=1, time_difference=1, start=0.0)
    c.sweep = dict(steps=(1, 2), draws=(1, 2))                            # for --mode=steps

    adamw = dict(
        name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=2, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=(r"norm",), clip_norm=1.0,
    )
    augment = dict(
        limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(32, 48), flip=True, rotate=2.5,
        rotate_share=0.5, colour_share=0.5, gamma=(0.9, 1.1), brightness=(0.9, 1.1),
        channels=(0.9, 1.1),
    )
    every = dict(log=2, checkpoint=2, evaluate=4)                         # steps
    c.run = ("train", "align")
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=8, batch_size=4, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
        align=dict(
            kind="align", start="train", steps=4, batch_size=4, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw, peak_lr=1e-4), every=dict(every),
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=True,
        limit=(0, 0), short=0, batch_size=2, crop="none",
        images=4, quick_images=2, checkpoint="best", pictures=2,
    )
    return c
