"""DDeP: recorded updates, what is frozen, what the next stage takes over, where stages start."""

import functools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

from diffseg_jax.config.files import run_config
from diffseg_jax.config.schema import check_options
from diffseg_jax.diffusion.schedules import LEVELS, gamma_to_sigma, sigma_to_gamma
from diffseg_jax.errors import UserError
from diffseg_jax.layers.conv import Arithmetic, convolve
from diffseg_jax.models.inputs import draw_per_row, scale_images
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.models.transunet import Encoder, TransUNet
from diffseg_jax.systems import ddep, ddep_config
from diffseg_jax.training.losses import squared_error
from diffseg_jax.training.optimizer import make_optimizer, make_schedule
from diffseg_jax.training.state import network_of, new_state
from diffseg_jax.training.step import train_step
from diffseg_jax.weights.formats import read_arrays

LIMIT = 1e-4  # gradients and optimizer steps in float32, of the largest recorded value
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NOISE = dict(
    kind="scaled", low=0.22, high=0.22, uniform_in="sigma", target="noise", condition=False
)
KEY = jax.random.key(0)


def make_config(pretrain="ddep", weights="", noise=None, **model):
    """The config of the quick start with a tiny network."""
    config = run_config(str(Path(__file__).parents[2] / "configs/ddep_scenes.py"))
    config.pretrain, config.weights = pretrain, weights
    config.noise.update(noise or {})
    config.model.update(
        dict(hidden=32, layers=1, heads=2, mlp=32, decoder=(12, 8, 6, 4), bridge=10) | model
    )
    return config


@functools.cache
def task_of(kind, pretrain="ddep", crop=(32, 32), classes=5):
    return ddep.make_task(make_config(pretrain), kind, crop, classes)


@functools.cache
def shapes_of(init):
    return jax.eval_shape(init, KEY)


def abstract(task):
    """Shapes of the task's network."""
    return shapes_of(task.init)


def filled(tree, seed=0):
    """Random values for a tree of shapes; scales and variances near 1."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = 0.1 * generator.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(noise + (path[-1].key in ("scale", "var")))

    return jax.tree_util.tree_map_with_path(draw, tree)


def flat(tree):
    return {".".join(path): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


def nhwc(array):
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def adam(lr=1e-3, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0):
    schedule = make_schedule("constant", lr, 1, 0, 0.0)
    return make_optimizer(
        "adam",
        schedule,
        b1=b1,
        b2=b2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        no_decay=(),
        clip_norm=0.0,
    )


# --- recorded updates -----------------------------------------------------------------------------


def recorded_case(path):
    """(task with the network of a recorded run, its start, arrays, record)."""
    record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    c = record["config"]
    config = make_config(
        weights=str(path.with_name(path.stem + "_state.pt")), arithmetic="port",
        resnet_width=c["width_factor"], resnet_units=tuple(c["num_blocks"]),
        hidden=c["hidden_size"], layers=c["num_layers"], heads=c["num_heads"], mlp=c["mlp_dim"],
        decoder=tuple(c["decoder_channels"]), bridge=c["head_channels"], skips=c["n_skip"],
        dropout=c["dropout"],
    )  # fmt: skip
    size = (c["img_size"], c["img_size"])
    task = ddep.make_task(config, "pretrain", size, 0)
    make = functools.partial(ddep._transunet, config, c["n_classes"], ddep.token_grid(size))
    network = Network(make)
    shapes = abstract(task)
    finetune = SimpleNamespace(meta={**task.meta, "kind": "finetune"})  # reads the head too
    start = jax.tree.map(jnp.asarray, ddep_config.load_weights(config, shapes, finetune))
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, shapes)
    return task, network, start, arrays, record


def recorded_loss(network, params, stats, batch, key):
    """`ddep.denoising_loss` with the recorded noisy images instead of a draw."""
    model = network.bind(params, stats)
    prediction, _ = model(batch["noisy"], jnp.zeros(len(batch["noisy"])))
    loss, weight = squared_error(prediction, batch["goal"])
    return loss, (weight, stats_of(model), {})


def torch_name(path):
    """The torch entry of a dotted path in our decoder or head."""
    text = path.replace("bridge", "conv_more").replace("stage", "blocks.")
    text = text.replace("conv.kernel", "0.weight").replace("norm.scale", "1.weight")
    text = text.replace("norm.bias", "1.bias").replace("norm.mean", "1.running_mean")
    text = text.replace("norm.var", "1.running_var").replace("head.", "segmentation_head.0.")
    return text.replace("kernel", "weight")


def as_recorded(tree):
    """Torch entry -> array in torch's layout, for the decoder and the head."""
    turned = lambda leaf: np.transpose(leaf, (3, 2, 0, 1)) if leaf.ndim == 4 else np.asarray(leaf)
    return {torch_name(path): turned(leaf) for path, leaf in flat(tree).items()}


@pytest.mark.golden
def test_recorded_updates(golden):
    for path in golden("ddep/transunet_ddep*.json"):
        task, network, start, arrays, record = recorded_case(path)
        o = record["optimizer"]
        assert o["name"] == "adam"
        optimizer = adam(o["lr"], o["b1"], o["b2"], o["eps"], o["weight_decay"])
        state = new_state(start, task.trainable, optimizer, ())
        assert set(as_recorded(state["params"])) == set(record["trainable_names"])
        step = quick(functools.partial(
            train_step, functools.partial(recorded_loss, network), optimizer, 1, ()
        ))  # fmt: skip
        goal = {"noise": "noise", "image": "clean"}[record["target"]]
        batch = {"noisy": arrays["noisy"], "goal": arrays[goal]}
        batch = {name: jnp.asarray(nhwc(array)) for name, array in batch.items()}
        losses = []
        for i in range(record["steps"]):
            state, metrics = step(state, batch, KEY)
            losses.append(float(metrics["loss"]))
            if i == 0:
                check_first_gradients(state, metrics, o["b1"], arrays, record)
        assert difference(np.array(losses), arrays["losses"]) < LIMIT
        check_entries(as_recorded(state["params"]), arrays, "param_after/")
        check_entries(as_recorded(state["stats"]), arrays, "bn_after/")
        before = flat(start["params"])
        for name, leaf in flat(state["frozen"]).items():
            np.testing.assert_array_equal(leaf, before[name])
        check_forward(network, start, network_of(state, ()), batch["noisy"], arrays)


def check_first_gradients(state, metrics, b1, arrays, record):
    """The gradients of the first step, read off Adam's first moment."""
    moment = optax.tree.get(state["opt"], "mu")
    grads = as_recorded(jax.tree.map(lambda m: m / (1 - b1), moment))
    check_entries(grads, arrays, "grad/")
    norms = np.array([np.linalg.norm(grads[name]) for name in record["trainable_names"]])
    assert difference(norms, arrays["grad_norms"]) < LIMIT
    whole = np.linalg.norm(arrays["grad_norms"])
    np.testing.assert_allclose(metrics["grad_norm"], whole, rtol=LIMIT)


def check_entries(ours, arrays, prefix):
    names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    assert names
    for name in names:
        assert difference(ours[name], arrays[prefix + name]) < LIMIT, name


def check_forward(network, start, after, noisy, arrays):
    bound = lambda values: network.bind_eval(values["params"], values["stats"])
    run = quick(lambda values: bound(values)(noisy, jnp.zeros(len(noisy))))
    output, features = run(start)
    names = {"encoded": "encoded", "skip0": "skip8", "conv_more": "bridge"}
    names |= {f"dec{s}": f"stage{s}" for s in range(4)} | {"eval_logits": "output"}
    found, compared = {**features, "output": output}, [name for name in names if name in arrays]
    assert "encoded" in compared
    for recorded in compared:
        expected, ours = nhwc(arrays[recorded]), found[names[recorded]]
        assert difference(ours.reshape(expected.shape), expected) < LIMIT, recorded
    assert difference(run(after)[0], nhwc(arrays["final_eval_pred"])) < LIMIT


# --- real denoising steps -------------------------------------------------------------------------


def unlabelled(count=4, size=(32, 32), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return {"image": jnp.asarray(pixels), "valid": jnp.asarray([size] * count, jnp.int32)}


@pytest.fixture(scope="module")
def pretrained():
    """(state before, state after two DDeP updates, metrics) of a network with random weights."""
    task, optimizer = task_of("pretrain"), adam()
    before = new_state(filled(abstract(task)), task.trainable, optimizer, ())
    step = quick(functools.partial(train_step, task.loss, optimizer, 1, ()))
    state, _ = step(before, unlabelled(), KEY)
    state, metrics = step(state, unlabelled(), KEY)
    return before, state, metrics


def test_denoising_moves_every_leaf_of_the_decoder_and_none_of_the_encoder(pretrained):
    before, after, metrics = pretrained
    assert metrics["finite"] == 1 and after["step"] == 2
    assert set(before["params"]) == {"decoder", "head"} and set(before["frozen"]) == {"encoder"}
    for path, leaf in flat(before["frozen"]).items():
        np.testing.assert_array_equal(flat(after["frozen"])[path], leaf, err_msg=path)
    for part in ("params", "stats"):
        for path, leaf in flat(before[part]).items():
            assert jnp.any(flat(after[part])[path] != leaf), path


def test_optimizer_state_is_twice_the_decoder_and_no_more(pretrained):
    state = pretrained[1]
    sizes = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert sizes(state["opt"]) - 2 * sizes(state["params"]) <= 2  # counters
    assert sizes(state["params"]) < sizes(state["frozen"]) / 10


def operations(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def operations_of_a_step(pretrain):
    task, optimizer = task_of("pretrain", pretrain), adam()
    batch = jax.eval_shape(unlabelled)
    start = lambda: new_state(filled(abstract(task)), task.trainable, optimizer, ())
    step = functools.partial(train_step, task.loss, optimizer, 1, ())
    return operations(step, jax.eval_shape(start), batch, KEY)


def test_a_frozen_encoder_is_only_run_forwards():
    """Backwards costs twice forwards: encoder + 3 decoders instead of 3 of both."""
    network = Network(functools.partial(ddep._transunet, make_config(), 3, (2, 2)))
    values, image = abstract(task_of("pretrain")), jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    bound = lambda v: network.bind_eval(v["params"], v["stats"])
    both = operations(lambda v, x: bound(v)(x)[0], values, image)
    encoder = operations(lambda v, x: bound(v).encoder(x)[0], values, image)
    frozen, unfrozen = operations_of_a_step("ddep"), operations_of_a_step("dep")
    assert 0.85 < frozen / (encoder + 3 * (both - encoder)) < 1.2
    assert 0.85 < unfrozen / (3 * both) < 1.2
    assert frozen < 0.75 * unfrozen


# --- the loss, seen by a network of one line ------------------------------------------------------


class Stub(nnx.Module):
    """Stands for a network: records its inputs and returns a function of them."""

    def __init__(self, output_of):
        self.output_of = output_of
        self.mean = nnx.BatchStat(jnp.zeros(1))

    def __call__(self, noisy, level=None, key=None):
        return self.output_of(noisy, level, key), {"root": noisy, "encoded": noisy}


def recording(output_of=lambda noisy: jnp.zeros_like(noisy)):
    """(a network that can be bound, the list of what it was shown)."""
    seen = []

    def forward(noisy, level, key):
        seen.append((noisy, level, key))
        return output_of(noisy)

    bind = lambda params, stats: Stub(forward)
    return SimpleNamespace(bind=bind, bind_eval=bind), seen


def denoise_once(batch=None, rows=None, dropout=False, output_of=None, key=KEY, **noise):
    network, seen = recording(*([output_of] if output_of else []))
    batch = unlabelled() if batch is None else batch
    rows = jnp.arange(len(batch["image"])) if rows is None else rows
    loss, (weight, _, _) = ddep.denoising_loss(
        network, NOISE | noise, dropout, {}, {}, {**batch, "row": rows}, key
    )
    return float(loss), float(weight), *seen[0]


def test_predicting_zeros_costs_one_per_element():
    """The noise has unit variance, so the mean squared error of 0 is 1."""
    loss, weight, *_ = denoise_once(unlabelled(8, (64, 64)))
    assert weight == 8 * 64 * 64 * 3
    assert abs(loss / weight - 1) < 0.02


@pytest.mark.parametrize("kind", LEVELS)
def test_a_network_that_knows_the_image_pays_nothing(kind):
    batch = unlabelled()
    image = scale_images(batch["image"], batch["valid"])
    alpha, sigma = LEVELS[kind](jnp.asarray(0.22))
    perfect = lambda noisy: (noisy - alpha * image) / sigma
    loss, weight, *_ = denoise_once(batch, output_of=perfect, kind=kind)
    assert loss / weight < 1e-9
    loss, weight, *_ = denoise_once(batch, output_of=lambda noisy: image, kind=kind, target="image")
    assert loss == 0
    loss, weight, *_ = denoise_once(batch, output_of=lambda noisy: image, kind=kind)
    assert loss / weight > 1


def test_without_noise_the_network_sees_the_image():
    batch = unlabelled()
    _, _, noisy, level, _ = denoise_once(batch, low=0.0, high=0.0)
    np.testing.assert_array_equal(noisy, scale_images(batch["image"], batch["valid"]))
    np.testing.assert_array_equal(level, 0)


def test_dropout_has_a_key_only_when_it_is_on():
    assert denoise_once()[-1] is None
    assert denoise_once(dropout=True)[-1] is not None


def test_only_an_encoder_that_learns_has_dropout():
    for pretrain, learns in (("dep", True), ("ddep", False)):
        task = task_of("pretrain", pretrain)
        assert task.trainable(("encoder", "root", "conv", "kernel")) == learns
        assert task.trainable(("decoder", "bridge", "conv", "kernel"))
        assert task.trainable(("head", "bias"))
        assert task.loss.args[2] == learns
        assert task_of("finetune", pretrain).trainable(("encoder", "norm", "scale"))


def test_noise_of_a_row_does_not_depend_on_the_split():
    batch = unlabelled()
    whole = denoise_once(batch, low=0.1, high=0.9)
    for rows in ([0, 2], [1, 3], [3]):
        part = {name: leaf[jnp.asarray(rows)] for name, leaf in batch.items()}
        alone = denoise_once(part, rows=jnp.asarray(rows), low=0.1, high=0.9)
        np.testing.assert_array_equal(alone[3], whole[3][jnp.asarray(rows)])
        np.testing.assert_allclose(alone[2], whole[2][jnp.asarray(rows)], atol=1e-6)


def test_every_row_and_every_key_draws_its_own_noise():
    batch = jax.tree.map(lambda x: x[jnp.zeros(4, int)], unlabelled())  # four times one image
    assert len(np.unique(denoise_once(batch, low=0.1, high=0.9)[3])) == 4
    assert np.max(np.abs(np.corrcoef(added_noise(batch)) - np.eye(4))) < 0.1
    other = denoise_once(batch, key=jax.random.key(1))[2]
    assert np.mean(np.abs(other - denoise_once(batch)[2])) > 0.1


def added_noise(batch):
    """What the simple form adds to the images, one row per image."""
    noisy = denoise_once(batch, kind="simple")[2]
    return np.asarray(noisy - scale_images(batch["image"], batch["valid"])).reshape(len(noisy), -1)


def test_noise_has_the_power_of_the_config():
    residual = added_noise(unlabelled(8, (64, 64)))
    np.testing.assert_allclose(residual.std(1), 0.22, rtol=0.03)
    np.testing.assert_allclose(residual.mean(1), 0, atol=0.01)


@pytest.mark.parametrize("uniform_in", ["sigma", "gamma"])
def test_levels_are_uniform_in_the_chosen_quantity(uniform_in):
    noise = NOISE | dict(low=0.1, high=2.0, uniform_in=uniform_in)
    sigma = np.asarray(draw_per_row(lambda k: ddep.draw_sigma(k, noise), KEY, jnp.arange(4000)))
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0
    low, high, drawn = 0.1, 2.0, sigma
    if uniform_in == "gamma":
        low, high, drawn = sigma_to_gamma(2.0), sigma_to_gamma(0.1), sigma_to_gamma(sigma)
    quantiles = (np.quantile(drawn, [0.1, 0.5, 0.9]) - low) / (high - low)
    np.testing.assert_allclose(quantiles, [0.1, 0.5, 0.9], atol=0.03)


def test_one_level_is_that_level():
    assert ddep.draw_sigma(KEY, NOISE) == np.float32(0.22)
    gamma = NOISE | dict(uniform_in="gamma")
    assert ddep.draw_sigma(KEY, gamma) == np.float32(0.22)
    narrow = dict(low=gamma_to_sigma(0.99), high=gamma_to_sigma(0.95), uniform_in="gamma")
    assert 0.1 < ddep.draw_sigma(KEY, NOISE | narrow) < 0.23


def test_images_are_scaled_and_padding_is_zero():
    images = jnp.asarray([[[[0, 255, 51]] * 3] * 3], jnp.uint8)
    scaled = scale_images(images, jnp.asarray([[2, 1]]))
    np.testing.assert_allclose(scaled[0, 1, 0], [-1, 1, -0.6], rtol=1e-6)
    assert not jnp.any(scaled[0, 2]) and not jnp.any(scaled[0, :, 1:])


def test_segmentation_counts_only_labelled_pixels():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 32, 32, 5)), jnp.float32)
    mask = np.asarray(jnp.argmax(logits, -1)).astype(np.int32)
    mask[:, :8] = 255
    mask[:, 8:16] = (mask[:, 8:16] + 1) % 5
    network, seen = recording(lambda image: logits)
    batch = unlabelled() | {"mask": jnp.asarray(mask), "row": jnp.arange(4)}
    loss, (weight, _, metrics) = ddep.segmentation_loss(network, {}, {}, batch, KEY)
    assert weight == 4 * 24 * 32
    assert metrics["pixel_accuracy"] / weight == np.float32(2 / 3)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    counted = mask != 255
    expected = -np.take_along_axis(log_probs, np.where(counted, mask, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, expected[counted].sum(), rtol=1e-5)
    np.testing.assert_array_equal(seen[0][0], scale_images(batch["image"], batch["valid"]))
    assert seen[0][2] is not None  # fine-tuning uses dropout
    nothing = {**batch, "mask": jnp.full_like(mask, 255)}
    loss, (weight, _, metrics) = ddep.segmentation_loss(network, {}, {}, nothing, KEY)
    assert loss == weight == metrics["pixel_accuracy"] == 0


# --- predictions ----------------------------------------------------------------------------------


VALUES = {"params": {}, "stats": {}}


def test_class_probabilities_sum_to_one():
    network, seen = recording(lambda image: 50 * image)
    probs = ddep.class_probabilities(network, VALUES, **as_images(unlabelled()))["probs"]
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    assert seen[0][2] is None  # no dropout


@pytest.mark.parametrize("size", [(32, 48), (31, 48), (32, 33)])
def test_a_flat_map_is_as_sure_at_the_border_of_the_image_as_inside(size):
    kernel, bias = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    ones = jnp.ones((1, *(16 * n for n in ddep.token_grid(size)), 1))
    sums = convolve(ones, jnp.broadcast_to(kernel, (3, 3, 1, 5)))[:, : size[0], : size[1]]
    network, _ = recording(lambda image: sums + bias)
    values = VALUES | {"params": {"head": {"bias": bias}}}
    batch = as_images(unlabelled(1, size))
    plain = ddep.class_probabilities(network, values, **batch)["probs"]
    assert np.max(np.abs(plain[0, 0, 0] - plain[0, 9, 9])) > 0.1
    probs = ddep.class_probabilities(network, values, **batch, complete=True)["probs"]
    inside = jnp.broadcast_to(probs[:, 9:10, 9:10], probs.shape)
    np.testing.assert_allclose(probs, inside, rtol=1e-4)


@pytest.mark.parametrize(("arithmetic", "complete"), [("official", True), ("port", False)])
def test_only_probabilities_of_the_port_lack_taps(arithmetic, complete):
    task = ddep.make_task(make_config(arithmetic=arithmetic), "finetune", (32, 32), 5)
    assert task.predict.keywords == {"complete": complete}


def as_images(batch):
    return {"images": batch["image"], "valid": batch["valid"]}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("target", ["noise", "image"])
def test_a_perfect_prediction_denoises_perfectly(kind, target):
    batch = unlabelled()
    image = scale_images(batch["image"], batch["valid"])
    alpha, sigma = LEVELS[kind](jnp.asarray(0.3))
    output_of = lambda noisy: (noisy - alpha * image) / sigma if target == "noise" else image
    network, seen = recording(output_of)
    noise = NOISE | dict(kind=kind, low=0.2, high=0.4, target=target)
    shown, noisy, clean, error = ddep.denoise(network, noise, VALUES, **as_images(batch), key=KEY)
    np.testing.assert_array_equal(shown, image)
    np.testing.assert_allclose(clean, image, atol=1e-5)
    assert error < 1e-9
    assert noisy.min() >= -1 and noisy.max() <= 1
    np.testing.assert_allclose(noisy, np.clip(seen[0][0] / alpha, -1, 1), atol=1e-6)
    assert np.mean(np.abs(noisy - image)) > 0.05


# --- tasks and networks ---------------------------------------------------------------------------


def test_tasks_have_the_outputs_and_the_grid_of_their_stage():
    pretrain, finetune = task_of("pretrain"), task_of("finetune", crop=(33, 64))
    scaled = {"normalisation": "(v - 127.5) / 127.5"}
    assert pretrain.meta == {"kind": "pretrain", "grid": [2, 2], **scaled}
    assert finetune.meta == {"kind": "finetune", "grid": [3, 4], **scaled}
    assert pretrain.predict is None and finetune.denoise is None
    assert abstract(pretrain)["params"]["head"]["bias"].shape == (3,)
    assert abstract(finetune)["params"]["head"]["bias"].shape == (5,)
    assert abstract(finetune)["params"]["encoder"]["position_embedding"].shape == (1, 12, 32)


@pytest.mark.parametrize(("width", "scaled", "bridge", "stages"), [
    (1.0, True, 10, (12, 8, 6, 4)), (2.0, False, 10, (24, 16, 12, 8)),
    (3.0, True, 30, (36, 24, 18, 12)),
])  # fmt: skip
def test_decoder_width_multiplies_the_stages_and_maybe_the_bridge(width, scaled, bridge, stages):
    config = make_config(decoder_width=width, scale_bridge=scaled)
    model = nnx.eval_shape(lambda: ddep._transunet(config, 3, (2, 2), nnx.Rngs(0)))
    assert model.decoder.bridge.conv.kernel.shape[-1] == bridge
    widths = [getattr(model.decoder, f"stage{s}").conv2.conv.kernel.shape[-1] for s in range(4)]
    assert tuple(widths) == stages


def test_network_follows_the_config():
    config = make_config(arithmetic="port", dropout=0.3, skips=2, noise=dict(condition=True))
    config.dtype, config.remat = "bfloat16", True
    model = nnx.eval_shape(lambda: ddep._transunet(config, 3, (2, 2), nnx.Rngs(0)))
    assert isinstance(model, TransUNet) and isinstance(model.encoder, Encoder)
    assert model.encoder.arithmetic is Arithmetic.PORT and model.encoder.dropout_rate == 0.3
    assert model.decoder.skips == 2 and model.level is not None
    assert model.dtype == jnp.bfloat16 and model.encoder.remat and model.decoder.remat


@pytest.mark.parametrize(("crop", "grid"), [
    ((224, 224), (14, 14)), ((1, 17), (1, 2)), ((512, 1024), (32, 64)),
])  # fmt: skip
def test_the_token_grid_covers_the_padded_crop(crop, grid):
    assert ddep.token_grid(crop) == grid


# --- from one stage to the next -------------------------------------------------------------------


def test_fine_tuning_takes_over_all_but_the_projection(pretrained):
    previous, task = network_of(pretrained[1], ()), task_of("finetune", crop=(48, 16))
    taken = ddep_config.adopt(abstract(task), task, previous, task_of("pretrain").meta)
    assert set(taken["params"]) == {"encoder", "decoder"}
    before, after = flat(previous), flat(taken)
    table = "params.encoder.position_embedding"
    assert before.keys() - after.keys() == {"params.head.kernel", "params.head.bias"}
    for path in after.keys() - {table}:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    assert after[table].shape == (1, 3, 32)
    np.testing.assert_allclose(after[table][0, [0, 2]], before[table][0, [0, 2]], atol=1e-6)
    np.testing.assert_allclose(after[table][0, 1], before[table][0, [0, 2]].mean(0), atol=1e-6)


def test_a_stage_of_the_same_kind_keeps_its_head():
    task = task_of("finetune")
    previous = filled(abstract(task))
    taken = ddep_config.adopt(abstract(task), task, previous, task.meta)
    assert flat(taken).keys() == flat(previous).keys()


@pytest.mark.parametrize("change", [dict(hidden=48), dict(layers=2), dict(decoder=(12, 8, 6, 5))])
def test_another_network_is_refused(change):
    task = ddep.make_task(make_config(**change), "finetune", (32, 32), 5)
    previous = filled(abstract(task_of("pretrain")))
    with pytest.raises(UserError, match="another network: params.*Use the same model settings"):
        ddep_config.adopt(abstract(task), task, previous, task_of("pretrain").meta)


def test_a_network_with_more_parts_is_refused():
    """A deeper one holds all that is expected here, and would silently lose layers."""
    task = task_of("finetune")
    deeper = ddep.make_task(make_config(layers=2), "pretrain", (32, 32), 0)
    with pytest.raises(UserError, match=r"this stage has no params\.encoder\.layer1"):
        ddep_config.adopt(abstract(task), task, filled(abstract(deeper)), deeper.meta)


def test_another_number_of_classes_is_refused():
    task, other = task_of("finetune"), task_of("finetune", classes=7)
    with pytest.raises(UserError, match=r"params\.head\.(kernel|bias) is .*7.* there"):
        ddep_config.adopt(abstract(task), task, filled(abstract(other)), other.meta)


# --- weights files --------------------------------------------------------------------------------


def contents(arrays):
    """The values of each array, in whatever order its axes are and whatever its name."""
    return sorted(np.sort(array, axis=None).astype(np.float32).tobytes() for array in arrays)


def aligned(source, target):
    """f64[target, source]: linear interpolation between points whose ends coincide."""
    points = np.linspace(0, source - 1, target)
    return np.stack([np.interp(points, np.arange(source), row) for row in np.eye(source)], 1)


@pytest.mark.golden
def test_recorded_encoder_weights_fill_the_encoder_alone(golden):
    """The table moves to the stage's grid; every other array of the encoder is the file's."""
    for path in golden("ddep/flax_hybrid*.json"):
        record, file = json.loads(path.read_text()), path.with_name(path.stem + "_params.npz")
        c, grid = record["config"], tuple(-(-side // 16) for side in record["image"])
        config = make_config(
            weights=str(file), resnet_width=c["width_factor"], resnet_units=tuple(c["num_blocks"]),
            hidden=c["hidden_size"], layers=c["num_layers"], heads=c["num_heads"], mlp=c["mlp_dim"],
        )  # fmt: skip
        config.weights_grid = grid
        task = ddep.make_task(config, "pretrain", (96, 32), 0)
        shapes = abstract(task)
        loaded = ddep_config.load_weights(config, shapes, task)
        assert set(loaded["params"]) == {"encoder"} and loaded["stats"] == {}
        expected = jax.tree.map(jnp.shape, shapes["params"]["encoder"])
        assert jax.tree.map(jnp.shape, loaded["params"]["encoder"]) == expected
        released, encoder = read_arrays(file), flat(loaded["params"]["encoder"])
        table = released.pop("Transformer/posembed_input/pos_embedding")
        positions = table[0, -math.prod(grid) :].reshape(*grid, -1)
        moved = np.einsum("yh,xw,hwd->yxd", aligned(grid[0], 6), aligned(grid[1], 2), positions)
        assert difference(encoder.pop("position_embedding")[0], moved.reshape(12, -1)) < 1e-6
        kept = [a for name, a in released.items() if not re.match("cls|pre_logits|head", name)]
        assert contents(encoder.values()) == contents(kept)


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_recorded_torch_weights_fill_everything_but_a_projection(golden, kind):
    for path in golden("ddep/transunet_ddep*.json"):
        task, _, start, _, record = recorded_case(path)
        task = SimpleNamespace(meta={**task.meta, "kind": kind})
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), start)
        file = path.with_name(path.stem + "_state.pt")
        loaded = ddep_config.load_weights(make_config(weights=str(file)), shapes, task)
        assert set(loaded["params"]) - {"head"} == {"encoder", "decoder"}
        assert ("head" in loaded["params"]) == (kind == "finetune")
        assert flat(loaded["stats"]).keys() == flat(start["stats"]).keys()
        unread = r".*num_batches_tracked" + ("|segmentation_head.*" if kind == "pretrain" else "")
        kept = {n: a for n, a in read_arrays(file).items() if not re.fullmatch(unread, n)}
        assert contents(flat(loaded).values()) == contents(kept.values())


def test_a_table_without_a_square_needs_the_grid_that_it_was_trained_with(tmp_path, capsys):
    task = task_of("finetune", crop=(48, 32))
    values = {name: np.asarray(leaf) for name, leaf in flat(filled(abstract(task))).items()}
    config = make_config(weights=str(tmp_path / "w.npz"))
    load = lambda: ddep_config.load_weights(config, abstract(task), task)["params"]["encoder"]
    np.savez(config.weights, **official_names(values))
    with pytest.raises(UserError, match=r"6 rows .* form no square grid.* = \(2, 3\)"):
        load()
    config.weights_grid = (3, 2)
    check_options(dict(weights_grid=(3, 2)), {"weights_grid": ddep_config.OPTIONS["weights_grid"]})
    table = "params.encoder.position_embedding"
    np.testing.assert_array_equal(load()["position_embedding"], values[table])
    assert "assumed" not in capsys.readouterr().out
    del config.weights_grid
    values[table] = np.zeros((1, 17, 32), np.float32)
    np.savez(config.weights, **official_names(values))
    assert load()["position_embedding"].shape == (1, 6, 32)
    assert "w.npz: assumed a position table of 4x4" in capsys.readouterr().out


def official_names(values):
    """A released file with the encoder among `values`, by plain string replacement."""
    prefix, arrays = "params.encoder.", {}
    for path, array in values.items():
        if path.startswith(prefix):
            name = re.sub(r"^layer(\d+)", r"Transformer/encoderblock_\1", path[len(prefix) :])
            name = re.sub(r"^norm\.", "Transformer/encoder_norm.", name)
            if name.startswith("Transformer"):
                name = name.replace("norm1", "LayerNorm_0").replace("norm2", "LayerNorm_2")
            for ours, theirs in (
                ("root.conv", "conv_root"), ("root.norm", "gn_root"),
                ("patch_embedding", "embedding"), (".norm", ".gn"),
                ("position_embedding", "Transformer/posembed_input/pos_embedding"),
                ("attention.", "MultiHeadDotProductAttention_1."),
                ("mlp.fc1", "MlpBlock_3.Dense_0"), ("mlp.fc2", "MlpBlock_3.Dense_1"),
            ):  # fmt: skip
                name = name.replace(ours, theirs)
            arrays[name.replace(".", "/")] = array
    return arrays


# --- where a stage starts -------------------------------------------------------------------------


@pytest.mark.parametrize(("pretrain", "weights", "pretraining", "finetuning"), [
    ("none", "", None, "random"), ("none", "w.npz", None, "random"),
    ("supervised", "w.npz", None, "weights"),
    ("dep", "", "random", "pretrain"), ("dep", "w.npz", "random", "pretrain"),
    ("ddep", "w.npz", "weights", "pretrain"), ("ddep", "", "random", "pretrain"),
])  # fmt: skip
def test_the_four_settings_start_as_published(pretrain, weights, pretraining, finetuning):
    config = make_config(pretrain, weights)
    assert ddep_config.skips(config, "pretrain") == (pretraining is None)
    assert not ddep_config.skips(config, "finetune")
    if pretraining:
        assert ddep_config.start_of(config, "pretrain", "random") == pretraining
    assert ddep_config.start_of(config, "finetune", "pretrain") == finetuning
    for start in ("random", "runs/other/finetune", "scratch"):
        assert ddep_config.start_of(config, "finetune", start) == start


def test_a_start_from_weights_is_random_without_weights():
    assert ddep_config.start_of(make_config("dep"), "finetune", "weights") == "random"
    assert ddep_config.start_of(make_config("dep", "w.npz"), "finetune", "weights") == "weights"


def test_a_random_frozen_encoder_is_mentioned():
    assert "--config.weights" in ddep_config.note(make_config("ddep"), "pretrain", "random")
    assert ddep_config.note(make_config("ddep", "w.npz"), "pretrain", "random") == ""
    assert ddep_config.note(make_config("dep"), "pretrain", "random") == ""
    assert "not read" in ddep_config.note(make_config("dep", "w.npz"), "pretrain", "random")
    assert ddep_config.note(make_config("none"), "finetune", "pretrain") == ""


def test_a_start_that_is_not_read_is_mentioned():
    for pretrain, start in (("dep", "weights"), ("dep", "runs/a"), ("ddep", "runs/a")):
        note = ddep_config.note(make_config(pretrain), "pretrain", start)
        assert f"start={start} is given but not read: with pretrain={pretrain}" in note
    assert "--config.weights" in ddep_config.note(make_config("none"), "finetune", "weights")
    assert ddep_config.note(make_config("supervised"), "finetune", "runs/a") == ""


def test_supervised_without_weights_is_said_to_be_none():
    supervised = make_config("supervised")
    assert "pretrain=none" in ddep_config.note(supervised, "finetune", "pretrain")
    assert ddep_config.note(supervised, "finetune", "random") == ""  # meant to be random
    assert ddep_config.note(make_config("supervised", "w.npz"), "finetune", "pretrain") == ""


# --- what can be wrong with a config --------------------------------------------------------------


def test_the_quick_start_holds_valid_options():
    config = make_config()
    ddep_config.check(config)
    values = config.to_dict()
    options = ddep_config.OPTIONS
    check_options({name: values[name] for name in values if name in options}, options)


@pytest.mark.parametrize(("config", "sentence"), [
    (dict(noise=dict(low=0.3, high=0.2)), r"noise\.low is 0\.3 and noise\.high 0\.2; give low <="),
    (dict(resnet_width=0.75), r"model\.resnet_width is 0\.75.*multiple of 32.*Try 0\.5 or 1\.0"),
    (dict(hidden=100, heads=3), r"hidden is 100, which 3 heads.*--config\.model\.hidden=102"),
], ids=["noise", "width", "heads"])  # fmt: skip
def test_values_without_a_possible_network_are_refused(config, sentence):
    with pytest.raises(UserError, match=sentence):
        ddep_config.check(make_config(**config))
