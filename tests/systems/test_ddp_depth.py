"""DDP for depth: recorded samplings, training and inference of the original, and its rules."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

import diffseg_jax
from configs.tiny_ddp import get_config as labels_config
from configs.tiny_ddp_depth import get_config
from conftest import filled
from diffseg_jax.diffusion.samplers import ddim_between
from diffseg_jax.diffusion.schedules import time_pairs
from diffseg_jax.errors import UserError
from diffseg_jax.inference import views
from diffseg_jax.inference.converted import convert_ddp
from diffseg_jax.inference.converted_depth import convert_ddp_depth
from diffseg_jax.inference.depth_maps import DEPTHS
from diffseg_jax.inference.views import Protocol
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.models.bev_network import BEVSettings
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.depth_network import DepthSettings
from diffseg_jax.storage.networks import open_meta
from diffseg_jax.systems import ddp, ddp_config, dense_images
from diffseg_jax.systems.ddp_depth import (
    DEPTH,
    code_of_depth,
    code_of_measured,
    level_of_time,
    make_depth_network,
)
from diffseg_jax.training.depth_loss import ScaleInvariantLoss
from diffseg_jax.weights.ddp_depth import depth_settings_of, load_ddp_depth
from diffseg_jax.weights.formats import read_arrays

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FEATURES, DEPTHS_OF_STEPS, MAPS, LOSS, GRADIENTS = 2e-5, 2e-5, 1e-5, 1e-5, 1e-4  # of the peak
KEY = jax.random.key(0)


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


@functools.cache
def recorded(path):
    """(record, state dict, settings, network, values) of a whole network."""
    record = json.loads(path.read_text())
    c = record["config"]
    arrays = read_arrays(path.with_suffix(".pth"))
    told = depth_settings_of(arrays, path.name)
    settings = DepthSettings(
        backbone=told.backbone, channels=tuple(c["channels"]), depths=tuple(c["depths"]),
        heads=tuple(c.get("num_heads", ())), window=c.get("window", 0),
        low=c["min_depth"], high=c["max_depth"],
        width=c["E"], layers=c["layers"], decoder_heads=c["heads"], mlp=c["ffn"],
        groups=c["groups"], code_scale=c["bit_scale"], timed=c["layers_have_time_mlp"],
        bounded=c["scale_up"],
    )  # fmt: skip
    for name in ("channels", "depths", "heads", "window", "width", "layers", "mlp", "timed"):
        assert vars(told)[name] == vars(settings)[name], name
    network = make_depth_network(settings, "train", "float32", False)
    return record, arrays, settings, network, load_ddp_depth(arrays, settings, path.name)


def cases(golden):
    found = [(path, *recorded(path)) for path in golden("ddp/depth_ddp_*.json")]
    assert found
    return found


# --- recorded outputs -----------------------------------------------------------------------------


@pytest.mark.golden
def test_recorded_runs_of_depth(golden):
    """Features, every recorded step, and what comes of all steps, from recorded noise."""
    for path, record, _, settings, network, values in cases(golden):
        arrays = np.load(path.with_suffix(".npz"))
        merged = quick(functools.partial(features_of, network))(
            values, nhwc(arrays["img"])[: len(arrays["feature"])]
        )
        assert difference(merged, nhwc(arrays["feature"])) < FEATURES, path.name
        for run in record["sampling_runs"]:
            check_run(run, arrays, settings, network, values)


def features_of(network, values, image):
    return network.bind_eval(**values).encode(image)[0]


def check_run(run, arrays, settings, network, values):
    """The maps inside a run, step by step, and the same run by the sampler at once."""
    name, draws = run["name"], run["randsteps"]
    sampling = dict(
        steps=run["timesteps"], sampler="ddim", draws=draws, schedule="cosine", start=0.0,
        time_difference=run["time_difference"],
    )  # fmt: skip
    noise, features = nhwc(arrays["noise_init"])[:draws], nhwc(arrays["feature"])

    @quick
    def sampled(values):
        model = network.bind_eval(**values)
        return ddp.denoise_map(DEPTH, model, jnp.asarray(features), noise[None], sampling, None)

    @quick
    def step(values, noisy, t):
        model = network.bind_eval(**values)
        depth = ddp.decode(model, jnp.repeat(features, draws, 0), noisy, jnp.full(draws, t))
        return depth, code_of_depth(model, depth)

    found = sampled(values)
    low = nhwc(arrays[f"{name}/out_low"])[..., 0]
    clamped = np.clip(low, settings.low, settings.high)
    assert difference(found["depth"], clamped) < DEPTHS_OF_STEPS, name
    size = arrays["img"].shape[2:]
    enlarged = resize_bilinear(found["depth"][..., None], size)
    assert difference(enlarged, nhwc(arrays[f"{name}/out"])) < DEPTHS_OF_STEPS, name
    pairs = time_pairs(run["timesteps"], run["time_difference"], 0.0)
    alphas, sigmas = level_of_time("cosine", pairs, np)
    state = noise
    for number, (t, _) in enumerate(pairs):
        if f"{name}/step{number}_noisy" in arrays:
            expected = nhwc(arrays[f"{name}/step{number}_noisy"])
            assert difference(state, expected) < MAPS, (name, number)
        depth, clean = step(values, state, t)
        if f"{name}/step{number}_pred" in arrays:
            expected = nhwc(arrays[f"{name}/step{number}_pred"])
            assert difference(depth, expected) < DEPTHS_OF_STEPS, (name, number)
            shown = found["shown"][0, number]
            assert difference(shown, expected[0, ..., 0]) < DEPTHS_OF_STEPS, (name, number)
        levels = zip(alphas[number], sigmas[number], strict=True)
        state = np.asarray(ddim_between(state, clean, *levels))


@pytest.mark.golden
def test_recorded_flip_of_depth(golden, monkeypatch):
    """Both views are averaged in metres."""
    for path, record, _, _, network, values in cases(golden):
        found, expected = flipped(path, record, network, values, monkeypatch)
        assert difference(found.depth, expected) < DEPTHS_OF_STEPS, path.name


def flipped(path, record, network, values, monkeypatch):
    """The maps of both views with recorded noise, and the recorded average.

    The first run of a record is that of its flip, which has no steps of its own.
    """
    run = record["sampling_runs"][0]
    arrays = np.load(path.with_suffix(".npz"))
    image = nhwc(arrays["img"])[:1]
    noises = iter([nhwc(arrays[f"flip/noise{i}"])[None] for i in range(2)])
    sampling = dict(
        steps=run["timesteps"], sampler="ddim", draws=arrays["flip/noise0"].shape[0],
        schedule="cosine", start=0.0, time_difference=run["time_difference"],
    )  # fmt: skip

    @quick
    def maps(values, noise, image):
        model = network.bind_eval(**values)
        x, _ = model.encode(image)
        found = ddp.denoise_map(DEPTH, model, x, noise, sampling, None)
        del found["shown"]
        found |= DEPTH.describe(x, image, jnp.array([[1, 1]]))
        return DEPTH.maps(found, image, image, sampling)

    monkeypatch.setattr(views, "resize_image", lambda *_: image[0])
    forward = lambda image, valid: maps(values, next(noises), image)
    blank = np.zeros(image.shape, np.uint8)
    return views.predict(forward, blank, Protocol(flip=True), decision=DEPTHS), arrays["flip/depth"]


@pytest.mark.golden
def test_recorded_training_of_depth(golden, monkeypatch):
    """The noised map, the loss, the norms of all gradients and some of them whole."""
    for path, record, state, settings, network, values in cases(golden):
        arrays = np.load(path.with_suffix(".npz"))
        image, depth = nhwc(arrays["img"]), arrays["train/gt"][:, 0]
        model, size = network.bind_eval(**values), arrays["train/noise"].shape[2:]
        code = quick(lambda depth, model=model, size=size: code_of_measured(
            model, {"depth": depth}, size))(depth)  # fmt: skip
        assert difference(code, nhwc(arrays["train/gt_normalised"])) < MAPS
        returned = iter([nhwc(arrays["train/noise"]), arrays["train/times"]])
        monkeypatch.setattr(ddp, "draw_per_row", lambda *_, left=returned: jnp.array(next(left)))
        monkeypatch.setattr(dense_images, "scale_images", lambda *_, image=image: jnp.array(image))
        batch = dict(image=image, depth=depth, valid=None, row=np.arange(len(image)))
        loss = functools.partial(
            ddp.diffusion_loss, DEPTH, network, dict(schedule="cosine", high=0.999),
            loss=ScaleInvariantLoss(),
        )  # fmt: skip
        run = quick(jax.value_and_grad(loss, has_aux=True))
        (total, (weight, _, _)), gradients = run(values["params"], values["stats"], batch, KEY)
        expected = record["training"]["losses"]["decode.loss_depth"]
        np.testing.assert_allclose(total / weight, expected, rtol=LOSS)
        gradients = {k: np.asarray(v / weight) for k, v in flatten(gradients).items()}
        check_gradients(record, arrays, state, settings, gradients)


def check_gradients(record, arrays, state, settings, gradients):
    """Entries of a file are filled with its number, to find ours; other ones are recorded whole."""
    order = record["training"]["grad_norm_order"]
    fixed = {key: state[key] for key in state if "relative_position_index" in key}
    numbered = {key: np.full(value.shape, -1, np.float32) for key, value in state.items()}
    numbered |= {name: np.full_like(numbered[name], i) for i, name in enumerate(order)} | fixed
    places = flatten(load_ddp_depth(numbered, settings, "numbers")["params"])
    norms = {int(places[path].flat[0]): np.linalg.norm(g) for path, g in gradients.items()}
    recorded_norms = arrays["train/grad_norms"]
    largest = max(recorded_norms)
    for number, norm in enumerate(recorded_norms):
        np.testing.assert_allclose(
            norms[number], norm, rtol=1e-4, atol=1e-6 * largest, err_msg=order[number]
        )
    whole = [key for key in arrays if key.startswith("train/grad/")]
    assert whole
    theirs = {key: np.full(value.shape, 1e30, np.float32) for key, value in state.items()}
    theirs |= {key.removeprefix("train/grad/"): arrays[key] for key in whole} | fixed
    expected = flatten(load_ddp_depth(theirs, settings, "gradients")["params"])
    compared = [path for path in gradients if not (expected[path] == np.float32(1e30)).any()]
    assert len(compared) == len(whole)
    for path in compared:
        assert difference(gradients[path], expected[path]) < GRADIENTS, path


# --- rules ----------------------------------------------------------------------------------------


def tiny(**changes):
    """The tiny config with other options, given as part__name=value."""
    config = get_config()
    for path, value in changes.items():
        *parts, name = path.split("__")
        functools.reduce(getattr, parts, config)[name] = value
    return config


def made(config, kind="train", classes=0):
    task = ddp_config.make_task(config, kind, (32, 48), classes)
    return task, jax.eval_shape(task.init, KEY)


def test_the_released_form_ignores_the_time():
    _, abstract = made(tiny(depth__timed=False))
    values = filled(abstract)
    assert not [path for path in flatten(values["params"]) if "decoder" in path and "time" in path]
    model = make_depth_network(
        DEPTH.settings(tiny(depth__timed=False), 0), "train", "float32", False
    ).bind_eval(**values)
    x, noisy = jnp.ones((2, 8, 12, 16)), jnp.zeros((2, 8, 12, 1))
    outputs = quick(functools.partial(ddp.decode, model))(x, noisy, jnp.array([0.1, 0.9]))
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_networks_of_another_task_are_refused():
    depth, labels = made(tiny()), made(labels_config(), classes=5)
    for (task, abstract), (other, _), sentence in (
        (depth, labels, "DDP for segmentation, but this config is for depth"),
        (labels, depth, "DDP for depth, but this config is for segmentation"),
    ):
        with pytest.raises(UserError, match=sentence):
            ddp_config.adopt(abstract, task, {}, other.meta)


def test_depths_of_another_range_are_learned_from_a_checkpoint():
    """From a checkpoint as from a published file, which does not tell its range."""
    network = {"params": {}, "stats": {}}
    for changes in ({"depth__high": 10.0}, {"depth__low": 0.1}):
        (first, _), (second, _) = made(tiny()), made(tiny(**changes))
        assert ddp_config.adopt(network, second, network, first.meta) is network


@pytest.mark.parametrize(
    ("option", "value"), [("depth__high", 10.0), ("diffusion__code_scale", 0.2)]
)
def test_another_range_of_depths_is_refused(option, value):
    (first, _), (second, abstract) = made(tiny()), made(tiny(**{option: value}), "align")
    with pytest.raises(UserError, match=re.escape(f"{option.replace('__', '.')} is {value}")):
        ddp_config.adopt(abstract, second, {}, first.meta)


def test_every_task_says_how_its_networks_start():
    """The settings that must be the same are settings of the networks of the task."""
    kinds = {"segmentation": DDPSettings, "depth": DepthSettings, "bev": BEVSettings}
    assert ddp_config.STARTS.keys() == ddp_config.TASKS.keys() == kinds.keys()
    for task, start in ddp_config.STARTS.items():
        assert set(start.settings) <= {field.name for field in dataclasses.fields(kinds[task])}
    (_, abstract), place = made(tiny()), ddp_config.STARTS["depth"].backbone
    assert place[0] in abstract["params"] and len(place) == 1


def test_a_stage_without_noise_is_for_segmentation_only():
    config = tiny()
    config.stages.train.kind = "plain"
    with pytest.raises(UserError, match="which only segmentation has, but the task is depth"):
        ddp_config.check(config)


@pytest.mark.golden
def test_files_of_other_tasks_say_which_they_are(golden):
    config = tiny(weights="x.pth")
    task, abstract = made(config)
    for path in golden("ddp/ddp_seg_*.pth"):
        with pytest.raises(UserError, match="DDP for segmentation, not for depth"):
            config.weights = str(path)
            ddp_config.load_weights(config, abstract, task)


@pytest.mark.golden
def test_converted_files_open_as_networks_for_depth(golden, tmp_path):
    for path, _, _, settings, _, values in cases(golden):
        file, output = path.with_suffix(".pth"), tmp_path / path.stem
        convert_ddp_depth(
            file, output, groups=settings.groups, steps=2, high=settings.high
        )  # fmt: skip
        segmenter = diffseg_jax.load(output)
        model = segmenter.task.meta["model"]
        assert (model["timed"], model["high"]) == (settings.timed, settings.high)
        assert segmenter.protocol.flip and segmenter.task.meta["sampling"]["steps"] == 2
        assert "depth" in repr(segmenter) and segmenter.output.name == "depth"
        taken, given = flatten(segmenter.network["params"]), flatten(values["params"])
        assert all(np.array_equal(taken[name], given[name]) for name in given)
        with pytest.raises(UserError, match="--source=ddp_depth reads it"):
            convert_ddp(file, tmp_path / "labels")


@pytest.mark.golden
@pytest.mark.parametrize(("name", "metres"), [("ddp_NYU", 10.0), ("ddp_kitti", 80.0)])
def test_files_range_as_their_names_say(name, metres, golden, tmp_path):
    path, _, _, settings, _, _ = cases(golden)[0]
    file = tmp_path / f"{name}.pth"
    file.write_bytes(path.with_suffix(".pth").read_bytes())
    convert_ddp_depth(file, tmp_path / "converted", groups=settings.groups)
    assert open_meta(tmp_path / "converted")["task"]["model"]["high"] == metres
