"""Converts official checkpoint files, or a run, to a directory that every command here opens.

  python -m diffseg_jax.convert --source=adm --name=lsun_bedroom --input=lsun_bedroom.pt \\
      --output=weights/lsun_bedroom
  python -m diffseg_jax.convert --source=ddp --output=weights/ddp_convnext_t \\
      --input=ddp_convnext_t_4x4_512x1024_160k_cityscapes.pth
  python -m diffseg_jax.convert --source=transunet --input=R50+ViT-B_16.npz --output=weights/vit
  python -m diffseg_jax.convert --source=ddpm_seg --input=50_150_250_5_6_7_8_12 \\
      --unet=lsun_bedroom.pt --name=lsun_bedroom --output=weights/bedroom_28
  python -m diffseg_jax.convert --source=run --input=runs/a --output=shared/a --dtype=float16

For adm, the flags with which guided diffusion trained the network may replace --name, as in
--image_size 64 --num_channels 128 --learn_sigma True.
"""

import functools
from collections.abc import Sequence

from diffseg_jax.cli import Flags, add_checkpoint_flags, number, numbers, sides, truth, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, choose
from diffseg_jax.inference.converted import (
    NECK_GROUPS,
    STORED_DTYPES,
    UNUSED_FLAGS,
    adm_configuration,
    convert_adm,
    convert_ddp,
    convert_run,
)
from diffseg_jax.inference.converted_bev import convert_ddp_bev
from diffseg_jax.inference.converted_deeplab import convert_deeplab
from diffseg_jax.inference.converted_depth import convert_ddp_depth
from diffseg_jax.inference.converted_ensemble import convert_ensemble
from diffseg_jax.inference.converted_source import convert_source
from diffseg_jax.inference.converted_transunet import convert_transunet
from diffseg_jax.systems.source_files import READERS
from diffseg_jax.weights.adm import PUBLISHED

METAVARS = {int: "N", float: "X", str: "TEXT", truth: "True|False", numbers: "N,N,..."}
ADM_FLAGS = {  # those of guided diffusion
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
    **dict.fromkeys(UNUSED_FLAGS, truth),
}
ENSEMBLE_FLAGS = ("feature_steps", "feature_blocks", "noise_file")


def _convert_adm(path, output, name="", part="", **flags):
    return convert_adm(path, output, adm_configuration(name, flags), part)


CONVERTERS = {  # name -> function and the flags that it takes
    "adm": (_convert_adm, ("name", "part", *ADM_FLAGS)),
    "ddp": (convert_ddp, ("groups", "steps", "limit", "part")),
    "ddp_bev": (convert_ddp_bev, ("steps", "part")),
    "ddp_depth": (convert_ddp_depth, ("groups", "steps", "high", "part")),
    "transunet": (convert_transunet, ("part", "heads", "grid")),
    "deeplab": (convert_deeplab, ("part", "short")),
    "ddpm_seg": (convert_ensemble, ("unet", "name", "part", *ENSEMBLE_FLAGS, *ADM_FLAGS)),
    "run": (convert_run, ("stage", "step", "ema", "dtype")),
    **{
        name: (functools.partial(convert_source, name), ("part", *reader.options))
        for name, reader in READERS.items()
    },
}


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("convert", __doc__)
    add = flags.add_argument
    add("--source", required=True, help=f"kind of the input: {', '.join(CONVERTERS)}")
    given = "the file of weights; the folder of classifiers; the workdir of a run"
    add("--input", required=True, metavar="PATH", help=given)
    add("--output", required=True, metavar="DIR", help="a new directory")
    part = "which network of a file that holds several, such as model_ema"
    add("--part", metavar="NAME", help=part)
    add = flags.add_argument_group("adm").add_argument
    add("--name", help=f"configuration: {', '.join(PUBLISHED)}")
    add = flags.add_argument_group("adm, flags of guided diffusion in place of --name").add_argument
    for flag, flag_type in ADM_FLAGS.items():
        add(f"--{flag}", type=flag_type, metavar=METAVARS[flag_type])
    add = flags.add_argument_group("ddp, ddp_depth, ddp_bev").add_argument
    groups = f"groups of the neck's norms; default: {NECK_GROUPS}"
    add("--groups", type=int, metavar="N", help=groups)
    steps = "reverse steps; default: 10 for a file whose name says aligned, else 3"
    add("--steps", type=number(int, 1, 1000), metavar="N", help=steps)
    high = "ddp_depth: largest depth in metres; default: 10 if the file's name says nyu, else 80"
    add("--high", type=number(float, 0.01, 1e6), metavar="X", help=high)
    limit = "ddp: sides into which images are fitted, 0 for their own size; default: as published"
    add("--limit", type=sides, metavar="N,N", help=limit)
    add = flags.add_argument_group("deeplab").add_argument
    short = "shorter side of images, 0 for their own size; default: 520 for torchvision's weights"
    add("--short", type=number(int, 0, 65536), metavar="N", help=short)
    add = flags.add_argument_group("transunet, vit; heads also dinov2, dinov3, mae").add_argument
    heads = "heads of the attention; default: those of published networks of this width"
    add("--heads", type=number(int, 1), metavar="N", help=heads)
    grid = "rows,columns of the position table; default: a square"
    add("--grid", type=sides, metavar="N,N", help=grid)
    add = flags.add_argument_group("ddpm_seg, also --name or the flags of adm").add_argument
    add("--unet", metavar="PATH", help="the diffusion model: a file or a converted directory")
    add("--feature_steps", type=numbers, metavar=METAVARS[numbers], help="its noise levels")
    add("--feature_blocks", type=numbers, metavar=METAVARS[numbers], help="its blocks")
    noise = "noise that the classifiers were trained with, .npy; default: drawn"
    add("--noise_file", metavar="PATH", help=noise)
    add = flags.add_argument_group("run").add_argument
    add_checkpoint_flags(add, ("stage", "step", "ema"))
    dtype = f"dtype of the stored parameters: {', '.join(STORED_DTYPES)}; default: float32"
    add("--dtype", help=dtype)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = vars(make_flags().parse_args(arguments))
        find_devices()
        path, output, source = (given.pop(name) for name in ("input", "output", "source"))
        convert, known = choose(CONVERTERS, source, "source of checkpoints")
        options = {flag: value for flag, value in given.items() if value is not None}
        for flag in options:
            if flag not in known:
                raise UserError(f"--{flag} means nothing for --source={source}. Leave it out.")
        with Display().progress(f"converts {path}"):
            parameters = convert(path, output, **options)
        print(f"{output}: {parameters:,} parameters")


if __name__ == "__main__":
    main()
