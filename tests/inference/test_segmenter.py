"""A trained network opened for use predicts as the evaluation does, for images of any kind."""

import copy
import dataclasses
import functools
import json
import shutil
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffseg_jax
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.errors import UserError
from diffseg_jax.inference.converted import convert_run
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.images import find_images, named_images
from diffseg_jax.inference.locate import PRETRAINED, find_stage
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.views import Protocol, predict
from diffseg_jax.storage.checkpoints import FORMAT, StageCheckpoints

SYSTEMS = ("ddp", "ddep", "ddpm_seg")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (33, 47, 3), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Programs that compile in half the time."""
    options = {"xla_backend_optimization_level": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield


@pytest.fixture(scope="module")
def opened(tiny_network):
    """opened(system, **changes) -> a Segmenter with random parameters, made once."""
    made = {}

    def make(system, **changes):
        key = system, tuple(changes.items())
        if key not in made:
            made[key] = Segmenter(Path("runs/a/checkpoints/x"), *tiny_network(system, **changes))
        return made[key]

    return make


def evaluated(segmenter, image, protocol=None):
    """The prediction of the evaluation, without a method of a segmenter."""
    forward = make_forward(jax.jit(segmenter.task.predict), segmenter.network, segmenter.mesh, 2)
    return predict(forward, image[None], protocol or segmenter.protocol)


# --- predictions of the evaluation ----------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_predictions_are_those_of_the_evaluation(opened, system):
    segmenter, image = opened(system), RNG.integers(0, 256, (47, 33, 3), np.uint8)
    found, wanted = segmenter.predict(image), evaluated(segmenter, image)
    assert found.labels.dtype == np.int32
    assert found.probs.dtype == found.uncertainty.dtype == np.float32
    np.testing.assert_allclose(found.probs, wanted.probs, atol=1e-5)
    np.testing.assert_allclose(found.uncertainty, wanted.uncertainty, atol=1e-5)
    best = np.sort(wanted.probs, -1)
    clear = (best[..., -1] - best[..., -2] > 1e-4) | (system == "ddpm_seg")
    np.testing.assert_array_equal(found.labels[clear], wanted.labels[clear])
    assert found.signals.keys() == wanted.signals.keys()


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_image_may_be_one_pixel(opened, system):
    found = opened(system).predict(IMAGE[:1, :1])
    assert found.labels.shape == found.uncertainty.shape == (1, 1, 1)
    np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-6)


def test_sizes_share_a_program_if_padding_changes_nothing(opened):
    segmenter = opened("ddep")
    for size in ((33, 47), (40, 40), (48, 48)):
        image = RNG.integers(0, 256, (*size, 3), np.uint8)
        found, wanted = segmenter.predict(image), evaluated(segmenter, image)
        np.testing.assert_allclose(found.probs, wanted.probs, atol=1e-5)
    program, _ = segmenter.compiled()
    before = program._cache_size()
    segmenter.predict(RNG.integers(0, 256, (35, 45, 3), np.uint8))
    assert program._cache_size() == before


def test_warm_calls_do_not_compile_again(opened):
    segmenter = opened("ddp")
    segmenter.predict(IMAGE, steps=1, seed=1)
    program, _ = segmenter.compiled(1)
    before = program._cache_size()
    segmenter.predict(255 - IMAGE, steps=1, seed=2)
    assert program._cache_size() == before == 1


def test_the_network_sees_nothing_but_tiles(opened):
    segmenter, image = opened("ddp"), RNG.integers(0, 256, (70, 90, 3), np.uint8)
    seen, inside = set(), segmenter.task.predict

    def spy(network, images, valid, seed):
        seen.add(images.shape)
        return inside(network, images, valid, seed=seed)

    watched = Segmenter(segmenter.directory, segmenter.network, segmenter.meta)
    watched.task = dataclasses.replace(watched.task, predict=spy)
    found = watched.predict(image, tile=(32, 40), stride=(24, 30))
    assert seen == {(1, 32, 40, 3)}
    protocol = segmenter.protocol_for(PredictOptions(tile=(32, 40), stride=(24, 30)))
    wanted = evaluated(segmenter, image, protocol)
    np.testing.assert_allclose(found.probs, wanted.probs, atol=1e-5)


def test_large_images_are_tiled_unless_their_size_is_bounded(opened, monkeypatch):
    segmenter, image = opened("ddp"), RNG.integers(0, 256, (70, 90, 3), np.uint8)
    (height, width), none = segmenter.crop, PredictOptions()
    monkeypatch.setattr("diffseg_jax.inference.segmenter.DEFAULT_SIDE", 32)
    tiled = (max(32, height), max(32, width))
    wanted = segmenter.predict(image, tile=tiled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 70 x 90 is not large
        assert segmenter.protocol_of_size(none, image.shape[:2]) == segmenter.protocol
    monkeypatch.setattr("diffseg_jax.inference.segmenter.MIN_LARGE", 1)
    monkeypatch.setattr("diffseg_jax.inference.segmenter.LARGE", 1)
    with pytest.warns(UserWarning, match="70 x 90 are predicted by tiles.* tile=0 shows them"):
        found = segmenter.predict(image)
    np.testing.assert_array_equal(found.probs, wanted.probs)
    for options in (PredictOptions(tile=0), PredictOptions(tile=64)):
        whole = segmenter.protocol_of_size(options, (4000, 4000))
        assert whole == segmenter.protocol_for(options)
    monkeypatch.setattr(segmenter, "protocol", Protocol(short=16))
    assert segmenter.protocol_of_size(none, (4000, 4000)) == Protocol(short=16)
    monkeypatch.undo()
    resizing = copy.copy(segmenter)
    resizing.task = dataclasses.replace(segmenter.task, short=40)
    with pytest.warns(UserWarning, match="since the network resizes images to 40"):
        assert resizing.protocol_of_size(none, (4000, 4000), warnings.warn).short == 160
    said = []
    monkeypatch.setattr(Segmenter, "trained_size", None)
    assert segmenter.protocol_of_size(none, (4000, 4000), said.append).window == (512, 512)
    assert "since the size on which the network was trained is not known; tile=0" in said[0]


def test_tiles_agree_with_the_whole_image_away_from_their_edges(opened):
    """A network that sees `reach` pixels far differs only so near to the edge of a tile."""
    segmenter, image, reach = opened("ddp"), RNG.integers(0, 256, (96, 128, 3), np.uint8), 3
    kernel = jnp.ones((2 * reach + 1,) * 2)[..., None, None] / 50

    def local(network, images, valid, seed):
        grey = jnp.mean(images.astype(jnp.float32), -1, keepdims=True) / 255
        near = jax.lax.conv_general_dilated(
            grey, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.softmax(jnp.concatenate([near, 1 - near, 0 * near, near**2, 1 - near], -1))

    local_one = Segmenter(segmenter.directory, segmenter.network, segmenter.meta)
    local_one.task = dataclasses.replace(local_one.task, predict=local)
    whole = local_one.predict(image, tile=0).probs[0]
    tiled = local_one.predict(image, tile=64, stride=32).probs[0]
    exact = np.ones(image.shape[:2], bool)
    for edge in (32, 64):  # of tiles, inside the image
        exact[edge - reach : edge + reach] = False
    for edge in (32, 64, 96):
        exact[:, edge - reach : edge + reach] = False
    assert exact.mean() > 0.7
    np.testing.assert_allclose(tiled[exact], whole[exact], atol=1e-6)
    assert np.abs(tiled - whole)[~exact].max() > 1e-3


def test_tiles_may_be_given_as_any_pair(opened):
    segmenter = opened("ddep")
    for pair in ((64, 96), [64, 96], np.array([64, 96])):
        assert segmenter.protocol_for(PredictOptions(tile=pair)).window == (64, 96)
    for zero in (0, (0, 0), [0, 0], np.zeros(2, int)):
        assert segmenter.protocol_for(PredictOptions(tile=zero)) == segmenter.protocol


def test_rounding_leads_to_few_sizes(opened):
    protocol = opened("ddp").protocol_for(PredictOptions(round_to=32))
    assert {protocol.sizes((h, w))[0] for h in range(40, 80, 7) for w in range(33, 47)} == {
        (32, 32), (64, 32),
    }  # fmt: skip
    assert opened("ddp").protocol_for(PredictOptions()).sizes((33, 47)) == [(33, 47)]


# --- options --------------------------------------------------------------------------------------


def test_steps_samples_and_seeds_are_those_of_the_config(opened, tiny_network):
    segmenter = opened("ddp")
    network, meta = tiny_network("ddp")
    config = json.loads(json.dumps(meta["config"]))
    config["sampling"] |= {"steps": 2, "draws": 3}
    config["seed"] = 5
    other = Segmenter(segmenter.directory, network, {**meta, "config": config})
    found = segmenter.predict(IMAGE, steps=2, samples=3, seed=5)
    np.testing.assert_array_equal(found.probs, other.predict(IMAGE).probs)
    assert set(found.signals) == {"least_confidence", "entropy", "changes", "spread"}
    assert (found.probs != segmenter.predict(IMAGE, steps=2, samples=3, seed=6).probs).any()


def test_a_network_without_noise_takes_one_sample(opened):
    segmenter = opened("ddep")
    alone = segmenter.predict(IMAGE, samples=1, seed=3)
    np.testing.assert_array_equal(alone.probs, segmenter.predict(IMAGE).probs)


def test_flip_and_scales_are_averaged(opened):
    segmenter = opened("ddep")
    both = segmenter.predict(IMAGE, flip=True).probs[0]
    mirrored = segmenter.predict(IMAGE[:, ::-1]).probs[0, :, ::-1]
    np.testing.assert_allclose(both, (segmenter.predict(IMAGE).probs[0] + mirrored) / 2, atol=1e-6)
    assert segmenter.protocol_for(PredictOptions(scales=2.0)).sizes((10, 20)) == [(20, 40)]


def test_bfloat16_is_close_to_float32(opened, tiny_network):
    exact = opened("ddp").predict(IMAGE, steps=1)
    rounded = Segmenter(Path("x"), *tiny_network("ddp"), dtype="bfloat16").predict(IMAGE, steps=1)
    gap = np.abs(exact.probs - rounded.probs)
    assert gap.max() > 0 and gap.mean() < 0.02


WRONG = {
    "steps=0": ("ddp", dict(steps=0), "steps is 0, but must be a whole number from 1 to 1000"),
    "steps of ddep": ("ddep", dict(steps=3), "have no reverse steps. Leave steps out"),
    "samples of ddpm_seg": ("ddpm_seg", dict(samples=2), "no reverse steps. Leave samples out"),
    "small tile": ("ddp", dict(tile=8), "32 pixels or more. Try tile=512"),
    "large stride": ("ddp", dict(tile=32, stride=40), "smaller than the stride (40, 40)"),
    "no tile": ("ddp", dict(stride=40), "no tile is given. Add a tile, such as tile=512"),
    "no tile of that size": ("ddp", dict(stride=600), "Add a tile, such as tile=600"),
    "three sides": ("ddp", dict(tile=(64, 64, 64)), "tile is (64, 64, 64)"),
    "no scales": ("ddp", dict(scales=()), "must hold factors"),
    "seed": ("ddp", dict(seed=-1), "seed is -1"),
    "half": ("ddp", dict(batch_size=1.5), "batch_size is 1.5"),
    "text": ("ddp", dict(steps="many"), "steps is many, but must be a whole number"),
    "text as tile": ("ddp", dict(tile="abc"), "tile is abc, but must be a side"),
    "text as scales": ("ddp", dict(scales=["a"]), "must hold factors"),
    "infinite seed": ("ddep", dict(seed=float("inf")), "seed is inf"),
    "scales of short": ("ddpm_seg", dict(scales=2.0), "Leave scales out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_sentences(opened, case):
    system, options, sentence = WRONG[case]
    with pytest.raises(UserError) as error:
        opened(system).predict(IMAGE, **options)
    assert sentence in str(error.value)


# --- images ---------------------------------------------------------------------------------------


def test_images_of_all_kinds_give_the_same_prediction(opened, tmp_path):
    segmenter = opened("ddep")
    (tmp_path / "in").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "in" / "street.png")
    wanted = segmenter.predict(IMAGE)
    kinds = [
        IMAGE[None], jnp.asarray(IMAGE), Image.fromarray(IMAGE), [IMAGE],
        tmp_path / "in" / "street.png", str(tmp_path / "in"), [str(tmp_path / "in")],
    ]  # fmt: skip
    for images in kinds:
        found = segmenter.predict(images)
        np.testing.assert_array_equal(found.probs, wanted.probs)
        np.testing.assert_array_equal(found.images[0], IMAGE)
    assert segmenter.predict(str(tmp_path / "in")).names == ("street",)


def test_images_of_mixed_sizes_keep_their_order(opened):
    segmenter = opened("ddep")
    images = [IMAGE, IMAGE[:, ::-1], IMAGE[:20, :30], IMAGE]
    found = segmenter.predict(images, batch_size=2)
    assert [labels.shape for labels in found.labels] == [image.shape[:2] for image in images]
    assert found.names == ("000000", "000001", "000002", "000003")
    for one, image in zip(segmenter.predict_each(images), images, strict=True):
        np.testing.assert_allclose(one.probs, segmenter.predict(image).probs, atol=1e-6)
    np.testing.assert_allclose(found.probs[1], segmenter.predict(images[1]).probs[0], atol=1e-6)
    assert found[1:3].names == ("000001", "000002") and len(found[2]) == 1
    with pytest.raises(UserError, match='unknown option of a prediction "step".*mean "steps"'):
        segmenter.predict_each(images, step=3)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    Image.fromarray(IMAGE).save(tmp_path / "a.png", exif=exif)
    ((_, image),) = named_images(tmp_path / "a.png")
    np.testing.assert_array_equal(image, np.rot90(IMAGE, -1))
    with Image.open(tmp_path / "a.png") as opened_file:
        np.testing.assert_array_equal(next(named_images(opened_file))[1], image)


def test_names_of_files_differ(tmp_path):
    for file in ("a.png", "a.jpg", "b/a.png", "c.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGE).save(tmp_path / file)
    names = [name for name, _ in find_images(tmp_path)[0]]
    assert names == ["a_jpg", "a_png", "b/a", "c"]
    Image.fromarray(IMAGE).save(tmp_path / "a_jpg.png")
    names = [name for name, _ in find_images(tmp_path)[0]]
    assert sorted(names) == ["a_jpg", "a_jpg_2", "a_png", "b/a", "c"]
    again = [tmp_path / "c.png", tmp_path / "b", tmp_path / "c.png", IMAGE]
    assert [name for name, _ in named_images(again)] == ["c", "a", "c_2", "000003"]


NO_IMAGES = {
    "float": (IMAGE / 255, "float64[33, 47, 3]"),
    "grey": (IMAGE[..., 0], "np.repeat(image[..., None], 3, -1)"),
    "alpha": (np.zeros((4, 4, 4), np.uint8), "image[..., :3]"),
    "none": ([], "no image was given"),
    "number": (3, "images is a int"),
    "nothing": (np.zeros((0, 4, 3), np.uint8), "uint8[0, 4, 3]"),
    "no file": ("/no/such/image.png", "there is no image or folder /no/such/image.png"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_wrong_images_are_a_sentence(opened, case):
    images, sentence = NO_IMAGES[case]
    with pytest.raises(UserError) as error:
        opened("ddep").predict(images)
    assert sentence in str(error.value)


def test_an_empty_folder_is_a_sentence(opened, tmp_path):
    with pytest.raises(UserError, match="holds no file that ends with"):
        opened("ddep").predict(tmp_path)


# --- features -------------------------------------------------------------------------------------


def test_features_of_a_diffusion_model_are_those_of_the_classifiers(opened):
    segmenter = opened("ddpm_seg")
    assert segmenter.taps == ("output_0@1", "output_0@5", "output_2@1", "output_2@5")
    found = segmenter.features(IMAGE, segmenter.taps)
    valid = np.array([IMAGE.shape[:2]], np.int32)
    read = jax.jit(segmenter.task.fit.extract)(segmenter.network, IMAGE[None], valid)
    stacked = np.concatenate([np.asarray(maps).reshape(-1) for maps in read.maps])
    for name in segmenter.taps:
        assert found[name].dtype == np.float32 and found[name].ndim == 4
    listed = np.concatenate([found[name].reshape(-1) for name in segmenter.taps])
    np.testing.assert_allclose(np.sort(listed), np.sort(stacked), rtol=1e-3, atol=1e-3)  # float16
    noisier = segmenter.features(IMAGE, "output_0@19")["output_0@19"]
    assert np.abs(noisier - found["output_0@1"]).mean() > 1e-3


@pytest.mark.parametrize(
    ("system", "tap", "shape"),
    [("ddp", "merged", (2, 8, 11, 16)), ("ddep", "layer0", (2, 3, 3, 32))],
)
def test_features_are_maps(opened, system, tap, shape):
    segmenter = opened(system)
    assert tap in segmenter.taps
    found = segmenter.features([IMAGE, IMAGE], tap)
    assert found[tap].shape == shape and found[tap].std() > 0
    np.testing.assert_array_equal(found[tap][0], found[tap][1])


def test_unknown_features_are_sentences(opened):
    with pytest.raises(UserError, match='unknown feature "mergd".*Did you mean "merged"'):
        opened("ddp").features(IMAGE, "mergd")
    with pytest.raises(UserError, match="names no noise level after an @: 0 .least. to 19"):
        opened("ddpm_seg").features(IMAGE, "output_0@20")
    with pytest.raises(UserError, match="2 sizes"):
        opened("ddep").features([IMAGE, IMAGE[:20]], "layer0")


# --- opening --------------------------------------------------------------------------------------


def run_results(tiny_run):
    return json.loads((tiny_run.workdir / "results.json").read_text())


def test_a_workdir_opens_its_best_stage(tiny_run):
    results = run_results(tiny_run)
    best = max(results, key=lambda name: results[name]["mIoU"])
    segmenter = diffseg_jax.load(tiny_run.workdir)
    assert segmenter.directory.name == best
    wanted = diffseg_jax.load(tiny_run.workdir / "checkpoints" / best, step=segmenter.step)
    chex.assert_trees_all_equal(segmenter.network, wanted.network)
    assert diffseg_jax.load(tiny_run.workdir, stage="scratch").meta["stage"] == "scratch"


def test_a_stage_without_labels_has_features_only(tiny_run):
    segmenter = diffseg_jax.load(tiny_run.workdir, stage="pretrain")
    assert "block1" in segmenter.taps
    with pytest.raises(UserError, match="knows no classes, so it cannot segment"):
        segmenter.predict(IMAGE)


def test_a_converted_run_predicts_as_the_run(tiny_run, tmp_path):
    assert convert_run(tiny_run.workdir, tmp_path / "small", dtype="float16") > 10_000
    run, small = diffseg_jax.load(tiny_run.workdir), diffseg_jax.load(tmp_path / "small")
    assert (small.names, small.palette, small.step) == (run.names, run.palette, run.step)
    gap = np.abs(small.predict(IMAGE).probs - run.predict(IMAGE).probs)
    assert 0 < gap.max() < 0.01
    assert small.meta["results"]["mIoU"] == run_results(tiny_run)[run.meta["stage"]]["mIoU"]
    convert_run(tiny_run.workdir, tmp_path / "off", ema="off")  # it has no results
    assert "results" not in diffseg_jax.load(tmp_path / "off").meta
    with pytest.raises(UserError, match="holds a checkpoint already"):
        convert_run(tiny_run.workdir, tmp_path / "small")


def test_missing_checkpoints_stages_and_devices_are_sentences(tiny_run, tmp_path):
    sentences = {
        tmp_path / "no": f"{tmp_path}/no does not exist: looked for {tmp_path}/no/<step> and",
        tmp_path: f"{tmp_path} holds no checkpoint: looked for",
        tiny_run.workdir / "config.json": "is a file, but a checkpoint is a directory",
        "scene": 'or of a converted file, or scenes. Did you mean "scenes"?',
        f"{tiny_run.workdir}s/checkpoint": f'Did you mean "{tiny_run.workdir}/checkpoints"?',
    }
    step = max(tiny_run.workdir.glob("checkpoints/finetune/[0-9]*"))
    sentences[step] = f"Give {step.parent}; load(..., step={step.name}) and predict --st"
    for path, sentence in sentences.items():
        with pytest.raises(UserError) as error:
            diffseg_jax.load(path)
        assert sentence in str(error.value)
    near = f"{tiny_run.workdir}/checkpoints"
    assert diffseg_jax.load(near).directory == diffseg_jax.load(tiny_run.workdir).directory
    with pytest.raises(UserError, match='unknown stage in .*"finetun".*Did you mean "finetune"'):
        diffseg_jax.load(tiny_run.workdir, stage="finetun")
    with pytest.raises(UserError, match="holds no step 5. It holds "):
        diffseg_jax.load(tiny_run.workdir, step=5)
    with pytest.raises(UserError, match='unknown dtype "float8"'):
        diffseg_jax.load(tiny_run.workdir, dtype="float8")
    with pytest.raises(UserError, match='no device of the kind "cuda".*diffseg_jax.cuda'):
        diffseg_jax.load(tiny_run.workdir, device="cuda")


def test_a_checkpoint_of_a_newer_format_says_so(tmp_path, monkeypatch, tiny_network):
    network, meta = tiny_network("ddep")
    for module in ("checkpoints", "integrity"):  # one writes it, the other compares
        monkeypatch.setattr(f"diffseg_jax.storage.{module}.FORMAT", FORMAT + 1)
    with StageCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(7, network, meta)
    diffseg_jax.load(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"has format {FORMAT + 1}, written by version 0.1.0"):
        diffseg_jax.load(tmp_path)


def test_the_packaged_model_opens_by_its_name_unless_a_workdir_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = find_stage("scenes")
    assert packaged == PRETRAINED["scenes"]
    assert sum(file.stat().st_size for file in packaged.rglob("*") if file.is_file()) < 3_000_000
    (tmp_path / "scenes").mkdir()  # a folder without checkpoints
    assert find_stage("scenes") == packaged
    shutil.copytree(packaged, tmp_path / "scenes" / "checkpoints" / "train")
    assert find_stage("scenes") == Path("scenes/checkpoints/train")


# --- predictions ----------------------------------------------------------------------------------


def test_a_prediction_draws_and_saves_itself(opened, tmp_path):
    segmenter = opened("ddep")
    found = segmenter.predict([IMAGE, IMAGE[:20, :30]])
    for alpha, wanted in ((0, found.images), (1, found.color())):
        for one, other in zip(found.overlay(alpha), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    lines = found.overlay(contours=True)
    for one, image, colour in zip(lines, found.images, found.color(), strict=True):
        assert np.all((one == image) | (one == colour))
    with pytest.raises(UserError, match="alpha is 3, but must lie between 0"):
        found.overlay(3)
    paths = found.save(tmp_path / "out")
    assert len(paths) == 8 and all(Path(path).is_file() for path in paths)
    with Image.open(tmp_path / "out" / "000001_labels.png") as saved:
        assert saved.mode == "P"
        np.testing.assert_array_equal(np.asarray(saved), found.labels[1])
    with Image.open(tmp_path / "out" / "000000_color.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), found.color()[0])
    (tmp_path / "sheet.png").write_bytes(found._repr_png_())
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[1] == found.sheet().shape[0] > 300
    assert repr(found).startswith(
        "Prediction for 2 images (20 x 30 and 33 x 47), 5 classes: class "
    )


def test_the_packaged_model_segments_scenes():
    scenes = [draw_scene(2026, number, 96, 128) for number in range(4)]
    found = diffseg_jax.load("scenes").predict([scene["image"] for scene in scenes])
    truth = np.stack([scene["mask"] for scene in scenes])
    assert np.mean(found.labels == truth) > 0.8
    assert found.uncertainty[found.labels != truth].mean() > 0.3
    assert found.uncertainty[found.labels == truth].mean() < 0.15
    assert found.calibrated


def test_a_missing_accelerator_is_a_sentence(command):
    done = command.script("-c", ABSENT)
    assert done.code == 0 and 'no device of the kind "cuda"' in done.out, done.err


ABSENT = """
import os
os.environ["JAX_PLATFORMS"] = "cuda"
import diffseg_jax
from diffseg_jax.errors import UserError
from diffseg_jax.data.scenes import draw_scene
try:
    diffseg_jax.load("scenes")
except UserError as error:
    print(error)
"""


def test_loading_causes_no_warning(tiny_run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffseg_jax.load(tiny_run.workdir)
