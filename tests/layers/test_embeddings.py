"""Sinusoids against recorded ones and their own definition; modulation by a noise level."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers.embeddings import TimeModulation, sinusoid

LIMIT = 1e-4  # near t = 1000 one rounding error of a frequency already moves a phase by 6e-5


@pytest.mark.golden
def test_recorded_sinusoids(golden):
    cases = 0
    for path in golden("adm/diffusion*.npz"):
        arrays = np.load(path)
        for key in arrays:
            if match := re.fullmatch(r"temb__dim(\d+)", key):
                waves = sinusoid(jnp.asarray(arrays["temb__t"]), int(match[1]))
                assert waves.shape == arrays[key].shape
                np.testing.assert_allclose(waves, arrays[key], rtol=0, atol=LIMIT, err_msg=key)
                cases += 1
    assert cases


@pytest.mark.parametrize("width", [2, 8, 9, 256])
def test_cosines_stand_before_sines_of_the_same_angles(width):
    t, half = np.float64([0, 1, 2.5, 999]), width // 2
    angles = t[:, None] * 10_000.0 ** (-np.arange(half) / half)
    waves = np.asarray(sinusoid(jnp.asarray(t, jnp.float32), width))
    np.testing.assert_allclose(waves[:, :half], np.cos(angles), atol=LIMIT)
    np.testing.assert_allclose(waves[:, half : 2 * half], np.sin(angles), atol=LIMIT)
    assert waves.dtype == np.float32 and waves.shape == (4, width)
    assert not waves[:, 2 * half :].any()


def test_a_longer_period_slows_all_waves_but_the_first():
    t = jnp.array([1.0])
    slow, fast = np.arccos(sinusoid(t, 8, 1e6)[0, :4]), np.arccos(sinusoid(t, 8, 1e2)[0, :4])
    np.testing.assert_allclose(slow[0], fast[0])
    assert np.all(slow[1:] < fast[1:])


def test_whole_and_sixteen_bit_times_are_worked_on_in_float32():
    whole = jnp.array([0, 3, 128])  # which bfloat16 holds exactly
    expected = sinusoid(whole.astype(jnp.float32), 32)
    for dtype in (jnp.int32, jnp.bfloat16):
        waves = sinusoid(whole.astype(dtype), 32)
        assert waves.dtype == jnp.float32
        np.testing.assert_array_equal(waves, expected)


def modulation(channels=3, width=5):
    layer = TimeModulation(channels, width, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(0)
    x, emb = (draw.standard_normal(shape, np.float32) for shape in ((2, 4, 4, 3), (2, width)))
    return layer, jnp.asarray(x), jnp.asarray(emb)


def test_modulation_starts_as_the_identity():
    layer, x, emb = modulation()
    np.testing.assert_array_equal(layer(x, emb), x)
    assert layer(x.astype(jnp.bfloat16), emb).dtype == jnp.bfloat16


def test_modulation_scales_and_shifts_each_image_by_its_own_level():
    layer, x, emb = modulation()
    layer.dense.bias[...] = jnp.array([1.0, 0.0, -1.0, 10.0, 20.0, 30.0])
    np.testing.assert_allclose(
        layer(x, emb), x * np.array([2, 1, 0]) + np.array([10, 20, 30]), rtol=1e-6
    )
    layer.dense.kernel[...] = jnp.ones_like(layer.dense.kernel[...])
    both, alone = layer(x, emb), layer(x[1:], emb[1:])
    np.testing.assert_allclose(both[1:], alone, rtol=1e-6)
    assert np.max(np.abs(layer(x, emb[::-1]) - both)) > 0.1
