"""A run of seconds for the tests: DeepLabV3 on scenes of 32 x 48 with a tiny network.

python -m diffseg_jax.main --config=tests/configs/tiny_deeplab.py --workdir=runs/tiny
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "deeplab"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="scenes", path="", options=dict(images=10, size=(32, 48), seed=0),
        train="train", val="val", fraction=1.0, count=6, subset_seed=0, list_path="",
        validation=dict(source="", path="", options=dict()),
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""
    c.new_head = False                    # True: the classes differ from the start's
    c.model = dict(
        width=4, depths=(1, 1, 2, 1), output_stride=8, rates=(1, 2, 3), channels=8, dropout=0.1,
        auxiliary=0.5,
    )
    c.run = ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=8, batch_size=4, accumulate=1, ema=(),
            augment=dict(
                limit=(0, 0), short=0, scale=(0.75, 1.5), crop=(32, 48), max_class_share=1.0,
                flip=True, photometric=True,
            ),
            optim=dict(
                name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=2,
                warmup_ratio=0.01, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01,
                no_decay=(r"norm", r"bias"), clip_norm=1.0,
            ),
            every=dict(log=2, checkpoint=2, evaluate=4),                  # steps
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=4,
        images=8, quick_images=4, absent="skip", checkpoint="last", pictures=2,
    )
    return c
