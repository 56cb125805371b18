"""Every format gives back the label maps that it was given, and refuses damaged files in words."""

import contextlib
import json
import shutil
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from diffseg_jax.annotations.conversion import ConvertOptions, convert_labels
from diffseg_jax.annotations.label_formats import recognised
from diffseg_jax.annotations.painting import PaintOptions
from diffseg_jax.annotations.regions import WriteOptions
from diffseg_jax.data.named_sets import CITYSCAPES
from diffseg_jax.errors import UserError
from label_cases import write_maps, write_photo
from label_files import ids_in, label_maps
from mutate import damaged

NAMES = ("road", "car", "sky")
OWN = ("cvat", "label_studio", "voc", "colours", "binary", "palette", "cityscapes")
WRITTEN = {  # a file of labels that each format writes, for a mask of the image a.png
    "cvat": "annotations.xml", "label_studio": "tasks.json", "voc": "SegmentationClass/a.png",
    "colours": "colour_masks/a.png", "binary": "binary_masks/road/a.png",
    "palette": "index_masks/a.png", "cityscapes": "gtFine/a_gtFine_labelIds.png",
}  # fmt: skip
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 5))
TABLES = {"voc": "labelmap.txt", "colours": "labelmap.txt", "label_studio": "label_config.xml"}


def there(folder, name, masks, polygons=False):
    """The folder that a format writes for masks {name: u8[H,W]}."""
    write_maps(folder / "masks_of_it", {f"{name}.png": masks[name] for name in masks}, NAMES)
    options = ConvertOptions(write=WriteOptions(polygons=polygons))
    convert_labels(folder / "masks_of_it", folder / "there", target=name, options=options)
    return folder / "there"


@pytest.mark.parametrize(
    "name, polygons", [*((name, False) for name in OWN), ("cvat", True), ("label_studio", True)]
)
def test_label_maps_return(tmp_path, name, polygons):
    rng = np.random.default_rng(0)
    masks = {n: rng.choice([0, 1, 2, 255], size) for n, size in (("a", (9, 5)), ("d/b", (4, 7)))}
    masks = {n: ids.astype(np.uint8) for n, ids in masks.items()}
    masks["a"][2:6, 1:4], masks["a"][3, 2] = 1, 255  # a hole
    folder = there(tmp_path, name, masks, polygons)
    assert recognised(folder) == name
    options = ConvertOptions(PaintOptions(classes=NAMES))
    done = convert_labels(folder, tmp_path / "back", options=options)
    assert (done.images, done.photos) == (2, 2)
    for stem, ids in masks.items():
        np.testing.assert_array_equal(ids_in(tmp_path / "back" / "masks" / f"{stem}.png"), ids)


@pytest.mark.parametrize("name", OWN)
def test_any_label_map_returns(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp(name)

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(arrays(np.uint8, SIZES, elements=st.sampled_from([0, 1, 255])))
    def returns(ids):
        if (ids == 255).all():
            return  # an image without labels is skipped
        for each in folder.iterdir():
            shutil.rmtree(each)
        maps, _, _ = label_maps(name, there(folder, name, {"a": ids}), classes=NAMES)
        np.testing.assert_array_equal(maps["a.png"], ids)

    returns()


@pytest.mark.parametrize("name", OWN)
def test_damaged_files_are_refused_in_words(tmp_path, name):
    """Whatever is read from them, nothing is written but below the output."""
    ids = np.array([[0, 0, 1, 255], [0, 2, 1, 1]], np.uint8)
    folder = there(tmp_path, name, {"a": ids})
    files = [WRITTEN[name], *([TABLES[name]] if name in TABLES else [])]
    before, start, refused, count = sorted(tmp_path.rglob("*")), time.monotonic(), 0, 0
    for number, file in enumerate(files):
        content = (folder / file).read_bytes()
        for damage in damaged(content, seed=number, count=-(-100 // len(files))):
            (folder / file).write_bytes(damage)
            with contextlib.suppress(UserError):
                recognised(folder)
            count += 1
            try:
                if name in ("cvat", "label_studio"):  # whose files hold the names of images
                    convert_labels(folder, tmp_path / "out", source=name)
                else:
                    label_maps(name, folder)
            except UserError:
                refused += 1
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (folder / file).write_bytes(content)
    assert sorted(tmp_path.rglob("*")) == before
    assert refused > count // 10
    assert time.monotonic() - start < 60


# ---- turned photographs ------------------------------------------------------------------------


def turned_photo(file):
    """A JPEG that is stored 4 high and 6 wide, and shown turned by 90 degrees, 6 high, 4 wide."""
    write_photo(file, (4, 6), orientation=6)


@pytest.mark.parametrize("drawn, row, column", [((6, 4), 0, 0), ((4, 6), 0, 3)])
@pytest.mark.parametrize("name", ["cvat", "label_studio"])
def test_labels_of_a_turned_photograph_lie_on_it(tmp_path, name, drawn, row, column):
    """As drawn on the upright image; or on the stored pixels, whose first one becomes the last."""
    height, width = drawn
    box = '<box label="car" xtl="0" ytl="0" xbr="1" ybr="1"/>'
    image = f'<image name="a.jpg" width="{width}" height="{height}">{box}</image>'
    value = {"x": 0, "y": 0, "width": 100 / width, "height": 100 / height}
    region = {
        "type": "rectanglelabels", "value": value | {"rectanglelabels": ["car"]},
        "original_width": width, "original_height": height,
    }  # fmt: skip
    task = {"data": {"image": "a.jpg"}, "annotations": [{"result": [region]}]}
    file = tmp_path / ("annotations.xml" if name == "cvat" else "a.json")
    text = f"<annotations>{image}</annotations>" if name == "cvat" else json.dumps([task])
    file.write_text(text)
    turned_photo(tmp_path / "images" / "a.jpg")
    convert_labels(file, tmp_path / "out", source=name)
    ids = ids_in(tmp_path / "out" / "masks" / "a.png")
    assert ids.shape == (6, 4)
    assert np.argwhere(ids == 0).tolist() == [[row, column]]


def test_labels_of_an_image_of_another_size_are_refused(tmp_path):
    folder = tmp_path / "in"
    turned_photo(folder / "images" / "a.jpg")
    (folder / "annotations.xml").write_text(
        '<annotations><image name="a.jpg" width="9" height="9">'
        '<box label="car" xtl="0" ytl="0" xbr="1" ybr="1"/></image></annotations>'
    )
    with pytest.raises(UserError, match="is 4x6, but its labels are of an image of 9x9"):
        convert_labels(folder, tmp_path / "out", source="cvat")


@pytest.mark.parametrize("photo_tag", [1, 6])
@pytest.mark.parametrize("tag", [1, 6])
@pytest.mark.parametrize("mask_size", [(6, 4), (4, 6)])
def test_a_mask_of_a_turned_photograph_lies_on_it(tmp_path, mask_size, tag, photo_tag):
    """A tag that a tool copied to an upright mask does not turn it."""
    if (mask_size, tag, photo_tag) == ((4, 6), 1, 1):
        return  # it does not fit
    size = (4, 6) if photo_tag == 6 else (6, 4)
    folder = tmp_path / "in"
    write_photo(folder / "images" / "a.jpg", size, orientation=photo_tag)
    mask, exif = np.zeros(mask_size, np.uint8), Image.Exif()
    mask[0, 0], exif[0x0112] = 255, tag
    (folder / "labels").mkdir()
    Image.fromarray(mask).save(folder / "labels" / "a.png", exif=exif)
    convert_labels(folder, tmp_path / "out", source="binary")
    ids = ids_in(tmp_path / "out" / "masks" / "a.png")
    at = [0, 0] if mask_size == (6, 4) else [0, 3]
    assert np.argwhere(ids == 1).tolist() == [at]


# ---- every class of Cityscapes -----------------------------------------------------------------


def test_all_classes_of_cityscapes_return(tmp_path):
    ids = np.array([[*range(19), 255]], np.uint8)
    write_maps(tmp_path / "a", {"x_leftImg8bit.png": ids}, CITYSCAPES.names)
    convert_labels(tmp_path / "a", tmp_path / "b", target="cityscapes")
    maps, _, _ = label_maps("cityscapes", tmp_path / "b")
    np.testing.assert_array_equal(maps["x_leftImg8bit.png"], ids)
