"""Converts labels of other tools to label maps, and label maps to labels of other tools.

  python -m diffseg_jax.labels --from=coco --input=instances.json --images=photos --output=mine
  python -m diffseg_jax.labels --input=labelme_files --output=mine --unlabelled=background
  python -m diffseg_jax.labels --to=labelme --input=mine --output=to_correct

The first folder is for training: --config.data.path=mine. Without --from the format is
recognised. Every conversion goes by way of label maps, one class per pixel: a pixel belongs to a
polygon if its centre is inside, and is written so that reading gives the same label map again.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from diffseg_jax.annotations.conversion import (
    EMPTY,
    PHOTO_FILES,
    Converted,
    ConvertOptions,
    convert_labels,
    next_steps,
)  # fmt: skip
from diffseg_jax.annotations.label_formats import LABEL_FORMATS
from diffseg_jax.annotations.painting import CROWDS, NOTHING, PaintOptions
from diffseg_jax.annotations.regions import OVERLAPS, WriteOptions
from diffseg_jax.cli import Flags, names, use_cache, user_errors
from diffseg_jax.errors import counted, visible
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.outputs import made_folder
from diffseg_jax.storage.paths import open_path

MAX_SHARES = 20  # whose shares are printed


def make_flags() -> Flags:
    """All flags."""
    formats = "\n".join(f"  {name:15} {each.about}" for name, each in LABEL_FORMATS.items())
    flags = Flags("labels", f"{__doc__}\nFormats:\n{formats}")
    add = flags.add_argument
    add("--from", dest="source", choices=LABEL_FORMATS, metavar="FORMAT",
        help="format of the labels; default: recognised by the files")  # fmt: skip
    add("--to", dest="target", choices=LABEL_FORMATS, default="masks", metavar="FORMAT",
        help="format to write; default: masks")  # fmt: skip
    add("--input", required=True, metavar="PATH", help="file or folder of the labels")
    add("--output", required=True, metavar="DIR", help="folder to write; no file is replaced")
    images = (
        "folder of the image files, which are found below it by their names; those without labels, "
        "and labels without an image, are skipped. Default: where the labels say they are"
    )
    add("--images", metavar="DIR", help=images)
    files = "image files in the output: copies (copy, the default), symbolic links (link), or none"
    add("--image_files", choices=PHOTO_FILES, default=PHOTO_FILES[0], help=files)
    _add_rules(flags.add_argument_group("how labels become label maps").add_argument)
    return flags


def _add_rules(add):
    """The flags of PaintOptions and ConvertOptions."""
    new = "other names of classes; several with one new name become one class"
    add("--rename", type=new_names, default=(), metavar="OLD:NEW,OLD:NEW", help=new)
    order = "classes of the output, in order; others count as unlabelled. Default: as in the labels"
    add("--classes", type=names, default=(), metavar="NAME,NAME", help=order)
    ignore = "classes that become 255, which is neither learned nor measured"
    add("--ignore", type=names, default=(), metavar="NAME,NAME", help=ignore)
    rest = "pixels in no region: 255 (the default, ignored), or a class such as background"
    add("--unlabelled", default=NOTHING, metavar="255|NAME", help=rest)
    overlap = "the region on top where several overlap; default: as the format draws them"
    add("--overlap", choices=OVERLAPS, help=overlap)
    crowd = "what crowd regions of COCO become: 255 (the default), or their class"
    add("--crowd", choices=CROWDS, default=CROWDS[0], help=crowd)
    empty = "images without any label: skip (the default), or keep, as unlabelled"
    add("--empty", choices=EMPTY, default=EMPTY[0], help=empty)
    split = "folder before the names of all images, such as train or val"
    add("--split", default="", metavar="NAME", help=split)
    polygons = "to COCO, CVAT, Label Studio: polygons, which can be edited, not masks"
    add("--polygons", action="store_true", help=polygons)


def new_names(text: str) -> tuple[tuple[str, str], ...]:
    """A flag such as car:vehicle,bus:vehicle."""
    pairs = [tuple(part.strip() for part in pair.split(":")) for pair in names(text)]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"is {text}, but it must be OLD:NEW,OLD:NEW")
    return tuple(pairs)


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped; nothing was written"):
        given = vars(make_flags().parse_args(arguments))
        use_cache("")
        rules = ("rename", "classes", "ignore", "unlabelled", "overlap", "crowd")
        painting = PaintOptions(**{name: given.pop(name) for name in rules})
        options = ConvertOptions(
            painting, given.pop("image_files"), given.pop("empty"),
            WriteOptions(given.pop("polygons"), given.pop("split")),
        )  # fmt: skip
        with made_folder(open_path(given["output"])) as made, locked(made, "labels", "--output"):
            done = convert_labels(**given, options=options)
        print(*map(visible, lines_of(done, given["output"])), sep="\n")


def lines_of(done: Converted, output: str) -> list[str]:
    """What a conversion did, for the user."""
    what = f"{counted(done.images, 'image')} of {done.source}, written as {done.target}"
    lines = [f"note: {note}" for note in done.notes]
    lines.append(f"{what} into {output}, with {counted(done.photos, 'image file')}")
    total = max(int(done.pixels.sum()), 1)
    order = np.argsort(-done.pixels[: len(done.labels.names)], kind="stable")[:MAX_SHARES]
    for index in order.tolist():
        lines.append(f"  {done.pixels[index] / total:7.2%}  {index:3}  {done.labels.names[index]}")
    if done.pixels[255]:
        lines.append(f"  {done.pixels[255] / total:7.2%}  255  ignored")
    return [*lines, *next_steps(done, output)]


if __name__ == "__main__":
    main()
