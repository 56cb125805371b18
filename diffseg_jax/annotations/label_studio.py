"""Label Studio: its JSON export, with brushed regions, bitmasks and outlines.

Coordinates are percent of the width and height of the upright image. Later regions of an annotation
are drawn over earlier ones. Of the annotations of a task the last one that was completed counts, or
the one that was marked as ground truth; those that were skipped, predictions and drafts do not.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from diffseg_jax.annotations.brush_rle import decode_brush, encode_brush
from diffseg_jax.annotations.entries import (
    begins_with,
    class_name,
    colour_of,
    corners,
    entry,
    image_size,
    is_number,
    json_bytes,
    objects,
    of_type,
)
from diffseg_jax.annotations.mask_pairs import located
from diffseg_jax.annotations.photos import Photo, Photos, name_of_split
from diffseg_jax.annotations.plain_xml import read_plain_xml
from diffseg_jax.annotations.polygons import ellipse, joined_ring, rectangle, smallest_box, traced
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    LabelMap,
    Notes,
    WriteOptions,
)
from diffseg_jax.data.files import ends_with
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.images import decode, read_file
from diffseg_jax.data.json_text import read_user_json
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_atomically

TASKS_FILE, CONFIG_FILE = "tasks.json", "label_config.xml"
AREAS = ("brush", "bitmask", "polygon", "rectangle", "ellipse")  # types, or with "labels" behind
SIZE_KEYS = {"original_width", "original_height"}
LABEL_TAGS = tuple(f"{kind.title()}Labels" for kind in AREAS) + ("Labels",)  # of its interface
HASHED = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio puts before names of uploaded files
MOST_PERCENT = 1e4  # percent, of coordinates
AGAIN_JSON = "Export the project again, as JSON."


def _json_of(path):
    """The JSON file of a path, which may be a folder with a single one in it."""
    if not path.is_dir():
        return path
    found = [each for each in path.iterdir() if each.suffix.lower() == ".json"]
    return found[0] if len(found) == 1 else path


def _recognise(path: Path) -> bool:
    file, parts = _json_of(path), ('"annotations"', '"completions"', '"annotation_id"')
    return begins_with(file, *parts) and begins_with(file, '"result"', parts[-1])


# ---- tasks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """The results of a task: name and file of its image, where it stands, for errors."""

    name: str
    photo: Photo | None
    where: str
    results: list[dict]

    def areas(self):
        """The results that are labelled regions."""
        return [each for each in self.results if _kind(each) in AREAS and _labels(each)]


def _read(path: Path, photos: Photos) -> LabelledSet:
    path, notes = _json_of(path), Notes()
    tasks = list(_tasks(path, photos, notes))
    if not tasks:
        raise UserError(f"{path} holds no completed annotation. {AGAIN_JSON}")
    found = dict.fromkeys(_label(area, task.where) for task in tasks for area in task.areas())
    known = _configured(path.parent / CONFIG_FILE)
    if not found and not known:
        raise UserError(
            f"{path} holds no brushed region, polygon, rectangle or ellipse with a label. "
            f"{AGAIN_JSON}"
        )
    classes = known | {name: known.get(name) for name in found}
    images = (_image(task, photos, notes) for task in tasks)
    colours = tuple(classes.values()) if all(classes.values()) else ()
    return LabelledSet(
        tuple(classes), images, colours, notes, are_found=not known, count=len(tasks)
    )


def _tasks(path, photos, notes) -> Iterator[_Task]:
    """The tasks with a completed annotation."""
    content = read_user_json(path)
    content = [content] if isinstance(content, dict) else content
    for number, task in enumerate(of_type(content, list, "the content", str(path))):
        where = f"{path}, task {number}"
        of_type(task, dict, "the task", where)
        name, photo = located(_image_of(task, photos, where), path, notes)
        where = f"{path}, image {name}"
        annotation = _completed(task, where)
        if annotation is None:
            notes.add("skipped", "image", "without a completed annotation", name)
        else:
            yield _Task(name, photo, where, _merged(objects(annotation, "result", where), where))


def _configured(file):
    """{label: colour or None} of a labelling interface beside the export; {} without one."""
    if not file.is_file():
        return {}
    root = read_plain_xml(read_file(file), file)
    labels = [label for tag in root.iter() if tag.tag in LABEL_TAGS for label in tag.iter("Label")]
    return {
        class_name(label.get("value"), str(file)): colour_of(label.get("background"))
        for label in labels
    }


def _image_of(task, photos, where):
    """The name of the image file of a task: without what Label Studio adds, and unquoted.

    An uploaded file is called abcdef01-a.jpg in its own folder; that name counts if it is there.
    """
    if "data" not in task:
        raise UserError(f'{where} has no "data"; JSON-MIN leaves out what is needed. {AGAIN_JSON}')
    values = entry(task, "data", dict, where)
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    images = {text for text in texts.values() if ends_with(_file_of(text), image_endings())}
    images = images or {texts[key] for key in ("image", "img") if key in texts}
    if len(images) != 1:
        raise UserError(
            f'{where}: "data" names {len(images)} image files, but must name one. {AGAIN_JSON}'
        )
    (address,) = images
    file = _file_of(address)
    uploaded = HASHED.fullmatch(file) if "/upload/" in address else None
    return uploaded[1] if uploaded and photos.find(file) is None else file


def _file_of(address):
    """The file of "/data/upload/1/abcdef01-a.jpg", "/data/local-files/?d=b/a.jpg", "s3://b/a.jpg"."""
    try:
        parts = urlsplit(address)
        query = parse_qs(parts.query)
    except ValueError:
        return address
    if "local-files" in parts.path and "d" in query:
        return query["d"][0].lstrip("/")
    if not parts.scheme and not parts.path.startswith("/data/"):
        return address  # a path, whose "?" and "%" are its own
    return unquote(parts.path).rpartition("/")[2]


def _completed(task, where):
    """The last annotation of a task that was completed, by its time where all have one; or None.

    Those that were marked as ground truth come before all others.
    """
    key = "annotations" if "annotations" in task else "completions"
    if key not in task and "result" in task:  # as the export of single files has it
        return task
    found = [each for each in objects(task, key, where) if not each.get("was_cancelled")]
    found = [each for each in found if each.get("ground_truth") is True] or found
    times = [each.get("updated_at") or each.get("created_at") for each in found]
    if found and all(isinstance(time, str) for time in times):
        return found[max(range(len(found)), key=lambda at: (times[at], at))]
    return found[-1] if found else None


def _merged(results, where):
    """The results of an annotation; those with the same id, of separate tags, as one."""
    merged = {}
    for number, result in enumerate(results):
        value = result.get("value", {})
        of_type(value, dict, f'"value" of result {number}', where)
        key = result.get("id") if isinstance(result.get("id"), str) else number
        if key in merged and _kind(result) not in AREAS:
            before = merged[key]
            merged[key] = before | {"value": value | before["value"]}
        elif key in merged:
            before = merged[key]["value"] if _kind(merged[key]) not in AREAS else {}
            merged[key] = result | {"value": before | value}
        else:
            merged[key] = result | {"value": value}
    return list(merged.values())


def _kind(result):
    """The type of a region without "labels", such as "brush"."""
    kind = result.get("type")
    return kind.lower().removesuffix("labels") if isinstance(kind, str) else ""


def _labels(result):
    """The labels of a region, [] if it has none."""
    value = result["value"]
    keys = [f"{_kind(result)}labels", "labels", *(k for k in value if k.endswith("labels"))]
    listed = next((value[key] for key in keys if value.get(key)), [])
    return listed if isinstance(listed, list) else []


def _label(result, where):
    return class_name(_labels(result)[0], f"{where}, a region of type {_kind(result)}")


# ---- regions -----------------------------------------------------------------------------------


def _image(task, photos, notes):
    for result in task.results:
        kind, labels = _kind(result), _labels(result)
        if kind in AREAS and len(labels) != 1:
            rest = "with several labels: the first counts" if labels else "without a label"
            notes.add("read" if labels else "not read", "region", rest, task.name)
        elif kind not in AREAS and result["value"]:
            rest = f"of type {kind or 'unknown'}, which is no area"
            notes.add("not read", "result", rest, task.name)
    areas, where = task.areas(), task.where
    sizes = {_size(area, where) for area in areas if SIZE_KEYS & area.keys()}
    if len(sizes) > 1:
        raise UserError(f"{where}: its regions are of images of several sizes. {AGAIN_JSON}")
    if not sizes:  # there is no region, or it is of an old version
        photo = task.photo or photos.find(task.name)
        if photo is None:
            raise UserError(
                f"{where}: no region says the size of the image. Give the folder of the images as "
                "--images."
            )
        sizes = {photo.size}
    (size,) = sizes
    regions = (_region(area, size, where) for area in areas)
    return LabelledImage(task.name, size, regions, photo=task.photo)


def _size(area, where):
    keys = ("original_height", "original_width")
    return image_size(*(entry(area, key, int, where) for key in keys), where)


def _region(result, size, where) -> LabelledRegion:
    name, value, kind = _label(result, where), result["value"], _kind(result)
    height, width = size
    if kind in ("brush", "bitmask"):
        opacity = (_brush if kind == "brush" else _bitmask)(value, size, where)
        # Borders may be smoothed, and old versions painted with half of the opacity.
        inside = opacity >= max((int(opacity.max()) + 1) // 2, 1)
        mask, corner = smallest_box(inside)
        return LabelledRegion(name, mask=mask, corner=corner)
    scale = np.array([width, height]) / 100
    if kind == "polygon":
        ring = corners(entry(value, "points", list, where), where) * scale
    elif kind == "rectangle":
        x, y, w, h = _percents(value, ("x", "y", "width", "height"), where) * np.tile(scale, 2)
        ring = rectangle(x, y, w, h, _angle(value, where), about_corner=True)
    else:
        x, y, rx, ry = _percents(value, ("x", "y", "radiusX", "radiusY"), where) * np.tile(scale, 2)
        ring = ellipse(x, y, rx, ry, _angle(value, where))
    return LabelledRegion(name, (ring,))


def _brush(value, size, where):
    """The opacity u8[H,W] of a brushed region; an empty one has no bytes."""
    if value.get("rle") == []:
        return np.zeros(size, np.uint8)
    return decode_brush(value.get("rle"), size, where)


def _bitmask(value, size, where):
    """The opacity u8[H,W] of a bitmask, a PNG as text: black on a transparent background."""
    text = entry(value, "imageDataURL", str, where).partition("base64,")[2]
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise UserError(f"{where}: a bitmask is damaged ({error}). {AGAIN_JSON}") from None
    image = decode(f"{where}: a bitmask", content)
    if image.size != size[::-1] or not image.mode.endswith("A"):
        raise UserError(
            f"{where}: a bitmask must be a PNG of {size[1]}x{size[0]} pixels with transparency, "
            f"but is {image.width}x{image.height} (mode {image.mode}). {AGAIN_JSON}"
        )
    return np.asarray(image.getchannel("A"))


def _percents(value, keys, where):
    for key in keys:
        if not is_number(value.get(key)) or abs(value[key]) > MOST_PERCENT:
            raise UserError(
                f'{where}: "{key}" of a region must be a number in percent. {AGAIN_JSON}'
            )
    return np.array([value[key] for key in keys], float)


def _angle(value, where):
    """The angle of a region in degrees, clockwise."""
    return float(_percents({"rotation": 0} | value, ("rotation",), where)[0])


# ---- writing -----------------------------------------------------------------------------------


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """tasks.json with a brushed region per class, or polygons; label_config.xml for the project.

    The addresses of images are those of local storage whose document root is their folder.
    """
    tasks = []
    for each in maps:
        regions = _polygons(each) if options.polygons else _brushed(each)
        result = [_result(labels, each, number, *part) for number, part in enumerate(regions)]
        tasks.append({
            "data": {"image": f"/data/local-files/?d={quote(each.name)}"},
            "annotations": [{"was_cancelled": False, "result": result}],
        })  # fmt: skip
    write_atomically(folder / name_of_split(TASKS_FILE, options.split), json_bytes(tasks))
    write_atomically(folder / CONFIG_FILE, _config(labels, options.polygons).encode())


def _result(labels, each, number, kind, label, value):
    height, width = each.ids.shape
    return {
        "id": f"r{number}", "type": f"{kind}labels", "from_name": "label", "to_name": "image",
        "original_width": width, "original_height": height, "image_rotation": 0,
        "value": value | {f"{kind}labels": [labels.names[label]]},
    }  # fmt: skip


def _brushed(each) -> Iterator[tuple[str, int, Mapping]]:
    for label in np.unique(each.ids[each.ids != 255]).tolist():
        yield "brush", label, {"format": "rle", "rle": encode_brush(each.ids == label)}


def _polygons(each) -> Iterator[tuple[str, int, Mapping]]:
    scale = 100 / np.array(each.ids.shape[::-1])
    for region in traced(each.ids):
        ring = joined_ring(region.rings()) * scale
        yield "polygon", region.label, {"points": ring.tolist(), "closed": True}


def _config(labels, polygons):
    """The labelling interface with the classes."""
    tag = "PolygonLabels" if polygons else "BrushLabels"
    rows = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>\n'
        for name, colour in zip(labels.names, labels.palette)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <{tag} name="label" toName="image">\n{rows}  </{tag}>\n</View>\n'
    )


LABEL_STUDIO = LabelFormat(
    "the JSON export of Label Studio: brush, bitmasks, polygons, rectangles, ellipses",
    _recognise, _read, _write, lists_images=True,
)  # fmt: skip
