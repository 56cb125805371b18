"""The comparison of methods: which runs fit into the minutes, and what becomes of their results."""

import json
import re
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg_jax import UserError, compare
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.display.console import Display
from diffseg_jax.experiment import child_run, comparison, comparison_report, forest
from diffseg_jax.experiment.comparison import METHODS, SHORTEST, Cell, cells_of
from diffseg_jax.figures.sheets import comparison_sheet
from diffseg_jax.storage.lock import InUse

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
    write_images(folder, [(48, 64)] * 6)
    return folder


def write_images(folder, shapes):
    for part in ("images/train", "masks/train"):
        (folder / part).mkdir(parents=True)
    for index, shape in enumerate(shapes):
        scene = draw_scene(3, index, *shape)
        Image.fromarray(scene["image"]).save(folder / f"images/train/{index}.png")
        Image.fromarray(scene["mask"].astype(np.uint8)).save(folder / f"masks/train/{index}.png")
    names = [f"class {k}" for k in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps({"names": names}))


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
        monkeypatch.setattr(child_run, "run_watched", runs)
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
    table = (workdir / "table.md").read_text()
    assert "| ddp: DDP | 41.0 ± 1.0 | 3 | 40.0 |" in table
    note = "ddp, ddep: trained in the minutes that were left, which are a small part"
    assert note in table
    assert f"--config.data.path={mine}" in lines and "--minutes=40" in lines
    assert all("--minutes=" in command[-1] for command in commands)


def test_unlabelled_images_are_opened_before_anything_runs(mine, tmp_path, monkeypatch):
    compared = comparing(mine, tmp_path, unlabelled=str(tmp_path / "nowhere"))
    monkeypatch.setattr(comparison_report, "run_cells", lambda *_: pytest.fail("it runs"))
    with pytest.raises(UserError, match="nowhere"):
        comparison_report.compare_methods(compared, ["few_labels", "adm"])
    compared.require_unlabelled(["few_labels", "ddp"])  # which do not read them


def test_the_note_of_networks_is_of_those_that_had_little_time():
    rows = [{"method": name, "mIoU": 0.5} for name in ("few_labels", "ddp")] + [{"method": "adm"}]
    assert comparison_report.note_of_networks(30.0, rows).startswith("ddp: trained ")
    assert not comparison_report.note_of_networks(240.0, rows)
    assert not comparison_report.note_of_networks(30.0, rows[:1])


def test_labelled_images_fill_the_crop_of_the_config_that_reads_them(mine, tmp_path):
    compared = comparing(mine, tmp_path, minutes=1)
    command = comparison.command_of(compared, Cell("adm", 0), 1)
    assert "--config.stages.fit.augment.crop=(180, 240)" in command  # 48 x 64 within 180 x 240
    assert not any("features.short" in word for word in command)
    assert not any("augment" in w for w in comparison.command_of(compared, Cell("ddp", 0), 1))


@pytest.mark.parametrize(
    "shapes, options",
    [
        (((40, 60),), ["stages.fit.augment.crop=(160, 240)"]),
        (((40, 60), (60, 40)), ["stages.fit.augment.crop=(240, 240)", "features.short=0"]),
    ],
    ids=["one", "two"],
)
def test_the_closing_command_has_the_sizes_of_all_images(tmp_path, shapes, options):
    data = tmp_path / "my photos"
    write_images(data, [shapes[index == 5 and -1] for index in range(6)])
    compared = comparing(data, tmp_path / "runs")
    line = comparison_report.next_step(compared, [{"method": "adm"}]).splitlines()[-1]
    words = shlex.split(line)
    assert f"--config.data.path={data}" in words
    assert {f"--config.{option}" for option in options} <= set(words)
    for fold in range(3):  # wherever the image that differs is held out
        command = comparison.command_of(compared, Cell("adm", fold), 1)
        assert {f"--config.{option}" for option in options} <= set(command)


def test_the_same_command_runs_nothing_twice_and_a_failed_run_again(compared):
    _, workdir, commands = compared("--minutes=40", fails=("ddp_1",))
    assert (workdir / "ddp_2.json").exists()  # the others went on
    assert "| ddp: DDP | 41.0 ± 1.4 | 2 | 40.0 |" in (workdir / "table.md").read_text()
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


def test_methods_keep_their_order_and_run_once_however_they_are_typed(compared):
    _, _, commands = compared("--minutes=40", methods="ddep,ddp,ddp,ddep")
    assert len(commands) == 7 and commands[0][3].endswith("ddp_0")


def comparing(data, workdir, minutes=40, seed=0, unlabelled=""):
    return comparison.Comparison(
        data=str(data), unlabelled=unlabelled or str(data), minutes=minutes, folds=3, seed=seed,
        configs=str(CONFIGS), workdir=workdir, display=Display(),
    )  # fmt: skip


@pytest.mark.parametrize(
    "used, given",
    [
        (32, {"ddp_0": 6 * 3 / 8.5, "ddep_unlabelled": 6 * 3 / 8.5, "ddep_0": 6 * 2.5 / 8.5}),
        (35, {"ddp_0": 3}),  # of ddep, a fold would get 0.9 minutes
        (37.5, {}),
    ],
)
def test_the_last_networks_are_skipped_when_the_minutes_are_used_up(
    mine, tmp_path, monkeypatch, capsys, used, given
):
    methods, compared = ("few_labels", "ddp", "ddep"), comparing(mine, tmp_path)
    (tmp_path / "few_labels_0.json").write_text(json.dumps({"seconds": 60 * used, "mIoU": 0.5}))
    monkeypatch.setattr(  # each takes the minutes that it gets
        comparison, "_run", lambda _, cell, minutes: {"seconds": 60 * minutes, "mIoU": 0.5}
    )
    cells = comparison._cells(methods, 1, 1)
    comparison.run_cells(compared, cells)
    minutes = {cell.name: comparison.record_of(compared, cell).get("minutes") for cell in cells[1:]}
    found = {name: each for name, each in minutes.items() if each}
    assert found == pytest.approx(given)
    said = capsys.readouterr().out
    assert said.count("skipped, as the minutes are used up") == 3 - len(given)
    rows = {row["method"]: row for row in comparison_report.table_rows(compared, cells)}
    assert ("skipped" in rows["ddep"].get("without_numbers", "")) == ("ddep_0" not in given)


def taking(seconds, monkeypatch):
    """Runs that take what their method needs, or less where `--minutes` ends them."""

    def run(compared, cell, minutes):
        bound = np.inf if cell.method == "forest" else 60 * minutes
        return {"seconds": min(seconds.get(cell.method, bound), bound), "mIoU": 0.5}

    monkeypatch.setattr(comparison, "_run", run)


@pytest.mark.parametrize(
    "minutes, folds",
    [
        (1, {"few_labels": 1, "forest": 1}),
        (3, {"few_labels": 1, "forest": 2}),
        (6, {"few_labels": 2, "forest": 1, "ddp": 1}),
        (30, {"few_labels": 3, "forest": 3, "ddp": 2, "ddep": 2, "adm": 2}),
    ],
)
def test_all_runs_together_end_in_the_minutes(mine, tmp_path, monkeypatch, minutes, folds):
    taking({"few_labels": 123.0, "forest": 26.0}, monkeypatch)  # as measured, .docs/choosing.md
    compared = comparing(mine, tmp_path, minutes=minutes)
    cells = cells_of(NAMES, 3, minutes)
    comparison.run_cells(compared, cells)
    records = {cell: comparison.record_of(compared, cell) for cell in cells}
    used = sum(record.get("seconds", 0) for record in records.values())
    assert used <= 60 * max(minutes, 1.1)  # the forest alone cannot be shortened
    done = [cell.method for cell in cells if cell.fold is not None and records[cell]]
    assert {name: done.count(name) for name in done} == folds


def test_a_cheap_fit_leaves_time_for_the_other_methods(mine, tmp_path, monkeypatch):
    taking({"few_labels": 3000.0, "forest": 300.0}, monkeypatch)  # on a busy machine
    compared = comparing(mine, tmp_path, minutes=30)
    cells = cells_of(NAMES, 3, 30)
    comparison.run_cells(compared, cells)
    assert all(comparison.record_of(compared, cell) for cell in cells if not cell.fold)
    command = comparison.command_of(compared, Cell("few_labels", 0), 4.4)
    assert "--minutes=4.40" in command


@pytest.mark.parametrize(
    "minutes, took, given",
    [
        (10, 2.0, 3.0),  # changed copies are chosen by the minutes, so that both have as many
        (10, 3.0, 3.0),  # of a fold that the minutes ended
        (5, 2.0, 2.75),  # all that are left
        (4.3, 2.0, 2.5),  # a quarter more than the first one took
    ],
)
def test_later_folds_of_a_cheap_method_have_the_minutes_of_its_first_one(
    mine, tmp_path, monkeypatch, minutes, took, given
):
    taking({"few_labels": 60 * took}, monkeypatch)
    compared = comparing(mine, tmp_path, minutes=minutes)
    first = {"minutes": 3.0, "seconds": 60 * took, "mIoU": 0.5}
    (tmp_path / "few_labels_0.json").write_text(json.dumps(first))
    cells = [Cell("few_labels", 0), Cell("few_labels", 1), Cell("forest", 1)]
    comparison.run_cells(compared, cells)
    assert comparison.record_of(compared, cells[1])["minutes"] == pytest.approx(given)


def test_a_cheap_method_whose_first_fold_failed_takes_no_more_time(
    mine, tmp_path, monkeypatch, capsys
):
    ran = []

    def run(compared, cell, minutes):
        ran.append(cell.name)
        return {"seconds": 60.0, **({"failed": "slow"} if cell.method == "forest" else {})}

    monkeypatch.setattr(comparison, "_run", run)
    compared = comparing(mine, tmp_path)
    cells = comparison._cells(("few_labels", "forest", "ddp"), 3, 2)
    for _ in range(2):
        comparison.run_cells(compared, cells)
    folds = ["few_labels_1", "ddp_1", "few_labels_2"]
    assert ran == ["few_labels_0", "forest_0", "ddp_0", *folds, "forest_0"]
    assert capsys.readouterr().out.count("is skipped, as the first fold failed") == 4


@pytest.mark.parametrize("minutes, noted", [(1, True), (3, True), (30, False)])
def test_the_announcement_says_where_the_minutes_may_be_too_few(mine, tmp_path, minutes, noted):
    compared = comparing(mine, tmp_path, minutes=minutes)
    cells = cells_of(NAMES, 3, minutes)
    said = comparison.announcement(compared, compared.images(0), cells, ())
    assert f"at most {len(cells)} runs in about {minutes} minutes; those that do not fit" in said
    assert ("may be exceeded" in said) == noted


def test_a_network_alone_is_trained_however_few_the_minutes_are(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_run", lambda *_: {"seconds": 90.0, "mIoU": 0.5})
    compared = comparing(mine, tmp_path, minutes=1)
    comparison.run_cells(compared, cells_of(["ddep"], 3, 1))
    assert comparison.record_of(compared, Cell("ddep", 0))["minutes"] > 0.4


def test_a_run_that_a_killed_comparison_left_is_waited_for(compared, monkeypatch, capsys):
    looks = iter((1, 1, 0))

    def require_free(folder, task, flag):
        if next(looks, 0):
            raise InUse(f"{folder} is in use")

    monkeypatch.setattr(child_run, "require_free", require_free)
    monkeypatch.setattr(child_run, "POLL", 0)
    _, _, commands = compared("--minutes=40", methods="ddp")
    assert "waits for a run that goes on" in capsys.readouterr().out and len(commands) == 3


def test_a_run_that_a_signal_ended_says_so(tmp_path):
    program = "import os; print('step 3'); os.kill(os.getpid(), 9)"
    lines, command = [], ["-Sc", program]
    record = child_run.record_of_command(command, tmp_path / "log", tmp_path, "train", lines.append)
    assert lines == ["  step 3"] and record["command"].startswith("python -Sc ")
    assert record["failed"] == "was ended by signal 9 (Killed); perhaps the memory was full"
    record = child_run.record_of_command(
        ["-Sc", "raise SystemExit(3)"], tmp_path / "log", tmp_path, "train", lines.append
    )
    assert record["failed"] == "exit code 3"


def test_the_table_fits_a_terminal():
    row = {
        "method": "few_labels", "title": "", "folds": 2, "mIoU": 0.99, "mIoU_of_folds": [1.0, 0.98],
        "AUROC": 0.9, "ECE": 0.1, "linear_probe": 0.5, "seconds": 3000.0, "peak_bytes": 999e9,
        "unlabelled_seconds": 36000.0,
    }  # fmt: skip
    lines = comparison_report.lines_of_methods([row]).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 4


def test_the_forest_takes_the_seed_and_stops_no_other_method(mine, tmp_path, monkeypatch, capsys):
    compared, seeds = comparing(mine, tmp_path, seed=7), []

    def result(source, indices, held_out, held_out_indices, seed, display, seconds):
        seeds.append(seed)
        if len(seeds) > 1:
            raise UserError("no pixel of the labelled images is labelled.")
        labels = {int(index): np.zeros((48, 64), np.int32) for index in held_out_indices}
        return {"mIoU": None, "AUROC": None, "calibration": {"ECE": None}}, labels

    monkeypatch.setattr(comparison, "forest_result", result)
    cells = [Cell("forest", 0), Cell("forest", 1)]
    comparison.run_cells(compared, cells)
    first, second = (comparison.record_of(compared, cell) for cell in cells)
    assert seeds == [7, 7] and first["mIoU"] is None and "mIoU -" in capsys.readouterr().out
    assert "no pixel" in second["failed"] and second["seconds"] > 0


def test_the_time_of_a_stopped_run_counts(mine, tmp_path, monkeypatch, capsys):
    compared = comparing(mine, tmp_path, minutes=60)
    monkeypatch.setattr(child_run, "run_watched", Runs())
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
        (["--workdir=gs://b/x"], "--workdir is gs://b/x, but this command writes to a folder"),
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
    for other in ("--minutes=40", "--seed=1"), ("--minutes=50",):
        with pytest.raises(SystemExit):
            compared(*other, methods="ddp")


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
    display = Recorder(quiet=True)
    result, labels = forest.forest_result(Halves(), [0, 1], Halves(), [2], 0, display)
    assert result["AUROC"] is None or 0 <= result["AUROC"] <= 1  # not NaN, which JSON lacks
    assert result["mIoU"] > 0.9
    assert (labels[2] == Halves()[2]["mask"]).mean() > 0.95
    assert [(shown.what, shown.done, shown.total) for shown in display.shown] == [
        ("forest: reads images", 2, 2),
        ("forest: grows trees", 50, 50),
        ("forest: measures images", 1, 1),
    ]


def test_trees_grown_in_parts_are_those_grown_at_once(monkeypatch):
    pytest.importorskip("sklearn", reason='needs the extra "compare"')
    made = []
    for at_once in (10, 50):
        monkeypatch.setattr(forest, "GROWN_AT_ONCE", at_once)
        made.append(forest.fit_forest(Halves(), [0, 1], Display(quiet=True), seed=3))
    responses = forest.filter_responses(Halves()[2]["image"])
    probs = [forest.forest_probabilities(each, responses, 2) for each in made]
    assert np.array_equal(*probs)


def test_a_forest_that_cannot_end_in_time_says_so_early(monkeypatch):
    pytest.importorskip("sklearn", reason='needs the extra "compare"')
    clock, read = iter(range(0, 10**6, 40)), []
    images = Halves() * 10
    monkeypatch.setattr(
        forest, "_labelled_pixels", lambda *_: (read.append(1), np.zeros(1, np.int32))
    )
    display = Display(quiet=True, clock=lambda: next(clock))
    with pytest.raises(UserError, match="has 3 min 00 s. Give more --minutes, in another --wo"):
        forest.fit_forest(images, range(30), display, seconds=180.0)
    assert len(read) < 5


class Recorder(Display):
    """Keeps the activities that it shows."""

    def __init__(self, **options):
        super().__init__(**options)
        self.shown = []

    def progress(self, *arguments, **options):
        self.shown.append(super().progress(*arguments, **options))
        return self.shown[-1]


def test_trees_and_their_pixels_are_drawn_by_the_seed(monkeypatch):
    def fit_forest(source, indices, display, seed, seconds):
        raise UserError(f"drawn by {seed}")

    monkeypatch.setattr(forest, "fit_forest", fit_forest)
    with pytest.raises(UserError, match="drawn by 7"):
        forest.forest_result(Halves(), [0], Halves(), [2], 7, Display(quiet=True))


def test_a_forest_without_labels_is_one_sentence():
    pytest.importorskip("sklearn", reason='needs the extra "compare"')
    empty = {"image": np.zeros((8, 8, 3), np.uint8), "mask": np.full((8, 8), 255, np.int32)}
    with pytest.raises(UserError, match="no pixel"):
        forest.fit_forest([empty], [0], Display(quiet=True))


def test_a_folder_of_depth_is_no_set_of_classes(tmp_path):
    folder = tmp_path / "my photos"
    (folder / "depth").mkdir(parents=True)
    with pytest.raises(UserError, match="holds depth, but compare compares methods for cl") as said:
        comparison.usual_folds(str(folder), str(CONFIGS))
    assert f"'--config.data.path={folder}'" in str(said.value)  # can be typed as it stands
