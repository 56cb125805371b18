"""The map decoder: recorded activations, positions, and what its inputs may and may not change."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.layers.embeddings import axis_positions
from diffseg_jax.models.map_decoder import MapDecoder, reference_points
from diffseg_jax.models.network import Network
from diffseg_jax.weights.ddp import DDP_TABLE
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import convert

LIMIT = 1e-5  # of the peak
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)


def difference(actual, expected):
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


def make(width=16, layers=2, heads=2, points=2, mlp=24, remat=False):
    def build(rngs):
        return MapDecoder(
            width, layers=layers, heads=heads, points=points, mlp=mlp, remat=remat, rngs=rngs
        )

    return Network(build)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def decoded(model, size, x, modulations):
    return model(x, model.constants(size), modulations)


@pytest.mark.golden
def test_recorded_activations(golden):
    for path in golden("ddp/map_decoder*.json"):
        record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        c = record["config"]
        network = make(c["E"], c["layers"], c["heads"], c["points"], c["ffn"])
        head = {"kernel": (c["E"], c["K"]), "bias": (c["K"],)}
        shapes = {"decoder": shapes_of(network.abstract["params"]), "head": head}
        state = read_arrays(path.with_suffix(".pth"))
        state = {f"decode_head.{name}": value for name, value in state.items()}
        params = convert(state, DDP_TABLE, {"params": shapes}, source=path.name)["params"]
        model = network.bind(params["decoder"], {})
        size = arrays["feat"].shape[2:]
        for l in range(c["layers"]):
            time = getattr(model, f"layer{l}").time(jax.nn.silu(arrays["time_emb"]))
            assert difference(time, arrays[f"layer{l}_time"]) < LIMIT
        modulations = model.modulations(jnp.asarray(arrays["time_emb"]))
        decode = quick(functools.partial(decoded, model, size))
        x, features = decode(np.moveaxis(arrays["feat"], 1, -1), modulations)
        for l in range(c["layers"]):
            assert difference(features[f"layer{l}"], arrays[f"layer{l}_out"]) < LIMIT
        logits = x @ params["head"]["kernel"] + params["head"]["bias"]
        assert difference(logits, np.moveaxis(arrays["logits"], 1, -1)) < LIMIT
        assert difference(reference_points(size), arrays["reference_points"]) < LIMIT
        rows, columns = (axis_positions(length, c["E"] // 2) for length in size)
        table = [
            np.broadcast_to(rows[:, None], (*size, c["E"] // 2)),
            np.broadcast_to(columns[None], (*size, c["E"] // 2)),
        ]
        table = np.concatenate(table, -1).reshape(-1, c["E"])
        assert difference(table, arrays["pos_embed"]) < LIMIT


def test_constants_are_linear_in_the_positions():
    network = make()
    model = network.bind(**quick(network.init)(KEY))
    height, width = 3, 5
    table = np.concatenate(
        [
            np.broadcast_to(axis_positions(height, 8)[:, None], (height, width, 8)),
            np.broadcast_to(axis_positions(width, 8)[None], (height, width, 8)),
        ],
        -1,
    ).reshape(-1, 16)
    attention = model.layer1.attention
    attention.offsets.kernel[...] += jax.random.normal(KEY, attention.offsets.kernel.shape)
    expected = attention.constants(jnp.asarray(table))
    np.testing.assert_allclose(model.constants((height, width))[1], expected, atol=1e-5)


def test_the_level_changes_every_layer_and_images_are_alone():
    network = make()
    model = network.bind(**quick(network.init)(KEY))
    x = jax.random.normal(KEY, (2, 4, 6, 16))
    tau = jax.random.normal(jax.random.key(1), (2, 64))
    constants = model.constants((4, 6))
    run = quick(lambda x, tau: model(x, constants, model.modulations(tau))[0])
    whole = run(x, tau)
    np.testing.assert_allclose(run(x[1:], tau[1:])[0], whole[1], atol=1e-5)
    assert np.max(np.abs(run(x, tau.at[1].add(1.0))[0] - whole[0])) == 0
    assert np.max(np.abs(run(x, tau.at[1].add(1.0))[1] - whole[1])) > 1e-3


def test_remat_computes_the_same():
    values = quick(make().init)(KEY)
    x = jax.random.normal(KEY, (1, 4, 6, 16))

    def loss(network, params):
        model = network.bind(params, {})
        out, _ = model(x, model.constants((4, 6)), model.modulations(jnp.ones((1, 64))))
        return jnp.sum(out**2)

    plain, again = (
        quick(jax.grad(functools.partial(loss, make(remat=remat))))(values["params"])
        for remat in (False, True)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again)):
        np.testing.assert_allclose(a, b, atol=1e-4)
