"""Predicts images and videos in files or folders: label maps, uncertainty, and a summary.

  python -m diffseg_jax.predict --checkpoint=scenes --images=photos --output=labelled

For every image it writes <name>_labels.png (class ids, shown in the colours of the classes),
<name>_color.png, <name>_overlay.png and <name>_uncertainty.png (dark 0, bright 1); and legend.png
and summary.json for all images. After a stop the same command resumes.
"""

from collections.abc import Sequence

from diffseg_jax.cli import (
    CHECKPOINT_FLAGS,
    Flags,
    add_cache_flag,
    add_checkpoint_flags,
    factors,
    names,
    number,
    sides,
    truth,
    use_cache,
    user_errors,
)
from diffseg_jax.display.console import Display
from diffseg_jax.errors import counted, visible
from diffseg_jax.inference.batch import PALETTES, predict_files, require_apart
from diffseg_jax.inference.contours import CONTOURS
from diffseg_jax.inference.images import matching
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.saved import ENDINGS, EXTRA, OVERLAYS, SaveOptions
from diffseg_jax.inference.segmenter import load
from diffseg_jax.inference.show import show_predictions
from diffseg_jax.storage.lock import require_free
from diffseg_jax.storage.paths import open_path

MAX_TO_LOOK_AT = 3  # images with the most expected errors
MAX_UNREADABLE_SHOWN = 5  # unreadable files; summary.json lists all of them


def make_flags() -> Flags:
    """All flags; those of the group are the options of `Segmenter.predict`."""
    flags = Flags("predict", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add)
    images = (
        "images, videos, folders with their subfolders, or patterns, one or several: "
        "--images=photos, --images a.jpg more, --images='photos/**/*.jpg'"
    )
    add("--images", required=True, nargs="+", action="extend", metavar="PATH", help=images)
    keep = "True: also predict files in folders that look like masks"
    add("--keep_masks", type=truth, default=False, metavar="True|False", help=keep)
    frames = "predict one in N frames of videos, and pages of TIFFs; default: 1"
    add("--every", type=number(int, 1), default=1, metavar="N", help=frames)
    clip = "True: also write <name>_overlay.mp4 for every video"
    add("--video", type=truth, default=False, metavar="True|False", help=clip)
    add("--output", required=True, metavar="DIR", help="folder of the predictions")
    window = "True: open a sheet of the first predictions, sheet.png, when all are done"
    add("--show", type=truth, default=False, metavar="True|False", help=window)
    palette = "own (default): the colours of the training data; readable: for any colour vision"
    add("--palette", choices=PALETTES, default="own", help=palette)
    maps = f"more maps to write, those of {','.join(EXTRA)} that the network has"
    paint = "fill (default): colours over the image; contours: lines along the borders of classes"
    add("--overlay", choices=OVERLAYS, default="fill", help=paint)
    add("--save", type=names, default=(), metavar="MAP,...", help=maps)
    form = "files of those: 16-bit PNG (default; 65535 is 1; probs as .npz), .npy or .npz"
    add("--format", choices=ENDINGS, default="png16", help=form)
    polygons = "polygons of the connected regions of each class"
    add("--contours", choices=CONTOURS, help=polygons)
    mask = "write the fewest pixels that hold all expected errors but this share, such as 0.2"
    add("--review", type=float, metavar="X", help=mask)
    unsure = "255 in place of labels whose chance of an error is above it, such as 0.05"
    add("--reject", type=float, metavar="X", help=unsure)
    add_cache_flag(add)
    add = flags.add_argument_group("prediction; defaults: as the run was evaluated").add_argument
    add("--steps", type=int, metavar="N", help="reverse steps (ddp)")
    add("--samples", type=int, metavar="N", help="draws of the initial noise, averaged (ddp)")
    add("--tile", type=sides, metavar="N[,N]", help="side of the windows of large images; 0: none")
    stride = "distance from tile to tile; default: 3/4 of the tile"
    add("--stride", type=sides, metavar="N[,N]", help=stride)
    add("--scales", type=factors, metavar="X,X,...", help="scales of the image, averaged")
    add("--flip", type=truth, metavar="True|False", help="average with the mirror image")
    add("--seed", type=int, metavar="N", help="seed of the noise; default: that of the run")
    round_to = "resize sides to multiples of N, so that many sizes share programs"
    add("--round_to", type=int, metavar="N", help=round_to)
    batch_size = "images of one size in a batch; default: 1 on CPUs, else 4"
    add("--batch_size", type=int, metavar="N", help=batch_size)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped; the same command resumes with the remaining images"):
        given = vars(make_flags().parse_args(arguments))
        use_cache(given.pop("compilation_cache"))
        opened = {name: given.pop(name) for name in CHECKPOINT_FLAGS}
        images, output, palette = (given.pop(name) for name in ("images", "output", "palette"))
        keep_masks, extra = given.pop("keep_masks"), given.pop("save")
        every, video, show = (given.pop(name) for name in ("every", "video", "show"))
        chosen = ("format", "contours", "review", "reject", "overlay")
        saved = SaveOptions(extra, **{name: given.pop(name) for name in chosen})
        require_apart(matching(images, output=output), output)
        require_free(open_path(output), "predict", "--output")
        display = Display()
        with display.progress("opens the network"):
            segmenter = load(opened.pop("checkpoint"), **opened)
        display.say(str(segmenter))
        summary = predict_files(
            segmenter, images, output, PredictOptions(**given), palette, keep_masks, saved,
            every, video, display,
        )  # fmt: skip
        unreadable = list(summary["unreadable"].values())
        for sentence in unreadable[:MAX_UNREADABLE_SHOWN]:
            print(f"not read: {sentence}")
        more = f", {counted(len(unreadable), 'file')} could not be read" if unreadable else ""
        done = counted(len(summary["pictures"]), "image")
        print(f"{done} in {output}{more}; summary in {output}/summary.json")
        if summary["pictures"]:
            print(look_first(summary, segmenter.output.need))
        if summary["pictures"] and show:
            print(show_predictions(open_path(output), summary, segmenter.output))
        foreign = [name for name, e in summary["pictures"].items() if e.get("foreign")]
        if foreign:
            print(warn_of_foreign(foreign, len(summary["pictures"])))


def look_first(summary: dict, need: str) -> str:
    """The line that names the first images by need, a word for their uncertainty."""
    shown = [
        f"{visible(name)} ({100 * summary['pictures'][name]['uncertainty']:.1f} %)"
        for name in summary["by_need"][:MAX_TO_LOOK_AT]
    ]
    uncalibrated = "" if summary["calibrated"] else ", uncalibrated"
    return f"look first at {', '.join(shown)}: {need}{uncalibrated}"


def warn_of_foreign(names: Sequence[str], images: int) -> str:
    """The lines that name images unlike all that the network knows."""
    shown = ", ".join(map(visible, names[:MAX_TO_LOOK_AT]))
    more = f" and {len(names) - MAX_TO_LOOK_AT} more" if len(names) > MAX_TO_LOOK_AT else ""
    look = "looks" if len(names) == 1 else "look"
    return (
        f"warning: {len(names)} of {counted(images, 'image')} {look} unlike all images that the "
        f"network knows, so neither labels nor uncertainty can be trusted there: {shown}{more} "
        '("foreign" in summary.json)'
    )


if __name__ == "__main__":
    main()
