"""A finished run is measured under corruptions; a kill loses one cell at most."""

import csv
import dataclasses
import json
import re
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from configs.tiny_ddpm_seg import get_config
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import corruption_study, stages
from diffseg_jax.experiment.corruption_report import (
    NUMBERS,
    cell_line,
    counts_file,
    markdown,
    mean_row,
    short_table,
)
from diffseg_jax.experiment.corruption_study import CorruptedImages, measure_corruptions, trust_of
from diffseg_jax.figures.robustness import robustness_plot
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.image_counts import mean_iou, read_image_counts
from diffseg_jax.metrics.uncertainty import SIGNALS

GIVEN = {"types": ("fog", "elastic_transform"), "severities": (1, 5)}


def config_of(**given):
    """Linear classifiers of colours, fitted to scenes in 2 folds, and options of the study."""
    config = get_config()
    config.run, config.features.sources, config.stages.fit.start = ("fit",), ("colour",), "random"
    config.ensemble.update(recipe="linear", members=2, widths=())
    config.stages.fit.augment.crop = (16, 24)
    with config.unlocked():
        config.data.options = dict(images=4, size=(16, 24), seed=0)
        config.data.update(count=0, val="", folds=2)
        config.evaluate.corruptions = {**GIVEN, **given}
    return config


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The workdir of a run that was trained and measured, which no test may change."""
    workdir = tmp_path_factory.mktemp("measured")
    stages.train(config_of(), workdir)
    measure_corruptions(config_of(), workdir)
    return workdir


def test_an_image_that_is_too_small_is_named():
    source = [{"image": np.zeros((8, 40, 3), np.uint8), "name": "val/7", "mask": None}]
    with pytest.raises(UserError, match="image val/7 of 8 x 40 pixels is too small"):
        CorruptedImages(source, "fog", 1, 0, "224")[0]


def test_lines_and_the_table_of_all_severities_fit_a_terminal_of_80_columns():
    clean = {"type": "clean", "severity": 0, **dict.fromkeys(NUMBERS, 0.6543), "foreign": None}
    rows = [clean, *(
        clean | {"type": name, "severity": severity, "mIoU": 0.1234, "AUROC": 0.512}
        for name in ("elastic_transform", "fog") for severity in range(1, 6)
    )]  # fmt: skip
    lines = [cell_line(row, clean) for row in rows]
    assert max(map(len, lines)) == 80 and "mIoU 12.3 (-53.1)" in lines[1]
    table = short_table(rows).splitlines()
    assert max(map(len, table)) <= 80 and [line.split()[0] for line in table[1:]] == [
        "severity", "clean", "elastic_transform", "fog"
    ]  # fmt: skip
    assert table[3].split()[1:] == ["12.3"] * 5 + ["0.51"] * 5
    assert table[2].split()[1:] == ["65.4"] * 5 + ["0.65"] * 5


@pytest.mark.parametrize("held_out", (True, False))
def test_the_table_says_whether_the_network_learned_from_the_images(held_out):
    rows = [{"type": "clean", "severity": 0, **dict.fromkeys(NUMBERS, 0.5), "calibrated": False}]
    rows.append(rows[0] | {"type": "fog", "severity": 1})
    measured_on = {"source": "folder", "split": "train", "held_out": held_out}
    said = markdown(rows, {
        "stage": "fit", "step": 8, "images": 3, "constants": "224", "measured_on": measured_on,
    })  # fmt: skip
    assert ("on 3 validation images;" in said) == held_out
    assert ("on 3 images from which it learned" in said) != held_out


def cells_of(workdir):
    return json.loads((workdir / "corruptions.json").read_text())["cells"]


def test_a_cell_for_each_type_and_severity_after_the_clean_images(measured):
    cells = cells_of(measured)
    assert [(row["type"], row["severity"]) for row in cells] == [
        ("clean", 0), ("fog", 1), ("fog", 5), ("elastic_transform", 1), ("elastic_transform", 5)
    ]  # fmt: skip
    result = json.loads((measured / "results.json").read_text())["fit"]
    for key in ("mIoU", "aAcc", "IoU", "image_uncertainty"):
        assert cells[0][key] == result[key]  # by the classifiers of the same folds
    for key in ("AUROC", "ECE", "Brier"):  # of all pixels, as the images are small
        assert cells[0]["calibration"][key] == pytest.approx(result["calibration"][key])
    assert len({row["mIoU"] for row in cells}) == 5


def test_the_counts_of_the_images_of_a_cell_give_its_score(measured):
    for row in cells_of(measured):
        kept = read_image_counts(counts_file(measured, row["type"], row["severity"]))
        found = mean_iou(kept.counts.sum(0), kept.absent, kept.unscored)
        assert len(kept.names) == 4 and found == pytest.approx(row["mIoU"])


def test_the_files_of_a_study(measured):
    cells, rows = cells_of(measured), list(csv.DictReader((measured / "corruptions.csv").open()))
    assert [row["type"] for row in rows] == [cell["type"] for cell in cells]
    drops = [cells[0]["mIoU"] - cell["mIoU"] for cell in cells]
    np.testing.assert_allclose([float(row["drop"]) for row in rows], drops, atol=1e-5)
    table = (measured / "corruptions.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 1 + 2 + 1 and len({line.count("|") for line in lines}) == 1
    assert "weak (1)" in lines[0] and "strong (5)" in lines[0]
    mean = 100 * np.mean([cells[2]["mIoU"], cells[4]["mIoU"]])
    assert f"{mean:.1f} ({mean - 100 * cells[0]['mIoU']:+.1f})" in lines[-1]
    assert Image.open(measured / "pictures" / "corruptions.png").width > 500
    examples = Image.open(measured / "pictures" / "corruptions_images.png")
    assert examples.width > 4 * 24 and examples.height < examples.width  # four images in a row


def test_a_killed_study_loses_one_cell_at_most(measured, tmp_path, monkeypatch, capsys):
    workdir, begun = shutil.copytree(measured, tmp_path / "run"), []
    measure = corruption_study.measure_cell
    (workdir / "corruptions.json").unlink()

    def killed(*arguments):
        begun.append(arguments[1:3])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(corruption_study, "measure_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_corruptions(config_of(), workdir)
    assert len(cells_of(workdir)) == 2
    measure_corruptions(config_of(), workdir)
    assert begun[:4] == [("clean", 0), ("fog", 1), ("fog", 5), ("fog", 5)] and len(begun) == 6
    assert "3 cells of 5 to measure" in capsys.readouterr().out
    for file in ("corruptions.json", "corruptions.csv", "corruptions.md"):
        assert (workdir / file).read_bytes() == (measured / file).read_bytes()


def test_cells_are_kept_for_other_types_and_measured_again_for_other_images(
    measured, tmp_path, monkeypatch, capsys
):
    workdir, begun = shutil.copytree(measured, tmp_path / "run"), []

    def instead(study, name, severity, progress):
        begun.append((name, severity))
        return {**cells_of(measured)[0], "type": name, "severity": severity}

    monkeypatch.setattr(corruption_study, "measure_cell", instead)
    measure_corruptions(config_of(types=("fog", "snow"), severities=(5,)), workdir)
    assert begun == [("snow", 5)] and len(cells_of(workdir)) == 6
    table = (workdir / "corruptions.md").read_text()
    assert "snow" in table and "elastic" not in table and "(1)" not in table
    capsys.readouterr()
    measure_corruptions(config_of(types=("fog",), images=1), workdir)
    assert begun[1:] == [("clean", 0), ("fog", 1), ("fog", 5)] and len(cells_of(workdir)) == 3
    said = capsys.readouterr().out
    assert "are measured again (" in said and "images: 4 -> 1" in said
    judges = types.SimpleNamespace(descriptors=np.ones(3))
    monkeypatch.setattr(corruption_study, "read_known_images", lambda *_: judges)
    measure_corruptions(config_of(types=("fog",), images=1), workdir)
    assert len(begun) == 7 and "measured again (judges: " in capsys.readouterr().out


def test_an_image_is_corrupted_alike_in_any_order():
    source = open_source("scenes", "train", images=3, size=(20, 24))
    for name in ("gaussian_noise", "elastic_transform"):
        images = CorruptedImages(source, name, 2, seed=0, constants="64")
        first = [images[index] for index in range(3)]
        again = [images[index] for index in (2, 0, 1)]
        for one, other in zip(first, again[1:] + again[:1], strict=True):
            assert np.array_equal(one["image"], other["image"])
            assert np.array_equal(one["mask"], other["mask"])
        moved = [not np.array_equal(first[i]["mask"], source[i]["mask"]) for i in range(3)]
        assert all(moved) if name == "elastic_transform" else not any(moved)
        noise = [one["image"].astype(int) - source[i]["image"] for i, one in enumerate(first)]
        assert not np.array_equal(noise[0], noise[1])
        assert len(images) == 3 and images.names == source.names


def test_trust_counts_the_pixels_that_are_drawn():
    table = np.zeros((2, 4, 3 + len(SIGNALS)), np.float32)
    table[0, :3, 0] = table[1, :1, 0] = 1
    table[0, :3, 2] = 0, 1, 1
    table[..., 3 + SIGNALS.index("least_confidence")] = 0.1
    table[0, 1:3, 3 + SIGNALS.index("least_confidence")] = 0.5
    found = trust_of(table, None, 2)
    assert found["wrong"] == 0.5 and np.isclose(found["expected"], 0.3) and found["AUROC"] == 1
    never = dict(intercepts=np.full(2, -1.0), scores=np.array([0.0]), chances=np.array([0.25]))
    flat = Calibrator(("entropy",), np.zeros(1), fitted_on={}, **never)
    found = trust_of(table, flat, 2)
    assert found["expected"] == 0.25 and found["AUROC"] == 0.5 and found["calibrated"]


def test_a_mean_is_of_numbers_that_all_types_have():
    row = dict.fromkeys(NUMBERS, 0.5)
    mean = mean_row([{**row, "AUROC": None}, {**row, "mIoU": 0.25}])
    assert mean["AUROC"] is None and mean["mIoU"] == 0.375 and mean["ECE"] == 0.5


def test_the_plot_has_a_row_for_each_type_and_no_need_of_all_numbers():
    some = {"mIoU": [0.5, 0.3], "AUROC": [0.9, None]}
    one, two = (
        robustness_plot({"mIoU": 0.6, "AUROC": None}, dict.fromkeys(names, some), (1, 5))
        for names in ("ab", "abcdef")
    )
    assert two.shape[0] > one.shape[0] and two.shape[1] == one.shape[1] and two.dtype == np.uint8


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"types": ("fgo",)}, 'unknown corruption "fgo".*Did you mean "fog"'),
        ({"types": ("frost",)}, "corruptions.types holds frost.*corruptions.frost=FOLDER"),
        ({"frost": "none"}, "none is not a folder"),
        ({"stage": "fti"}, 'unknown stage that can segment .*"fti". Known: fit'),
        ({"severities": (0, 3)}, "severities is .0, 3., but it holds a value .* from 1 to 5"),
        ({"constants": "128"}, "constants is '128', but it must be one of 224, 64"),
        ({"kinds": ("fog",)}, 'unknown option "evaluate.corruptions.kinds"'),
    ],
)
def test_options_that_are_refused(measured, given, sentence):
    before = (measured / "corruptions.json").read_bytes()
    with pytest.raises(UserError, match=sentence):
        measure_corruptions(config_of(**given), measured)
    assert (measured / "corruptions.json").read_bytes() == before


def test_runs_that_are_refused(measured, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no run. Train first"):
        measure_corruptions(config_of(), tmp_path)
    evaluations = stages.evaluations_of_run(config_of(), measured, "corruptions")
    from_files = dataclasses.replace(evaluations[0], task=type("Files", (), {"files": "a"}))
    monkeypatch.setattr(corruption_study, "evaluations_of_run", lambda *_: [from_files])
    with pytest.raises(UserError, match="read from files, which hold none of corrupted images"):
        measure_corruptions(config_of(), measured)
    monkeypatch.undo()
    workdir = shutil.copytree(measured, tmp_path / "run")
    (workdir / "corruptions.json").write_text('{"of": ')
    with pytest.raises(UserError, match=re.escape("corruptions.json cannot be read (")):
        measure_corruptions(config_of(), workdir)
