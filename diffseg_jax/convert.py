"""Other people's checkpoint files -> a directory that every command here opens.

python -m diffseg_jax.convert --source=adm --name=lsun_bedroom --input=lsun_bedroom.pt \
    --output=weights/lsun_bedroom

In place of --name, the flags that the network was trained with may be given as they were given to
guided diffusion: --image_size 64 --num_channels 128 --learn_sigma True ...
"""

import argparse
import dataclasses
import os

import jax

import diffseg_jax
from diffseg_jax.checkpoints import StageCheckpoints, has_checkpoint
from diffseg_jax.command import make_folder, numbers, truth, user_errors
from diffseg_jax.config import UserError, choose
from diffseg_jax.weights.adm import PUBLISHED, Configuration, from_flags, load_adm
from diffseg_jax.weights.reader import read_arrays

# Flags of guided diffusion that say nothing about the network or how it was trained.
UNUSED = ("use_fp16", "use_checkpoint")


def convert_adm(path: str | os.PathLike, output: str | os.PathLike, known: Configuration) -> int:
    """Writes a guided-diffusion state dict as a directory with one checkpoint.

    Returns the number of parameters. Raises UserError for a file that cannot be read or is not of
    this network, and for an output directory that holds a checkpoint already.
    """
    if has_checkpoint(output):
        raise UserError(f"{output} holds a checkpoint already. Give another --output.")
    if os.path.isfile(output):
        raise UserError(f"{output} is a file. Give another --output.")
    make_folder(os.path.dirname(os.path.abspath(output)))
    params = load_adm(read_arrays(path), known.settings, known.order, str(path))
    # NumPy arrays would be copied by the saver, since they might change meanwhile
    params = jax.device_put(params, jax.local_devices(backend="cpu")[0])
    meta = {
        "version": diffseg_jax.__version__,
        "config": {"system": "ddpm_seg"},
        "stage": "converted",
        "step": 0,
        "start": str(path),
        "ema": [],
        "task": {
            "kind": "pretrain",
            "model": dataclasses.asdict(known.settings),
            "diffusion": known.diffusion,
            "size": [known.image_size] * 2,
            "normalisation": "v / 127.5 - 1",
        },
    }
    with StageCheckpoints(output) as checkpoints:
        checkpoints.save(0, {"params": params}, meta)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.convert", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--source", required=True, help="whose checkpoint it is: adm")
    parser.add_argument("--input", required=True, help="the .pt file")
    parser.add_argument("--output", required=True, help="a new directory")
    parser.add_argument("--name", default="", help=f"configuration: {', '.join(PUBLISHED)}")
    group = parser.add_argument_group("flags of guided diffusion, in place of --name")
    for flag, kind in FLAGS.items():
        group.add_argument(f"--{flag}", type=kind, metavar=NAMES[kind])
    given = vars(parser.parse_args(arguments))
    with user_errors():
        choose({"adm": None}, given["source"], "source of checkpoints")
        flags = {flag: given[flag] for flag in FLAGS if given[flag] is not None}
        known = known_configuration(given["name"], flags)
        count = convert_adm(given["input"], given["output"], known)
        print(f"{given['output']}: {count:,} parameters")


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

if __name__ == "__main__":
    main()
