"""Writes published pixel classifiers of DDPM-Seg with their network as one checkpoint."""

import dataclasses
import os
import re
import zlib
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS
from diffseg_jax.data.palette import numbered_labels
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError
from diffseg_jax.inference.converted import (
    CONFIG,
    WHOLE_IMAGES,
    adm_configuration,
    require_unused,
    save_converted,
)
from diffseg_jax.inference.locate import find_stage, step_to_open
from diffseg_jax.sources.diffusion import make_settings
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.clean_config import unets_in
from diffseg_jax.systems.ddpm_seg_config import read_noise
from diffseg_jax.systems.few_labels_config import check_taps
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.weights.adm import load_adm
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.pixel_mlp import classifier_sizes, load_ensemble

PUBLISHED_TAPS = ((50, 150, 250), (5, 6, 7, 8, 12))  # noise levels and blocks


def convert_ensemble(
    folder: str | os.PathLike, output: str | os.PathLike, unet: str = "", name: str = "",
    part: str = "", feature_steps: tuple[int, ...] = (), feature_blocks: tuple[int, ...] = (),
    noise_file: str = "", **flags,
) -> int:  # fmt: skip
    """Writes pixel classifiers and the network whose features they read as one checkpoint.

    folder          holds model_0.pth, model_1.pth, ...
    unet            the network: a file, for which `name` or `flags` are as of `adm_configuration`
                    and `part` as of `read_arrays`, or a directory that `convert` or a run wrote
    feature_steps, feature_blocks  () = those in the folder's name, or the published ones
    noise_file      the noise of the training, a .npy file; "" = drawn here

    Returns the number of parameters. Raises UserError for files that cannot be read, are not of
    such networks or do not belong together, and for an output that exists.
    """
    require_unused(output)
    if not unet:
        raise UserError(
            "classifiers read the features of a diffusion model, but none is given. Try "
            "--unet=lsun_bedroom.pt --name=lsun_bedroom, or --unet=DIR of a converted one."
        )
    members, width, widths, classes = classifier_sizes(folder)
    network, model, diffusion, side = _open_unet(unet, name, part, flags)
    named = _taps_of(Path(folder).resolve().name)
    steps, blocks = feature_steps or named[0], feature_blocks or named[1]
    features = {
        "sources": ("adm",), "steps": steps, "blocks": blocks, "short": 0, "share_noise": True,
        "noise_file": noise_file, "draws": 1, "dtype": "float16", "place": "device",
    }  # fmt: skip
    check_taps(ConfigDict(features), make_settings(model), diffusion["steps"])
    config = ConfigDict({
        **CONFIG, "system": "ddpm_seg", "model": model, "diffusion": diffusion,
        "features": features,
        "ensemble": {
            "recipe": "paper", "members": members, "widths": widths, "small_objects": 20,
            "classifiers": str(folder),
        },
        "evaluate": {**WHOLE_IMAGES, "short": side},
    })  # fmt: skip
    task = SYSTEMS["ddpm_seg"].make_task(config, "fit", (side, side), classes)
    given = load_ensemble(folder, task.meta["features_per_pixel"], classes)
    noise = _noise(task, noise_file)
    values = {
        "params": {"unet": network, "ensemble": given["params"]},
        "stats": {"noise": noise, "ensemble": given["stats"]},
    }
    drawn = "; the noise is drawn here and is not that of the training (--noise_file)"
    drawn = "" if noise_file else drawn
    print(
        f"{folder}: {members} classifiers of {classes} classes on {width} features, noise levels "
        f"{_listed(steps)} (--feature_steps), blocks {_listed(blocks)} (--feature_blocks); images "
        f"are fitted to {side} pixels{drawn}"
    )
    meta, labels = as_json(task.meta), _labels(classes)
    return save_converted(output, values, folder, config.to_dict(), meta, **labels)


def _open_unet(unet, name, part, flags):
    """(parameters, model, diffusion, image side) of a file or of a directory."""
    if os.path.isfile(unet):
        known = adm_configuration(name, flags)
        params = load_adm(read_arrays(unet, part), known.settings, known.order, unet)
        return params, dataclasses.asdict(known.settings), known.diffusion, known.image_size
    if name or flags:
        raise UserError(
            f"--unet={unet} is not a file, and a directory describes its network. Omit "
            f"--{next(iter(flags), 'name')}, or give a file."
        )
    directory = find_stage(unet)
    network, meta = open_network(directory, step_to_open(directory))
    task = meta["task"]
    if "diffusion" not in task:
        raise UserError(f"{unet} holds no diffusion model. Give one that --source=adm wrote.")
    params = unets_in(network["params"], task["kind"])
    if "unet" not in params:
        raise UserError(f"{unet} holds a network for images without noise only. Give its teacher.")
    return params["unet"], task["model"], task["diffusion"], min(task["size"])


def _taps_of(folder_name: str):
    """Noise levels and blocks in a name such as 50_150_250_5_6_7_8_12, or the published ones."""
    numbers = [int(text) for text in folder_name.split("_") if text.isdecimal()]
    fall = next((i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1]), 0)
    is_named = fall and re.fullmatch(r"[\d_]+", folder_name)
    return (tuple(numbers[:fall]), tuple(numbers[fall:])) if is_named else PUBLISHED_TAPS


@own_settings()
def _noise(task, noise_file: str) -> np.ndarray:
    """The noise of a file, or what a run with seed 0 draws."""
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"features"))
    if noise_file:
        return read_noise(noise_file, jax.eval_shape(task.init, key)["stats"]["noise"].shape)
    return np.asarray(jax.jit(lambda key: task.init(key)["stats"]["noise"])(key))


def _listed(numbers) -> str:
    return ",".join(map(str, numbers))


def _labels(num_classes: int) -> dict:
    """Names and colours of the published set with so many classes, or numbers."""
    sets = [each.labels() for each in FEW_LABEL_SETS.values()]
    sets = [labels for labels in sets if len(labels.names) == num_classes]
    labels = sets[0] if len(sets) == 1 else numbered_labels(num_classes)
    palette = [list(colour) for colour in labels.palette]
    return {"classes": list(labels.names), "palette": palette}
