"""The ADM UNet against recorded activations, gradients and samples, and by itself."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from diffseg_jax.diffusion.bounds import training_losses
from diffseg_jax.diffusion.process import make_process, noising, reverse
from diffseg_jax.diffusion.samplers import ddim_step, ddpm_step
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet, ResidualBlock, check_classes
from diffseg_jax.models.network import Network
from diffseg_jax.training.optimizer import constant, make_optimizer
from diffseg_jax.training.state import new_state
from diffseg_jax.training.step import train_step
from diffseg_jax.weights.adm import adm_table, from_flags, load_adm
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import convert

LIMIT = 1e-4  # absolute and relative; wrong orders, paddings and epsilons are off by 7e-3 and more
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = ADMSettings(
    channels=32, channel_mult=(1, 2), res_blocks=1, attention_factors=(2,), head_channels=16,
    num_classes=5, dropout=0.3,
)  # fmt: skip
FLAT = dataclasses.replace(SMALL, channel_mult=(1,), attention_factors=(1,))  # one level
DEEP = dataclasses.replace(  # three, without attention but in the middle
    SMALL, channel_mult=(1, 1, 1), attention_factors=(), num_classes=0, learn_sigma=False
)


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, -3, -1))


def close(actual, expected, message=""):
    np.testing.assert_allclose(actual, expected, rtol=LIMIT, atol=LIMIT, err_msg=message)


@functools.cache
def network(settings, **options):
    return Network(lambda rngs: ADMUNet(settings, rngs=rngs, **options))


@functools.cache
def forward(settings, until=None, **options):
    """(params, x, t, y=None, key=None) -> what the network returns, compiled."""
    bind = network(settings, **options).bind
    return quick(lambda params, x, t, y=None, key=None: bind(params, {})(x, t, y, key, until))


@functools.cache
def filled(settings, seed=0):
    """Random values for every parameter, none zero, scaled so that activations stay near 1."""
    draw = np.random.default_rng(seed)

    def leaf(path, abstract):
        noise, name = draw.standard_normal(abstract.shape, np.float32), path[-1].key
        if name == "kernel":
            return jnp.asarray(noise / math.sqrt(math.prod(abstract.shape[:-1])))
        return jnp.asarray(0.1 * noise + (name == "scale"))

    return jax.tree_util.tree_map_with_path(leaf, network(settings).abstract["params"])


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


def batch(settings, size=16, seed=0):
    """(x, t, y) of two images, y for conditional networks only."""
    y = jnp.array([1, 3]) if settings.num_classes else None
    return images(2, size, size, seed=seed), jnp.array([3, 700]), y


# --- recorded: outputs and features ---------------------------------------------------------------


@functools.cache
def recorded(path):
    """(configuration, parameters, arrays, record) of a recorded network."""
    record = json.loads(path.read_text())
    names = from_flags.__kwdefaults__
    known = from_flags(**{name: record[name] for name in names if record.get(name) is not None})
    weights = {}
    for file in record["weight_files"]:
        weights |= read_arrays(path.with_name(file))
    params = jax.tree.map(jnp.asarray, load_adm(weights, known.settings, known.order, path.name))
    return known, params, np.load(path.with_suffix(".npz")), record


def recorded_inputs(arrays):
    y = jnp.asarray(arrays["y"]) if "y" in arrays else None
    return nhwc(arrays["x"]), jnp.asarray(arrays["t"], jnp.float32), y


def recorded_names(settings):
    """Our name of every feature -> the key of the recorded one."""
    short = {"input": "in", "output": "out", "middle": "mid"}
    return {name: "act_" + re.sub(r"^[a-z]+", lambda m: short[m[0]], name)
            for name in settings.blocks}  # fmt: skip


def compare_recorded(features, settings, arrays):
    """Compares features, of the first image, with those that were recorded: the keys of these."""
    names, compared = recorded_names(settings), set()
    for ours, feature in features.items():
        if (theirs := names[ours]) in arrays:
            close(feature[:1], nhwc(arrays[theirs]), theirs)
            compared.add(theirs)
    assert compared
    return compared


@pytest.mark.golden
def test_recorded_outputs_and_features(golden):
    for path in golden("adm/unet_*.json"):
        known, params, arrays, record = recorded(path)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == record["num_params"]
        x, t, y = recorded_inputs(arrays)
        out, features = forward(known.settings)(params, x, t, y)
        assert out.dtype == jnp.float32
        close(out, nhwc(arrays["output"]), path.stem)
        assert list(features) == list(known.settings.blocks)
        assert compare_recorded(features, known.settings, arrays) == {
            key for key in arrays if key.startswith("act_")
        }
        for block in record["output_blocks"]:
            side = block["resolution"]
            assert features[f"output_{block['index']}"].shape[1:] == (side, side, block["channels"])


@pytest.mark.golden
def test_recorded_outputs_between_whole_steps(golden):
    for path in golden("adm/unet_*.json"):
        known, params, arrays, _ = recorded(path)
        x, _, y = recorded_inputs(arrays)
        out, _ = forward(known.settings)(params, x, jnp.asarray(arrays["t_frac"]), y)
        close(out, nhwc(arrays["output_t_frac"]), path.stem)


@pytest.mark.golden
def test_recorded_embedded_times(golden):
    for path in golden("adm/unet_*.json"):
        known, params, arrays, _ = recorded(path)
        if known.settings.num_classes:  # recorded before the class is added
            params = params | {"classes": jnp.zeros_like(params["classes"])}
        _, t, y = recorded_inputs(arrays)
        model = network(known.settings).bind(params, {})
        close(model.embed(t, y), arrays["time_emb"], path.stem)


@pytest.mark.golden
def test_recorded_features_without_what_follows(golden):
    for path in golden("adm/unet_*.json"):
        known, params, arrays, _ = recorded(path)
        x, t, y = recorded_inputs(arrays)
        last = f"output_{known.settings.levels - 1}"
        out, features = forward(known.settings, until=last)(params, x, t, y)
        assert out is None and list(features)[-1] == last
        assert compare_recorded(features, known.settings, arrays)


# --- recorded: training ---------------------------------------------------------------------------


def training_case(path):
    """(configuration, parameters, arrays, official names' rows); skips without that network."""
    arrays = np.load(path)
    of_network = path.with_name(f"{arrays['model']}.json")
    if not of_network.exists():
        pytest.skip(f"the network {of_network.name} of {path.name} was not recorded with it")
    known, params, _, _ = recorded(of_network)
    return known, params, arrays, adm_table(known.settings, known.order)


def path_of(name, rows):
    """Our path of an official name."""
    for pattern, path, _ in rows:
        if match := re.fullmatch(pattern, name):
            return tuple(path.format(*match.groups()).split("."))
    raise AssertionError(name)


def pairs(prefix, arrays, rows, tree):
    """(name, recorded array in our layout, our leaf of `tree`) of every key with the prefix."""
    leaves = flatten_dict(tree)
    for key in arrays:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            path = path_of(name, rows)
            shape = unflatten_dict({path: leaves[path].shape})
            converted = convert({name: arrays[key]}, rows, shape)
            yield name, flatten_dict(converted)[path], np.asarray(leaves[path])


def process_of(known, keep=""):
    """The noise process of a recorded network, of which `keep` names the steps that remain."""
    options = known.diffusion
    return make_process(options["schedule"], options["steps"], keep, options["rescale_timesteps"])


def recorded_images(arrays):
    return nhwc(np.float32(arrays["x0_uint8"] / 127.5 - 1)), nhwc(arrays["noise"])


@functools.cache
def two_steps(path):
    """States after 0, 1, 2 updates, and the losses of the two."""
    known, params, arrays, _ = training_case(path)
    process, t = process_of(known), jnp.asarray(arrays["t"], jnp.int32)
    bind = network(known.settings).bind

    def loss_fn(params, stats, batch, key):
        x_t = noising(process, batch["clean"], batch["t"], batch["noise"])
        out, _ = bind(params, stats)(x_t, process.network_time(batch["t"]))
        losses = training_losses(
            process, out, batch["clean"], x_t, batch["t"], batch["noise"],
            known.diffusion["target"], known.diffusion["variance"], known.diffusion["loss"],
        )  # fmt: skip
        return jnp.sum(losses["loss"]), (jnp.float32(len(out)), stats, {})

    optimizer = make_optimizer(
        "adamw", constant(1e-4, 2, 0), b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.05,
        no_decay=(), clip_norm=0.0,
    )  # fmt: skip
    step = quick(functools.partial(train_step, loss_fn, optimizer, 1, (0.99,)))
    states = [new_state({"params": params, "stats": {}}, lambda path: True, optimizer, (0.99,))]
    x_0, eps = recorded_images(arrays)
    losses = []
    for i in range(len(arrays["adamw__losses"])):
        rolled = {"clean": jnp.roll(x_0, i, 0), "noise": jnp.roll(eps, i, 2), "t": t}
        state, metrics = step(states[-1], rolled, jax.random.key(0))
        states.append(state)
        losses.append(float(metrics["loss"]))
    return states, losses


@pytest.mark.golden
def test_recorded_losses_of_each_image(golden):
    for path in golden("adm/training_sampling*.npz"):
        known, params, arrays, _ = training_case(path)
        process, t = process_of(known), jnp.asarray(arrays["t"], jnp.int32)
        x_0, eps = recorded_images(arrays)
        x_t = noising(process, x_0, t, eps)
        out, _ = forward(known.settings)(params, x_t, process.network_time(t))
        losses = training_losses(
            process, out, x_0, x_t, t, eps,
            known.diffusion["target"], known.diffusion["variance"], known.diffusion["loss"],
        )  # fmt: skip
        for name in ("mse", "vb", "loss"):
            np.testing.assert_allclose(losses[name], arrays[f"loss__{name}"], rtol=1e-4)


@pytest.mark.golden
def test_recorded_gradients(golden):
    for path in golden("adm/training_sampling*.npz"):
        _, _, arrays, rows = training_case(path)
        states, _ = two_steps(path)
        # Adam's first moment after one step is (1 - b1) times the gradient
        grads = jax.tree.map(lambda m: m / 0.1, optax.tree.get(states[1]["opt"], "mu"))
        compared = list(pairs("grad__", arrays, rows, grads))
        for name, theirs, ours in compared:
            assert np.max(np.abs(ours - theirs)) <= 1e-3 * np.max(np.abs(theirs)), name
        assert compared
        norms = {p: np.linalg.norm(leaf.ravel()) for p, leaf in flatten_dict(grads).items()}
        assert {path_of(name, rows) for name in arrays["grad_names"]} == set(norms)
        assert np.any(arrays["grad_norms"] > 1e-6)
        for name, norm in zip(arrays["grad_names"], arrays["grad_norms"], strict=True):
            if norm > 1e-6:  # the others are zero in exact arithmetic
                np.testing.assert_allclose(norms[path_of(name, rows)], norm, rtol=2e-3,
                                           err_msg=name)  # fmt: skip


@pytest.mark.golden
def test_recorded_optimizer_steps_and_moving_average(golden):
    for path in golden("adm/training_sampling*.npz"):
        _, _, arrays, rows = training_case(path)
        states, losses = two_steps(path)
        np.testing.assert_allclose(losses, arrays["adamw__losses"], rtol=1e-5)
        for prefix, tree in (
            ("adamw_param__", states[-1]["params"]),
            ("adamw_ema__", states[-1]["ema"]["0.99"]),
        ):
            compared = list(pairs(prefix, arrays, rows, tree))
            assert compared
            for name, theirs, ours in compared:
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.golden
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_recorded_samples(golden, sampler):
    for path in golden("adm/training_sampling*.npz"):
        known, params, arrays, _ = training_case(path)
        steps = len(arrays[f"{sampler}__timestep_map"])
        process = process_of(known, f"ddim{steps}" if sampler == "ddim" else f"{steps}")
        np.testing.assert_array_equal(process.timesteps, arrays[f"{sampler}__timestep_map"])
        x = nhwc(arrays[f"{sampler}__init"])
        noises = nhwc(arrays[f"{sampler}__step_noises"])
        samples = nhwc(arrays[f"{sampler}__samples"])
        for i in range(process.steps):
            t = jnp.full(len(x), process.steps - 1 - i)
            out, _ = forward(known.settings)(params, x, process.network_time(t))
            step = reverse(
                process, out, x, t, known.diffusion["target"], known.diffusion["variance"]
            )
            if sampler == "ddpm":
                x = ddpm_step(process, step, t, noises[i])
            else:
                x = ddim_step(process, x, step.clean, t)
            np.testing.assert_allclose(x, samples[i], atol=5e-3, err_msg=f"{sampler} step {i}")


# --- parts of the network -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """(output, features) of the small network for `batch(SMALL)`."""
    with jax.default_matmul_precision("highest"):
        return forward(SMALL)(filled(SMALL), *batch(SMALL))


def test_every_block_can_be_the_last():
    """What is cut off is never called, and what is left has the same shapes."""
    params, inputs = filled(SMALL), batch(SMALL)
    bind = network(SMALL).bind
    _, all_features = jax.eval_shape(lambda p, *rest: bind(p, {})(*rest), params, *inputs)

    def cut(index, params, x, t, y):
        model = bind(params, {})
        for name in (*SMALL.blocks[index + 1 :], "norm", "head"):
            delattr(model, name)
        return model(x, t, y, until=SMALL.blocks[index])

    for index in range(len(SMALL.blocks)):
        out, features = jax.eval_shape(functools.partial(cut, index), params, *inputs)
        assert out is None
        assert features == {name: all_features[name] for name in SMALL.blocks[: index + 1]}


def test_features_have_the_resolution_of_their_level(whole):
    sides = {name: feature.shape[1] for name, feature in whole[1].items()}
    assert sides == {
        "input_0": 16, "input_1": 16, "input_2": 8, "input_3": 8, "middle": 8,
        "output_0": 8, "output_1": 16, "output_2": 16, "output_3": 16,
    }  # fmt: skip


def test_images_do_not_see_each_other(whole):
    """Neither their pixels nor their t nor their class."""
    x, t, y = batch(SMALL)
    swapped, _ = forward(SMALL)(filled(SMALL), x[::-1], t[::-1], y[::-1])
    np.testing.assert_allclose(swapped[::-1], whole[0], rtol=1e-5, atol=1e-5)
    for changed in ((x[::-1], t, y), (x, t[::-1], y), (x, t, y[::-1])):
        other, _ = forward(SMALL)(filled(SMALL), *changed)
        assert np.max(np.abs(other - whole[0])) > 1e-2


def test_bfloat16_stays_near_float32(whole, record_property):
    out, features = forward(SMALL, dtype=jnp.bfloat16)(filled(SMALL), *batch(SMALL))
    assert out.dtype == jnp.float32
    errors = {}
    for name, feature in features.items():
        assert feature.dtype == jnp.bfloat16
        exact = np.asarray(whole[1][name], np.float64)
        error = np.asarray(feature, np.float64) - exact
        errors[name] = np.linalg.norm(error) / np.linalg.norm(exact)
    worst = max(errors, key=errors.get)
    print(f"largest relative error of a block: {worst} {errors[worst]:.2g}")
    record_property("bfloat16_error", float(errors[worst]))
    assert 1e-4 < errors[worst] < 5e-2, errors


def test_recomputation_changes_neither_output_nor_gradients():
    params, (x, t, y), key = filled(FLAT), batch(FLAT, size=8), jax.random.key(0)

    @functools.partial(quick, static_argnums=0)
    def energy_and_gradients(remat, params, x):
        bind = network(FLAT, remat=remat).bind
        energy = lambda params, x: jnp.sum(jnp.sin(bind(params, {})(x, t, y, key)[0]))
        return jax.value_and_grad(energy, (0, 1))(params, x)

    plain, again = (energy_and_gradients(remat, params, x) for remat in (False, True))
    np.testing.assert_allclose(again[0], plain[0], rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(again[1]), jax.tree.leaves(plain[1])):
        scale = np.max(np.abs(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(scale, 1))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(plain[1]))  # every parameter is used


def applied(bind, params, *inputs):
    return bind(params, {})(*inputs)


def test_recomputation_wraps_every_block_but_the_first():
    params, inputs = filled(SMALL), batch(SMALL)
    for remat, wrapped in ((False, 0), (True, len(SMALL.blocks) - 1)):
        bind = network(SMALL, remat=remat).bind
        program = jax.make_jaxpr(functools.partial(applied, bind))(params, *inputs)
        names = [eqn.primitive.name for eqn in program.eqns]
        assert sum("remat" in name or "checkpoint" in name for name in names) == wrapped


# --- dropout --------------------------------------------------------------------------------------


def test_dropout_is_off_without_a_key_and_differs_by_key_and_image(whole):
    params, (x, t, y) = filled(SMALL), batch(SMALL)
    same = (jnp.repeat(x[:1], 2, 0), jnp.repeat(t[:1], 2), jnp.repeat(y[:1], 2))
    still, _ = forward(SMALL)(params, *same)
    np.testing.assert_allclose(still[0], still[1], atol=1e-5)
    np.testing.assert_allclose(still[0], whole[0][0], atol=1e-5)
    one, two = (forward(SMALL)(params, *same, jax.random.key(seed))[0] for seed in (0, 1))
    for a, b in ((one, two), (one[0], one[1]), (one, still)):
        assert np.max(np.abs(a - b)) > 1e-2
    again, _ = forward(SMALL)(params, *same, jax.random.key(0))
    np.testing.assert_array_equal(one, again)


def test_dropout_draws_anew_in_every_block():
    """Two parts of one block, and two blocks, get different keys."""

    @quick
    def keys_of(params, x, t, y, key):
        keys = []
        spy = lambda x, rate, key: keys.append(key) or x
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffseg_jax.models.adm_unet.dropout", spy)
            network(SMALL).bind(params, {})(x, t, y, key)
        return jnp.stack([jax.random.key_data(key) for key in keys])

    keys = np.asarray(keys_of(filled(SMALL), *batch(SMALL), jax.random.key(0)))
    # 2 on the way down, 1 reduction, 2 in the middle, 4 on the way up, 1 enlargement
    assert len(keys) == len(np.unique(keys, axis=0)) == 10


def test_dropout_keeps_the_mean_of_a_residual_block():
    """A block is linear in what dropout touches, so its mean is the block without dropout."""
    block = ResidualBlock(32, 32, 8, "", SMALL, nnx.Rngs(0))
    draw = np.random.default_rng(0)
    block.conv2.kernel[...] = jnp.asarray(draw.standard_normal((3, 3, 32, 32), np.float32) / 17)
    x = jnp.asarray(draw.standard_normal((1, 2, 2, 32)), jnp.float32)
    emb = jnp.asarray(draw.standard_normal((1, 8)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 500)
    outs = quick(jax.vmap(lambda key: block(x, emb, key)))(keys)
    deviation = np.std(outs, 0) / math.sqrt(len(keys))
    assert np.min(deviation) > 0
    assert np.max(np.abs(np.mean(outs, 0) - block(x, emb, None)) / deviation) < 5.5


# --- sizes, and fresh networks --------------------------------------------------------------------


def test_any_size_is_padded_at_its_edges_and_cropped():
    """13 x 6 is worked on as 16 x 8, its last row and column repeated."""
    params, x, t = filled(DEEP), images(2, 13, 6), jnp.array([3, 700])
    padded = jnp.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="edge")
    out, features = forward(DEEP)(params, x, t)
    expected, same = forward(DEEP)(params, padded, t)
    assert out.shape == (2, 13, 6, 3)
    np.testing.assert_allclose(out, expected[:, :13, :6], rtol=1e-5, atol=1e-5)
    assert {name: f.shape for name, f in features.items()} == {n: f.shape for n, f in same.items()}


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (5, 3)])
def test_output_has_the_size_of_the_image(size):
    bind = network(DEEP).bind
    run = lambda params, x: bind(params, {})(x, jnp.zeros(1))
    out, features = jax.eval_shape(run, filled(DEEP), images(1, *size))
    assert out.shape == (1, *size, 3)
    assert features["middle"].shape[1:3] == tuple(-(-side // 4) for side in size)


@pytest.fixture(scope="module")
def fresh():
    return jax.device_get(quick(network(FLAT).init)(jax.random.key(0))["params"])


def test_a_fresh_network_outputs_zero_but_has_features(fresh):
    out, features = forward(FLAT)(fresh, *batch(FLAT))
    assert not np.any(out)
    assert all(np.std(feature) > 1e-2 for feature in features.values())


def test_parameters_have_their_initial_values(fresh):
    """Uniform in +-1 / sqrt(fan in), kernel and bias alike; zero where a branch or the net ends."""
    leaves = flatten_dict(fresh, sep=".")
    zero = {path for path, leaf in leaves.items() if not np.any(leaf)}
    ends = ("conv2", "attention.out", "head")
    assert zero == {
        path for path in leaves
        if path.rpartition(".")[0].endswith(ends) or "norm" in path and path.endswith("bias")
    }  # fmt: skip
    np.testing.assert_allclose(np.std(leaves["classes"]), 1, rtol=0.1)
    for path, kernel in leaves.items():
        if path in zero or not path.endswith("kernel"):
            continue
        bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
        bias = leaves[path.replace("kernel", "bias")]
        assert 0.8 * bound < np.max(np.abs(kernel)) <= bound, path
        assert 0.5 * bound < np.max(np.abs(bias)) <= bound, path


# --- mistakes -------------------------------------------------------------------------------------


def abstract_call(settings, y=None, until=None):
    bind = network(settings).bind
    run = lambda params, x: bind(params, {})(x, jnp.zeros(len(x)), y, None, until)
    return jax.eval_shape(run, network(settings).abstract["params"], images(2, 8, 8))


def test_unknown_block_is_refused():
    with pytest.raises(UserError, match='no block "output_9". Known: input_0, .*output_3'):
        abstract_call(SMALL, jnp.array([0, 1]), until="output_9")


def test_class_is_given_if_and_only_if_the_network_has_some():
    with pytest.raises(UserError, match="no class was given, but this network has 5 classes"):
        abstract_call(SMALL)
    with pytest.raises(UserError, match="a class was given, but this network has no classes"):
        abstract_call(DEEP, jnp.array([0, 1]))


def test_class_ids_out_of_range_are_refused():
    check_classes(np.array([0, 4]), 5)
    for wrong in ([0, 5], [-1, 0]):
        bad = max(wrong, key=abs)
        with pytest.raises(UserError, match=f"class {bad} was given, .* knows 0 to 4"):
            check_classes(np.array(wrong), 5)
    with pytest.raises(UserError, match="this network has none"):
        check_classes(np.array([0]), 0)


@pytest.mark.parametrize(("change", "sentence"), [
    (dict(channels=48), "gives a level of 48 channels"),
    (dict(channel_mult=(0.5, 1)), "gives a level of 16 channels"),
    (dict(channel_mult=(1, -1)), "gives a level of -32 channels"),
    (dict(head_channels=24), "cannot be shared evenly by heads"),
    (dict(head_channels=0), "cannot be shared evenly by heads"),
    (dict(head_channels=128), "64 channels cannot be shared evenly"),
    (dict(head_channels=-1, heads=3), "heads 3"),
    (dict(head_channels=-1, heads=2, heads_up=7), "heads_up 7"),
    (dict(head_channels=-1, heads=3, attention_factors=()), "64 channels"),  # the middle attends
    (dict(attention_factors=(2, 3)), "holds 3, but 2 levels reduce by 1, 2 only"),
    (dict(attention_factors=(4,)), "holds 4"),
])  # fmt: skip
def test_settings_that_make_no_network_are_refused(change, sentence):
    settings = dataclasses.replace(SMALL, **change)
    with pytest.raises(UserError, match=sentence):
        ADMUNet(settings, rngs=nnx.Rngs(0))


def test_heads_are_given_by_count_or_by_width():
    by_width = dataclasses.replace(SMALL, head_channels=16, heads=4, heads_up=2)
    assert [by_width.num_heads(64, up) for up in (False, True)] == [4, 4]
    by_count = dataclasses.replace(SMALL, head_channels=-1, heads=4, heads_up=2)
    assert [by_count.num_heads(64, up) for up in (False, True)] == [4, 2]
    alike = dataclasses.replace(by_count, heads_up=-1)
    assert [alike.num_heads(64, up) for up in (False, True)] == [4, 4]
