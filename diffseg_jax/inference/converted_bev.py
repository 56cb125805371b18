"""Writes a checkpoint of DDP for maps seen from above as a directory that `load` opens."""

import dataclasses
import os

import numpy as np

from diffseg_jax.data.nuscenes_maps import MAP_COLOURS, MAP_LAYERS
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.inference.converted import CONFIG, require_unused, save_converted
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.systems.ddp_bev import GROUND_OPTIONS
from diffseg_jax.weights.ddp_bev import CAMERA, bev_settings_of, load_bev
from diffseg_jax.weights.formats import read_arrays

BEV_STEPS, BEV_DRAWS, BEV_RESIZE = 3, 5, 0.48  # of the published test


def convert_ddp_bev(
    path: str | os.PathLike, output: str | os.PathLike, steps: int | None = None, part: str = ""
) -> int:
    """Writes a BEV checkpoint of DDP, for cameras alone, as a directory with one checkpoint.

    steps  reverse steps; None = 3, as published;  part  of the file, as of `read_arrays`

    Returns the number of parameters. Raises UserError as `convert_adm`.
    """
    require_unused(output)
    arrays = read_arrays(path, part)
    settings = bev_settings_of(arrays, str(path))
    values = load_bev(arrays, settings, str(path))
    steps = BEV_STEPS if steps is None else steps
    corner = np.asarray(arrays[f"{CAMERA}vtransform.frustum"])[0, -1, -1]
    size = [int(round(float(corner[1]))) + 1, int(round(float(corner[0]))) + 1]
    form = "told the noise level" if settings.timed else "not told the noise level, as released"
    print(
        f"{path}: cameras to maps of {settings.num_classes} classes, images of {size[0]}x{size[1]}"
        f"; its decoder is {form}; not in the file, taken as published: {steps} steps (--steps), "
        f"{BEV_DRAWS} draws, a map of {settings.output[0]:g} to {settings.output[1]:g} m, "
        f"photographs resized by {BEV_RESIZE}, codes of scale {settings.code_scale}"
    )
    sampling = dict(
        steps=steps, sampler="ddim", draws=BEV_DRAWS, time_difference=1, start=0.0,
        schedule="cosine",
    )  # fmt: skip
    model = dataclasses.asdict(settings)
    task = {
        "kind": "train", "model": model, "task": "bev", "size": size, "resize": BEV_RESIZE,
        "sampling": sampling, "normalisation": "(v - mean) / std", "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }  # fmt: skip
    apart = ("code_scale", "num_classes", *GROUND_OPTIONS)
    config = {
        **CONFIG, "system": "ddp", "task": "bev", "sampling": sampling,
        "model": {key: value for key, value in model.items() if key not in apart},
        "bev": {**{key: model[key] for key in GROUND_OPTIONS}, "resize": BEV_RESIZE},
        "diffusion": {"schedule": "cosine", "code_scale": settings.code_scale, "high": 0.999},
    }  # fmt: skip
    known = settings.num_classes == len(MAP_LAYERS)
    names = list(MAP_LAYERS) if known else [f"class {n}" for n in range(settings.num_classes)]
    palette = MAP_COLOURS if known else distinct_colours(len(names))
    labels = {"classes": names, "palette": [list(map(int, colour)) for colour in palette]}
    return save_converted(output, values, path, config, task, **labels)
