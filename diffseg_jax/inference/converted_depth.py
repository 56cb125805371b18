"""Writes a depth checkpoint of DDP as a directory that `load` opens."""

import dataclasses
import os
from pathlib import Path

from diffseg_jax.inference.converted import (
    CONFIG,
    NECK_GROUPS,
    WHOLE_IMAGES,
    require_dividing,
    require_unused,
    save_converted,
)
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.systems.ddp_depth import NETWORK_OPTIONS
from diffseg_jax.weights.ddp_depth import depth_settings_of, load_ddp_depth
from diffseg_jax.weights.formats import read_arrays

PUBLISHED_STEPS = 3
HIGHEST = {"nyu": 10.0}  # metres, for a file whose name holds the key
HIGHEST_ELSE = 80.0  # of KITTI


def convert_ddp_depth(
    path: str | os.PathLike, output: str | os.PathLike, groups: int = NECK_GROUPS,
    steps: int | None = None, high: float | None = None, part: str = "",
) -> int:  # fmt: skip
    """Writes a depth checkpoint of DDP as a directory with one checkpoint.

    groups  of the neck's group norms, which are not in the file
    steps   reverse steps; None = 3, as published
    high    metres, the end of the range of depths; None = 10 for a name with nyu in it, else 80
    part    of the file, as of `read_arrays`

    Predictions are averaged over the image and its mirror image, as published. Returns the number
    of parameters. Raises UserError as `convert_adm`, and for groups that do not divide the width.
    """
    require_unused(output)
    arrays = read_arrays(path, part)
    settings = depth_settings_of(arrays, str(path))
    require_dividing(groups, settings.width, path)
    name = Path(path).name.lower()
    published = next((most for key, most in HIGHEST.items() if key in name), HIGHEST_ELSE)
    settings = dataclasses.replace(settings, groups=groups, high=high or published)
    values = load_ddp_depth(arrays, settings, str(path))
    form = "told the noise level, as in the paper" if settings.timed else (
        "not told the noise level, as released"
    )  # fmt: skip
    depths = "-".join(map(str, settings.depths))
    steps = PUBLISHED_STEPS if steps is None else steps
    print(
        f"{path}: {settings.backbone} of depths {depths} and {settings.channels[0]} channels, for "
        f"depth; its decoder is {form}; not in the file, taken as published: {groups} groups "
        f"(--groups), {steps} steps (--steps), depths up to {settings.high:g} m (--high), codes of "
        f"scale {settings.code_scale}, cosine schedule"
    )
    sampling = dict(
        steps=steps, sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine"
    )
    model = dataclasses.asdict(settings)
    task = {
        "kind": "train",
        "model": model,
        "task": "depth",
        "sampling": sampling,
        "normalisation": "(v - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    apart = ("code_scale", *NETWORK_OPTIONS)
    config = {
        **CONFIG, "system": "ddp", "task": "depth", "sampling": sampling,
        "model": {key: value for key, value in model.items() if key not in apart},
        "depth": {**{key: model[key] for key in NETWORK_OPTIONS}, "warmup": 0},
        "diffusion": {"schedule": "cosine", "code_scale": settings.code_scale, "high": 0.999},
        "evaluate": {**WHOLE_IMAGES, "flip": True},
    }  # fmt: skip
    return save_converted(output, values, path, config, task)
