"""The transformer block against another route to the same values, and by its symmetries."""

import jax
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers.attention import SelfAttention
from diffseg_jax.layers.vit_block import GatedMlp, VitAttention, VitBlock
from diffseg_jax.models.network import Network

pytestmark = pytest.mark.quick

DIM, HEADS, TOKENS = 12, 3, 5


def filled(make):
    """The module with random values for every parameter."""
    network, draw = Network(make), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: draw.standard_normal(leaf.shape, np.float32), network.abstract["params"]
    )
    return network.bind(params, {}), params


def tokens(seed=1):
    return np.random.default_rng(seed).standard_normal((2, TOKENS, DIM)).astype(np.float32)


def test_one_product_gives_what_three_give():
    options = dict(dtype=np.float32)
    joined, params = filled(lambda rngs: VitAttention(DIM, HEADS, rngs=rngs, **options))
    parted, other = filled(lambda rngs: SelfAttention(DIM, HEADS, rngs=rngs, **options))
    kernels = np.split(params["qkv"]["kernel"], 3, 1)
    biases = np.split(params["qkv"]["bias"], 3)
    for name, kernel, bias in zip(("query", "key", "value"), kernels, biases):
        shapes = other[name]
        other[name] = dict(
            kernel=kernel.reshape(shapes["kernel"].shape), bias=bias.reshape(shapes["bias"].shape)
        )
    other["out"]["kernel"] = params["out"]["kernel"].reshape(other["out"]["kernel"].shape)
    other["out"]["bias"] = params["out"]["bias"]
    nnx.update(parted, nnx.State(other))
    np.testing.assert_allclose(joined(tokens()), parted(tokens()), rtol=1e-4, atol=1e-4)


def test_the_gate_is_the_first_half():
    mlp, params = filled(lambda rngs: GatedMlp(DIM, 7, dtype=np.float32, rngs=rngs))
    mlp.fc1.bias[...] = mlp.fc1.bias[...].at[7:].set(0)
    mlp.fc1.kernel[...] = mlp.fc1.kernel[...].at[:, 7:].set(0)
    np.testing.assert_array_equal(  # the values are 0, so nothing passes, whatever the gate
        mlp(tokens()), np.broadcast_to(params["fc2"]["bias"], tokens().shape)
    )


@pytest.mark.parametrize("gated", [False, True])
def test_a_block_without_scale_is_the_identity_and_its_tokens_have_no_order(gated):
    make = lambda rngs: VitBlock(DIM, HEADS, 8, gated=gated, layer_scale=True, rngs=rngs)
    block, _ = filled(make)
    x, order = tokens(), np.roll(np.arange(TOKENS), 2)
    np.testing.assert_allclose(block(x)[:, order], block(x[:, order]), rtol=1e-4, atol=1e-4)
    block.scale1[...] = block.scale2[...] = 0 * block.scale1[...]
    np.testing.assert_array_equal(block(x), x)


def test_what_rotates_queries_and_keys_alike_cannot_change_a_block():
    block, _ = filled(lambda rngs: VitBlock(DIM, HEADS, 8, qkv_bias=False, rngs=rngs))
    orthogonal, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((DIM // HEADS,) * 2))
    rotate = lambda x: x @ orthogonal.astype(np.float32)
    np.testing.assert_allclose(block(tokens(), rotate), block(tokens()), rtol=1e-3, atol=1e-3)
