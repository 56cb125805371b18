"""DDPM-Seg on the built-in street scenes: 400 unlabelled images, 24 labelled, 4 minutes.

python -m diffseg_jax.main --config=configs/ddpm_seg_scenes.py --workdir=runs/ddpm_seg_scenes

No download. A small diffusion model learns to draw the scenes; ten classifiers of its features
("fit"), and ten of the features of the same network without training ("untrained"), learn from the
pixels of 24 labelled scenes. Such a short training shows how the method works, no more. Images and
results.json are written to the workdir. All numbers here are ours, not the paper's.

Presets: adm (default): the features are those of noised images, as above; clean: a copy of the
model first learns, without labels, to have such features for images without noise ("clean"), and
the classifiers read them in one pass instead of one for each noise level; whole: the model learns
scenes of 32x48 pixels in place of squares, so that python -m diffseg_jax.synthesise can draw such
ones (studies/training_images.py).
"""

from ml_collections import config_dict

PRESETS = ("adm", "clean", "whole")


def get_config(preset="adm"):
    c = config_dict.ConfigDict()
    c.system = "ddpm_seg"
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
        source="scenes", path="", split="train", options=dict(scenes, square=32),
        threads=2, workers=0, cache=True,
    )

    c.weights = ""                        # an official checkpoint, for start="weights"
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.weights_order = "legacy"            # order of its attention channels: legacy | new
    c.model = dict(                       # 3 million parameters
        channels=32, channel_mult=(1, 2, 4), res_blocks=1, attention_factors=(4,),
        heads=4, heads_up=-1, head_channels=32, resample_in_blocks=True, scale_shift=True,
        num_classes=0, learn_sigma=True, dropout=0.0,
    )
    c.diffusion = dict(
        schedule="cosine", steps=1000, rescale_timesteps=False, target="noise",
        variance="learned", loss="hybrid", timesteps="uniform",
    )
    c.samples = dict(images=16, sampler="ddpm", steps="50", eta=0.0)

    c.features = dict(
        sources=("adm",),                 # adm: this network | colour (and position)
        steps=(0, 100),                   # noise levels in 0..diffusion.steps - 1
        blocks=(0, 1, 2, 3, 4),           # output blocks of the network
        short=64,                         # short side of the network's input; 0: as it is
        share_noise=True, noise_file="", draws=1,
        dtype="float16", place="device",  # of stored features; device | host
    )
    c.ensemble = dict(
        recipe="fast",                    # fast | paper
        members=10, widths=(),            # () = 128, 32 below 30 classes, else 256, 128
        small_objects=20,                 # pixels; smaller objects are ignored in the fit
        classifiers="",                   # folder of published model_0.pth, ...: no fit
        probe=True,                       # a linear classifier beside it, as a baseline
    )

    fit = dict(
        kind="fit",
        augment=dict(limit=(0, 0), short=0, crop=(96, 128)),              # size of labels
        every=dict(log=200, checkpoint=1_000),                            # steps
    )
    c.run = ("pretrain", "fit", "untrained")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=300, batch_size=8, accumulate=1,
            ema=(0.99,),
            augment=dict(
                limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(32, 32), max_class_share=1.0,
                flip=True, photometric=False,
            ),
            optim=dict(
                name="adamw", schedule="constant", peak_lr=4e-4, warmup_steps=50,
                warmup_ratio=0.0, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0,
                no_decay=(), clip_norm=1.0,
            ),
            every=dict(log=50, checkpoint=150, evaluate=300),             # steps
        ),
        fit=dict(fit, start="pretrain"),
        untrained=dict(fit, start="random"),
    )
    if preset == "clean":
        c.features.sources = ("clean",)
        c.clean = dict(
            blocks=(),                    # where the copy learns; () = those of features
            steps=(0, 399),               # noise levels of its teacher, from and to
        )
        c.stages.clean = dict(
            c.stages.pretrain, kind="clean", start="pretrain", steps=300,
            optim=dict(c.stages.pretrain.optim, peak_lr=2e-4),
        )
        c.stages.fit.start = "clean"
        c.run = ("pretrain", "clean", "fit")
    if preset == "whole":
        small = dict(scenes, size=(32, 48))
        c.data.options, c.unlabelled.options = dict(small), dict(small)
        c.stages.pretrain.augment.crop = c.stages.fit.augment.crop = small["size"]
        c.stages.pretrain.steps = 1_000   # after 300 the drawn images are little more than noise
        c.run = ("pretrain", "fit")
    c.evaluate = dict(
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(0, 0), short=0, batch_size=4,
        images=60, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
