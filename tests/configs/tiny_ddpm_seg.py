"""A run of seconds for the tests: a diffusion model of scenes, and classifiers of its features.

python -m diffseg_jax.main --config=tests/configs/tiny_ddpm_seg.py --workdir=runs/tiny
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "float32"
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)

    c.data = dict(
        source="scenes", path="", options=dict(images=6, size=(32, 48), seed=0), train="train",
        val="val", fraction=1.0, count=3, subset_seed=0, list_path="", threads=2, workers=0,
        cache=True,
    )
    c.unlabelled = dict(
        source="scenes", path="", options=dict(images=10, size=(32, 48), seed=0, square=16),
        split="train", threads=2, workers=0, cache=True,
    )

    c.weights = ""
    c.weights_part = ""
    c.weights_order = "legacy"
    c.model = dict(
        channels=32, channel_mult=(1, 1), res_blocks=1, attention_factors=(), heads=2, heads_up=-1,
        head_channels=-1, resample_in_blocks=True, scale_shift=True, num_classes=0,
        learn_sigma=True, dropout=0.1,
    )
    c.diffusion = dict(
        schedule="cosine", steps=20, rescale_timesteps=False, target="noise", variance="learned",
        loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=3, sampler="ddim", steps="ddim4", eta=0.0)

    c.features = dict(
        sources=("adm",), steps=(1, 5), blocks=(0, 2), short=16, share_noise=True, noise_file="",
        draws=1, dtype="float16", place="device",
    )
    c.ensemble = dict(
        recipe="paper", members=3, widths=(8, 4), small_objects=20, classifiers="", probe=False
    )

    c.run = ("pretrain", "fit")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=4, batch_size=4, accumulate=1, ema=(0.5, 0.9),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(16, 16), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=1e-2, warmup_steps=0, warmup_ratio=0.0,
                b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0, no_decay=(), clip_norm=1.0,
            ),
            every=dict(log=2, checkpoint=2, evaluate=4),
        ),
        fit=dict(
            kind="fit", start="pretrain", augment=dict(limit=(0, 0), short=0, crop=(32, 48)),
            every=dict(log=50, checkpoint=100),
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False, limit=(0, 0),
        short=0, batch_size=2, images=0, quick_images=2, absent="skip", checkpoint="last",
        pictures=2,
    )
    return c
