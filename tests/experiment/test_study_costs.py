"""Costs of a study whose network was trained: which network is measured, and how."""

import json
import shutil

import jax
import pytest

from diffseg_jax import cli, study
from diffseg_jax.experiment import study_costs
from diffseg_jax.experiment.study_cells import cells_of_study, folder_of_run
from diffseg_jax.experiment.study_file import read_study
from diffseg_jax.experiment.study_progress import file_of_cell
from diffseg_jax.storage.paths import write_json
from study_case import FIELDS

CHANGED = dict(
    axes={
        "pretraining": {"DeP": FIELDS["axes"]["pretraining"]["DeP"]}, "evaluate.flip": (False, True)
    },
    seeds={"seed": (0,)}, evaluated=("evaluate.flip",), costs=True,
)  # fmt: skip


@pytest.fixture
def finished(tiny_run, write, tmp_path):
    """(file, workdir) of a study whose cells are measured, and whose run is a whole one."""
    file, workdir = write(**CHANGED), tmp_path / "studied"
    for cell in cells_of_study(read_study(file)):
        folder = folder_of_run(workdir, cell.run)
        shutil.copytree(tiny_run.workdir, folder, dirs_exist_ok=True)
        write_json(folder / "results.json", {"pretrain": {}, "finetune": {}})
        write_json(file_of_cell(workdir, cell), {"numbers": {"mIoU": 0.5}})
    return file, workdir


def test_the_last_stage_of_a_run_is_measured_with_the_options_of_every_point(
    finished, monkeypatch, capsys
):
    (file, workdir), opened, starts = finished, [], []
    real_plan, real_open = study_costs.plan_evaluations, study_costs.open_network

    def plan_evaluations(config, *arguments):
        starts.append(config.stages.finetune.start)
        return real_plan(config, *arguments)

    def open_network(folder, step):
        network, meta = real_open(folder, step)
        opened.append((folder.name, step, network))
        return network, meta

    monkeypatch.setattr(study_costs, "plan_evaluations", plan_evaluations)
    monkeypatch.setattr(study_costs, "open_network", open_network)
    monkeypatch.setattr(cli, "use_cache", lambda path=None: None)  # it is one of the process
    study.main([f"--config={file}", f"--workdir={workdir}", "--costs"])
    assert [each[:2] for each in opened] == [("finetune", 8)] * 2
    assert starts == [str(workdir / "runs" / "pretrain" / "checkpoints" / "pretrain")] * 2
    costs = json.loads((workdir / "costs.json").read_text())
    plain, flipped = costs["DeP-False"], costs["DeP-True"]
    assert plain["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(opened[0][2]["params"]))
    assert flipped["operations"]["float32"] == 2 * plain["operations"]["float32"] > 0
    assert (plain["image"], plain["batch"]) == ([32, 48], 4) and plain["ms"] > 0
    assert "## Cost of a prediction" in (workdir / "table.md").read_text()
    assert f"DeP-True: {plain['parameters']:,} parameters, " in capsys.readouterr().out
