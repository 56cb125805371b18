"""MAE as a stage: from images to a fit on its features, what is taken over, and what is refused."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

import diffseg_jax
from configs.tiny_ddpm_seg import get_config
from diffseg_jax import convert
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stages
from diffseg_jax.experiment.plan import check_config, make_plan
from diffseg_jax.inference.description import describe_checkpoint
from diffseg_jax.inference.feature_files import write_features
from diffseg_jax.inference.sampling import read_task
from diffseg_jax.storage.networks import open_network
from diffseg_jax.systems.feature_sources import Entry
from diffseg_jax.systems.source_files import load_source, source_sizes
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.mae import mae_settings

SIZES = dict(
    patch=8, width=8, depth=2, heads=2, mlp=8,
    decoder_width=4, decoder_depth=1, decoder_heads=1, decoder_mlp=4,
)  # fmt: skip


def tiny_mae():
    """The tiny config whose fit reads an MAE in place of the diffusion model."""
    config = get_config()
    pretrain = config.stages.pretrain.copy_and_resolve_references()
    with config.unlocked():
        del config.stages["pretrain"], config.samples, config.model, config.diffusion
        config.mae, config.masking = SIZES, dict(ratio=0.5, normalise=True)
        config.stages.mae, config.run = pretrain, ("mae", "fit")
        config.stages.mae.update(kind="mae", steps=2, ema=())
        config.features = dict(
            sources=("mae",), taps=(), short=0, dtype="float32", place="device"
        )
    config.ensemble.recipe, config.stages.fit.start = "fast", "mae"
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run of the stage mae alone, which no test may change."""
    config, workdir = tiny_mae(), tmp_path_factory.mktemp("mae")
    config.run = ("mae",)
    stages.train(config, workdir)
    return workdir


def encoder_in(directory):
    network = open_network(directory)[0]["params"]
    assert "decoder" in network
    return {part: tree for part, tree in network.items() if part != "decoder"}


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("start", ["mae@last", "checkpoints/mae", "random"])
def test_a_fit_reads_the_encoder_of_its_start(run, start, tmp_path):
    config, here = tiny_mae(), "/" not in start
    config.stages.fit.start = start if here else str(run / start)
    config.run, config.mae.width = ("fit",), 8 if start == "random" else 16  # that of the start
    plan = make_plan(config, run if here else tmp_path).stages[0]
    assert plan.task.meta["features"]["networks"]["mae"] == {
        **SIZES, "decoder_width": 0, "decoder_depth": 0, "decoder_heads": 0, "decoder_mlp": 0,
    }  # fmt: skip
    assert plan.task.meta["features_per_pixel"] == 8  # the last half of two blocks
    assert (plan.loaded is None) == (start == "random")
    if plan.loaded:
        assert_same(plan.loaded()["params"]["mae"], encoder_in(run / "checkpoints/mae"))


def test_every_reader_of_checkpoints_knows_the_stage(run, tmp_path, monkeypatch):
    directory, shared = run / "checkpoints" / "mae", tmp_path / "shared"
    described = describe_checkpoint(str(directory))
    assert described["taps"] == ["block0", "block1"]
    assert "diffseg_jax.features" in described["use"]["command"]
    segmenter = diffseg_jax.load(directory)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    with pytest.raises(UserError, match="knows no classes"):
        segmenter.predict(pixels)
    with pytest.raises(UserError, match="holds an MAE"):
        read_task(directory)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_features(segmenter, [str(tmp_path / "a.png")], str(tmp_path / "maps"))
    written = np.load(tmp_path / "maps" / "a.npz")["map_00"]
    np.testing.assert_allclose(segmenter.features(pixels, "block1")["block1"][0], written, 1e-5)
    convert.main(["--source=run", f"--input={directory}", f"--output={shared}"])
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (directory, shared, "~/shared"):
        entry = Entry("mae", str(folder))
        sizes = source_sizes(entry)
        assert (sizes["width"], sizes["decoder_width"]) == (8, 0)
        assert_same(load_source(entry, sizes)["params"]["mae"], encoder_in(directory))


def test_pretraining_continues_from_a_stage_of_its_sizes(run, tmp_path):
    config = tiny_mae()
    config.run, config.stages.mae.start = ("mae",), str(run / "checkpoints/mae")
    taken = lambda: make_plan(config, tmp_path).stages[0].loaded()["params"]
    assert_same(taken(), open_network(run / "checkpoints/mae")[0]["params"])
    config.mae.update(depth=1, mlp=16)
    there = "mae.depth 1, mae.mlp 16, but .* mae.depth 2, mae.mlp 8"
    with pytest.raises(UserError, match=there) as error:
        taken()
    for key, value in re.findall(r"--config\.mae\.(\w+)=(\d+)", str(error.value)):
        config.mae[key] = int(value)
    taken()


@pytest.mark.golden
@pytest.mark.parametrize("decoder", [True, False])
def test_pretraining_continues_from_an_official_file(golden, decoder, tmp_path):
    """Those without a decoder give the encoder alone."""
    file, config = golden("baselines/mae_*.pth")[0], tiny_mae()
    arrays = read_arrays(file)
    if not decoder:
        arrays = {name: x for name, x in arrays.items() if not re.match("mask|decoder", name)}
    np.savez(tmp_path / "mae.npz", **arrays)
    config.weights, config.stages.mae.start = str(tmp_path / "mae.npz"), "weights"
    config.mae = vars(mae_settings(read_arrays(file), "", 4, 4))
    config.run = ("mae",)
    params = make_plan(config, tmp_path).stages[0].loaded()["params"]
    assert ("decoder" in params) == decoder and params["class_token"].shape == (config.mae.width,)


@pytest.mark.golden
def test_the_advice_for_an_official_file_of_another_size_works(golden, tmp_path):
    """Heads that do not share its channels are among it."""
    config = tiny_mae()
    config.run, config.weights = ("mae",), str(golden("baselines/mae_tiny.pth")[0])
    config.mae.update(width=20, heads=5, decoder_width=12, decoder_heads=3)
    config.stages.mae.start = "weights"
    with pytest.raises(UserError, match="mae.width 48, .* the network has mae.width 20") as error:
        make_plan(config, tmp_path)
    for key, value in re.findall(r"--config\.mae\.(\w+)=(\d+)", str(error.value)):
        config.mae[key] = int(value)
    assert "class_token" in make_plan(config, tmp_path).stages[0].loaded()["params"]


@pytest.mark.golden
@pytest.mark.parametrize(("source", "file", "wrong", "right"), [
    ("mae", "baselines/mae_tiny.pth", 5, 4), ("dinov2", "backbones/dinov2_mlp.pth", None, 3),
    ("dinov3", "backbones/dinov3_hf.safetensors", None, 2),
    ("dinov3", "backbones/dinov3_mlp.pth", 4, 2),
])  # fmt: skip
def test_the_advice_for_heads_of_unusual_widths_works(golden, source, file, wrong, right, tmp_path):
    path, output = golden(file)[0], tmp_path / "out"
    with pytest.raises(UserError, match="--heads=[2N]") as error:
        source_sizes(Entry(source, str(path)), heads=wrong)
    assert "Convert" not in str(error.value) or f"--source={source} --heads=N" in str(error.value)
    given = [f"--source={source}", f"--heads={right}", f"--input={path}", f"--output={output}"]
    convert.main(given)
    assert source_sizes(Entry(source, str(output)))["heads"] == right


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"mae.width": 6}, "mae.width is 6, but it must be a multiple of 4"),
    ({"masking.ratio": 0.99}, "keeps 0 of the 4 patches"),
    ({"stages.mae.start": "weights"}, "no file is given. Try --config.weights=mae_"),
    ({"stages.fit.start": "weights"}, "start is weights, which gives the feature source mae no"),
    ({"features.sources": ("colour",)}, "has no network to start from"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(changes, sentence):
    config = tiny_mae()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence):
        check_config(config)
