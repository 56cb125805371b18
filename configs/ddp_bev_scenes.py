"""DDP on drawn streets seen by six cameras: a first look at maps seen from above, no download.

python -m diffseg_jax.main --config=configs/ddp_bev_scenes.py --workdir=runs/ddp_bev

Six small images around a car are lifted into one map of 48 x 48 metres, and a map decoder of two
layers learns to clean its noisy layers: road, sidewalk, crossing, divider, building and car. The
images in pictures/ show cameras, the true map, the map after every step and the uncertainty. Time
and result on two CPU cores: .docs/bev.md.
All numbers here are ours, chosen for a short run, not the paper's.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.task = "bev"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    output = (-24.0, 24.0, 1.5)           # metres: lower, upper end, size of a cell; x and y alike
    c.data = dict(
        source="bev_scenes", path="",
        options=dict(images=200, size=(48, 72), seed=0, output=output),
        train="train", val="val", fraction=1.0, count=160, subset_seed=0, list_path="",
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the whole network, or of a Swin; "": from scratch
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.model = dict(
        channels=(16, 32, 64, 128), depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), window=4,
        drop_path=0.0, neck=32, lifted=24,
        stages=((1, 32, 2), (1, 48, 2), (1, 64, 1)),                      # blocks, channels, stride
        lidar=0, fused=64, fusion=((1, 32, 1), (1, 64, 2)),               # cameras alone
        features=48, width=48, layers=2, decoder_heads=4, points=4, mlp=96,
    )
    c.bev = dict(                         # metres: lower, upper end, size of a cell
        x=(-25.6, 25.6, 1.6), y=(-25.6, 25.6, 1.6), z=(-10.0, 10.0, 20.0), depth=(1.0, 25.0, 1.5),
        output=output,
        timed=True,                       # False: the decoder is not told the noise level
        resize=1.0,                       # of photographs, before the network's view is cut
    )
    c.diffusion = dict(schedule="cosine", code_scale=0.01, high=0.999)    # t ~ U[0, high)
    c.sampling = dict(steps=3, sampler="ddim", draws=2, time_difference=1, start=0.0)
    c.sweep = dict(steps=(1, 2, 3, 5), draws=(1, 5))                      # for --mode=steps

    adamw = dict(
        name="adamw", schedule="cosine", peak_lr=3e-3, warmup_steps=30, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=(r"norm",), clip_norm=5.0,
    )
    augment = dict(                       # of images, and of the world with its map
        crop=(48, 72), resize=(1.0, 1.0), flip=True, rotate=0.0,
        world_rotate=180.0, world_scale=(0.95, 1.05), world_shift=0.0, world_flip=True,
    )
    every = dict(log=20, checkpoint=100, evaluate=250)                    # steps
    c.run = ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=500, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
        align=dict(                       # continues from its own first prediction; not in run
            kind="align", start="train", steps=60, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw, peak_lr=1e-4), every=dict(every),
        ),
    )
    c.evaluate = dict(batch_size=8, images=60, quick_images=16, checkpoint="last", pictures=4)
    return c
