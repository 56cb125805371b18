"""Where an image lies on a map: read from tags and world files, and kept in what is written."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from diffseg_jax.data.images import read_image
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.inference.contours import geojson, regions_of
from diffseg_jax.inference.georeference import (
    KEYS,
    SCALE,
    TAG_TYPES,
    TIEPOINTS,
    TRANSFORMATION,
    Georeference,
    georeference_of,
)
from diffseg_jax.inference.saved import SaveOptions, label_image, path_of, write_image
from diffseg_jax.inference.views import predict_whole

pytestmark = pytest.mark.quick

UTM = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)  # projected, EPSG:32633
DEGREES = (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326)
POINT = (1, 1, 0, 2, 1025, 0, 1, 2, 3072, 0, 1, 32633)
SIZES = {SCALE: (0.5, 0.25, 0.0), TIEPOINTS: (2.0, 4.0, 0.0, 1000.0, 5000.0, 0.0)}
CORNER = [999.0, 5001.0]  # 2 pixels of 0.5 to the left, 4 of 0.25 up
TURNED = (0.0, 2.0, 0.0, 7.0, 3.0, 0.0, 0.0, 9.0, *8 * (0.0,))
POINTS = {TIEPOINTS: (0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 9.0, 0.0, 0.0, 3.0, 2.0, 0.0)}
CASES = {  # tags, the map coordinates of (0, 0), the code
    "metres": ({**SIZES, KEYS: UTM}, CORNER, 32633),
    "degrees": ({**SIZES, KEYS: DEGREES}, CORNER, 4326),
    "points": ({**SIZES, KEYS: POINT}, [998.75, 5001.125], 32633),
    "turned": ({TRANSFORMATION: TURNED, KEYS: UTM}, [7.0, 9.0], 32633),
    "no system": (SIZES, CORNER, None),
    "control points": ({**POINTS, KEYS: DEGREES}, None, 4326),
}


def save_tiff(path, tags, image=None, **options):
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory.tagtype[tag] = TAG_TYPES.get(tag, TiffImagePlugin.TiffTags.SHORT)
        directory[tag] = value
    image = Image.new("RGB", (6, 5)) if image is None else image
    image.save(path, tiffinfo=directory, **options)
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_tags_are_kept_and_say_where_pixels_are(tmp_path, case):
    tags, corner, code = CASES[case]
    place = georeference_of(save_tiff(tmp_path / "a.tif", tags))
    assert place.tags == tags and place.epsg == code
    assert place.matrix is None if corner is None else place.matrix[:, 2].tolist() == corner
    labels = np.arange(30, dtype=np.uint8).reshape(5, 6) % 3
    for values in (labels, labels.astype(np.float32) / 7):
        (tmp_path / "b.tif").write_bytes(place.write_tiff(Image.fromarray(values)))
        assert georeference_of(str(tmp_path / "b.tif")) == place
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.tif")), values)


def test_images_without_a_place_have_none(tmp_path):
    assert georeference_of(save_tiff(tmp_path / "a.tif", {})) is None
    turned = Image.new("RGB", (6, 5)).getexif()
    turned[274] = 6
    Image.new("RGB", (6, 5)).save(tmp_path / "b.png", exif=turned)
    (tmp_path / "c.tif").write_bytes(b"II*\0no tiff")
    (tmp_path / "c.tfw").write_text("1 0 0 -1 0.5")
    for name in ("b.png", "c.tif", "missing.tif"):
        assert georeference_of(str(tmp_path / name)) is None


@pytest.mark.parametrize("names", ["a.jpg a.jgw", "a.png a.wld", "a.tif a.tfw", "a.tif a.tifw"])
def test_a_world_file_says_it_too(tmp_path, names):
    image, world = names.split()
    Image.new("RGB", (6, 5)).save(tmp_path / image)
    (tmp_path / world).write_text("0.5\n0\n0\n-0.25\n10.25\n19.875\n")  # middle of the first pixel
    place = georeference_of(str(tmp_path / image))
    assert place.matrix.tolist() == [[0.5, 0, 10], [0, -0.25, 20]] and place.epsg is None
    (tmp_path / "b.tif").write_bytes(place.write_tiff(Image.new("L", (6, 5))))
    assert georeference_of(str(tmp_path / "b.tif")) == place


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_an_image_that_its_orientation_turns_has_no_place(tmp_path, name):
    for orientation in (1, 6):
        turned = Image.Exif()
        turned[274] = orientation
        Image.new("RGB", (6, 5)).save(tmp_path / name, exif=turned)
        (tmp_path / "a.wld").write_text("0.5 0 0 -0.25 10.25 19.875")
        assert (georeference_of(str(tmp_path / name)) is None) == (orientation == 6)
        place = georeference_of(save_tiff(tmp_path / "b.tif", {**SIZES, 274: orientation}))
        assert (place is None) == (orientation == 6)


@pytest.mark.parametrize("case", CASES)
def test_contours_have_map_coordinates_with_the_interior_on_the_left(case):
    tags, corner, code = CASES[case]
    labels = np.zeros((4, 5), np.uint8)
    labels[1:3, 1:4] = 1
    shape = geojson("a", list(regions_of(labels, 0.0 * labels)), (4, 5), ["x", "y"],
                    Georeference(tags))  # fmt: skip
    assert json.loads(json.dumps(shape))["size"] == [4, 5]
    if corner is None:
        assert shape["units"].startswith("pixels") and "crs" not in shape
        return
    assert ("crs" in shape) == (code is not None) and str(code or "map") in shape["units"]
    ring = np.array(shape["features"][1]["geometry"]["coordinates"][0])
    corners = np.array([[1, 1], [4, 1], [4, 3], [1, 3]])
    matrix = Georeference(tags).matrix
    assert {*map(tuple, ring)} == {*map(tuple, corners @ matrix[:, :2].T + matrix[:, 2])}
    assert np.array_equal(ring[0], ring[-1]) and len(ring) == 5
    (x, y), pixel = ring.T, abs(np.linalg.det(matrix[:, :2]))
    assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2 == pytest.approx(6 * pixel)


def test_the_files_of_an_image_are_on_the_map_too(tmp_path):
    probs = np.random.default_rng(0).dirichlet((1, 1, 1), (1, 5, 6)).astype(np.float32)
    maps, place = predict_whole(probs)[0], Georeference({**SIZES, KEYS: UTM})
    labels, options = Labels(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (200, 0, 0))), SaveOptions()
    write_image(tmp_path, "a", np.zeros((5, 6, 3), np.uint8), maps, labels, options, place)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {path_of("", "a", end)[1:] for end in options.endings(georeferenced=True)}
    assert options.described(georeferenced=True).keys() == set(options.endings(True))
    for end, values in (("labels", maps.labels), ("uncertainty", maps.uncertainty)):
        path = tmp_path / f"a_{end}.tif"
        assert georeference_of(str(path)) == place
        np.testing.assert_array_equal(np.asarray(Image.open(path)), values)
    shown = Image.open(tmp_path / "a_labels.tif").convert("RGB")
    wanted = label_image(maps.labels, labels.palette).convert("RGB")
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(wanted))


def test_measurements_are_refused_with_the_command_that_makes_an_image(tmp_path, caplog):
    header, entries = b"II*\0\x08\0\0\0", []
    values = {256: 2, 257: 2, 258: 16, 259: 1, 262: 1, 273: 8, 277: 5, 278: 2, 279: 40}
    for tag, value in values.items():
        entries.append(b"".join(n.to_bytes(s, "little") for n, s in
                                ((tag, 2), (4, 2), (1, 4), (value, 4))))  # fmt: skip
    directory = len(entries).to_bytes(2, "little") + b"".join(entries) + bytes(4)
    (tmp_path / "my map.tif").write_bytes(header + directory + bytes(40))
    with caplog.at_level(logging.CRITICAL), pytest.raises(UserError) as error:
        read_image(str(tmp_path / "my map.tif"))
    assert "it has 5 bands of 16 bits" in str(error.value)
    command = re.search(r"Try (gdal_translate .*), which", str(error.value))[1]
    assert command.endswith(f"-ot Byte -scale -b 1 -b 2 -b 3 '{tmp_path}/my map.tif' rgb.tif")
