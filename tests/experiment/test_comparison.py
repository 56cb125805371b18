"""The comparison of methods: which runs fit into the minutes, and what becomes of their results."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg_jax import UserError, compare
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.display.console import Display
from diffseg_jax.experiment import comparison, comparison_report, forest
from diffseg_jax.experiment.comparison import METHODS, SHORTEST, Cell, cells_of
from diffseg_jax.figures.sheets import comparison_sheet

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = list(METHODS)
CLASSES = 9  # of scenes


def time_of(cells, minutes):
    one = (1 - comparison.TABLE_SHARE) * minutes / sum(cell.weight for cell in cells)
    return {cell: one * cell.weight for cell in cells}


@pytest.mark.parametrize("minutes", (3, 10, 30, 90))
def test_every_network_has_time_to_learn_and_nothing_is_run_twice(minutes):
    cells = cells_of(NAMES, 3, minutes)
    assert len(set(cells)) == len(cells)
    assert all(
        given >= SHORTEST for cell, given in time_of(cells, minutes).items() if cell.fills_its_time
    )
    kept = [name for name in NAMES if any(cell.method == name for cell in cells)]
    assert kept == NAMES[: len(kept)]  # dropped from the end
    assert [cell.fold for cell in cells if cell.method == "few_labels"] == [0, 1, 2]


def test_more_minutes_never_drop_a_method():
    few = 0
    for minutes in range(2, 120, 4):
        many = len({cell.method for cell in cells_of(NAMES, 3, minutes)})
        assert few <= many
        few = many
    assert few == len(NAMES)


def test_what_is_learned_without_labels_is_learned_once_and_first():
    cells = cells_of(NAMES, 3, 120)
    for name in ("ddep", "adm"):
        mine = [cell for cell in cells if cell.method == name]
        assert mine == [Cell(name, None), *(Cell(name, fold) for fold in range(3))]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for part in ("images/train", "masks/train"):
        (folder / part).mkdir(parents=True)
    for index in range(6):
        scene = draw_scene(3, index, 48, 64)
        Image.fromarray(scene["image"]).save(folder / f"images/train/{index}.png")
        Image.fromarray(scene["mask"].astype(np.uint8)).save(folder / f"masks/train/{index}.png")
    names = [f"class {k}" for k in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps({"names": names}))
    return folder


class Runs:
    """Stands in for the runs of `diffseg_jax.main`: writes the results that they leave."""

    def __init__(self, fails=()):
        self.fails, self.commands = fails, []

    def __call__(self, command, log, say):
        self.commands.append(command)
        options = dict(re.findall(r"--([\w.]+)=(.*)", "\n".join(command)))
        workdir = Path(options["workdir"])
        usage = types.SimpleNamespace(ru_utime=2.0, ru_stime=1.0, ru_maxrss=10**6)
        if any(workdir.name.startswith(name) for name in self.fails):
            return 2, usage, "error: the masks are wrong. Look at them."
        stages = re.findall(r"\w+", options["config.run"])
        (workdir / "checkpoints" / stages[-1] / "1").mkdir(parents=True, exist_ok=True)
        score = 0.4 + 0.01 * int(options["config.data.fold"])
        result = {"mIoU": score, "AUROC": None, "calibration": {"ECE": 0.1}}
        (workdir / "results.json").write_text(json.dumps({stages[-1]: result}))
        return 0, usage, "finished"


@pytest.fixture
def compared(mine, tmp_path, monkeypatch):
    """A function that compares methods by stand-ins of runs: (lines, workdir, runs)."""

    def run(*arguments, fails=(), methods="ddp,ddep"):
        runs, lines = Runs(fails), []
        monkeypatch.setattr(comparison, "run_watched", runs)
        monkeypatch.setattr(comparison, "first_has_checkpoint", Path.exists)
        monkeypatch.setattr(comparison_report, "draw_sheet", lambda *_: None)
        monkeypatch.setattr("builtins.print", lambda text="", **_: lines.append(text))
        workdir = tmp_path / "compared"
        compare.main([
            f"--data={mine}", f"--workdir={workdir}", f"--methods={methods}",
            f"--configs={CONFIGS}", *arguments,
        ])  # fmt: skip
        return "\n".join(lines), workdir, runs.commands

    return run


def test_the_table_has_the_mean_over_folds_and_the_command_goes_on(compared, mine):
    lines, workdir, commands = compared("--minutes=40")
    assert len(commands) == 7  # three folds of both, and the pretraining once
    assert "| ddp: DDP | 41.0 ± 1.0 | 40.0 |" in (workdir / "table.md").read_text()
    assert f"--config.data.path={mine}" in lines and "--minutes=40" in lines
    assert all("--minutes=" in command[-1] for command in commands)


def test_labelled_images_fill_the_crop_of_the_config_that_reads_them(mine, tmp_path):
    compared = comparison.Comparison(
        data=str(mine), unlabelled=str(mine), minutes=1, folds=3, seed=0, configs=str(CONFIGS),
        workdir=tmp_path, display=Display(),
    )  # fmt: skip
    command = comparison.command_of(compared, Cell("adm", 0), 1)
    assert "--config.stages.fit.augment.crop=(180, 240)" in command  # 48 x 64 within 180 x 240
    assert not any("features.short" in word for word in command)
    assert not any("augment" in w for w in comparison.command_of(compared, Cell("ddp", 0), 1))


def test_the_same_command_runs_nothing_twice_and_a_failed_run_again(compared):
    _, workdir, commands = compared("--minutes=40", fails=("ddp_1",))
    assert (workdir / "ddp_2.json").exists()  # the others went on
    lines, _, again = compared("--minutes=40")
    assert [command[3] for command in again] == [f"--workdir={workdir / 'ddp_1'}"]
    minutes = {command[3]: command[-1] for command in commands}
    assert again[0][-1] == minutes[again[0][3]]  # a run that stopped keeps its minutes


def test_the_time_of_a_failed_run_is_used_up(compared):
    _, workdir, _ = compared("--minutes=40", fails=("ddp_0",))
    assert json.loads((workdir / "ddp_0.json").read_text())["seconds"] > 0


def test_a_fold_without_a_number_does_not_break_the_table(compared, monkeypatch):
    monkeypatch.setattr(comparison, "_chosen_numbers", lambda result: {"mIoU": None})
    with pytest.raises(SystemExit):
        compared("--minutes=40", methods="ddp")


def test_the_time_of_a_stopped_run_counts(mine, tmp_path, monkeypatch, capsys):
    compared = comparison.Comparison(
        data=str(mine), unlabelled=str(mine), minutes=60, folds=3, seed=0, configs=str(CONFIGS),
        workdir=tmp_path, display=Display(),
    )  # fmt: skip
    monkeypatch.setattr(comparison, "run_watched", Runs())
    (tmp_path / "ddp_0").mkdir()
    (tmp_path / "ddp_0" / "time_budget.json").write_text('{"minutes": 30, "used": 600}')
    (tmp_path / "ddp_0.json").write_text('{"minutes": 30}')
    comparison.run_cells(compared, [Cell("ddp", 0)])
    assert "47 min 00 s left" in capsys.readouterr().out  # of 57
    assert comparison.record_of(compared, Cell("ddp", 0))["seconds"] == 600


def test_the_sheet_shows_every_method_beside_the_truth():
    labels = Labels(("a", "b"), ((10, 20, 30), (200, 100, 50)))
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.int32)
    sheets = [
        comparison_sheet([image], [mask], {f"m{i}": [mask + 1] for i in range(count)}, labels)
        for count in (1, 2)
    ]
    shown = [(sheet == (200, 100, 50)).all(-1).sum() for sheet in sheets]
    assert shown[1] > 1.8 * shown[0] > 0 and sheets[1].shape[1] > sheets[0].shape[1]


def test_a_method_that_fails_is_a_row_that_says_why(compared):
    _, workdir, _ = compared("--minutes=40", fails=("ddep_0", "ddep_1", "ddep_2"))
    table = (workdir / "table.md").read_text()
    assert "denoising pretraining (DeP) | failed: the masks are wrong. Look at them." in table
    assert "| ddp: DDP | 41.0" in table


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--methods=ddpp"], 'Did you mean "ddp"'),
        (["--data=nowhere"], "nowhere"),
        (["--minutes=0"], "--minutes is 0"),
        (["--configs=nowhere"], "nowhere"),
        (["--methods=,"], "no method is named"),
        (["--folds=1"], "Try --folds=3"),
    ],
)
def test_mistakes_are_one_sentence(mine, tmp_path, arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare.main([f"--data={mine}", f"--workdir={tmp_path / 'w'}", *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_another_comparison_is_not_mixed_in(compared):
    compared("--minutes=40", methods="ddp")
    with pytest.raises(SystemExit):
        compared("--minutes=40", "--seed=1", methods="ddp")


class Halves(list):
    """Images with a dark and a bright half, which are the classes."""

    labels = types.SimpleNamespace(names=("dark", "bright"))

    def __init__(self):
        for index in range(3):
            mask = np.zeros((24, 32), np.int32)
            mask[:, 8 + 8 * index :] = 1
            noise = np.random.default_rng(index).integers(0, 60, (24, 32, 3))
            image = (noise + 150 * mask[..., None]).astype(np.uint8)
            self.append({"image": image, "mask": mask})


def test_a_forest_learns_what_filters_show():
    pytest.importorskip("sklearn", reason='needs the extra "compare"')
    result, labels = forest.forest_result(Halves(), [0, 1], Halves(), [2])
    assert result["AUROC"] is None or 0 <= result["AUROC"] <= 1  # not NaN, which JSON lacks
    assert result["mIoU"] > 0.9
    assert (labels[2] == Halves()[2]["mask"]).mean() > 0.95


def test_a_forest_without_labels_is_one_sentence():
    pytest.importorskip("sklearn", reason='needs the extra "compare"')
    empty = {"image": np.zeros((8, 8, 3), np.uint8), "mask": np.full((8, 8), 255, np.int32)}
    with pytest.raises(UserError, match="no pixel"):
        forest.fit_forest([empty], [0])


def test_a_folder_of_depth_is_no_set_of_classes(tmp_path):
    (tmp_path / "depth").mkdir()
    with pytest.raises(UserError, match="holds depth, but compare compares methods for classes"):
        comparison.usual_folds(str(tmp_path), str(CONFIGS))
