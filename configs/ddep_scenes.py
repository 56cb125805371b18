"""Denoising pretraining on the built-in street scenes: the quick start, no download.

python -m diffseg_jax.main --config=configs/ddep_scenes.py --workdir=runs/scenes

Presets: dep (default): pretraining trains the whole network; ddep: only the decoder; none and
supervised: no pretraining.

A narrow TransUNet learns to remove noise from 400 unlabelled scenes, then to segment them from 24
labelled scenes; `scratch` is the same without pretraining. The package has no pretrained encoder,
so the encoder learns too (pretrain="dep"); "ddep" freezes it, which helps with the weights of
ddep_cityscapes.py. Time and result on two CPU cores: .docs/denoising_pretraining.md. All numbers
here are ours, chosen for a short run, not the papers'.
"""

from ml_collections import config_dict

PRESETS = ("none", "supervised", "dep", "ddep")


def get_config(preset="dep"):
    c = config_dict.ConfigDict()
    c.system = "ddep"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    scenes = dict(images=400, size=(96, 128), seed=0)
    c.data = dict(
        source="scenes", path="", options=scenes, train="train", val="val",
        fraction=1.0, count=24, subset_seed=0, list_path="",              # 24 labelled scenes
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )
    c.unlabelled = dict(
        source="scenes", path="", options=dict(scenes), split="train",
        threads=2, workers=0, cache=True,
    )

    c.pretrain = preset
    c.weights = ""
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.noise = dict(
        kind="scaled", low=0.22, high=0.22, uniform_in="sigma", target="noise", condition=False,
    )
    c.model = dict(
        arithmetic="official", resnet_width=0.5, resnet_units=(1, 1, 1),
        hidden=128, layers=2, heads=4, mlp=256,
        decoder=(64, 48, 32, 16), decoder_width=1.0, bridge=128, scale_bridge=False, skips=3,
        dropout=0.1,
    )

    adam = dict(
        name="adamw", schedule="cosine", peak_lr=1e-3, warmup_steps=20, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-2, no_decay=("norm", "bias"), clip_norm=1.0,
    )
    augment = dict(
        limit=(0, 0), short=0, scale=(0.75, 1.5), crop=(96, 128), max_class_share=1.0, flip=True,
        photometric=False,
    )
    every = dict(log=20, checkpoint=100, evaluate=100)                    # steps
    c.run = ("pretrain", "finetune", "scratch")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=160, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment), optim=dict(adam), every=dict(every),
        ),
        finetune=dict(
            kind="finetune", start="pretrain", steps=140, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment, photometric=True), optim=dict(adam), every=dict(every),
        ),
        scratch=dict(
            kind="finetune", start="random", steps=140, batch_size=8, accumulate=1, ema=(),
            augment=dict(augment, photometric=True), optim=dict(adam), every=dict(every),
        ),
    )
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=8,
        images=100, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
