"""Studies: which runs their cells need, and mistakes in their files."""

import contextlib
import os
import pty
import re
import termios
from importlib import metadata

import pytest

from diffseg_jax import UserError, study
from diffseg_jax.data.sources import open_source
from diffseg_jax.experiment import child_run, labelled_images, study_cells, study_claim, study_runs
from diffseg_jax.experiment.corruption_report import NUMBERS
from diffseg_jax.experiment.study_cells import (
    cells_of_study,
    command_of_cell,
    command_of_run,
    config_of,
    corruptions_of,
    folder_of_run,
    require_data,
    runs_of,
)
from diffseg_jax.experiment.study_file import read_study
from diffseg_jax.experiment.study_progress import listing
from diffseg_jax.systems.recipes import RECIPES
from study_case import ONE, ROOT, Runs

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.py"))


# ---- cells and runs ----------------------------------------------------------------------------


def test_what_cells_have_in_common_is_run_once_and_one_seed_of_all_cells_comes_first(write):
    cells = cells_of_study(read_study(write()))
    assert [cell.seed for cell in cells] == ["0"] * 4 + ["1"] * 4
    assert [cell.labels for cell in cells[:3]] == [("none", "2"), ("DeP", "2"), ("none", "4")]
    names = [run.name for run in runs_of(cells)]
    assert len(names) == len(set(names)) == 9 and names.count("pretrain") == 1
    before = {cell.run.before and cell.run.before.name for cell in cells}
    assert before == {None, "pretrain"}


def test_a_study_typed_in_another_folder_finds_its_base_config(tmp_path, monkeypatch):
    typed = ROOT / "configs/studies/denoising_bars.py"
    monkeypatch.chdir(ROOT)
    here = read_study(str(typed))
    monkeypatch.chdir(tmp_path)
    elsewhere = read_study(str(typed))
    assert (here.base, elsewhere.base) == ("configs/ddep_scenes.py:dep", f"{ROOT}/{here.base}")
    (tmp_path / "study").mkdir()
    study_claim.claim_study(elsewhere, tmp_path / "study")
    monkeypatch.chdir(ROOT)
    study_claim.require_same_study(here, tmp_path / "study")


def test_options_of_all_cells_reach_those_whose_stages_are_all_shared(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = "configs/studies/steps.py:scenes"
    typed = {"evaluate.images": "20", "evaluate.flip": True, "sampling.draws": "4"}
    cells = cells_of_study(read_study(file, typed.items()))
    assert {cell.labels[0] for cell in cells} == {"train", "align", "longer"}
    assert all(typed.items() <= cell.run.options.items() for cell in cells)
    names = lambda cells: [run.name for run in runs_of(cells)]
    assert names(cells) == names(cells_of_study(read_study(file)))


def test_an_option_that_an_axis_varies_does_not_reach_a_shared_stage_that_does_not_read_it(write):
    options = {"data.count": 6, "data.fraction": 1.0}
    cells = cells_of_study(read_study(write(options=options)))
    (shared,) = {run.name: run.options for run in runs_of(cells) if run.name == "pretrain"}.values()
    assert "data.count" not in shared and shared["data.fraction"] == 1.0


def test_a_stage_is_shared_only_where_it_reads_the_same(write):
    axes = {"noise.low": (0.1, 0.22), "data.count": (2, 4)}
    options = {"run": ("pretrain", "finetune"), "noise.kind": "scaled"}
    cells = cells_of_study(read_study(write(axes=axes, options=options)))
    assert {cell.run.before.name for cell in cells} == {"pretrain-0.1", "pretrain-0.22"}
    seeded = cells_of_study(read_study(write(shared={"pretrain": ("data",)}, options=options)))
    mine = {cell.run.before.name for cell in seeded if cell.run.before}
    assert mine == {"pretrain-seed0", "pretrain-seed1"}


def test_a_command_starts_from_the_shared_run_and_reads_as_typed(write, tmp_path):
    one = read_study(write())
    run = next(cell.run for cell in cells_of_study(one) if cell.labels == ("DeP", "4"))
    command = command_of_run(one, run, tmp_path)
    before = tmp_path / "runs" / "pretrain" / "checkpoints" / "pretrain"
    assert f"--config.stages.finetune.start={before}" in command
    typed = {"--config.run=('finetune',)", "--config.data.count=4", "--config.seed=0"}
    assert typed <= set(command)


def test_options_of_a_point_of_all_axes_are_those_of_its_cells_alone(write):
    combined = {("DeP", "4"): {"noise.low": 0.1}, ("none", "2"): {"data.train": "train"}}
    one = read_study(write(combined=combined))
    cells = cells_of_study(one)
    lows = {cell.labels: config_of(one, cell.run.options).noise.low for cell in cells}
    others = {low for labels, low in lows.items() if labels != ("DeP", "4")}
    assert lows["DeP", "4"] == 0.1 and others == {0.22}
    befores = {cell.labels: cell.run.before and cell.run.before.name for cell in cells}
    assert befores["DeP", "4"] == "pretrain-DeP-4" and befores["DeP", "2"] == "pretrain"


def test_the_main_table_gives_every_set_the_networks_of_its_images(monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read_study("configs/studies/ddpm_seg_sources.py:published")
    cells = {cell.labels: cell for cell in cells_of_study(one)}
    assert len(cells) == 4 * 6
    horse = config_of(one, cells["MAE", "Horse-21"].run.options)
    assert horse.data.source == "horse_21"
    assert horse.features.sources == ("mae=weights/mae_lsun_horse.pth",)
    faces = config_of(one, cells["DDPM", "CelebA-19"].run.options)
    assert (faces.data.source, faces.weights) == ("celeba_19", "weights/ffhq.pt")


def test_a_network_is_measured_with_every_point_of_an_evaluated_axis(write):
    axes = {"evaluate.flip": (False, True), "data.count": (2, 4)}
    one = read_study(write(axes=axes, options={"run": ("scratch",)}, evaluated=("evaluate.flip",)))
    cells = cells_of_study(one)
    modes = {(cell.labels[0], cell.mode) for cell in cells}
    assert len(runs_of(cells)) == 4  # each of which measures the point of its config itself
    assert modes == {("False", "train"), ("True", "eval")}


@pytest.mark.parametrize(
    ("stage", "typed", "measured"),
    [("", {}, "finetune"), ("scratch", {}, "scratch"),
     ("", {"evaluate.corruptions.stage": "scratch"}, "scratch")],
)  # fmt: skip
def test_corrupted_images_are_measured_with_the_stage_of_the_table(write, stage, typed, measured):
    options = {"run": ("scratch", "finetune"), **typed}
    axes = {"corruption": {"clean": {}, "fog": {"evaluate.corruptions.types": ("fog",)}}}
    one = read_study(write(axes=axes, evaluated=("corruption",), options=options, stage=stage))
    for cell in cells_of_study(one):
        command = command_of_cell(one, cell, ROOT)
        assert f"--config.evaluate.corruptions.stage={measured}" in command


def test_a_point_without_options_of_corruptions_is_clean_whatever_other_axes_set(write):
    group = "evaluate.corruptions."
    axes = {
        "type": {"clean": {}, "fog": {f"{group}types": ("fog",)}, "all": {f"{group}types": ()}},
        "severity": {"weak": {f"{group}severities": (1,)}, "strong": {f"{group}severities": (5,)}},
        "evaluate.flip": (False, True),
    }
    one = read_study(write(axes=axes, evaluated=tuple(axes), options={"run": ("scratch",)}))
    cells = cells_of_study(one)
    assert {cell.labels for cell in cells if cell.is_clean} == {
        ("clean", severity, flip) for severity in ("weak", "strong") for flip in ("False", "True")
    }
    found = {cell.labels[:2]: corruptions_of(one, cell) for cell in cells}
    assert found["clean", "strong"] == [("clean", 0)] and found["fog", "strong"] == [("fog", 5)]
    assert len(found["all", "weak"]) > 10
    clean, fog = (command_of_cell(one, cell, ROOT) for cell in cells[:2])
    assert clean == fog  # of clean images and weak fog, which one command measures


@pytest.mark.parametrize("other", ["frost", "constants"])
def test_axes_without_types_or_severities_do_not_make_a_point_clean(write, other):
    value = {"frost": "photos", "constants": 64}[other]
    axes = {
        other: {"usual": {}, "other": {f"evaluate.corruptions.{other}": value}},
        "corruption": CORRUPTION,
    }
    one = read_study(write(axes=axes, evaluated=tuple(axes), options={"run": ("scratch",)}))
    clean = {cell.labels: cell.is_clean for cell in cells_of_study(one)}
    assert clean == {(a, b): b == "clean" for a in ("usual", "other") for b in CORRUPTION}


def test_another_axis_may_choose_the_stage_that_is_measured_on_corrupted_images(write):
    stage = "evaluate.corruptions.stage"
    axes = {
        "stage": {name: {stage: name} for name in ("scratch", "finetune")},
        "corruption": {"fog": {"evaluate.corruptions.types": ("fog",)}},
    }
    options = {"run": ("scratch", "finetune")}
    for shared in ({}, {"scratch": ("evaluate",), "finetune": ("evaluate",)}):
        fields = dict(axes=axes, evaluated=("corruption",), options=options, shared=shared)
        cells = cells_of_study(read_study(write(**fields)))
        assert all(cell.measured[stage] == cell.labels[0] for cell in cells)


def test_a_cell_that_a_shared_run_measures_keeps_the_options_of_measuring(write):
    fields = dict(options={"run": ("scratch",)}, seeds={"seed": (0, 1)})
    fields["shared"] = {"scratch": ("evaluate", "seed")}
    axes = {"evaluate.short": (8, 16)}
    with pytest.raises(UserError, match="cell 8-seed0: the run scratch, .* its evaluate.short. S"):
        cells_of_study(read_study(write(**fields, axes=axes)))
    one = read_study(write(**fields, axes=axes, evaluated=("evaluate.short",)))
    assert {cell.measured["evaluate.short"] for cell in cells_of_study(one)} == {8, 16}
    (run,) = runs_of(cells_of_study(one))  # which no seed changes
    assert run.name == "scratch"


def test_numbers_of_numpy_are_those_of_python(write, tmp_path):
    write(options={"run": ("scratch",)}, shared={}, axes={"noise.low": (0.1, 0.3)})
    file = tmp_path / "one.py"
    text = file.read_text().replace("(0.1, 0.3)", "tuple(np.geomspace(0.1, 0.3, 2))")
    file.write_text("import numpy as np\n" + text.replace("(0, 1)", "tuple(np.arange(2))"))
    one = read_study(str(file))
    assert [cell.labels for cell in cells_of_study(one)[:2]] == [("0.1",), ("0.3",)]
    study_claim.claim_study(one, tmp_path)  # JSON values
    assert type(one.axes[0].points["0.1"]["noise.low"]) is float
    assert type(one.seeds.points["1"]["seed"]) is int


def test_repetitions_are_called_by_the_first_option_whose_values_differ(write):
    seeds = {"seed": (0, 0, 0), "data.subset_seed": (4, 5, 6)}
    cells = cells_of_study(read_study(write(seeds=seeds)))
    assert list(dict.fromkeys(cell.seed for cell in cells)) == ["4", "5", "6"]
    assert len(runs_of(cells)) == 1 + 12


@pytest.mark.parametrize(("step", "in_all"), [(1000, "2.86 hours"), (100, "52 min")])
def test_the_list_has_every_cell_and_the_time_of_all(step, in_all, write, tmp_path, capsys):
    seconds = dict(start=100, pretrain=step, finetune=10, scratch=20, image=1, images=50)
    study.main([f"--config={write(seconds=seconds)}", f"--workdir={tmp_path / 'w'}", "--dry-run"])
    text = capsys.readouterr().out
    total = (150 + 8 * step) + 4 * (150 + 8 * 10) + 4 * (150 + 8 * 20)
    assert in_all in (f"{total / 3600:.2f} hours", f"{total / 60:.0f} min")
    assert f"in all about {in_all} on " in text and text.count("seed1\n") == 4
    assert not (tmp_path / "w").exists()


def test_the_list_and_an_error_end_their_lines_between_words_in_a_terminal(
    write, tmp_path, monkeypatch
):
    about = " ".join(["some words"] * 12)
    for flags, said in (([], about), (["--config.seed=1"], "error: --config.seed is given")):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 60))
        with open(theirs, "w") as stream, contextlib.suppress(SystemExit):
            monkeypatch.setattr("sys.stdout", stream)
            monkeypatch.setattr("sys.stderr", stream)
            typed = [f"--config={write(about=about, **ONE)}", f"--workdir={tmp_path}", "--dry-run"]
            study.main([*typed, *flags])
        lines = os.read(ours, 65536).decode().splitlines()
        os.close(ours)
        assert all(len(line) <= 60 for line in lines if " " in line.strip())  # not of a long path
        assert said in " ".join(line.strip() for line in lines)


def in_minutes(time):
    """Of all that is named in a study's estimate, also of what is made by other commands."""
    return sum(int(each) for each in re.findall(r"(\d+) min", time)) + 10**6 * ("hours" in time)


@pytest.mark.parametrize("file", STUDIES, ids=[file.stem for file in STUDIES])
def test_every_study_has_cells_whose_configs_are_right(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    presets = re.search(r"PRESETS = \((.*?)\)", file.read_text(), re.DOTALL)[1]
    presets = re.findall(r"\w+", presets)
    for preset in presets:
        one = read_study(f"configs/studies/{file.name}:{preset}")
        cells = cells_of_study(one)
        seen = [set() for _ in (*one.axes, one.seeds)]
        for cell in cells:  # all labels of every axis
            labels = *cell.labels, cell.seed
            if any(label not in each for label, each in zip(labels, seen, strict=True)):
                study_runs.check_cells(one, [cell])
                for label, each in zip(labels, seen, strict=True):
                    each.add(label)
        time = listing(one, cells, tmp_path).split("in all about ")[1]
        most = {"scenes": 15, "camvid": 90}.get(preset.rpartition("_")[2])
        assert most is None or "one CPU core" in time and in_minutes(time) <= most, preset
    assert "scenes" in presets


def test_a_study_of_corruptions_collects_what_clean_and_corrupted_images_have(monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read_study("configs/studies/robustness.py:horse21")
    modes = {cell.labels[1]: cell.mode for cell in cells_of_study(one)}
    assert modes == dict.fromkeys(("clean", "weak", "medium", "strong"), "corruptions")
    assert set(one.collect) <= set(NUMBERS)


@pytest.mark.parametrize("preset", ["scenes", "camvid", "folder", "ffhq34"])
def test_the_grid_of_blocks_has_all_that_the_network_has(preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read_study(f"configs/studies/ddpm_seg_blocks.py:{preset}")
    model = config_of(one, one.options).model
    assert len(one.axes[0].points) == len(model.channel_mult) * (model.res_blocks + 1)


def test_aligning_and_training_longer_continue_the_network_that_is_measured(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    one = read_study("configs/studies/steps.py:camvid_full")
    runs = {run.name: run for run in runs_of(cells_of_study(one))}
    assert config_of(one, {}).evaluate.checkpoint == "last"
    for name in ("align-seed0", "longer-seed0"):
        before = f"{tmp_path}/runs/train-seed0/checkpoints/train@last"
        command = command_of_run(one, runs[name], tmp_path)
        assert f"--config.stages.align.start={before}" in command


def test_features_are_kept_of_the_images_that_the_subsets_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read_study("configs/studies/ddpm_seg_labels.py:camvid")
    kept = [run for run in runs_of(cells_of_study(one)) if run.mode == "features"]
    data = [config_of(one, run.options).data for run in kept]
    assert [(each.count, each.subset_seed) for each in data] == [(40, 0), (40, 1), (40, 2)]
    assert {folder_of_run(ROOT, run) for run in kept} == {ROOT / "runs/features"}  # in one folder


def test_no_two_bars_without_weights_are_the_same(monkeypatch):
    monkeypatch.chdir(ROOT)
    for preset in ("scenes", "camvid", "camvid_full", "folder"):
        points = read_study(f"configs/studies/denoising_bars.py:{preset}").axes[0].points
        started = [{**each, "pretrain": "none"} if each["run"] == ("finetune",) else each
                   for each in points.values()]  # fmt: skip
        assert all(started.count(each) == 1 for each in started)


@pytest.mark.parametrize("preset", ["scenes", "camvid", "bedroom28", "ffhq34"])
def test_columns_of_the_study_of_noise_differ_in_noise_and_not_in_steps(preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read_study(f"configs/studies/ddpm_seg_noise.py:{preset}")
    for cell in cells_of_study(one)[:4]:
        recipe = RECIPES[config_of(one, cell.run.options).ensemble.recipe]
        assert recipe.length(10**6) == recipe.length(8 * 10**6)


# ---- mistakes ----------------------------------------------------------------------------------


CORRUPTION = {"clean": {}, "strong": {"evaluate.corruptions.severities": (5,)}}
CORRUPTED_STAGE = "evaluate.corruptions.stage"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (dict(axes={"data.cuont": (1, 2)}), "cell 1-seed0: .*no option data.cuont"),
        (dict(axes={"data.count": ("many",)}), "cell many-seed0: .*must be a whole number"),
        (dict(axes={"data.count": 4}), "must be a tuple of values"),
        (dict(axes={"a": {"x": {"seed": 1}}, "b": {"y": {"seed": 2}}}), "both set seed"),
        (dict(seeds={"seed": (0, 1), "data.subset_seed": (0,)}), "tuples of one length"),
        (dict(axes={"a": {"x": {"seed": 1}}}), "axes a and seeds both set seed"),
        (dict(collect=()), "collect of .* is empty"),
        (dict(shared={"pretain": ("data",)}), 'unknown stage in shared .* "pretain"'),
        (dict(shared={"pretrain": "seed"}), "'seed' at pretrain, but it must be a tuple"),
        (dict(shared={"pretrain": ("evalute",)}), "no option evalute.*evaluate"),
        (dict(features={"data.count": 0}), "does not say on which options"),
        (dict(plot="pie"), "unknown plot"),
        (dict(evaluated=("steps",)), "unknown axis"),
        (dict(colect=("mIoU",)), "unknown field"),
        (dict(combined={("DeP", "3"): {}}), r"at \('DeP', '3'\), but .* \('none', '2'\)"),
        (dict(combined={"DeP": {}}), "a label of every axis"),
        (dict(axes={"data.count": (2, 4)}, combined={"2": {}}), r"at '2', .* such as \('2',\)"),
        (dict(combined={("DeP", "4"): {"data.count": 3}}), "and combined both set data.count"),
        (dict(combined={("DeP", "4"): {"noise.lwo": 3}}), "cell DeP-4-seed0: .*noise.lwo"),
        (dict(axes={"data.path": ("a/b", "a b")}), "would be called"),
        (dict(axes={"noise.low": (1.00001e-4, 1.00002e-4)}), "two points that are called 0.0001"),
        (dict(axes={"a": {1: {}, "1": {}}}), "axis a has two points that are called 1"),
        (dict(axes={"a": {"x": {3: 1}}}), "sets {3: 1} at x, but it must be a dict of options"),
        (dict(axes={"a": {"x": {"run": ("scrach",)}}}), 'cell x-seed0: .*in run "scrach"'),
        (dict(axes={"a": {"x": {"run": ()}}}), r"cell x-seed0: run is \(\), so nothing"),
        (dict(seconds={"start": "20"}), "seconds of .* are '20' at start"),
        (dict(seconds={"start": True}), "seconds of .* are True at start"),
        (dict(collect=("mIoU", 3)), "collect of .* holds 3, but it must hold text"),
        (dict(titles={"mIoU": 3}), "titles of .* holds 3"),
        (dict(options={3: 4}), "options of .* holds 3"),
        (dict(shared={"pretrain": (3,)}), r"\(3,\) at pretrain, but it must be a tuple"),
        (dict(seeds={"seed": (0, 0), "data.subset_seed": (1, 1)}), "one option must all differ"),
        (dict(seeds={"seed": ()}), "must be one or more"),
        (dict(axes={"data.list_path": (None, "a.txt")}), "of axis data.list_path is None, but it"),
        (dict(options={"data.path": {}}), "data.path of options is {}, but it must be a number"),
        (dict(axes={"corruption": CORRUPTION}), "severities is set by corruption, but it is read"),
        (dict(axes={"a": {"x": {CORRUPTED_STAGE: "scratch"}}}), "stage is set by a, but it is"),
        (dict(seeds={"evaluate.corruptions.images": (4, 6)}), "images is set by seeds, but it is"),
        (dict(combined={("DeP", "4"): CORRUPTION["strong"]}), "severities is set by combined"),
        (dict(axes={"data.path": ("a" * 250,)}), r"of a cell, a+ \.\.\. a+-seed0, has 256 bytes"),
        (dict(axes={"data.path": ("\u753b" * 90,)}), "has 276 bytes, but at most 240"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(write, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        cells_of_study(read_study(write(**changed)))


def test_another_choice_of_images_replaces_that_of_the_file(write):
    axes = {"noise.low": (0.1, 0.22)}
    one = read_study(write(axes=axes, options={"data.count": 4}), [("data.fraction", "0.5")])
    data = config_of(one, one.options).data
    assert (data.fraction, data.count) == (0.5, 0)


@pytest.mark.parametrize(
    ("option", "axis"),
    [("seed", "seeds"), ("data.count", "data.count"), ("data.fraction", "data.count")],
)
def test_an_option_that_the_study_varies_is_not_changed_for_all_cells(write, option, axis):
    with pytest.raises(UserError, match=f"--config.{option} is given.* along {axis}"):
        read_study(write(), [(option, "3")])


@pytest.mark.parametrize("options", [{}, {"data.path": "nowhere"}])
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_data_that_no_cell_can_open_are_an_error_before_the_first(
    write, options, flags, tmp_path, monkeypatch, capsys
):
    runs = Runs()
    monkeypatch.setattr(child_run, "run_watched", runs)
    file = write(base=str(ROOT / "configs/ddpm_seg_folder.py"), options=options,
                 axes={"data.count": (2, 4)}, shared={})  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        study.main([f"--config={file}", f"--workdir={tmp_path / 'studied'}", *flags])
    said = capsys.readouterr()
    path = "path nowhere is not a folder" if options else "path is empty"
    assert stopped.value.code == 2 and said.err.count(f"error: --config.data: {path}") == 1
    assert not runs.commands and not (tmp_path / "studied").exists()
    assert ("in all about" in said.out) == bool(flags)


SMALL = {"data.options.size": (8, 48)}
SMALL_VALIDATION = {"data.validation.source": "scenes"}
LARGE_VALIDATION = SMALL_VALIDATION | {"data.validation.options.size": (32, 48)}


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({}, False), (SMALL, True), (SMALL_VALIDATION, True), (SMALL | LARGE_VALIDATION, False),
        ({"data.folds": 2}, False), (SMALL | {"data.folds": 2}, True),
    ],
)  # fmt: skip
def test_validation_images_too_small_for_a_corruption_are_an_error_before_the_first_cell(
    write, options, refused, tmp_path, monkeypatch
):
    opened = []

    def open_and_note(*given, **options):
        opened.append(repr((given, options)))
        return open_source(*given, **options)

    for module in (study_cells, labelled_images):
        monkeypatch.setattr(module, "open_source", open_and_note)
    axes = {"corruption": {"fog": {"evaluate.corruptions.types": ("fog",)}}, "data.count": (2, 4)}
    config = (ROOT / "tests/configs/tiny_deeplab.py").read_text()
    small = 'validation=dict(source="", path="", options=dict(images=8, size=(8, 48)))'
    (tmp_path / "base.py").write_text(re.sub("validation=.*(?=,)", small, config))
    fields = dict(base=str(tmp_path / "base.py"), axes=axes, evaluated=("corruption",), shared={})
    one = read_study(write(**fields, options=options))
    sentence = "cell fog-2-seed0: image .* of 8 x 48 pixels is too small"
    with pytest.raises(UserError, match=sentence) if refused else contextlib.nullcontext():
        require_data(one, cells_of_study(one))
    assert opened and len(opened) == len(set(opened))  # every set once


def test_a_folder_that_is_missing_is_named_with_the_commands_that_make_it(write):
    folder = {"data.source": "folder", "data.path": "made/of_none", "data.options.images": 0,
              "data.options.size": ()}  # fmt: skip
    fields = dict(axes={"images": {"real": {}, "made": folder}}, options={"run": ("scratch",)})
    one = read_study(write(**fields, made={"made/of_none": "python -m a && b"}))
    sentence = "path made/of_none is not a folder.* It is made by: python -m a && b$"
    with pytest.raises(UserError, match=sentence):
        require_data(one, cells_of_study(one))


def test_more_labels_than_there_are_images_are_refused_before_the_first_cell(write):
    options = {"data.options.images": 6, "run": ("finetune",)}
    one = read_study(write(axes={"data.count": (6, 7)}, options=options, shared={}))
    with pytest.raises(UserError, match="^cell 7-seed0: count is 7, but there are 6 images"):
        require_data(one, cells_of_study(one))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": "unet.pt", "stages.fit.start": "weights"}, "there is no unet.pt, which"),
        ({"weights": "unet.pt"}, ""),  # a stage that starts at random does not read it
        (
            {"features.sources": ("adm", "mae=mae.pth"), "run": ("pretrain", "fit")},
            "there is no mae.pth, which",
        ),
        (
            {"features.sources": ("efficientnet_lite0",), "stages.fit.start": "weights"},
            "in a package that is not installed",
        ),
    ],
)
def test_networks_that_are_missing_are_an_error_before_the_first_cell(
    write, options, sentence, tmp_path, monkeypatch
):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadata, "distribution", missing)
    base = str(ROOT / "tests/configs/tiny_ddpm_seg.py")
    options = {"run": ("fit",), "stages.fit.start": "random", **options}
    one = read_study(write(base=base, axes={"data.count": (2, 3)}, shared={}, options=options))
    refused = pytest.raises(UserError, match=f"^cell 2-seed0: .*{sentence}")
    with refused if sentence else contextlib.nullcontext():
        require_data(one, cells_of_study(one))


def test_a_config_is_no_study_and_is_answered_with_the_command_that_trains_it():
    sentence = "no function get_study.*diffseg_jax.main --config="
    with pytest.raises(UserError, match=sentence) as error:
        read_study(str(ROOT / "configs/ddp_scenes.py"))
    assert "KeyError" not in str(error.value)


def test_a_study_in_a_bucket_is_refused(write, capsys):
    with pytest.raises(SystemExit):
        study.main([f"--config={write()}", "--workdir=gs://bucket/study", "--dry-run"])
    assert "--workdir is gs://bucket/study, but this command writes" in capsys.readouterr().err


def test_a_value_that_the_check_of_the_config_refuses_is_named_before_anything_runs(studied):
    axes = {"noise.kind": ("scaled", "louder")}
    _, workdir, commands, stopped = studied(axes=axes)
    assert stopped == 2 and not commands and not workdir.exists()
    with pytest.raises(UserError, match="cell louder-seed0: noise.kind is 'louder'"):
        one = read_study(str(workdir.parent / "one.py"))
        study_runs.check_cells(one, cells_of_study(one))


def test_an_axis_that_training_reads_is_not_measured_with_one_network(write):
    options = {"run": ("scratch",)}
    for axes, said in (({"noise.low": (0.22, 0.1)}, "noise.low: 0.22 -> 0.1"),
                       ({"data.count": (6, 3)}, "data.count: 6 -> 3")):  # fmt: skip
        one = read_study(write(axes=axes, options=options, evaluated=tuple(axes)))
        with pytest.raises(UserError, match=f"cell 0?.?[13]-seed0: an axis in eval.*, {said}. Tak"):
            study_runs.check_cells(one, cells_of_study(one))
    axes = {"a": {"x": {}, "y": {"evaluate.flip": True, "data.val": "train", "noise.low": 0.22}}}
    one = read_study(write(axes=axes, options=options, evaluated=("a",)))
    study_runs.check_cells(one, cells_of_study(one))


def test_the_list_is_not_of_the_folder_of_another_study(studied, write, tmp_path, capsys):
    studied(**ONE)
    flags = [f"--workdir={tmp_path / 'studied'}", "--dry-run"]
    study.main([f"--config={write(**ONE)}", *flags])
    assert "scratch-seed0, is measured" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.main([f"--config={write(**ONE)}", *flags, "--config.data.count=4"])
    said = capsys.readouterr()
    assert not said.out and said.err.endswith("data.count: (absent) -> 4 in options\n")
