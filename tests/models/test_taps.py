"""Features per pixel: read at chosen pixels, at all of them, or through a layer, all the same."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg_jax.models.taps import PixelFeatures, stack

# Compiling takes far longer than running arrays this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
few = settings(max_examples=15, deadline=None, derandomize=True)
SIDES = st.integers(1, 9)
HIDDEN, CLASSES = 6, 4


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def values(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def features(shapes, size, covered=(1.0, 1.0), images=1, host=False, dtype=np.float32):
    """PixelFeatures of random maps with the shapes (h, w, C)."""
    maps = [values(images, *shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    maps = tuple(maps if host else map(jnp.asarray, maps))
    return PixelFeatures(maps, size, (covered,) * len(maps))


@st.composite
def some_features(draw):
    """One to three maps, often of equal resolutions, of one to three images."""
    sizes = draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2))
    shapes = [(*draw(st.sampled_from(sizes)), draw(st.integers(1, 4)))
              for _ in range(draw(st.integers(1, 3)))]  # fmt: skip
    part = st.sampled_from([1.0, 0.875, 0.6])
    size = (draw(st.integers(1, 14)), draw(st.integers(1, 14)))
    return features(shapes, size, (draw(part), draw(part)), draw(st.integers(1, 3)), host=True)


def by_hand(array, size, covered):
    """The definition, pixel by pixel in float64: f[h, w, C] -> f[H, W, C]."""
    out = np.zeros((*size, array.shape[-1]))
    for position in np.ndindex(*size):
        taps = []
        for index, side, count, part in zip(position, array.shape, size, covered):
            at = max((index + 0.5) * side * part / count - 0.5, 0)
            low = int(at)
            taps.append([(low, 1 - at + low), (min(low + 1, side - 1), at - low)])
        out[position] = sum(a * b * array[y, x] for y, a in taps[0] for x, b in taps[1])
    return out


# --- all pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size", "covered"), [
    ((4, 4, 2), (16, 16), (1.0, 1.0)),
    ((3, 5, 2), (7, 6), (1.0, 0.75)),
    ((1, 7, 1), (5, 3), (0.5, 1.0)),
    ((8, 6, 1), (3, 4), (1.0, 0.9)),   # smaller than the map
])  # fmt: skip
def test_every_pixel_is_bilinear(shape, size, covered):
    dense = features([shape], size, covered, images=2).dense()
    for image in range(2):
        expected = by_hand(values(2, *shape)[image], size, covered)
        np.testing.assert_allclose(dense[image], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.golden
def test_recorded_resizes(golden):
    for path in golden("adm/image_ops*.npz"):
        recorded = np.load(path)
        names = [key.removesuffix("__in") for key in recorded if re.match(r"bilinear\d+__in", key)]
        assert names
        for name in names:
            small, large = (np.moveaxis(recorded[f"{name}__{end}"], 1, -1) for end in ("in", "out"))
            dense = PixelFeatures((jnp.asarray(small),), large.shape[1:3]).dense()
            np.testing.assert_allclose(dense, large, atol=1e-5, err_msg=name)


def test_enlarging_is_that_of_jax():
    """Every map is enlarged alone; their channels follow each other in the order of the maps."""
    found = features([(2, 3, 4), (4, 6, 3), (2, 3, 1)], (11, 6), images=2)
    parts = [jax.image.resize(m, (2, 11, 6, m.shape[-1]), "bilinear") for m in found.maps]
    np.testing.assert_allclose(found.dense(), jnp.concatenate(parts, -1), rtol=1e-5, atol=1e-6)


def test_a_map_may_reach_beyond_the_image():
    """Pixels of an image that fills a part are the first pixels of the whole map."""
    shapes = [(4, 3, 2), (8, 6, 1)]
    whole = features(shapes, (16, 15), images=2).dense()
    part = features(shapes, (10, 6), (10 / 16, 6 / 15), images=2).dense()
    np.testing.assert_allclose(part, whole[:, :10, :6], rtol=1e-5, atol=1e-5)
    assert not np.allclose(part, features(shapes, (10, 6), images=2).dense(), atol=0.1)


def test_a_map_of_the_size_of_the_image_is_the_features():
    found = features([(5, 7, 3)], (5, 7), images=2)
    np.testing.assert_array_equal(found.dense(), found.maps[0])


# --- chosen pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_chosen_pixels_are_those_of_all(host, dtype):
    shapes, size = [(3, 4, 5), (7, 5, 2), (12, 12, 1)], (10, 9)
    found = features(shapes, size, (1.0, 0.8), images=3, host=host, dtype=dtype)
    draw = np.random.default_rng(1)
    image, y, x = (draw.integers(0, count, 200, np.int32) for count in (3, *size))
    picked = found.gather(image, y, x)
    assert isinstance(picked, np.ndarray) == host and picked.dtype == np.float32
    dense = np.asarray(found.dense())
    assert dense.dtype == np.float32
    np.testing.assert_allclose(picked, dense[image, y, x], rtol=1e-5, atol=1e-6)
    in_numpy = jax.tree.map(np.asarray, found).gather(image, y, x)
    np.testing.assert_array_equal(found.gather_to_host(image, y, x), in_numpy)


@few
@given(some_features())
def test_any_pixels_are_gathered_from_any_maps(found):
    image, y, x = (axis.ravel() for axis in np.indices((found.count, *found.size)))
    expected = quick(PixelFeatures.dense)(found).reshape(-1, found.width)
    np.testing.assert_allclose(found.gather(image, y, x), expected, rtol=1e-5, atol=1e-5)


# --- through a layer ------------------------------------------------------------------------------


def deeper(h):
    """What follows the layer: an activation and another layer, more than one output."""
    logits = jax.nn.silu(h) @ jnp.asarray(values(HIDDEN, CLASSES, seed=9))
    return {"logits": logits, "label": jnp.argmax(logits, -1)}


@few
@given(some_features(), st.integers(1, 15))
def test_the_layer_first_is_the_layer_last(found, strip):
    kernel = values(found.width, HIDDEN, seed=8)

    def both(found, kernel):
        before, after = found.project(kernel, strip=strip), found.dense() @ kernel
        return (before, found.project(kernel, deeper, strip)), (after, deeper(after))

    (plain, made), (expected, wanted) = quick(both)(found, kernel)
    assert plain.shape == (found.count, *found.size, HIDDEN)
    for one, other in ((plain, expected), (made["logits"], wanted["logits"])):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)
    second, first = np.moveaxis(np.sort(wanted["logits"], -1)[..., -2:], -1, 0)
    clear = first - second > 1e-4 * scale
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(made["label"][clear], wanted["label"][clear])


@pytest.mark.parametrize("strip", [1, 4, 7, 100])
def test_strips_change_nothing(strip):
    found, kernel = features([(3, 4, 2), (5, 5, 3)], (7, 6), images=2), values(5, HIDDEN)
    whole = quick(lambda f: f.project(kernel, deeper))(found)
    parts = quick(lambda f: f.project(kernel, deeper, strip))(found)
    assert parts["label"].shape == (2, 7, 6) and parts["label"].dtype == jnp.int32
    np.testing.assert_allclose(parts["logits"], whole["logits"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(parts["label"], whole["label"])


def test_what_follows_sees_no_more_rows_than_asked_for():
    seen = []
    features([(3, 3, 2)], (10, 6)).project(
        values(2, HIDDEN), lambda h: seen.append(h.shape) or h, 4
    )
    assert set(seen) == {(4, 1, 6, HIDDEN)}


def test_the_layer_runs_on_each_resolution_once_enlarged():
    """Never on all pixels: the widest array has a layer's outputs, not the features."""
    found = features([(4, 4, 50), (8, 8, 20), (4, 4, 30)], (32, 32))
    program = jax.make_jaxpr(lambda f: f.project(values(100, HIDDEN), strip=8))(found)
    shapes = set(re.findall(r"f32\[([\d,]+)\]", str(program)))
    sizes = {np.prod([int(n) for n in shape.split(",")]) for shape in shapes}
    assert max(sizes) == 32 * 32 * HIDDEN


# --- kept maps ------------------------------------------------------------------------------------


def test_neighbours_of_one_resolution_become_one_map():
    shapes = [(2, 3, 4), (2, 3, 1), (4, 6, 2), (4, 6, 3), (2, 3, 5)]
    maps = [jnp.asarray(values(2, *shape, seed=i)) for i, shape in enumerate(shapes)]
    found = stack(maps, (8, 9), (0.9, 1.0))
    assert [m.shape for m in found.maps] == [(2, 2, 3, 5), (2, 4, 6, 5), (2, 2, 3, 5)]
    assert (found.size, found.covered) == ((8, 9), ((0.9, 1.0),) * len(found.maps))
    apart = PixelFeatures(tuple(maps), (8, 9), ((0.9, 1.0),) * len(maps))
    np.testing.assert_array_equal(found.dense(), apart.dense())


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_maps_are_stored_in_a_dtype_and_read_as_float32(dtype):
    maps = [jnp.asarray(100 * values(2, *shape)) for shape in [(3, 4, 5), (6, 2, 1)]]
    found = stack(maps, (6, 8), dtype=dtype)
    assert all(m.dtype == dtype for m in found.maps)
    assert (found.width, found.count) == (6, 2)
    assert found.nbytes == jnp.dtype(dtype).itemsize * 2 * (3 * 4 * 5 + 6 * 2 * 1)
    rounded = PixelFeatures(tuple(m.astype(dtype).astype(jnp.float32) for m in maps), (6, 8))
    np.testing.assert_array_equal(found.dense(), rounded.dense())
    kernel = values(6, HIDDEN)
    made = found.project(kernel)
    assert made.dtype == found.dense().dtype == jnp.float32
    np.testing.assert_array_equal(made, rounded.project(kernel))
    exact = jnp.concatenate([PixelFeatures((m,), (6, 8)).dense() for m in maps], -1)
    assert np.abs(found.dense() - exact).max() <= (0.15 if dtype == jnp.float16 else 0)


def test_features_pass_through_compiled_functions():
    """Maps are data; sizes are part of the program."""
    found = features([(3, 4, 2)], (6, 8), (1.0, 0.9))
    back = quick(lambda f: f)(found)
    assert (back.size, back.covered, back.nbytes) == (found.size, found.covered, found.nbytes)
    shapes = jax.eval_shape(lambda f: f, found)
    assert (shapes.width, shapes.count, shapes.nbytes) == (2, 1, 96)
