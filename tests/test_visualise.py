"""Pictures: colours tell classes, errors mark the wrong pixels only, files are whole or absent."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffseg_jax import visualise
from diffseg_jax.config import UserError
from diffseg_jax.data.folders import distinct_colours
from diffseg_jax.visualise import BLACK, BORDER, TITLE, WRONG

K = 5
PALETTE = distinct_colours(K)
LABELS = SimpleNamespace(
    names=("road", "sky", "tree", "car", "a rather long name"), palette=PALETTE
)


@pytest.fixture
def scene():
    """image uint8[12, 16, 3], truth int32[12, 16] with ignored pixels, prediction int32[12, 16]."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    truth = rng.integers(0, K, (12, 16)).astype(np.int32)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, (truth + 1) % K)
    truth[:2] = 255
    return image, truth, prediction


def where(picture, colour):
    return (picture == colour).all(axis=-1)


def contains(sheet, picture):
    """Whether the picture stands in the sheet, pixel by pixel."""
    height, width = picture.shape[:2]
    corners = np.argwhere(where(sheet, picture[0, 0]))
    return any(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in corners)


def test_classes_come_back_from_their_colours(scene):
    _, truth, _ = scene
    picture = visualise.colour_labels(truth, PALETTE)
    assert picture.dtype == np.uint8 and picture.shape == (*truth.shape, 3)
    back = np.full(truth.shape, 255)
    for k, colour in enumerate(PALETTE):
        back[where(picture, colour)] = k
    np.testing.assert_array_equal(back, truth)
    np.testing.assert_array_equal(where(picture, BLACK), truth == 255)


@pytest.mark.parametrize("wrong", [K, 254, 256, -1])
def test_a_class_without_colour_is_refused(wrong):
    with pytest.raises(UserError, match=f"class {wrong} .* 0..{K - 1}"):
        visualise.colour_labels(np.array([[0, wrong]]), PALETTE)


def test_overlay_goes_from_the_image_to_the_colours(scene):
    image, truth, _ = scene
    colours = visualise.colour_labels(truth, PALETTE)
    np.testing.assert_array_equal(visualise.overlay(image, truth, PALETTE, alpha=0), image)
    np.testing.assert_array_equal(visualise.overlay(image, truth, PALETTE, alpha=1), colours)
    half = visualise.overlay(image, truth, PALETTE).astype(float)
    assert np.abs(half - (image / 2 + colours / 2)).max() <= 0.5


def test_heat_grows_brighter_in_even_steps():
    colours = visualise.heat(np.linspace(0, 1, 256)[None])[0]
    lightness = np.cbrt((colours / 255.0) ** 2.2 @ [0.2126, 0.7152, 0.0722])  # about perceived
    assert np.all(np.diff(lightness) > 0)
    steps = np.diff(lightness[::16])
    assert 0.5 * steps.mean() < steps.min() and steps.max() < 2 * steps.mean()
    clipped = visualise.heat(np.array([[-3.0, 7.0]]))[0]
    np.testing.assert_array_equal(clipped, colours[[0, -1]])


@pytest.mark.parametrize("with_image", [False, True])
def test_errors_are_marked_and_nothing_else(scene, with_image):
    image, truth, prediction = scene
    picture = visualise.errors(truth, prediction, image if with_image else None)
    ignored, wrong = truth == 255, (truth != prediction) & (truth != 255)
    assert wrong.any() and ignored.any()
    np.testing.assert_array_equal(where(picture, WRONG), wrong)
    np.testing.assert_array_equal(where(picture, BLACK), ignored)
    right = picture[~wrong & ~ignored]
    assert (right == right[:, :1]).all() and right.max() < 160  # grey, and dim
    assert (len(np.unique(right)) > 1) == with_image


@pytest.mark.parametrize(
    "height, factor", [(1, 160), (80, 2), (96, 2), (159, 2), (160, 1), (640, 1)]
)
def test_small_pictures_are_enlarged_by_whole_pixels(height, factor):
    small = np.random.default_rng(height).integers(0, 256, (height, 4, 3)).astype(np.uint8)
    large = visualise.legible(small)
    assert large.shape == (factor * height, factor * 4, 3)
    for dy in {0, factor - 1}:
        np.testing.assert_array_equal(large[dy::factor, factor - 1 :: factor], small)


def test_large_pictures_are_averaged_by_whole_pixels():
    large = np.random.default_rng(0).integers(0, 256, (1024, 8, 3)).astype(np.uint8)
    blocks = large.reshape(512, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(visualise.legible(large) - blocks).max() <= 1


def test_panel_and_rows_have_the_size_of_their_parts():
    a, b = np.zeros((200, 50, 3), np.uint8), np.full((300, 70, 3), 9, np.uint8)
    bare, titled = visualise.panel([("", a), ("", b)]), visualise.panel([("left", a), ("", b)])
    assert bare.shape == (300 + 2 * BORDER, 50 + 70 + 4 * BORDER, 3)
    assert titled.shape == (bare.shape[0] + TITLE, bare.shape[1], 3)
    np.testing.assert_array_equal(titled[BORDER + TITLE :], bare[BORDER:])
    assert titled[: BORDER + TITLE].min() < 100  # the title is written
    np.testing.assert_array_equal(bare[BORDER : BORDER + 200, BORDER : BORDER + 50], a)
    stacked = visualise.rows([bare, titled[:, :100]])
    assert stacked.shape[:2] == (bare.shape[0] + titled.shape[0] + 2 * BORDER, 120 + 6 * BORDER)


@pytest.mark.parametrize("width", [80, 300, 960])
@pytest.mark.parametrize("num_classes", [1, 40])
def test_legend_holds_every_colour_within_its_width(width, num_classes):
    palette = distinct_colours(num_classes)
    picture = visualise.legend([f"class number {k}" for k in range(num_classes)], palette, width)
    assert picture.shape[1] == width
    colours, pixels = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    found = dict(zip(map(tuple, colours.tolist()), pixels, strict=True))
    assert all(found[colour] >= 256 for colour in palette)  # the swatch inside its edge


def test_long_text_is_shortened_to_its_cell():
    text = "aachen_000000_000019_leftImg8bit.png"
    narrow, wide = visualise._line(text, 100), visualise._line(text, 600)
    assert narrow.shape == (TITLE, 100, 3)
    assert narrow[:, -2:].min() > 200  # nothing is cut in the middle of a letter
    np.testing.assert_array_equal(narrow[:, :30], wide[:, :30])


@pytest.mark.parametrize("with_truth", [False, True])
def test_prediction_sheet_shows_every_picture(scene, with_truth):
    image, truth, prediction = scene
    uncertainty = np.linspace(0, 1, truth.size).reshape(truth.shape)
    flipped = [part[:, ::-1] for part in (image, truth, prediction, uncertainty)]
    wide = [np.concatenate([part, part], axis=1) for part in flipped]  # another size
    images, truths, predictions, uncertainties = zip(
        (image, truth, prediction, uncertainty), wide, strict=True
    )
    sheet = visualise.prediction_sheet(
        images, truths if with_truth else None, predictions, uncertainties, LABELS
    )
    assert sheet.dtype == np.uint8
    for n in range(2):
        expected = {
            "image": (images[n], True),
            "truth": (visualise.colour_labels(truths[n], PALETTE), with_truth),
            "prediction": (visualise.colour_labels(predictions[n], PALETTE), True),
            "uncertainty": (visualise.heat(uncertainties[n]), True),
            "error": (visualise.errors(truths[n], predictions[n], images[n]), with_truth),
        }
        found = {name: contains(sheet, visualise.legible(p)) for name, (p, _) in expected.items()}
        assert found == {name: shown for name, (_, shown) in expected.items()}


@pytest.mark.parametrize("most, top", [(0.3, 0.3), (1e-4, 0.01), (0.0, 0.01)])
def test_the_scale_of_uncertainty_ends_where_that_of_the_sheet_does(scene, most, top):
    image, truth, prediction = scene
    uncertainty = np.linspace(0, most, truth.size).reshape(truth.shape)
    sheet = visualise.prediction_sheet([image], [truth], [prediction], [uncertainty], LABELS)
    assert contains(sheet, visualise.legible(visualise.heat(uncertainty / top)))


def test_denoising_sheet_shows_what_was_removed(scene):
    clean = visualise.from_range(scene[0] / 255.0, 0, 1) / 127.5 - 1
    noise = np.random.default_rng(1).normal(0, 0.2, clean.shape)
    sheet = visualise.denoising_sheet([clean], [clean + noise], [clean])
    assert contains(sheet, visualise.legible(scene[0]))
    spread = 3 * noise.std()
    assert contains(sheet, visualise.legible(visualise.from_range(noise, -spread, spread)))
    assert np.isfinite(visualise.denoising_sheet([clean], [clean], [clean])).all()


def test_ranges_reach_the_last_byte():
    np.testing.assert_array_equal(visualise.from_range(np.array([-1, 0, 1, 9])), [0, 128, 255, 255])
    np.testing.assert_array_equal(visualise.from_range(np.array([0, 1]), 0, 1), [0, 255])


@pytest.mark.parametrize("labelled", [False, True])
def test_contact_sheet_shows_every_image(scene, labelled):
    images = [np.roll(scene[0], n, axis=1) for n in range(7)]
    masks = [np.roll(scene[1], n, axis=1) for n in range(7)]
    titles = [f"image {n}" for n in range(7)]
    sheet = visualise.contact_sheet(
        images, masks if labelled else None, LABELS if labelled else None, titles
    )
    for image, mask in zip(images, masks, strict=True):
        assert contains(sheet, visualise.legible(image))
        painted = visualise.legible(visualise.overlay(image, mask, PALETTE))
        assert contains(sheet, painted) == labelled


@pytest.mark.parametrize("count, lines, columns", [
    (1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4),
])  # fmt: skip
def test_grid_is_about_square_and_holds_every_image_in_order(count, lines, columns):
    images = np.random.default_rng(0).integers(0, 256, (count, 200, 170, 3)).astype(np.uint8)
    sheet, height, width = visualise.grid(images), 200 + 2 * BORDER, 170 + 2 * BORDER
    assert sheet.shape == (lines * height, columns * width, 3)
    for place in range(lines * columns):
        top, left = place // columns * height + BORDER, place % columns * width + BORDER
        cell = sheet[top : top + 200, left : left + 170]
        expected = images[place] if place < count else np.full_like(images[0], 255)
        np.testing.assert_array_equal(cell, expected)


def test_small_images_of_a_grid_are_enlarged():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    sheet = visualise.grid(images)
    assert sheet.shape == (160 + 2 * BORDER, 2 * (240 + 2 * BORDER), 3)
    np.testing.assert_array_equal(
        sheet[BORDER + 5 : -BORDER : 10, BORDER + 5 : 240 : 10],
        images[0][:, : len(range(BORDER + 5, 240, 10))],
    )


def test_saved_picture_comes_back_and_replaces_the_older_one(scene, tmp_path):
    path = tmp_path / "pictures" / "00000012.png"
    for picture in (scene[0], scene[0][::-1]):
        visualise.save_png(path, picture)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_and_keeps_the_older_file(scene, tmp_path, monkeypatch):
    def full_disk(number):
        raise OSError("no space left on device")

    kept = tmp_path / "kept.png"
    visualise.save_png(kept, scene[0])
    monkeypatch.setattr(os, "fsync", full_disk)
    for path in (kept, tmp_path / "new.png"):
        with pytest.raises(OSError, match="no space"):
            visualise.save_png(path, scene[0][::-1])
    assert list(tmp_path.iterdir()) == [kept]
    np.testing.assert_array_equal(np.asarray(Image.open(kept)), scene[0])


def test_a_plot_of_steps_has_a_line_for_every_stage_and_number_of_draws():
    rows = [
        dict(stage="train", steps=steps, draws=draws, mIoU=0.3 + steps / 100, ms=10.0 * steps)
        for draws in (1, 2)
        for steps in (1, 3)
    ]
    plain = dict(stage="plain", steps=0, draws=1, mIoU=0.2, ms=5.0)
    with_plain, without = (visualise.steps_plot(part) for part in ([*rows, plain], rows))
    assert with_plain.dtype == np.uint8 and with_plain.shape == without.shape
    assert with_plain.shape[2] == 3 and np.any(with_plain != without)
