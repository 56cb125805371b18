"""Instances of COCO: one JSON file with polygons or run lengths of every object.

Its annotations have no order, so of overlapping ones the smaller is on top. The polygons of an
annotation are parts, whose union is meant; pycocotools fills them.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffseg_jax.annotations.entries import (
    begins_with,
    brief,
    checked_ring,
    class_name,
    colour_of,
    entry,
    image_size,
    json_bytes,
    object_in,
    objects,
)
from diffseg_jax.annotations.mask_pairs import located
from diffseg_jax.annotations.photos import Photos, name_of_split
from diffseg_jax.annotations.polygons import smallest_box, traced
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    Notes,
)
from diffseg_jax.annotations.run_lengths import compressed, decoded_run_lengths
from diffseg_jax.errors import UserError, shown
from diffseg_jax.inference.contours import Region, run_lengths

IN_FOLDER = "annotations/*.json"
MAX_OUTLINE = 1e7  # pixels; pycocotools takes 40 bytes for each
NO_ANNOTATION = re.compile(rb'"annotations"\s{0,20}:\s{0,20}\[\s{0,20}\]')
COCO_KEYS = ('"annotations"', '"images"', '"categories"', '"info"', '"licenses"')


def is_coco(path: Path) -> bool:
    """Whether a path is a JSON file of COCO with instances, or a folder with one."""
    return len(files_of_coco(path, of_segments=False)) == 1


def files_of_coco(path: Path, of_segments: bool) -> list[Path]:
    """The JSON files of COCO that a path is, or that are in it or its folder annotations.

    of_segments  whether panoptic ones are meant, or those with instances
    """
    files = [path] if path.is_file() else sorted([*path.glob("*.json"), *path.glob(IN_FOLDER)])
    found = [file for file in files if begins_with(file, *COCO_KEYS)]
    return [file for file in found if _mentions_segments(file) is of_segments]


def file_of_coco(path: Path, of_segments: bool) -> Path:
    """The only JSON file of COCO of a path; UserError if there is none, or more than one."""
    if path.is_file():
        return path
    found = files_of_coco(path, of_segments)
    if len(found) == 1:
        return found[0]
    listed = f"several: {', '.join(file.name for file in found)}" if found else "none"
    raise UserError(f"--input is a .json file of COCO, or a folder with one; {path} has {listed}.")


def _mentions_segments(path):
    """Whether a JSON file of COCO is a panoptic one; None for boxes, captions and others.

    One with an empty list of annotations is none.
    """
    with open(path, "rb") as stream:
        before, no_annotation = b"", None
        while block := stream.read(2**20):
            if b'"segments_info"' in before + block:
                return True
            if b'"segmentation"' in before + block:
                return False
            no_annotation = no_annotation or NO_ANNOTATION.search(before + block)
            before = block[-100:]
    return False if no_annotation else None


def read_coco(path: Path, photos: Photos) -> LabelledSet:
    """The instances in a JSON file; boxes without a segmentation are skipped."""
    path = file_of_coco(path, of_segments=False)
    content, notes = object_in(path), Notes()
    categories, colours = read_categories(content, path)
    images, annotations = coco_images(content, path), {}
    for number, annotation in enumerate(objects(content, "annotations", str(path))):
        where = f"{path}, annotation {number}"
        image_id = image_id_of(annotation, images, where)
        name = category_of(annotation, categories, where)
        annotations.setdefault(image_id, []).append((where, name, annotation))

    def each():
        for image_id, image in images.items():
            found = annotations.pop(image_id, [])
            name, size, photo = image_entry(image, path, photos, notes)
            yield LabelledImage(name, size, _regions(found, size, notes), photo=photo)

    classes = tuple(dict.fromkeys(categories.values()))
    return LabelledSet(classes, each(), colours, notes, count=len(images))


def read_categories(content: dict, path) -> tuple[dict, tuple]:
    """({category id: class name}, colours of the classes or ()) of a file of COCO.

    Categories of the same name are one class. Raises UserError for an id that stands twice.
    """
    names, colours = {}, {}
    for number, category in enumerate(objects(content, "categories", str(path))):
        where = f"{path}, category {number}"
        key = entry(category, "id", int, where)
        if key in names:
            raise UserError(f"{where}: the id {shown(key)} is that of another category as well.")
        names[key] = class_name(category.get("name"), where)
        colours.setdefault(names[key], colour_of(category.get("color")))
    return names, tuple(colours.values()) if all(colours.values()) else ()


def category_of(annotation: dict, categories: dict, where: str) -> str:
    """The class of an annotation or segment; UserError if there is no such category."""
    key = entry(annotation, "category_id", int, where)
    if key not in categories:
        raise UserError(f"{where}: there is no category with the id {shown(key)}.")
    return categories[key]


def image_id_of(annotation: dict, images: dict, where: str):
    """The id of the image of an annotation; UserError if there is no such image."""
    image_id = _id(annotation.get("image_id"))
    if not isinstance(image_id, int | str) or image_id not in images:
        raise UserError(f"{where}: there is no image with the id {brief(image_id)}.")
    return image_id


def _id(value):
    """The id of an image; whole, where programs without integers wrote 1.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def coco_images(content: dict, path) -> dict:
    """{image id: entry} of a file of COCO; UserError for an id that stands twice."""
    images = {}
    for number, image in enumerate(objects(content, "images", str(path))):
        key = _id(image.get("id"))
        if not isinstance(key, int | str) or key in images:
            raise UserError(
                f"{path}, image {number}: the id is {brief(key)}, but must be a whole number or "
                "text that no other image has."
            )
        images[key] = image
    return images


def image_entry(image: dict, path, photos: Photos, notes: Notes):
    """(name, (height, width), image file or None) of an image.

    The file is looked for in images/ beside the JSON file, beside it, and in the folders above
    these; the size is that of the file where none is written.
    """
    where = f"{path}, image {brief(image['id'])}"
    name, photo = located(entry(image, "file_name", str, where), path, notes)
    if photo is None:
        photo = located(name, path.parent, notes)[1]
    height, width = image.get("height"), image.get("width")
    if height is None and width is None:
        given = photo if photos.folder is None else photos.find(name)
        if given is None:
            raise UserError(f'{where} has no "height" and "width". Give the image by --images.')
        return name, given.size, photo
    return name, image_size(height, width, where), photo


def _regions(annotations, size, notes) -> Iterator[LabelledRegion]:
    for where, name, annotation in annotations:
        shape = annotation.get("segmentation")
        if isinstance(shape, dict):
            inside, corner = decoded_run_lengths(shape, size, where)
        elif isinstance(shape, list) and (rings := _rings(shape, where, notes)):
            inside, corner = filled_by_coco(rings, size, where)
        elif shape in (None, []):
            notes.add("skipped", "annotation", "without a segmentation, as a box is", where)
            continue
        elif isinstance(shape, list):
            continue
        else:
            raise UserError(f'{where}: "segmentation" must be polygons or run lengths.')
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise UserError(f'{where}: "iscrowd" is {brief(crowd)}, but must be 0 or 1.')
        yield LabelledRegion(name, mask=inside, corner=corner, crowd=bool(crowd))


def _rings(parts, where, notes):
    """f64[N,2] of the polygons of an annotation; those without an area are skipped."""
    if parts and not isinstance(parts[0], list):
        parts = [parts]  # a single polygon
    rings = []
    for part in parts:
        if not isinstance(part, list):
            raise UserError(f"{where}: a polygon is {brief(part)}, but must be a list of numbers.")
        if len(part) < 6:
            notes.add("skipped", "polygon", "of one or two corners", where)
        else:
            rings.append(checked_ring(part, where))
    return rings


def filled_by_coco(rings, size, where) -> tuple[np.ndarray, tuple[int, int]]:
    """(bool[h,w], corner) of the union of rings f64[N,2], as pycocotools fills them.

    Raises UserError without pycocotools, and for outlines for which it would take too much memory.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError(
            f"{where} is a polygon, which pycocotools fills by the rule of COCO: pip install "
            '"diffseg_jax[labels]".'
        )
    from pycocotools import mask

    height, width = size
    length = sum(np.abs(ring - np.roll(ring, 1, axis=0)).max(axis=1).sum() for ring in rings)
    if length > MAX_OUTLINE:
        raise UserError(
            f"{where}: the outline is {length:.0f} pixels long, in an image of {width}x{height}. "
            "Correct the coordinates."
        )
    flat = [ring.ravel().tolist() for ring in rings]
    encoded = mask.merge(mask.frPyObjects(flat, height, width))
    return smallest_box(mask.decode(encoded).astype(bool))


def write_coco_instances(folder, labels, maps, options):
    """Writes instances.json: an annotation of every connected region, as run lengths.

    With options.polygons, regions without holes are polygons along the borders of pixels.
    """
    images, annotations = [], []
    for number, each in enumerate(maps, 1):
        size = each.ids.shape
        image = {"id": number, "file_name": each.name, "height": size[0], "width": size[1]}
        images.append(image)
        for region in traced(each.ids):
            entries = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            annotations.append(entries | described_region(region, size, options.polygons))
    categories = categories_of(labels)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name_of_split("instances.json", options.split)).write_bytes(json_bytes(content))


def categories_of(labels, **more) -> list[dict]:
    """The categories of COCO, whose ids count from 1."""
    return [
        {"id": index, "name": name, "supercategory": "", "color": list(colour), **more}
        for index, (name, colour) in enumerate(zip(labels.names, labels.palette), 1)
    ]


def described_region(region: Region, size, as_polygon: bool) -> dict:
    """The entries of an annotation about a region: its class, outline, area and box."""
    outer, *holes = region.rings()
    if as_polygon and not holes:
        shape = [outer.ravel().tolist()]
    else:
        shape = {"size": list(size), "counts": compressed(run_lengths(region, size)["counts"])}
    corner = [region.columns.start, region.rows.start]
    return {
        "category_id": region.label + 1,
        "segmentation": shape,
        "area": region.area,
        "bbox": [*corner, *region.inside.shape[::-1]],
    }


COCO_INSTANCES = LabelFormat(
    "a .json file of COCO with polygons or run lengths, or a folder with one",
    is_coco, read_coco, write_coco_instances, overlap="smallest", lists_images=True,
)  # fmt: skip
