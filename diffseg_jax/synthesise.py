"""Draws images by a diffusion model, labels them by pixel classifiers, and drops uncertain ones.

  python -m diffseg_jax.synthesise --checkpoint=runs/a --output=runs/made --count=10000

The output is a data set for training: --config.data.source=folder --config.data.path=runs/made.
The same command goes on where it stopped; with another --portion, --certain or a larger --count
it keeps all finished images.
"""

import dataclasses
from collections.abc import Sequence

from diffseg_jax.cli import (
    Flags,
    add_cache_flag,
    add_checkpoint_flags,
    number,
    use_cache,
    user_errors,
)
from diffseg_jax.data.generated_sets import CERTAIN
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.inference.segmenter import load
from diffseg_jax.inference.synthesis import SampleOptions, summary_line, synthesise
from diffseg_jax.sample import add_sampling_flags
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.outputs import open_local
from diffseg_jax.storage.paths import make_folder


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("synthesise", __doc__)
    add = flags.add_argument
    add("--output", required=True, metavar="DIR", help="folder of the data set")
    add("--count", type=number(int, 1), default=10_000, metavar="N", help="images; default: 10000")
    portion = "share of the images that the filter drops; 0: none; default: 0.1"
    add("--portion", type=number(float, 0, 0.99), default=0.1, metavar="X", help=portion)
    certain = f"how many of those are the most certain ones, not the least; default: {CERTAIN}"
    add("--certain", type=number(int, 0), default=CERTAIN, metavar="N", help=certain)
    add = flags.add_argument_group("sampling").add_argument
    model = "the diffusion model; default: the one whose features the classifiers read"
    add("--diffusion", default="", metavar="DIR", help=model)
    add("--ema", help="rate of its moving average, or off; default: the first rate")
    add_sampling_flags(add, size="that of the labelled images")
    add = flags.add_argument_group("classifiers").add_argument
    add_checkpoint_flags(add, ("checkpoint", "stage", "step", "dtype", "device"))
    add_cache_flag(add)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped; the same command goes on with the next image"):
        given = vars(make_flags().parse_args(arguments))
        use_cache(given.pop("compilation_cache"))
        output = open_local(given.pop("output"), "--output", "runs/made")
        names = ("stage", "step", "dtype", "device")
        display = Display()
        with display.progress("opens the network"):
            segmenter = load(given.pop("checkpoint"), **{name: given.pop(name) for name in names})
        fields = [field.name for field in dataclasses.fields(SampleOptions)]
        options = SampleOptions(**{name: given.pop(name) for name in fields})
        make_folder(output)
        shown = display.counted("images", unit="images", first=COMPILES)
        with locked(output, "synthesise", "--output"), shown as progress:
            content = synthesise(segmenter, output, options=options, progress=progress, **given)
        print(f"{output}: {summary_line(content)}. sheet.png shows some, the most certain first.")
        print(f"train on it: --config.data.source=folder --config.data.path={output}")


if __name__ == "__main__":
    main()
