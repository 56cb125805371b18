"""Points of cameras, and pooling them into cells of a map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bev_case import rig
from diffseg_jax.data.bev_transforms import affine_maps
from diffseg_jax.layers.bev_pooling import (
    Grid,
    _pool_by_depth,
    _pool_sorted,
    cells_of_points,
    depth_bins,
    frustum,
    points_of,
    pool,
)

GRID = Grid((-4.0, 4.0, 1.0), (-2.0, 2.0, 0.5), (-1.0, 1.0, 2.0))


def test_a_projected_point_comes_back():
    """A point of the world, photographed by K and the image matrix, is found at its depth."""
    intrinsics, to_world, image, world = rig(number=4)
    image[:, 0, 0], image[:, 1, 1], image[:, 0, 3] = 0.5, 0.5, -3.0
    turn = 0.3
    world[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    world[:3, 3] = (0.5, -0.2, 0.1)
    maps = affine_maps(intrinsics, to_world, image, world)
    at = np.array([3.0, 1.0, 0.2])  # before the change of the world
    expected = world[:3, :3] @ at + world[:3, 3]
    for n in range(4):
        seen = np.linalg.inv(to_world[n]) @ np.append(at, 1)
        if seen[2] < 0.1:
            continue
        u, v, _ = intrinsics[n] @ (seen[:3] / seen[2])
        pixel = image[n][:3, :3] @ (u, v, seen[2]) + image[n][:3, 3]
        grid = np.float32(pixel).reshape(1, 1, 1, 3)
        np.testing.assert_allclose(points_of(maps[n : n + 1], grid).ravel(), expected, atol=1e-5)


def test_the_frustum_spans_the_image_and_the_depths():
    depths = depth_bins((1.0, 60.0, 0.5))
    assert (len(depths), depths[0], depths[-1]) == (118, 1.0, 59.5)
    found = frustum((256, 704), (32, 88), depths)
    assert found.shape == (118, 32, 88, 3)
    np.testing.assert_array_equal(found[7, -1, -1], (703, 255, 4.5))
    np.testing.assert_array_equal(found[0, 0, 0], (0, 0, 1))


def test_cells_round_towards_zero():
    """What lies up to a cell below the lower end counts for the first cell, above for none."""
    x = jnp.asarray([-4.9, -5.1, 3.9, 4.1, 0.0])
    points = jnp.stack([x, 0 * x - 1.9, 0 * x], -1)
    np.testing.assert_array_equal(
        cells_of_points(points, GRID), [0, 64, 7 * 8, 64, 4 * 8]
    )
    assert int(cells_of_points(jnp.asarray([0.0, 0.0, 1.5]), GRID)) == 64


def test_the_ends_of_a_map_are_where_the_original_has_them():
    """A tenth of `BORDER` inside counts, along z too, and a tenth of it outside does not."""
    published = Grid((-51.2, 51.2, 0.4), (-51.2, 51.2, 0.4), (-10.0, 10.0, 20.0))
    point = lambda **changes: jnp.stack([*({"x": 0.1, "y": 0.1, "z": 0.0} | changes).values()])
    cell = lambda **changes: int(cells_of_points(point(**changes), published))
    middle, outside = 128 * 256 + 128, 256 * 256
    assert cell() == middle
    assert [cell(x=51.1998), cell(y=51.1998)] == [255 * 256 + 128, 128 * 256 + 255]
    assert [cell(x=51.2002), cell(y=51.2002)] == [outside] * 2
    assert [cell(x=-51.5998), cell(y=-51.5998)] == [128, 128 * 256]
    assert [cell(x=-51.6002), cell(y=-51.6002)] == [outside] * 2
    assert [cell(z=9.99), cell(z=-29.99)] == [middle] * 2
    assert [cell(z=10.01), cell(z=-30.01)] == [outside] * 2


def test_points_on_a_border_have_one_cell_however_they_are_rounded():
    steps = jnp.asarray([-1e-5, 0.0, 1e-5])
    points = jnp.stack([2 + steps, 0.5 - steps, 0 * steps], -1)
    np.testing.assert_array_equal(cells_of_points(points, GRID), [6 * 8 + 5] * 3)


def inputs(seed=0):
    generator = np.random.default_rng(seed)
    depth = generator.random((2, 3, 5, 4, 6), np.float32)
    features = generator.standard_normal((2, 3, 4, 6, 7)).astype(np.float32)
    return depth, features, generator.integers(0, 11, depth.shape, np.int32)


def direct(depth, features, cells, size):
    sums = np.zeros((len(depth), size + 1, features.shape[-1]))
    for b, n, d, i, j in np.ndindex(depth.shape):
        sums[b, cells[b, n, d, i, j]] += depth[b, n, d, i, j] * features[b, n, i, j]
    return sums[:, :size]


@pytest.mark.parametrize("form", [_pool_by_depth, _pool_sorted, pool])
def test_both_forms_are_the_sum_over_points(form):
    given = inputs()
    found = jax.jit(form, static_argnums=3)(*given, 10)
    np.testing.assert_allclose(found, direct(*given, 10), atol=1e-5)


def test_both_forms_have_the_same_gradients():
    depth, features, cells = inputs()
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((2, 10, 7)), jnp.float32)

    def gradients(form):
        loss = lambda depth, features: jnp.sum(weights * form(depth, features, cells, 10))
        return jax.jit(jax.grad(loss, (0, 1)))(depth, features)

    for one, other in zip(gradients(_pool_by_depth), gradients(_pool_sorted)):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_products_of_all_points_are_never_in_memory():
    """At the published size they would be 6 x 118 x 32 x 88 x 80 numbers, or 638 MB."""
    shapes = (1, 6, 118, 32, 88), (1, 6, 32, 88, 80), (1, 6, 118, 32, 88)
    dtypes = jnp.float32, jnp.float32, jnp.int32
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
    volume = 4 * 80 * np.prod(shapes[0])
    summed = functools.partial(pool, size=256 * 256)
    program = jax.jit(lambda *given: summed(*given)).lower(*given).compile()
    assert program.memory_analysis().temp_size_in_bytes < volume / 8
    loss = lambda depth, features, cells: jnp.sum(jnp.square(summed(depth, features, cells)))
    program = jax.jit(jax.grad(loss, (0, 1))).lower(*given).compile()
    assert program.memory_analysis().temp_size_in_bytes < volume / 4
