"""A run of seconds for the tests: all stages of DDeP on scenes of 32 x 48 with a tiny network.

python -m diffseg_jax.main --config=tests/configs/tiny_ddep.py --workdir=runs/tiny
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddep"
    c.seed = 0
    c.dtype = "float32"
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)

    scenes = dict(images=10, size=(32, 48), seed=0)
    c.data = dict(
        source="scenes", path="", options=scenes, train="train", val="val",
        fraction=1.0, count=6, subset_seed=0, list_path="", threads=2, workers=0, cache=True,
    )
    c.unlabelled = dict(
        source="scenes", path="", options=dict(scenes), split="train",
        threads=2, workers=0, cache=True,
    )

    c.pretrain = "dep"
    c.weights = ""
    c.weights_part = ""
    c.noise = dict(
        kind="scaled", low=0.22, high=0.22, uniform_in="sigma", target="noise", condition=False,
    )
    c.model = dict(
        arithmetic="official", resnet_width=0.5, resnet_units=(1, 1, 1),
        hidden=32, layers=1, heads=2, mlp=32,
        decoder=(16, 16, 8, 8), decoder_width=1.0, bridge=16, scale_bridge=False, skips=3,
        dropout=0.1,
    )

    adam = dict(
        name="adamw", schedule="cosine", peak_lr=1e-2, warmup_steps=2, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-2, no_decay=("norm", "bias"), clip_norm=1.0,
    )
    augment = dict(
        limit=(0, 0), short=0, scale=(0.75, 1.5), crop=(32, 48), max_class_share=1.0, flip=True,
        photometric=False,
    )
    every = dict(log=2, checkpoint=2, evaluate=4)
    c.run = ("pretrain", "finetune", "scratch")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=8, batch_size=4, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adam), every=dict(every),
        ),
        finetune=dict(
            kind="finetune", start="pretrain", steps=8, batch_size=4, accumulate=1, ema=(),
            augment=dict(augment, photometric=True), optim=dict(adam), every=dict(every),
        ),
        scratch=dict(
            kind="finetune", start="random", steps=8, batch_size=4, accumulate=1, ema=(),
            augment=dict(augment, photometric=True), optim=dict(adam), every=dict(every),
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=4,
        images=8, quick_images=4, absent="skip", checkpoint="last", pictures=2,
    )
    return c
