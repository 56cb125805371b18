"""DeepLabV3 on images of your own, or on images that a diffusion model made and labelled.

python -m diffseg_jax.main --config=configs/deeplab_folder.py --workdir=runs/mine \
    --config.data.path=mine

"mine" holds images/ and masks/, or images/{train,val} and masks/{train,val}; without val a part of
the labelled images is held out (.docs/data.md). mine/classes.json holds the names and colours of
the classes, or give --config.data.options.num_classes=3. Where the training images are generated
ones (.docs/synthetic_data.md), validation images come from another data set:

    --config.data.path=runs/made --config.data.validation.path=mine

--config.weights=resnet50.pth, a ResNet-50 of torchvision, timm or SwAV, with
--config.model.width=64 --config.model.depths="(3, 4, 6, 3)" starts from trained features, which is
far better with few images. All numbers here are ours, not a paper's.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    c.system = "deeplab"
    c.seed = 0
    c.dtype = "float32"                   # computation; parameters are float32
    c.remat = False
    c.mesh = dict(data=-1, fsdp=1)        # devices per axis; -1: all remaining ones

    c.data = dict(
        source="folder", path="", options=dict(num_classes=0, ignore=()), train="train",
        val="val", fraction=1.0, count=0, subset_seed=0, list_path="",    # every label
        validation=dict(                  # the data set that holds val; "": this one
            source="", path="", options=dict(),
        ),
        folds=0,                          # parts to cut train into; 0: 5 if there is no val
        fold=-1,                          # the part that is held out; -1: as 0
        threads=2, workers=0, cache=True,                                 # images stay in memory
    )

    c.weights = ""                        # of the backbone; "": from scratch
    c.weights_part = ""                   # of a file of several networks, such as model_ema
    c.new_head = False                    # True: the classes differ from the start's
    c.model = dict(
        width=16, depths=(2, 2, 2, 2),    # of the ResNet; width: channels of its stem
        output_stride=8,                  # pixels per value of its last map: 8 | 16 | 32
        rates=(4, 8, 12), channels=64,     # dilations and channels of the pyramid
        dropout=0.1,
        auxiliary=0.0,                    # weight of the third stage's loss; 0: no such head
    )

    c.loss = dict(
        name="cross_entropy", focal_gamma=2.0,      # cross_entropy | focal, (1 - p)^gamma times it
        class_weights=("none",),          # none | inverse_frequency | (1.0, ...), one per class
        region="none", region_weight=1.0,           # none | dice | lovasz, added with that weight
    )

    augment = dict(
        limit=(240, 180), short=0, scale=(0.5, 2.0), crop=(128, 160), max_class_share=0.75,
        flip=True, photometric=True,
        rotate=0.0, flip_vertical=False, grey=0.0, blur=0.0,              # degrees; share; pixels
    )
    c.run = ("train",)
    c.stages = dict(
        train=dict(
            kind="train", start="weights", steps=1_200, batch_size=8, accumulate=1, ema=(),
            augment=augment,
            optim=dict(
                name="adamw", schedule="polynomial", peak_lr=1e-3, warmup_steps=100,
                warmup_ratio=0.01, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.01,
                no_decay=(r"norm", r"bias"), clip_norm=1.0,
            ),
            every=dict(log=50, checkpoint=200, evaluate=400),             # steps
        ),
    )
    c.evaluate = dict(                    # all validation images
        view="whole", window=(0, 0), stride=(0, 0), scales=(1.0,), flip=False,
        limit=(240, 180), short=0, batch_size=4,
        images=0, quick_images=24, absent="skip", checkpoint="last", pictures=4,
    )
    return c
