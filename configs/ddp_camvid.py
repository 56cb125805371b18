"""DDP on CamVid (11 classes), reduced so that a laptop can train it from scratch.

python -m diffseg_jax.main --config=configs/ddp_camvid.py --workdir=runs/ddp_camvid \
    --config.data.path=camvid

The folder holds images/{train,val} and masks/{train,val}. A narrow ConvNeXt and a map decoder of
three layers see the images at half their size (180 x 240 of 360 x 480). `plain` is the same encoder
with a convolutional head, to measure what diffusion brings:
    --config.run="('plain',)"
Time and result on two CPU cores: .docs/ddp.md. The published size is that of ddp_cityscapes.py; all
numbers here are ours, not the paper's.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="camvid", path="", options=dict(), train="train", val="val",
        fraction=1.0, count=0, subset_seed=0, list_path="",
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

    c.loss = dict(
        name="cross_entropy", focal_gamma=2.0,      # cross_entropy | focal, (1 - p)^gamma times it
        class_weights=("none",),          # none | inverse_frequency | (1.0, ...), one per class
        region="none", region_weight=1.0,           # none | dice | lovasz, added with that weight
    )

    adamw = dict(
        name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=100, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=(r"backbone\..*norm",),
        clip_norm=1.0,
    )
    augment = dict(
        limit=(240, 180), short=0, scale=(0.5, 2.0), crop=(128, 160), max_class_share=0.75,
        flip=True, photometric=True,
        rotate=0.0, flip_vertical=False, grey=0.0, blur=0.0,              # degrees; share; pixels
    )
    every = dict(log=50, checkpoint=200, evaluate=400)                    # steps
    c.run = ("train", "align")
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=1_200, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
        align=dict(
            kind="align", start="train", steps=200, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw, peak_lr=1e-4), every=dict(every),
        ),
        plain=dict(                       # the same encoder with a convolutional head; not in run
            kind="plain", start="weights", steps=1_200, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
    )
    c.evaluate = dict(                    # all 101 images, probabilities enlarged to 360 x 480
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=4,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
