"""The class-conditional diffusion model of ImageNet at 64x64, as published.

python -m diffseg_jax.main --config=configs/ddpm_imagenet64.py --workdir=runs/imagenet64 \
    --config.unlabelled.path=imagenet/train

The network, noise and optimizer of the released checkpoint (Dhariwal and Nichol, 2021): batch 2048,
learning rate 3e-4, moving average 0.9999, cosine schedule. Files are named as ImageNet names them,
n01440764_10026.JPEG. The number of iterations is unconfirmed. bfloat16 in place of float16.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "bfloat16"                  # of convolutions; parameters are float32
    c.remat = True                        # residual blocks are recomputed in the backward pass
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1 = all that are left

    c.unlabelled = dict(                  # the class is the file name up to its first "_"
        source="unlabelled", path="", split="", options=dict(square=64, classes="prefix"),
        threads=16, workers=0, cache=False,
    )

    c.weights = ""                        # an official checkpoint, for start="weights"
    c.weights_order = "new"               # of its attention channels: legacy | new
    c.model = dict(                       # 295,904,454 parameters
        channels=192, channel_mult=(1, 2, 3, 4), res_blocks=3, attention_factors=(2, 4, 8),
        heads=4, heads_up=-1, head_channels=64, resample_in_blocks=True, scale_shift=True,
        num_classes=1000, learn_sigma=True, dropout=0.1,
    )
    c.diffusion = dict(
        schedule="cosine", steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=16, sampler="ddim", steps="ddim50", eta=0.0)

    c.run = ("pretrain",)
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random",
            steps=540_000, batch_size=2048, accumulate=4,                 # steps unconfirmed
            ema=(0.9999,),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(64, 64), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=3e-4, warmup_steps=0,
                warmup_ratio=0.0, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0,
                no_decay=(), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=5_000, evaluate=10_000),       # steps
        ),
    )
    return c
