"""Image and mask are changed together, as OpenCV and the recorded pipelines change them."""

import functools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augmentation_cases import (
    Constant,
    Scripted,
    largest_difference,
    noise,
    recorded_augmentations,
)
from diffseg_jax.data import transforms
from diffseg_jax.data.class_ids import id_table
from diffseg_jax.data.colour import photometric_distortion
from diffseg_jax.errors import UserError
from diffseg_jax.models import inputs
from diffseg_jax.models.inputs import scale_images

pytestmark = pytest.mark.quick

SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None)


def coordinates(size):
    """An image with red 6 * row and green 6 * column, and a mask with row * 41 + column."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([6 * rows, 6 * columns, 0 * rows], axis=-1).astype(np.uint8)
    return image, (rows * 41 + columns).astype(np.int32)


def mask_of(image):
    """The mask that belongs to an image of `coordinates`."""
    return image[..., 0].astype(int) // 6 * 41 + image[..., 1] // 6


def crop_at_random(image, mask, size, rng, max_class_share=0.75):
    """A crop at the box that `random_box` draws."""

    def part(array, box):
        top, left, height, width = box
        return array[top : top + height, left : left + width]

    labels_in = lambda box: part(mask, box)
    box = transforms.random_box(image.shape[:2], size, rng, labels_in, max_class_share)
    return part(image, box), part(mask, box)


def scale_at_random(image, mask, rng, limit, low, high):
    """Both resized to the size that `random_size` draws."""
    size = transforms.random_size(image.shape[:2], limit, rng, low, high)
    return transforms.resize(image, mask, size)


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
        image, mask = crop_at_random(image, mask, size, rng, share)
        assert not rng.draws
        np.testing.assert_array_equal(image, arrays["crop/img"])
        np.testing.assert_array_equal(mask, arrays["crop/label"])


def normalised(image, mean=inputs.IMAGENET_MEAN, std=inputs.IMAGENET_STD):
    """An image uint8[H,W,3] as networks receive it: float32[H,W,3]."""
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
def test_a_size_of_the_same_ratio_fits_and_touches_the_limit(size, limit):
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
def test_resizing_is_bilinear_interpolation(size, new):
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
def test_a_box_equals_that_part_of_the_full_result(size, new, data):
    top, left = (data.draw(st.integers(0, n - 1)) for n in new)
    height, width = (data.draw(st.integers(1, n - k)) for n, k in zip(new, (top, left)))
    image, mask = noise(size), coordinates(size)[1]
    whole = transforms.resize(image, mask, new)
    part = transforms.resize(image, mask, new, (top, left, height, width))
    for expected, result in zip(whole, part):
        expected = expected[top : top + height, left : left + width]
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size", [(30, 47), (47, 30), (5, 5)])
def test_an_infinite_limit_fixes_the_shorter_side(size):
    new = transforms.keep_ratio_size(size, (math.inf, 20))
    assert min(new) == 20 and max(new) == int(max(size) * 20 / min(size) + 0.5)
    assert (new[0] > new[1]) == (size[0] > size[1])


@pytest.mark.parametrize(
    "r, expected", [(0.5, (15, 30)), (0.7, (21, 42)), (1.99, (59, 118)), (0.01, (1, 1))]
)
def test_a_random_size_multiplies_the_limit(r, expected):
    rng = Constant(uniform=r)
    image, mask = scale_at_random(*coordinates((20, 40)), rng, (60, 30), 0.5, 2.0)
    assert image.shape[:2] == mask.shape == expected


def test_random_sizes_fill_their_range():
    rng = np.random.default_rng(0)
    mask = coordinates((20, 40))[1]
    widths = [
        scale_at_random(noise((20, 40)), mask, rng, (20, 40), 0.5, 2.0)[1].shape[1]
        for _ in range(200)
    ]
    assert 20 <= min(widths) < 24 and 76 < max(widths) < 80


# Crops.


def test_a_crop_of_one_class_is_drawn_eleven_times():
    rng = Constant(integer=1)
    image, mask = crop_at_random(noise((9, 7)), np.zeros((9, 7), np.int32), (4, 5), rng)
    assert image.shape == (4, 5, 3) and mask.shape == (4, 5)
    assert rng.count == 2 * 11


@pytest.mark.parametrize(
    "labels, draws",
    [
        ([0, 0, 0, 1], 11),  # one class has exactly the share
        ([0, 0, 1, 1], 1),
        ([0, 0, 0, 0], 11),
        ([255, 255, 255, 255], 11),  # no pixel is labelled
        ([0, 255, 255, 255], 11),
        ([0, 1] + 6 * [255], 1),  # ignored pixels are no class
        ([0, 0, 0, 1, 255, 255], 11),  # and do not count in shares
    ],
)
def test_which_crops_are_drawn_again(labels, draws):
    mask = np.array([labels], np.uint8)
    for share, expected in ((0.75, draws), (1, 1), (2.0, 1)):
        rng = Constant()
        crop_at_random(noise(mask.shape), mask, mask.shape, rng, share)
        assert rng.count == 2 * expected


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_a_crop_of_sparse_labels_holds_some(share):
    """One stroke of eight pixels in 90 x 120: a random crop of 10 x 12 rarely meets it."""
    mask = np.full((90, 120), 255, np.int32)
    mask[70, 100:108] = 3
    image = noise(mask.shape)
    corners = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        labels_in = functools.partial(transforms.resize_mask, mask, mask.shape)
        box = transforms.random_box(mask.shape, (10, 12), rng, labels_in, share)
        assert box[2:] == (10, 12) and 0 <= box[0] <= 80 and 0 <= box[1] <= 108
        assert (labels_in(box) == 3).any()
        corners.add(box[:2])
        _, labels = crop_at_random(image, mask, (10, 12), np.random.default_rng(seed), share)
        assert (labels == 3).any()
    assert len(corners) > 20
    whole = transforms.random_box(mask.shape, (200, 12), np.random.default_rng(0), labels_in, share)
    assert whole[0] == 0 and whole[2] == 90 and (labels_in(whole) == 3).any()


def test_every_crop_position_is_drawn():
    rng = np.random.default_rng(0)
    image, mask = coordinates((5, 6))
    corners = {int(crop_at_random(image, mask, (3, 4), rng)[1][0, 0]) for _ in range(200)}
    assert corners == {41 * row + column for row in range(3) for column in range(3)}


@quick
@given(SIZES, SIZES, SEEDS)
def test_a_crop_moves_image_and_mask_together(size, crop, seed):
    rng = np.random.default_rng(seed)
    image, mask = crop_at_random(*coordinates(size), crop, rng)
    assert mask.shape == (min(size[0], crop[0]), min(size[1], crop[1]))
    np.testing.assert_array_equal(mask_of(image), mask)


# Flips and padding.


def test_a_second_flip_undoes_the_first():
    image, mask = coordinates((4, 7))
    flipped = transforms.random_flip(image, mask, Constant(uniform=0.49))
    np.testing.assert_array_equal(flipped[0], image[:, ::-1])
    np.testing.assert_array_equal(flipped[1], mask[:, ::-1])
    again = transforms.random_flip(*flipped, Constant(uniform=0.49))
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], mask)
    unchanged = transforms.random_flip(image, mask, Constant(uniform=0.5))
    np.testing.assert_array_equal(unchanged[1], mask)


def test_images_are_flipped_with_the_given_probability():
    rng, mask = np.random.default_rng(0), np.array([[0, 1]])
    image = np.zeros((1, 2, 3), np.uint8)
    flips = sum(transforms.random_flip(image, mask, rng, 0.3)[1][0, 0] for _ in range(2000))
    assert 0.25 < flips / 2000 < 0.35


@quick
@given(SIZES, SIDES, SIDES)
def test_the_valid_part_of_a_padded_pair_is_the_input(size, below, right):
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
def test_padding_to_a_smaller_size_names_both_sizes(size):
    with pytest.raises(UserError, match=f"7x9 pixels.*{size[0]}x{size[1]}"):
        transforms.pad(noise((7, 9)), None, size)


# Normalising.


def test_normalised_mean_is_zero_and_one_deviation_is_one():
    mean, std = (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)
    image = np.array([[[10, 20, 30], [11, 22, 34]]], np.uint8)
    result = normalised(image, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[[0, 0, 0], [1, 1, 1]]])


# The complete augmentation.

PLANS = {
    "crop": dict(crop=(11, 9)),
    "jitter": dict(scale=(0.5, 2.0), crop=(16, 20)),
    "limit": dict(limit=(60, 30), scale=(0.5, 2.0), crop=(16, 20), photometric=True),
    "short": dict(short=16, crop=(14, 14), max_class_share=1),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@quick
@given(SIZES, SEEDS)
def test_augment_equals_its_steps_in_sequence(plan, size, seed):
    image, mask = noise(size, seed), coordinates(size)[1] // 300
    result = transforms.augment(image, mask, np.random.default_rng(seed), **plan)

    rng = np.random.default_rng(seed)
    if "short" in plan:
        short = transforms.keep_ratio_size(size, (math.inf, plan["short"]))
        image, mask = transforms.resize(image, mask, short)
    limit = plan.get("limit", image.shape[:2])
    image, mask = scale_at_random(image, mask, rng, limit, *plan.get("scale", (1, 1)))
    share = plan.get("max_class_share", 0.75)
    image, mask = crop_at_random(image, mask, plan["crop"], rng, share)
    image, mask = transforms.random_flip(image, mask, rng)
    if "photometric" in plan:
        image = photometric_distortion(image, rng)
    image, mask, valid = transforms.pad(image, mask, plan["crop"])
    np.testing.assert_array_equal(result["image"], image)
    np.testing.assert_array_equal(result["mask"], mask)
    np.testing.assert_array_equal(result["valid"], valid)


@quick
@given(SIZES, SIZES, SEEDS, st.booleans())
def test_augment_fills_the_crop_and_moves_image_and_mask_together(size, crop, seed, labelled):
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
        np.testing.assert_array_equal(mask_of(result["image"])[:h, :w], result["mask"][:h, :w])
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


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_quarter_turns_are_exact(degrees):
    image, mask = noise((40, 40)), coordinates((40, 40))[1]
    box = (3, 5, 20, 20)
    turned = transforms.rotated_part(image, mask, (40, 40), box, degrees)
    expected = [np.rot90(array[3:23, 5:25], degrees // 90) for array in (image, mask)]
    assert largest_difference(turned[0], expected[0]) <= 1  # Pillow rounds down
    np.testing.assert_array_equal(turned[1], expected[1])


@quick
@given(SIZES, SIZES, st.floats(-180, 180), SEEDS)
def test_turned_image_and_mask_are_read_at_the_same_points(size, crop, degrees, seed):
    """The centre of each pixel comes from where rotation puts it; outside, labels are ignored."""
    image, mask = coordinates(size)
    box = transforms.random_box(size, crop, np.random.default_rng(seed))
    found, labels = transforms.rotated_part(image, mask + 1000, size, box, degrees)
    top, left, height, width = box
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    row, column = cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    row, column = row + top, column + left
    np.testing.assert_array_equal(
        transforms.rotated_part(image, None, size, box, degrees)[0], found
    )
    past = np.maximum(np.abs(row - (size[0] - 1) / 2) - size[0] / 2,
                      np.abs(column - (size[1] - 1) / 2) - size[1] / 2)  # fmt: skip
    assert np.all(labels[past > 1e-3] == 255) and np.all(labels[past < -1e-3] != 255)
    known = labels != 255
    down, across = np.divmod(labels - 1000, 41)
    for places, pixels, colour in ((row, down, 0), (column, across, 1)):
        assert np.all(np.abs(places - pixels)[known] < 0.51)
        inside = past < -0.51
        assert np.all(np.abs(found[..., colour] - 6 * places)[inside] < 1.1)


def test_a_turned_crop_keeps_a_labelled_pixel():
    """Where it would lose all of them it is not turned; the numbers drawn after it are the same."""
    image, mask = noise((24, 30)), np.full((24, 30), 255)
    mask[0, 0] = 1  # in a corner, which most angles turn out of the image
    following = set()
    for labels in (mask, np.ones_like(mask)):
        rng = np.random.default_rng(2)
        found = transforms.augment(image, labels, rng, crop=(24, 30), rotate=20.0, flip=False)
        assert (found["mask"] == 1).any()
        following.add(rng.uniform())
    assert len(following) == 1
    lost = transforms.rotated_part(image, mask, (24, 30), (0, 0, 24, 30), 10.0)[1]
    assert (lost == 255).all()


def augmented(seed=0, **changes):
    """An example, and the random numbers that follow those of its changes."""
    rng = np.random.default_rng(seed)
    image, mask = noise((24, 30)), coordinates((24, 30))[1] // 300
    plan = dict(crop=(24, 30), flip=False, max_class_share=1) | changes
    example = transforms.augment(image, mask, rng, **plan)
    return example["image"].astype(int), example["mask"], rng.uniform(0, 1)


def test_changes_that_papers_do_not_make_are_off():
    off = dict(rotate=0.0, flip_vertical=False, grey=0.0, blur=0.0)
    for ours, theirs in zip(augmented(**off), augmented()):
        np.testing.assert_array_equal(ours, theirs)


def test_each_change_does_what_its_name_says():
    image, mask, _ = augmented()
    for axis, option in enumerate(("flip_vertical", "flip")):
        flipped = 0
        for seed in range(20):
            found, labels, _ = augmented(seed, **{option: True})
            is_flipped = not np.array_equal(found, image)
            np.testing.assert_array_equal(found, np.flip(image, axis) if is_flipped else image)
            np.testing.assert_array_equal(labels, np.flip(mask, axis) if is_flipped else mask)
            flipped += is_flipped
        assert 4 < flipped < 16
    turned = [augmented(seed, rotate=20.0) for seed in range(3)]
    assert all((labels == 255).any() and (labels != 255).mean() > 0.6 for _, labels, _ in turned)
    assert (turned[0][1] != turned[1][1]).any()
    grey, labels, _ = augmented(grey=1.0)
    assert np.ptp(grey, axis=-1).max() == 0 and np.array_equal(labels, mask)
    np.testing.assert_allclose(grey[..., 0], image @ (0.299, 0.587, 0.114), atol=1)
    soft, labels, _ = augmented(blur=4.0)
    assert soft.std() < 0.5 * image.std() and np.array_equal(labels, mask)
    assert abs(soft.mean() - image.mean()) < 3


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (dict(short=8, limit=(9, 9)), "short=8 and limit"),
        (dict(scale=(2.0, 0.5)), "low <= high"),
        (dict(scale=(0.0, 1.0)), "0 < low"),
        (dict(crop=(0, 4)), r"crop is \(0, 4\)"),
        (dict(mask=np.zeros((5, 4), np.int32)), "4x5 pixels came with a mask of 5x4"),
    ],
)
def test_options_that_cannot_work_are_refused(wrong, sentence):
    plan = dict(mask=None, crop=(4, 4)) | wrong
    with pytest.raises(UserError, match=sentence):
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
def test_masks_resize_as_recorded(golden):
    for path in golden("adm/image_ops*.npz"):
        recorded = np.load(path)
        cases = [key.removesuffix("__in") for key in recorded if re.match(r"nearest\d+__in", key)]
        assert cases
        for case in cases:
            label, expected = recorded[f"{case}__in"], recorded[f"{case}__out"]
            np.testing.assert_array_equal(transforms.resize_mask(label, expected.shape), expected)


@pytest.mark.golden
def test_images_shrink_as_recorded(golden):
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


def test_antialiased_resizing_takes_height_and_width_and_averages():
    image = noise((8, 12))
    assert transforms.resize_antialiased(image, (8, 12)) is image
    assert transforms.resize_antialiased(image, (5, 20)).shape == (5, 20, 3)
    stripes = np.zeros((4, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = transforms.resize_antialiased(stripes, (4, 8))[:, 1:-1].astype(int)
    assert np.abs(small - 100).max() <= 13 and np.ptp(transforms.resize_image(stripes, (4, 9))) > 99


@pytest.mark.golden
def test_the_training_pixels_are_the_recorded_ones(golden):
    for path in golden("adm/prepare_data*.npz"):
        recorded = np.load(path)
        cases = [key.removesuffix("__y") for key in recorded if re.match(r"ign\d+__y", key)]
        assert cases
        for case in cases:
            ignored = int(case.removeprefix("ign"))
            labels = recorded[f"{case}__labels_in"]
            size = recorded[f"{case}__noise"].shape[-2:]  # of the images that a network reads
            table = id_table(int(recorded[f"{case}__number_class"]), ignore=(ignored,))
            masks = [transforms.resize_mask(table[label], size) for label in labels]
            rows = np.concatenate([transforms.drop_small_objects(m, 20).ravel() for m in masks])
            rows = rows[rows != 255]
            assert len(rows) == recorded[f"{case}__num_rows"]
            np.testing.assert_array_equal(rows, recorded[f"{case}__y"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_objects_smaller_than_the_minimum_are_ignored(dtype):
    mask = np.repeat([0, 3, 254, 255], [19, 20, 1, 24]).astype(dtype).reshape(8, 8)
    mask = np.random.default_rng(0).permutation(mask.ravel()).reshape(8, 8)
    before = mask.copy()
    result = transforms.drop_small_objects(mask, 20)
    np.testing.assert_array_equal(mask, before)
    assert result.dtype == dtype and not np.shares_memory(result, mask)
    np.testing.assert_array_equal(result, np.where(mask == 3, 3, 255))
    for minimum in (0, 1):
        np.testing.assert_array_equal(transforms.drop_small_objects(mask, minimum), mask)


@quick
@given(SIZES, SIDES)
def test_any_image_becomes_a_square(size, side):
    square = transforms.center_square(noise(size), side)
    assert square.shape == (side, side, 3) and square.dtype == np.uint8
    flat = transforms.center_square(np.full((*size, 3), 77, np.uint8), side)
    np.testing.assert_array_equal(flat, 77)


def test_a_centre_square_of_the_shorter_side_is_cropped_only():
    image = noise((9, 14))
    np.testing.assert_array_equal(transforms.center_square(image, 9), image[:, 2:11])
    tall = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(transforms.center_square(tall, 9), tall[2:11])
    halves = noise((8, 12)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(transforms.center_square(halves, 8), noise((8, 12))[:, 2:10])


def test_a_square_without_pixels_is_refused():
    with pytest.raises(UserError, match="square is 0"):
        transforms.center_square(noise((4, 4)), 0)
