"""TransUNet against recorded activations and gradients of both programs, and by itself."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.layers.dropout import dropout
from diffseg_jax.layers.resize import resize_aligned
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.models.transunet import (
    ConvNormRelu,
    Decoder,
    Encoder,
    ResNetStage,
    TransUNet,
    Unit,
    resize_positions,
)
from diffseg_jax.training.losses import masked_cross_entropy
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import convert
from diffseg_jax.weights.transunet import PORT, load_official, load_port

FORWARD, BACKWARD = 3e-5, 1e-4  # limits in float32, of the largest recorded value
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TINY = dict(
    resnet_width=0.5, resnet_units=(1, 1, 1), hidden=32, layers=1, heads=4, mlp=48, grid=(2, 2),
    decoder=(16, 8, 8, 4), bridge=16,
)  # fmt: skip


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


def nhwc(array):
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def transunet(outputs, **options):
    return Network(lambda rngs: TransUNet(outputs, rngs=rngs, **options))


@functools.cache
def shapes_of(network):
    return jax.eval_shape(network.init, jax.random.key(0))


def filled(network, seed=0):
    """Random values for every parameter and average, scaled so that activations stay near 1."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(noise / math.sqrt(math.prod(leaf.shape[:-1])))
        return jnp.asarray(0.1 * noise + (name in ("scale", "var")))

    return jax.tree_util.tree_map_with_path(draw, shapes_of(network))


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@functools.cache
def tiny():
    network = transunet(3, **TINY)
    return network, filled(network)


@functools.cache
def forward(network):
    return quick(lambda values, x: network.bind_eval(values["params"], values["stats"])(x))


# --- recorded: PyTorch arithmetic -----------------------------------------------------------------


def port_case(path):
    """(network, values, arrays, record) of a recorded PyTorch run."""
    record = json.loads(path.read_text())
    c, arrays = record["config"], np.load(path.with_suffix(".npz"))
    side = c["img_size"] // 16
    network = transunet(
        c["n_classes"], resnet_width=c["width_factor"], resnet_units=tuple(c["num_blocks"]),
        hidden=c["hidden_size"], layers=c["num_layers"], heads=c["num_heads"], mlp=c["mlp_dim"],
        grid=(side, side), decoder=tuple(c["decoder_channels"]), bridge=c["head_channels"],
        skips=c["n_skip"], dropout=c["dropout"], arithmetic=Arithmetic.PORT,
    )  # fmt: skip
    shapes = jax.tree.map(lambda leaf: leaf.shape, shapes_of(network))
    params, stats = load_port(
        path.with_name(path.stem + "_state.pt"), shapes["params"], shapes["stats"]
    )
    values = jax.tree.map(jnp.asarray, {"params": params, "stats": stats})
    return network, values, arrays, record


def path_of(name):
    """Our path of a torch entry, by the table of the loader."""
    for pattern, path, _ in PORT:
        if match := re.fullmatch(pattern, name):
            return tuple(path.format(*match.groups()).split("."))
    raise AssertionError(name)


def as_ours(name, array, tree):
    """(recorded array in our layout, our leaf of `tree`) of one torch entry."""
    path = path_of(name)
    leaf = functools.reduce(lambda branch, key: branch[key], path, tree)
    target = traverse_util.unflatten_dict({path: leaf.shape})
    converted = convert({name: array}, PORT, target)
    return functools.reduce(lambda branch, key: branch[key], path, converted), leaf


@pytest.mark.golden
def test_recorded_activations_in_port_arithmetic(golden):
    for path in golden("ddep/transunet_seg*.json"):
        network, values, arrays, record = port_case(path)
        logits, features = forward(network)(values, nhwc(arrays["input"]))
        names = {
            "root": "root", "block3": "block3", "embedded": "embedded", "encoded": "encoded",
            "conv_more": "bridge",
            **{f"skip{s}": f"skip{8 // 2**s}" for s in range(3) if f"skip{s}" in arrays},
            **{f"layer{l}": f"layer{l}" for l in range(record["config"]["num_layers"])},
            **{f"dec{s}": f"stage{s}" for s in range(len(record["config"]["decoder_channels"]))},
        }  # fmt: skip
        for recorded, ours in names.items():
            expected, actual = nhwc(arrays[recorded]), features[ours]
            assert difference(actual.reshape(expected.shape), expected) < FORWARD, (path, recorded)
        assert difference(logits, nhwc(arrays["logits"])) < FORWARD, path


@pytest.mark.golden
def test_recorded_gradients_in_port_arithmetic(golden):
    for path in golden("ddep/transunet_seg*.json"):
        check_gradients(path)


def check_gradients(path):
    network, values, arrays, record = port_case(path)
    image, labels = nhwc(arrays["input"]), arrays["labels"].astype(np.int32)

    def objective(params):
        model = network.bind(params, values["stats"])
        logits, _ = model(image)
        loss, weight = masked_cross_entropy(logits, labels)
        return loss / weight, (logits, stats_of(model))

    run = quick(jax.value_and_grad(objective, has_aux=True))
    (loss, (logits, stats)), grads = run(values["params"])
    assert difference(logits, nhwc(arrays["train_logits"])) < FORWARD
    assert difference(loss, arrays["train_loss"]) < FORWARD
    tree = {"params": grads, "stats": stats}
    norms = [
        np.linalg.norm(as_ours(name, np.zeros(record["state_shapes"][name]), tree)[1])
        for name in record["param_names"]
    ]
    assert difference(np.array(norms), arrays["grad_norms"]) < BACKWARD
    np.testing.assert_allclose(norms, arrays["grad_norms"], rtol=1e-3, atol=1e-7)
    assert len(norms) == len(jax.tree.leaves(grads))
    for key in arrays:
        if key.startswith(("grad/", "bn_after/")):
            expected, actual = as_ours(key.split("/", 1)[1], arrays[key], tree)
            assert difference(actual, expected) < BACKWARD, (path, key)


# --- recorded: JAX arithmetic ---------------------------------------------------------------------


CUT_HYBRID = ("block1", "encoded_no_cls")


@pytest.mark.golden
def test_recorded_official_hybrid(golden):
    """Ours has no class token; with the token before the others its layers give theirs.

    In a cut record block2 and block3 are zeros, and what follows them has the recorded embedding.
    """
    for path in golden("ddep/flax_hybrid*.json"):
        check_hybrid(path)


def check_hybrid(path):
    record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    c, file = record["config"], path.with_name(path.stem + "_params.npz")
    released = {name: jnp.asarray(array) for name, array in read_arrays(file).items()}
    table = released["Transformer/posembed_input/pos_embedding"]
    grid = tuple(-(-side // 16) for side in record["image"])
    network = Network(lambda rngs: Encoder(
        resnet_width=c["width_factor"], resnet_units=tuple(c["num_blocks"]),
        hidden=c["hidden_size"], layers=c["num_layers"], heads=c["num_heads"],
        mlp=c["mlp_dim"], grid=grid, dropout_rate=c["dropout"],
        arithmetic=Arithmetic.OFFICIAL, dtype=jnp.float32, remat=False, rngs=rngs,
    ))  # fmt: skip
    shapes = jax.tree.map(lambda leaf: leaf.shape, shapes_of(network)["params"])
    params = jax.tree.map(jnp.asarray, load_official(file, shapes, grid))

    def activations(params, image):
        model = network.bind(params, {})
        grid, features = model(image)
        found = {name: features[name] for name in ("block1", "block2", "block3", "embedding")}
        found["conv_root"] = model.root.conv(image)
        found["gn_root"] = model.root.norm(found["conv_root"])
        found["encoded_no_cls"] = grid.reshape(len(grid), -1, grid.shape[-1])
        tokens = features["embedded"]
        if "cut" in record:
            found = {name: found[name] for name in CUT_HYBRID if name in found}
            found["embedding"] = jnp.asarray(arrays["embedding"])
            tokens = found["embedding"].reshape(tokens.shape) + params["position_embedding"]
            x = tokens
            for l in range(c["num_layers"]):
                x = getattr(model, f"layer{l}")(x, None)
            found["encoded_no_cls"] = model.norm(x)
        first = jnp.broadcast_to(released["cls"] + table[:, :1], (len(grid), 1, grid.shape[-1]))
        x = found["posembed"] = jnp.concatenate([first, tokens], 1)
        for l in range(c["num_layers"]):
            x = found[f"encoderblock_{l}"] = getattr(model, f"layer{l}")(x, None)
        x = found["encoded"] = model.norm(x)
        found["logits"] = x[:, 0] @ released["head/kernel"] + released["head/bias"]
        return found

    found = quick(activations)(params, arrays["input"].astype(np.float32))
    assert set(found) == set(arrays) - {"input"}
    for name, actual in found.items():
        rows = slice(*record.get("rows", {}).get(name, (None,)))  # of its maps
        assert difference(actual[:, rows], arrays[name]) < FORWARD, (path, name)


# --- sizes ----------------------------------------------------------------------------------------


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def published():
    return shapes_of(transunet(19))


def test_the_published_network_has_its_number_of_parameters():
    """R50+ViT-B/16 at 224 x 224, decoder width 1, 19 classes."""
    params, encoder = published()["params"], published()["params"]["encoder"]
    resnet = [encoder[name] for name in ("root", "block1", "block2", "block3")]
    layers = [tree for name, tree in encoder.items() if name.startswith("layer")]
    assert count(resnet) == 11_894_848
    assert count(encoder["patch_embedding"]) == 787_200
    assert count(encoder["position_embedding"]) == 150_528
    assert count(layers) + count(encoder["norm"]) == 85_056_000
    assert count(encoder) == 97_888_576
    assert count(params["decoder"]) == 7_387_200
    assert count(published()["stats"]) == 2_880
    assert count(params["head"]) == 2_755
    assert count(params) == 105_278_531


def test_the_published_network_has_its_number_of_entries():
    """353 in the encoder; 27 parameters, 18 averages and PyTorch's 9 counters in the decoder; 2."""
    params, stats = published()["params"], published()["stats"]
    assert len(jax.tree.leaves(params["encoder"])) == 353
    convolutions = len(jax.tree.leaves(stats)) // 2
    assert len(jax.tree.leaves(params["decoder"])) + 3 * convolutions == 54
    assert len(jax.tree.leaves(params["head"])) == 2


@pytest.mark.parametrize(("width", "bridge", "decoder", "total"), [
    (1, 512, 7_387_200, 105_276_211), (2, 512, 13_543_040, 111_432_483),
    (3, 512, 22_007_488, 119_897_363), (2, 1024, 19_442_304, 117_331_747),
    (3, 1536, 36_165_312, 134_055_187),
])  # fmt: skip
def test_wider_decoders_have_their_number_of_parameters(width, bridge, decoder, total):
    channels = tuple(width * n for n in (256, 128, 64, 16))
    network = Network(lambda rngs: Decoder(
        768, (512, 256, 64), channels=channels, bridge=bridge, skips=3, condition=False,
        remat=False, rngs=rngs,
    ))  # fmt: skip
    params = shapes_of(network)["params"]
    assert count(params) == decoder
    head = 9 * channels[-1] * 3 + 3
    assert count(published()["params"]["encoder"]) + decoder + head == total


@pytest.mark.parametrize("skips", [0, 1, 2, 3])
def test_fewer_skips_are_the_deepest_ones(skips):
    network = Network(lambda rngs: Decoder(
        8, (24, 12, 6), channels=(5, 4, 3, 2), bridge=7, skips=skips, condition=False,
        remat=False, rngs=rngs,
    ))  # fmt: skip
    params = shapes_of(network)["params"]
    joined = [params[f"stage{s}"]["conv1"]["conv"]["kernel"].shape[2] for s in range(4)]
    assert joined == [a + b for a, b in zip((7, 5, 4, 3), [24, 12, 6][:skips] + [0] * 4)]


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_only_the_port_normalises_each_channel_alone(arithmetic):
    unit = nnx.eval_shape(lambda: Unit(32, 32, 1, arithmetic=arithmetic, rngs=nnx.Rngs(0)))
    port = arithmetic is Arithmetic.PORT
    projection = (unit.norm_proj.num_groups, unit.norm_proj.epsilon)
    assert projection == ((128, 1e-5) if port else (32, 1e-6))
    assert (unit.norm3.num_groups, unit.norm3.epsilon) == (32, 1e-6)


# --- one small network ----------------------------------------------------------------------------


def test_features_have_names_and_sizes():
    network, values = tiny()
    shape = lambda x: jax.eval_shape(forward(network), values, x)
    out, features = shape(jax.ShapeDtypeStruct((2, 33, 16, 3), jnp.float32))
    assert out.shape == (2, 33, 16, 3) and out.dtype == jnp.float32
    assert {name: leaf.shape[1:] for name, leaf in features.items()} == {
        "root": (24, 8, 32), "skip2": (24, 8, 32), "block1": (12, 4, 128), "skip4": (12, 4, 128),
        "block2": (6, 2, 256), "skip8": (6, 2, 256), "block3": (3, 1, 512),
        "embedding": (3, 1, 32), "embedded": (3, 32), "layer0": (3, 32), "encoded": (3, 1, 32),
        "bridge": (3, 1, 16), "stage0": (6, 2, 16), "stage1": (12, 4, 8), "stage2": (24, 8, 8),
        "stage3": (48, 16, 4),
    }  # fmt: skip


@pytest.mark.parametrize("size", [(17, 30), (32, 31)])
def test_any_size_is_the_corner_of_the_size_padded_with_zeros(size):
    network, values = tiny()
    x = images(2, *size, 3)
    padded = np.zeros((2, 32, 32, 3), np.float32)
    padded[:, : size[0], : size[1]] = x
    out = forward(network)(values, x)[0]
    expected = forward(network)(values, padded)[0][:, : size[0], : size[1]]
    assert out.shape == (2, *size, 3)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_images_do_not_see_each_other_in_evaluation():
    network, values = tiny()
    x = images(2, 32, 32, 3)
    out = forward(network)(values, x)[0]
    swapped = forward(network)(values, x[::-1])[0]
    np.testing.assert_allclose(out, swapped[::-1], atol=1e-6)
    assert np.max(np.abs(out[0] - out[1])) > 1e-2


class Pair(nnx.Module):
    """A stage of each kind that can be recomputed: a ResNet block, and a decoder with one skip."""

    def __init__(self, remat, rngs):
        official = Arithmetic.OFFICIAL
        self.block = ResNetStage(32, 32, 1, 2, arithmetic=official, remat=remat, rngs=rngs)
        self.decoder = Decoder(
            128, (32,), channels=(6, 4), bridge=5, skips=1, condition=False, remat=remat, rngs=rngs
        )

    def __call__(self, x):
        return self.decoder(self.block(x), {"skip8": x})[0]


def test_recomputing_changes_neither_outputs_nor_gradients():
    x = images(2, 8, 8, 32)

    def run(remat):
        network = Network(lambda rngs: Pair(remat, rngs))
        values = filled(network)

        def energy(params):
            model = network.bind(params, values["stats"])
            out = model(x)
            return jnp.mean(jnp.square(out)), (out, stats_of(model))

        result = quick(jax.value_and_grad(energy, has_aux=True))(values["params"])
        return values["stats"], result

    (_, plain), (stats, again) = run(False), run(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), again[0][1][1], stats)
    assert all(jax.tree.leaves(moved))  # the averages of a recomputed stage are not lost


@pytest.mark.parametrize("key", [None, 0])
def test_a_network_that_recomputes_can_be_differentiated_as_a_whole(key):
    network = transunet(3, **TINY, remat=True)

    def energy(params, stats, x):
        key_dropout = None if key is None else jax.random.key(key)
        return jnp.sum(network.bind(params, stats)(x, None, key_dropout)[0])

    values = shapes_of(network)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    grads = jax.eval_shape(jax.grad(energy), values["params"], values["stats"], x)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, values["params"])
    recomputed = str(jax.make_jaxpr(jax.grad(energy))(values["params"], values["stats"], x))
    assert recomputed.count("remat") >= 3 + 1 + 4  # blocks, layers, decoder stages


def test_bfloat16_is_near_float32():
    network, values = tiny()
    half = transunet(3, **TINY, dtype=jnp.bfloat16)
    x = images(2, 32, 32, 3)
    out, features = forward(half)(values, x)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in features.values()} == {jnp.dtype(jnp.bfloat16)}
    expected, _ = forward(network)(values, x)
    assert 0 < np.linalg.norm(out - expected) / np.linalg.norm(expected) < 0.1


def test_dropout_needs_a_key():
    network, values = tiny()
    run = quick(
        lambda key: network.bind_eval(values["params"], values["stats"])(x, None, key)[1]["encoded"]
    )
    x = images(2, 32, 32, 3)
    first, again, other = (np.asarray(run(jax.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 1e-3
    assert np.max(np.abs(first - forward(network)(values, x)[1]["encoded"])) > 1e-3


def test_dropout_keeps_the_mean():
    x = jnp.ones((200, 200))
    kept = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(kept).round(4)) == {0, np.float32(1.3333)}
    assert abs(float(jnp.mean(kept)) - 1) < 0.02
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x.astype(jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


# --- position table, noise level ------------------------------------------------------------------


def test_a_table_resized_at_load_is_the_table_resized_at_call():
    network, values = tiny()
    moved = resize_positions(values["params"], (2, 2), (3, 1))
    table = moved["encoder"]["position_embedding"]
    assert table.shape == (1, 3, 32)
    other = transunet(3, **TINY | dict(grid=(3, 1)))
    x = images(1, 48, 16, 3)
    embedded = lambda net: quick(lambda p: net.bind_eval(p, values["stats"])(x)[1]["embedded"])
    np.testing.assert_allclose(
        embedded(network)(values["params"]), embedded(other)(moved), atol=1e-5
    )


def test_table_at_the_same_grid_is_left_alone():
    _, values = tiny()
    same = resize_positions(values["params"], (2, 2), (2, 2))["encoder"]["position_embedding"]
    np.testing.assert_array_equal(same, values["params"]["encoder"]["position_embedding"])


def test_grids_are_rows_by_columns():
    table = jnp.arange(6.0).reshape(1, 6, 1)
    wide = resize_positions({"encoder": {"position_embedding": table}}, (2, 3), (2, 5))
    np.testing.assert_allclose(
        wide["encoder"]["position_embedding"][0, :, 0], [0, 0.5, 1, 1.5, 2, 3, 3.5, 4, 4.5, 5]
    )
    assert resize_aligned(table.reshape(1, 2, 3, 1), (2, 5)).shape == (1, 2, 5, 1)


def test_noise_level_modulates_nothing_until_it_has_learned():
    network = Network(lambda rngs: ConvNormRelu(3, 4, condition=True, rngs=rngs))
    values = jax.jit(network.init)(jax.random.key(0))
    x, levels = images(2, 4, 4, 3), images(2, 2, 128, seed=1)
    run = lambda p, level: network.bind_eval(p, values["stats"])(x, level)
    first, second = (run(values["params"], level) for level in levels)
    np.testing.assert_array_equal(first, second)
    dense = {"kernel": jnp.full((128, 8), 0.1), "bias": jnp.zeros(8)}
    learned = values["params"] | {"modulation": {"dense": dense}}
    assert np.max(np.abs(run(learned, levels[0]) - run(learned, levels[1]))) > 1e-2


def test_condition_adds_only_modulations_and_the_embedding_of_the_level():
    with_level = shapes_of(transunet(3, **TINY, condition=True))["params"]
    paths = lambda tree: set(traverse_util.flatten_dict(tree))
    added = paths(with_level) - paths(shapes_of(tiny()[0])["params"])
    assert {path[0] for path in added} == {"level", "decoder"}
    assert len([p for p in added if "modulation" in p]) == 2 * 9
