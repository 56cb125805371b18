"""The published diffusion models: LSUN and FFHQ at 256x256, ImageNet at 64x64.

python -m diffseg_jax.main --config=configs/ddpm_published.py:lsun_bedroom \
    --workdir=runs/lsun_bedroom --config.unlabelled.path=lsun_bedroom

Presets                   pixels  iterations
  lsun_bedroom (default)  256     500,000 as the paper reports
  lsun_cat                256     200,000
  lsun_horse              256     250,000
  ffhq                    256     500,000, unconfirmed; with the settings of LSUN, as in DDPM-Seg
  imagenet64               64     540,000, unconfirmed; class-conditional: the class is the name of
                                  the file up to its first "_", as in n01440764_10026.JPEG
  tiny                     32     10 of a small network on the built-in scenes, without data, in
                                  about a minute

Networks, noise and optimizers are those of the released checkpoints (Dhariwal and Nichol, 2021):
batch 256, learning rate 1e-4, dropout 0.1 (ImageNet: batch 2048, 3e-4, cosine schedule), moving
average 0.9999. The originals trained in float16 with a loss scale; bfloat16 needs none. To continue
from a released file: --config.weights=lsun_bedroom.pt --config.stages.pretrain.start=weights.
"""

from ml_collections import config_dict

PRESETS = ("lsun_bedroom", "lsun_cat", "lsun_horse", "ffhq", "imagenet64", "tiny")
STEPS = dict(lsun_bedroom=500_000, lsun_cat=200_000, lsun_horse=250_000, ffhq=500_000,
             imagenet64=540_000, tiny=10)
SQUARE = dict(                            # 552,814,086 parameters
    model=dict(channels=256, channel_mult=(1, 1, 2, 2, 4, 4), res_blocks=2,
               attention_factors=(8, 16, 32), num_classes=0),
    options=dict(square=256), order="legacy", schedule="linear", batch_size=256, peak_lr=1e-4,
)
IMAGENET64 = dict(                        # 295,904,454 parameters
    model=dict(channels=192, channel_mult=(1, 2, 3, 4), res_blocks=3,
               attention_factors=(2, 4, 8), num_classes=1000),
    options=dict(square=64, classes="prefix"), order="new", schedule="cosine", batch_size=2048,
    peak_lr=3e-4,
)


def get_config(preset="lsun_bedroom"):
    published = IMAGENET64 if preset == "imagenet64" else SQUARE
    square = published["options"]["square"]
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "bfloat16"                  # computation; parameters are float32
    c.remat = True                        # recompute residual blocks in the backward pass
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.unlabelled = dict(                  # box filter and bicubic to the short side, centre crop
        source="unlabelled", path="", split="", options=published["options"],
        threads=16, workers=0, cache=False,
    )

    c.weights = ""                        # an official checkpoint, for start="weights"
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.weights_order = published["order"]  # order of its attention channels: legacy | new
    c.model = dict(
        published["model"], heads=4, heads_up=-1, head_channels=64, resample_in_blocks=True,
        scale_shift=True, learn_sigma=True, dropout=0.1,
    )
    c.diffusion = dict(
        schedule=published["schedule"], steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=16, sampler="ddim", steps="ddim50", eta=0.0)

    c.run = ("pretrain",)
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=STEPS[preset],
            batch_size=published["batch_size"], accumulate=4, ema=(0.9999,),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(square, square),
                max_class_share=1.0, flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=published["peak_lr"], warmup_steps=0,
                warmup_ratio=0.0, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0,
                no_decay=(), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=5_000, evaluate=10_000),       # steps
        ),
    )
    if preset == "tiny":
        c.unlabelled.update(source="scenes", split="train", threads=2)
        c.unlabelled.options = dict(images=16, size=(32, 48), seed=0, square=32)
        c.model.update(channels=32, channel_mult=(1, 2), res_blocks=1, attention_factors=(2,))
        c.samples.update(images=4, steps="ddim5")
        c.stages.pretrain.update(
            batch_size=8, augment=dict(crop=(32, 32)),
            every=dict(log=5, checkpoint=5, evaluate=10),
        )
    return c
