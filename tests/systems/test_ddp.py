"""DDP: recorded samplings, losses and inference of the original, and what must hold for any."""

import dataclasses
import functools
import itertools
import json
import operator
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from configs.tiny_ddp import get_config
from conftest import filled
from diffseg_jax.diffusion.samplers import ddim_transition, ddpm_transition
from diffseg_jax.diffusion.schedules import LOG_SNRS, time_pairs
from diffseg_jax.errors import UserError
from diffseg_jax.inference import views
from diffseg_jax.inference.views import Protocol, View
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.systems import ddp, ddp_config, dense_images
from diffseg_jax.systems.ddp_segmentation import (
    SEGMENTATION,
    make_network,
    make_settings,
    pixel_loss,
)
from diffseg_jax.weights.ddp import load_ddp
from diffseg_jax.weights.formats import read_arrays

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FEATURES, LOGITS, FIRST, MIXED, MAPS = 2e-5, 2e-5, 5e-5, 1e-4, 1e-5  # of the peak
LOSSES, GRADIENTS, PROBS = 1e-5, 1e-4, 2e-5
KEY = jax.random.key(0)


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


@functools.cache
def recorded(path):
    """(record, state dict, settings, network, values) of a whole segmentor."""
    record = json.loads(path.read_text())
    c = record["config"]
    swin = c["backbone"] == "swin"
    settings = DDPSettings(
        backbone=c["backbone"], channels=tuple(c["channels"]), depths=tuple(c["depths"]),
        heads=tuple(c["num_heads"]) if swin else (), window=c["window"] if swin else 0,
        num_classes=c["K"], width=c["E"], layers=c["layers"], decoder_heads=c["heads"],
        mlp=c["ffn"], groups=c["groups"], auxiliary_dropout=0.0, code_scale=c["bit_scale"],
    )  # fmt: skip
    arrays = read_arrays(path.with_suffix(".pth"))
    network = make_network(settings, "train", "float32", False)
    return record, arrays, settings, network, load_ddp(arrays, settings, path.name)


def cases(golden, part="sampling"):
    """Networks with that part; of a cut one the arrays begin at the features of an image."""
    files = golden(f"ddp/ddp_seg_*_{part}.npz")
    paths = [file.with_name(file.name.replace(f"_{part}.npz", ".json")) for file in files]
    return [(path, *recorded(path)) for path in paths]


def arrays_of(path, part):
    return np.load(path.with_name(f"{path.stem}_{part}.npz"))


def sampling_of(run, schedule):
    return dict(
        steps=run["timesteps"], sampler=run["diffusion"], draws=run["randsteps"],
        time_difference=run["time_difference"], start=run["sample_range0"], schedule=schedule,
        accumulate=run["accumulation"],
    )  # fmt: skip


# --- recorded samplings ---------------------------------------------------------------------------


@pytest.mark.golden
def test_recorded_features_and_levels(golden):
    for path, _, _, _, network, values in cases(golden):
        arrays, levels = arrays_of(path, "sampling"), functools.partial(levels_of, network)
        tau = quick(levels)(values, arrays["time_in_log_snr"])
        assert difference(tau, arrays["time_embedding"]) < FEATURES
        if "img" in arrays:
            merged = quick(functools.partial(merged_of, network))(values, nhwc(arrays["img"]))
            assert difference(merged, nhwc(arrays["feature"])) < FEATURES


def levels_of(network, values, levels):
    return network.bind_eval(**values).time(levels)


def merged_of(network, values, image):
    return network.bind_eval(**values).encode(image)[1]["merged"]


@pytest.mark.golden
def test_recorded_runs(golden):
    for path, record, _, _, network, values in cases(golden):
        assert record["sampling_runs"]
        arrays = arrays_of(path, "sampling")
        for run in record["sampling_runs"]:
            check_run(run, record, arrays, network, values)


def check_run(run, record, arrays, network, values):
    """One recorded run, from recorded noise to labels."""
    name, key = run["name"], lambda part: f"{run['name']}/{part}"
    sampling = sampling_of(run, record["config"]["noise_schedule"])
    noise = nhwc(arrays["noise_init"])[: sampling["draws"]][None]

    @quick
    def denoise(values, features):
        fresh = lambda step: jnp.asarray(nhwc(arrays["noise_ddpm"]))[step][None, None]
        model = network.bind_eval(**values)
        return ddp.denoise_map(SEGMENTATION, model, features, noise, sampling, fresh)

    found = denoise(values, nhwc(arrays["feature"]))
    limit = MIXED if sampling["accumulate"] else FIRST if sampling["steps"] == 1 else LOGITS
    expected = nhwc(arrays[key("out_low")])
    assert difference(found["scores"], expected) < limit, name
    image = resize_bilinear(found["scores"], arrays[key("label")].shape[1:])
    assert np.array_equal(np.argmax(image, -1), arrays[key("label")]), name
    for step in range(sampling["steps"]):
        assert np.array_equal(found["shown"][0, step], arrays[key(f"step{step}_pred")][0]), name
    if key("change_count") in arrays:
        counts = np.mean(arrays[key("change_count")], 0)
        changes = found["changes"][0] * (sampling["steps"] - 1)
        np.testing.assert_allclose(changes, counts, atol=1e-5, err_msg=name)


@pytest.mark.golden
def test_recorded_steps_one_by_one(golden):
    """The maps and logits inside a run, in the space of codes that the original works in."""
    seen = 0
    for path, record, _, _, network, values in cases(golden):
        arrays = arrays_of(path, "sampling")
        predicted = quick(functools.partial(logits_and_codes, network))
        for run in record["sampling_runs"]:
            name, schedule = run["name"], record["config"]["noise_schedule"]
            pairs = time_pairs(run["timesteps"], run["time_difference"], run["sample_range0"])
            levels = LOG_SNRS[schedule](pairs, np)
            state = nhwc(arrays["noise_init"])[: run["randsteps"]]
            features = np.repeat(nhwc(arrays["feature"]), len(state), 0)
            for step, (now, then) in enumerate(levels):
                key = f"{name}/step{step}_"
                if step and f"{key}noisy_map" in arrays:
                    assert difference(state, nhwc(arrays[f"{key}noisy_map"])) < MAPS, key
                    seen += 1
                logits, codes = predicted(values, features, state, np.full(len(state), now))
                if f"{key}logits" in arrays:
                    limit = LOGITS if step else FIRST
                    assert difference(logits, nhwc(arrays[f"{key}logits"])) < limit, key
                clean = codes[np.argmax(logits, -1)]
                if run["diffusion"] == "ddim":
                    state = ddim_transition(state, clean, now, then)
                else:
                    z = nhwc(arrays["noise_ddpm"])[step] * (pairs[step, 1] > 0)
                    state = ddpm_transition(state, clean, now, then, z)
    assert seen


def logits_and_codes(network, values, features, noisy, level):
    model = network.bind_eval(**values)
    return ddp.decode(model, features, noisy, level), model.codes()


# --- recorded losses ------------------------------------------------------------------------------


LOSSES_AND_GRADIENTS = [
    ("train", "train", slice(None)), ("selfaligned", "train", slice(1)),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("selfaligned", "train", slice(1, None)), ("train", "eval", slice(None)),
        ("selfaligned", "eval", slice(None)),
    )),
]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("kind", "mode", "networks"), LOSSES_AND_GRADIENTS)
def test_recorded_losses_and_gradients(golden, monkeypatch, kind, mode, networks):
    """The mode is that of the auxiliary head's batch norm.

    Quick are both backbones in training; alignment, which differs behind them, has one of them.
    """
    for path, record, state, settings, network, values in cases(golden, "train")[networks]:
        arrays = arrays_of(path, "train")
        if mode == "eval":
            network = SimpleNamespace(bind=network.bind_eval)
        loss = ddp.diffusion_loss if kind == "train" else ddp.aligned_loss
        options = dict(schedule=record["config"]["noise_schedule"], high=0.999, auxiliary=0.4)
        image = nhwc(arrays["train/img"])
        draws = nhwc(arrays[f"{kind}/noise"]), arrays[f"{kind}/times"]
        return_in_turn(monkeypatch, ddp, "draw_per_row", *draws)
        return_in_turn(monkeypatch, dense_images, "scale_images", image)
        batch = dict(
            image=image, mask=arrays["train/gt"], valid=None, row=np.arange(len(image), dtype=int)
        )
        loss = functools.partial(loss, SEGMENTATION, network, options)
        run = quick(jax.value_and_grad(loss, has_aux=True))
        (total, (weight, stats, metrics)), gradients = run(
            values["params"], values["stats"], batch, KEY
        )
        expected = record["training"][f"{kind}/{mode}"]["losses"]
        np.testing.assert_allclose(total / weight, expected["total"], rtol=LOSSES)
        auxiliary = options["auxiliary"] * metrics["auxiliary_loss"] / weight
        np.testing.assert_allclose(auxiliary, expected["aux.loss_ce"], rtol=LOSSES)
        accuracy = 100 * metrics["pixel_accuracy"] / weight
        np.testing.assert_allclose(accuracy, expected["decode.acc_seg"], rtol=1e-5)
        gradients = divided(gradients, weight)
        order = record["training"]["train/train"]["grad_norm_order"]
        norms = arrays[f"{kind}/{mode}_grad_norms"]
        check_norms(dict(zip(order, norms, strict=True)), state, settings, gradients)
        if mode == "train":
            check_gradients(arrays, kind, state, settings, gradients)
        if (kind, mode) == ("train", "train"):
            for part in ("mean", "var"):
                after = arrays[f"train/bn_running_{part}_after"]
                assert difference(stats["auxiliary"]["norm"][part], after) < FEATURES


def return_in_turn(monkeypatch, module, name, *arrays):
    """Makes the function `name` of a module return the next of the arrays at each call."""
    left = iter(arrays)
    monkeypatch.setattr(module, name, lambda *_: jnp.asarray(next(left)))


def returning(value):
    return lambda *_: value


def divided(tree, weight):
    return jax.tree.map(lambda leaf: np.asarray(leaf / weight), tree)


MISSING = np.float32(1e30)  # instead of a gradient that was not recorded


def check_norms(recorded, state, settings, gradients):
    """The norm of every gradient. Each entry of a file is filled with its number to find ours."""
    names = list(recorded)
    numbered = {key: np.full(value.shape, -1, np.float32) for key, value in state.items()}
    numbered |= {name: np.full_like(numbered[name], i) for i, name in enumerate(names)}
    numbered |= {key: state[key] for key in state if "relative_position_index" in key}
    entries = flatten(load_ddp(numbered, settings, "numbers")["params"])
    norms = {names[int(entries[path].flat[0])]: np.linalg.norm(leaf.ravel())
             for path, leaf in flatten(gradients).items()}  # fmt: skip
    assert norms.keys() == recorded.keys()
    largest = max(recorded.values())
    for name, norm in recorded.items():  # some are zero in exact arithmetic
        np.testing.assert_allclose(norms[name], norm, rtol=1e-4, atol=1e-6 * largest, err_msg=name)


def check_gradients(arrays, kind, state, settings, gradients):
    """Ours, under their names, against the recorded ones."""
    prefix = f"{kind}/grad/"
    names = [key.removeprefix(prefix) for key in arrays if key.startswith(prefix)]
    assert names
    theirs = {key: np.full(value.shape, MISSING, np.float32) for key, value in state.items()}
    theirs |= {name: arrays[prefix + name] for name in names}
    index = [key for key in state if "relative_position_index" in key]
    theirs |= {key: state[key] for key in index}
    expected = flatten(load_ddp(theirs, settings, "gradients")["params"])
    compared = 0
    for path, gradient in flatten(gradients).items():
        if not (expected[path] == MISSING).any():
            assert difference(gradient, expected[path]) < GRADIENTS, path
            compared += 1
    assert compared == len(names)


# --- recorded inference ---------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("mode", ["whole", "flip", "slide"])
def test_recorded_inference(golden, monkeypatch, mode):
    """The maps of `views.predict`: enlarged logits, windows, views, the second soft-max."""
    for path, record, _, _, network, values in cases(golden, "inference"):
        arrays, recorded = arrays_of(path, "inference"), record["inference"]
        image = nhwc(arrays_of(path, "sampling")["img"])
        c = record["config"]
        sampling = dict(
            steps=recorded["timesteps"], sampler="ddim", draws=1, time_difference=1, start=0.0,
            schedule=c["noise_schedule"], accumulate=recorded["accumulation"],
        )  # fmt: skip
        noises = recorded_noises(arrays, mode)
        forward = forward_from(noises, network, values, sampling)
        monkeypatch.setattr(views, "resize_image", returning(image[0]))
        protocol = Protocol(flip=mode == "flip")
        if mode == "slide":
            protocol = Protocol(View.SLIDE, tuple(c["slide_crop"]), tuple(c["slide_stride"]))
        blank = np.zeros((1, *recorded["ori_shape"], 3), np.uint8)
        predicted = views.predict(forward, blank, protocol)
        assert next(noises, None) is None  # all were used
        if mode == "flip":
            assert np.array_equal(predicted.labels[0], arrays["flip/label"])
        else:
            probs = jax.nn.softmax(predicted.probs) if sampling["accumulate"] else predicted.probs
            assert difference(probs, nhwc(arrays[f"{mode}/prob"])) < PROBS


def recorded_noises(arrays, mode):
    """Iterates over the noise of every view in the order in which the original drew it."""
    count = sum(key.startswith(f"{mode}/noise") for key in arrays)
    return iter([nhwc(arrays[f"{mode}/noise{i}"]) for i in range(count)])


def forward_from(noises, network, values, sampling):
    """(images, valid) -> maps of the network, each call with the next noise."""

    @quick
    def maps(values, noise, image):
        def reverse(values, image, valid, seed):
            model = network.bind_eval(**values)
            x, _ = model.encode(image)
            found = ddp.denoise_map(SEGMENTATION, model, x, noise[:, None], sampling, None)
            return found | {"descriptor": image_descriptor([x], jnp.array([[1, 1]]), (1, 1))}

        return ddp.diffused_maps(SEGMENTATION, reverse, sampling, values, image, None, 0)

    return lambda image, valid: maps(values, next(noises), image)


# --- what must hold for any -----------------------------------------------------------------------


def tiny(**changes):
    """The tiny config with other options, given as part__name=value."""
    config = get_config()
    for path, value in changes.items():
        *parts, name = path.split("__")
        functools.reduce(getattr, parts, config)[name] = value
    return config


@functools.cache
def values_of(kind="train", **changes):
    task = ddp_config.make_task(tiny(**changes), kind, (32, 48), 5)
    values = filled(jax.eval_shape(task.init, KEY))  # a program that draws them takes seconds
    if "embedding" in values["params"]:
        codes = values["params"]["embedding"]
        codes["table"] = np.random.default_rng(0).standard_normal(codes["table"].shape, np.float32)
    return values


def random_images(count, height=32, width=48):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return images, np.tile(np.array([height, width], np.int32), (count, 1))


def test_a_batch_of_three_is_three_batches_of_one():
    task = ddp_config.make_task(tiny(sampling__draws=2), "train", (32, 48), 5)
    images, valid = random_images(3)
    predict = quick(task.predict)
    whole = predict(values_of(), images, valid)
    for i in range(3):
        alone = predict(values_of(), images[i : i + 1], valid[i : i + 1])
        for name, values in alone.items():
            np.testing.assert_allclose(whole[name][i : i + 1], values, atol=1e-5, err_msg=name)
    assert not np.allclose(whole["probs"][0], whole["probs"][1])


QUICK = {("embedding", "ddim"), ("bits", "ddpm"), ("one_hot", "ddim")}  # each code and sampler
PAIRS = [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(("embedding", "bits", "one_hot"), ddp.SAMPLERS)
]


@pytest.mark.parametrize(("code", "sampler"), PAIRS)
def test_every_code_and_sampler_predicts_in_range(code, sampler):
    changes = dict(diffusion__code=code, sampling__sampler=sampler, sampling__draws=3)
    task = ddp_config.make_task(tiny(**changes), "train", (32, 48), 5)
    maps = quick(task.predict)(values_of(diffusion__code=code), *random_images(1))
    np.testing.assert_allclose(np.sum(maps["probs"], -1), 1, atol=1e-5)
    for measure in ("changes", "spread"):
        assert maps[measure].shape == (1, 32, 48)
        assert np.all((maps[measure] >= 0) & (maps[measure] <= 1))
    assert np.any(maps["spread"] > 0)


def test_no_changes_without_a_second_step_and_no_spread_without_a_second_draw():
    task = ddp_config.make_task(tiny(sampling__steps=1), "train", (32, 48), 5)
    maps = jax.eval_shape(task.predict, values_of(), *random_images(1))
    assert set(maps) == {"probs", "logits", "descriptor"}


def test_trace_ends_with_the_prediction():
    config = tiny(sampling__accumulate=False)
    task = ddp_config.make_task(config, "train", (32, 48), 5)
    images, valid = random_images(2)
    maps, cells = quick(task.traced)(values_of(), images, valid)
    assert maps.keys() == jax.eval_shape(task.predict, values_of(), images, valid).keys()
    traced = task.trace(cells, images)
    assert traced.shape == (2, 3, 32, 48)
    network = make_network(make_settings(config, 5), "train", "float32", False)
    sampling = dict(config.sampling.to_dict(), schedule="cosine")
    reverse = functools.partial(ddp.reverse_process, SEGMENTATION, network, sampling)
    found = quick(reverse)(values_of(), images, valid, config.seed)
    np.testing.assert_array_equal(found["shown"][:, -1], np.argmax(found["scores"], -1))
    np.testing.assert_array_equal(traced[:, :, ::4, ::4], found["shown"])


def test_small_images_are_padded_and_cropped_back():
    task = ddp_config.make_task(tiny(), "train", (32, 48), 5)
    maps = quick(task.predict)(values_of(), *random_images(1, 5, 40))
    assert maps.pop("descriptor").shape[:3] == (1, 1, 1)
    assert all(values.shape[:3] == (1, 5, 40) for values in maps.values())
    assert task.trace(np.zeros((1, 3, 8, 10), np.int32), random_images(1, 5, 40)[0]).shape == (
        1, 3, 5, 40
    )  # fmt: skip


def batch_of(count=4):
    images, valid = random_images(count)
    mask = np.random.default_rng(1).integers(0, 5, (count, 32, 48))
    mask[0, :8] = 255
    return dict(image=images, mask=mask, valid=valid, row=np.arange(count))


@pytest.mark.parametrize("kind", ["train", "align"])
def test_a_loss_is_the_sum_of_its_parts(kind):
    """Every row has its own draws; only batch statistics couple rows, so their head is excluded."""
    config = tiny(model__drop_path=0.3, diffusion__auxiliary=0.0)
    task = ddp_config.make_task(config, kind, (32, 48), 5)
    values, batch = values_of(), batch_of()
    run = quick(lambda batch: task.loss(values["params"], values["stats"], batch, KEY)[0])
    halves = [jax.tree.map(operator.itemgetter(rows), batch) for rows in np.s_[:2, 2:]]
    np.testing.assert_allclose(run(batch), sum(map(run, halves)), rtol=1e-5)
    assert abs(run(batch) - run({**batch, "row": batch["row"] + 4})) > 1e-3


def test_the_map_decoder_alone_has_the_same_layers_and_no_noise():
    task = ddp_config.make_task(tiny(), "decoder", (32, 48), 5)
    values, noised = values_of("decoder"), values_of()["params"]
    layers = {path for path in flatten(noised) if path[0] != "embedding"}
    assert set(flatten(values["params"])) == layers | {("query",)}
    predict = quick(task.predict)
    first, other = (predict(values, *random_images(2), seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(first["logits"], other["logits"])
    summed = lambda params: task.loss(params, values["stats"], batch_of(2), KEY)[0]
    gradients = quick(jax.grad(summed))(values["params"])
    for part in ("query", "decoder", "head", "transform", "auxiliary", "backbone"):
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradients[part])), part


def test_ignored_pixels_count_in_the_weight_alone():
    logits = jax.random.normal(KEY, (1, 4, 4, 3))
    mask = np.zeros((1, 4, 4), int)
    mask[0, :2] = 255
    loss, weight, metrics = pixel_loss(logits, mask)
    alone, _, _ = pixel_loss(logits[:, 2:], mask[:, 2:])
    np.testing.assert_allclose(loss, alone, rtol=1e-6)
    assert weight == 16
    correct = np.mean(np.argmax(logits[:, 2:], -1) == 0)
    np.testing.assert_allclose(metrics["pixel_accuracy"] / weight, correct, rtol=1e-6)


def test_ignored_pixels_have_a_code_in_training_and_none_in_alignment():
    task = ddp_config.make_task(tiny(), "align", (32, 48), 5)
    values = values_of()
    batch = batch_of()
    gradient = quick(jax.grad(lambda table: task.loss(
        {**values["params"], "embedding": {"table": table}}, values["stats"], batch, KEY)[0]
    ))(values["params"]["embedding"]["table"])  # fmt: skip
    assert np.any(gradient[:5] != 0)
    assert np.all(gradient[5] == 0)  # ignored pixels have no part in a predicted map
    task = ddp_config.make_task(tiny(), "train", (32, 48), 5)
    slope = quick(jax.value_and_grad(lambda table, mask: task.loss(
        {**values["params"], "embedding": {"table": table}}, values["stats"],
        {**batch, "mask": mask}, KEY)[0]
    ))  # fmt: skip
    table = values["params"]["embedding"]["table"]
    _, gradient = slope(table, batch["mask"])
    assert np.any(gradient[5] != 0)
    loss, gradient = slope(table, np.full_like(batch["mask"], 255))
    assert loss == 0 and np.all(gradient == 0)  # nothing is labelled, so nothing is learned
    strokes = np.full_like(batch["mask"], 255)
    strokes[:, 10:14, 4:20] = 2
    loss, gradient = slope(table, strokes)
    assert loss > 0 and np.any(gradient[2] != 0) and np.any(gradient[5] != 0)
    others = np.array([0, 1, 3, 4])
    assert np.all(gradient[others] == 0)  # the map holds what is painted, and ignored pixels


# --- where stages start ---------------------------------------------------------------------------


def adopted(before, after, classes=(5, 5), kinds=("train", "align")):
    """What a task of one config takes from another's network."""
    first = ddp_config.make_task(before, kinds[0], (32, 48), classes[0])
    second = ddp_config.make_task(after, kinds[1], (32, 48), classes[1])
    network = jax.eval_shape(first.init, KEY)
    return ddp_config.adopt(jax.eval_shape(second.init, KEY), second, network, first.meta)


def test_align_takes_all_of_train():
    taken = adopted(tiny(), tiny())
    assert set(taken["params"]) >= {"head", "embedding", "decoder", "backbone"}


def test_another_number_of_classes_asks_for_a_new_head():
    with pytest.raises(UserError, match="have 3 classes.*has 5.*--config.new_head=True"):
        adopted(tiny(), tiny(), (5, 3), ("train", "train"))
    taken = adopted(tiny(), tiny(new_head=True), (5, 3), ("train", "train"))
    paths = [".".join(path) for path in flatten(taken["params"])]
    assert any(path.startswith("decoder") for path in paths)
    assert not any(path.startswith(("head", "embedding", "auxiliary.head")) for path in paths)


def test_a_checkpoint_of_another_system_is_refused():
    task = ddp_config.make_task(tiny(), "train", (32, 48), 5)
    with pytest.raises(UserError, match="is of another system"):
        foreign = {"kind": "pretrain", "grid": [2, 3]}
        ddp_config.adopt(jax.eval_shape(task.init, KEY), task, {}, foreign)


def contents(arrays):
    """The values of each array, in whatever order its axes are and whatever its name."""
    return sorted(np.sort(array, axis=None).astype(np.float32).tobytes() for array in arrays)


@pytest.mark.golden
def test_an_official_checkpoint_is_taken_whole_or_without_its_head(golden):
    for path, _, state, settings, _, _ in cases(golden):
        file = str(path.with_suffix(".pth"))
        model = {name: getattr(settings, name) for name in tiny().model}
        parts = {f"model__{name}": value for name, value in model.items()}
        parts |= dict(weights=file, diffusion__code_scale=settings.code_scale)
        config, classes = tiny(**parts), settings.num_classes
        task = ddp_config.make_task(config, "train", (32, 48), classes)
        loaded = ddp_config.load_weights(config, jax.eval_shape(task.init, KEY), task)
        unread = r".*(num_batches_tracked|relative_position_index)"
        read = {name: a for name, a in state.items() if not re.fullmatch(unread, name)}
        assert contents(flatten(loaded).values()) == contents(read.values())
        config = tiny(**parts, new_head=True)
        task = ddp_config.make_task(config, "train", (32, 48), classes + 2)
        kept = flatten(ddp_config.load_weights(config, jax.eval_shape(task.init, KEY), task))
        of_classes = r"(.*\.conv_seg|embedding_table)\..*"
        read = [array for name, array in read.items() if not re.fullmatch(of_classes, name)]
        assert contents(kept.values()) == contents(read)
        config = tiny(**parts, diffusion__code="bits")
        task = ddp_config.make_task(config, "train", (32, 48), classes)
        with pytest.raises(UserError, match="diffusion.code is bits, .* with embedding"):
            ddp_config.load_weights(config, jax.eval_shape(task.init, KEY), task)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("diffusion__code", "bits"),
        ("diffusion__code_scale", 0.1),
        ("diffusion__schedule", "linear"),
    ],
)
def test_another_code_is_refused(option, value):
    with pytest.raises(UserError, match=f"{option.replace('__', '.')} is {value}.*Try"):
        adopted(tiny(), tiny(**{option: value}))


def test_another_network_is_refused():
    with pytest.raises(UserError, match="another network"):
        adopted(tiny(), tiny(model__mlp=48))
    with pytest.raises(UserError, match="another network"):
        adopted(tiny(), tiny(), kinds=("plain", "train"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(new_head=True, run=("train",)), "no stage starts from a checkpoint whose head"),
        (dict(model__heads=(1, 1, 1, 1)), "which only a Swin has"),
        (dict(run=("align",), stages__align__start="random"), "continues from a trained network"),
        (dict(model__groups=5), "width is 16, which 5 groups cannot share"),
        (dict(model__decoder_heads=3), "width is 16, which 3 decoder_heads cannot share"),
        (dict(model__backbone="swin"), "heads is .*, but a Swin has 4 stages"),
    ],
)
def test_values_without_a_possible_network_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        ddp_config.check(tiny(**changes))


def test_a_crop_below_the_stride_is_refused():
    config = tiny()
    config.stages.train.augment.crop = (16, 48)
    with pytest.raises(UserError, match=r"crop is \(16, 48\), but both sides must be 32 or more"):
        ddp_config.check(config)


def test_settings_survive_the_checkpoint():
    settings = make_settings(tiny(), 5)
    meta = json.loads(json.dumps({"model": dataclasses.asdict(settings)}))
    assert SEGMENTATION.settings_of(meta) == settings
