"""DeepLabV3 on the built-in street scenes: supervised segmentation from scratch, no download.

python -m diffseg_jax.main --config=configs/deeplab_scenes.py --workdir=runs/deeplab_scenes

A narrow dilated ResNet learns from 200 labelled scenes. It is the network that learns from images
that a diffusion model made, at the end of the chain in .docs/synthetic_data.md:

python -m diffseg_jax.main --config=configs/deeplab_scenes.py --workdir=runs/deeplab_made \
    --config.data.source=folder --config.data.path=runs/made --config.data.options.images=0 \
    --config.data.options.size="(0, 0)" --config.data.validation.source=scenes

The result: .docs/synthetic_data.md. All numbers here are ours, not a paper's.
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
        source="scenes", path="", options=dict(images=400, size=(96, 128), seed=0),
        train="train", val="val", fraction=1.0, count=200, subset_seed=0, list_path="",
        validation=dict(                  # the data set that holds val; "": this one
            source="", path="", options=dict(images=400, size=(96, 128), seed=0),
        ),
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.new_head = False                    # True: the classes differ from the start's
    c.model = dict(
        width=8, depths=(2, 2, 2, 2),     # of the ResNet; width: channels of its stem
        output_stride=8,                  # pixels per value of its last map: 8 | 16 | 32
        rates=(2, 4, 6), channels=64,     # dilations and channels of the pyramid
        dropout=0.1,
        auxiliary=0.0,                    # weight of the third stage's loss; 0: no such head
    )

    augment = dict(
        limit=(0, 0), short=0, scale=(0.75, 1.5), crop=(96, 128), max_class_share=1.0, flip=True,
        photometric=True,
    )
    c.run = ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=400, batch_size=8, accumulate=1, ema=(),
            augment=augment,
            optim=dict(
                name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=20,
                warmup_ratio=0.01, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01,
                no_decay=(r"norm", r"bias"), clip_norm=1.0,
            ),
            every=dict(log=20, checkpoint=100, evaluate=200),             # steps
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=4,
        images=100, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
