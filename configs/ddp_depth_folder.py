"""DDP for depth on photographs of your own with measured depth, small enough for a laptop.

python -m diffseg_jax.main --config=configs/ddp_depth_folder.py --workdir=runs/mine \
    --config.data.path=mine

"mine" holds images/{train,val}, depth/{train,val} with a depth map of the same name for each image
(PNG of 16 bits, or .npy), and depth.json, {"scale": 0.001} for millimetres (.docs/data.md); without
val a part of the images is held out. Set depth.high to the furthest depth that matters, in metres:
10 in rooms, 80 in streets. Images are fitted into 240 x 180 pixels; for more detail raise limit and
crop of the stages and limit of evaluate. The network is that of ddp_folder.py. Results depend on
your images. All numbers here are ours, not the paper's.
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
        source="depth_folder", path="", options=dict(), train="train", val="val",
        fraction=1.0, count=0, subset_seed=0, list_path="",               # every image
        folds=0,                          # parts to cut train into; 0: 5 if there is no val
        fold=-1,                          # the part that is held out; -1: as 0
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.model = dict(
        backbone="convnext", channels=(32, 64, 96, 128), depths=(2, 2, 4, 2), heads=(), window=0,
        drop_path=0.0, down_epsilon=1e-5,
        width=64, layers=3, decoder_heads=4, points=4, mlp=256, groups=8,
    )
    c.depth = dict(
        low=0.1, high=20.0,               # metres: of predictions, and of what is measured
        timed=True,                       # False: the decoder ignores the time
        bounded=True,                     # outputs are high * sigmoid; False: low + ReLU
        warmup=0,                         # steps whose loss is that of the mean alone
    )
    c.diffusion = dict(schedule="cosine", code_scale=0.1, high=0.999)     # t ~ U[0, high)
    c.sampling = dict(steps=3, sampler="ddim", draws=1, time_difference=1, start=0.0)
    c.sweep = dict(steps=(1, 2, 3, 5, 10), draws=(1,))                    # for --mode=steps

    adamw = dict(
        name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=100, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01, no_decay=(r"norm", r"bias_table"),
        clip_norm=1.0,
    )
    augment = dict(
        limit=(240, 180), short=0, scale=(1.0, 1.2), crop=(128, 160), flip=True,
        rotate=2.5, rotate_share=0.5,                                     # degrees; of the images
        colour_share=0.5, gamma=(0.9, 1.1), brightness=(0.8, 1.2), channels=(0.9, 1.1),
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
    )
    c.evaluate = dict(                    # all validation images
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=4, crop="none",
        images=0, quick_images=24, checkpoint="last", pictures=4,
    )
    return c
