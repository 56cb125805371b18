"""Deformable attention against recorded outputs, interpolation, and plain gradients."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers import deformable
from diffseg_jax.layers.deformable import DeformableAttention, sample_points
from diffseg_jax.weights.formats import read_arrays

LIMIT = 1e-5  # float32, of the largest expected value
NAMES = dict(
    value="value_proj", offsets="sampling_offsets", weights="attention_weights", out="output_proj"
)
# Compiling takes far longer than running maps this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
sampled = quick(sample_points, static_argnums=1)


def close(actual, expected, limit=LIMIT):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= limit * np.max(np.abs(expected))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def anywhere(*shape, seed=0):
    """Locations (x, y), some of them beyond the border by more than a whole cell."""
    return np.random.default_rng(seed).uniform(-0.4, 1.4, (*shape, 2)).astype(np.float32)


def centres(h, w):
    """f32[h w, 2], (x, y) of every cell."""
    rows, columns = np.mgrid[:h, :w]
    positions = np.stack([(columns + 0.5) / w, (rows + 0.5) / h], -1)
    return positions.reshape(-1, 2).astype(np.float32)


def attention(dim=8, heads=2, levels=1, points=3, dtype=jnp.float32, seed=1):
    """One whose parameters are all drawn anew, none of them zero."""
    module = DeformableAttention(dim, heads, levels, points, dtype=dtype, rngs=nnx.Rngs(0))
    for number, layer in enumerate((module.value, module.offsets, module.weights, module.out)):
        layer.kernel[...] = 0.5 * draw(*layer.kernel.shape, seed=seed + 2 * number)
        layer.bias[...] = draw(*layer.bias.shape, seed=seed + 2 * number + 1)
    return module


@functools.partial(quick, static_argnums=(0, 5))
def _run(graph, state, query, positions, reference, shapes, values, dy):
    def make(query):
        module = nnx.merge(graph, state)
        cells = None if values is None else module.project(values)
        return module(query, module.constants(positions), reference, shapes, cells)

    if dy is None:
        return make(query)
    out, pull = jax.vjp(make, query)
    return out, *pull(dy)


def run(module, query, positions, reference, shapes, values=None, dy=None):
    """What a module makes of its inputs; with dy the gradient of the query too."""
    return _run(*nnx.split(module), query, positions, reference, shapes, values, dy)


def pulled(function, dy, *inputs):
    """The function's result, and the gradients of all inputs for the cotangent dy."""

    def both(dy, *inputs):
        out, pull = jax.vjp(function, *inputs)
        return out, pull(dy)

    return quick(both)(dy, *inputs)


def interpolated(maps, locations):
    """f64[h,w,d] read at (x, y) in [0, 1]: every cell is a tent of two cells' width."""
    h, w = maps.shape[:2]
    tent = lambda position, size: np.maximum(0, 1 - np.abs(position * size - 0.5 - np.arange(size)))
    return np.stack([
        np.einsum("y,x,yxd->d", tent(y, h), tent(x, w), maps.astype(np.float64))
        for x, y in locations.reshape(-1, 2).astype(np.float64)
    ]).reshape(*locations.shape[:-1], -1)  # fmt: skip


# --- recorded -------------------------------------------------------------------------------------


def dense(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


@pytest.mark.golden
def test_recorded_attention(golden):
    for path in golden("ddp/deform_attn*.json"):
        sizes, arrays = json.loads(path.read_text())["config"], np.load(path.with_suffix(".npz"))
        state = read_arrays(path.with_suffix(".pth"))
        options = dict(points=sizes["points"], dtype=jnp.float32, rngs=nnx.Rngs(0))
        module = DeformableAttention(sizes["E"], sizes["heads"], **options)
        for ours, theirs in NAMES.items():
            layer = getattr(module, ours)
            layer.kernel[...] = jnp.asarray(state.pop(f"{theirs}.weight").T)
            layer.bias[...] = jnp.asarray(state.pop(f"{theirs}.bias"))
        assert not state
        reference, shapes = arrays["reference_points"], ((sizes["H"], sizes["W"]),)
        recorded = ("query", "query_pos", *NAMES.values(), "output")
        for query, positions, value, offsets, weights, projected, output in zip(
            *(arrays[name] for name in recorded)
        ):  # one image at a time, for each may have positions of its own
            close(dense(module.value, query), value)
            kernel = np.asarray(module._kernel(module.offsets, module.weights))
            close(
                query @ kernel + module.constants(positions), np.concatenate([offsets, weights], -1)
            )
            out = run(module, query[None], positions, reference, shapes)[0]
            close(out, projected)
            close(out + query, output)


@pytest.mark.golden
def test_recorded_sampling(golden):
    for path in golden("ddp/deform_attn*.json"):
        sizes, arrays = json.loads(path.read_text())["config"], np.load(path.with_suffix(".npz"))
        locations, weights = (arrays[f"core_{name}"] for name in ("locations", "weights"))
        inputs = arrays["core_value"], ((sizes["H"], sizes["W"]),)
        out = sampled(*inputs, locations[:, :, :, None], weights[:, :, :, None])
        close(out, arrays["core_out"])


# --- sampling -------------------------------------------------------------------------------------


def test_sampling_anywhere_is_plain_interpolation():
    shapes = (h, w) = (4, 6)
    values, locations = draw(2, h * w, 3, 5), anywhere(2, 30, 3, 1, 2)
    weights = draw(2, 30, 3, 1, 2, seed=1)
    out = sampled(values, (shapes,), locations, weights).reshape(2, 30, 3, 5)
    for b in range(2):
        for head in range(3):
            samples = interpolated(values[b, :, head].reshape(h, w, 5), locations[b, :, head, 0])
            expected = np.einsum("np,npd->nd", weights[b, :, head, 0], samples)
            close(out[b, :, head], expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (3, 4)])
def test_cell_centres_give_the_map_itself(shape):
    values = draw(1, math.prod(shape), 2, 3)
    positions = np.stack([centres(*shape)] * 2, 1)[None, :, :, None, None]
    out = sampled(values, (shape,), positions, np.ones(positions.shape[:-1], np.float32))
    close(out, values.reshape(out.shape))


@pytest.mark.parametrize("step", [(1, 0), (0, 1), (-2, 1), (7, 0), (0, -9)])
def test_whole_steps_shift_the_map_and_let_zeros_in(step):
    h, w = 4, 6
    values = draw(1, h * w, 1, 3)
    positions = (centres(h, w) + np.divide(step, (w, h))).astype(np.float32)
    positions = positions[None, :, None, None, None]
    out = sampled(values, ((h, w),), positions, np.ones(positions.shape[:-1], np.float32))
    expected = np.zeros((h, w, 3))
    for i in range(h):
        for j in range(w):
            x, y = j + step[0], i + step[1]
            if 0 <= x < w and 0 <= y < h:
                expected[i, j] = values.reshape(h, w, 3)[y, x]
    np.testing.assert_allclose(out[0].reshape(h, w, 3), expected, atol=1e-5)


def test_points_far_outside_count_nothing_and_have_no_gradients():
    values, weights = draw(1, 12, 1, 3), np.ones((1, 5, 1, 1, 1), np.float32)
    positions = np.float32([(-0.2, 0.5), (1.2, 0.5), (0.5, -0.2), (0.5, 1.2), (-1e9, np.inf)])
    inputs = values, positions.reshape(1, 5, 1, 1, 1, 2), weights
    function = lambda values, *rest: sample_points(values, ((3, 4),), *rest)
    out, gradients = pulled(function, np.ones((1, 5, 3), np.float32), *inputs)
    assert not np.any(out)
    assert not any(np.any(gradient) for gradient in gradients)


def test_levels_add_up():
    shapes, sizes = ((4, 6), (2, 3), (1, 2)), (24, 6, 2)
    values, locations = draw(2, 32, 3, 4), anywhere(2, 7, 3, 3, 2)
    weights = draw(2, 7, 3, 3, 2, seed=1)
    total = sum(
        sampled(part, (shape,), locations[:, :, :, [l]], weights[:, :, :, [l]])
        for l, (shape, part) in enumerate(zip(shapes, np.split(values, np.cumsum(sizes)[:-1], 1)))
    )
    close(sampled(values, shapes, locations, weights), total)
    with pytest.raises(ValueError, match="32 values do not fill"):
        sample_points(values, shapes[:2], locations, weights)


# --- gradients ------------------------------------------------------------------------------------


def cases(count=11):
    """Values, locations and weights of two images of 4x6, two heads, and a cotangent."""
    return draw(2, 24, 2, 3), anywhere(2, count, 2, 1, 2), draw(2, count, 2, 1, 2, seed=1)


@pytest.mark.parametrize("chunk", [3, 11, 128])
def test_gradients_are_those_of_the_plain_program(monkeypatch, chunk):
    """By windows and chunks, with and without queries left over."""
    monkeypatch.setattr(deformable, "CHUNK", chunk)

    def plain(values, locations, weights):
        maps = values.reshape(2, 4, 6, 2, 3)
        out = deformable.bilinear_sums(maps, locations[:, :, :, 0], weights[:, :, :, 0])
        return out.reshape(2, 11, 6)

    ours = lambda values, *rest: sample_points(values, ((4, 6),), *rest)
    dy = draw(2, 11, 6, seed=2)
    (out, mine), (expected, theirs) = (pulled(form, dy, *cases()) for form in (ours, plain))
    close(out, expected)
    for gradient, plain_one in zip(mine, theirs):
        close(gradient, plain_one)


def test_the_backward_pass_has_an_implementation_for_cpus():
    ours = lambda values, *rest: sample_points(values, ((4, 6),), *rest)
    back = lambda *inputs: jax.vjp(ours, *inputs)[1](draw(2, 11, 6))
    assert "platform_index" in str(jax.make_jaxpr(back)(*cases()))


def test_gradients_are_finite_differences():
    """In the map and the weights, in which the result is linear, and in positions between kinks."""
    values, locations, weights = cases()
    pixels = locations * [6, 4] - 0.5
    pixels = np.floor(pixels) + np.clip(pixels - np.floor(pixels), 0.1, 0.9)  # no kink within 0.1
    inputs = [values, ((pixels + 0.5) / [6, 4]).astype(np.float32), weights]
    dy = draw(2, 11, 6, seed=2)
    ours = lambda values, *rest: sample_points(values, ((4, 6),), *rest)
    gradients = pulled(ours, dy, *inputs)[1]
    value = lambda v, l, a: np.sum(dy * np.asarray(sampled(v, ((4, 6),), l, a), np.float64))
    for number, size in enumerate((0.5, 0.01, 0.5)):
        way = draw(*inputs[number].shape, seed=3 + number).clip(-1, 1) * np.float32(size)
        high, low = ([x + sign * way if k == number else x for k, x in enumerate(inputs)]
                     for sign in (1, -1))  # fmt: skip
        parts = np.asarray(gradients[number], np.float64) * way
        difference = (value(*high) - value(*low)) / 2
        assert abs(difference - np.sum(parts)) <= 1e-3 * np.sum(np.abs(parts))


# --- the module -----------------------------------------------------------------------------------


def test_attention_equals_its_plain_steps():
    """Values from the query alone; offsets and weights from query and positions; two levels too."""
    shapes = ((3, 4), (2, 2))
    module = attention(levels=2)
    query, positions, tokens = draw(2, 5, 8), draw(5, 8, seed=1), draw(2, 16, 8, seed=2)
    reference = anywhere(5, 2, seed=3)
    out = run(module, query, positions, reference, shapes, tokens)
    offsets = dense(module.offsets, query + positions).reshape(2, 5, 2, 2, 3, 2)
    weights = np.exp(dense(module.weights, query + positions).reshape(2, 5, 2, 6))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(2, 5, 2, 2, 3)
    positions = reference[None, :, None, :, None] + offsets / [[[4, 3]], [[2, 2]]]
    values = dense(module.value, tokens).reshape(2, 16, 2, 4)
    close(out, dense(module.out, sampled(values, shapes, positions.astype(np.float32), weights)))


def test_values_come_from_the_query_by_default():
    module, query = attention(), draw(2, 12, 8)
    inputs = module, query, draw(12, 8, seed=1), centres(3, 4), ((3, 4),)
    close(run(*inputs), run(*inputs, values=query))


def test_a_batch_is_its_images():
    module, query, dy = attention(), draw(2, 12, 8), draw(2, 12, 8, seed=2)
    inputs = draw(12, 8, seed=1), centres(3, 4), ((3, 4),)
    whole = run(module, query, *inputs, dy=dy)
    for i in range(2):
        one = run(module, query[[i]], *inputs, dy=dy[[i]])
        for mine, expected in zip(one, whole):
            close(mine, expected[i : i + 1])


def test_first_points_lie_outwards_on_squares():
    """Eight heads look along the axes and the diagonals, point k at k cells."""
    module = DeformableAttention(16, 8, 2, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    ways = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = [[[np.multiply(k, way) for k in (1, 2, 3, 4)]] * 2 for way in ways]
    bias = module.offsets.bias[...].reshape(8, 2, 4, 2)
    np.testing.assert_allclose(bias, expected, atol=1e-6)
    for layer in (module.offsets, module.weights):
        assert not np.any(layer.kernel[...])
    for layer in (module.weights, module.value, module.out):
        assert not np.any(layer.bias[...])
    for layer in (module.value, module.out):
        bound = math.sqrt(6 / 32)
        assert 0.9 * bound < np.max(np.abs(layer.kernel[...])) <= bound
    np.testing.assert_array_equal(module.constants(draw(5, 16))[:, :128], [bias.ravel()] * 5)


def test_bfloat16_is_near_float32():
    query, inputs, outs = draw(1, 12, 8), (draw(12, 8, seed=1), centres(3, 4), ((3, 4),)), []
    for dtype in (jnp.float32, jnp.bfloat16):
        module, x = attention(dtype=dtype), jnp.asarray(query, dtype)
        assert module.constants(inputs[0]).dtype == jnp.float32
        out, gradient = run(module, x, *inputs, dy=jnp.ones_like(x))
        assert out.dtype == gradient.dtype == dtype
        outs.append(out)
    close(outs[1], outs[0], 5e-2)
