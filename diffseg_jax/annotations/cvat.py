"""CVAT for images 1.1: one XML file with polygons, boxes, ellipses and masks of all images.

Coordinates are those of `regions.py`. Of two shapes the one with the larger z_order is in front; of
two with the same one, the later. Outlines, points, skeletons, cuboids and tags are no areas.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from diffseg_jax.annotations.entries import class_name, colour_of, image_size
from diffseg_jax.annotations.mask_pairs import located
from diffseg_jax.annotations.photos import Photos, name_of_split
from diffseg_jax.annotations.plain_xml import looks_like_xml, read_plain_xml
from diffseg_jax.annotations.polygons import MAX_COORDINATE, ellipse, joined_ring, rectangle, traced
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    LabelMap,
    Notes,
    WriteOptions,
)
from diffseg_jax.data.images import MAX_PIXELS, read_file
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError, shown
from diffseg_jax.storage.paths import write_atomically

CVAT_FILE = "annotations.xml"
CVAT_AREAS = ("polygon", "box", "ellipse", "mask")
CVAT_OTHERS = ("polyline", "points", "cuboid", "skeleton", "tag")
CVAT_BEGINNING = 4096  # bytes in which the first element stands
AGAIN_XML = 'Export the labels again, as "CVAT for images 1.1".'


def _file_of(path):
    """The XML file of a path, which may be the folder that an export unpacks to.

    In a folder it is annotations.xml, or else that of the only split.
    """
    if not path.is_dir():
        return path
    splits = sorted(path.glob("annotations_*.xml"))
    whole = path / CVAT_FILE
    return splits[0] if not whole.exists() and len(splits) == 1 else whole


def _recognise(path: Path) -> bool:
    file = _file_of(path)
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(CVAT_BEGINNING)
    return looks_like_xml(head) and b"<annotations" in head


# ---- reading -----------------------------------------------------------------------------------


def _read(path: Path, photos: Photos) -> LabelledSet:
    file, notes = _file_of(path), Notes()
    root = read_plain_xml(read_file(file), file)
    if root.tag != "annotations":
        raise UserError(
            f"{file} is no file of CVAT: its first element is <{root.tag}>. {AGAIN_XML}"
        )
    if root.find("track") is not None:
        raise UserError(f"{file} holds tracks of a video, whose frames are no files. {AGAIN_XML}")
    elements = root.findall("image")
    if not elements:
        raise UserError(f"{file} lists no image. {AGAIN_XML}")
    classes = _classes_of(root, elements, file)
    images = (_image(element, file, notes) for element in elements)
    colours = tuple(classes.values()) if all(classes.values()) else ()
    are_found = root.find("meta/*/labels/label") is None
    return LabelledSet(
        tuple(classes), images, colours, notes, are_found=are_found, count=len(elements)
    )


def _classes_of(root, elements, file):
    """{name: (r, g, b) or None} of a project, task or job, then of shapes whose label it lacks."""
    classes = {}
    for label in root.iterfind("meta/*/labels/label"):
        name, colour = (label.findtext(key, "").strip() for key in ("name", "color"))
        if label.findtext("type", "") not in ("points", "polyline", "tag", "skeleton", "cuboid"):
            classes[name] = colour_of(colour)
    for element in elements:
        for shape in element:
            if shape.tag in CVAT_AREAS:
                classes.setdefault(_label(shape, file), None)
    classes.pop("", None)
    if not classes:
        raise UserError(f"{file} names no label for areas. {AGAIN_XML}")
    return classes


def _label(shape, file):
    return class_name(shape.get("label"), f"{file}, a <{shape.tag}>")


def _image(element, file, notes):
    name, photo = located(element.get("name"), file, notes)
    where = f"{file}, image {name}"
    size = image_size(*(_number(element, key, where) for key in ("height", "width")), where)
    for shape in element:
        if shape.tag in CVAT_OTHERS:
            notes.add("not read", shape.tag, "without an area", name)
    shapes = [shape for shape in element if shape.tag in CVAT_AREAS]
    shapes.sort(key=lambda shape: _number(shape, "z_order", where, 0.0))
    regions = (region for shape in shapes for region in _region(shape, size, file, where))
    return LabelledImage(name, size, regions, photo=photo)


def _number(element, key, where, default=None):
    """A number of an element."""
    text = element.get(key)
    if text is None and default is not None:
        return default
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not abs(value) <= MAX_COORDINATE:
        raise UserError(
            f'{where}: "{key}" of <{element.tag}> is {shown(text)}, but must be a number of '
            f"pixels. {AGAIN_XML}"
        )
    return value


def _region(shape, size, file, where) -> Iterator[LabelledRegion]:
    """The region of a shape, unless it lies outside the image."""
    name = _label(shape, file)
    if shape.tag == "mask":
        yield from _mask(shape, size, name, where)
        return
    if shape.tag == "polygon":
        ring = _points(shape, where)
    elif shape.tag == "box":
        left, top, right, bottom = (
            _number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr")
        )
        angle = _number(shape, "rotation", where, 0.0)
        ring = rectangle(left, top, right - left, bottom - top, angle)
    else:
        values = (_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
        ring = ellipse(*values, _number(shape, "rotation", where, 0.0))
    yield LabelledRegion(name, (ring,))


def _points(shape, where):
    """The corners f64[N,2] of a polygon "x,y;x,y;..."."""
    text = shape.get("points", "")
    try:
        points = np.array([[float(v) for v in part.split(",")] for part in text.split(";")])
    except ValueError:
        points = np.full(1, np.nan)
    if points.ndim != 2 or points.shape[1] != 2 or not (abs(points) <= MAX_COORDINATE).all():
        raise UserError(
            f'{where}: "points" of a polygon are {shown(text)}, but must read x,y;x,y;... '
            f"{AGAIN_XML}"
        )
    return points


def _mask(shape, size, name, where):
    """The part of a mask that lies in the image."""
    keys = ("left", "top", "width", "height")
    left, top, width, height = (int(_number(shape, key, where)) for key in keys)
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise UserError(f"{where}: the box of a mask is {width}x{height} pixels. {AGAIN_XML}")
    mask = decode_runs(shape.get("rle", ""), (height, width), f'{where}, mask of "{name}"')
    x, y = max(-left, 0), max(-top, 0)
    mask = mask[y : max(size[0] - top, 0), x : max(size[1] - left, 0)]
    if mask.size:
        yield LabelledRegion(name, mask=mask, corner=(left + x, top + y))


# ---- run lengths: counts of pixels outside, inside, outside, ... along the rows of a box -------


def decode_runs(text: str, size: tuple[int, int], name: str) -> np.ndarray:
    """The mask bool[h,w] of counts such as "0, 3, 2, 1".

    size  (height, width) of the box;  name  of the mask, for errors

    Raises UserError for what is no list of counts, and for counts of another sum.
    """
    height, width = size
    try:
        counts = np.array([int(part) for part in text.split(",")], np.int64)
    except (ValueError, OverflowError):
        counts = np.array([-1])
    if (counts < 0).any() or counts.sum() != height * width or counts.max() > height * width:
        total = "something else" if (counts < 0).any() else f"{counts.sum()} pixels"
        raise UserError(
            f'{name}: "rle" must be counts of all {height * width} pixels of its box of '
            f"{width}x{height}, but holds {total}. Export the labels again."
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size)


def encode_runs(inside: np.ndarray) -> str:
    """The counts of a mask bool[h,w]."""
    flat = np.concatenate([[False], inside.ravel()])
    starts = np.append(np.flatnonzero(np.diff(flat)), inside.size)
    return ", ".join(map(str, np.diff(starts, prepend=0).tolist()))


# ---- writing -----------------------------------------------------------------------------------


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """annotations.xml with a mask, or a polygon, for each connected region of a class."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    listed = ElementTree.SubElement(task, "labels")
    for name, colour in zip(labels.names, labels.palette):
        label = ElementTree.SubElement(listed, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "color").text = f"#{bytes(colour).hex()}"
    for number, each in enumerate(maps):
        height, width = each.ids.shape
        values = {"id": number, "name": each.name, "width": width, "height": height}
        image = ElementTree.SubElement(root, "image", _texts(values))
        for region in traced(each.ids):
            name = labels.names[region.label]
            tag, values = (_as_polygon if options.polygons else _as_mask)(region)
            common = {"label": name, "source": "file", "occluded": 0, "z_order": 0}
            ElementTree.SubElement(image, tag, _texts(common | values))
    ElementTree.indent(root)
    content = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    write_atomically(folder / name_of_split(CVAT_FILE, options.split), content + b"\n")


def _texts(values):
    return {key: str(value) for key, value in values.items()}


def _as_polygon(region):
    ring = joined_ring(region.rings())
    return "polygon", {"points": ";".join(f"{x},{y}" for x, y in ring.tolist())}


def _as_mask(region):
    height, width = region.inside.shape
    return "mask", {
        "rle": encode_runs(region.inside), "left": region.columns.start, "top": region.rows.start,
        "width": width, "height": height,
    }  # fmt: skip


CVAT = LabelFormat(
    "annotations.xml of CVAT (CVAT for images 1.1), or its folder",
    _recognise, _read, _write, lists_images=True,
)  # fmt: skip
