"""MAE's official pretraining, 800 epochs of ImageNet, for TPUs or many GPUs.

python -m diffseg_jax.main --config=configs/mae_published.py:vit_l --workdir=runs/mae \
    --config.unlabelled.path=imagenet

Presets vit_s, vit_b, vit_l (default): He et al. (CVPR 2022) train the last two. With N images, a
batch of B and E epochs, steps = E N / B, warmup_steps = 40 N / B and peak_lr = 1.5e-4 B / 256;
here N = 1,281,167, B = 4096, E = 800. Unlike theirs, crops (a fifth of the image or more) keep the
aspect ratio and are resized bilinearly. The networks of Baranchuk et al. (ICLR 2022) have
--config.mae.patch=8 --config.stages.mae.augment.crop="(256, 256)"
--config.stages.mae.augment.short=256, and B = 1024; E = 150 for LSUN bedrooms, 200 for cats and
horses, 400 for FFHQ. Not run here.
"""

from ml_collections import config_dict

SIZES = dict(
    vit_s=dict(width=384, depth=12, heads=6, mlp=1536),       # ours; the decoder is theirs
    vit_b=dict(width=768, depth=12, heads=12, mlp=3072),
    vit_l=dict(width=1024, depth=24, heads=16, mlp=4096),
)
PRESETS = tuple(SIZES)


def get_config(preset="vit_l"):
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
    c.seed = 0
    c.dtype = "bfloat16"                  # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.unlabelled = dict(
        source="unlabelled", path="", split="train", options=dict(),
        threads=8, workers=0, cache=False,
    )

    c.weights = ""                        # an official MAE file, for start="weights" of mae
    c.weights_part = ""                   # of a file of several networks
    c.weights_order = "legacy"            # of diffusion models; MAE has no such order
    c.mae = dict(
        **SIZES[preset], patch=16,
        decoder_width=512, decoder_depth=8, decoder_heads=16, decoder_mlp=2048,
    )
    c.masking = dict(ratio=0.75, normalise=True)   # hidden patches; targets normalised in each

    c.run = ("mae",)
    c.stages = dict(
        mae=dict(
            kind="mae", start="random", steps=250_228, batch_size=4096, accumulate=1, ema=(),
            augment=dict(
                limit=(0, 0), short=224, scale=(1.0, 2.236), crop=(224, 224), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="cosine_after_warmup", peak_lr=2.4e-3, warmup_steps=12_511,
                warmup_ratio=0.0, b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.05,
                no_decay=(r"\.(bias|scale)$",), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=2_000, evaluate=10_000),       # steps
        ),
    )
    return c
