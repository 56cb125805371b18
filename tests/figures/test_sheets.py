"""Sheets: classes differ by colour or number, errors mark wrong pixels only, writes are atomic."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffseg_jax.data.named_sets import ADE20K, CAMVID
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.data.scene_street import PALETTE as SCENES
from diffseg_jax.errors import UserError
from diffseg_jax.figures import label_images, layout, sheets, study_plots
from diffseg_jax.figures.label_images import IGNORED, STRIPES, WRONG
from diffseg_jax.figures.layout import BORDER, TITLE
from diffseg_jax.figures.sheets import CHANCES

pytestmark = pytest.mark.quick

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


def where(drawn, colour):
    return (drawn == colour).all(axis=-1)


def striped(drawn):
    """Which pixels have a grey of ignored ones."""
    return where(drawn, STRIPES[0]) | where(drawn, STRIPES[1])


def contains(sheet, drawn):
    """Whether the sheet shows the drawn image, pixel by pixel."""
    height, width = drawn.shape[:2]
    corners = np.argwhere(where(sheet, drawn[0, 0]))
    return any(np.array_equal(sheet[y : y + height, x : x + width], drawn) for y, x in corners)


def test_classes_come_back_from_their_colours(scene):
    _, truth, _ = scene
    drawn = label_images.colour_labels(truth, PALETTE)
    assert drawn.dtype == np.uint8 and drawn.shape == (*truth.shape, 3)
    back = np.full(truth.shape, 255)
    for k, colour in enumerate(PALETTE):
        back[where(drawn, colour)] = k
    np.testing.assert_array_equal(back, truth)
    np.testing.assert_array_equal(striped(drawn), truth == 255)


@pytest.mark.parametrize("size", [(12, 16), (192, 256), (360, 480), (1024, 2048), (4000, 90)])
def test_ignored_pixels_have_stripes_that_stay_visible(size):
    shown = layout.legible(label_images.colour_labels(np.full(size, 255), PALETTE))
    assert shown.min() < 100 and shown.max() > 180  # averaging leaves both greys
    changes = np.diff(shown[:, 0, 0] > np.mean(STRIPES))
    assert 3 <= changes.size / changes.sum() < 16  # pixels from stripe to stripe


@pytest.mark.parametrize("colour", [(0, 0, 0), *((grey,) * 3 for grey in STRIPES)])
def test_no_class_looks_like_ignored_pixels(colour):
    mask = np.zeros((200, 300), int)
    mask[50:100, 50:100] = 255
    drawn = label_images.colour_labels(mask, [colour])
    assert set(np.unique(drawn[50:100, 50:100])) == set(STRIPES)
    assert np.unique(drawn[mask == 0]).tolist() == [colour[0]]


@pytest.mark.parametrize("wrong", [K, 254, 256, -1])
def test_a_class_without_colour_is_refused(wrong):
    with pytest.raises(UserError, match=f"class {wrong} .* 0..{K - 1}"):
        label_images.colour_labels(np.array([[0, wrong]]), PALETTE)


def test_overlay_goes_from_the_image_to_the_colours(scene):
    image, truth, _ = scene
    colours = label_images.colour_labels(truth, PALETTE)
    np.testing.assert_array_equal(label_images.overlay(image, truth, PALETTE, alpha=0), image)
    np.testing.assert_array_equal(label_images.overlay(image, truth, PALETTE, alpha=1), colours)
    half = label_images.overlay(image, truth, PALETTE).astype(float)
    assert np.abs(half - (image / 2 + colours / 2)).max() <= 0.5


def test_outlines_paint_both_sides_of_every_border_and_nothing_else():
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    mask = np.zeros((200, 300), int)
    mask[60:140, 100:200], mask[:, 250:], mask[20, 30] = 1, 2, 3
    drawn = label_images.outlined(image, mask, PALETTE)
    painted = np.zeros(mask.shape, bool)
    for box, within in ((np.s_[58:142, 98:202], np.s_[62:138, 102:198]), (np.s_[:, 248:252], ())):
        painted[box] = True
        if within:
            painted[within] = False
    painted[58:60, 98:100] = painted[140:142, 98:100] = False  # beyond a corner
    painted[58:60, 200:202] = painted[140:142, 200:202] = False
    painted[18:23, 30] = painted[20, 28:33] = True
    colours = label_images.colour_labels(mask, PALETTE)
    np.testing.assert_array_equal(drawn, np.where(painted[..., None], colours, image))
    outlined = label_images.outlined(image, np.full_like(mask, 2), PALETTE)
    np.testing.assert_array_equal(outlined, image)


def test_heat_grows_brighter_in_even_steps_of_the_root_of_the_chance():
    colours = label_images.heat(np.linspace(0, 1, 256)[None] ** 2)[0]
    lightness = np.cbrt((colours / 255.0) ** 2.2 @ [0.2126, 0.7152, 0.0722])  # about perceived
    assert np.all(np.diff(lightness) > 0)
    steps = np.diff(lightness[::16])
    assert 0.5 * steps.mean() < steps.min() and steps.max() < 2 * steps.mean()
    clipped = label_images.heat(np.array([[-3.0, 7.0]]))[0]
    np.testing.assert_array_equal(clipped, colours[[0, -1]])


@pytest.mark.parametrize("with_image", [False, True])
def test_only_errors_are_marked(scene, with_image):
    image, truth, prediction = scene
    drawn = label_images.errors(truth, prediction, image if with_image else None)
    ignored, wrong = truth == 255, (truth != prediction) & (truth != 255)
    assert wrong.any() and ignored.any()
    np.testing.assert_array_equal(where(drawn, WRONG), wrong)
    np.testing.assert_array_equal(striped(drawn)[ignored], True)
    right = drawn[~wrong & ~ignored]
    assert (right == right[:, :1]).all() and right.max() < 160  # grey, and dim
    assert (len(np.unique(right)) > 1) == with_image


@pytest.mark.parametrize(
    "height, factor", [(1, 160), (80, 2), (96, 2), (159, 2), (160, 1), (640, 1)]
)
def test_small_images_are_enlarged_by_whole_pixels(height, factor):
    small = np.random.default_rng(height).integers(0, 256, (height, 4, 3)).astype(np.uint8)
    large = layout.legible(small)
    assert large.shape == (factor * height, factor * 4, 3)
    for dy in {0, factor - 1}:
        np.testing.assert_array_equal(large[dy::factor, factor - 1 :: factor], small)


@pytest.mark.parametrize(
    "shape, shown", [((2, 1000), (2, 1000)), ((100, 700), (100, 700)), ((300, 2000), (150, 1000)),
                     ((2, 400), (6, 1200))],
)  # fmt: skip
def test_wide_images_fit_on_a_screen(shape, shown):
    assert layout.legible(np.zeros((*shape, 3), np.uint8)).shape[:2] == shown


def test_large_images_are_averaged_by_whole_pixels():
    large = np.random.default_rng(0).integers(0, 256, (1024, 8, 3)).astype(np.uint8)
    blocks = large.reshape(512, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(layout.legible(large) - blocks).max() <= 1


def test_panel_and_rows_have_the_size_of_their_parts():
    a, b = np.zeros((200, 50, 3), np.uint8), np.full((300, 70, 3), 9, np.uint8)
    bare, titled = layout.panel([("", a), ("", b)]), layout.panel([("left", a), ("", b)])
    assert bare.shape == (300 + 2 * BORDER, 50 + 70 + 4 * BORDER, 3)
    assert titled.shape == (bare.shape[0] + TITLE, bare.shape[1], 3)
    np.testing.assert_array_equal(titled[BORDER + TITLE :], bare[BORDER:])
    assert titled[: BORDER + TITLE].min() < 100  # the title is written
    np.testing.assert_array_equal(bare[BORDER : BORDER + 200, BORDER : BORDER + 50], a)
    stacked = layout.rows([bare, titled[:, :100]])
    assert stacked.shape[:2] == (bare.shape[0] + titled.shape[0] + 2 * BORDER, 120 + 6 * BORDER)


@pytest.mark.parametrize("width", [80, 300, 960])
@pytest.mark.parametrize("num_classes", [1, 40])
def test_legend_holds_every_colour_within_its_width(width, num_classes):
    palette = distinct_colours(num_classes)
    drawn = layout.legend([f"class number {k}" for k in range(num_classes)], palette, width)
    assert drawn.shape[1] == width
    colours, pixels = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    found = dict(zip(map(tuple, colours.tolist()), pixels, strict=True))
    assert all(found[colour] >= 256 for colour in palette)  # the swatch inside its edge


def test_long_text_is_shortened_to_its_cell():
    text = "aachen_000000_000019_leftImg8bit.png"
    narrow, wide = layout.text_line(text, 100), layout.text_line(text, 600)
    assert narrow.shape == (TITLE, 100, 3)
    assert narrow[:, -2:].min() > 200  # nothing is cut in the middle of a letter
    np.testing.assert_array_equal(narrow[:, :30], wide[:, :30])


@pytest.mark.parametrize("with_truth", [False, True])
def test_prediction_sheet_shows_every_image(scene, with_truth):
    image, truth, prediction = scene
    uncertainty = np.linspace(0, 1, truth.size).reshape(truth.shape)
    flipped = [part[:, ::-1] for part in (image, truth, prediction, uncertainty)]
    wide = [np.concatenate([part, part], axis=1) for part in flipped]  # another size
    images, truths, predictions, uncertainties = zip(
        (image, truth, prediction, uncertainty), wide, strict=True
    )
    sheet = sheets.prediction_sheet(
        images, truths if with_truth else None, predictions, uncertainties, LABELS
    )
    assert sheet.dtype == np.uint8
    for n in range(2):
        expected = {
            "image": (images[n], True),
            "truth": (label_images.colour_labels(truths[n], PALETTE), with_truth),
            "prediction": (label_images.colour_labels(predictions[n], PALETTE), True),
            "uncertainty": (label_images.heat(uncertainties[n]), True),
            "error": (label_images.errors(truths[n], predictions[n], images[n]), with_truth),
        }
        found = {name: contains(sheet, layout.legible(p)) for name, (p, _) in expected.items()}
        assert found == {name: shown for name, (_, shown) in expected.items()}


def find_titles(monkeypatch):
    """The list of texts that are drawn from now on, in order."""
    written = []
    line = layout.text_line
    monkeypatch.setattr(
        layout, "text_line", lambda text, width: (written.append(text), line(text, width))[1]
    )
    return written


def many_classes(shape, classes):
    """Arguments of a sheet whose labels repeat those classes, of the 150 of ADE20K."""
    labels = SimpleNamespace(names=tuple(ADE20K.split(", ")), palette=distinct_colours(150))
    mask = np.resize(classes, shape)
    return [np.zeros((*shape, 3), np.uint8)], None, [mask], [np.zeros(shape)], labels


def test_a_title_says_that_uncertainty_is_uncalibrated(monkeypatch):
    written = find_titles(monkeypatch)
    sheets.prediction_sheet(*many_classes((40, 50), [0]), calibrated=False)
    assert written[:3] == ["image", "prediction", "uncalibrated uncertainty"]


def test_a_legend_of_many_classes_names_those_that_occur(monkeypatch):
    written = find_titles(monkeypatch)
    arguments = many_classes((40, 50), [4, 149, 12])
    sheets.prediction_sheet(*arguments)
    names = [f"{k} {name}" for k, name in enumerate(arguments[-1].names)]
    assert written[:3] == ["image", "prediction", "uncertainty"]
    assert written[3:] == [names[4], names[12], names[149]]
    sheets.prediction_sheet(
        arguments[0], [np.full((40, 50), 7)], *arguments[2:4], arguments[4],
        [np.full((2, 40, 50), 9)],
    )  # fmt: skip
    assert {names[7], names[9]} < set(written)  # the class of the truth and that of the steps


def test_a_legend_is_no_higher_than_the_images(monkeypatch):
    written = find_titles(monkeypatch)
    classes = [*range(150), *[140] * 60, *[3] * 30]  # these two are the largest
    arguments = many_classes((200, 250), classes)
    bare, sheet = 200 + TITLE + 4 * BORDER, sheets.prediction_sheet(*arguments)
    assert bare < sheet.shape[0] <= 2 * bare + 2 * TITLE + 2 * BORDER  # the scale is below
    named = [int(text.split()[0]) for text in written[3:-1]]
    assert {3, 140} < set(named) and named == sorted(named) and len(named) > 10
    assert written[-1] == f"and {150 - len(named)} more"


def test_few_classes_are_all_named(monkeypatch, scene):
    written = find_titles(monkeypatch)
    none = np.zeros_like(scene[1])
    sheets.prediction_sheet([scene[0]], None, [none], [np.zeros(none.shape)], LABELS)
    assert tuple(written[3:]) == LABELS.names
    none[:5] = 255  # labels that a prediction leaves open
    sheets.prediction_sheet([scene[0]], None, [none], [np.zeros(none.shape)], LABELS)
    assert written[-1] == "ignored"


def numbers_in(monkeypatch):
    """The list of (text, position) that are written into areas from now on, in order."""
    written = []

    class Draw(ImageDraw.ImageDraw):
        def text(self, position, text, **options):
            if options.get("stroke_width"):
                written.append((text, position))
            super().text(position, text, **options)

    monkeypatch.setattr(ImageDraw, "Draw", Draw)
    return written


SAFE, CLOSE = ((0, 0, 255), (255, 255, 0)), ((200, 80, 60), (110, 125, 50))


@pytest.mark.parametrize("palette, numbered", [
    (SAFE, False), (CLOSE, True), (SCENES, False), (CAMVID.palette, True),
    (distinct_colours(12), False), (distinct_colours(13), True), (distinct_colours(25), True),
])  # fmt: skip
def test_classes_that_colours_do_not_tell_have_numbers(monkeypatch, palette, numbered):
    labels = SimpleNamespace(
        names=tuple("abcdefghijklmnopqrstuvwxy"[: len(palette)]), palette=palette
    )
    mask = np.arange(200 * 300).reshape(200, 300) // (200 * 300 // 2)  # two areas
    mask[:, 200:] = 255
    written, titles = numbers_in(monkeypatch), find_titles(monkeypatch)
    image = np.zeros((200, 300, 3), np.uint8)
    sheets.contact_sheet([image], [mask], labels, ["title"])
    sheets.prediction_sheet([image], None, [mask], [np.zeros(mask.shape)], labels)
    assert {int(text) for text, _ in written} == ({0, 1} if numbered else set())
    for text, (x, y) in written:
        assert mask[y, x] == int(text)
    assert ("0 a" in titles, "a" in titles) == (numbered, not numbered)


def test_numbers_are_written_at_any_scale_and_only_where_they_fit(monkeypatch):
    written = numbers_in(monkeypatch)
    mask = np.zeros((48, 64), int)
    mask[4:24, 10:40], mask[40, 5] = 17, 3  # 3 is too small
    small = layout.legible(label_images.colour_labels(mask, distinct_colours(20)))
    drawn = label_images.write_numbers(small, mask)
    assert {text for text, _ in written} == {"0", "17"}
    for text, (x, y) in written:
        assert mask[y // 4, x // 4] == int(text)
    changed = (drawn != small).any(-1)
    assert 0 < changed.mean() < 0.05 and drawn.shape == small.shape


@pytest.mark.parametrize(
    "size, maximum",
    [((1, 1), (420, 600)), ((1024, 2048), (800, 3200)), ((1, 5000), (400, 4000)),
     ((5000, 1), (900, 600))],
)  # fmt: skip
def test_sheets_of_very_small_and_very_large_images_are_legible(monkeypatch, size, maximum):
    written = find_titles(monkeypatch)
    sheet = sheets.prediction_sheet(*many_classes(size, [0, 1]))
    assert np.all(np.array(sheet.shape[:2]) <= maximum), sheet.shape
    assert written[:3] == ["image", "prediction", "uncertainty"]
    drawn = (sheet[BORDER : BORDER + TITLE + BORDER] < 100).any(axis=(0, 2))
    assert drawn.sum() > 80  # titles are shown above narrow images too


@pytest.mark.parametrize("maximum", [1.0, 0.3, 1e-4, 0.0])
def test_the_scale_of_uncertainty_is_the_same_in_all_sheets(scene, maximum):
    image, truth, prediction = scene
    uncertainty = np.linspace(0, maximum, truth.size).reshape(truth.shape)
    sheet = sheets.prediction_sheet([image], [truth], [prediction], [uncertainty], LABELS)
    assert contains(sheet, layout.legible(label_images.heat(uncertainty)))


def test_the_scale_shows_the_colour_above_each_number():
    legend = sheets.prediction_legend(LABELS, calibrated=True)
    assert contains(legend, sheets.chance_scale(True)) and not contains(legend, IGNORED)
    rejected = sheets.prediction_legend(LABELS, calibrated=False, ignored=True)
    assert contains(rejected, sheets.chance_scale(False)) and contains(rejected, IGNORED)
    scale = sheets.chance_scale(True)[BORDER:-BORDER, BORDER:-BORDER]
    ticks = np.flatnonzero((scale[layout.SWATCH + 2] == layout.INK).all(-1))
    assert len(ticks) == len(CHANCES) == 7
    colours = label_images.heat(np.array([CHANCES]) / 100)[0]
    assert np.abs(scale[0, ticks].astype(int) - colours).max() <= 6


def test_ignored_pixels_are_explained_by_their_pattern(scene):
    image, truth, prediction = scene
    uncertainty = np.zeros(truth.shape)
    sheet = sheets.prediction_sheet([image], [truth], [prediction], [uncertainty], LABELS)
    assert contains(sheet, IGNORED)
    assert contains(sheets.contact_sheet([image], [truth], LABELS, ["a"]), IGNORED)


def test_denoising_sheet_shows_the_removed_noise(scene):
    clean = label_images.from_range(scene[0] / 255.0, 0, 1) / 127.5 - 1
    noise = np.random.default_rng(1).normal(0, 0.2, clean.shape)
    sheet = sheets.denoising_sheet([clean], [clean + noise], [clean])
    assert contains(sheet, layout.legible(scene[0]))
    spread = 3 * noise.std()
    assert contains(sheet, layout.legible(label_images.from_range(noise, -spread, spread)))
    assert np.isfinite(sheets.denoising_sheet([clean], [clean], [clean])).all()


def test_ranges_reach_the_last_byte():
    drawn = label_images.from_range(np.array([-1, 0, 1, 9]))
    np.testing.assert_array_equal(drawn, [0, 128, 255, 255])
    np.testing.assert_array_equal(label_images.from_range(np.array([0, 1]), 0, 1), [0, 255])


@pytest.mark.parametrize("labelled", [False, True])
def test_contact_sheet_shows_every_image(scene, labelled):
    images = [np.roll(scene[0], n, axis=1) for n in range(7)]
    masks = [np.roll(scene[1], n, axis=1) for n in range(7)]
    titles = [f"image {n}" for n in range(7)]
    sheet = sheets.contact_sheet(
        images, masks if labelled else None, LABELS if labelled else None, titles
    )
    for image, mask in zip(images, masks, strict=True):
        assert contains(sheet, layout.legible(image))
        painted = layout.legible(label_images.overlay(image, mask, PALETTE))
        assert contains(sheet, painted) == labelled


@pytest.mark.parametrize("count, lines, columns", [
    (1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (9, 3, 3), (10, 3, 4),
])  # fmt: skip
def test_grid_is_about_square_and_holds_every_image_in_order(count, lines, columns):
    images = np.random.default_rng(0).integers(0, 256, (count, 200, 170, 3)).astype(np.uint8)
    sheet, height, width = layout.grid(images), 200 + 2 * BORDER, 170 + 2 * BORDER
    assert sheet.shape == (lines * height, columns * width, 3)
    for index in range(lines * columns):
        top, left = index // columns * height + BORDER, index % columns * width + BORDER
        cell = sheet[top : top + 200, left : left + 170]
        expected = images[index] if index < count else np.full_like(images[0], 255)
        np.testing.assert_array_equal(cell, expected)


def test_small_images_of_a_grid_are_enlarged():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
    sheet = layout.grid(images)
    assert sheet.shape == (160 + 2 * BORDER, 2 * (240 + 2 * BORDER), 3)
    np.testing.assert_array_equal(
        sheet[BORDER + 5 : -BORDER : 10, BORDER + 5 : 240 : 10],
        images[0][:, : len(range(BORDER + 5, 240, 10))],
    )


def test_a_saved_image_replaces_the_older_one(scene, tmp_path):
    path = tmp_path / "images" / "00000012.png"
    for drawn in (scene[0], scene[0][::-1]):
        layout.save_png(path, drawn)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), drawn)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_nothing_and_keeps_the_older_file(scene, tmp_path, monkeypatch):
    def full_disk(number):
        raise OSError("no space left on device")

    older = tmp_path / "older.png"
    layout.save_png(older, scene[0])
    monkeypatch.setattr(os, "fsync", full_disk)
    for path in (older, tmp_path / "new.png"):
        with pytest.raises(OSError, match="no space"):
            layout.save_png(path, scene[0][::-1])
    assert list(tmp_path.iterdir()) == [older]
    np.testing.assert_array_equal(np.asarray(Image.open(older)), scene[0])


def test_a_plot_of_steps_has_a_line_for_every_stage_and_number_of_draws():
    rows = [
        dict(stage="train", steps=steps, draws=draws, mIoU=0.3 + steps / 100, ms=10.0 * steps)
        for draws in (1, 2)
        for steps in (1, 3)
    ]
    plain = dict(stage="plain", steps=0, draws=1, mIoU=0.2, ms=5.0)
    with_plain, without = (study_plots.steps_plot(part) for part in ([*rows, plain], rows))
    assert with_plain.dtype == np.uint8 and with_plain.shape == without.shape
    assert with_plain.shape[2] == 3 and np.any(with_plain != without)


def test_boxes_are_outlined_and_nothing_else_changes():
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    before = image.copy()
    drawn = label_images.with_boxes(image, [[50, 40, 100, 80], [0, 150, 40, 50]])
    changed = (drawn != before).any(-1)
    assert changed[40, 50:150].all() and changed[119, 50:150].all() and changed[150:200, 39].all()
    changed[40:120, 50:150] = changed[150:200, 0:40] = False
    assert not changed.any() and (image == before).all()
    one, two = np.zeros((160, 160, 3), np.uint8), np.full((80, 200, 3), 255, np.uint8)
    sheet = sheets.suggestion_sheet([one, two], ["1", "2"], [[], []], [np.ones((8, 8))] * 2)
    brightest = label_images.heat(np.ones((1, 1)))[0, 0]
    assert (sheet == brightest).all(-1).sum() > one.shape[0] * one.shape[1]
    alone = sheets.suggestion_sheet([one, two], ["1", "2"], [[], []])
    assert alone.shape[1] < sheet.shape[1] and not (alone == brightest).all(-1).any()
