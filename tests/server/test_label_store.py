"""Labels on disk: whatever was painted is there, also after a kill."""

import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffseg_jax.data.images import decode
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError
from diffseg_jax.server.label_store import KEEP, Outdated
from diffseg_jax.server.map_png import BandedPng
from diffseg_jax.server.page_classes import read_project_classes
from diffseg_jax.server.page_images import encoded_image, list_images, thumbnail
from page_case import LABELS, NAMES, open_store, write_images

HEIGHT, WIDTH = 12, 16  # of photo_0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos"))


@st.composite
def patches(draw):
    x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    width, height = draw(st.integers(1, WIDTH - x)), draw(st.integers(1, HEIGHT - y))
    ids = st.sampled_from([0, 1, 2, KEEP, 255])
    values = draw(st.lists(ids, min_size=width * height, max_size=width * height))
    return (x, y, width, height), np.array(values, np.uint8).reshape(height, width)


@settings(max_examples=25, deadline=None)
@given(st.lists(patches(), max_size=4))
def test_patches_paint_what_a_simple_array_would_hold(photos, tmp_path_factory, strokes):
    folder = tmp_path_factory.mktemp("annotated")
    store, expected = open_store(photos, folder), np.full((HEIGHT, WIDTH), 255, np.uint8)
    for revision, (box, values) in enumerate(strokes):
        x, y, width, height = box
        inside = expected[y : y + height, x : x + width]
        before = inside.copy()
        inside[...] = np.where(values == KEEP, inside, values)
        done = store.patch(0, box, values, revision)
        counts = np.bincount(expected.ravel(), minlength=256)[:3].tolist()
        assert done == {"revision": revision + 1, "counts": counts}
    again = open_store(photos, folder)
    np.testing.assert_array_equal(again.labels(0)[0], expected)
    assert again.described(0) == store.described(0)
    if strokes:  # undo is a patch of what was there before
        again.patch(0, box, before, revision + 1)
        inside[...] = before
        np.testing.assert_array_equal(open_store(photos, folder).labels(0)[0], expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.integers(1, 40), st.randoms(use_true_random=False), st.data())
def test_a_png_of_bands_is_the_map_and_that_of_one_go(height, width, numbers, data):
    """With checksums that Pillow verifies, whichever rows have changed."""
    pixels = np.frombuffer(numbers.randbytes(height * width), np.uint8).reshape(height, width)
    first = data.draw(st.integers(0, height - 1))
    last = data.draw(st.integers(first + 1, height))
    changed = pixels.copy()
    changed[first:last] = numbers.randrange(256)
    png = BandedPng(pixels).changed(changed, first, last)
    assert png.content({"a": "b"}) == BandedPng(changed).content({"a": "b"})
    opened = decode("a.png", png.content({"counts": "[1, 2]"}))
    np.testing.assert_array_equal(np.asarray(opened), changed)
    assert opened.info["counts"] == "[1, 2]"


PAINTER = """
import sys
from pathlib import Path
import numpy as np
from diffseg_jax.data.labels import Labels
from diffseg_jax.server.label_store import LabelStore
from diffseg_jax.server.page_classes import read_project_classes
from diffseg_jax.server.page_images import list_images
labels = Labels(("sky", "road", "tree"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
store = LabelStore(Path(sys.argv[2]), list_images([sys.argv[1]])[0], labels)
revision = store.described(0)["revision"]
while True:
    values = np.full((12, 16), revision % 3, np.uint8)
    revision = store.patch(0, (0, 0, 16, 12), values, revision)["revision"]
    if revision % 5 == 0:
        store.reopen(0) if revision % 10 else store.accept(0, 0)
    print(revision, flush=True)
"""


def test_a_kill_loses_at_most_the_stroke_in_the_air(photos, tmp_path):
    numbers, acknowledged = random.Random(1), 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", PAINTER, photos, tmp_path / "annotated"],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        first = process.stdout.readline()
        time.sleep(numbers.uniform(0, 0.1))
        process.kill()
        lines = (first + process.communicate()[0]).split("\n")
        acknowledged = int(next(line for line in reversed(lines[:-1]) if line))
        store = open_store(photos, tmp_path / "annotated")
        ids, revision = store.labels(0)
        assert revision in (acknowledged, acknowledged + 1)
        assert (ids == (revision - 1) % 3).all()
        assert store.described(0)["counts"][(revision - 1) % 3] == HEIGHT * WIDTH
        left = {file.name for file in store.folder.rglob("*") if file.is_file()}
        assert left == {"classes.json", "project.json", "photo_0.png"}


def test_an_outdated_patch_is_told_the_present_revision(photos, tmp_path):
    store = open_store(photos, tmp_path / "annotated")
    store.patch(0, (0, 0, 1, 1), np.zeros((1, 1), np.uint8), 0)
    with pytest.raises(Outdated) as raised:
        store.patch(0, (0, 0, 1, 1), np.ones((1, 1), np.uint8), 0)
    assert raised.value.revision == 1 and store.labels(0)[0][0, 0] == 0


def test_a_prediction_survives_only_whole(photos, tmp_path):
    store = open_store(photos, tmp_path / "annotated")
    ids, uncertainty = np.ones((HEIGHT, WIDTH), np.uint8), np.full((HEIGHT, WIDTH), 0.5, np.float32)
    store.add_prediction(0, 7, ids, uncertainty)
    again = open_store(photos, store.folder).described(0)
    assert (again["fit"], again["score"]) == (7, 0.5)
    (store.folder / "uncertainty" / "photo_0.png").write_bytes(b"\x89PNG half a file")
    assert open_store(photos, store.folder).described(0)["fit"] == 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("project.json", b"[]", "project.json is damaged, or belongs to another program"),
        ("project.json", b'{"format": 1, "images": {"a": 3}, "fits": []}', "json is damaged"),
        ("strokes/photo_0.png", b"no image", "cannot read .*photo_0.png"),
        ("strokes/photo_0.png", (3, 3), "photo_0.png has the mode L and 3x3 pixels"),
        ("strokes/photo_0.png", (WIDTH, HEIGHT), "photo_0.png holds ids above 2"),
        ("classes.json", b'{"names": 3}', "names must be a list"),
        ("classes.json", b"{", "classes.json"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_give_a_sentence(photos, tmp_path, name, content, said):
    file = tmp_path / "annotated" / name
    file.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        Image.new("L", content, 9).save(file)
    with pytest.raises(UserError, match=said):
        open_store(
            photos,
            tmp_path / "annotated",
            read_project_classes(tmp_path / "annotated", ",".join(NAMES)),
        )


def test_classes_are_those_of_the_folder_and_may_grow(photos, tmp_path):
    with pytest.raises(UserError, match="classes are unknown"):
        read_project_classes(tmp_path, None)
    open_store(photos, tmp_path).add_class("house")
    assert read_project_classes(tmp_path, None).names == (*NAMES, "house")
    assert read_project_classes(tmp_path, "sky, road").palette[:3] == LABELS.palette
    assert read_project_classes(tmp_path, (*NAMES, "house", "dog")).names[-1] == "dog"
    with pytest.raises(UserError, match="but --classes names road, sky"):
        read_project_classes(tmp_path, "road,sky")
    with pytest.raises(UserError, match="254 classes are too many"):
        read_project_classes(tmp_path / "new", [f"c{k}" for k in range(254)])
    for wrong in ("", " a", "a\n", "x" * 201, "sky"):
        with pytest.raises(UserError):
            open_store(photos, tmp_path).add_class(wrong)


def test_classes_that_are_added_from_a_file_have_its_colours(photos, tmp_path):
    """Unless a class has that colour; those that there are keep theirs."""
    open_store(photos, tmp_path)
    given = [(9, 9, 9), *LABELS.palette[1:], (1, 2, 3), LABELS.palette[0], (7, 7, 7)]
    content = {"names": [*NAMES, "house", "dog", "cat"], "palette": given}
    (tmp_path / "given.json").write_text(json.dumps(content))
    palette = read_project_classes(tmp_path, str(tmp_path / "given.json")).palette
    assert palette[:4] == (*LABELS.palette, (1, 2, 3)) and palette[5] == (7, 7, 7)
    assert len(set(palette)) == 6


def test_the_colours_of_253_classes_differ(photos, tmp_path):
    """Also where two generated colours are in neither list of colours, and three are wanted."""
    colours = distinct_colours(255)
    open_store(photos, tmp_path, Labels(NAMES, colours[:3]))
    names = [*NAMES, *map(str, range(250))]
    given = {"names": names, "palette": [*colours[250:253], *colours[:250]]}
    (tmp_path / "given.json").write_text(json.dumps(given))
    palette = read_project_classes(tmp_path, str(tmp_path / "given.json")).palette
    assert len(set(palette)) == 253 and palette[6:] == colours[3:250]


def test_a_stored_class_has_a_colour_of_its_own(photos, tmp_path):
    store = open_store(photos, tmp_path, Labels(("a", "b"), ((150, 15, 0), (1, 2, 3))))
    store.add_class("c")
    assert len(set(store.classes.palette)) == 3


def test_turned_images_are_shown_upright(tmp_path):
    """As by `read_image`, in thumbnails, too; a file that browsers show so is sent as it is."""
    image = Image.fromarray(np.arange(40 * 80 * 3, dtype=np.uint8).reshape(40, 80, 3) // 4 * 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image.save(tmp_path / "upright.png")
    turned, upright = list_images([str(tmp_path)])[0]
    assert (turned.height, turned.width) == (80, 40) == turned.read().shape[:2]
    assert encoded_image(upright) == ((tmp_path / "upright.png").read_bytes(), "image/png")
    for content in (encoded_image(turned)[0], thumbnail(turned, 80)):
        with Image.open(io.BytesIO(content)) as shown:
            assert shown.size == (40, 80) and not shown.getexif()
    assert max(Image.open(io.BytesIO(thumbnail(upright, 16))).size) == 16


def test_files_that_are_no_images_are_told_and_others_listed(tmp_path):
    write_images(tmp_path, [(5, 6)])
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    pages = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    images, notes = list_images([str(tmp_path)])
    assert [image.name for image in images] == ["pages_000000", "pages_000001", "photo_0"]
    assert images[1].read()[0, 0].tolist() == [0, 0, 255] and images[1].width == 3
    assert sum(note.startswith("not read: ") for note in notes) == 2
    known = {image.name: vars(image) for image in images}
    (tmp_path / "photo_0.png").touch()  # another time, the same bytes
    assert [image.sha256 for image in list_images([str(tmp_path)], known)[0]] == [
        image.sha256 for image in images
    ]
    (tmp_path / "bad.png").unlink()
    (tmp_path / "photo_0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 1 images can be read. The first: cannot read"):
        list_images([str(tmp_path / "photo_0.png")])
