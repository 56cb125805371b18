"""Features of a diffusion network: recorded ones, the noise they are read through, and sizes."""

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ddpm
from diffseg_jax.config.files import run_config
from diffseg_jax.data.class_ids import id_table
from diffseg_jax.data.transforms import drop_small_objects, resize_antialiased, resize_mask
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError
from diffseg_jax.sources.colour import colour_features
from diffseg_jax.sources.diffusion import diffusion_features, make_network
from diffseg_jax.sources.feature_source import shown_size
from diffseg_jax.systems.ddpm_seg_config import given_arrays, make_task, read_noise
from diffseg_jax.systems.pixel_ensemble import ensemble_maps
from diffseg_jax.weights.adm import from_flags, load_adm
from diffseg_jax.weights.formats import read_arrays

LIMIT = 1e-4  # absolute and relative
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ROOT = Path(__file__).parents[2]
PROCESS = make_process("linear", 1000)
OPTIONS = dict(
    steps=(50, 250), blocks=(0, 1), short=0, share_noise=True, draws=1, dtype="float32"
)  # fmt: skip
STRIDE = 4


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def close(actual, expected, message=""):
    np.testing.assert_allclose(actual, expected, rtol=LIMIT, atol=LIMIT, err_msg=message)


# --- recorded -------------------------------------------------------------------------------------


@functools.cache
def recorded_network(path):
    """(network, values without noise, process) of a recorded network."""
    record = json.loads(path.read_text())
    names = from_flags.__kwdefaults__
    known = from_flags(**{name: record[name] for name in names if record.get(name) is not None})
    weights = {}
    for file in record["weight_files"]:
        weights |= read_arrays(path.with_name(file))
    unet = load_adm(weights, known.settings, known.order, path.name)
    network = make_network(known.settings, "float32", remat=False)
    options = known.diffusion
    process = make_process(
        options["schedule"], options["steps"], rescale_timesteps=options["rescale_timesteps"]
    )
    return network, {"params": {"unet": jax.tree.map(jnp.asarray, unet)}}, process


@functools.cache
def extractor(path, steps, blocks):
    """(noise f32[1,3,h,w] as PyTorch keeps it, images) -> dense features of a recorded network."""
    network, values, process = recorded_network(path)
    options = OPTIONS | dict(steps=steps, blocks=blocks)
    extract = quick(functools.partial(diffusion_features, network, process, options, 0))

    def run(noise, images):
        values["stats"] = {"noise": jnp.asarray(np.moveaxis(noise, 1, -1))}
        valid = jnp.asarray([images.shape[1:3]] * len(images))
        return extract(values, jnp.asarray(images), valid)

    return run


def recorded_features(golden):
    """(arrays, extractor) of every recorded image."""
    for path in golden("adm/features*.npz"):
        arrays = np.load(path)
        model = path.with_name(f"{arrays['model']}.json")
        if not model.exists():
            pytest.skip(f"{path.name} was recorded without its network {model.name}")
        blocks = tuple(map(int, arrays["blocks"]))
        yield arrays, functools.partial(extractor, model, blocks=blocks)


@pytest.mark.golden
def test_recorded_features(golden):
    for arrays, make in recorded_features(golden):
        steps = tuple(map(int, arrays["steps"]))
        found = make(steps)(arrays["noise"], arrays["image_uint8"][None])
        assert found.size == arrays["image_uint8"].shape[:2] and found.count == 1
        dense = np.moveaxis(found.dense()[0], -1, 0)
        close(dense, arrays["features"])
        noise = arrays["perstep_noise"]
        for index, part in enumerate(np.split(arrays["perstep_features_stride4"], len(steps))):
            one = make(steps)(noise[index : index + 1], arrays["image_uint8"][None])
            channels = np.moveaxis(one.dense()[0, ::4, ::4], -1, 0)
            close(np.split(channels, len(steps))[index], part, f"step {steps[index]}")


@pytest.mark.golden
def test_recorded_rows_to_train_on(golden):
    """Features gathered at labelled pixels, counted through images, rows, columns."""
    _, make = next(recorded_features(golden))
    steps = tuple(map(int, np.load(golden("adm/features*.npz")[0])["steps"]))
    for path in golden("adm/prepare_data*.npz"):
        recorded = np.load(path)
        cases = [key.removesuffix("__y") for key in recorded if re.match(r"ign\d+__y", key)]
        assert cases
        for case in cases:
            arrays = {
                key.removeprefix(f"{case}__"): recorded[key]
                for key in recorded if key.startswith(f"{case}__")
            }  # fmt: skip
            size, ignored = arrays["noise"].shape[-2:], int(case.removeprefix("ign"))
            images = [resize_antialiased(image, size) for image in arrays["images"]]
            table = id_table(int(arrays["number_class"]), ignore=(ignored,))
            masks = [resize_mask(table[labels], size) for labels in arrays["labels_in"]]
            masks = np.stack([drop_small_objects(mask, 20) for mask in masks])
            pixels = np.flatnonzero(masks.reshape(-1) != 255)
            np.testing.assert_array_equal(masks.reshape(-1)[pixels], arrays["y"])
            run = make(steps)
            parts = [run(arrays["noise"], image[None]) for image in images]
            found = jax.tree.map(lambda *maps: jnp.concatenate(maps), *parts)
            positions = jnp.unravel_index(jnp.asarray(pixels[arrays["rows"]]), masks.shape)
            close(found.gather(*positions), arrays["X_rows"], case)


# --- the noise ------------------------------------------------------------------------------------


def pad(x):
    """The input of a network with this stride."""
    height, width = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")


def mirror():
    """A network whose blocks return their inputs, and the list of its last blocks.

    Block 0: means of 2 x 2 pixels of the noisy image; block 1: the image and the time.
    """
    asked = []

    def model(x, t, until=None):
        asked.append(until)
        x = pad(x)
        times = jnp.broadcast_to(t[:, None, None, None].astype(x.dtype), (*x.shape[:3], 1))
        batch, height, width, _ = x.shape
        halves = x.reshape(batch, height // 2, 2, width // 2, 2, 3).mean((2, 4))
        return None, {"output_0": halves, "output_1": jnp.concatenate([x, times], -1)}

    model.settings = SimpleNamespace(stride=STRIDE)
    return SimpleNamespace(bind=lambda params, stats: model), asked


def random_images(count=3, size=(8, 12), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def fixed_noise(draws=1, size=(8, 12), seed=1):
    return np.random.default_rng(seed).standard_normal((draws, *size, 3)).astype(np.float32)


def features(images, given=None, seed=0, process=PROCESS, **changes):
    """Features of the mirror's block 1, unless `blocks` is given."""
    options = OPTIONS | {"blocks": (1,)} | changes
    return reader(process, seed, *sorted(options.items()))(
        {"params": {"unet": {}}, "stats": {} if given is None else {"noise": given}},
        images, np.array([images.shape[1:3]] * len(images)),
    )  # fmt: skip


@functools.cache
def reader(process, seed, *options):
    return quick(functools.partial(diffusion_features, mirror()[0], process, dict(options), seed))


def noise_in(images, found, steps=OPTIONS["steps"]):
    """The noise in the features of block 1: f32[S, N, H, W, 3]."""
    parts = np.split(np.asarray(found.dense(), np.float64), len(steps), axis=-1)
    clean = images / 127.5 - 1
    drawn = []
    for step, part in zip(steps, parts):
        np.testing.assert_array_equal(part[..., 3], step)
        kept = PROCESS.alphas_cumprod[step]
        drawn.append((part[..., :3] - np.sqrt(kept) * clean) / np.sqrt(1 - kept))
    return np.stack(drawn)


def test_one_draw_serves_all_images_and_steps():
    images, noise = random_images(), fixed_noise()
    drawn = noise_in(images, features(images, noise))
    assert drawn.shape == (2, 3, 8, 12, 3)
    np.testing.assert_allclose(drawn, np.broadcast_to(noise, drawn.shape), atol=1e-4)


@pytest.mark.parametrize("size", [(4, 8), (8, 24), (20, 4)])
def test_the_draw_is_cut_or_repeated_for_other_sizes(size):
    images, noise = random_images(1, size), fixed_noise()
    tiled = np.tile(noise[0], (3, 3, 1))[: size[0], : size[1]]
    drawn = noise_in(images, features(images, noise))
    np.testing.assert_allclose(drawn, np.broadcast_to(tiled, drawn.shape), atol=1e-4)


def test_noise_that_is_not_shared_belongs_to_the_image():
    """It also depends on the step and the seed, but not on the batch."""
    images = random_images()
    images[2] = images[0]
    draw = lambda images, **options: noise_in(
        images, features(images, share_noise=False, **options)
    )
    drawn = draw(images)
    np.testing.assert_array_equal(drawn[:, 2], drawn[:, 0])
    for index in range(3):
        alone = draw(images[index : index + 1])
        np.testing.assert_allclose(alone[:, 0], drawn[:, index], atol=1e-4)
    flat = drawn[:, :2].reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.3  # of two images at two steps
    assert np.all(np.abs(flat.mean(1)) < 0.2) and np.all(np.abs(flat.std(1) - 1) < 0.2)
    other = draw(images, seed=1)[:, :2].reshape(4, -1)
    assert np.abs(np.corrcoef(flat, other)[:4, 4:]).max() < 0.3
    touched = images[:1].copy()
    touched[0, 3, 4, 1] ^= 1  # a single level of a single colour
    near = np.corrcoef(draw(touched).reshape(2, -1), flat[[0, 2]])[:2, 2:]
    assert np.abs(near).max() < 0.3


def test_noise_per_step_is_that_of_its_step_for_all_images():
    images, noise = random_images(), fixed_noise(2)
    drawn = noise_in(images, features(images, noise, noise="per_step"))
    np.testing.assert_allclose(drawn, np.broadcast_to(noise[:, None], drawn.shape), atol=1e-4)
    shared = noise_in(images, features(images, noise, noise="shared"))
    np.testing.assert_allclose(shared, np.broadcast_to(noise[0], drawn.shape), atol=1e-4)


def test_fresh_noise_differs_between_copies_of_an_image():
    images = np.repeat(random_images(1), 3, 0)
    options = dict(OPTIONS, blocks=(1,), noise="fresh")
    values, valid = {"params": {"unet": {}}, "stats": {}}, np.array([[8, 12]] * 3)
    read = functools.partial(diffusion_features, mirror()[0], PROCESS, options, 0, values)
    found = noise_in(images, quick(read)(images, valid, other_seed=np.array([1, 2, 1], np.int32)))
    np.testing.assert_array_equal(found[:, 0], found[:, 2])
    assert abs(np.corrcoef(found[0, 0].ravel(), found[0, 1].ravel())[0, 1]) < 0.3
    own = noise_in(images, features(images, noise="per_image"))
    old = noise_in(images, features(images, share_noise=False))
    np.testing.assert_array_equal(own, old)


@pytest.mark.parametrize("shared", [True, False])
def test_draws_are_averaged(shared):
    """With shared noise the features are the mean of those that each draw gives alone."""
    images, noise = random_images(2), fixed_noise(draws=3)
    found = features(images, noise, share_noise=shared, draws=3, blocks=(0, 1))
    if shared:
        each = [features(images, noise[i : i + 1], blocks=(0, 1)).dense() for i in range(3)]
        np.testing.assert_allclose(found.dense(), np.mean(each, 0), atol=1e-5)
    drawn = noise_in(images, features(images, noise, share_noise=shared, draws=3))
    assert abs(drawn.std() - 3**-0.5) < 0.1
    first = noise_in(images, features(images, noise[:1], share_noise=shared))
    assert 0.4 < np.corrcoef(drawn.ravel(), first.ravel())[0, 1] < 0.75  # one of three


# --- channels, blocks and sizes -------------------------------------------------------------------


def test_channels_are_ordered_by_step_as_listed_then_by_block():
    images, noise = random_images(1), fixed_noise()
    found = features(images, noise, steps=(250, 50, 150), blocks=(1, 0))
    np.testing.assert_array_equal(
        found.dense(), features(images, noise, steps=(250, 50, 150), blocks=(0, 1)).dense()
    )
    assert found.width == 3 * (3 + 4)
    times = np.asarray(found.dense())[0, 0, 0, 6::7]
    np.testing.assert_array_equal(times, [250, 50, 150])
    alone = features(images, noise, steps=(50,), blocks=(0, 1)).dense()
    np.testing.assert_allclose(found.dense()[..., 7:14], alone, atol=1e-6)


@pytest.mark.parametrize(("blocks", "last"), [((0,), "output_0"), ((1, 0), "output_1")])
def test_nothing_is_computed_beyond_the_last_block(blocks, last):
    network, asked = mirror()
    options = OPTIONS | {"blocks": blocks}
    values = {"params": {"unet": {}}, "stats": {"noise": jnp.asarray(fixed_noise())}}
    read = functools.partial(diffusion_features, network, PROCESS, options, 0)
    jax.eval_shape(read, values, jnp.asarray(random_images(1)), jnp.array([[8, 12]]))
    assert set(asked) == {last}


def test_steps_are_named_as_the_network_knows_them():
    scaled = make_process("linear", 100, rescale_timesteps=True)
    found = features(random_images(1), fixed_noise(), process=scaled, steps=(5, 70))
    np.testing.assert_allclose(found.dense()[0, 0, 0, 3::4], [50, 700], rtol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (7, 12), (5, 6), (1, 3)])
def test_padding_is_not_part_of_the_features(size):
    """Pixels of the map of the image's own resolution are the pixels of the image."""
    images, noise = random_images(2, size), fixed_noise(size=size)
    found = features(images, noise, blocks=(0, 1))
    assert found.size == size
    drawn = noise_in(images, features(images, noise))
    np.testing.assert_allclose(drawn, np.broadcast_to(noise, drawn.shape), atol=1e-3)
    noisy = pad(found.dense()[..., 3:6])  # at the first step
    halves = found.maps[0]
    assert halves.shape[1:3] == tuple(side // 2 for side in noisy.shape[1:3])
    enlarged = jax.image.resize(halves[..., :3], noisy.shape, "bilinear")
    coarse = found.dense()[..., :3]
    np.testing.assert_allclose(coarse, enlarged[:, : size[0], : size[1]], rtol=1e-4, atol=1e-5)


def test_the_network_sees_images_at_another_size():
    """Their features are still those of the pixels of the images."""
    images = np.full((1, 24, 36, 3), [[[[255, 0, 51]]]], np.uint8)
    noise = np.zeros((1, 8, 12, 3), np.float32)
    found = features(images, noise, short=8)
    assert found.size == (24, 36) and found.maps[0].shape[1:3] == (8, 12)
    kept = np.sqrt(PROCESS.alphas_cumprod[50])
    expected = np.broadcast_to(kept * np.array([1, -1, -0.6]), (24, 36, 3))
    np.testing.assert_allclose(found.dense()[0, ..., :3], expected, atol=1e-5)
    ramp = np.broadcast_to(np.arange(36, dtype=np.uint8)[:, None] * 7, (1, 24, 36, 3))
    dense = features(np.ascontiguousarray(ramp), noise, short=8).dense()[0, 5, 3:-3, 0]
    np.testing.assert_allclose(dense, kept * (ramp[0, 5, 3:-3, 0] / 127.5 - 1), atol=0.02)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_are_stored_in_the_chosen_dtype(dtype):
    found = features(random_images(1), fixed_noise(), dtype=dtype)
    assert {str(m.dtype) for m in found.maps} == {dtype}


@pytest.mark.parametrize(("size", "short", "seen"), [
    ((360, 480), 0, (360, 480)), ((360, 480), 128, (128, 171)), ((480, 360), 128, (171, 128)),
    ((256, 256), 256, (256, 256)), ((64, 64), 256, (256, 256)), ((100, 1), 1, (100, 1)),
])  # fmt: skip
def test_the_size_shown_keeps_the_aspect_ratio(size, short, seen):
    assert shown_size(size, short) == seen


# --- noise from a file ----------------------------------------------------------------------------


def save(path, noise):
    np.save(path, noise)
    return str(path)


def test_noise_is_read_in_the_layout_of_pytorch_or_ours(tmp_path):
    noise = fixed_noise(draws=2, size=(8, 12))
    for kept in (noise, np.moveaxis(noise, -1, 1), noise.astype(np.float64)):
        read = read_noise(save(tmp_path / "noise.npy", kept), noise.shape)
        np.testing.assert_array_equal(read, noise)
        assert read.dtype == np.float32
    for kept in (noise[0], np.moveaxis(noise[0], -1, 0)):
        read = read_noise(save(tmp_path / "noise.npy", kept), (1, *noise.shape[1:]))
        np.testing.assert_array_equal(read, noise[:1])


@pytest.mark.parametrize("wrong", [
    np.zeros((1, 3, 8, 13), np.float32), np.zeros((2, 3, 8, 12), np.float32),
    np.zeros((1, 1, 8, 12), np.float32), np.zeros((8, 12), np.float32),
    np.zeros((1, 3, 8, 12), np.uint8), np.zeros((), np.float32),
], ids=lambda array: f"{array.dtype}{list(array.shape)}")  # fmt: skip
def test_noise_of_another_shape_or_dtype_is_refused(wrong, tmp_path):
    with pytest.raises(UserError, match=r"noise.npy holds .*\[.*with noise float32\[1, 8, 12, 3\]"):
        read_noise(save(tmp_path / "noise.npy", wrong), (1, 8, 12, 3))


@pytest.mark.parametrize("content", [None, b"", b"no array", "npz", "pickle", "folder"], ids=str)
def test_a_file_that_holds_no_array_is_refused(content, tmp_path):
    path = tmp_path / "noise.npy"
    if content == "npz":
        with open(path, "wb") as file:
            np.savez(file, noise=fixed_noise())
    elif content == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"noise.npy"):
        read_noise(str(path), (1, 8, 12, 3))


# --- a stage that fits ----------------------------------------------------------------------------


def make_config(**changes):
    """The tiny diffusion model, and an ensemble on its features."""
    config, other = tiny_ddpm.get_config(), run_config(str(ROOT / "configs/ddpm_seg_camvid.py"))
    config.model.update(channel_mult=(1,), attention_factors=())
    config.features, config.ensemble = other.features, other.ensemble
    config.features.update(dict(steps=(1, 5), blocks=(0, 1), short=0) | changes)
    config.ensemble.update(members=2, widths=(6, 4))
    return config


def task_of(crop=(8, 12), classes=3, **changes):
    return make_task(make_config(**changes), "fit", crop, classes)


def small_values(tree, seed=0):
    draw = np.random.default_rng(seed)
    make = lambda s: jnp.asarray(draw.uniform(0.05, 0.3, s.shape), jnp.float32)
    return jax.tree.map(make, tree)


@pytest.mark.parametrize("source", ["adm", "colour"])
def test_a_prediction_is_that_of_the_ensemble_for_every_image(source):
    task = task_of(sources=(source,), dtype="float32")
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    values = small_values(shapes)
    assert set(flat_names(shapes)) == (
        set() if source == "colour" else {"params.unet", "stats.noise"}
    )
    member = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((2, *s.shape), s.dtype), task.fit.member.abstract
    )
    ensemble = small_values(member, seed=1)
    whole = {part: values[part] | {"ensemble": ensemble[part]} for part in values}
    images, valid = random_images(2), jnp.asarray([[8, 12]] * 2)
    maps = quick(task.predict)(whole, images, valid)

    def expected(values, images, valid):
        return ensemble_maps(task.fit.member, ensemble, task.fit.extract(values, images, valid))

    for name, wanted in quick(expected)(values, images, valid).items():
        np.testing.assert_allclose(maps[name], wanted, atol=1e-4, err_msg=name)
    assert maps["votes"].shape == (2, 8, 12, 3)
    assert task.meta["features_per_pixel"] == (5 if source == "colour" else 2 * 2 * 32)


def flat_names(tree):
    return [f"{part}.{name}" for part in tree for name in tree[part]]


def test_the_noise_is_drawn_once_or_taken_from_the_file(tmp_path):
    one = quick(lambda key: task_of(draws=2).init(key)["stats"]["noise"])
    noise = one(jax.random.key(0))
    assert noise.shape == (2, 8, 12, 3) and abs(np.std(noise) - 1) < 0.15
    np.testing.assert_array_equal(one(jax.random.key(0)), noise)
    assert np.abs(np.corrcoef(np.ravel(noise[0]), np.ravel(noise[1]))[0, 1]) < 0.3
    kept = fixed_noise(draws=1, size=(8, 12))
    path = save(tmp_path / "noise.npy", np.moveaxis(kept, -1, 1))
    np.testing.assert_array_equal(given_noise(noise_file=path), kept)
    with pytest.raises(UserError, match=r"noise float32\[1, 4, 6, 3\]"):
        given_noise(noise_file=path, short=4)


def given_noise(**features):
    """The noise that a fit with these features takes from a file."""
    config = make_config(**features)
    abstract = jax.eval_shape(task_of(**features).init, jax.random.key(0))
    return given_arrays(config, "fit", abstract)["stats"]["noise"]


def test_colour_and_position_lie_between_minus_one_and_one():
    images = random_images(2, (5, 4))
    found = colour_features({}, jnp.asarray(images), jnp.asarray([[5, 4]] * 2)).dense()
    np.testing.assert_allclose(found[..., :3], images / 127.5 - 1, atol=1e-6)
    rows = np.broadcast_to(np.array([-0.8, -0.4, 0, 0.4, 0.8])[:, None], (2, 5, 4))
    columns = np.broadcast_to([-0.75, -0.25, 0.25, 0.75], (2, 5, 4))
    np.testing.assert_allclose(found[..., 3:], np.stack([rows, columns], -1), atol=1e-6)
    padded = np.pad(images, ((0, 0), (0, 3), (0, 1), (0, 0)))
    inside = colour_features({}, jnp.asarray(padded), jnp.asarray([[5, 4]] * 2)).dense()
    np.testing.assert_array_equal(inside[:, :5, :4], found)
    assert inside.max() <= 1
