"""Exports a trained model to a folder that predicts images of one size without this package.

  python -m diffseg_jax.export --checkpoint=scenes --output=exported/scenes --size=96,128

model.stablehlo  the network with its weights, as jax.export writes it, for any number of images
model.json       classes, colours, inputs and outputs, and the lines of Python that load it

Loading it needs jax and flatbuffers only.
"""

from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.cli import (
    CHECKPOINT_FLAGS,
    Flags,
    add_checkpoint_flags,
    sides,
    use_cache,
    user_errors,
)
from diffseg_jax.inference.exported import DESCRIPTION, MODEL, PLATFORMS, check_request, export
from diffseg_jax.inference.segmenter import load


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("export", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add)
    add("--output", required=True, metavar="DIR", help=f"a new folder for {MODEL}, {DESCRIPTION}")
    size = "height and width of the images that the model takes"
    add("--size", type=sides, required=True, metavar="H,W", help=size)
    add("--steps", type=int, metavar="N", help="reverse steps (ddp); default: as evaluated")
    add("--samples", type=int, metavar="N", help="draws of the initial noise, averaged (ddp)")
    add("--seed", type=int, metavar="N", help="seed of the noise; default: that of the run")
    platforms = ",".join(PLATFORMS)
    text = f"where it runs; default: {platforms}"
    add("--platforms", default=platforms, metavar="NAME,...", help=text)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = vars(make_flags().parse_args(arguments))
        use_cache("")
        opened = {name: given.pop(name) for name in CHECKPOINT_FLAGS}
        given["platforms"] = tuple(filter(None, given["platforms"].split(",")))
        check_request(given["output"], given["size"], given["platforms"])
        description = export(load(opened.pop("checkpoint"), **opened), **given, log=print)
        model = Path(given["output"]) / MODEL
        print(f"{model}: {model.stat().st_size / 1e6:,.1f} MB; {DESCRIPTION} says:")
        lines = [line.replace(MODEL, str(model)) for line in description["load"]]
        print(f"  # {description['needs']}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
