"""A whole run of DDP, what is measured afterwards, and the published presets."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from PIL import Image

import diffseg_jax
from configs import tiny_ddep, tiny_ddp
from diffseg_jax import main
from diffseg_jax.config.files import run_config
from diffseg_jax.data.scenes import NAMES
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.label_target import line_of_study
from diffseg_jax.experiment.plan import check_config, plan_evaluations
from diffseg_jax.experiment.results import keep_calibrator, result_of
from diffseg_jax.inference import calibrators
from diffseg_jax.inference.converted import convert_run
from diffseg_jax.metrics.calibrator import fit_calibrator
from diffseg_jax.storage.checkpoints import steps_in
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.systems.ddp_segmentation import make_network, make_settings
from diffseg_jax.training.optimizer import decayed
from diffseg_jax.weights.ddp import DDP_TABLE
from diffseg_jax.weights.tables import _row

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = [("ddp_cityscapes", name) for name in (
    "convnext_t", "convnext_s", "convnext_b", "convnext_l", "swin_t", "swin_s", "swin_b", "swin_l",
    "convnext_t_aligned", "convnext_l_aligned",
)] + [("ddp_ade20k", f"swin_{size}") for size in "tsbl"]  # fmt: skip


OF_ALL = {"least_confidence", "entropy"}  # signals of every network


CALIBRATOR = fit_calibrator(
    {"entropy": np.linspace(0, 1, 100)}, np.arange(100) % 5, np.arange(100) > 60, len(NAMES),
    {"images": 2, "pixels": 100},
)  # fmt: skip


def called(workdir, mode="train", **changes):
    """A mode of the command with two stages of the tiny config, and with these options."""
    config = tiny_ddp.get_config()
    config.update_from_flattened_dict({"run": ("train", "plain"), **changes})
    main.MODES[mode](config, workdir)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a whole run, which no test may change."""
    workdir = tmp_path_factory.mktemp("ddp") / "run"
    called(workdir)
    return workdir


def test_a_run_leaves_results_and_images_of_every_step(run):
    results = json.loads((run / "results.json").read_text())
    assert list(results) == ["train", "plain"]
    assert set(results["train"]["AUROC_of"]) == {"changes", *OF_ALL}
    assert set(results["plain"]["AUROC_of"]) == OF_ALL
    widths = {name: Image.open(run / "pictures" / f"{name}_result.png").width for name in results}
    assert widths["train"] > widths["plain"]  # three more columns, for its steps
    assert set(open_network(run / "checkpoints/plain")[0]["params"]) == {
        "backbone", "neck", "auxiliary"
    }  # fmt: skip


@pytest.mark.slow  # test_ddp checks quickly what this stage learns, and from what it starts
def test_the_stage_of_alignment_goes_on_with_the_network_of_the_first(run, tmp_path):
    called(tmp_path / "run", run=("train", "align"))
    network, meta = open_network(tmp_path / "run/checkpoints/align")
    assert meta["start"] == "train" and meta["task"]["model"]["code"] == "embedding"
    before, _ = open_network(tmp_path / "run/checkpoints/train")
    assert flatten(network).keys() == flatten(before).keys()
    pictures = (folder / "pictures/train_result.png" for folder in (run, tmp_path / "run"))
    aligned = tmp_path / "run/pictures/align_result.png"
    assert len({Image.open(picture).width for picture in (*pictures, aligned)}) == 1


def test_a_run_leaves_the_calibrator_of_a_checkpoint(run, tmp_path):
    """Where it helps; the networks of this run know too little to be sure that it does."""
    results = json.loads((run / "results.json").read_text())
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    for name, result in results.items():
        scores, raw = result["calibrated"], result["calibration"]
        assert scores["pixels"] > 0 and 0 <= scores["ECE"] < 1
        assert result["AUROC"] == (scores if scores["kept"] else raw)["AUROC"]
        assert (run / "pictures" / f"{name}_reliability_result.png").exists()
        segmenter = diffseg_jax.load(run, stage=name)
        assert scores["kept"] == bool(segmenter.calibrator)
    directory, step = run / "checkpoints/plain", segmenter.step
    calibrators.write_calibrator(directory, step, open_meta(directory), CALIBRATOR)
    segmenter = diffseg_jax.load(run, stage="plain")
    found = segmenter.predict(image)
    chance = segmenter.calibrator.chance(found.signals, found.labels)
    assert found.calibrated and "uncalibrated" not in repr(found)
    np.testing.assert_array_equal(found.uncertainty, chance)
    convert_run(run, tmp_path / "small", stage="plain", dtype="float16")
    small = diffseg_jax.load(tmp_path / "small")
    assert small.calibrator.to_json() == CALIBRATOR.to_json()


def test_a_run_leaves_the_images_that_each_checkpoint_knows(run, tmp_path):
    """All that were evaluated, and those with which it learned."""
    results = json.loads((run / "results.json").read_text())
    segmenters = {name: diffseg_jax.load(run, stage=name) for name in results}
    for name, result in results.items():
        shape = result["images"] + result["labelled_images"], 2 * tiny_ddp.get_config().model.width
        assert segmenters[name].known.descriptors.shape == shape
    known = segmenters["plain"].known
    found = segmenters["plain"].predict(np.zeros((2, 32, 48, 3), np.uint8))
    familiarity, foreign = known.judge(np.stack([maps.descriptor for maps in found._maps]))
    np.testing.assert_array_equal(found.familiarity, familiarity)
    np.testing.assert_array_equal(found.foreign, foreign)
    assert found[0].familiarity.shape == (1,) and foreign.all()
    convert_run(run, tmp_path / "small", stage="plain", dtype="float16")
    small = diffseg_jax.load(tmp_path / "small")
    np.testing.assert_array_equal(small.known.descriptors, known.descriptors)


@pytest.mark.parametrize("damage", ["{", '{"of": 1}', "other weights", "other classes"])
def test_a_calibrator_that_cannot_be_used_leaves_the_uncertainty_uncalibrated(run, damage):
    directory = run / "checkpoints/plain"
    step, meta = max(steps_in(directory)), open_meta(directory)
    calibrators.write_calibrator(directory, step, meta, CALIBRATOR)
    file = calibrators.file_of(directory, step)
    content = json.loads(kept := file.read_text())
    if damage == "other weights":
        damage = json.dumps({**content, "of": {**content["of"], "arrays": "0"}})
    if damage == "other classes":
        damage = json.dumps({**content, "intercepts": content["intercepts"][1:]})
    try:
        file.write_text(damage)
        with pytest.warns(UserWarning, match="calibrator.json .* uncalibrated"):
            assert calibrators.read_calibrator(directory, step, meta) is None
    finally:
        file.write_text(kept)
    assert calibrators.read_calibrator(directory, step, meta)
    with pytest.warns(UserWarning, match="other parameters than ema=0.5"):
        assert calibrators.read_calibrator(directory, step, meta, 0.5) is None


def test_training_images_calibrate_nothing(run, tmp_path, capsys):
    config = tiny_ddp.get_config()
    config.data.val, config.evaluate.images = config.data.train, 1
    (evaluation,) = plan_evaluations(config, tmp_path, ["plain"])
    result = result_of(evaluation, *open_network(run / "checkpoints/plain"))
    assert "uncalibrated" in capsys.readouterr().out
    assert result["calibrated"] == {} and 0 <= result["AUROC"] <= 1
    assert not [*tmp_path.glob("**/calibrator.json"), *tmp_path.glob("**/known_images.npz")]
    protocol = {**evaluation.recorded["protocol"], "flip": not evaluation.protocol.flip}
    mirrored = dataclasses.replace(evaluation, recorded={"protocol": protocol})
    for changed, count in ((mirrored, 0), (evaluation, 1)):
        keep_calibrator(changed, CALIBRATOR, open_meta(run / "checkpoints/plain"), replace=True)
        assert len(list(tmp_path.glob("checkpoints/plain/*/calibrator.json"))) == count


def test_a_finished_run_is_evaluated_with_other_sampling(run):
    kept = {file: file.read_text() for file in run.glob("checkpoints/*/*/calibrator.json")}
    called(run, "eval", **{"sampling.steps": 1})
    results = json.loads((run / "results_eval.json").read_text())
    assert set(results["train"]["AUROC_of"]) == OF_ALL
    assert results["train"]["sampling"]["steps"] == 1
    assert "sampling" not in results["plain"]
    assert all(file.read_text() == text for file, text in kept.items())


def test_mode_steps_measures_every_setting_of_every_stage(run, capsys):
    settings = [(1, 1), (2, 1), (1, 2), (2, 2)]
    swept = {"train": settings, "plain": [(0, 1)]}
    called(run, "steps")
    out = capsys.readouterr().out
    rows = json.loads((run / "steps.json").read_text())
    found = [(row["stage"], row["steps"], row["draws"]) for row in rows]
    assert found == [(stage, *pair) for stage in swept for pair in swept[stage]]
    for row in rows:
        assert 0 < row["mIoU"] < 1 and row["ms"] > 0
        kinds = set(OF_ALL)
        kinds |= {"changes"} if row["steps"] > 1 else set()
        kinds |= {"spread"} if row["draws"] > 1 else set()
        assert set(row["AUROC"]) == kinds
    assert all(line in out for line in ("mIoU (%)", "ms/image", "steps.json"))
    assert Image.open(run / "pictures/steps.png").width > 500


def test_milliseconds_have_two_decimals_in_all_rows_of_the_table():
    row = {"stage": "train", "steps": 3, "draws": 1, "mIoU": 0.5, "AUROC": {}}
    lines = [line_of_study({**row, "ms": ms}) for ms in (3.0, 1234.5)]
    assert [line[31:40] for line in lines] == ["     3.00", "  1234.50"]


def test_mode_steps_reads_a_directory_that_a_stage_starts_from(run, tmp_path):
    start = {"run": ("align",), "stages.align.start": f"{run}/checkpoints/train"}
    called(tmp_path / "steps", "steps", **start, **{"sweep.steps": (2,), "sweep.draws": (1,)})
    (row,) = json.loads((tmp_path / "steps/steps.json").read_text())
    assert (row["steps"], row["draws"]) == (2, 1)


def test_mode_steps_needs_a_checkpoint_and_a_system_with_steps(tmp_path):
    config = tiny_ddp.get_config()
    with pytest.raises(UserError, match="holds no checkpoint of train or align or plain"):
        main.MODES["steps"](config, tmp_path / "run")
    other = tiny_ddep.get_config()
    with pytest.raises(UserError, match="--mode=steps is for ddp, but the config's system is ddep"):
        main.MODES["steps"](other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- published presets ---------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "preset"), PRESETS)
def test_a_preset_is_valid_and_of_the_published_size(file, preset):
    config = run_config(f"{CONFIGS / file}.py:{preset}")
    config.weights = "classifier.pth"
    check_config(config)
    classes = 150 if "ade" in file else 19
    network = make_network(make_settings(config, classes), "train", "float32", False)
    count = sum(leaf.size for leaf in jax.tree.leaves(network.abstract["params"])) / 1e6
    published = {
        "convnext_t": 39.87, "convnext_s": 61.50, "convnext_b": 99.74, "convnext_l": 208.65,
        "ade_swin_t": 39.67, "ade_swin_s": 60.98, "ade_swin_b": 99.15, "ade_swin_l": 207.72,
    }  # fmt: skip
    name = f"ade_{preset}" if classes == 150 else preset.removesuffix("_aligned")
    if name in published:
        assert round(count, 2) == published[name]
    assert ("align" in config.run) == preset.endswith("_aligned")
    assert config.sampling.steps == (10 if preset.endswith("_aligned") else 3)
    assert config.stages.train.optim.clip_norm == (0.1 if classes == 150 else 0)


def test_the_error_for_an_unknown_preset_lists_the_known_ones():
    file = CONFIGS / "ddp_ade20k.py"
    with pytest.raises(UserError, match='ddp_ade20k.py "convnext_t". Known: swin_b, swin_l'):
        run_config(f"{file}:convnext_t")


def test_a_config_without_presets_says_so():
    with pytest.raises(UserError, match="ddp_camvid.py cannot be run: .*after the colon"):
        run_config(f"{CONFIGS / 'ddp_camvid.py'}:swin_t")


@pytest.mark.golden
def test_recorded_decay_groups(golden):
    """Which parameters the original decays, by the names in its checkpoints."""
    seen = 0
    for path in golden("ddp/keys_*.json"):
        record = json.loads(path.read_text())
        if "decode_head.conv_seg.bias" not in record["tensors"]:
            continue  # a network of another task
        preset, data, aligned = re.fullmatch(
            r"ddp_((?:convnext|swin)_[tsbl])_.*(cityscapes|ade20k)(.*align.*)?", record["name"]
        ).groups()
        config = run_config(f"{CONFIGS}/ddp_{data}.py:{preset}")
        optim = config.stages["align" if aligned else "train"].optim
        assert (optim.peak_lr, optim.weight_decay) == (
            record["base_lr"], record["base_weight_decay"]
        )  # fmt: skip
        classes = record["tensors"]["decode_head.conv_seg.bias"][0][0]
        network = make_network(make_settings(config, classes), "train", "float32", False)
        ours = decayed(network.abstract["params"], optim.no_decay)
        ours = {".".join(path): value for path, value in flatten({"params": ours}).items()}
        for name, (_, kind, decay) in record["tensors"].items():
            if kind == "param":
                assert ours[_row(name, DDP_TABLE)[0]] == (decay > 0), name
                seen += 1
    assert seen
