"""Label maps, image files and conversions for the tests of labels."""

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
from PIL import Image

from diffseg_jax.annotations.conversion import ConvertOptions, convert_labels
from diffseg_jax.annotations.painting import PaintOptions
from diffseg_jax.annotations.regions import WriteOptions
from diffseg_jax.data.labels import IGNORE

NAMES = ("sky", "road", "tree")
IDS = strategies.sampled_from([0, 1, 2, IGNORE])
MAPS = arrays.arrays(np.uint8, strategies.tuples(*[strategies.integers(1, 7)] * 2), elements=IDS)
LABELLED_MAPS = MAPS.filter(lambda ids: (ids != IGNORE).any())


def write_photo(file: Path, size=(4, 6), orientation=1):
    """A grey image file of (height, width) stored pixels, with an EXIF orientation."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1], (90, 90, 90))
    exif = image.getexif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(file, exif=exif)
    return file


def write_maps(folder: Path, maps, names=NAMES, photos=True) -> Path:
    """A folder of images, masks and classes.json; maps: {name of an image: u8[H,W]}."""
    for name, ids in maps.items():
        mask = (folder / "masks" / name).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(mask)
        if photos:
            write_photo(folder / "images" / name, ids.shape)
    (folder / "classes.json").write_text(json.dumps({"names": list(names)}))
    return folder


def write_object(file: Path, content) -> Path:
    """A JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def maps_of(folder: Path) -> dict[str, list]:
    """The label maps below a folder, as lists, by relative path."""
    files = sorted((folder / "masks").rglob("*.png"))
    return {
        file.relative_to(folder / "masks").as_posix(): np.asarray(Image.open(file)).tolist()
        for file in files
    }


def names_of(folder: Path) -> list[str]:
    """The classes of a folder of masks."""
    return json.loads((folder / "classes.json").read_text())["names"]


def converted(
    path, output, source=None, target="masks", images=None, *, polygons=False, empty="skip",
    split="", photo_files="copy", **rules,
):  # fmt: skip
    """The result of a conversion, with options by name."""
    write = WriteOptions(polygons, split)
    options = ConvertOptions(PaintOptions(**rules), photo_files, empty, write)
    return convert_labels(str(path), str(output), target, source, images and str(images), options)


def as_maps(path, output, source=None, **given) -> dict[str, list]:
    """The label maps that labels become, by the name of their file."""
    converted(path, output, source, **given)
    return maps_of(output)
