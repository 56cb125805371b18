"""Writes official checkpoint files, or a run, as a directory that `load` opens."""

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffseg_jax
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.named_sets import ADE20K, CITYSCAPES
from diffseg_jax.data.palette import distinct_colours, numbered_labels
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError, choose
from diffseg_jax.inference.calibrators import read_calibrator, write_calibrator
from diffseg_jax.inference.known_images import read_known_images, write_known_images
from diffseg_jax.inference.locate import find_stage, step_to_open
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.storage.checkpoints import StageCheckpoints, has_checkpoint
from diffseg_jax.storage.integrity import read_meta
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.paths import make_folder
from diffseg_jax.storage.workdir import as_json, read_results
from diffseg_jax.weights.adm import PUBLISHED, Configuration, from_flags, load_adm
from diffseg_jax.weights.ddp import load_ddp, settings_of
from diffseg_jax.weights.formats import read_arrays

CONFIG = {"seed": 0, "dtype": "float32", "remat": False}  # of every converted network
STORED_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
UNUSED_FLAGS = ("use_fp16", "use_checkpoint")  # flags of guided diffusion that change no network
NECK_GROUPS = 32  # of the group norms in DDP's neck, unless --groups is given
WHOLE_IMAGES = {  # how images are shown, as in the part `evaluate` of a config
    "view": "whole", "window": (0, 0), "stride": (0, 0), "scales": (1.0,), "flip": False,
    "limit": (0, 0), "short": 0,
}  # fmt: skip
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names that a conversion leaves which was stopped
DDP_STEPS = {"aligned": 10, "trained": 3}  # of the published tests, for weights of each stage
DDP_LIMITS = {19: (2048, 1024), 150: (2048, 512)}  # into which images fit, by number of classes


def convert_adm(
    path: str | os.PathLike, output: str | os.PathLike, known: Configuration, part: str = ""
) -> int:
    """Writes a guided-diffusion state dict as a directory with one checkpoint.

    part  of the file, as of `read_arrays`

    Returns the number of parameters. Raises UserError for a file that cannot be read or is not of
    this network, and for an output that exists.
    """
    require_unused(output)
    params = load_adm(read_arrays(path, part), known.settings, known.order, str(path))
    task = {
        "kind": "pretrain",
        "model": dataclasses.asdict(known.settings),
        "diffusion": known.diffusion,
        "size": [known.image_size] * 2,
        "normalisation": "v / 127.5 - 1",
    }
    config = {
        **CONFIG, "system": "ddpm_seg", "model": task["model"], "diffusion": known.diffusion,
        "samples": {"sampler": "ddpm", "steps": "", "eta": 0.0},
    }  # fmt: skip
    return save_converted(output, {"params": params}, path, config, task)


def adm_configuration(name: str, flags: dict) -> Configuration:
    """The configuration with a published name, or of flags of guided diffusion.

    Raises UserError for an unknown name, for both or neither, and for flags that make no network.
    """
    if name and flags:
        raise UserError(
            f"both --name={name} and --{next(iter(flags))} were given. Give the name or the flags."
        )
    if name:
        return choose(PUBLISHED, name, "published configuration")
    if not flags:
        raise UserError(
            f"the file does not name its network. Give --name ({', '.join(PUBLISHED)}) "
            "or the flags that it was trained with."
        )
    used = {flag: value for flag, value in flags.items() if flag not in UNUSED_FLAGS}
    return from_flags(**used)


def convert_ddp(
    path: str | os.PathLike, output: str | os.PathLike, groups: int = NECK_GROUPS,
    steps: int | None = None, limit: tuple[int, int] | None = None, part: str = "",
) -> int:  # fmt: skip
    """Writes a segmentation checkpoint of DDP as a directory with one checkpoint.

    groups  of the neck's group norms, which are not in the file
    steps   reverse steps; None = as published, 10 for a file whose name says aligned, else 3
    limit   (long, short) sides into which images are fitted; (0, 0) = their own size; None = as
            published for the 19 classes of Cityscapes and the 150 of ADE20K, else their own size
    part    of the file, as of `read_arrays`

    Probabilities are accumulated for 150 classes, as published. Returns the number of parameters.
    Raises UserError as `convert_adm`, and for groups that do not divide the network's width.
    """
    require_unused(output)
    arrays = read_arrays(path, part)
    settings = settings_of(arrays, str(path))
    require_dividing(groups, settings.width, path)
    settings = dataclasses.replace(settings, groups=groups)
    values = load_ddp(arrays, settings, str(path))
    classes = settings.num_classes
    depths = "-".join(map(str, settings.depths))
    steps = _published_steps(path) if steps is None else steps
    limit = DDP_LIMITS.get(classes, (0, 0)) if limit is None else limit
    shown = f"images fitted to {limit[0]}x{limit[1]}" if any(limit) else "images at their own size"
    print(
        f"{path}: {settings.backbone} of depths {depths} and {settings.channels[0]} channels, "
        f"{classes} classes; not in the file, taken as published: {groups} groups (--groups), "
        f"{steps} steps (--steps), {shown} (--limit), codes of scale {settings.code_scale}, cosine "
        "schedule"
    )
    sampling = dict(
        steps=steps, sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine",
        accumulate=classes == 150,
    )  # fmt: skip
    task = {
        "kind": "train",
        "model": dataclasses.asdict(settings),
        "num_classes": classes,
        "sampling": sampling,
        "normalisation": "(v - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    label_code = ("code", "code_scale", "num_classes")
    config = {
        **CONFIG, "system": "ddp", "new_head": False, "sampling": sampling,
        "model": {key: v for key, v in task["model"].items() if key not in label_code},
        "diffusion": {"schedule": sampling["schedule"], "code": settings.code,
                      "code_scale": settings.code_scale},
        "evaluate": {**WHOLE_IMAGES, "limit": limit},
    }  # fmt: skip
    return save_converted(output, values, path, config, task, **classes_meta(classes))


def require_dividing(groups: int, width: int, path: str | os.PathLike):
    """UserError for groups of the neck that do not divide its width; path: of the file."""
    if groups < 1 or width % groups:
        raise UserError(
            f"--groups is {groups}, which does not divide the {width} channels of {path}. "
            "Give the number that the network was trained with, such as "
            f"--groups={math.gcd(width, NECK_GROUPS)}."
        )


def _published_steps(path) -> int:
    """The number of reverse steps in the published test of a file."""
    return DDP_STEPS["aligned" if "aligned" in Path(path).name.lower() else "trained"]


@own_settings()
def convert_run(path: str | os.PathLike, output: str | os.PathLike, stage=None, step=None,
                ema=None, dtype="float32", with_folders=True) -> int:  # fmt: skip
    """Writes the network of a run, without optimizer and averages: a small directory to share.

    path, stage, step, ema  as of `load`
    dtype  of the stored parameters: "float32", "float16" (half the size) or "bfloat16"
    with_folders  whether the config keeps paths of this machine as they are

    Returns the number of parameters. Raises UserError as `convert_adm`, and as `load`.
    """
    require_unused(output)
    stored_dtype = choose(STORED_DTYPES, dtype, "dtype")
    directory = find_stage(path, stage)
    values, meta = open_network(directory, step_to_open(directory, step), ema)
    kept = directory, meta["step"], meta, ema
    calibrator, known = (
        read(*kept) if "classes" in meta else None for read in (read_calibrator, read_known_images)
    )
    values["params"] = jax.tree.map(lambda leaf: leaf.astype(stored_dtype), values["params"])
    meta = {key: value for key, value in meta.items() if key not in ("arrays", "format")}
    if not with_folders:
        meta |= {key: without_folders(meta[key]) for key in ("config", "start") if key in meta}
    if directory.parent.name == "checkpoints" and ema is None:
        results = read_results(directory.parent.parent).get(directory.name)
        meta["results"] = results if results and results["step"] == meta["step"] else None
    count = save_values(output, values, meta)
    saved = Path(output), meta["step"], read_meta(Path(output), meta["step"])
    if calibrator:
        write_calibrator(*saved, calibrator)
    if known:
        write_known_images(*saved, known)
    return count


def without_folders(values):
    """Nested dicts and sequences in which paths of this machine have lost all but their last part.

    Those are absolute paths, and paths that begin with "../"; also after every "=", as in
    "mae=/a/b.pth,swav=/a/c.pth".
    """
    if isinstance(values, dict):
        return {key: without_folders(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(map(without_folders, values))
    if not isinstance(values, str):
        return values
    if values.startswith(("/", "~/", "../")):
        return Path(values).name
    name, *paths = values.split("=")
    return "=".join([name, *map(without_folders, paths)])


def classes_meta(num_classes: int) -> dict:
    """Names of classes, and their colours for the 19 of Cityscapes and the 150 of ADE20K."""
    ade20k = Labels(tuple(ADE20K.split(", ")), distinct_colours(150))
    labels = {19: CITYSCAPES, 150: ade20k}.get(num_classes)
    if labels is None:
        return {"classes": list(numbered_labels(num_classes).names)}
    palette = [list(colour) for colour in labels.palette]
    return {"classes": list(labels.names), "palette": palette}


def require_unused(output: str | os.PathLike):
    """Makes the parent folder of an output; UserError for an address, and if it holds anything."""
    if "://" in str(output):
        raise UserError(f"{output} is an address. Give an --output on this machine.")
    if has_checkpoint(Path(output)):
        raise UserError(f"{output} holds a checkpoint already. Give another --output.")
    if os.path.isfile(output):
        raise UserError(f"{output} is a file. Give another --output.")
    if os.path.isdir(output) and any(UNFINISHED not in name for name in os.listdir(output)):
        raise UserError(f"{output} is not empty. Give another --output, a new directory.")
    make_folder(Path(output).absolute().parent)


def save_converted(output, values: dict, path, config: dict, task: dict, **labels) -> int:
    """Saves the values of a network as step 0; returns the number of parameters.

    config  from which `load` makes the task;  labels  entries of `classes_meta`
    """
    meta = {
        "version": diffseg_jax.__version__,
        "config": as_json(config),
        "stage": "converted",
        "step": 0,
        "start": str(path),
        "ema": [],
        **labels,
        "task": task,
    }
    return save_values(output, values, meta)


@own_settings()
def save_values(output, values: dict, meta: dict) -> int:
    """Saves the values of a network as the only step of a directory; the number of parameters."""
    # Orbax copies NumPy arrays before it saves them, since they may change, but not jax arrays.
    values = jax.device_put(values, jax.local_devices(backend="cpu")[0])
    with StageCheckpoints(Path(output)) as checkpoints:
        checkpoints.save(meta["step"], values, {**meta, "ema": []})
    return sum(leaf.size for leaf in jax.tree.leaves(values["params"]))
