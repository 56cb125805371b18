"""DDeP on ADE20K (150 classes): decoder denoising on ImageNet-21k, then fine-tuning.

python -m diffseg_jax.main --config=configs/ddep_ade20k.py --workdir=runs/ddep_ade20k \
    --config.data.path=ADEChallengeData2016 --config.unlabelled.path=imagenet21k \
    --config.weights=R50+ViT-B_16.npz

Presets:
  ddep (default)    pretraining trains the decoder; the encoder keeps --config.weights
  dep               pretraining trains the whole network, from random values
  none, supervised  no pretraining; supervised starts the encoder from --config.weights
  tiny              ddep for a laptop: a narrow network, a few steps on the built-in scenes, no data
                    or weights needed, about a minute

Pretraining does not depend on the labelled set; to take it from another run:
    --config.run="('finetune',)" --config.stages.finetune.start=runs/a/checkpoints/pretrain
Time, estimated at 100 TFLOP/s per device, not measured: pretraining 15 device-days,
fine-tuning (40,000 steps of 16 crops, 6.5e17 operations) 2 device-hours.
Expected result: none; no number of the papers could be confirmed.

Unconfirmed: batch size, learning rate and resolution of pretraining, the range [-1, 1] of the
noised image, the meaning of decoder widths 2 and 3, the rates, crops and flips of fine-tuning,
the six scales of evaluation.
From readers of the paper: 100 epochs, cosine decay, noise level 0.22.
Ours, as no source states them: batch size, steps and weight decay of fine-tuning.
"""

from ml_collections import config_dict

PRESETS = ("none", "supervised", "dep", "ddep", "tiny")


def get_config(preset="ddep"):
    c = config_dict.ConfigDict()
    c.system = "ddep"
    c.seed = 0
    c.dtype = "bfloat16"                  # computation; parameters are float32
    c.remat = True                        # recompute activations in the backward pass
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="ade20k", path="", options=dict(),
        train="train", val="val",
        fraction=0.05, count=0, subset_seed=0, list_path="",  # 1011 images; 0.01, 0.1, 0.2, 1.0
        threads=16, workers=0, cache=False,
    )
    c.unlabelled = dict(                  # any folder of images; papers: ImageNet-21k
        source="unlabelled", path="", options=dict(), split="train",
        threads=16, workers=0, cache=False,
    )

    c.pretrain = "ddep" if preset == "tiny" else preset
    c.weights = ""                        # R50+ViT-B_16.npz of ImageNet-21k
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.noise = dict(
        kind="scaled", low=0.22, high=0.22,           # (x + sigma eps) / sqrt(1 + sigma^2)
        uniform_in="sigma", target="noise", condition=False,
    )
    c.model = dict(                       # R50+ViT-B/16 and a decoder of width 1, 2 or 3
        arithmetic="official", resnet_width=1.0, resnet_units=(3, 4, 9),
        hidden=768, layers=12, heads=12, mlp=3072,
        decoder=(256, 128, 64, 16), decoder_width=1.0, bridge=512, scale_bridge=False, skips=3,
        dropout=0.1,
    )

    c.run = ("pretrain", "finetune")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=2_770_000, batch_size=512, accumulate=1, ema=(),
            augment=dict(
                limit=(0, 0), short=256, scale=(1.0, 1.0), crop=(224, 224), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(                           # unconfirmed: 6e-5 for widths 1, 3; 1e-4 for 2
                name="adam", schedule="cosine", peak_lr=6e-5, warmup_steps=0, warmup_ratio=1.0,
                b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0, no_decay=(), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=2_000, evaluate=10_000),       # steps
        ),
        finetune=dict(
            kind="finetune", start="pretrain", steps=40_000, batch_size=16, accumulate=1, ema=(),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(512, 512), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(                           # unconfirmed: swept in [1e-5, 3e-4]
                name="adam", schedule="cosine", peak_lr=1e-4, warmup_steps=0, warmup_ratio=1.0,
                b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-5, no_decay=(), clip_norm=0.0,
            ),
            every=dict(log=100, checkpoint=1_000, evaluate=2_000),
        ),
    )
    c.evaluate = dict(                    # windows of the crop size
        view="slide", window=(512, 512), stride=(341, 341), flip=True,
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        limit=(0, 0), short=0, batch_size=4,
        images=0, quick_images=64, absent="skip", checkpoint="last", pictures=4,
    )
    if preset == "tiny":
        c.data.update(source="scenes", fraction=1.0, count=8, threads=2)
        c.unlabelled.update(source="scenes", threads=2)
        c.data.options = c.unlabelled.options = dict(images=16, size=(64, 96), seed=0)
        c.model.update(
            resnet_width=0.5, resnet_units=(1, 1, 1), hidden=64, layers=1, heads=2, mlp=64,
            decoder=(16, 16, 8, 8), bridge=32,
        )
        c.stages.pretrain.update(
            steps=10, batch_size=4, augment=dict(short=64, crop=(64, 64)),
            every=dict(log=5, checkpoint=10, evaluate=10),
        )
        c.stages.finetune.update(
            steps=10, batch_size=4, augment=dict(crop=(64, 64)),
            every=dict(log=5, checkpoint=5, evaluate=10),
        )
        c.evaluate.update(window=(64, 64), stride=(43, 43), images=4, quick_images=2)
    return c
