"""Suggests which images to label next, and which regions of them.

  python -m diffseg_jax.suggest --checkpoint=runs/few --images=photos --count=5 --output=next

With a checkpoint it chooses images near which the network expects the most errors and that are
unlike labelled ones; without one, images that stand for all others. Images in --labelled, and those
that the run lists as learned from, are not suggested. It writes suggestions.txt (paths, the best
first), suggestions.json (with scores, uncertainty and boxes [x, y, width, height] around uncertain
regions) and sheet.png. After a stop the same command resumes; another --count takes no time.
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
from diffseg_jax.errors import UserError, visible
from diffseg_jax.inference.batch import require_apart
from diffseg_jax.inference.image_descriptors import DESCRIBED_BY
from diffseg_jax.inference.images import matching
from diffseg_jax.inference.segmenter import Segmenter, load
from diffseg_jax.inference.suggestions import suggest_images
from diffseg_jax.storage.lock import require_free
from diffseg_jax.storage.paths import open_path

MAX_LINES = 10  # images, and files that cannot be read, that are named


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("suggest", __doc__)
    add = flags.add_argument
    images = "images without labels: files, videos, folders with their subfolders, or patterns"
    add("--images", required=True, nargs="+", action="extend", metavar="PATH", help=images)
    add("--count", type=number(int, 1), default=5, metavar="N", help="images to suggest; default 5")
    add("--output", required=True, metavar="DIR", help="folder of the suggestions")
    labelled = "labelled images, also in their folder with masks; beside those of the checkpoint"
    add("--labelled", nargs="+", action="extend", default=[], metavar="PATH", help=labelled)
    features = (
        "by what images are compared; default: the network of the checkpoint, without one "
        "efficientnet_lite0 if it is installed, else colour"
    )
    add("--features", choices=DESCRIBED_BY, default="", help=features)
    frames = "take one in N frames of videos, and pages of TIFFs; default: 1"
    add("--every", type=number(int, 1), default=1, metavar="N", help=frames)
    copies = "also copy the images to OUTPUT/images, where no file is replaced"
    add("--copy", type=truth, default=False, metavar="True|False", help=copies)
    keep = "True: also suggest files in folders that look like masks"
    add("--keep_masks", type=truth, default=False, metavar="True|False", help=keep)
    add_cache_flag(add)
    add_checkpoint_flags(
        flags.add_argument_group("the network, if there is one").add_argument,
        required=False,
    )
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped; the same command resumes with the remaining images"):
        given = vars(make_flags().parse_args(arguments))
        use_cache(given.pop("compilation_cache"))
        opened = {name: given.pop(name) for name in CHECKPOINT_FLAGS}
        images, output = (given.pop(name) for name in ("images", "output"))
        require_apart(matching([*images, *given["labelled"]], output=output), output)
        require_free(open_path(output), "suggest", "--output")
        display = Display()
        segmenter = open_segmenter(display, **opened)
        content = suggest_images(images, output, segmenter=segmenter, display=display, **given)
        print(*lines_about(content), sep="\n")
        print(f"{output} holds suggestions.txt, suggestions.json and sheet.png")


def open_segmenter(display: Display, checkpoint: str | None, **options) -> Segmenter | None:
    """The network of a checkpoint, None without one; UserError for options of a missing one."""
    if checkpoint is not None:
        with display.progress("opens the network"):
            segmenter = load(checkpoint, **options)
        display.say(str(segmenter))
        return segmenter
    for name, value in options.items():
        if value is not None:
            raise UserError(
                f"--{name}={value} is an option of a network, but there is no --checkpoint. Give "
                f"one, such as --checkpoint=runs/few, or leave --{name} out."
            )
    return None


def lines_about(content: dict) -> list[str]:
    """The lines that name what to label next, and what could not be read."""
    lines = [f"not read: {sentence}" for sentence in content["unreadable"].values()]
    lines = lines[:MAX_LINES]
    chosen = content["suggestions"]
    uncalibrated = "" if content["calibrator"] else ", uncalibrated"
    shares = f", with the expected share of wrong pixels{uncalibrated}"
    with_shares = content["checkpoint"] is not None
    lines.append(f"label next, best first and unlike each other{shares if with_shares else ''}:")
    for each in chosen[:MAX_LINES]:
        share = f"   {100 * each['uncertainty']:.1f} %" if with_shares else ""
        lines.append(f"  {visible(each['path'])}{share}")
    more = len(chosen) - MAX_LINES
    return [*lines, f"  and {more:,} more in suggestions.txt"] if more > 0 else lines


if __name__ == "__main__":
    main()
