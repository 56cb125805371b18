import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg_jax.data import transforms
from diffseg_jax.data.class_ids import id_table
from diffseg_jax.errors import UserError
from diffseg_jax.systems.system import scale_images

SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


class Scripted:
    """A generator that gives recorded draws and insists on the recorded arguments."""

    def __init__(self, draws):
        self.draws = list(draws)

    def _next(self, name, low, high):
        recorded, arguments, value = self.draws.pop(0)
        arguments = [0, *arguments] if len(arguments) == 1 else arguments
        assert (recorded, arguments) == (name, [low, high])
        return value

    def integers(self, low, high):
        return self._next("randint", low, high)

    def uniform(self, low, high):
        return self._next("uniform", low, high)


class Constant:
    """A generator that always draws the same."""

    def __init__(self, integer=0, uniform=0.0):
        self.integer, self.number, self.count = integer, uniform, 0

    def integers(self, low, high):
        self.count += 1
        return self.integer

    def uniform(self, low, high):
        return self.number


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def coordinates(size):
    """An image with red 6 * row and green 6 * column, and a mask with row * 41 + column."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([6 * rows, 6 * columns, 0 * rows], axis=-1).astype(np.uint8)
    return image, (rows * 41 + columns).astype(np.int32)


def largest_difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int)).max(initial=0)


def places(image):
    """The mask that belongs to an image of `coordinates`."""
    return image[..., 0].astype(int) // 6 * 41 + image[..., 1] // 6


# Recorded outputs of the original pipeline; its images are BGR.


def recorded_augmentations(golden):
    for path in golden("ddp/augment*.json"):
        with np.load(path.with_suffix(".npz")) as arrays:
            yield json.loads(path.read_text())["cases"], dict(arrays)


@pytest.mark.golden
def test_colours_match_the_recorded_ones(golden):
    for cases, arrays in recorded_augmentations(golden):
        image = arrays["img_bgr"][..., ::-1]
        names = [name for name in cases if f"photo/{name}" in arrays]
        assert names
        for name in names:
            rng = Scripted(cases[name])
            result = transforms.photometric_distortion(image, rng)
            assert not rng.draws, name
            expected = arrays[f"photo/{name}"][..., ::-1]
            assert largest_difference(result, expected) <= 1, name


@pytest.mark.golden
def test_resized_pairs_match_the_recorded_ones(golden):
    for cases, arrays in recorded_augmentations(golden):
        image, label = arrays["img_bgr"][..., ::-1], arrays["label"]
        names = [name for name in cases if name.startswith("resize")]
        assert names
        for name in names:
            width, height = cases[name]["img_scale_wh"]
            size = transforms.keep_ratio_size(image.shape[:2], (height, width))
            assert list(size) == cases[name]["result_hw"]
            result, mask = transforms.resize(image, label, size)
            assert largest_difference(result, arrays[f"{name}/img"][..., ::-1]) <= 1, name
            np.testing.assert_array_equal(mask, arrays[f"{name}/label"])


@pytest.mark.golden
def test_the_crop_redraws_like_the_recorded_one(golden):
    for cases, arrays in recorded_augmentations(golden):
        case = cases["crop"]
        draws = zip(case["randint_arguments"], case["scripted_offsets"])
        rng = Scripted(("randint", arguments, value) for arguments, value in draws)
        image, mask = arrays["img_bgr"], arrays["crop/label_in"]
        size, share = case["crop_size"], case["cat_max_ratio"]
        image, mask = transforms.random_crop(image, mask, size, rng, share)
        assert not rng.draws
        np.testing.assert_array_equal(image, arrays["crop/img"])
        np.testing.assert_array_equal(mask, arrays["crop/label"])


def normalised(image, mean=transforms.IMAGENET_MEAN, std=transforms.IMAGENET_STD):
    """As networks see a whole picture u8[H,W,3]: f32[H,W,3]."""
    valid = np.array([image.shape[:2]])
    return np.asarray(scale_images(image[None], valid, mean, std))[0]


@pytest.mark.golden
def test_normalised_and_padded_match_the_recorded_ones(golden):
    for _, arrays in recorded_augmentations(golden):
        image = normalised(arrays["img_bgr"][..., ::-1])
        np.testing.assert_allclose(image, arrays["normalized_rgb"], rtol=1e-6, atol=1e-6)
        padded, mask, valid = transforms.pad(image, arrays["label"], arrays["pad/label"].shape)
        np.testing.assert_allclose(padded.sum(dtype=np.float64), arrays["pad/img_sum"], rtol=1e-5)
        np.testing.assert_array_equal(mask, arrays["pad/label"])
        assert valid == arrays["label"].shape


# Sizes and resizing.


@quick
@given(SIZES, SIZES)
def test_a_kept_ratio_fits_and_touches_the_limit(size, limit):
    new = transforms.keep_ratio_size(size, limit)
    assert new == transforms.keep_ratio_size(size, limit[::-1])
    assert max(new) <= max(limit) and min(new) <= min(limit)
    assert max(new) == max(limit) or min(new) == min(limit)


@quick
@given(SIZES)
def test_resizing_to_the_same_size_changes_nothing(size):
    image, mask = noise(size), coordinates(size)[1]
    result = transforms.resize(image, mask, size)
    np.testing.assert_array_equal(result[0], image)
    np.testing.assert_array_equal(result[1], mask)


@quick
@given(SIZES, st.integers(1, 5), st.integers(1, 5))
def test_an_enlarged_mask_repeats_its_pixels(size, down, across):
    _, mask = coordinates(size)
    large = transforms.resize_mask(mask, (size[0] * down, size[1] * across))
    np.testing.assert_array_equal(large, mask.repeat(down, 0).repeat(across, 1))
    assert large.dtype == mask.dtype


@quick
@given(SIZES, SIZES)
def test_resizing_is_plain_bilinear_interpolation(size, new):
    image = noise(size)
    (h, w), out = size, np.empty((*new, 3))
    for i in range(new[0]):
        for j in range(new[1]):
            y = min(max((i + 0.5) * h / new[0] - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / new[1] - 0.5, 0), w - 1)
            top, left = int(y), int(x)
            part = image[top : top + 2, left : left + 2].astype(float)
            down = [1 - (y - top), y - top][: len(part)]
            across = [1 - (x - left), x - left][: part.shape[1]]
            out[i, j] = np.einsum("ijc,i,j->c", part, down, across)
    assert np.abs(transforms.resize_image(image, new) - out).max() <= 0.51


@quick
@given(SIZES, SIZES, st.data())
def test_a_box_is_that_part_of_the_whole(size, new, data):
    top, left = (data.draw(st.integers(0, n - 1)) for n in new)
    height, width = (data.draw(st.integers(1, n - k)) for n, k in zip(new, (top, left)))
    image, mask = noise(size), coordinates(size)[1]
    whole = transforms.resize(image, mask, new)
    part = transforms.resize(image, mask, new, (top, left, height, width))
    for expected, result in zip(whole, part):
        expected = expected[top : top + height, left : left + width]
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size", [(30, 47), (47, 30), (5, 5)])
def test_the_shorter_side_gets_the_asked_length(size):
    image, mask = transforms.resize_short(*coordinates(size), 20)
    assert min(image.shape[:2]) == 20 and image.shape[:2] == mask.shape
    assert max(mask.shape) == int(max(size) * 20 / min(size) + 0.5)


@pytest.mark.parametrize(
    "r, expected", [(0.5, (15, 30)), (0.7, (21, 42)), (1.99, (59, 118)), (0.01, (1, 1))]
)
def test_a_random_scale_multiplies_the_limit(r, expected):
    rng = Constant(uniform=r)
    image, mask = transforms.random_scale(*coordinates((20, 40)), rng, (60, 30), 0.5, 2.0)
    assert image.shape[:2] == mask.shape == expected


def test_random_scales_fill_their_range():
    rng = np.random.default_rng(0)
    mask = coordinates((20, 40))[1]
    widths = [
        transforms.random_scale(noise((20, 40)), mask, rng, (20, 40), 0.5, 2.0)[1].shape[1]
        for _ in range(200)
    ]
    assert 20 <= min(widths) < 24 and 76 < max(widths) < 80


# Crops.


def test_a_crop_of_one_class_is_drawn_eleven_times():
    rng = Constant(integer=1)
    image, mask = transforms.random_crop(noise((9, 7)), np.zeros((9, 7), np.int32), (4, 5), rng)
    assert image.shape == (4, 5, 3) and mask.shape == (4, 5)
    assert rng.count == 2 * 11


@pytest.mark.parametrize(
    "labels, draws",
    [
        ([0, 0, 0, 1], 11),  # one class has exactly the share
        ([0, 0, 1, 1], 1),
        ([0, 0, 0, 0], 11),
        ([255, 255, 255, 255], 11),  # nothing counts
        ([0, 255, 255, 255], 11),
        ([0, 1] + 6 * [255], 1),  # what is ignored does not rule,
        ([0, 0, 0, 1, 255, 255], 11),  # nor keep another from it
    ],
)
def test_which_crops_are_drawn_again(labels, draws):
    mask = np.array([labels], np.uint8)
    for share, expected in ((0.75, draws), (1, 1), (2.0, 1)):
        rng = Constant()
        transforms.random_crop(noise(mask.shape), mask, mask.shape, rng, share)
        assert rng.count == 2 * expected


def test_every_place_is_drawn():
    rng = np.random.default_rng(0)
    image, mask = coordinates((5, 6))
    corners = {int(transforms.random_crop(image, mask, (3, 4), rng)[1][0, 0]) for _ in range(200)}
    assert corners == {41 * row + column for row in range(3) for column in range(3)}


@quick
@given(SIZES, SIZES, SEEDS)
def test_a_crop_moves_image_and_mask_together(size, crop, seed):
    rng = np.random.default_rng(seed)
    image, mask = transforms.random_crop(*coordinates(size), crop, rng)
    assert mask.shape == (min(size[0], crop[0]), min(size[1], crop[1]))
    np.testing.assert_array_equal(places(image), mask)


# Flips and padding.


def test_a_second_flip_undoes_the_first():
    image, mask = coordinates((4, 7))
    flipped = transforms.random_flip(image, mask, Constant(uniform=0.49))
    np.testing.assert_array_equal(flipped[0], image[:, ::-1])
    np.testing.assert_array_equal(flipped[1], mask[:, ::-1])
    again = transforms.random_flip(*flipped, Constant(uniform=0.49))
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], mask)
    kept = transforms.random_flip(image, mask, Constant(uniform=0.5))
    np.testing.assert_array_equal(kept[1], mask)


def test_about_the_asked_share_is_flipped():
    rng, mask = np.random.default_rng(0), np.array([[0, 1]])
    image = np.zeros((1, 2, 3), np.uint8)
    flips = sum(transforms.random_flip(image, mask, rng, 0.3)[1][0, 0] for _ in range(2000))
    assert 0.25 < flips / 2000 < 0.35


@quick
@given(SIZES, SIDES, SIDES)
def test_the_valid_part_of_a_padded_pair_is_what_came_in(size, below, right):
    image, mask = noise(size), coordinates(size)[1] % 19
    padded, labels, (h, w) = transforms.pad(image, mask, (size[0] + below, size[1] + right))
    assert labels.shape == (size[0] + below, size[1] + right)
    assert padded.shape == (*labels.shape, 3)
    np.testing.assert_array_equal(padded[:h, :w], image)
    np.testing.assert_array_equal(labels[:h, :w], mask)
    assert padded.sum() == image.sum()
    assert np.count_nonzero(labels == 255) == labels.size - mask.size


def test_a_padded_pair_is_a_copy():
    image, mask = coordinates((3, 4))
    padded, labels, _ = transforms.pad(image, mask, (3, 4))
    assert not np.shares_memory(padded, image) and not np.shares_memory(labels, mask)


@pytest.mark.parametrize("size", [(6, 9), (7, 8)])
def test_padding_to_less_names_both_sizes(size):
    with pytest.raises(UserError, match=f"7x9 pixels.*{size[0]}x{size[1]}"):
        transforms.pad(noise((7, 9)), None, size)


# Colours.


@quick
@given(SEEDS)
def test_hsv_and_back_returns_the_colours(seed):
    image = noise((30, 40), seed)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    hue, saturation, value = transforms.rgb_to_hsv(grey)
    assert not hue.any() and not saturation.any()
    np.testing.assert_array_equal(transforms.hsv_to_rgb(hue, saturation, value), grey)
    # Hue has 30 steps for a sixth of the circle, so the middle channel is off by 255 / 60 and
    # rounding; the others by rounding, which is down.
    hue, saturation, value = transforms.rgb_to_hsv(image)
    assert hue.max() < 180
    back = transforms.hsv_to_rgb(hue, saturation, value)
    assert largest_difference(back.max(-1), image.max(-1)) == 0
    assert largest_difference(back.min(-1), image.min(-1)) <= 1
    assert largest_difference(back, image) <= 6
    drift = back.mean((0, 1)) - image.mean((0, 1))
    assert drift.min() > -0.7 and drift.max() < 0


@pytest.mark.parametrize(
    "rgb, hue",
    [
        ((255, 0, 0), 0),
        ((255, 255, 0), 30),
        ((0, 255, 0), 60),
        ((0, 255, 255), 90),
        ((0, 0, 255), 120),
        ((255, 0, 255), 150),
        ((255, 0, 4), 180),
    ],
)
def test_pure_colours_have_their_hue(rgb, hue):
    image = np.array([[rgb]], np.uint8)
    hsv = transforms.rgb_to_hsv(image)
    assert [int(plane[0, 0]) for plane in hsv] == [hue % 180, 255, 255]
    assert largest_difference(transforms.hsv_to_rgb(*hsv), image) <= 4


def test_a_full_hue_turn_in_ten_steps_returns():
    image = np.array([[[200, 20, 20], [20, 200, 20], [20, 20, 200]]], np.uint8)
    turn = [("randint", [2], 0)] * 3 + [("randint", [2], 1), ("randint", [-18, 18], -18)]
    turned, seen = image, []
    for _ in range(10):
        turned = transforms.photometric_distortion(turned, Scripted([*turn, ("randint", [2], 0)]))
        seen.append(largest_difference(turned, image))
    assert min(seen[:-1]) > 50 and seen[-1] <= 2


def test_closed_gates_leave_the_image():
    image = noise((7, 5))
    result = transforms.photometric_distortion(image, Constant(integer=0))
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("shift", [0.0, 31.9, -31.9])
def test_brightness_clips_and_rounds_down(shift):
    image = noise((7, 5))
    script = [("randint", [2], 1), ("uniform", [-32.0, 32.0], shift)] + [("randint", [2], 0)] * 4
    result = transforms.photometric_distortion(image, Scripted(script))
    np.testing.assert_array_equal(result, np.floor(np.clip(image + shift, 0, 255)))


def test_normalised_mean_is_zero_and_one_deviation_is_one():
    mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
    image = np.array([[[10, 20, 30], [11, 22, 34]]], np.uint8)
    result = normalised(image, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[[0, 0, 0], [1, 1, 1]]])


# All of it.

PLANS = {
    "crop": dict(crop=(11, 9)),
    "jitter": dict(scale=(0.5, 2.0), crop=(16, 20)),
    "limit": dict(limit=(60, 30), scale=(0.5, 2.0), crop=(16, 20), photometric=True),
    "short": dict(short=16, crop=(14, 14), max_class_share=1),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@quick
@given(SIZES, SEEDS)
def test_augment_is_its_steps_one_after_the_other(plan, size, seed):
    image, mask = noise(size, seed), coordinates(size)[1] // 300
    result = transforms.augment(image, mask, np.random.default_rng(seed), **plan)

    rng = np.random.default_rng(seed)
    if "short" in plan:
        image, mask = transforms.resize_short(image, mask, plan["short"])
    limit = plan.get("limit", image.shape[:2])
    image, mask = transforms.random_scale(image, mask, rng, limit, *plan.get("scale", (1, 1)))
    share = plan.get("max_class_share", 0.75)
    image, mask = transforms.random_crop(image, mask, plan["crop"], rng, share)
    image, mask = transforms.random_flip(image, mask, rng)
    if "photometric" in plan:
        image = transforms.photometric_distortion(image, rng)
    image, mask, valid = transforms.pad(image, mask, plan["crop"])
    np.testing.assert_array_equal(result["image"], image)
    np.testing.assert_array_equal(result["mask"], mask)
    np.testing.assert_array_equal(result["valid"], valid)


@quick
@given(SIZES, SIZES, SEEDS, st.booleans())
def test_augment_fills_the_crop_and_moves_both(size, crop, seed, labelled):
    image, mask = coordinates(size)
    mask = mask.astype(np.int16)
    before = image.copy(), mask.copy()
    rng = np.random.default_rng(seed)
    result = transforms.augment(image, mask if labelled else None, rng, crop=crop)
    h, w = result["valid"]
    assert result["image"].shape == (*crop, 3) and result["image"].dtype == np.uint8
    assert result["image"].flags.c_contiguous and result["valid"].dtype == np.int32
    assert ("mask" in result) == labelled
    if labelled:
        assert result["mask"].dtype == np.int32
        np.testing.assert_array_equal(places(result["image"])[:h, :w], result["mask"][:h, :w])
    result["image"][:] = 1
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_one_seed_gives_one_example():
    def run(seed):
        rng = np.random.default_rng(seed)
        plan = dict(scale=(0.5, 2.0), crop=(16, 16), photometric=True)
        return transforms.augment(noise((30, 40)), None, rng, **plan)["image"]

    np.testing.assert_array_equal(run(3), run(3))
    assert largest_difference(run(3), run(4)) > 0


def test_scaled_edges_of_image_and_mask_stay_together():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 13:] = 255
    mask = (image[..., 0] > 127).astype(np.uint8)
    result = transforms.augment(
        image, mask, np.random.default_rng(0), scale=(3.0, 3.0), crop=(60, 90), photometric=False
    )
    bright = result["image"][..., 0] > 127
    assert np.mean(bright == (result["mask"] == 1)) > 0.97


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(short=8, limit=(9, 9)), "short=8 and limit"),
        (dict(scale=(2.0, 0.5)), "low <= high"),
        (dict(scale=(0.0, 1.0)), "0 < low"),
        (dict(crop=(0, 4)), r"crop is \(0, 4\)"),
        (dict(mask=np.zeros((5, 4), np.int32)), "4x5 pixels came with a mask of 5x4"),
    ],
)
def test_options_that_cannot_work_are_refused(wrong, words):
    plan = dict(mask=None, crop=(4, 4)) | wrong
    with pytest.raises(UserError, match=words):
        transforms.augment(noise((4, 5)), rng=np.random.default_rng(0), **plan)


@pytest.mark.golden
def test_centre_squares_are_the_recorded_ones(golden):
    for path in golden("adm/image_ops*.npz"):
        recorded = np.load(path)
        square = transforms.center_square(
            recorded["center_crop__in"], int(recorded["center_crop__size"])
        )
        np.testing.assert_array_equal(square, recorded["center_crop__out"])


@pytest.mark.golden
def test_label_maps_resize_as_recorded(golden):
    for path in golden("adm/image_ops*.npz"):
        recorded = np.load(path)
        cases = [key.removesuffix("__in") for key in recorded if re.match(r"nearest\d+__in", key)]
        assert cases
        for case in cases:
            label, expected = recorded[f"{case}__in"], recorded[f"{case}__out"]
            np.testing.assert_array_equal(transforms.resize_mask(label, expected.shape), expected)


@pytest.mark.golden
def test_pictures_shrink_as_recorded(golden):
    for path in golden("adm/image_ops*.npz"):
        recorded = np.load(path)
        side = int(recorded["pil_resize__out_size"])
        small = transforms.resize_antialiased(recorded["pil_resize__in"], (side, side))
        for key, image in (
            ("ddpm_input", small / 127.5 - 1),
            ("imagenet_norm_input", normalised(small)),
        ):
            expected = recorded[f"pil_resize__{key}"].transpose(1, 2, 0)
            np.testing.assert_allclose(image, expected, atol=1e-5)


def test_antialiased_sizes_are_height_and_width():
    image = noise((8, 12))
    assert transforms.resize_antialiased(image, (8, 12)) is image
    assert transforms.resize_antialiased(image, (5, 20)).shape == (5, 20, 3)
    stripes = np.zeros((4, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = transforms.resize_antialiased(stripes, (4, 8))[:, 1:-1].astype(int)
    assert np.abs(small - 100).max() <= 13 and np.ptp(transforms.resize_image(stripes, (4, 9))) > 99


@pytest.mark.golden
def test_rows_to_train_on_are_the_recorded_ones(golden):
    for path in golden("adm/prepare_data*.npz"):
        recorded = np.load(path)
        cases = [key.removesuffix("__y") for key in recorded if re.match(r"ign\d+__y", key)]
        assert cases
        for case in cases:
            ignored = int(case.removeprefix("ign"))
            labels = recorded[f"{case}__labels_in"]
            size = recorded[f"{case}__images"].shape[1:3]
            table = id_table(int(recorded[f"{case}__number_class"]), ignore=(ignored,))
            masks = [transforms.resize_mask(table[label], size) for label in labels]
            rows = np.concatenate([transforms.drop_small_objects(m, 20).ravel() for m in masks])
            rows = rows[rows != 255]
            assert len(rows) == recorded[f"{case}__num_rows"]
            np.testing.assert_array_equal(rows, recorded[f"{case}__y"])


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_small_objects_are_those_below_the_least(kind):
    mask = np.repeat([0, 3, 254, 255], [19, 20, 1, 24]).astype(kind).reshape(8, 8)
    mask = np.random.default_rng(0).permutation(mask.ravel()).reshape(8, 8)
    before = mask.copy()
    kept = transforms.drop_small_objects(mask, 20)
    np.testing.assert_array_equal(mask, before)
    assert kept.dtype == kind and not np.shares_memory(kept, mask)
    np.testing.assert_array_equal(kept, np.where(mask == 3, 3, 255))
    for least in (0, 1):
        np.testing.assert_array_equal(transforms.drop_small_objects(mask, least), mask)


@quick
@given(SIZES, SIDES)
def test_any_picture_becomes_a_square(size, side):
    square = transforms.center_square(noise(size), side)
    assert square.shape == (side, side, 3) and square.dtype == np.uint8
    flat = transforms.center_square(np.full((*size, 3), 77, np.uint8), side)
    np.testing.assert_array_equal(flat, 77)


def test_a_centre_square_of_its_own_size_is_the_middle():
    image = noise((9, 14))
    np.testing.assert_array_equal(transforms.center_square(image, 9), image[:, 2:11])
    tall = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(transforms.center_square(tall, 9), tall[2:11])
    halves = noise((8, 12)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(transforms.center_square(halves, 8), noise((8, 12))[:, 2:10])


def test_a_square_without_pixels_is_refused():
    with pytest.raises(UserError, match="side is 0"):
        transforms.center_square(noise((4, 4)), 0)


def test_a_free_longer_side_is_spelt_as_infinity():
    assert transforms.keep_ratio_size((10, 40), (math.inf, 5)) == (5, 20)
