"""Swin against recorded activations of the original program, and by itself."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.errors import UserError
from diffseg_jax.models.network import Network
from diffseg_jax.models.swin import (
    Swin,
    SwinStage,
    problem,
    regions,
    relative_index,
    resize_bias_table,
)
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import convert

FORWARD = 2e-5  # limit in float32, of the largest recorded value
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TINY = dict(channels=(4, 8, 16, 32), depths=(2, 1, 1, 1), heads=(1, 2, 2, 4), window=3)

BLOCK = r"backbone\.stages\.(\d)\.blocks\.(\d+)\."
ROWS = (
    (r"backbone\.patch_embed\.projection\.weight", "patch_embedding.conv.kernel", "oihw->hwio"),
    (r"backbone\.patch_embed\.projection\.bias", "patch_embedding.conv.bias", "o->o"),
    (r"backbone\.patch_embed\.norm\.weight", "patch_embedding.norm.scale", "o->o"),
    (r"backbone\.patch_embed\.norm\.bias", "patch_embedding.norm.bias", "o->o"),
    (BLOCK + r"norm(\d)\.weight", "stage{0}.block{1}.norm{2}.scale", "o->o"),
    (BLOCK + r"norm(\d)\.bias", "stage{0}.block{1}.norm{2}.bias", "o->o"),
    (
        BLOCK + r"attn\.w_msa\.relative_position_bias_table",
        "stage{0}.block{1}.attention.bias_table",
        "th->th",
    ),
    (BLOCK + r"attn\.w_msa\.qkv\.weight", "stage{0}.block{1}.attention.qkv.kernel", "oi->io"),
    (BLOCK + r"attn\.w_msa\.qkv\.bias", "stage{0}.block{1}.attention.qkv.bias", "o->o"),
    (BLOCK + r"attn\.w_msa\.proj\.weight", "stage{0}.block{1}.attention.out.kernel", "oi->io"),
    (BLOCK + r"attn\.w_msa\.proj\.bias", "stage{0}.block{1}.attention.out.bias", "o->o"),
    (BLOCK + r"ffn\.layers\.0\.0\.weight", "stage{0}.block{1}.mlp.fc1.kernel", "oi->io"),
    (BLOCK + r"ffn\.layers\.0\.0\.bias", "stage{0}.block{1}.mlp.fc1.bias", "o->o"),
    (BLOCK + r"ffn\.layers\.1\.weight", "stage{0}.block{1}.mlp.fc2.kernel", "oi->io"),
    (BLOCK + r"ffn\.layers\.1\.bias", "stage{0}.block{1}.mlp.fc2.bias", "o->o"),
    (r"backbone\.stages\.(\d)\.downsample\.norm\.weight", "merge{0}.norm.scale", "o->o"),
    (r"backbone\.stages\.(\d)\.downsample\.norm\.bias", "merge{0}.norm.bias", "o->o"),
    (
        r"backbone\.stages\.(\d)\.downsample\.reduction\.weight",
        "merge{0}.reduction.kernel",
        "oi->io",
    ),
    (r"backbone\.norm(\d)\.weight", "norm{0}.scale", "o->o"),
    (r"backbone\.norm(\d)\.bias", "norm{0}.bias", "o->o"),
)


def swin(**options):
    return Network(lambda rngs: Swin(**options, rngs=rngs))


def filled(network, seed=0):
    """Random values for every parameter, scaled so that activations stay near 1."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return noise / math.sqrt(math.prod(leaf.shape[:-1]))
        return 0.3 * noise + (path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(draw, network.abstract["params"])


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def tiny():
    network = swin(**TINY)
    return network, filled(network)


@functools.cache
def forward(network):
    return quick(lambda params, x, keys=None: network.bind(params, {})(x, keys))


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


# --- recorded -------------------------------------------------------------------------------------


def ours(name, maps, features):
    """The array of ours that was recorded under `name` (without the input's number)."""
    if name == "patch_embed":
        return features["patch_embedding"]
    if found := re.fullmatch(r"s(\d)b(\d+)_attn", name):
        return features["stage{}.block{}.attention".format(*found.groups())]
    if found := re.fullmatch(r"down(\d)", name):
        return features[f"merge{found[1]}"]
    return maps[int(re.fullmatch(r"out(\d)", name)[1])]


@pytest.mark.golden
def test_recorded_activations(golden):
    for path in golden("ddp/swin_w*.json"):
        check_activations(path)


def check_activations(path):
    c, arrays = json.loads(path.read_text())["config"], np.load(path.with_suffix(".npz"))
    channels = tuple(c["embed_dims"] * 2**i for i in range(4))
    network = swin(
        channels=channels, depths=tuple(c["depths"]), heads=tuple(c["num_heads"]),
        window=c["window"],
    )  # fmt: skip
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.abstract["params"])
    ignored = (r".*\.relative_position_index",)
    released = read_arrays(path.with_suffix(".pth"))  # without the prefix that all names share
    released = {f"backbone.{name.removeprefix('backbone.')}": a for name, a in released.items()}
    params = convert(released, ROWS, shapes, ignore=ignored, source=str(path))
    compared = 0
    for k in range(len(c["inputs"])):
        results = forward(network)(params, arrays[f"x{k}"].transpose(0, 2, 3, 1))
        for name in arrays:
            if name.startswith(f"x{k}_"):
                expected, actual = arrays[name], ours(name.removeprefix(f"x{k}_"), *results)
                if expected.ndim == 4:
                    expected = expected.transpose(0, 2, 3, 1)
                actual = np.asarray(actual).reshape(expected.shape)
                assert difference(actual, expected) < FORWARD, (path, name)
                compared += 1
    assert compared == len(arrays) - len(c["inputs"]) - 1
    index = relative_index(c["window"])
    np.testing.assert_array_equal(index, arrays["relative_position_index"])
    for name, array in released.items():
        if name.endswith("relative_position_index"):
            np.testing.assert_array_equal(index, array)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "deep", "first", "window", "millions"), [
    (96, 6, 3, 7, 27.52), (96, 18, 3, 7, 48.84), (128, 18, 4, 12, 86.88), (192, 18, 6, 12, 195.20),
], ids=["T", "S", "B", "L"])  # fmt: skip
def test_published_networks_have_their_number_of_parameters(width, deep, first, window, millions):
    sizes = dict(
        channels=tuple(width * 2**i for i in range(4)), depths=(2, 2, deep, 2),
        heads=tuple(first * 2**i for i in range(4)), window=window,
    )  # fmt: skip
    assert problem(**sizes) == ""
    leaves = jax.tree.leaves(swin(**sizes).abstract["params"])
    assert round(sum(math.prod(leaf.shape) for leaf in leaves) / 1e6, 2) == millions


@pytest.mark.parametrize(("change", "sentence"), [
    (dict(channels=(4, 8, 16)), "channels is (4, 8, 16)"),
    (dict(channels=(4, 8, 16, 24)), "give (4, 8, 16, 32)"),
    (dict(depths=(2, 0, 1, 1)), "depths is (2, 0, 1, 1)"),
    (dict(heads=(1, 2, 3, 4)), "heads holds 3, which does not divide the 16 channels"),
    (dict(heads=(1, 2, 2, 4, 4)), "4 stages"),
    (dict(window=0), "window is 0"),
])  # fmt: skip
def test_sizes_that_make_no_network_are_named(change, sentence):
    assert sentence in problem(**TINY | change)


def test_features_have_names_and_sizes():
    network, params = tiny()
    maps, features = jax.eval_shape(forward(network), params, images(2, 33, 18, 3))
    assert [leaf.shape for leaf in maps] == [
        (2, 9, 5, 4), (2, 5, 3, 8), (2, 3, 2, 16), (2, 2, 1, 32)
    ]  # fmt: skip
    depths = TINY["depths"]
    blocks = {f"stage{i}.block{j}": maps[i].shape for i in range(4) for j in range(depths[i])}
    assert {name: leaf.shape for name, leaf in features.items()} == {
        "patch_embedding": maps[0].shape, **blocks,
        **{f"{name}.attention": shape for name, shape in blocks.items()},
        **{f"merge{i}": maps[i + 1].shape for i in range(3)},
    }  # fmt: skip


# --- attention ------------------------------------------------------------------------------------


def attention(index, params, x):
    """Window attention of block `index` of the first stage, on f[B,H,W,4]."""
    network, _ = tiny()
    run = quick(lambda p, x: getattr(network.bind(p, {}).stage0, f"block{index}").attention(x))
    return np.asarray(run(params, x))


def slow_attention(values, x, window, shift):
    """The same by its definition for one head: token by token, in float64."""
    height, width, dim = x.shape
    rows, columns = (-(-n // window) * window for n in (height, width))
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values)
    padded = np.zeros((rows, columns, dim))
    padded[:height, :width] = x
    query, key, value = np.split(padded @ weights["qkv"]["kernel"] + weights["qkv"]["bias"], 3, -1)
    at = [(y, x) for y in range(rows) for x in range(columns)]
    rolled = {p: ((p[0] - shift) % rows, (p[1] - shift) % columns) for p in at}
    window_of = {p: tuple(n // window for n in rolled[p]) for p in at}
    wrapped = {p: tuple(n < shift for n in p) for p in at}  # moved to the far side by the roll
    table = weights["bias_table"].reshape(2 * window - 1, 2 * window - 1)
    out = np.zeros((height, width, dim))
    for q in np.ndindex(height, width):
        keys = [k for k in at if window_of[k] == window_of[q]]
        offset = [np.subtract(rolled[q], rolled[k]) + window - 1 for k in keys]
        logits = [query[q] @ key[k] / math.sqrt(dim) + table[tuple(o)]
                  for k, o in zip(keys, offset)]  # fmt: skip
        logits = np.array(logits) - 100 * np.array([wrapped[k] != wrapped[q] for k in keys])
        chances = np.exp(logits - logits.max())
        out[q] = sum(c * value[k] for c, k in zip(chances / chances.sum(), keys))
    return out @ weights["out"]["kernel"] + weights["out"]["bias"]


@pytest.mark.parametrize("size", [(6, 3), (7, 5), (2, 1)])
@pytest.mark.parametrize("index", [0, 1])
def test_attention_equals_its_definition(index, size):
    """Also on maps that fill no window: they are shifted, and the added tokens attended to."""
    _, params = tiny()
    x = images(1, *size, 4)
    values = params["stage0"][f"block{index}"]["attention"]
    expected = slow_attention(values, x[0], TINY["window"], index)
    np.testing.assert_allclose(attention(index, params, x)[0], expected, atol=1e-5)


def test_tokens_added_to_fill_a_window_are_attended_to():
    """One lonely token would otherwise see nothing but itself, whatever the query bias."""
    _, params = tiny()
    x = images(1, 1, 1, 4)
    changed = jax.tree.map(np.copy, params)
    changed["stage0"]["block0"]["attention"]["qkv"]["bias"][:4] += 1
    moved = attention(0, changed, x) - attention(0, params, x)
    assert np.max(np.abs(moved)) > 1e-3


def test_a_map_smaller_than_a_window_is_still_shifted():
    """Its first row and column leave for other windows, so the rest does not see them."""
    _, params = tiny()
    x = images(1, 3, 3, 4)
    other = x.copy()
    other[:, 0] += 1
    other[:, :, 0] += 1
    moved = np.abs(attention(1, params, other) - attention(1, params, x))
    assert np.max(moved[:, 1:, 1:]) < 1e-6 < 1e-2 < np.min(np.max(moved[:, 0], -1))
    assert np.min(np.max(np.abs(attention(0, params, other) - attention(0, params, x)), -1)) > 1e-3


def test_regions_divide_only_the_last_windows():
    ids = regions(6, 9, 3, 1).reshape(2, 3, 3, 3)
    assert np.all(ids[0, :2] == ids[0, 0, 0, 0])
    np.testing.assert_array_equal(ids[1, 2], [[0, 0, 1], [0, 0, 1], [2, 2, 3]])
    np.testing.assert_array_equal(ids[0, 2], [[0, 0, 1]] * 3)


def test_merging_orders_a_patch_channel_by_channel():
    network, params = tiny()
    merge = quick(lambda p, x: network.bind(p, {}).merge0(x))
    chosen = jax.tree.map(np.copy, params)
    chosen["merge0"]["norm"] = {"scale": np.ones(16), "bias": np.zeros(16)}
    kernel = np.zeros((16, 8), np.float32)
    for out, (c, dy, dx) in enumerate([(0, 0, 1), (0, 1, 0), (1, 0, 0), (3, 1, 1)]):
        kernel[4 * c + 2 * dy + dx, out] = 1
    chosen["merge0"]["reduction"] = {"kernel": kernel}
    x = images(1, 2, 2, 4)
    normal = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    expected = [normal[0, 0, 1, 0], normal[0, 1, 0, 0], normal[0, 0, 0, 1], normal[0, 1, 1, 3]]
    np.testing.assert_allclose(merge(chosen, x)[0, 0, 0, :4], expected, atol=1e-5)


# --- one small network ----------------------------------------------------------------------------


def test_a_batch_is_its_images_one_by_one():
    network, params = tiny()
    x = images(2, 14, 26, 3)
    together, _ = forward(network)(params, x)
    for k in range(2):
        alone, _ = forward(network)(params, x[k : k + 1])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[k : k + 1], b, atol=1e-5)


def test_every_parameter_has_a_finite_gradient():
    network, params = tiny()
    x = images(2, 14, 26, 3)

    def energy(params):
        maps, _ = network.bind(params, {})(x)
        return sum(jnp.mean(leaf * jnp.cos(jnp.arange(leaf.shape[-1]))) for leaf in maps)

    grads = quick(jax.grad(energy))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), path


def test_recomputing_changes_no_gradient():
    x, keys = images(2, 4, 7, 4), jax.random.split(jax.random.key(1), 2)

    def gradients(remat):
        options = dict(name="stage0", rates=(0.2, 0.3), dtype=jnp.float32, remat=remat)
        network = Network(lambda rngs: SwinStage(4, 2, 3, **options, rngs=rngs))
        energy = lambda p: jnp.mean(jnp.sin(network.bind(p, {})(x, keys)[0]))
        params = filled(network)
        assert str(jax.make_jaxpr(jax.grad(energy))(params)).count("remat") >= 2 * remat
        return quick(jax.grad(energy))(params)

    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, gradients(False), gradients(True))


@pytest.mark.parametrize("keys", [None, "given"])
def test_a_network_that_recomputes_can_be_differentiated_as_a_whole(keys):
    network = swin(**TINY, drop_path=0.5, remat=True)
    keys = keys and jax.random.split(jax.random.key(0), 1)
    energy = lambda p, x: jnp.sum(network.bind(p, {})(x, keys)[0][3])
    program = jax.make_jaxpr(jax.grad(energy))(tiny()[1], images(1, 14, 26, 3))
    assert str(program).count("remat") >= sum(TINY["depths"])


def test_bfloat16_is_near_float32():
    network, params = tiny()
    x = images(2, 14, 26, 3)
    maps, features = forward(swin(**TINY, dtype=jnp.bfloat16))(params, x)
    assert {leaf.dtype for leaf in [*maps, *features.values()]} == {jnp.dtype(jnp.bfloat16)}
    for half, full in zip(maps, forward(network)(params, x)[0]):
        assert 0 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.1


def test_the_softmax_runs_in_float32_when_computing_in_bfloat16():
    _, params = tiny()
    network = swin(**TINY, dtype=jnp.bfloat16)
    lowered = str(jax.make_jaxpr(lambda p, x: network.bind(p, {})(x))(params, images(1, 9, 9, 3)))
    kinds = re.findall(r":(\w+)\[[^\]]*\] = exp ", lowered)
    assert kinds and set(kinds) == {"f32"}


# --- stochastic depth -----------------------------------------------------------------------------


@pytest.mark.parametrize("depths", [(2, 2, 1, 1), (1, 1, 3, 2)])
def test_rates_grow_from_none_to_the_full_rate(depths):
    sizes = TINY | dict(depths=depths, drop_path=0.6)
    model = nnx.eval_shape(lambda: Swin(**sizes, rngs=nnx.Rngs(0)))
    rates = [
        getattr(getattr(model, f"stage{i}"), f"block{j}").rate
        for i in range(4) for j in range(depths[i])
    ]  # fmt: skip
    count = sum(depths)
    np.testing.assert_allclose(rates, [0.6 * n / (count - 1) for n in range(count)])


@functools.cache
def dropping():
    return swin(**TINY, drop_path=0.5), tiny()[1]


@functools.cache
def dropped_run():
    """Two images in turn, 48 times each, with keys of their own; the last rate is 0.5."""
    network, params = dropping()
    x, keys = np.tile(images(2, 14, 26, 3), (48, 1, 1, 1)), jax.random.split(jax.random.key(3), 96)
    return x, keys, *forward(network)(params, x, keys)


def test_the_first_block_is_never_dropped_and_later_ones_are():
    network, params = tiny()
    _, plain = forward(network)(params, images(2, 14, 26, 3))
    _, _, _, random = dropped_run()
    moved = {
        name: np.max(np.abs(np.tile(plain[name], (48, 1, 1, 1)) - random[name]))
        for name in ("patch_embedding", "stage0.block0", "stage0.block1")
    }
    assert moved["patch_embedding"] < 1e-5 and moved["stage0.block0"] < 1e-5
    assert moved["stage0.block1"] > 0.1


def test_both_branches_of_the_last_block_are_dropped_at_its_rate_each_on_its_own():
    """In half of the images each, so that a quarter leaves the block as it came."""
    _, _, _, random = dropped_run()
    before, after = (np.asarray(random[name]) for name in ("merge2", "stage3.block0"))
    unchanged = np.all(after == before, (1, 2, 3))
    assert 0.12 < np.mean(unchanged) < 0.4
    network, params = dropping()
    mlp = quick(
        lambda p, x: (lambda block: block.mlp(block.norm2(x)))(network.bind(p, {}).stage3.block0)
    )
    attended = before + 2 * np.asarray(random["stage3.block0.attention"])
    whole = {  # image -> what is left when: only attention, only the MLP, nothing was dropped
        "mlp": before + 2 * mlp(params, before),
        "attention": attended,
        "both": attended + 2 * mlp(params, attended),
    }
    near = {name: np.max(np.abs(y - after), (1, 2, 3)) < 1e-4 for name, y in whole.items()}
    assert np.all(unchanged | near["mlp"] | near["attention"] | near["both"])
    assert all(0.12 < np.mean(kept) < 0.4 for kept in near.values())


def test_what_is_dropped_of_an_image_does_not_depend_on_its_neighbours():
    network, params = dropping()
    x, keys, maps, _ = dropped_run()
    others, new = images(95, 14, 26, 3, seed=1), jax.random.split(jax.random.key(4), 95)
    again, _ = forward(network)(
        params, np.concatenate([x[:1], others]), jnp.concatenate([keys[:1], new])
    )
    for a, b in zip(maps, again):
        np.testing.assert_allclose(a[0], b[0], atol=1e-5)
        assert np.max(np.abs(a[::2] - a[0])) > 1e-2  # the same image with other keys


# --- tables of another window ---------------------------------------------------------------------

SMALL = [[0, 1], [4, -1], [2, 0.5], [-3, 2], [1, 0], [5, -2], [2.5, 3], [0.5, 1.5], [-1, -0.5]]
LARGER = [  # by torch.nn.functional.interpolate(mode="bicubic", align_corners=False), 3x3 -> 5x5
    -0.09600, 2.02547, 4.28800, 2.99949, 1.46470, -1.98547, 0.10749, 2.87200, 3.63419, 3.66550,
    -3.38400, -1.73600, 1.00000, 3.73600, 5.38400, 0.11851, 0.20051, 0.47800, 1.15401, 1.64634,
    3.27530, 2.17453, 0.45200, -0.97461, -1.77069,
]  # fmt: skip


def test_a_bias_table_is_resized_bicubically():
    table = np.array(SMALL, np.float32)
    resized = resize_bias_table(table, 3)
    assert resized.shape == (25, 2) and resized.dtype == np.float32
    np.testing.assert_allclose(resized[:, 0], LARGER, atol=1e-5)
    np.testing.assert_allclose(resized[[0, 4, 12, 20], 1], [1.096, 0.91626, 0, 3.23539], atol=1e-5)
    np.testing.assert_allclose(resize_bias_table(table, 1), table[4:5], atol=1e-6)


def test_a_bias_table_of_the_same_window_is_left_alone():
    table = images(169, 3)
    assert resize_bias_table(table, 7) is table


def test_a_constant_bias_stays_constant():
    np.testing.assert_allclose(resize_bias_table(np.full((169, 2), 3.0), 12), 3.0, rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 16, 168])
def test_a_bias_table_without_a_centre_is_refused(rows):
    with pytest.raises(UserError, match=f"has {rows} rows"):
        resize_bias_table(np.zeros((rows, 2), np.float32), 7)
