"""DeP or DDeP on images of your own: a folder with images/ and masks/, with splits or without.

python -m diffseg_jax.main --config=configs/ddep_folder.py --workdir=runs/mine \
    --config.data.path=mine --config.unlabelled.path=mine

Presets: dep (default): pretraining trains the whole network; ddep: only the decoder; none and
supervised: no pretraining.

mine/classes.json holds the names and colours of the classes; without it, give their number with
--config.data.options.num_classes=3. All labels are used, and all images of the training split serve
as unlabelled images; --config.unlabelled.path may name any other folder of images. Images are
fitted into 160 x 120 pixels for a narrow network that a laptop trains in half an hour; for more
detail raise limit and crop in all three places and take the model of ddep_cityscapes.py. Results
depend on your images. All numbers here are ours, not the papers'.
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

    c.data = dict(
        source="folder", path="", options=dict(num_classes=0, ignore=()), train="train",
        val="val", fraction=1.0, count=0, subset_seed=0, list_path="",    # labels of all images
        folds=0,                          # parts to cut train into; 0: 5 if there is no val
        fold=-1,                          # the part that is held out; -1: as 0
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )
    c.unlabelled = dict(
        source="unlabelled", path="", options=dict(), split="train",
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

    c.loss = dict(
        name="cross_entropy", focal_gamma=2.0,      # cross_entropy | focal, (1 - p)^gamma times it
        class_weights=("none",),          # none | inverse_frequency | (1.0, ...), one per class
        region="none", region_weight=1.0,           # none | dice | lovasz, added with that weight
    )

    adam = dict(
        name="adamw", schedule="cosine", peak_lr=1e-3, warmup_steps=50, warmup_ratio=0.01,
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=1e-2, no_decay=("norm", "bias"), clip_norm=1.0,
    )
    shown = dict(                         # fitted into 160 x 120, jittered
        limit=(160, 120), short=0, scale=(0.75, 1.5), crop=(96, 128), flip=True,
        rotate=0.0, flip_vertical=False, grey=0.0, blur=0.0,              # degrees; share; pixels
    )
    every = dict(log=50, checkpoint=200, evaluate=200)                    # steps
    c.run = ("pretrain", "finetune")
    c.stages = dict(
        pretrain=dict(
            kind="pretrain", start="random", steps=600, batch_size=8, accumulate=1, ema=(),
            augment=dict(shown, max_class_share=1.0, photometric=False),
            optim=dict(adam), every=dict(every),
        ),
        finetune=dict(
            kind="finetune", start="pretrain", steps=600, batch_size=8, accumulate=1, ema=(),
            augment=dict(shown, max_class_share=0.75, photometric=True),
            optim=dict(adam), every=dict(every),
        ),
    )
    c.evaluate = dict(                    # at that size; probabilities are enlarged
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(160, 120), short=0, batch_size=8,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
