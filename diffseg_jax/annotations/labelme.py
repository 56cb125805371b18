"""The JSON files of labelme: one beside each image, with polygons, rectangles, circles and masks.

labels.txt in the folder, if it exists, names the classes in order, one a line, as labelme's own
converters read it; without it they are sorted by name. Shapes are drawn in their order, the later
ones on top. The labels __ignore__ and _background_ have the meaning of labelme: ignored pixels, and
pixels of no object.
"""

import base64
import binascii
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffseg_jax.annotations.entries import (
    begins_with,
    class_name,
    corners,
    entry,
    image_size,
    json_bytes,
    object_in,
    objects,
    of_type,
)
from diffseg_jax.annotations.photos import Photo, Photos, safe_name, stem_of
from diffseg_jax.annotations.polygons import fill_ellipse, joined_ring, traced
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    Notes,
)
from diffseg_jax.data.files import files_below
from diffseg_jax.data.images import decode
from diffseg_jax.data.names import read_text
from diffseg_jax.errors import UserError, shown

CLASS_LIST = "labels.txt"
IGNORED_LABEL = "__ignore__"
NO_AREA = ("line", "linestrip", "point", "points")  # shapes without pixels
VERSION = "5.5.0"  # of labelme, whose files are written


def is_labelme(path: Path) -> bool:
    """Whether a path is a JSON file of labelme, or a folder whose first JSON file is one."""
    first = [path] if path.is_file() else [path / file for file in files_below(path, (".json",))]
    return bool(first) and begins_with(first[0], '"shapes"', '"shape_type"')


def read_labelme(path: Path, photos: Photos) -> LabelledSet:
    """The labels of a JSON file, or of all below a folder."""
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else [path / file for file in files_below(path, (".json",))]
    if not files:
        raise UserError(f"{path} holds no .json file of labelme. Check --input.")
    notes = Notes()
    listed = _listed(folder / CLASS_LIST)
    classes = listed or _found(files)
    images = (_read(file, folder, classes, photos, notes) for file in files)
    ignored = (IGNORED_LABEL,) if IGNORED_LABEL in classes else ()
    return LabelledSet(
        classes, images, notes=notes, ignored=ignored, are_found=not listed, count=len(files)
    )


def _listed(file):
    """The classes in labels.txt, () where there is none."""
    if not file.is_file():
        return ()
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {file}: {error}. Save it as UTF-8.") from None
    names = tuple(class_name(line, str(file)) for line in lines if line)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file} lists {shown(twice[0])} twice. Remove one of the lines.")
    return names


def _found(files):
    """The classes of all shapes, sorted."""
    found = set()
    for file in files:
        for number, shape in enumerate(objects(object_in(file), "shapes", str(file))):
            found.add(_label(shape, f"{file}, shape {number}"))
    return tuple(sorted(found))


def _label(shape, where):
    return class_name(entry(shape, "label", str, where), where)


def _read(file, folder, classes, photos, notes) -> LabelledImage:
    content, where = object_in(file), str(file)
    written = entry(content, "imagePath", str, where)
    name, is_whole = safe_name(written, file)
    photo = _photo(file.parent / written.replace("\\", "/"), content.get("imageData"), where)
    name = (file.parent.relative_to(folder) / name).as_posix()
    size = _size(content, photo or photos.find(name), where)
    if not is_whole:
        rest = "whose path leads out of the folder: only the name of the file is kept"
        notes.add("renamed", "image", rest, written)
    shapes = objects(content, "shapes", where)
    regions = _regions(shapes, file, folder / CLASS_LIST, classes, size, notes)
    return LabelledImage(name, size, regions, photo=photo)


def _regions(shapes, file, class_list, classes, size, notes) -> Iterator[LabelledRegion]:
    """The regions of shapes, one by one, as masks may be large."""
    for number, shape in enumerate(shapes):
        where = f"{file}, shape {number}"
        if _label(shape, where) not in classes:
            raise UserError(
                f"{where}: the label {shown(_label(shape, where))} is not in {class_list}. Add it "
                "there, or correct the label."
            )
        region = _region(shape, size, where)
        if region is None:
            rest = "that are lines or points, which have no area"
            notes.add("skipped", "shape", rest, where)
        else:
            yield region


def _size(content, photo, where):
    """(height, width) of an image; that of its file where none is written."""
    sides = [content.get(key) for key in ("imageHeight", "imageWidth")]
    if sides == [None, None] and photo is not None:
        return photo.size
    return image_size(*sides, where)


def _photo(path, data, where):
    """The image file, or the copy of it in the JSON file; None without either."""
    with contextlib.suppress(OSError):  # a path that is too long
        if path.is_file():
            return Photo(path)
    return None if not data else Photo(f"imageData of {where}", _decoded(data, where))


def _decoded(data, where):
    """The bytes of base64."""
    try:
        return base64.b64decode(of_type(data, str, "base64 data", where), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where} holds damaged base64 data ({error}). Save it again.") from None


def _region(shape, size, where) -> LabelledRegion | None:
    """The region of a shape; None for shapes without an area."""
    kind = shape.get("shape_type") or "polygon"
    name, points = _label(shape, where), entry(shape, "points", list, where)
    group = shape.get("group_id")
    group = None if group is None else (name, of_type(group, int, '"group_id"', where))
    if kind in NO_AREA:
        return None
    if kind in ("polygon", "rotation"):  # the second one in files of X-AnyLabeling
        return LabelledRegion(name, (corners(points, where),), group=group)
    if kind not in ("rectangle", "circle", "mask"):
        raise UserError(
            f"{where}: shape_type is {shown(kind)}, which is not known. Known: polygon, rectangle, "
            f"circle, mask, {', '.join(NO_AREA)}."
        )
    if kind == "rectangle" and len(points) == 4:  # its corners in turn, as some programs write
        return LabelledRegion(name, (corners(points, where),), group=group)
    (x, y), (x_end, y_end) = two = corners(points, where, least=2)[:2]
    if kind == "rectangle":
        ring = np.array([(x, y), (x_end, y), (x_end, y_end), (x, y_end)])
        return LabelledRegion(name, (ring,), group=group)
    if kind == "circle":
        radius = float(np.hypot(x_end - x, y_end - y))
        inside, corner = fill_ellipse(two[0], (radius, radius), size)
    else:
        inside, corner = _mask(shape, two, size, where)
    return LabelledRegion(name, mask=inside, corner=corner, group=group)


def _mask(shape, box, size, where):
    """(bool[h,w], corner) of a mask: a PNG of the pixels in a box, both of whose ends are in it."""
    content = _decoded(entry(shape, "mask", str, where), where)
    image = decode(f"mask of {where}", content)
    (left, top), (right, bottom) = np.rint(box).astype(int)
    height, width = size
    if (right - left + 1, bottom - top + 1) != image.size:
        raise UserError(
            f"{where}: the mask is {image.width}x{image.height}, but its box is "
            f"{right - left + 1}x{bottom - top + 1} (width x height). Save the file again."
        )
    if left < 0 or top < 0 or right >= width or bottom >= height:
        raise UserError(
            f"{where}: the mask ends at x={right}, y={bottom}, but the image is {width}x{height}. "
            "Save the file again."
        )
    return np.asarray(image.convert("L")) > 0, (int(left), int(top))


def write_labelme(folder, labels, maps, options):
    """Writes a .json file beside each image, with a polygon of every connected region.

    A region with holes is one ring, with bridges of no width to its holes.
    """
    for each in maps:
        shapes = [
            {
                "label": labels.names[region.label],
                "points": joined_ring(region.rings()).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for region in traced(each.ids)
        ]
        height, width = each.ids.shape
        content = {
            "version": VERSION, "flags": {}, "shapes": shapes,
            "imagePath": each.name.rpartition("/")[2], "imageData": None,
            "imageHeight": height, "imageWidth": width,
        }  # fmt: skip
        file = folder / f"{stem_of(each.name)}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(json_bytes(content))
    (folder / CLASS_LIST).write_text("".join(f"{name}\n" for name in labels.names), "utf-8")


LABELME = LabelFormat(
    "a .json file of labelme, or a folder of them",
    is_labelme, read_labelme, write_labelme, image_folder="", lists_images=True,
)  # fmt: skip
