"""Panoptic labels of COCO: a PNG of segment ids for each image, and a JSON file of segments.

The id of a pixel is R + 256 G + 256**2 B; 0 is unlabelled. The PNGs are in the folder with the name
of the JSON file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.annotations.coco import (
    categories_of,
    category_of,
    coco_images,
    file_of_coco,
    files_of_coco,
    image_entry,
    image_id_of,
    read_categories,
)
from diffseg_jax.annotations.entries import (
    entry,
    json_bytes,
    object_in,
    objects,
)
from diffseg_jax.annotations.photos import Photos, name_of_split, safe_name, stem_of
from diffseg_jax.annotations.polygons import smallest_box
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    Notes,
)
from diffseg_jax.data.images import decode
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError, counted, shown


def is_panoptic(path: Path) -> bool:
    """Whether a path is a JSON file of COCO with segments, or a folder with one."""
    return len(files_of_coco(path, of_segments=True)) == 1


def read_panoptic(path: Path, photos: Photos) -> LabelledSet:
    """The segments of a JSON file, and of the PNGs in the folder of its name."""
    path = file_of_coco(path, of_segments=True)
    content, notes = object_in(path), Notes()
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise UserError(f"the PNGs of {path} must be in the folder {folder}, which there is not.")
    categories, colours = read_categories(content, path)
    images, annotations = coco_images(content, path), objects(content, "annotations", str(path))

    def each():
        unlabelled = dict(images)
        for number, annotation in enumerate(annotations):
            where = f"{path}, annotation {number}"
            image_id = image_id_of(annotation, images, where)
            unlabelled.pop(image_id, None)
            name, size, photo = image_entry(images[image_id], path, photos, notes)
            segments = _segments(annotation, categories, where)
            file = folder / safe_name(entry(annotation, "file_name", str, where), path)[0]
            regions = _regions_in(file, segments, size, where)
            yield LabelledImage(name, size, regions, photo=photo)
        for image in unlabelled.values():
            name, size, photo = image_entry(image, path, photos, notes)
            yield LabelledImage(name, size, photo=photo)

    classes = tuple(dict.fromkeys(categories.values()))
    return LabelledSet(classes, each(), colours, notes, count=len(images))


def _segments(annotation, categories, where):
    """{segment id: (class, whether it is a crowd)}."""
    segments = {}
    for segment in objects(annotation, "segments_info", where):
        key = entry(segment, "id", int, where)
        if key in segments or not 0 < key < 2**24:
            raise UserError(
                f"{where}: a segment has the id {shown(key)}, but ids are 1 to {2**24 - 1}, each "
                "of one segment."
            )
        segments[key] = category_of(segment, categories, where), segment.get("iscrowd") == 1
    return segments


def _regions_in(file, segments, size, where) -> Iterator[LabelledRegion]:
    """The segments in a PNG."""
    from scipy import ndimage  # a slow import

    image = decode(file)
    if image.mode not in ("RGB", "RGBA") or image.size[::-1] != size:
        raise UserError(
            f"{file} is {image.width}x{image.height} in mode {image.mode}, but {where} needs "
            f"{size[1]}x{size[0]} (width x height) in RGB. Export the PNG again."
        )
    channels = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
    ids, numbers = np.unique(
        channels[0] + 256 * (channels[1] + 256 * channels[2]), return_inverse=True
    )
    if unknown := [key for key in ids.tolist() if key and key not in segments]:
        raise UserError(
            f"{file} has {counted(len(unknown), 'id')} of no segment of {where}, such as "
            f"{unknown[0]}. Export both again."
        )
    numbers = numbers.reshape(size) + 1
    for number, (key, box) in enumerate(zip(ids.tolist(), ndimage.find_objects(numbers)), 1):
        if key:
            (name, crowd), (rows, columns) = segments[key], box
            inside, corner = numbers[box] == number, (columns.start, rows.start)
            yield LabelledRegion(name, mask=inside, corner=corner, crowd=crowd)


def write_panoptic(folder, labels, maps, options):
    """Writes panoptic.json and panoptic/<name>.png, one segment of each class of an image."""
    images, annotations = [], []
    file = folder / name_of_split("panoptic.json", options.split)
    for number, each in enumerate(maps, 1):
        height, width = each.ids.shape
        images.append({"id": number, "file_name": each.name, "height": height, "width": width})
        name = f"{stem_of(each.name)}.png"
        segments = [_segment(each.ids == index, index) for index in _classes_in(each.ids)]
        annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
        png = file.with_suffix("") / name
        png.parent.mkdir(parents=True, exist_ok=True)
        red = np.where(each.ids == IGNORE, 0, each.ids + np.uint8(1))
        Image.fromarray(np.stack([red, 0 * red, 0 * red], axis=-1)).save(png)
    categories = categories_of(labels, isthing=0)
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_bytes(json_bytes(content))


def _classes_in(ids):
    return [index for index in np.unique(ids).tolist() if index != IGNORE]


def _segment(inside, index):
    """The entry of the segment of a class."""
    box, corner = smallest_box(inside)
    return {
        "id": index + 1, "category_id": index + 1, "area": int(inside.sum()),
        "bbox": [*corner, *box.shape[::-1]], "iscrowd": 0,
    }  # fmt: skip


COCO_PANOPTIC = LabelFormat(
    "a panoptic .json file of COCO, beside the folder of its PNGs, or their folder",
    is_panoptic, read_panoptic, write_panoptic, lists_images=True,
)  # fmt: skip
