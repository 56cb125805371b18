"""Flags that several commands share: which checkpoint to open, and sizes."""

import argparse

from diffseg_jax.inference.segmenter import DTYPES

OPENED = ("stage", "step", "ema", "dtype", "device")  # options of `load`


def add_checkpoint_flags(add):
    """The flags by which `load` is told what to open."""
    add(
        "--checkpoint",
        required=True,
        help="workdir, stage, converted directory, gs://, hf://, scenes",
    )
    add("--stage", help="of a workdir; the best by its results")
    add("--step", type=int, help="of the stage; the last, or the best where the config says so")
    add("--ema", help="rate of the moving average, or off; the first kept")
    add("--dtype", choices=tuple(DTYPES), help="of the computation; as trained")
    add("--device", help="cpu, cuda or tpu; what there is")


def sides(text: str) -> tuple[int, int]:
    """A flag such as 512, or 256,512, or 256x512."""
    try:
        given = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        given = ()
    if len(given) not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be a side, such as 512, or height,width"
        )
    return given * 2 if len(given) == 1 else given


def factors(text: str) -> tuple[float, ...]:
    """A flag such as 0.75,1,1.25."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be numbers, such as 0.75,1,1.25"
        ) from None
