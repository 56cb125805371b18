"""The diffusion model of LSUN bedrooms at 256x256, as published.

python -m diffseg_jax.main --config=configs/ddpm_lsun_bedroom.py --workdir=runs/lsun_bedroom \
    --config.unlabelled.path=lsun_bedroom

The network, noise and optimizer of the released checkpoint (Dhariwal and Nichol, 2021): batch 256,
learning rate 1e-4, moving average 0.9999, dropout 0.1, 500,000 iterations as the paper reports. The
originals trained in float16 with a loss scale; bfloat16 needs none. To go on from the released
file: --config.weights=lsun_bedroom.pt --config.stages.pretrain.start=weights.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "bfloat16"                  # of convolutions; parameters are float32
    c.remat = True                        # residual blocks are recomputed in the backward pass
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1 = all that are left

    c.unlabelled = dict(                  # short side to 256 by box filter and bicubic, centre crop
        source="unlabelled", path="", split="", options=dict(square=256),
        threads=16, workers=0, cache=False,
    )

    c.weights = ""                        # an official checkpoint, for start="weights"
    c.weights_order = "legacy"            # of its attention channels: legacy | new
    c.model = dict(                       # 552,814,086 parameters
        channels=256, channel_mult=(1, 1, 2, 2, 4, 4), res_blocks=2,
        attention_factors=(8, 16, 32), heads=4, heads_up=-1, head_channels=64,
        resample_in_blocks=True, scale_shift=True, num_classes=0, learn_sigma=True, dropout=0.1,
    )
    c.diffusion = dict(
        schedule="linear", steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=16, sampler="ddim", steps="ddim50", eta=0.0)

    c.run = ("pretrain",)
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=500_000, batch_size=256, accumulate=4,
            ema=(0.9999,),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(256, 256), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=1e-4, warmup_steps=0,
                warmup_ratio=0.0, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0,
                no_decay=(), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=5_000, evaluate=10_000),       # steps
        ),
    )
    return c
