"""Exports a trained model to a folder that predicts images without this package.

  python -m diffseg_jax.export --checkpoint=scenes --output=exported/scenes --size=96,128
  python -m diffseg_jax.export --checkpoint=scenes --output=web/scenes --size=96,128 --format=onnx

model.stablehlo  the network with its weights, as jax.export writes it, for any number of images of
                 one size; loading it needs jax and flatbuffers only
model.onnx       the same in ONNX (--format=onnx), for images of any size, which it resizes;
                 runtimes in Python, C++, C#, Java and JavaScript load it
model.json       classes, colours, inputs and outputs, and the lines of Python that load it

Networks for maps seen from above take the images of all cameras with their calibration.
"""

from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.cli import (
    CHECKPOINT_FLAGS,
    Flags,
    add_checkpoint_flags,
    height_and_width,
    use_cache,
    user_errors,
)
from diffseg_jax.display.console import Display
from diffseg_jax.display.output import print_whole
from diffseg_jax.inference.exported import (
    DESCRIPTION,
    EXPORT_FORMATS,
    PLATFORMS,
    check_request,
    export,
)
from diffseg_jax.inference.segmenter import load


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("export", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add)
    text = f"a new folder for the model and {DESCRIPTION}"
    add("--output", required=True, metavar="DIR", help=text)
    size = (
        "height and width of the images that the network sees, as 96,128 or 96x128; default: as "
        "the evaluation of the run saw its images"
    )
    add("--size", type=height_and_width, metavar="H,W", help=size)
    text = f"{' or '.join(EXPORT_FORMATS)}; default: stablehlo"
    add("--format", default="stablehlo", metavar="NAME", help=text)
    add("--steps", type=int, metavar="N", help="reverse steps (ddp); default: as evaluated")
    add("--samples", type=int, metavar="N", help="draws of the initial noise, averaged (ddp)")
    add("--seed", type=int, metavar="N", help="seed of the noise; default: that of the run")
    platforms = ",".join(PLATFORMS)
    text = f"where stablehlo runs; default: {platforms}"
    add("--platforms", metavar="NAME,...", help=text)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = vars(make_flags().parse_args(arguments))
        use_cache("")
        opened = {name: given.pop(name) for name in CHECKPOINT_FLAGS}
        if given["platforms"] is not None:
            given["platforms"] = tuple(filter(None, given["platforms"].split(",")))
        asked = (given[name] for name in ("output", "size", "platforms", "format"))
        check_request(*asked)
        display = Display()
        with display.progress("opens and exports the network"):
            network = load(opened.pop("checkpoint"), **opened)
            description = export(network, **given, log=display.say)
        model = Path(given["output"]) / EXPORT_FORMATS[given["format"]].file
        print(f"{model}: {model.stat().st_size / 1e6:,.1f} MB; {DESCRIPTION} says:")
        lines = [f"  {line.replace(model.name, str(model))}" for line in description["load"]]
        print_whole(f"  # {description['needs']}", *lines)


if __name__ == "__main__":
    main()
