"""Writes the features of a network for images, a .npz file of maps each.

  python -m diffseg_jax.features --checkpoint=runs/a --images=photos --output=features

A file holds the arrays map_00, map_01, ..., each [h, w, channels]; a fit reads them with
--config.features.sources=files=features, as it reads maps that other programs wrote so.
"""

from collections.abc import Sequence

from diffseg_jax.cli import (
    CHECKPOINT_FLAGS,
    Flags,
    add_cache_flag,
    add_checkpoint_flags,
    number,
    truth,
    use_cache,
    user_errors,
)
from diffseg_jax.display.console import Display
from diffseg_jax.errors import counted
from diffseg_jax.inference.batch import require_apart
from diffseg_jax.inference.feature_files import write_features
from diffseg_jax.inference.images import matching
from diffseg_jax.inference.segmenter import load
from diffseg_jax.storage.lock import require_free
from diffseg_jax.storage.paths import open_path


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("features", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add)
    images = "images, videos, folders with their subfolders, or patterns, one or several"
    add("--images", required=True, nargs="+", action="extend", metavar="PATH", help=images)
    keep = "True: also read files in folders that look like masks"
    add("--keep_masks", type=truth, default=False, metavar="True|False", help=keep)
    frames = "read one in N frames of videos, and pages of TIFFs; default: 1"
    add("--every", type=number(int, 1), default=1, metavar="N", help=frames)
    add("--output", required=True, metavar="DIR", help="folder of the features")
    taps = "maps to write, as python -m diffseg_jax.info lists them; the default ones unless given"
    add("--taps", default="", metavar="NAME,NAME", help=taps)
    add_cache_flag(add)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped; the same command resumes with the remaining images"):
        given = vars(make_flags().parse_args(arguments))
        use_cache(given.pop("compilation_cache"))
        opened = {name: given.pop(name) for name in CHECKPOINT_FLAGS}
        images, output, keep = (given[name] for name in ("images", "output", "keep_masks"))
        require_apart(matching(images, output=output), output)
        require_free(open_path(output), "features", "--output")
        display = Display()
        with display.progress("opens the network"):
            segmenter = load(opened.pop("checkpoint"), **opened)
        display.say(str(segmenter))
        taps = tuple(filter(None, given.pop("taps").split(",")))
        count = write_features(segmenter, images, output, taps, keep, given["every"], display)
        print(f"features of {counted(count, 'image')} in {output}")


if __name__ == "__main__":
    main()
