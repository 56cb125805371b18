"""Other people's checkpoint files, or a run of ours -> a directory that every command here opens.

python -m diffseg_jax.convert --source=adm --name=lsun_bedroom --input=lsun_bedroom.pt \
    --output=weights/lsun_bedroom
python -m diffseg_jax.convert --source=ddp --output=weights/ddp_convnext_t \
    --input=ddp_convnext_t_4x4_512x1024_160k_cityscapes.pth

python -m diffseg_jax.convert --source=run --input=runs/a --output=shared/a --dtype=float16

For adm, in place of --name, the flags that the network was trained with may be given as they were
given to guided diffusion: --image_size 64 --num_channels 128 --learn_sigma True ...
"""

import argparse
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

import diffseg_jax
from diffseg_jax.cli import make_folder, numbers, truth, user_errors
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.named_sets import ADE20K, CITYSCAPES
from diffseg_jax.data.palette import distinct_colours, numbered_labels
from diffseg_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.errors import UserError, choose
from diffseg_jax.inference.segmenter import chosen_step, find
from diffseg_jax.storage.checkpoints import StageCheckpoints, has_checkpoint, open_network
from diffseg_jax.storage.workdir import as_json, read_results
from diffseg_jax.weights.adm import PUBLISHED, Configuration, from_flags, load_adm
from diffseg_jax.weights.ddp import load_ddp, settings_of
from diffseg_jax.weights.reader import read_arrays

# Flags of guided diffusion that say nothing about the network or how it was trained.
UNUSED = ("use_fp16", "use_checkpoint")
PLAIN = {"seed": 0, "dtype": "float32", "remat": False}
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
GROUPS = 32  # of the group norms in DDP's neck, where --groups does not say


def convert_adm(path: str | os.PathLike, output: str | os.PathLike, known: Configuration) -> int:
    """Writes a guided-diffusion state dict as a directory with one checkpoint.

    Returns the number of parameters. Raises UserError for a file that cannot be read or is not of
    this network, and for an output directory that holds a checkpoint already.
    """
    require_free(output)
    params = load_adm(read_arrays(path), known.settings, known.order, str(path))
    task = {
        "kind": "pretrain",
        "model": dataclasses.asdict(known.settings),
        "diffusion": known.diffusion,
        "size": [known.image_size] * 2,
        "normalisation": "v / 127.5 - 1",
    }
    config = {
        **PLAIN, "system": "ddpm_seg", "model": task["model"], "diffusion": known.diffusion,
        "samples": {"sampler": "ddpm", "steps": "", "eta": 0.0},
    }  # fmt: skip
    return write(output, {"params": params}, path, config, task)


def convert_ddp(path: str | os.PathLike, output: str | os.PathLike, groups: int = GROUPS) -> int:
    """Writes a segmentation checkpoint of DDP as a directory with one checkpoint.

    groups  of the neck's group norms, which no file tells

    Sampling is as published: 3 steps, probabilities accumulated for the 150 classes of ADE20K.
    Returns the number of parameters. Raises UserError as `convert_adm`, and for groups that do not
    divide the network's width.
    """
    require_free(output)
    arrays = read_arrays(path)
    settings = settings_of(arrays, str(path))
    if groups < 1 or settings.width % groups:
        raise UserError(
            f"--groups is {groups}, which does not divide the {settings.width} channels of {path}. "
            f"Give the number that the network was trained with, usually {GROUPS}."
        )
    settings = dataclasses.replace(settings, groups=groups)
    values = load_ddp(arrays, settings, str(path))
    classes = settings.num_classes
    depths = "-".join(map(str, settings.depths))
    print(
        f"{path}: {settings.backbone} of depths {depths} and {settings.channels[0]} channels, "
        f"{classes} classes; not in the file, taken as published: {groups} groups (--groups), "
        f"codes of scale {settings.code_scale}, cosine schedule"
    )
    sampling = dict(
        steps=3, sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine",
        accumulate=classes == 150, uncertainty="changes",
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
    of_code = ("code", "code_scale", "num_classes")
    config = {
        **PLAIN, "system": "ddp", "new_head": False, "sampling": sampling,
        "model": {word: v for word, v in task["model"].items() if word not in of_code},
        "diffusion": {"schedule": sampling["schedule"], "code": settings.code,
                      "code_scale": settings.code_scale},
    }  # fmt: skip
    return write(output, values, path, config, task, **classes_meta(classes))


def convert_run(path: str | os.PathLike, output: str | os.PathLike, stage=None, step=None,
                ema=None, dtype="float32") -> int:  # fmt: skip
    """Writes the network of a run, without optimizer and averages: a small directory to share.

    path   whatever `load` opens;  stage, step, ema  as of `load`
    dtype  in which parameters are stored: "float32", "float16" (half the size) or "bfloat16"

    Returns the number of parameters. Raises UserError as `convert_adm`, and as `load`.
    """
    require_free(output)
    kind = choose(STORED, dtype, "dtype")
    directory = find(path, stage)
    values, meta = open_network(directory, chosen_step(directory, step), ema)
    values["params"] = jax.tree.map(lambda leaf: leaf.astype(kind), values["params"])
    meta = {word: value for word, value in meta.items() if word not in ("arrays", "format")}
    if directory.parent.name == "checkpoints" and ema is None:
        results = read_results(directory.parent.parent).get(directory.name)
        meta["results"] = results if results and results["step"] == meta["step"] else None
    return save_values(output, values, meta)


def classes_meta(num_classes: int) -> dict:
    """Names, and colours where they are known: of Cityscapes for 19 classes, of ADE20K for 150."""
    ade20k = Labels(tuple(ADE20K.split(", ")), distinct_colours(150))
    labels = {19: CITYSCAPES, 150: ade20k}.get(num_classes)
    if labels is None:
        return {"classes": list(numbered_labels(num_classes).names)}
    palette = [list(colour) for colour in labels.palette]
    return {"classes": list(labels.names), "palette": palette}


def require_free(output: str | os.PathLike):
    """Makes the folder around an output; UserError if something is in the output's place."""
    if has_checkpoint(output):
        raise UserError(f"{output} holds a checkpoint already. Give another --output.")
    if os.path.isfile(output):
        raise UserError(f"{output} is a file. Give another --output.")
    make_folder(os.path.dirname(os.path.abspath(output)))


def write(output, values: dict, path, config: dict, task: dict, **labels) -> int:
    """Saves the values of a network as step 0; returns the number of parameters.

    config  what `load` makes the task from
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


def save_values(output, values: dict, meta: dict) -> int:
    """Saves the values of a network as the one step of a directory; the number of parameters."""
    # NumPy arrays would be copied by the saver, since they might change meanwhile
    values = jax.device_put(values, jax.local_devices(backend="cpu")[0])
    with StageCheckpoints(output) as checkpoints:
        checkpoints.save(meta["step"], values, {**meta, "ema": []})
    return sum(leaf.size for leaf in jax.tree.leaves(values["params"]))


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.convert", description=__doc__.splitlines()[0]
    )
    sources = ", ".join(SOURCES)
    parser.add_argument("--source", required=True, help=f"whose checkpoint it is: {sources}")
    parser.add_argument("--input", required=True, help="the .pt or .pth file; of run, a workdir")
    parser.add_argument("--output", required=True, help="a new directory")
    group = parser.add_argument_group("adm")
    group.add_argument("--name", help=f"configuration: {', '.join(PUBLISHED)}")
    group = parser.add_argument_group("adm, flags of guided diffusion in place of --name")
    for flag, kind in FLAGS.items():
        group.add_argument(f"--{flag}", type=kind, metavar=NAMES[kind])
    group = parser.add_argument_group("ddp")
    group.add_argument("--groups", type=int, metavar="N", help=f"of the neck's norms; {GROUPS}")
    group = parser.add_argument_group("run")
    group.add_argument("--stage", help="of a workdir; the best by its results")
    group.add_argument("--step", type=int, metavar="N", help="the last, or the config's best")
    group.add_argument("--ema", metavar="RATE", help="moving average to take, or off; the first")
    group.add_argument("--dtype", help=f"of stored parameters: {', '.join(STORED)}")
    given = vars(parser.parse_args(arguments))
    path, output, source = (given.pop(name) for name in ("input", "output", "source"))
    with user_errors():
        find_devices()
        run, own = choose(SOURCES, source, "source of checkpoints")
        flags = {flag: value for flag, value in given.items() if value is not None}
        for flag in flags:
            if flag not in own:
                raise UserError(f"--{flag} means nothing for --source={source}. Leave it out.")
        print(f"{output}: {run(path, output, **flags):,} parameters")


def _adm(path, output, name="", **flags):
    return convert_adm(path, output, known_configuration(name, flags))


def known_configuration(name: str, flags: dict) -> Configuration:
    """The configuration of a name, or of guided diffusion's flags.

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
            f"which network it is does not stand in the file. Give --name ({', '.join(PUBLISHED)}) "
            "or the flags that it was trained with."
        )
    used = {flag: value for flag, value in flags.items() if flag not in UNUSED}
    return from_flags(**used)


NAMES = {int: "N", float: "X", str: "TEXT", truth: "True|False", numbers: "N,N,..."}
FLAGS = {
    "image_size": int,
    "num_channels": int,
    "num_res_blocks": int,
    "channel_mult": numbers,
    "attention_resolutions": numbers,
    "num_heads": int,
    "num_heads_upsample": int,
    "num_head_channels": int,
    "use_scale_shift_norm": truth,
    "resblock_updown": truth,
    "use_new_attention_order": truth,
    "class_cond": truth,
    "num_classes": int,
    "learn_sigma": truth,
    "dropout": float,
    "diffusion_steps": int,
    "noise_schedule": str,
    "rescale_timesteps": truth,
    "predict_xstart": truth,
    "use_kl": truth,
    "rescale_learned_sigmas": truth,
    **dict.fromkeys(UNUSED, truth),
}
SOURCES = {  # and their flags
    "adm": (_adm, ("name", *FLAGS)),
    "ddp": (convert_ddp, ("groups",)),
    "run": (convert_run, ("stage", "step", "ema", "dtype")),
}

if __name__ == "__main__":
    main()
