"""Rows in pieces give what all rows at once give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers import pieces
from diffseg_jax.models.convnext import ConvNeXt
from diffseg_jax.models.map_decoder import MapDecoder

KEY = jax.random.key(0)


@pytest.fixture
def small(monkeypatch):
    """Pieces of 8 rows, from 16 rows on; counts how many times rows were cut."""
    monkeypatch.setattr(pieces, "ROWS", 8)
    monkeypatch.setattr(pieces, "MIN_ROWS", 16)
    cuts = []
    whole = jax.lax.map
    monkeypatch.setattr(jax.lax, "map", lambda *args, **kw: cuts.append(1) or whole(*args, **kw))
    return cuts


@pytest.mark.parametrize("count", [7, 16, 21, 64])
def test_any_number_of_rows(small, count):
    x, y = jax.random.normal(KEY, (count, 3)), jnp.arange(count * 2.0).reshape(count, 2)
    function = lambda x, y: jnp.concatenate([jnp.sum(x, -1, keepdims=True) * y, y], -1)
    np.testing.assert_allclose(pieces.in_pieces(function, x, y), function(x, y), rtol=1e-6)
    assert bool(small) == (count >= 16)


def test_a_map_decoder_in_evaluation(small):
    """Two images of 5 x 7 cells, no multiple of a piece; each samples its own cells."""
    model = MapDecoder(16, layers=2, heads=2, points=2, mlp=24, rngs=nnx.Rngs(0))
    x, tau = jax.random.normal(KEY, (2, 5, 7, 16)), jax.random.normal(KEY, (2, 64))
    inputs = x, model.constants((5, 7)), model.modulations(tau)
    learns, _ = jax.jit(lambda *inputs: model(*inputs))(*inputs)
    assert not small
    evaluated = nnx.view(model, use_running_average=True)
    found, _ = jax.jit(lambda *inputs: evaluated(*inputs))(*inputs)
    np.testing.assert_allclose(found, learns, atol=1e-4)
    assert small


def test_a_backbone_in_evaluation(small):
    model = ConvNeXt(channels=(4, 8, 8, 8), depths=(1, 1, 1, 1), rngs=nnx.Rngs(0))
    image = jax.random.normal(KEY, (2, 40, 36, 3))
    learns, _ = jax.jit(lambda image: model(image))(image)
    evaluated = nnx.view(model, use_running_average=True)
    found, _ = jax.jit(lambda image: evaluated(image))(image)
    for first, second in zip(found, learns, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)
    assert small
