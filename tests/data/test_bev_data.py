"""Images of a car's cameras and the map around it: drawn ones, and what changes them."""

import pickle

import numpy as np
import pytest

from diffseg_jax.data import scene_rig
from diffseg_jax.data.bev_transforms import (
    RigChange,
    RigView,
    affine_maps,
    cameras_of,
    network_input,
    require_lidar,
    view_images,
)
from diffseg_jax.data.scene_rays import trace
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

OPTIONS = dict(images=3, size=(24, 36), seed=1, output=(-12.0, 12.0, 1.0))


@pytest.fixture(scope="module")
def source():
    return open_source("bev_scenes", "train", **OPTIONS)


@pytest.fixture(scope="module")
def example(source):
    return source[0]


def place(cameras, n, u, v, depth):
    """World point of pixel (u, v) at a depth, by the two maps of a camera."""
    (a, shift), (b, at) = ((m[:, :3], m[:, 3]) for m in np.float64(cameras[n]))
    u, v, depth = a @ (u, v, depth) + shift
    return b @ (u * depth, v * depth, depth) + at


def test_drawn_streets_are_repeatable_and_splits_differ(source, example):
    again = pickle.loads(pickle.dumps(source))[-3]
    for key in ("images", "intrinsics", "camera_to_world", "bev"):
        np.testing.assert_array_equal(example[key], again[key])
    other = open_source("bev_scenes", "val", **OPTIONS)
    assert not set(source.names) & set(other.names)
    assert (other[0]["images"] != example["images"]).any()
    assert example["images"].shape == (6, 24, 36, 3) and example["images"].dtype == np.uint8
    assert example["bev"].shape == (len(source.labels.names), 24, 24)
    assert set(np.unique(example["bev"])) == {0, 1} and len(list(source)) == 3


def test_the_matrices_are_those_of_the_rays_that_were_drawn(example, monkeypatch):
    """A pixel of the ground at its traced depth lies on the ground, where its colour was read."""
    views = []

    def spied(t, camera, x, y):
        views.append((camera, x, y, trace(t, camera, x, y)))
        return views[-1][-1]

    monkeypatch.setattr(scene_rig, "trace", spied)
    drawn = scene_rig.draw_rig(1, 0, 6, 24, 36, OPTIONS["output"])
    np.testing.assert_array_equal(drawn["images"], example["images"])
    cameras = cameras_of(drawn, np.stack([np.eye(4)] * 6), np.eye(4))
    pose, seen_ground = drawn["ground"].pose, 0
    for n, (_, x, _, (near, solid, *_)) in enumerate(views):
        for v, u in np.argwhere(solid == -2)[::37]:
            depth = 1 / near[v, u]
            point = place(cameras, n, u, v, depth)
            assert abs(point[2]) < 1e-3 * depth
            turned = pose.turned(2 * np.pi * n / 6)
            expected = turned.world(depth, -x[u] * depth)
            np.testing.assert_allclose(pose.world(*point[:2]), expected, rtol=1e-3, atol=1e-3)
            seen_ground += 1
    assert seen_ground > 20


def test_the_map_turns_with_the_world(example):
    ground = example["ground"]
    half = np.diag([-1.0, -1, 1, 1])
    np.testing.assert_array_equal(ground.raster(half), example["bev"][:, ::-1, ::-1])
    shifted = np.eye(4)
    shifted[0, 3] = 3.0  # metres ahead: what was at x is now at x + 3
    np.testing.assert_array_equal(ground.raster(shifted)[:, 3:], example["bev"][:, :-3])


def test_the_published_view_is_the_middle_of_the_bottom():
    matrix = RigView((256, 704), 0.48).matrix(900, 1600)
    expected = np.eye(4)
    expected[0, 0] = expected[1, 1] = 0.48
    expected[:2, 3] = -32, -176
    np.testing.assert_array_equal(matrix, expected)


def test_a_view_of_the_same_size_is_the_image(example):
    view = RigView((24, 36), 1.0)
    found = network_input(example, view)
    np.testing.assert_array_equal(found["images"], example["images"])
    assert found["cameras"].shape == (6, 2, 3, 4) and found["cameras"].dtype == np.float32


def test_a_mirrored_image_is_mirrored_exactly(example):
    change = RigChange(RigView((24, 36), 1.0), (1.0, 1.0), flip=True)
    seen = set()
    for seed in range(8):
        matrix = change.image_matrix(24, 36, np.random.default_rng(seed))
        moved = view_images(example["images"][:1], matrix[None], change.view)[0]
        mirrored = matrix[0, 0] < 0
        expected = example["images"][0][:, ::-1] if mirrored else example["images"][0]
        np.testing.assert_array_equal(moved, expected)
        seen.add(bool(mirrored))
    assert seen == {True, False}


def test_an_image_goes_where_its_matrix_says():
    """A bright spot of a photograph is found where the matrix sends its coordinates."""
    photograph = np.zeros((80, 120, 3), np.uint8)
    photograph[28:33, 68:73] = 255  # around (u, v) = (70, 30)
    change = RigChange(RigView((48, 64), 0.6), (0.55, 0.65), flip=True, rotate=20.0)
    for seed in range(6):
        matrix = change.image_matrix(80, 120, np.random.default_rng(seed))
        moved = view_images(photograph[None], matrix[None], change.view)[0, ..., 0].astype(float)
        u, v, _, _ = matrix @ (70, 30, 0, 1)
        if not (4 < u < 60 and 4 < v < 44):
            continue
        rows, columns = np.mgrid[:48, :64]
        found = [(axis * moved).sum() / moved.sum() for axis in (columns, rows)]
        np.testing.assert_allclose(found, (u, v), atol=0.75)


def test_a_random_change_keeps_points_of_the_world_together(example):
    """The network's points of all cameras move by the change of the world, whatever the images."""
    change = RigChange(
        RigView((16, 24), 0.6), (0.6, 0.8), flip=True, rotate=5.0, world_rotate=45.0,
        world_scale=(0.9, 1.1), world_shift=0.5, world_flip=True,
    )  # fmt: skip
    row = change(example, np.random.default_rng(3))
    assert row["images"].shape == (6, 16, 24, 3) and tuple(row["valid"]) == (16, 24)
    rng = np.random.default_rng(3)
    matrices = [change.image_matrix(24, 36, rng) for _ in range(6)]
    world = change.world_matrix(rng)
    plain = cameras_of(example, np.stack([np.eye(4)] * 6), np.eye(4))
    for n in range(6):
        before = place(plain, n, 10, 20, 7.0)
        u, v, depth, _ = matrices[n] @ (10, 20, 7.0, 1)
        after = place(row["cameras"], n, u, v, depth)
        np.testing.assert_allclose(after, world[:3, :3] @ before + world[:3, 3], atol=1e-3)
    np.testing.assert_array_equal(row["bev"], example["ground"].raster(world))


def test_features_of_a_lidar_follow_a_mirrored_world_and_no_other(example):
    features = np.random.default_rng(0).standard_normal((4, 5, 2)).astype(np.float32)
    given = {**example, "lidar_bev": features}
    view = RigView((24, 36), 1.0)
    np.testing.assert_array_equal(network_input(given, view)["lidar_bev"], features)
    change = RigChange(view, (1.0, 1.0), world_flip=True)
    seen = set()
    for seed in range(8):
        signs = np.sign(np.diag(change.world_matrix(_after_images(change, seed)))[:2]).astype(int)
        row = change(given, np.random.default_rng(seed))
        np.testing.assert_array_equal(row["lidar_bev"], features[:: signs[0], :: signs[1]])
        np.testing.assert_array_equal(row["bev"], example["bev"][:, :: signs[0], :: signs[1]])
        seen.add(tuple(signs))
    assert len(seen) > 2
    turned = RigChange(view, (1.0, 1.0), world_rotate=10.0)
    with pytest.raises(UserError, match="can be mirrored but not turned"):
        turned(given, np.random.default_rng(0))


def _after_images(change, seed):
    """The generator of a change after its images were drawn."""
    rng = np.random.default_rng(seed)
    for _ in range(6):
        change.image_matrix(24, 36, rng)
    return rng


@pytest.mark.parametrize(("change", "sentence"), [
    (dict(intrinsics=None), "comes without intrinsics"),
    (dict(camera_to_world=None), "comes without camera_to_world"),
    (dict(intrinsics=np.zeros((6, 3, 3))), "intrinsics of camera 0 is singular"),
    (dict(intrinsics=np.zeros((5, 3, 3))), r"shape \(5, 3, 3\), but 6 images"),
    (dict(camera_to_world=np.full((6, 4, 4), np.nan)), "camera 0 is singular or not finite"),
])  # fmt: skip
def test_missing_and_singular_calibration_is_named(example, change, sentence):
    changed = {k: v for k, v in {**example, **change}.items() if v is not None}
    with pytest.raises(UserError, match=sentence):
        cameras_of(changed, np.stack([np.eye(4)] * 6), np.eye(4))


def test_affine_maps_of_known_matrices():
    k, eye = np.diag([2.0, 2, 1]), np.eye(4)
    maps = affine_maps(k[None], eye[None], eye[None], eye)
    np.testing.assert_allclose(place(maps, 0, 4, 6, 3.0), (6, 9, 3))


@pytest.mark.parametrize("options", [
    dict(resize=(2.0, 0.5)), dict(resize=(0.0, 0.0)), dict(world_scale=(1.1, 0.9)),
])  # fmt: skip
def test_ranges_whose_ends_are_not_in_order_are_named(options):
    name = next(iter(options))
    with pytest.raises(UserError, match=f"augment.{name} is"):
        RigChange(RigView((24, 36), 1.0), **{"resize": (1.0, 1.0), **options})


def test_photographs_that_do_not_fill_the_view_are_refused(example):
    """The published view of a photograph of half the size would be black in its upper part."""
    with pytest.raises(UserError, match="takes 40x27 pixels or more"):
        network_input(example, RigView((24, 36), 0.9))


def test_what_needs_single_images_refuses_rigs():
    with pytest.raises(UserError, match="square needs single images"):
        open_source("bev_scenes", "train", **OPTIONS, square=32)


@pytest.mark.parametrize(("options", "sentence"), [
    (dict(images=0), "images is 0"),
    (dict(size=(4, 4)), r"size is \(4, 4\)"),
    (dict(output=(-5.0, 5.0, 0.3)), r"output is \(-5.0, 5.0, 0.3\)"),
    (dict(output=(5.0, -5.0, 1.0)), "2 to 1000 whole cells"),
])  # fmt: skip
def test_options_that_draw_nothing_are_named(options, sentence):
    with pytest.raises(UserError, match=sentence):
        open_source("bev_scenes", "train", **OPTIONS | options)


@pytest.mark.parametrize(("found", "shape", "sentence"), [
    ((4, 5, 2), (4, 5, 2), ""),
    (None, (4, 5, 0), ""),
    (None, (4, 5, 2), r"here comes without lidar_bev.* \(4, 5, 2\)\. Give"),
    ((2, 4, 5), (4, 5, 2), r"here has .* \(2, 4, 5\), .*\[X, Y, C\] of shape \(4, 5, 2\)\. Give"),
    ((4, 5, 3), (4, 5, 2), r"of shape \(4, 5, 3\)"),
    ((4, 5, 2), (4, 5, 0), r"reads cameras alone\. Omit"),
])  # fmt: skip
def test_features_of_a_lidar_have_the_shape_that_the_network_reads(found, shape, sentence):
    example = {"name": "here"} | ({} if found is None else {"lidar_bev": np.zeros(found)})
    if not sentence:
        require_lidar(example, shape, "Give.", "Omit.")
        return
    with pytest.raises(UserError, match=sentence):
        require_lidar(example, shape, "Give.", "Omit.")
