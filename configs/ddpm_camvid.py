"""A diffusion model of CamVid's road scenes at 64x64, small enough for a laptop's processor.

python -m diffseg_jax.main --config=configs/ddpm_camvid.py --workdir=runs/ddpm_camvid \
    --config.unlabelled.path=camvid

The 367 training images as squares of 64 pixels, mirrored at random; no label is read. Sample
grids appear in pictures/ (expected: .docs/diffusion_models.md). Settings are ours; the loss
and schedule are those of Improved DDPM (Nichol and Dhariwal, 2021).
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.unlabelled = dict(
        source="unlabelled", path="", split="train", options=dict(square=64),
        threads=2, workers=0, cache=True,                                 # squares stay in memory
    )

    c.weights = ""                        # an official checkpoint, for start="weights"
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.weights_order = "legacy"            # order of its attention channels: legacy | new
    c.model = dict(                       # 4.5 million parameters
        channels=32, channel_mult=(1, 2, 3, 4), res_blocks=1, attention_factors=(4, 8),
        heads=4, heads_up=-1, head_channels=32, resample_in_blocks=True, scale_shift=True,
        num_classes=0, learn_sigma=True, dropout=0.0,
    )
    c.diffusion = dict(
        schedule="cosine", steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=16, sampler="ddpm", steps="100", eta=0.0)

    c.run = ("pretrain",)
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=3_000, batch_size=8, accumulate=1,
            ema=(0.99, 0.998),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(64, 64), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=4e-4, warmup_steps=200,
                warmup_ratio=0.0, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0,
                no_decay=(), clip_norm=1.0,
            ),
            every=dict(log=50, checkpoint=500, evaluate=1_000),           # steps
        ),
    )
    return c
