"""Complete runs through the command line, on scenes of 32 x 48 with a tiny network."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.cli import Flags
from diffseg_jax.storage.networks import open_network
from diffseg_jax.training.state import flatten

TINY = Path(__file__).parent / "configs" / "tiny_ddep.py"
STAGES = ("pretrain", "finetune", "scratch")
ONLY_FINETUNE = "--config.run=('finetune',)"
TWO_STAGES = "--config.run=('pretrain', 'finetune')"


def read(path):
    return json.loads(path.read_text())


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def succeeded(done):
    """The output of a command that succeeded with an empty stderr."""
    assert done.code == 0, done.err[-3000:]
    assert done.err == ""
    return done.out


def leaves_of(directory, step=None, part="params"):
    network, _ = open_network(directory, step)
    return flatten(network[part])


def equal(one, other):
    """Whether two flat trees hold the same paths and bits."""
    return one.keys() == other.keys() and all(np.array_equal(one[p], other[p]) for p in one)


def test_commands_start_where_python_drops_docstrings():
    assert "--help" in Flags("main", None).format_help()


# ---- one run, looked at from all sides -----------------------------------------------------------


def test_a_run_writes_all_of_its_files(tiny_run):
    workdir = tiny_run.workdir
    assert read(workdir / "config.json")["system"] == "ddep"
    assert read(workdir / "labelled.json")["n"] == 6
    for stage in STAGES:
        steps = {path.name for path in (workdir / "checkpoints" / stage).iterdir()}
        assert {"6", "8"} <= steps <= {"4", "6", "8"}  # the last two, and the best of 4 and 8
        assert list((workdir / "tensorboard" / stage).glob("events.out.tfevents.*"))
    names = {path.name for path in (workdir / "pictures").iterdir()}
    assert names == {
        *(f"{stage}_{step:06d}.png" for stage in STAGES for step in (4, 8)),
        *(f"{stage}{plot}_result.png" for stage in ("finetune", "scratch")
          for plot in ("", "_reliability", "_risk_coverage", "_confusion")),
    }  # fmt: skip
    for name in names:
        with Image.open(workdir / "pictures" / name) as image:
            assert np.asarray(image).std() > 5  # not blank
    assert not list(workdir.rglob("*partial*")) and not list(workdir.rglob("*tmp*"))


def test_results_hold_every_class(tiny_run):
    results = read(tiny_run.workdir / "results.json")
    assert list(results) == ["finetune", "scratch"]
    assert results["finetune"]["start"] == "pretrain" and results["scratch"]["start"] == "random"
    for result in results.values():
        assert result["step"] == 8 and result["images"] == 8 and result["labelled_images"] == 6
        assert {"road", "sky", "car"} < result["IoU"].keys() == result["Acc"].keys()
        assert 0 <= result["mIoU"] <= 1
        assert 0 <= result["boundary"]["mIoU"] <= 1 and result["boundary"]["share_of_pixels"] > 0
        assert 0 < result["calibration"]["ECE"] < 1
        assert result["calibration"]["ECE_of_predicted"].keys() == result["IoU"].keys()
    assert "time" not in json.dumps(results)


def test_the_confusion_is_a_table_from_which_the_results_follow(tiny_run):
    for stage, result in read(tiny_run.workdir / "results.json").items():
        head, *rows = csv.reader((tiny_run.workdir / f"confusion_{stage}.csv").open())
        assert head[1:] == [row[0] for row in rows] == list(result["Acc"])
        counts = np.array([row[1:] for row in rows], int)
        assert counts.sum() == 8 * 32 * 48
        assert counts.trace() / counts.sum() == pytest.approx(result["aAcc"])
        hits, accuracies = counts.diagonal(), result["Acc"].values()
        for right, labelled, accuracy in zip(hits, counts.sum(axis=1), accuracies):
            assert accuracy == (pytest.approx(right / labelled) if labelled else None)


def test_no_step_is_logged_twice(tiny_run):
    seen = [(r["stage"], r["step"], "loss" in r) for r in records(tiny_run.workdir)]
    assert len(seen) == len(set(seen))
    for stage in STAGES:
        logged = [r for r in records(tiny_run.workdir) if r["stage"] == stage and "loss" in r]
        assert [r["step"] for r in logged] == [2, 4, 6, 8]
        assert logged[-1]["loss"] < logged[0]["loss"]
        assert {"learning_rate", "grad_norm", "time"} <= logged[0].keys()


def test_a_run_prints_its_plan_and_progress(tiny_run):
    assert tiny_run.err == ""
    waits = re.compile(r"so far$|: compiles")  # of a busy machine
    lines = [line for line in tiny_run.out.splitlines() if not waits.search(line)]
    assert lines[0].startswith("pretrain: from random; ") and lines[0].endswith("; 1 device")
    assert "8 steps of 4" in lines[0] and "10 unlabelled images" in lines[0]
    begins = "pretrain: starts, 8 steps to go"
    table = lines[1:lines.index(begins)]
    assert table[0].split() == ["numbers", "total", "per", "device"]
    assert table[-1].split()[0] == "total" and any("trained parameters" in line for line in table)
    compiled = lines[1 + len(table) + 1]
    assert compiled.startswith("pretrain: compiled in ") and "FLOP per device and step" in compiled
    assert any(line.startswith("finetune 4/8   loss ") and "images/s" in line for line in lines)
    assert any(line.startswith("mIoU ") for line in lines)
    assert re.match(r"finished: mIoU \d+\.\d %; numbers in ", lines[-2])
    assert lines[-1].startswith("to predict: python -m diffseg_jax.predict ")


def test_a_checkpoint_has_metadata_of_its_stage(tiny_run):
    _, meta = open_network(tiny_run.workdir / "checkpoints/finetune")
    assert meta["step"] == meta["data"]["next_batch"] == 8 and meta["stage"] == "finetune"
    assert meta["config"] == read(tiny_run.workdir / "config.json")
    assert len(meta["classes"]) == len(meta["palette"]) and "road" in meta["classes"]
    assert meta["labelled"]["sha256"] == read(tiny_run.workdir / "labelled.json")["sha256"]


def test_repeating_the_command_of_a_finished_run_trains_nothing(command, tiny_run):
    before = {
        name: (tiny_run.workdir / name).read_bytes()
        for name in ("results.json", "config.json", "labelled.json", "metrics.jsonl")
    }
    out = succeeded(command(tiny_run.workdir))
    assert all(f"{stage}: is finished" in out for stage in STAGES)
    assert out.splitlines()[-2].startswith("finished") and "starts" not in out
    for name, content in before.items():
        assert (tiny_run.workdir / name).read_bytes() == content


# ---- the other modes -----------------------------------------------------------------------------


def test_a_run_can_be_evaluated_again_with_other_options(command, tiny_run):
    before = (tiny_run.workdir / "results.json").read_bytes()
    options = ["view=slide", "window=(32, 32)", "stride=(16, 16)", "scales=(0.5, 1.0)", "images=3"]
    flags = [f"--config.evaluate.{option}" for option in (*options, "flip=True")]
    sheet = (tiny_run.workdir / "pictures/finetune_result.png").read_bytes()
    succeeded(command(tiny_run.workdir, "--mode=eval", *flags))
    results = read(tiny_run.workdir / "results_eval.json")
    assert list(results) == ["finetune", "scratch"]
    assert results["finetune"]["protocol"]["view"] == "slide"
    assert results["finetune"]["protocol"]["scales"] == [0.5, 1.0]
    assert results["finetune"]["images"] == 3
    assert results["finetune"]["mIoU"] != json.loads(before)["finetune"]["mIoU"]
    assert (tiny_run.workdir / "results.json").read_bytes() == before
    assert (tiny_run.workdir / "pictures/finetune_result.png").read_bytes() == sheet
    assert (tiny_run.workdir / "pictures/finetune_eval.png").exists()


@pytest.mark.slow
def test_a_run_can_be_evaluated_in_halves(command, tiny_run):
    succeeded(command(tiny_run.workdir, "--mode=eval", "--config.evaluate.view=halves"))
    assert read(tiny_run.workdir / "results_eval.json")["scratch"]["protocol"]["view"] == "halves"


def test_the_mode_check_prints_and_draws(command, tmp_path):
    out = succeeded(command(tmp_path / "run", "--mode=check"))
    assert "train: 10 images of scenes, split train" in out and "32 x 48 (10)" in out
    assert any(line.split()[:2] == ["0", "road"] and "%" in line for line in out.splitlines())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "check_train.png", "check_val.png", "check_unlabelled.png",
        "check_train_changed.png", "check_unlabelled_changed.png",
    }  # fmt: skip


# ---- where a stage starts ------------------------------------------------------------------------


def test_a_stage_starts_from_another_run(command, tiny_run, tmp_path):
    """Fine-tuning from a finished pretraining gives the same result as one command for both."""
    start = f"--config.stages.finetune.start={tiny_run.workdir}/checkpoints/pretrain"
    best = "--config.evaluate.checkpoint=best"
    succeeded(command(tmp_path, ONLY_FINETUNE, start, best))
    ours, theirs = (folder / "checkpoints/finetune" for folder in (tmp_path, tiny_run.workdir))
    for part in ("params", "stats"):
        assert equal(leaves_of(ours, part=part), leaves_of(theirs, part=part))
    scored = {r["step"]: r["mIoU"] for r in records(tmp_path) if "mIoU" in r}
    assert read(tmp_path / "results.json")["finetune"]["step"] == max(scored, key=scored.get)


@pytest.mark.slow
@pytest.mark.parametrize("pretrain", ["none", "supervised"])
def test_a_run_without_denoising_trains(command, tmp_path, pretrain):
    out = succeeded(command(tmp_path, f"--config.pretrain={pretrain}", TWO_STAGES))
    assert "pretrain: skipped" in out
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["finetune"]
    assert read(tmp_path / "results.json")["finetune"]["start"] == "random"


def official_names(encoder):
    """The arrays of a released file for an encoder tree of ours: {name: shape}."""
    names = {}
    for path, leaf in flatten(encoder).items():
        dotted, shape = "/".join(path), leaf.shape
        dotted = dotted.replace("patch_embedding/", "embedding/")
        if dotted.startswith("root/"):
            dotted = dotted.replace("root/conv/", "conv_root/").replace("root/norm/", "gn_root/")
        elif dotted.startswith("block"):
            dotted = dotted.replace("/norm", "/gn")
        elif dotted.startswith("layer"):
            layer, rest = dotted.split("/", 1)
            for ours, theirs in [
                ("norm1", "LayerNorm_0"),
                ("norm2", "LayerNorm_2"),
                ("mlp/fc1", "MlpBlock_3/Dense_0"),
                ("mlp/fc2", "MlpBlock_3/Dense_1"),
                ("attention", "MultiHeadDotProductAttention_1"),
            ]:
                rest = rest.replace(ours, theirs)
            dotted = f"Transformer/encoderblock_{layer.removeprefix('layer')}/{rest}"
        elif dotted.startswith("norm/"):
            dotted = dotted.replace("norm/", "Transformer/encoder_norm/")
        elif dotted == "position_embedding":
            dotted, shape = "Transformer/posembed_input/pos_embedding", (1, 10, shape[-1])
        names[dotted] = shape
    return names


@pytest.fixture(scope="module")
def weights(tiny_run, tmp_path_factory):
    """An .npz with the released names and tiny shapes: a grid of 3 x 3 and a class token."""
    network, _ = open_network(tiny_run.workdir / "checkpoints/pretrain")
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(1.0 if name.endswith("scale") else 0.0, 0.05, shape).astype(np.float32)
        for name, shape in official_names(network["params"]["encoder"]).items()
    }
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(path, **arrays, cls=np.zeros((1, 1, 32), np.float32))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a user with two classes of two textures, and classes.json."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(1)
    for split, count in (("train", 6), ("val", 3)):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((32, 48), np.uint8)
            mask[:, 10 + 3 * i :] = 1
            image = rng.integers(0, 128, (32, 48, 3)) + 127 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(root / f"images/{split}/{i}.png")
            Image.fromarray(mask).save(root / f"masks/{split}/{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["dark", "light"]}))
    return root


@pytest.fixture(scope="module")
def own_config(folder, tmp_path_factory):
    """The tiny config on that folder, as a user would write it."""
    text = TINY.read_text()
    text = text.replace("scenes = dict(images=10, size=(32, 48), seed=0)", "scenes = dict()")
    labelled, unlabelled = (f'source="scenes", path="", options={x}' for x in ("scenes", "dict"))
    text = text.replace(labelled, f'source="folder", path="{folder}", options=scenes')
    text = text.replace(unlabelled, f'source="unlabelled", path="{folder}", options=dict')
    path = tmp_path_factory.mktemp("config") / "own.py"
    path.write_text(text)
    return path


@pytest.mark.slow  # test_ddep reads recorded official weights, and keeps an encoder bit for bit
def test_ddep_keeps_the_loaded_encoder_bit_for_bit(command, own_config, weights, tmp_path):
    """Images of a user, official weights, a frozen encoder, then fine-tuning of all parameters."""
    flags = ["--config.pretrain=ddep", f"--config.weights={weights}", "--config.data.count=0"]
    out = succeeded(command(tmp_path, *flags, TWO_STAGES, config=own_config))
    assert "pretrain: from weights; " in out and ", 0 rest" not in out.splitlines()[0]
    directory = tmp_path / "checkpoints/pretrain"
    first, last = (leaves_of(directory, step) for step in (6, 8))
    encoder = {path for path in first if path[0] == "encoder"}
    assert encoder and all(np.array_equal(first[path], last[path]) for path in encoder)
    kernels = {path for path in first if path[-1] == "kernel"} - encoder
    assert kernels and not any(np.array_equal(first[path], last[path]) for path in kernels)
    with np.load(weights) as arrays:
        kernel = arrays["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"]
    assert np.array_equal(last["encoder", "layer0", "mlp", "fc1", "kernel"], kernel)
    tuned = leaves_of(tmp_path / "checkpoints/finetune")
    assert not np.array_equal(tuned["encoder", "layer0", "mlp", "fc1", "kernel"], kernel)
    results = read(tmp_path / "results.json")["finetune"]
    assert results["IoU"].keys() == {"dark", "light"} and results["start"] == "pretrain"


def test_weights_that_do_not_fit_are_named(command, weights, tmp_path):
    with np.load(weights) as arrays:
        rest = {name: array for name, array in arrays.items() if name != "conv_root/kernel"}
    np.savez(tmp_path / "bad.npz", **rest)
    flags = ["--config.pretrain=ddep", f"--config.weights={tmp_path}/bad.npz"]
    done = command(tmp_path / "run", *flags)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "root.conv.kernel" in done.err and "bad.npz" in done.err
    assert not list((tmp_path / "run").glob("checkpoints/*/*"))


@pytest.mark.slow  # compiles programs of its own
def test_ddep_without_weights_is_refused(command, tmp_path):
    out = succeeded(command(tmp_path, "--config.pretrain=ddep", "--config.run=('pretrain',)"))
    assert "no encoder weights were given" in out
    assert "nothing to measure" in out


@pytest.mark.slow  # compiles programs of its own
def test_many_options_work_together(command, tmp_path):
    flags = [
        "--config.noise.condition=True", "--config.noise.low=0.1", "--config.noise.high=0.4",
        "--config.noise.target=image", "--config.noise.uniform_in=gamma", "--config.dtype=bfloat16",
        "--config.remat=True", TWO_STAGES,
    ]  # fmt: skip
    for stage in ("pretrain", "finetune"):
        flags += [f"--config.stages.{stage}.accumulate=2", f"--config.stages.{stage}.ema=(0.5,)"]
    succeeded(command(tmp_path, *flags))
    assert all(np.isfinite(r.get("loss", 0.0)) for r in records(tmp_path))
    for leaf in leaves_of(tmp_path / "checkpoints/finetune").values():
        assert leaf.dtype == np.float32
    assert ("level", "kernel") in leaves_of(tmp_path / "checkpoints/pretrain")
    assert read(tmp_path / "results.json")["finetune"]["step"] == 8


# ---- the presets for a laptop --------------------------------------------------------------------

PAPERS = ("ddep_cityscapes", "ddp_cityscapes", "ddpm_published", "ddpm_seg_published")


@pytest.mark.slow  # about a minute of compilation each
@pytest.mark.parametrize("name", PAPERS)
def test_a_tiny_preset_runs_to_its_end_without_data(name, command, tmp_path):
    out = succeeded(command(tmp_path, config=f"configs/{name}.py:tiny"))
    assert out.splitlines()[-2].startswith("finished")
    if name != "ddpm_published":
        for result in read(tmp_path / "results.json").values():
            assert result["images"] == 4 and np.isfinite(result["mIoU"])
