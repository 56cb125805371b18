"""The built-in street scenes are pure, exact, the same at any size, and not solved by colour."""

import numpy as np
import pytest

from diffseg_jax.data import scene_rays, scene_street, scenes
from diffseg_jax.data.scenes import NAMES, PALETTE, SKY_DEPTH, draw_scene
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

GROUND = [NAMES.index(name) for name in ("road", "sidewalk")]


@pytest.fixture(scope="module")
def street():
    """64 scenes of 48 x 64 pixels."""
    return [draw_scene(0, i, 48, 64) for i in range(64)]


def same(one, other):
    return all(np.array_equal(one[k], other[k]) for k in ("image", "mask", "depth"))


def test_a_scene_is_a_function_of_seed_and_index():
    first = draw_scene(3, 5, 40, 56)
    np.random.default_rng().random()
    draw_scene(9, 9, 24, 24)
    assert same(first, draw_scene(3, 5, 40, 56))
    for seed, index in ((3, 6), (4, 5), (5, 3)):
        other = draw_scene(seed, index, 40, 56)
        assert not np.array_equal(first["image"], other["image"])
        assert not np.array_equal(first["mask"], other["mask"])


@pytest.mark.parametrize("height, width", [(8, 8), (33, 70), (96, 128), (170, 200)])
def test_shapes_dtypes_and_ranges(height, width):
    scene = draw_scene(1, 2, height, width)
    image, mask, depth = scene["image"], scene["mask"], scene["depth"]
    assert (image.dtype, mask.dtype, depth.dtype) == (np.uint8, np.int32, np.float32)
    assert image.shape == (height, width, 3) and mask.shape == depth.shape == (height, width)
    assert mask.min() >= 0 and mask.max() < len(NAMES)
    assert image.std() > 10


def test_every_class_has_a_name_a_colour_and_a_share(street):
    assert len(NAMES) == len(set(NAMES)) == len(PALETTE) == len(set(PALETTE))
    present = np.array([np.bincount(s["mask"].ravel(), minlength=len(NAMES)) > 0 for s in street])
    assert np.all(present.mean(0) > 0.3), dict(zip(NAMES, present.mean(0)))
    share = np.mean([np.bincount(s["mask"].ravel(), minlength=len(NAMES)) for s in street], 0) / (
        48 * 64
    )
    assert np.all(share > 0.003) and np.all(share < 0.45), dict(zip(NAMES, share))


def test_only_the_sky_is_at_sky_depth(street):
    for scene in street:
        sky = scene["mask"] == NAMES.index("sky")
        assert np.all(scene["depth"] > 0)
        np.testing.assert_array_equal(scene["depth"] == np.float32(SKY_DEPTH), sky)


def test_the_inverse_depth_of_the_ground_is_linear_in_the_row(street):
    """1 / depth of a plane is linear in the row; everything that stands on it is nearer."""
    for scene in street:
        inverse, on = 1 / scene["depth"], np.isin(scene["mask"], GROUND)
        rows = np.nonzero(on)[0]
        slope, start = np.polyfit(rows, inverse[on], 1)
        assert slope > 0
        plane = start + slope * np.arange(48)[:, None] + np.zeros(64)
        np.testing.assert_allclose(inverse[on], plane[on], atol=2e-6)
        assert np.all(inverse > plane - 2e-6)
        for name in ("car", "person", "building"):
            assert np.all((inverse - plane)[scene["mask"] == NAMES.index(name)] > -2e-6)


def test_depth_within_a_road_column_increases_upwards(street):
    for scene in street:
        for mask, depth in zip(scene["mask"].T, scene["depth"].T):
            assert np.all(np.diff(depth[mask == NAMES.index("road")]) < 0)


def table_of(*solids):
    collected = scene_street.Solids()
    for kind, *arguments in solids:
        getattr(collected, kind)(*arguments)
    return collected.table()


def test_the_nearer_solid_hides_the_farther_in_any_order():
    """A box with its near end at 10 m and a ball as near as 5 m, drawn in both orders."""
    grey, camera = (0.5, 0.5, 0.5), scene_street.Camera(1.5, 1.0, 0.5)
    box = (
        "block",
        scene_street.CAR,
        scene_street.PLAIN,
        (0, 0, 11),
        0.0,
        (2, 1),
        (2, 1),
        3.0,
        grey,
    )
    ball = ("ball", scene_street.PERSON, scene_street.PLAIN, (0, 1.5, 6), 0.0, (1, 1, 1), grey)
    x, y = camera.rays(np.arange(65) + 0.5, np.arange(65) + 0.5, 65, 65)
    for order in ((box, ball), (ball, box)):
        near, solid, _, _ = scene_rays.trace(table_of(*order), camera, x, y)
        assert solid[32, 32] == order.index(ball)
        np.testing.assert_allclose(1 / near[32, 32], 5.0, rtol=1e-5)
        beside = np.abs(x - 0.19).argmin()
        assert solid[32, beside] == order.index(box)
        np.testing.assert_allclose(1 / near[32, beside], 10.0, rtol=1e-5)


def test_a_rotated_box_is_hit_on_its_edge():
    """A pillar of half side 1, rotated by 45 degrees, has an edge sqrt(2) before its middle."""
    camera = scene_street.Camera(1.5, 1.0, 0.5)
    pillar = (
        "block",
        scene_street.POLE,
        scene_street.PLAIN,
        (0, 0, 8),
        np.pi / 4,
        (1, 1),
        (1, 1),
        3.0,
        (0.5, 0.5, 0.5),
    )
    near, solid, _, _ = scene_rays.trace(
        table_of(pillar), camera, np.float32([-0.001, 0, 0.001]), np.float32([0, 0.001])
    )
    assert np.all(solid == 0)
    np.testing.assert_allclose(1 / near[0, 1], 8 - np.sqrt(2), rtol=1e-4)
    assert near[0, 0] < near[0, 1] > near[0, 2]


def test_a_box_covers_exactly_its_outline():
    """A box 2 m wide and 1 m high with its near end at 9 m, from a camera 1.5 m above ground."""
    camera, grey = scene_street.Camera(1.5, 1.0, 0.5), (0.5, 0.5, 0.5)
    box = (
        "block",
        scene_street.CAR,
        scene_street.PLAIN,
        (0, 0, 10),
        0.0,
        (1, 1),
        (1, 1),
        1.0,
        grey,
    )
    x, y = camera.rays(np.arange(400) + 0.5, np.arange(400) + 0.5, 400, 400)
    solid = scene_rays.trace(table_of(box), camera, x, y)[1]
    front = (np.abs(x) < 1 / 9) & (y[:, None] > 0.5 / 9) & (y[:, None] < 1.5 / 9)
    lid = (y[:, None] > 0.5 / 11) & (y[:, None] <= 0.5 / 9)
    top = lid & (np.abs(x) < y[:, None] / 0.5)  # 1 m up the depth is 0.5 / y
    np.testing.assert_array_equal(solid == 0, front | top)


def test_finer_sampling_smooths_the_image_and_changes_no_label(monkeypatch):
    fine = draw_scene(0, 1, 170, 200)
    monkeypatch.setattr(scenes, "FINE_TO", 0)
    plain = draw_scene(0, 1, 170, 200)
    np.testing.assert_array_equal(fine["mask"], plain["mask"])
    np.testing.assert_array_equal(fine["depth"], plain["depth"])
    assert not np.array_equal(fine["image"], plain["image"])


def test_another_size_shows_the_same_scene():
    """Compared at every second pixel of twice the size; edges may move by a quarter pixel."""
    for index in range(6):
        coarse, fine = draw_scene(2, index, 96, 128), draw_scene(2, index, 192, 256)
        assert np.mean(coarse["mask"] == fine["mask"][::2, ::2]) > 0.9
        pairs = coarse["image"].astype(float), fine["image"].reshape(96, 2, 128, 2, 3).mean((1, 3))
        assert np.abs(pairs[0] - pairs[1]).mean() < 16


def colour_bins(scene):
    r, g, b = (scene["image"].reshape(-1, 3) // 16).astype(int).T
    return (r * 16 + g) * 16 + b


def mean_iou(guess, truth):
    both = np.bincount(truth * len(NAMES) + guess, minlength=len(NAMES) ** 2).reshape(
        len(NAMES), -1
    )
    hits = np.diag(both)
    return np.mean(hits / (both.sum(0) + both.sum(1) - hits))


def test_colour_alone_does_not_solve_the_scenes(street):
    """The best class per colour, counted on 150 scenes, has a mean IoU of 0.24 on 64 others."""
    train = [draw_scene(1, i, 48, 64) for i in range(150)]
    pairs = np.concatenate([colour_bins(s) * len(NAMES) + s["mask"].ravel() for s in train])
    counts = np.bincount(pairs, minlength=16**3 * len(NAMES)).reshape(16**3, -1)
    truth = np.concatenate([s["mask"].ravel() for s in street])
    by_colour = mean_iou(counts.argmax(1)[np.concatenate([colour_bins(s) for s in street])], truth)
    constants = [mean_iou(np.full_like(truth, k), truth) for k in range(len(NAMES))]
    assert max(constants) < 0.1
    assert max(constants) < by_colour < 0.35


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 96, 128), (0, -1, 96, 128), (0, 0, 4, 128), (0, 0, 96, 0)]
)
def test_a_scene_that_cannot_be_drawn_is_refused(arguments):
    with pytest.raises(UserError, match="cannot draw scene"):
        draw_scene(*arguments)
