"""The options that every system's config holds; each system adds its own."""

from diffseg_jax.config.schema import Flag, Named, Number, Pattern, Several, Some, Text

SIZE = Several(Number(int, 0, 65536), 2)
DATA = {
    "source": Text(),
    "path": Text(),
    "options": Some(  # what sources read beyond their path; which of them, open_source knows
        {
            "size": Several(Number(int, 0, 4096), 2),
            "images": Number(int, 0),
            "seed": Number(int, 0),
            "num_classes": Number(int, 0, 65535),
            "raw_459": Flag(),
            "image_key": Text(),
            "mask_key": Text(),
            "label_key": Text(),
            "classes": Text(),
            "ignore": Several(Number(int, 0, 65535)),
            "square": Number(int, 0, 16384),
        }
    ),
    "threads": Number(int, 1, 1024),
    "workers": Number(int, 0, 1024),
    "cache": Flag(),
}
STAGE = {
    "kind": Text(),
    "start": Text(),
    "steps": Number(int, 0),
    "batch_size": Number(int, 1, 2**20),
    "accumulate": Number(int, 1, 2**20),
    "ema": Several(Number(float, 0.000001, 0.999999), most=16),  # rates; () is off
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "scale": Several(Number(float, 0.01, 100), 2),
        "crop": Several(Number(int, 1, 16384), 2),
        "max_class_share": Number(float, 0, 1),
        "flip": Flag(),
        "photometric": Flag(),
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
}
FIT = "fit"  # the kind of a stage that fits an ensemble to features, without the training loop
FIT_STAGE = {
    "kind": Text(),
    "start": Text(),
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "crop": Several(Number(int, 1, 16384), 2),
    },
    "every": {"log": Number(int, 1), "checkpoint": Number(int, 1)},
}
COMMON = {  # what every system's config holds; each system adds its own
    "system": Text(),
    "seed": Number(int, 0, 2**31 - 1),
    "dtype": Text(("float32", "bfloat16")),
    "remat": Flag(),
    "mesh": {"data": Number(int, -1), "fsdp": Number(int, -1)},
    "run": Several(Text(), least=1),
    "stages": Named(STAGE, {FIT: FIT_STAGE}),
}
UNLABELLED = {"unlabelled": {**DATA, "split": Text()}}  # besides, if a stage learns without labels
LABELLED = {  # and if one learns from labels
    "data": {
        **DATA,
        "train": Text(),
        "val": Text(),
        "fraction": Number(float, 0, 1),
        "count": Number(int, 0),
        "subset_seed": Number(int, 0),
        "list_path": Text(),
    },
    "evaluate": {
        "view": Text(("whole", "slide", "halves")),
        "window": SIZE,
        "stride": SIZE,
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "scales": Several(Number(float, 0.01, 100), least=1, most=64),
        "flip": Flag(),
        "batch_size": Number(int, 1, 2**16),
        "images": Number(int, 0),
        "quick_images": Number(int, 1),
        "absent": Text(("skip", "zero")),
        "checkpoint": Text(("last", "best")),
        "pictures": Number(int, 0, 64),
    },
}
