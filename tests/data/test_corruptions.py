"""Corruptions give the recorded bytes, follow from seeds and names, and fit images of any size."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data import corruptions
from diffseg_jax.data.corruption_blurs import glass_indices
from diffseg_jax.data.corruption_frost import read_frost
from diffseg_jax.data.corruption_weather import MUD, distance_to, equalised, plasma
from diffseg_jax.data.corruptions import (
    CONSTANTS,
    DRAWN_FROST,
    ELASTIC,
    SEVERITIES,
    TYPES,
    corrupt,
    corrupt_mask,
    default_types,
    draws_of,
    generator,
)
from diffseg_jax.errors import UserError

CERTAIN = (  # types that draw nothing
    "defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast", "saturate", "pixelate",
    "jpeg_compression",
)  # fmt: skip
UNEVEN = ("saturate", "frost", ELASTIC)  # whose weakest severity may change more than the strongest
IN_ORDER = (  # types whose severities differ in one number, or in all alike
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "motion_blur",
    "zoom_blur", "gaussian_blur", "brightness", "contrast", "jpeg_compression",
)  # fmt: skip
GREY = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "snow", "fog",
        "brightness", "contrast", "pixelate", ELASTIC)  # fmt: skip
FROST = (np.random.default_rng(7).integers(0, 256, (60, 80, 3), np.uint8),)


def photo(height, width, seed=0):
    """An image with areas, edges and a little noise, uint8[height, width, 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + 3 * k) + k) * np.cos(columns / (9 - 2 * k)) for k in range(3)]
    image = 120 + 70 * np.stack(waves, -1) + rng.normal(0, 5, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = (200, 60, 40)
    return np.clip(image, 0, 255).astype(np.uint8)


def distance(one, other):
    return np.abs(one.astype(int) - other).mean()


# ---- the original program ------------------------------------------------------------------------


def recorded_draws(arrays, name, severity):
    """What `apply` takes, of a recorded case."""
    size = arrays["image"].shape[:2]
    if name == "frost":
        top, left = arrays["frost_row_col"][severity - 1]
        return {"crop": arrays["frost_overlay_rgb"][top:, left:][: size[0], : size[1]]}
    keys = {
        "gaussian_noise": {"noise": "z_pixel"},
        "speckle_noise": {"noise": "z_pixel"},
        "shot_noise": {"counts": f"poisson_counts_s{severity}"},
        "glass_blur": {"offsets": f"glass_offsets_s{severity}"},
        "motion_blur": {"angle": "angle_motion"},
        "snow": {"noise": "z_snow", "angle": "angle_snow"},
        "spatter": {"noise": "z_spatter"},
        "fog": {"uniform": "u_fog"},
        ELASTIC: {"corners": "u_elastic_pts", "right": "u_elastic_dx", "down": "u_elastic_dy"},
    }
    found = {part: arrays[key] for part, key in keys.get(name, {}).items()}
    return found | ({"angle": found["angle"][severity - 1]} if "angle" in found else {})


@pytest.mark.golden
def test_recorded_corruptions(golden):
    for path in golden("baselines/corruptions*.json"):
        case, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        constants = re.match(r"\d+", case["constants"])[0]
        names = [key.removeprefix("out_") for key in arrays.files if key.startswith("out_")]
        assert names and set(names) == set(case["tolerance"]) <= set(TYPES)
        rows = slice(*case.get("rows", [None]))
        for name in names:
            outputs = [
                corruptions.apply(
                    arrays["image"], name, s, recorded_draws(arrays, name, s), constants
                )[rows] for s in case["severities"]
            ]  # fmt: skip
            off = np.abs(np.stack(outputs).astype(int) - arrays[f"out_{name}"])
            found = {
                "max_abs": off.max(), "mean_abs": off.mean(),
                "max_fraction_different": (off > 0).mean(),
                "max_fraction_above_1": (off > 1).mean(),
            }  # fmt: skip
            limits = {key: limit for key, limit in case["tolerance"][name].items() if key in found}
            assert limits and all(found[key] <= limit for key, limit in limits.items()), (
                path.name, name, found, limits,
            )  # fmt: skip


@pytest.mark.golden
def test_the_same_numbers_of_draws_as_recorded(golden):
    for path in golden("baselines/corruptions*.json"):
        case, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        constants, rng = re.match(r"\d+", case["constants"])[0], np.random.default_rng(0)
        for name in case["tolerance"]:
            if name == "frost":
                continue
            for severity in case["severities"]:
                drawn = draws_of(arrays["image"], name, severity, rng, constants)
                expected = recorded_draws(arrays, name, severity)
                assert {k: np.shape(v) for k, v in drawn.items()} == {
                    k: np.shape(v) for k, v in expected.items()
                }, (path.name, name)


def test_impulse_noise_makes_its_share_of_values_black_or_white_at_even_odds():
    grey = np.full((200, 300, 3), 100, np.uint8)
    for severity, (share,) in zip(SEVERITIES, CONSTANTS["224"]["impulse_noise"], strict=True):
        noisy = corrupt(grey, "impulse_noise", severity, key="a")
        assert set(np.unique(noisy)) == {0, 100, 255}
        hit = (noisy != 100).sum()
        assert abs(hit / grey.size - share) < 4 * np.sqrt(share / grey.size)
        assert abs((noisy == 255).sum() / hit - 0.5) < 4 * 0.5 / np.sqrt(hit)


def test_motion_does_not_blur_what_has_one_value():
    for value in range(256):
        image = np.full((16, 16, 3), value, np.uint8)
        assert np.array_equal(corrupt(image, "motion_blur", 1 + value % 5, key="a"), image)


# ---- any image, any order ------------------------------------------------------------------------


@pytest.mark.parametrize("constants", CONSTANTS)
def test_a_higher_severity_is_farther_from_the_clean_image(constants):
    image = photo(48, 64)
    for name in TYPES:
        far = [
            distance(corrupt(image, name, s, key="a", constants=constants, frost=FROST), image)
            for s in SEVERITIES
        ]
        assert min(far) > 0
        assert name not in IN_ORDER or far == sorted(far), (name, far)
        assert name in UNEVEN or far[4] > far[0], (name, far)


def test_draws_follow_from_the_seed_and_the_name_of_the_image():
    image, state = photo(20, 30), np.random.get_state()[1].copy()
    for name in TYPES:

        def bytes_of(name=name, **given):
            how = {"key": "a", "seed": 0, "frost": FROST, **given}
            return corrupt(image, name, 2, **how).tobytes()

        one = bytes_of()
        others = [bytes_of(key="b"), bytes_of(seed=1)]
        assert bytes_of() == one
        assert [other == one for other in others] == [name in CERTAIN] * 2, name
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("size", [(17, 33), (33, 17), (16, 16), (360, 480)])
def test_images_of_any_size(size):
    image = photo(*size)
    image.flags.writeable = False
    for name in TYPES:
        for severity in SEVERITIES if max(size) < 100 else (3,):
            found = corrupt(image, name, severity, key="a", frost=FROST)
            assert (found.shape, found.dtype) == (image.shape, np.uint8), name
            assert not np.array_equal(found, image), name


def test_rows_and_columns_are_treated_alike():
    image = photo(24, 40)
    for name in CERTAIN[:-1]:  # all but jpeg_compression
        found = corrupt(image, name, 3, key="a")
        turned = corrupt(image.swapaxes(0, 1), name, 3, key="a").swapaxes(0, 1)
        assert np.abs(found.astype(int) - turned).max() <= 1, name


def test_grey_stays_grey_but_for_what_has_colours():
    image = np.repeat(photo(24, 40)[..., :1], 3, -1)
    for name in GREY:
        found = corrupt(image, name, 3, key="a").astype(int)
        assert np.ptp(found, axis=-1).max() <= 1, name  # rounding
    red, green, blue = np.moveaxis(corrupt(image, "saturate", 5, key="a").astype(int), -1, 0)
    assert np.array_equal(green, blue) and (red >= green).all() and (red > green).mean() > 0.9


def test_black_and_white_images():
    """What averages or moves pixels keeps both, what multiplies keeps black, what whitens white."""
    kept = {*CERTAIN, "glass_blur", "motion_blur", ELASTIC} - {"brightness", "saturate"}
    black_too = {"shot_noise", "speckle_noise", "fog", "saturate"}
    for value, others in ((0, black_too), (255, {"brightness", "snow"})):
        image = np.full((20, 24, 3), value, np.uint8)
        for name in TYPES:
            with np.errstate(divide="raise", invalid="raise"):
                found = corrupt(image, name, 5, key="a", frost=FROST)
            change = np.abs(found.astype(int) - value).max()
            assert change <= 1 if name in kept | others else change > 10, (name, value)
    black, white = (np.full((20, 24, 3), value, np.uint8) for value in (0, 255))
    assert np.unique(corrupt(black, "brightness", 1, key="a")).tolist() == [25]  # 0.1 of 255
    assert (corrupt(white, "saturate", 5, key="a") == (255, 204, 204)).all()  # 0.2 of 255 less
    muddy = corrupt(black, "spatter", 5, key="a").max((0, 1))
    np.testing.assert_allclose(muddy, MUD, atol=1)


# ---- parts ---------------------------------------------------------------------------------------


def test_glass_blur_copies_pixels_in_order():
    image, offsets = photo(18, 20), np.random.default_rng(0).integers(-2, 2, (2, 14, 16, 2))
    expected = image.reshape(-1, 3).copy()
    for round_ in offsets:
        for i, row in enumerate(range(16, 2, -1)):
            for j, column in enumerate(range(18, 2, -1)):
                right, down = round_[i, j]
                expected[row * 20 + column] = expected[(row + down) * 20 + column + right]
    assert len(glass_indices(18, 20, 2)) == 14 * 16
    found = corruptions.blurs.glass_blur(image / 255, 1e-3, 2, 2, offsets=offsets.reshape(-1, 2))
    assert np.abs(255 * found - expected.reshape(image.shape)).max() <= 1


def test_distances_are_nearly_those_of_euclid():
    from scipy.ndimage import distance_transform_edt

    edges = np.random.default_rng(0).random((30, 50)) < 0.01
    exact = distance_transform_edt(~edges)
    near = exact < 15
    assert np.abs(distance_to(edges) - exact)[near].max() < 0.03 * 15
    assert distance_to(np.zeros((9, 9), bool)).min() >= 20  # no edge at all


def test_plasma_is_a_torus_from_0_to_1():
    cloud = plasma(16, np.random.default_rng(0).random(255), 2.0)
    assert cloud.min() == 0 and cloud.max() == 1
    seam = np.abs(cloud[:, 0] - cloud[:, -1]).mean()
    inside = np.abs(np.diff(cloud, axis=1)).mean()
    assert seam < 2 * inside


def test_equalised_counts_are_even():
    values = np.repeat(np.arange(4, dtype=np.uint8), 25).reshape(10, 10)
    assert np.unique(equalised(values)).tolist() == [0, 85, 170, 255]
    assert np.array_equal(equalised(values[:2]), values[:2])


def test_elastic_transform_moves_the_mask_with_the_image():
    mask = np.zeros((230, 280), np.int32)
    mask[60:180, 80:170], mask[:, 220:] = 1, 255
    colours = np.zeros(256, np.uint8)
    colours[[1, 255]] = 90, 180
    image = np.repeat(colours[mask][..., None], 3, -1)
    for severity in SEVERITIES:
        moved = corrupt_mask(mask, ELASTIC, severity, key="a")
        seen = corrupt(image, ELASTIC, severity, key="a")[..., 0].astype(int)
        assert set(np.unique(moved)) <= {0, 1, 255} and moved.dtype == np.int32
        same = (np.abs(seen - colours[moved]) < 45).mean()
        assert same > 0.95 > (np.abs(seen - colours[mask]) < 45).mean() or severity > 2, severity
        assert same > 0.95 and (moved != mask).any(), (severity, same)
    assert corrupt_mask(mask, "fog", 3, key="a") is mask


def test_pictures_of_frost_come_from_a_folder(tmp_path):
    for number, picture in enumerate((FROST[0], FROST[0][:30, :40])):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    found = read_frost(str(tmp_path))
    assert [each.shape for each in found] == [(60, 80, 3), (30, 40, 3)]
    crop = draws_of(photo(20, 24), "frost", 1, generator(0, "a", "frost", 1), frost=found[:1])
    windows = np.lib.stride_tricks.sliding_window_view(FROST[0], (20, 24, 3))
    assert (windows == crop["crop"]).all((-3, -2, -1)).any()
    large = draws_of(photo(90, 70), "frost", 1, generator(0, "a", "frost", 1), frost=found)
    assert large["crop"].shape == (90, 70, 3)
    with pytest.raises(UserError, match="is not a folder"):
        read_frost(str(tmp_path / "none"))


def test_eighteen_types():
    assert len(default_types(True)) == len(default_types(False)) == 18
    assert set(TYPES) - set(default_types(True)) == {ELASTIC, DRAWN_FROST}
    assert set(TYPES) - set(default_types(False)) == {ELASTIC, "frost"}


@pytest.mark.parametrize(
    ("image", "name", "severity", "constants", "sentence"),
    [
        (photo(15, 40), "fog", 1, "224", "15 x 40 pixels is too small .* need 16 x 16 or more"),
        (photo(20, 20), "fgo", 1, "224", 'unknown corruption "fgo".*Did you mean "fog"'),
        (photo(20, 20), "fog", 0, "224", "severity 0 of fog is none of 1, 2, 3, 4, 5"),
        (photo(20, 20), "fog", 6, "224", "severity 6 of fog"),
        (photo(20, 20), "fog", 1, "299", 'unknown set of constants "299"'),
        (photo(20, 20)[..., 0], "fog", 1, "224", r"uint8 of shape \(20, 20\), but it must be"),
        (photo(20, 20) / 255, "fog", 1, "224", "an image to corrupt is float64"),
        (photo(20, 20), "frost", 1, "224", 'no part of this package.*take "frost_procedural"'),
    ],
)
def test_what_cannot_be_corrupted(image, name, severity, constants, sentence):
    with pytest.raises(UserError, match=sentence):
        corrupt(image, name, severity, key="a", constants=constants)
