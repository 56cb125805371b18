"""Runs of studies: what a stop, a failure and a changed file leave, and which numbers are read."""

import csv
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from diffseg_jax import UserError
from diffseg_jax.data.corruptions import DRAWN_FROST, default_types
from diffseg_jax.display.console import Display
from diffseg_jax.errors import size
from diffseg_jax.experiment import (
    child_run,
    study_claim,
    study_costs,
    study_progress,
    study_report,
    study_runs,
    study_scores,
)
from diffseg_jax.experiment.corruption_report import counts_file
from diffseg_jax.experiment.study_cells import (
    cells_of_study,
    command_of_run,
    folder_of_run,
    runs_of,
)
from diffseg_jax.experiment.study_file import read_study
from diffseg_jax.metrics.image_counts import ImageCounts, mean_iou
from diffseg_jax.storage.lock import InUse, locked
from diffseg_jax.storage.paths import write_json
from study_case import FIELDS, ONE, ROOT, Runs, counts_of


def test_two_stops_change_no_digit_and_repeat_nothing(studied):
    whole, there, commands, _ = studied(workdir="whole")
    assert len(commands) == 9 and "table in" in whole
    again = []
    for stops_at in (3, 2, None):
        _, here, ran, stopped = studied(stops_at=stops_at)
        assert stopped == (130 if stops_at else None)
        again += [command[3].replace("studied", "whole") for command in ran]
    assert again == [command[3] for command in commands]
    for file in ("table.csv", "table.md", "plot.png"):
        assert (here / file).read_bytes() == (there / file).read_bytes()


def test_a_failed_cell_stops_no_other_is_named_and_runs_again(studied):
    lines, workdir, commands, stopped = studied(fails=("DeP-2-seed0",))
    assert stopped == 2 and len(commands) == 9
    table = (workdir / "table.md").read_text()
    assert "- DeP-2-seed0: the masks are wrong. Look at them." in table
    _, _, again, stopped = studied()
    assert [Path(command[3]).name for command in again] == ["DeP-2-seed0"] and not stopped
    assert "## Failed" not in (workdir / "table.md").read_text()


def test_a_run_that_a_killed_study_left_is_waited_for(studied, monkeypatch):
    """Also if it takes the lock only after the study has looked."""
    locked, looks = iter((0, 0, 1, 1, 1, 0)), []

    def require_free(folder, task, flag):
        looks.append(folder.name)
        if looks[-1] == "pretrain" and next(locked, 0):
            raise InUse(f"{folder} is in use")

    class Left(Runs):
        def __call__(self, command, log, say):
            self.fails = ("pretrain",) if looks.count("pretrain") == 2 else ()
            return super().__call__(command, log, say)

    monkeypatch.setattr(child_run, "require_free", require_free)
    monkeypatch.setattr(child_run, "POLL", 0)
    lines, _, commands, stopped = studied(runs=Left)
    assert not stopped and len(commands) == 10 and "waits for a run that goes on" in lines


@pytest.mark.parametrize("shared", [("data", "evaluate", "seed"), ("data", "evaluate")])
def test_the_table_names_what_is_run_once_for_all_seeds(write, tmp_path, shared):
    one = read_study(write(shared={"pretrain": shared}))
    cells = cells_of_study(one)
    groups = study_report.study_groups(cells, tmp_path)
    table = study_report.study_markdown(one, groups, cells, tmp_path, {})
    assert "Run once and shared by all seeds" in table or "seed" not in shared
    assert ("in the deviations and intervals below: pretrain.\n" in table) == ("seed" in shared)


def test_cells_without_the_stage_they_start_from_fail_and_others_go_on(studied):
    _, workdir, commands, _ = studied(fails=("pretrain",))
    assert (workdir / "table.md").read_text().count("- DeP-") == 4
    assert sum("scratch" in word for command in commands for word in command) == 4
    assert sum("('pretrain',)" in word for command in commands for word in command) == 1


def test_evaluations_of_one_run_keep_their_own_numbers(studied):
    axes = {"evaluate.scales": ((1.0,), (1.0, 1.5)), "data.count": (2, 4)}
    how = dict(evaluated=("evaluate.scales",), seeds={"seed": (0,)})
    _, workdir, commands, stopped = studied(axes=axes, options={"run": ("scratch",)}, **how)
    assert not stopped and sum("--mode=eval" in command for command in commands) == 2
    scores = [line.split(",")[3] for line in (workdir / "table.csv").read_text().splitlines()[1:]]
    assert len(set(scores)) == 4


def test_more_seeds_may_be_added_and_another_study_is_refused(studied):
    studied(seeds={"seed": (0,), "data.subset_seed": (0,)})
    _, _, commands, stopped = studied()
    assert not stopped and len(commands) == 4  # of the new seed alone
    _, _, commands, stopped = studied(options={"stages.finetune.steps": 4})
    assert stopped == 2 and not commands


def test_a_point_that_left_the_file_does_not_come_back_with_other_options(write, tmp_path):
    points = {"x": {"data.count": 2}, "y": {"data.count": 4}}
    for axis in (points, {"y": points["y"]}, points):
        study_claim.claim_study(read_study(write(axes={"a": axis})), tmp_path)
    study_claim.claim_study(read_study(write(axes={"a": {"y": points["y"]}})), tmp_path)
    other = write(axes={"a": {"x": {"data.count": 6}, "y": points["y"]}})
    with pytest.raises(UserError, match="another study.*\n  data.count: 2 -> 6 at x of a$"):
        study_claim.claim_study(read_study(other), tmp_path)


def test_options_of_a_point_of_all_axes_do_not_change_once_it_was_studied(write, tmp_path):
    kept = {("DeP", "4"): {"noise.low": 0.1}}
    study_claim.claim_study(read_study(write(combined=kept)), tmp_path)
    axes = {**FIELDS["axes"], "data.count": (2, 4, 6)}
    added = {**kept, ("DeP", "6"): {"noise.low": 0.3}}
    other = {("DeP", "4"): {"noise.low": 0.2}}
    for changed in (other, {}, {**kept, ("DeP", "2"): {"noise.low": 0.4}}):
        with pytest.raises(UserError, match=r"noise.low: .* -> .* at DeP / (4|2)$"):
            study_claim.claim_study(read_study(write(combined=changed)), tmp_path)
    study_claim.claim_study(read_study(write(axes=axes, combined=added)), tmp_path)
    assert len(json.loads((tmp_path / "study.json").read_text())["combined"]) == 2


def test_another_stage_and_another_content_of_the_base_are_another_study(write, tmp_path):
    base = tmp_path / "base.py"
    base.write_text(Path(FIELDS["base"]).read_text())
    study_claim.claim_study(read_study(write(base=str(base))), tmp_path)
    with pytest.raises(UserError, match='\n  stage: "" -> finetune$'):
        study_claim.claim_study(read_study(write(base=str(base), stage="finetune")), tmp_path)
    changed = "\n\nfirst = get_config\n\n\ndef get_config():\n    config = first()\n"
    base.write_text(base.read_text() + changed + "    config.noise.low = 0.5\n    return config\n")
    with pytest.raises(UserError, match="noise.low: .* -> 0.5 in "):
        study_claim.claim_study(read_study(write(base=str(base))), tmp_path)


def test_the_same_study_may_be_typed_in_other_ways(write, tmp_path):
    scales = {"evaluate.scales": (1.0, 1.5)}
    typed = {"data.fraction": "0.5", "evaluate.flip": True, "mesh.data": "1"}
    axes = {"pretraining": FIELDS["axes"]["pretraining"]}
    first = read_study(write(axes=axes, options=scales), typed.items())
    study_claim.claim_study(first, tmp_path)
    options = {"data.fraction": 0.5, "evaluate.flip": "true", "evaluate.scales": [1, 1.5]}
    study_claim.claim_study(read_study(write(axes=axes, options=options)), tmp_path)
    points = {"none": {"run": "scratch"}, "DeP": axes["pretraining"]["DeP"]}
    one = read_study(write(axes={"pretraining": points}, options=options))
    study_claim.claim_study(one, tmp_path)
    changed = options | {"data.fraction": 0.25, "evaluate.images": 3}
    lines = "data.fraction: 0.5 -> 0.25 in options\n  evaluate.images: .absent. -> 3 in options$"
    with pytest.raises(UserError, match=rf"_2, or undo:\n  {lines}"):
        study_claim.claim_study(read_study(write(axes=axes, options=changed)), tmp_path)


def test_a_study_of_an_earlier_version_goes_on(write, tmp_path):
    one = read_study(write())
    study_claim.claim_study(one, tmp_path)
    stored = json.loads((tmp_path / "study.json").read_text())
    for key in ("config", "features", "stage"):
        del stored[key]
    (tmp_path / "study.json").write_text(json.dumps(stored))
    study_claim.claim_study(one, tmp_path)
    assert "config" in json.loads((tmp_path / "study.json").read_text())


def test_a_number_that_is_added_is_collected_from_runs_that_ended(studied):
    studied(**ONE)
    _, workdir, commands, stopped = studied(**ONE, collect=("mIoU", "calibration.ECE"))
    assert not stopped and not commands
    assert (workdir / "table.csv").read_text().splitlines()[1].endswith(",0.1,")


def test_a_number_that_cannot_be_collected_takes_none_of_those_that_were_measured(studied):
    studied(**ONE)
    _, workdir, _, stopped = studied(**ONE, collect=("mIoU", "calibration.ECC"))
    table = (workdir / "table.md").read_text()
    assert "\n| run: scratch |\n" in table  # no column for axes that it has not
    assert stopped == 2 and "no number calibration.ECC" in table
    assert re.search(r"mIoU, %\n\n.*\n.*\n.* \(1\) \|", table)
    _, _, commands, stopped = studied(**ONE, collect=("mIoU", "calibration.ECE"))
    assert not stopped and not commands
    assert "failed" not in json.loads((workdir / "cells/scratch-seed0.json").read_text())


def test_a_plot_is_announced_where_it_was_drawn_and_an_old_one_does_not_stay(studied):
    class Undefined(Runs):
        """Leaves a number that is not defined."""

        def __call__(self, command, log, say):
            ended = super().__call__(command, log, say)
            file = Path(command[3].partition("=")[2]) / "results.json"
            results = {stage: each | {"AUROC": None} for stage, each in read(file).items()}
            file.write_text(json.dumps(results))
            return ended

    read = lambda file: json.loads(file.read_text())
    lines, workdir, _, stopped = studied(**ONE, runs=Undefined, collect=("mIoU", "AUROC"))
    assert not stopped and f"plot in {workdir}/plot.png" in lines
    assert [file.name for file in workdir.glob("*.png")] == ["plot.png"]
    lines, _, _, stopped = studied(**ONE, collect=("AUROC", "mIoU"))
    assert not stopped and f"plot in {workdir}/plot_mIoU.png" in lines
    assert [file.name for file in workdir.glob("*.png")] == ["plot_mIoU.png"]
    lines, _, _, stopped = studied(**ONE, collect=("AUROC",))
    assert not stopped and "table in" in lines and "plot in" not in lines


def test_what_is_no_number_is_not_collected():
    result = {"mIoU": None, "IoU": {"sky": 0.5}, "confusion": [1, 2], "ECE": 0}
    assert [study_runs.number_at(result, path) for path in ("mIoU", "IoU.sky", "ECE")] == [
        None, 0.5, 0
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"IoU of .* is {'sky': 0.5}, .*, such as IoU.sky\.$"):
        study_runs.number_at(result, "IoU")
    with pytest.raises(UserError, match=r"confusion of .* is \[1, 2\]"):
        study_runs.number_at(result, "confusion")


def test_evaluations_run_again_for_a_number_that_is_added_and_networks_do_not(studied):
    axes = {"evaluate.scales": ((1.0,), (1.0, 1.5))}
    how = dict(axes=axes, options={"run": ("scratch",)}, evaluated=("evaluate.scales",))
    one = {"seed": (0,)}
    studied(**how, seeds=one)
    _, _, commands, stopped = studied(**how, seeds=one, collect=("mIoU", "calibration.ECE"))
    assert not stopped and len(commands) == 1 and "--mode=eval" in commands[0]


def test_a_run_that_ended_without_a_record_is_the_only_one_that_starts_again(studied):
    _, workdir, _, _ = studied()
    for file in ("runs/DeP-2-seed0.json", "cells/DeP-2-seed0.json"):
        (workdir / file).unlink()
    _, _, commands, stopped = studied()
    assert not stopped and [Path(command[3]).name for command in commands] == ["DeP-2-seed0"]


def test_a_shared_run_whose_folder_was_removed_runs_again_only_for_cells_that_need_it(studied):
    one = {"seed": (0,), "data.subset_seed": (0,)}
    _, workdir, _, _ = studied(seeds=one)
    shutil.rmtree(workdir / "runs" / "pretrain")
    _, _, commands, stopped = studied(seeds=one)
    assert not stopped and not commands
    _, _, commands, stopped = studied()
    assert not stopped and [Path(command[3]).name for command in commands].count("pretrain") == 1
    assert len(commands) == 1 + 4


def test_a_table_keeps_its_intervals_although_the_folders_of_runs_were_removed(studied):
    one = {"seed": (0,), "data.subset_seed": (0,)}
    _, workdir, _, _ = studied(seeds=one)
    table = (workdir / "table.md").read_text()
    assert table.count("] (1, 40)") == 4  # one seed, whose intervals are of the images alone
    shutil.rmtree(workdir / "runs")
    _, _, commands, stopped = studied(seeds=one)
    assert not stopped and not commands and (workdir / "table.md").read_text() == table


def test_counts_that_an_earlier_version_left_in_the_folder_of_a_run_are_read(studied):
    one = {"seed": (0,), "data.subset_seed": (0,)}
    _, workdir, _, _ = studied(seeds=one)
    table = (workdir / "table.md").read_text()
    for cell in cells_of_study(read_study(str(workdir.parent / "one.py"))):
        file = workdir / "cells" / f"{cell.name}.json"
        counts = folder_of_run(workdir, cell.run) / f"image_counts_{cell.run.stages[-1]}.npz"
        earlier = {"image_counts": str(counts.relative_to(workdir))}
        write_json(file, json.loads(file.read_text()) | earlier)
        file.with_suffix(".npz").unlink()
    _, _, commands, stopped = studied(seeds=one)
    assert not stopped and not commands and (workdir / "table.md").read_text() == table


@pytest.mark.parametrize(("removed", "again"), [((), []), (("features",), ["features"])])
def test_an_evaluation_needs_files_of_features_and_not_the_network_that_made_them(
    studied, removed, again
):
    axes = {"evaluate.flip": (False, True)}
    how = {**BLOCKS, "axes": axes, "evaluated": ("evaluate.flip",), "plot": "lines"}
    _, workdir, commands, _ = studied(**how)
    assert len(commands) == 4
    (workdir / "cells" / "True-seed0.json").unlink()
    for name in ("pretrain", *removed):
        shutil.rmtree(workdir / "runs" / name)
    _, _, commands, stopped = studied(**how)
    ran = [Path(command[3]).name for command in commands]
    assert not stopped and ran == [*(["pretrain"] if again else []), *again, "seed0"]


def test_another_spelling_of_the_workdir_is_the_same_folder(studied, tmp_path):
    _, _, first, _ = studied(stops_at=3, workdir=f"../{tmp_path.name}/studied")
    _, workdir, then, stopped = studied()
    assert not stopped and len(first) + len(then) == 9
    starts = f"--config.stages.finetune.start={workdir}/runs/pretrain/checkpoints/pretrain"
    assert sum(starts in command for command in (*first, *then)) == 4


def test_a_run_of_an_earlier_version_goes_on_with_the_starts_that_it_has(
    write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    workdir = tmp_path / "studied"
    pretrained, kept = "runs/pretrain/checkpoints/pretrain", "runs/features/features"
    for fields, stored in (
        ({}, {"stages": {"finetune": {"start": f"studied/{pretrained}"}}}),
        (BLOCKS, {"features": {"sources": [f"files=studied/{kept}"]}}),
    ):
        one = read_study(write(**fields))
        run = next(cell.run for cell in cells_of_study(one) if cell.run.before)
        write_json(folder_of_run(workdir, run) / "config.json", stored)
        for folder, spelled in ((tmp_path, "studied"), (tmp_path / "other", workdir)):
            monkeypatch.chdir(folder)
            start = f"--config.features.sources=('files={spelled}/{kept}',)"
            if not fields:
                start = f"--config.stages.finetune.start={spelled}/{pretrained}"
            assert start in command_of_run(one, run, workdir)


def test_the_seconds_of_a_run_are_those_of_all_its_starts(studied):
    class Slow(Runs):
        def __call__(self, command, log, say):
            time.sleep(0.1)
            return super().__call__(command, log, say)

    for fails, stops_at in (((), 0), (("scratch-seed0",), None), ((), None)):
        _, workdir, _, _ = studied(fails, stops_at, runs=Slow, **ONE)
    record = json.loads((workdir / "runs" / "scratch-seed0.json").read_text())
    assert record["seconds"] >= 0.3 and "failed" not in record


def test_a_report_after_a_cell_computes_only_the_differences_that_it_changes(studied, monkeypatch):
    asked, real = [], study_report.difference

    def difference(group, first, *more):
        asked.append((group.labels, first.labels))
        return real(group, first, *more)

    monkeypatch.setattr(study_report, "difference", difference)
    studied(seeds={"seed": (0,), "data.subset_seed": (0,)})
    assert {*asked} == {  # of four cells, along both axes
        (("DeP", "2"), ("none", "2")), (("DeP", "4"), ("none", "4")),
        (("none", "4"), ("none", "2")), (("DeP", "4"), ("DeP", "2")),
    }  # fmt: skip
    assert max(map(asked.count, asked)) <= 3


def test_runs_without_counts_of_images_have_numbers_and_without_results_fail(studied):
    class Maps(Runs):
        left_out = "image_counts_scratch.npz"

        def __call__(self, command, log, say):
            ended = super().__call__(command, log, say)
            (Path(command[3].partition("=")[2]) / self.left_out).unlink()
            return ended

    class Nothing(Maps):
        left_out = "results.json"

    _, workdir, _, stopped = studied(**ONE, runs=Maps)
    assert not stopped and "image_counts" not in (workdir / "cells/scratch-seed0.json").read_text()
    _, workdir, _, stopped = studied(**ONE, runs=Nothing, workdir="other")
    assert stopped == 2 and "the run left no results.json" in (workdir / "table.md").read_text()


def test_a_folder_out_of_reach_fails_and_is_not_waited_for(studied, monkeypatch):
    def require_free(folder, task, flag):
        raise UserError(f"{folder} cannot be reached")

    monkeypatch.setattr(child_run, "require_free", require_free)
    _, workdir, _, stopped = studied(**ONE)
    assert stopped == 2 and "cannot be reached" in (workdir / "table.md").read_text()


def test_a_cell_of_corruptions_averages_over_its_own_rows_and_not_over_those_of_others(studied):
    class Corrupted(Runs):
        """Measures severities 1 and 5 of two types from the start, as another cell would leave."""

        def __call__(self, command, log, say):
            ended = super().__call__(command, log, say)
            rows = [
                {"type": name, "severity": severity, "mIoU": score / severity}
                for name, score in (("clean", 9.0), ("fog", 0.5), ("snow", 0.7))
                for severity in (1, 5)
            ]
            file = Path(command[3].partition("=")[2]) / "corruptions.json"
            file.write_text(json.dumps({"cells": rows}))
            return ended

    group = "evaluate.corruptions."
    points = {
        "typed": {f"{group}types": "fog", f"{group}severities": "(1,)"},
        "both": {f"{group}types": ("fog", "snow"), f"{group}severities": (1, 5)},
        "base": {f"{group}types": ("fog",)},  # severities of the base config: 1, 3, 5
    }
    fields = dict(axes={"corruption": points}, evaluated=("corruption",), seeds={"seed": (0,)})
    _, workdir, _, _ = studied(**fields, options={"run": ("scratch",)}, runs=Corrupted)
    rows = [line.split(",") for line in (workdir / "table.csv").read_text().splitlines()[1:]]
    found = {row[0]: row[2] for row in rows}
    assert float(found["typed"]) == 0.5 and found["base"] == ""
    assert "holds no fog 3" in (workdir / "table.md").read_text()
    np.testing.assert_allclose(float(found["both"]), (0.5 + 0.7) * (1 + 1 / 5) / 4)


def test_drawn_frost_counts_in_the_time_of_a_cell_and_not_in_its_number(write, tmp_path):
    group = "evaluate.corruptions."
    points = {
        "all": {f"{group}severities": ()},  # as without the option: 1, 3, 5
        "frost": {f"{group}types": (DRAWN_FROST,), f"{group}severities": (3,)},
    }
    fields = dict(axes={"corruption": points}, evaluated=("corruption",), seeds={"seed": (0,)})
    one = read_study(write(**fields, options={"run": ("scratch",)}, seconds={
        "start": 0, "image": 1, "images": 1}))  # fmt: skip
    whole, frost = cells_of_study(one)
    times = [study_progress.seconds_of_cell(one, cell) for cell in (whole, frost)]
    assert times == [1 + 18 * 3, 1 + 1]
    rows = [
        {"type": name, "severity": severity, "mIoU": 9.0 if name == DRAWN_FROST else 0.5}
        for name in default_types(False)
        for severity in (1, 3, 5)
    ]
    (tmp_path / "corruptions.json").write_text(json.dumps({"cells": rows}))
    found = [study_runs._found(one, cell, tmp_path, tmp_path) for cell in (whole, frost)]
    assert [each["numbers"]["mIoU"] for each in found] == [0.5, 9.0]
    assert "held_out" not in found[0]
    results = {"scratch": {"measured_on": {"held_out": False}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert study_runs._found(one, whole, tmp_path, tmp_path)["held_out"] is False
    said = study_report.described_corruptions(one, (whole, frost))
    assert "images at all are means over 17 types: gaussian_noise, shot_noise, " in said[0]
    assert said[0].endswith("is drawn, not of photographs, is not part of the mean.")
    assert said[1].endswith("means over 1 type: frost_procedural. Its frost is drawn, not of "
                            "photographs.")  # fmt: skip


def test_the_table_names_cells_that_learned_from_the_images_they_are_measured_on(studied):
    class Learned(Runs):
        """Has no other images in the cells of two labelled ones."""

        def __call__(self, command, log, say):
            ended = super().__call__(command, log, say)
            file = Path(command[3].partition("=")[2]) / "results.json"
            results = json.loads(file.read_text())
            for result in results.values():
                result["measured_on"] = {"held_out": "--config.data.count=2" not in command}
            file.write_text(json.dumps(results))
            return ended

    how = dict(axes={"data.count": (2, 4)}, options={"run": ("scratch",)}, seeds={"seed": (0,)})
    _, workdir, _, _ = studied(**how, runs=Learned)
    (line,) = re.findall("Measured on the images that .*", (workdir / "table.md").read_text())
    assert line.endswith("how well they do on new images: 2-seed0.")


class Corrupted(Runs):
    """Measures weak and strong fog and the clean images, all of which --mode=corruptions leaves."""

    def __call__(self, command, log, say):
        ended = super().__call__(command, log, say)
        if "--mode=corruptions" in command:
            folder, rows = Path(command[3].partition("=")[2]), []
            for name, severity, right in (("clean", 0, 0.9), ("fog", 1, 0.7), ("fog", 5, 0.4)):
                counts = counts_of(right, 0)
                counts.save(counts_file(folder, name, severity))
                score = float(mean_iou(counts.counts.sum(0), "skip"))
                rows.append({
                    "type": name, "severity": severity, "mIoU": score, "calibrated": True,
                    "ECE": 0.01, "calibration": {"ECE": 0.2},
                })  # fmt: skip
            (folder / "corruptions.json").write_text(json.dumps({"cells": rows}))
        return ended


FOG = {"evaluate.corruptions.types": ("fog",), "evaluate.corruptions.images": 4}
CORRUPTED = dict(
    axes={"corruption": {
        "clean": {},
        "weak": {**FOG, "evaluate.corruptions.severities": (1,)},
        "both": {**FOG, "evaluate.corruptions.severities": (1, 5)},
    }},
    evaluated=("corruption",), seeds={"seed": (0,)}, options={"run": ("scratch",)}, runs=Corrupted,
)  # fmt: skip


def test_clean_images_are_those_that_are_corrupted_and_differences_have_intervals(studied):
    _, workdir, commands, stopped = studied(**CORRUPTED)
    assert not stopped and sum("--mode=corruptions" in command for command in commands) == 2
    lines = csv.DictReader((workdir / "table.csv").read_text().splitlines())
    found = {line["corruption"]: float(line["mIoU"]) for line in lines}
    clean, weak, strong = (
        float(mean_iou(counts_of(right, 0).counts.sum(0), "skip")) for right in (0.9, 0.7, 0.4)
    )
    assert found == {"clean": clean, "weak": weak, "both": pytest.approx((weak + strong) / 2)}
    table = (workdir / "table.md").read_text()
    assert len(re.findall(r"-\d+\.\d \[-\d+\.\d, -\d+\.\d\] \(1, 40\)", table)) == 2
    assert "images are means over 1 type: fog. Frost is not among them.\n" in table


def test_a_command_that_measures_two_cells_is_listed_and_timed_once(studied):
    _, workdir, commands, _ = studied(**CORRUPTED)
    read = lambda name: json.loads((workdir / f"cells/{name}-seed0.json").read_text())
    clean, weak, both = map(read, ("clean", "weak", "both"))
    assert "seconds" in clean and "seconds" in both and "measured_by" not in clean
    assert weak["measured_by"] == "clean-seed0"
    assert not {"seconds", "cpu_seconds", "peak_bytes", "command"} & set(weak)
    listed = (workdir / "commands.sh").read_text().splitlines()
    assert listed[0] == f"cd {Path.cwd()}"
    assert len(listed) == 1 + 2 * len(commands) and "# clean-seed0, weak-seed0" in listed


def test_cells_of_corruptions_that_were_measured_otherwise_are_measured_again(studied):
    _, workdir, _, _ = studied(**CORRUPTED)
    table = (workdir / "table.csv").read_bytes()
    for name, mode in (("clean", {"mode": "train"}), ("both", {})):  # earlier ones wrote no mode
        other = {"seconds": 1.0, "numbers": {"mIoU": 0.25}, **mode}
        (workdir / f"cells/{name}-seed0.json").write_text(json.dumps(other))
    _, _, commands, stopped = studied(**CORRUPTED)
    assert not stopped and len(commands) == 2
    assert all("--mode=corruptions" in command for command in commands)
    assert (workdir / "table.csv").read_bytes() == table


def test_the_uncertainty_of_corrupted_images_has_the_names_of_other_results(studied):
    names = ("mIoU", "calibration.ECE", "calibrated.ECE", "ECE", "boundary.mIoU")
    _, workdir, _, stopped = studied(**CORRUPTED, collect=names)
    for line in csv.DictReader((workdir / "table.csv").read_text().splitlines()):
        assert [line[name] for name in names[1:]] == ["0.2", "0.01", "0.01", ""] and line["mIoU"]
        assert "no number boundary.mIoU" in line["failed"]


BLOCKS = dict(
    base=str(ROOT / "tests/configs/tiny_ddpm_seg.py"),
    axes={"features.blocks": ((0,), (1,)), "features.steps": ((1,), (3,), (5,))},
    seeds={"seed": (0,)}, features={"features.blocks": (0, 1), "features.steps": (1, 3, 5)},
    shared={"pretrain": ("data", "features", "seed"), "features": (
        "seed", "features.blocks", "features.steps")}, plot="grid",
)  # fmt: skip


def test_features_are_kept_once_and_read_by_every_cell(studied):
    _, workdir, commands, stopped = studied(**BLOCKS)
    assert not stopped and len(commands) == 1 + 1 + 6
    assert [command[4] for command in commands[:2]][1] == "--mode=features"
    assert "--config.features.blocks=(0, 1)" in commands[1]
    for command in commands[2:]:
        kept = workdir / "runs" / "features" / "features"
        assert f"--config.features.sources=('files={kept}',)" in command
        assert "--config.stages.fit.start=weights" in command
    table = (workdir / "table.md").read_text()
    said = "features: 27 passes of the network, 3 for each image, are read by 6 runs."
    assert f"\n\n{said}\n" in table
    shutil.rmtree(workdir / "runs" / "features")
    _, _, commands, _ = studied(**BLOCKS)
    assert not commands and (workdir / "table.md").read_text() == table.replace(f"\n\n{said}", "")


def test_features_of_several_subsets_are_added_to_one_folder_and_counted_together(studied):
    shared = {**BLOCKS["shared"], "features": ("seed", "data.count")}
    seeds = {"seed": (0, 1), "data.subset_seed": (0, 1)}
    how = dict(axes={"data.count": (2, 3)}, features={"data.count": 3}, plot="lines")
    _, workdir, commands, stopped = studied(**{**BLOCKS, **how, "shared": shared, "seeds": seeds})
    keeping = [command for command in commands if "--mode=features" in command]
    assert not stopped and len(keeping) == 2
    assert {command[3] for command in keeping} == {f"--workdir={workdir}/runs/features"}
    lines = (workdir / "table.md").read_text().splitlines()
    counts = [line for line in lines if "of the network" in line]
    assert counts == [
        "features: 27 passes of the network, 3 for each image, are read by 4 runs."
    ]  # fmt: skip

    shutil.rmtree(workdir / "runs" / "features")  # with the records of both
    more = {**BLOCKS, **how, "axes": {"data.count": (2, 3, 1)}, "shared": shared, "seeds": seeds}
    _, _, commands, stopped = studied(**more)
    keeping = [command for command in commands if "--mode=features" in command]
    assert not stopped and len(keeping) == 2 and len(commands) == 4


def test_features_of_networks_that_learned_from_other_subsets_are_kept_apart(write):
    shared = {"pretrain": ("features", "seed", "data.count"), "features": ("seed", "data.count")}
    how = dict(axes={"data.count": (2, 3)}, features={"data.count": 3}, plot="lines")
    seeds = {"seed": (0, 1), "data.subset_seed": (0, 1)}
    one = read_study(write(**{**BLOCKS, **how, "shared": shared, "seeds": seeds}))
    keeping = [run for run in runs_of(cells_of_study(one)) if run.mode == "features"]
    assert len({folder_of_run(ROOT, run) for run in keeping}) == len(keeping) > 1


def test_the_space_of_kept_features_is_known_before(write):
    one = read_study(write(**BLOCKS))
    (line,) = study_progress.space_of_features(one, cells_of_study(one))
    maps = 3 * 32 * (8 * 12 + 16 * 24)  # steps, channels, sides of the maps of two blocks
    assert line == f"run features keeps {size(4 * maps)} of features for each image"


def test_what_features_depend_on_has_features_of_its_own(write):
    axes = {"features.short": (8, 16), "features.blocks": ((0,), (1,))}
    cells = cells_of_study(read_study(write(**{**BLOCKS, "axes": axes})))
    assert [run.name for run in runs_of(cells) if run.mode == "features"] == [
        "features-8", "features-16"
    ]  # fmt: skip


def test_small_and_large_classes_are_listed_with_their_rule_and_scored_apart(studied, tmp_path):
    collect = ("mIoU", "small.mIoU", "large.mIoU")
    classes = tuple(read_class_names())
    sizes = {"small": list(classes[:1]), "large": list(classes[1:]), "rule": "R.", "areas": {}}
    (tmp_path / "studied").mkdir()
    (tmp_path / "studied" / "class_sizes.json").write_text(json.dumps(sizes))
    one = {"seed": (0,), "data.subset_seed": (0,)}
    _, workdir, _, stopped = studied(collect=collect, seeds=one)
    assert not stopped
    table = (workdir / "table.md").read_text()
    assert "R.\n\n- small: a\n- large: b, c" in table
    rows = [line.split(",") for line in (workdir / "table.csv").read_text().splitlines()[1:]]
    for *_, whole, small, large, _ in rows:
        np.testing.assert_allclose(float(whole), (float(small) + 2 * float(large)) / 3)
    assert (workdir / "plot_small_mIoU.png").exists()


def read_class_names():
    return counts_of(0.5, 0).classes


def test_classes_of_both_sizes_are_found_and_scored_in_one_study(studied):
    class OfScenes(Runs):
        """Leaves counts with the classes of the scenes."""

        def __call__(self, command, log, say):
            ended = super().__call__(command, log, say)
            file = Path(command[3].partition("=")[2]) / "image_counts_scratch.npz"
            areas = json.loads((file.parents[2] / "class_sizes.json").read_text())["areas"]
            counts = np.tile([[5], [10], [10], [0]], (4, 1, len(areas)))
            ImageCounts(tuple("abcd"), tuple(areas), counts, "skip").save(file)
            return ended

    _, workdir, _, stopped = studied(**ONE, collect=("small.mIoU", "large.mIoU"), runs=OfScenes)
    assert not stopped
    numbers = (workdir / "table.csv").read_text().splitlines()[1].split(",")[2:4]
    np.testing.assert_allclose([float(each) for each in numbers], 5 / 15)


def test_a_cell_with_other_classes_fails_in_a_sentence(studied, tmp_path):
    sizes = {"small": ["a"], "large": ["kerb"], "rule": "R.", "areas": {}}
    (tmp_path / "studied").mkdir()
    (tmp_path / "studied" / "class_sizes.json").write_text(json.dumps(sizes))
    _, workdir, _, stopped = studied(**ONE, collect=("large.mIoU",))
    said = "large.mIoU needs the same classes in all cells, but class kerb of class_sizes.json is"
    assert stopped == 2 and said in (workdir / "table.md").read_text()


def test_class_sizes_are_those_of_the_labelled_images_of_all_cells(write, tmp_path):
    one = read_study(write(collect=("mIoU", "small.mIoU")))
    study_scores.keep_class_sizes(one, cells_of_study(one), tmp_path)
    found = json.loads((tmp_path / "class_sizes.json").read_text())
    assert found["images"] == 6 and not set(found["small"]) & set(found["large"])
    areas = found["areas"]
    largest = max(areas[name] for name in found["small"])
    assert all(areas[name] >= largest for name in found["large"])


@pytest.mark.parametrize(
    ("axes", "images"),
    [
        ({"images": {"few": {"data.options.images": 4}, "more": {"data.options.images": 6}}}, 4),
        ({"data.count": (2, 3)}, 3),
    ],
)
def test_class_sizes_are_of_the_data_set_of_the_first_cell(studied, axes, images):
    options, collect = {"run": ("scratch",), "data.count": 0}, ("mIoU", "small.mIoU")
    how = dict(axes=axes, seeds={"seed": (0,)}, options=options, collect=collect)
    _, workdir, _, _ = studied(**how)
    assert json.loads((workdir / "class_sizes.json").read_text())["images"] == images


@pytest.mark.parametrize("damaged", ("", "{", "[]", '{"small": ["sky"]}', '{"rule": 1}'))
def test_class_sizes_that_cannot_be_read_are_found_again(write, tmp_path, damaged):
    """Of all labelled images, also of those of a fold that is held out."""
    one = read_study(write(collect=("small.mIoU",), options={"data.folds": 3}))
    (tmp_path / "class_sizes.json").write_text(damaged)
    assert study_scores.described_sizes(tmp_path) == []
    with pytest.raises(UserError, match="small.mIoU needs class_sizes.json, which cannot be read"):
        sizes = study_scores.class_sizes(tmp_path)
        study_scores.score_on("small.mIoU", counts_of(0.5, 0), np.zeros((4, 3)), sizes)
    study_scores.keep_class_sizes(one, cells_of_study(one), tmp_path)
    found = study_scores.class_sizes(tmp_path)
    assert found["images"] == 6 and found["large"]


COST = {
    "parameters": 1234567, "operations": {"float32": 1.5e9, "bfloat16": 1e8}, "ms": 41.25,
    "images_per_second": 1234.4, "image": [96, 128], "batch": 4, "device": "2 CPU cores",
}  # fmt: skip


@pytest.fixture
def costs(write, tmp_path, monkeypatch):
    """Cells whose costs were asked for, by a stand-in that knows them of all points but one."""
    asked = []

    def cost(study, cell, *_):
        asked.append(cell.name)
        return {} if cell.labels == ("none", "4") else COST

    def run(command, log, say):
        assert command[:2] == ["-m", "diffseg_jax.study"] and command[-1] == "--costs"
        study_costs.keep_costs(read_study(str(tmp_path / "one.py")), log.parents[1], Display())
        return 0, None, ""

    monkeypatch.setattr(study_costs, "_cost_of_cell", cost)
    monkeypatch.setattr(study_costs, "run_watched", run)
    return asked


def test_costs_are_measured_once_for_each_point_and_not_again(studied, costs):
    _, workdir, _, stopped = studied(costs=True)
    assert not stopped
    assert costs == ["none-2-seed0", "DeP-2-seed0", "none-4-seed0", "DeP-4-seed0"]
    table = (workdir / "table.md").read_text()
    rows = [line for line in table.splitlines() if "1,234,567" in line]
    assert len(rows) == 3
    assert all(row.endswith("| 1,234,567 | 1.6 | 41.2 | 1,230 |") for row in rows)
    assert "| none | 4 |" in table and "| - | - | - | - |" in table
    assert "Of one image of 96×128" in table and "in batches of 4" in table
    assert "--costs" in (workdir / "commands.sh").read_text().splitlines()[-1]
    studied(costs=True)
    assert len(costs) == 4
    _, workdir, _, _ = studied(workdir="other")
    assert len(costs) == 4 and "Cost of" not in (workdir / "table.md").read_text()


def test_costs_by_hand_are_measured_again_and_stand_in_the_table(studied, costs, write):
    _, workdir, _, _ = studied(costs=True)
    kept = COST | {"ms": 17.5}
    (workdir / "costs.json").write_text(json.dumps({"none-2": kept, "DeP-2": kept}))
    study_costs.keep_costs(read_study(write(costs=True)), workdir, Display())
    assert costs[4:] == ["none-4-seed0", "DeP-4-seed0"]
    table = (workdir / "table.md").read_text()
    assert table.count("| 17.5 |") == 2 and table.count("| 41.2 |") == 1


def test_a_point_whose_costs_cannot_be_measured_stops_no_other(studied, costs, monkeypatch, write):
    _, workdir, _, _ = studied()

    def cost(study, cell, *_):
        if cell.labels == ("DeP", "2"):
            raise UserError("there is no checkpoint.")
        return COST

    monkeypatch.setattr(study_costs, "_cost_of_cell", cost)
    with pytest.raises(UserError, match=r"^DeP-2 cannot be measured: there is no checkpoint\.$"):
        study_costs.keep_costs(read_study(write(costs=True)), workdir, Display())
    assert list(json.loads((workdir / "costs.json").read_text())) == ["none-2", "none-4", "DeP-4"]
    assert (workdir / "table.md").read_text().count("1,234,567") == 3


def test_costs_are_not_measured_in_the_folder_of_another_study_nor_by_two_processes(
    studied, costs, write
):
    _, workdir, _, _ = studied()
    with pytest.raises(UserError, match="shows no costs"):
        study_costs.keep_costs(read_study(write()), workdir, Display())
    changed = {"stages.finetune.steps": 4}
    other = read_study(write(options=changed, costs=True))  # of the same cells
    with pytest.raises(UserError, match="holds another study.*\n  .* -> 4 in options$"):
        study_costs.keep_costs(other, workdir, Display())
    one = read_study(write(costs=True))
    with locked(workdir, "costs", "--workdir"), pytest.raises(InUse, match="costs, since"):
        study_costs.keep_costs(one, workdir, Display())
    assert not costs and not (workdir / "costs.json").exists()
    with pytest.raises(UserError, match="holds no measured cell"):
        study_costs.keep_costs(one, workdir / "empty", Display())


def test_the_list_counts_the_costs_that_are_missing(studied, costs, write):
    one = read_study(write(costs=True, seconds={"start": 7}))
    said = lambda workdir: re.findall("costs of a prediction, (.*)", list_of(one, workdir))
    _, workdir, _, _ = studied(costs=True)
    assert said(workdir) == ["is measured"] and said(workdir / "empty") == ["about 47 s"]
    points = json.loads((workdir / "costs.json").read_text())
    (workdir / "costs.json").write_text(json.dumps(dict(list(points.items())[:3])))
    assert said(workdir) == ["about 17 s"]


def test_the_list_counts_the_runs_and_cells_that_are_missing(studied, write):
    fields = dict(seconds={"start": 60}, seeds={"seed": (0,), "data.subset_seed": (0,)})
    _, workdir, _, _ = studied(**fields, fails=("DeP-2-seed0",))
    listed = list_of(read_study(write(**fields)), workdir)
    assert listed.count("has ended") == 4 and listed.count("is measured") == 3
    assert "run DeP-2-seed0 (finetune), about" in listed and "in all about" not in listed
    one = read_study(write(**fields))
    finished = [cell for cell in cells_of_study(one) if cell.name != "DeP-2-seed0"]
    left = study_progress.seconds_left(one, finished, workdir)
    assert len(finished) == 3 and not left
    assert re.search(r"\nabout 1 min left in all$", listed)


def list_of(study, workdir):
    return study_progress.listing(study, cells_of_study(study), workdir)


def test_costs_that_fail_leave_the_table_and_an_exit_code(studied, monkeypatch):
    failing = lambda command, log, say: (2, None, "error: no device")
    monkeypatch.setattr(study_costs, "run_watched", failing)
    lines, workdir, _, stopped = studied(**ONE, costs=True)
    assert stopped == 2 and "not the costs of a prediction: no device" in lines
    assert "## mIoU" in (workdir / "table.md").read_text()
    lines, _, _, stopped = studied(fails=("DeP-2-seed0",), costs=True, workdir="other")
    assert stopped == 2 and "1 cell of 8 failed: DeP-2-seed0." in lines
    assert "The costs of a prediction are missing too: no device" in lines


def test_the_lines_of_a_run_are_kept_although_the_folder_of_logs_was_removed(tmp_path):
    log, lines = tmp_path / "logs" / "costs.log", []
    status, _, last = child_run.run_watched(["-Sc", "print('one\\ntwo')"], log, lines.append)
    assert (status, last, log.read_text()) == (0, "two", "one\ntwo\n")
    assert lines == ["  one", "  two"]
