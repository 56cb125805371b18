"""Resizing: the conventions of the original programs, and what is true of any interpolation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.layers.resize import (
    aligned_matrix,
    nearest_indices,
    resize_aligned,
    resize_bilinear,
    resize_nearest,
    upsample2_aligned,
)
from diffseg_jax.models.transunet import resize_positions

LIMIT = 3e-5  # float32, of the largest recorded value


def close(actual, expected):
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= LIMIT * np.max(np.abs(expected))


def maps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.golden
def test_recorded_bilinear(golden):
    for path in golden("ddep/bilinear*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        assert cases
        for i, case in enumerate(cases):
            x, aligned, half_pixel = (
                arrays[f"c{i}_{name}"].transpose(0, 2, 3, 1)
                for name in ("x", "aligned", "half_pixel")
            )
            size = tuple(case["out_hw"])
            close(jax.jit(resize_aligned, static_argnums=1)(x, size), aligned)
            close(jax.jit(resize_bilinear, static_argnums=1)(x, size), half_pixel)
            if size == (2 * x.shape[1], 2 * x.shape[2]):
                close(jax.jit(upsample2_aligned)(x), aligned)


@pytest.mark.golden
def test_recorded_position_tables(golden):
    for path in golden("ddep/posemb_resize*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        assert cases
        for i, case in enumerate(cases):
            grids = (case["old_grid"], case["new_grid"])
            old, new = (g if isinstance(g, list) else [g, g] for g in grids)
            first = int(case["class_token"])  # the row of the class token never changes
            table, expected = arrays[f"c{i}_in"], arrays[f"c{i}_out"]
            params = {"encoder": {"position_embedding": table[:, first:], "other": 1}, "head": 2}
            moved = resize_positions(params, tuple(old), tuple(new))
            close(moved["encoder"]["position_embedding"], expected[:, first:])
            np.testing.assert_array_equal(table[:, :first], expected[:, :first])
            assert moved["encoder"]["other"] == 1 and moved["head"] == 2
            assert params["encoder"]["position_embedding"].shape == table[:, first:].shape


@pytest.mark.parametrize("resize", [resize_aligned, resize_bilinear, resize_nearest])
def test_equal_size_is_the_identity(resize):
    x = maps(2, 5, 3, 4)
    np.testing.assert_array_equal(resize(x, (5, 3)), x)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (2, 2), (5, 7)])
def test_doubling_is_a_product_with_the_aligned_matrix(size):
    x = maps(2, *size, 3)
    rows, columns = (aligned_matrix(n, 2 * n) for n in size)
    expected = np.einsum("yh,bhwc,xw->byxc", rows, x, columns)
    close(jax.jit(upsample2_aligned)(x), expected)
    close(resize_aligned(x, (2 * size[0], 2 * size[1])), expected)


@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
def test_doubling_sends_gradients_back_through_the_transposed_matrix(size):
    x, cotangent = maps(1, *size, 2), maps(1, 2 * size[0], 2 * size[1], 2, seed=1)
    pulled = jax.jit(lambda x, dy: jax.vjp(upsample2_aligned, x)[1](dy)[0])(x, cotangent)
    rows, columns = (aligned_matrix(n, 2 * n) for n in size)
    close(pulled, np.einsum("yh,byxc,xw->bhwc", rows, cotangent, columns))


def test_doubling_keeps_the_corners_and_the_type():
    x = jnp.asarray(maps(1, 4, 6, 2), jnp.bfloat16)
    doubled = upsample2_aligned(x)
    assert doubled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(doubled[:, ::7, ::11], x[:, ::3, ::5])


@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 5), (5, 1), (3, 8), (14, 64), (9, 4)])
def test_rows_of_the_matrix_are_weights(source, target):
    matrix = aligned_matrix(source, target)
    assert matrix.shape == (target, source) and matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    if min(source, target) > 1:  # a line stays a line, from first to last point
        np.testing.assert_allclose(
            matrix @ np.linspace(0, 1, source), np.linspace(0, 1, target), atol=1e-12
        )


@pytest.mark.parametrize("resize", [
    upsample2_aligned, lambda x: resize_aligned(x, (7, 5)), lambda x: resize_bilinear(x, (3, 9)),
])  # fmt: skip
def test_linear(resize):
    x, y = jnp.asarray(maps(1, 4, 3, 2)), jnp.asarray(maps(1, 4, 3, 2, seed=1))
    np.testing.assert_allclose(
        resize(2 * x - 3 * y), 2 * resize(x) - 3 * resize(y), atol=1e-5, rtol=1e-5
    )
    np.testing.assert_allclose(resize(jnp.ones((1, 4, 3, 1))), 1, atol=1e-6)


def test_the_two_conventions_differ():
    x = maps(1, 4, 4, 1)
    assert np.max(np.abs(resize_aligned(x, (8, 8)) - resize_bilinear(x, (8, 8)))) > 0.1


@pytest.mark.parametrize("target", [(1, 1), (4, 10), (5, 3), (8, 5), (12, 15), (3, 7)])
def test_nearest_reads_the_floor_of_the_scaled_place(target):
    x = maps(2, 4, 5, 3)
    rows, columns = (np.arange(t) * n // t for t, n in zip(target, (4, 5)))
    expected = x[:, rows][:, :, columns]
    np.testing.assert_array_equal(resize_nearest(x, target), expected)
    labels = (100 * x).astype(np.int32)
    taken = resize_nearest(labels, target)
    assert taken.dtype == jnp.int32
    np.testing.assert_array_equal(taken, labels[:, rows][:, :, columns])


def test_nearest_shrinks_by_four_to_every_fourth_pixel():
    x = maps(1, 12, 8, 2)
    np.testing.assert_array_equal(resize_nearest(x, (3, 2)), x[:, ::4, ::4])


def test_nearest_rounds_as_pytorch_does():
    """26 / 44 in float32 is below 13 / 22, so output 22 reads pixel 12 and not 13."""
    assert nearest_indices(26, 44)[22] == 12
    for source, target in [(3, 5), (7, 19), (23, 12), (300, 299)]:
        indices = nearest_indices(source, target)
        assert indices[0] == 0 and indices.max() < source and np.all(np.diff(indices) >= 0)


@pytest.mark.parametrize("target", [(8, 15), (7, 9), (2, 5)])
def test_gradients_of_nearest_return_to_what_was_read(target):
    x, cotangent = maps(1, 4, 5, 2), maps(1, *target, 2, seed=1)
    pulled = jax.vjp(lambda x: resize_nearest(x, target), jnp.asarray(x))[1](cotangent)[0]
    rows, columns = (np.arange(t) * n // t for t, n in zip(target, (4, 5)))
    expected = np.zeros_like(x)
    np.add.at(expected, (0, rows[:, None], columns[None]), cotangent[0])
    close(pulled, expected)
