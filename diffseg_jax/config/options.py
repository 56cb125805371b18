"""The options that every system's config holds; each system adds its own."""

from diffseg_jax.config.schema import (
    ClassWeights,
    Flag,
    Named,
    Number,
    Optional,
    Pattern,
    Several,
    Some,
    Text,
)

SIZE = Several(Number(int, 0, 65536), 2)
SOURCE_OPTIONS = {  # each function in data/sources.py SOURCES names the ones that it reads
    "size": Several(Number(int, 0, 4096), 2),  # scenes: (height, width) in pixels
    "images": Number(int, 0),  # scenes: how many; generated: the first ones
    "seed": Number(int, 0),  # scenes: seed of the drawing; data sets on disk ignore it
    "num_classes": Number(int, 0, 65535),  # unless listed; pascal_context: 59 or 60
    "raw_459": Flag(),  # pascal_context: the masks hold the raw 459 ids
    "image_key": Text(),  # tfds: name of the image feature; "" finds it
    "mask_key": Text(),  # tfds: name of the mask feature; "" finds it
    "label_key": Text(),  # tfds: name of the feature that becomes "class"; "" for none
    "classes": Text(),  # unlabelled: class from "prefix" (cat_1.jpg) or "folder"; "" for none;
    # generated: the published set that has them
    "keep_masks": Flag(),  # unlabelled: files that look like masks are images too
    "splits": Text(),  # kitti, nyu: folder of the split files; "" for that of the data
    "ignore": Several(Number(int, 0, 65535)),  # folder: ids on disk that become 255, ignored
    "output": Several(Number(float), 3),  # BEV sets: lower, upper end and size of a cell, metres
    "lidar": Flag(),  # nuscenes: features of lidar_bev/ belong to the examples
    "portion": Number(float, 0, 0.99),  # generated: share that is dropped by uncertainty
    "certain": Number(int, 0),  # generated: how many of those are the most certain ones
    "square": Number(int, 0, 16384),  # any: side of the square cut from each image; 0 for none
}
SOURCE_DEFAULTS = {  # values of those options of a data set that a config does not set
    "size": (), "images": 0, "seed": 0, "num_classes": 0, "raw_459": False, "image_key": "",
    "mask_key": "", "label_key": "", "classes": "", "keep_masks": False, "splits": "", "ignore": (),
    "output": (), "lidar": False, "portion": 0.0, "certain": 0, "square": 0,
}  # fmt: skip
DATA = {
    "source": Text(),
    "path": Text(),
    "options": Some(SOURCE_OPTIONS),
    "threads": Number(int, 1, 1024),
    "workers": Number(int, 0, 1024),
    "cache": Flag(),
}
MORE_CHANGES = {  # of training images, which the papers do not make
    "rotate": Optional(Number(float, 0, 180)),  # degrees
    "flip_vertical": Optional(Flag()),
    "grey": Optional(Number(float, 0, 1)),  # share of the images
    "blur": Optional(Number(float, 0, 100)),  # pixels
}
LABEL_PROBE = Optional(Some({  # of stages without labels; see experiment.pretraining_probe
    "every": Number(int, 0),  # steps; 0: never
    "patience": Number(int, 0),  # probes without a gain after which the stage ends; 0: never
    "gain": Number(float, 0, 1),  # of mean IoU
}))  # fmt: skip
CORRUPTIONS = Optional(Some({  # of --mode=corruptions; see experiment.corruption_study
    "stage": Text(),  # "": the one that `load` opens
    "types": Several(Text()),  # (): eighteen
    "severities": Several(Number(int, 1, 5)),
    "images": Number(int, 0),  # spread over those of the evaluation; 0: all of them
    "frost": Text(),  # folder of photographs of frost; "": frost is drawn
    "constants": Text(("224", "64")),  # made for images of so many pixels
}))  # fmt: skip
STAGE = {
    "kind": Text(),
    "start": Text(),
    "steps": Number(int, 0),
    "batch_size": Number(int, 1, 2**20),
    "accumulate": Number(int, 1, 2**20),
    "ema": Several(Number(float, 0.000001, 0.999999), maximum=16),  # decay rates; () is off
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "scale": Several(Number(float, 0.01, 100), 2),
        "crop": Several(Number(int, 1, 16384), 2),
        "max_class_share": Number(float, 0, 1),
        "flip": Flag(),
        "photometric": Flag(),
        **MORE_CHANGES,
    },
    "optim": {
        "name": Text(),
        "schedule": Text(),
        "peak_lr": Number(float, 0),
        "warmup_steps": Number(int, 0),
        "warmup_ratio": Number(float, 0, 1),
        "b1": Number(float, 0, 0.999999),
        "b2": Number(float, 0, 0.999999),
        "epsilon": Number(float, 0),
        "weight_decay": Number(float, 0),
        "no_decay": Several(Pattern()),
        "clip_norm": Number(float, 0),
    },
    "every": {"log": Number(int, 1), "checkpoint": Number(int, 1), "evaluate": Number(int, 1)},
    "probe": LABEL_PROBE,
}
BALANCES = (  # how pixels are drawn; see experiment.label_strokes
    "recipe", "none", "class", "stroke",
)  # fmt: skip
FIT = "fit"  # the kind of a stage that fits an ensemble to features, without the training loop
FIT_STAGE = {
    "kind": Text(),
    "start": Text(),
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "crop": Several(Number(int, 1, 16384), 2),
        "variants": Optional(Number(int, 0, 64)),  # changed copies of every labelled image
        "scale": Optional(Several(Number(float, 0.01, 100), 2)),  # this and the next: of copies
        "flip": Optional(Flag()),
        "photometric": Optional(Flag()),
        **MORE_CHANGES,
    },
    "balance": Optional(Text(BALANCES)),
    "every": {"log": Number(int, 1), "checkpoint": Number(int, 1)},
}
COMMON = {  # the options of every system
    "system": Text(),
    "task": Optional(Text()),  # what is predicted; of `System.tasks`
    "seed": Number(int, 0, 2**31 - 1),
    "dtype": Text(("float32", "bfloat16")),
    "remat": Flag(),
    "mesh": {"data": Number(int, -1), "fsdp": Number(int, -1)},
    "run": Several(Text(), minimum=1),
    "stages": Named(STAGE, {FIT: FIT_STAGE}),
}
MASK_LOSS = Optional(Some({  # of stages that segment; see training.losses.SegmentationLoss
    "name": Text(("cross_entropy", "focal")),
    "focal_gamma": Number(float, 0, 100),
    "class_weights": ClassWeights(("none", "inverse_frequency")),  # or one number per class
    "region": Text(("none", "dice", "lovasz")),
    "region_weight": Number(float, 0, 1e6),
}))  # fmt: skip
UNLABELLED = {"unlabelled": {**DATA, "split": Text()}}  # added if a stage trains without labels
OTHER_VALIDATION = Optional(Some({  # the data set that holds the split val; see labelled_images
    "source": Text(),  # "": as that of the other images
    "path": Text(),
    "options": Some(SOURCE_OPTIONS),
}))  # fmt: skip
LABELLED = {  # added if a stage trains with labels
    "data": {
        **DATA,
        "train": Text(),
        "val": Text(),
        "validation": OTHER_VALIDATION,
        "fraction": Number(float, 0, 1),
        "count": Number(int, 0),
        "subset_seed": Number(int, 0),
        "list_path": Text(),
        "folds": Optional(Number(int, 0)),  # see experiment.labelled_images
        "fold": Optional(Number(int, -1)),
    },
    "evaluate": {
        "view": Text(("whole", "slide", "halves")),
        "window": SIZE,
        "stride": SIZE,
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "scales": Several(Number(float, 0.01, 100), minimum=1, maximum=64),
        "flip": Flag(),
        "batch_size": Number(int, 1, 2**16),
        "images": Number(int, 0),  # the first ones; 0: all
        "quick_images": Number(int, 1),
        "absent": Text(("skip", "zero")),
        "checkpoint": Text(("last", "best")),
        "pictures": Number(int, 0, 64),
        "corruptions": CORRUPTIONS,
        "step_folds": Optional(Number(int, 0)),  # see experiment.step_folds
    },
}
DEPTH_CHANGES = {  # stages.*.augment for depth; see data.depth_transforms
    **{key: STAGE["augment"][key] for key in ("limit", "short", "scale", "crop", "flip")},
    "rotate": Number(float, 0, 180),  # degrees
    "rotate_share": Number(float, 0, 1),
    "colour_share": Number(float, 0, 1),
    "gamma": Several(Number(float, 0.01, 100), 2),
    "brightness": Several(Number(float, 0.01, 100), 2),
    "channels": Several(Number(float, 0.01, 100), 2),
}
OF_CLASSES = "absent", "corruptions", "step_folds"  # options that depth does not have
DEPTH_EVALUATE = {
    **{k: v for k, v in LABELLED["evaluate"].items() if k not in OF_CLASSES},
    "crop": Text(("none", "garg", "eigen", "nyu")),  # see metrics.depth.DEPTH_CROPS
}
BEV_CHANGES = {  # stages.*.augment for maps seen from above; see data.bev_transforms
    "crop": STAGE["augment"]["crop"],  # (height, width) that the network reads, of every camera
    "resize": Several(Number(float, 0.01, 10), 2),
    "flip": Flag(),
    "rotate": Number(float, 0, 180),  # degrees
    "world_rotate": Number(float, 0, 180),  # degrees
    "world_scale": Several(Number(float, 0.1, 10), 2),
    "world_shift": Number(float, 0, 100),  # metres
    "world_flip": Flag(),
}
BEV_EVALUATE = {
    key: LABELLED["evaluate"][key]
    for key in ("batch_size", "images", "quick_images", "checkpoint", "pictures")
}
BY_TASK = {  # task -> options of every system in place of those of COMMON
    "segmentation": {},
    "depth": {"stages": Named({**STAGE, "augment": DEPTH_CHANGES})},
    "bev": {"stages": Named({**STAGE, "augment": BEV_CHANGES})},
}
LABELLED_BY_TASK = {  # task -> those of LABELLED
    "segmentation": LABELLED,
    "depth": {**LABELLED, "evaluate": DEPTH_EVALUATE},
    "bev": {**LABELLED, "evaluate": BEV_EVALUATE},
}
