"""Other people's checkpoint files, or a run of ours -> a directory that every command here opens.

python -m diffseg_jax.convert --source=adm --name=lsun_bedroom --input=lsun_bedroom.pt \
    --output=weights/lsun_bedroom
python -m diffseg_jax.convert --source=ddp --output=weights/ddp_convnext_t \
    --input=ddp_convnext_t_4x4_512x1024_160k_cityscapes.pth

python -m diffseg_jax.convert --source=run --input=runs/a --output=shared/a --dtype=float16

For adm, in place of --name, the flags that the network was trained with may be given as they were
given to guided diffusion: --image_size 64 --num_channels 128 --learn_sigma True ...
"""

from diffseg_jax.cli import Flags, numbers, truth, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.errors import UserError, choose
from diffseg_jax.inference.converted import GROUPS, STORED, convert_adm, convert_ddp, convert_run
from diffseg_jax.weights.adm import PUBLISHED, Configuration, from_flags

# Flags of guided diffusion that say nothing about the network or how it was trained.
UNUSED = ("use_fp16", "use_checkpoint")


def main(arguments=None):
    """The command line."""
    parser = Flags("convert", __doc__)
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
    with user_errors():
        given = vars(parser.parse_args(arguments))
        path, output, source = (given.pop(name) for name in ("input", "output", "source"))
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
