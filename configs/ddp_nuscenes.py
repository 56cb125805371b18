r"""DDP on nuScenes: maps seen from above, of six cameras, or of cameras and a LiDAR's features.

python -m diffseg_jax.main --config=configs/ddp_nuscenes.py:camera --workdir=runs/nuscenes \
    --config.data.path=nuscenes --config.weights=swin_tiny_patch4_window7_224.pth

The files are those that BEVFusion prepares, see .docs/bev.md. `fusion` joins the cameras with
features of a LiDAR that another program computed; `tiny` is a network of seconds for tests.
Published numbers (nuScenes val, 3 steps, mean over the classes of the best IoU): 59.4 for cameras,
70.6 with a LiDAR.
"""

from ml_collections import config_dict

PRESETS = ("camera", "fusion", "tiny")


def get_config(preset="camera"):
    c = config_dict.ConfigDict()
    c.system = "ddp"
    c.task = "bev"
    c.seed = 0
    c.dtype = "float32"                   # bfloat16 halves the memory of activations
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    output = (-50.0, 50.0, 0.5)           # metres: lower, upper end, size of a cell; x and y alike
    c.data = dict(
        source="nuscenes", path="nuscenes", options=dict(output=output, lidar=False),
        train="train", val="val", fraction=1.0, count=0, subset_seed=0, list_path="",
        threads=8, workers=0, cache=False,
    )

    c.weights = ""                        # a Swin-T of ImageNet, or a whole published network
    c.weights_part = ""
    c.model = dict(
        channels=(96, 192, 384, 768), depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7,
        drop_path=0.3, neck=256, lifted=80,
        stages=((2, 160, 2), (2, 320, 2), (2, 640, 1)),                   # blocks, channels, stride
        lidar=0, fused=256, fusion=((5, 128, 1), (5, 256, 2)),            # with a LiDAR, in place
        features=256, width=256, layers=5, decoder_heads=8, points=4, mlp=1024,
    )
    c.bev = dict(                         # metres: lower, upper end, size of a cell
        x=(-51.2, 51.2, 0.4), y=(-51.2, 51.2, 0.4), z=(-10.0, 10.0, 20.0), depth=(1.0, 60.0, 0.5),
        output=output,
        timed=True,                       # False: as released, the decoder ignores the noise level
        resize=0.48,                      # of photographs, before the network's view is cut
    )
    c.diffusion = dict(schedule="cosine", code_scale=0.01, high=0.999)    # t ~ U[0, high)
    c.sampling = dict(steps=3, sampler="ddim", draws=5, time_difference=1, start=0.0)
    c.sweep = dict(steps=(1, 2, 3, 5, 10), draws=(1, 5))                  # for --mode=steps

    adamw = dict(                         # near the original's cycle over 20 epochs of 32 samples
        name="adamw", schedule="cosine_after_warmup", peak_lr=5e-4, warmup_steps=7_032,
        warmup_ratio=0.1, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01,
        no_decay=(r"bias_table",), clip_norm=35.0,
    )
    augment = dict(                       # of images, and of the world with its map
        crop=(256, 704), resize=(0.38, 0.55), flip=True, rotate=5.4,
        world_rotate=45.0, world_scale=(0.9, 1.1), world_shift=0.5, world_flip=True,
    )
    every = dict(log=50, checkpoint=1_000, evaluate=2_000)                # steps
    c.run = ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=17_580, batch_size=32, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adamw), every=dict(every),
        ),
    )
    c.evaluate = dict(batch_size=8, images=0, quick_images=200, checkpoint="last", pictures=4)
    return {"camera": lambda c: c, "fusion": with_lidar, "tiny": made_tiny}[preset](c)


def with_lidar(c):
    """Features of a LiDAR stay as they are: the world may be mirrored, but not turned or moved."""
    c.data.options.lidar = True           # lidar_bev/<token>.npy, f32[256, 128, 128]
    c.model.lidar, c.model.features = 256, 512
    c.sampling.draws = 4
    c.stages.train.augment.update(world_rotate=0.0, world_scale=(1.0, 1.0), world_shift=0.0)
    return c


def made_tiny(c):
    c.data.threads = 2
    c.model.update(
        channels=(4, 8, 16, 32), depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=2, neck=8,
        lifted=6, stages=((1, 8, 2), (1, 8, 2), (1, 12, 1)), fused=8, fusion=((1, 8, 1), (1, 8, 2)),
        features=8, width=8, layers=1, decoder_heads=2, points=2, mlp=16,
    )
    c.bev.update(x=(-51.2, 51.2, 6.4), y=(-51.2, 51.2, 6.4), depth=(1.0, 61.0, 10.0), resize=0.4)
    c.bev.output = c.data.options.output = (-50.0, 50.0, 5.0)
    c.sampling.update(steps=2, draws=1)
    c.stages.train.update(steps=2, batch_size=2)
    c.stages.train.augment.update(crop=(32, 48), resize=(0.38, 0.45))
    c.stages.train.every.update(log=1, checkpoint=2, evaluate=2)
    c.evaluate.update(batch_size=2, images=2, quick_images=2, pictures=1)
    return c
