"""`info` describes a checkpoint from the metadata beside its arrays."""

import io
import json
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from diffseg_jax import info
from diffseg_jax.inference import description, description_text, label_report, task_report
from diffseg_jax.inference.converted import convert_run
from diffseg_jax.inference.description import describe_checkpoint
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.metrics.segmentation import scores, to_json
from diffseg_jax.storage import checkpoints
from diffseg_jax.storage.networks import open_network


@pytest.fixture
def stage(tiny_run):
    return tiny_run.workdir / "checkpoints" / "finetune"


def shown(found, **options):
    console = Console(file=io.StringIO(), width=60, **options)
    description_text.show(found, console)
    return console.file.getvalue()


def test_a_workdir_has_stages_data_and_results(tiny_run):
    found = describe_checkpoint(tiny_run.workdir, "finetune")
    assert [stage["name"] for stage in found["stages"]] == ["pretrain", "finetune", "scratch"]
    assert all(stage["finished"] and stage["step"] == stage["of"] == 8 for stage in found["stages"])
    assert found["trained_on"]["labelled"]["n"] == 6 and found["trained_on"]["source"] == "scenes"
    results = json.loads((tiny_run.workdir / "results.json").read_text())
    assert found["results"] == results["finetune"]
    assert found["system"] == "ddep" and len(found["classes"]) == len(found["palette"])


def test_parameters_are_those_that_load_opens(stage):
    network, meta = open_network(stage)
    found = describe_checkpoint(stage)
    expected = {
        part: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for part, tree in network["params"].items()
    }
    assert {entry["part"]: entry["count"] for entry in found["parameters"]} == expected
    assert all(entry["bytes"] == 4 * entry["count"] for entry in found["parameters"])
    assert found["taps"] == list(Segmenter(stage, network, meta).taps)


def test_no_array_is_read(stage, monkeypatch):
    def read(*_):
        raise AssertionError("an array was read")

    monkeypatch.setattr(checkpoints.ocp.PyTreeCheckpointHandler, "restore", read)
    describe_checkpoint(stage)


def test_a_converted_directory_stands_alone(tiny_run, stage, tmp_path):
    convert_run(tiny_run.workdir, tmp_path / "small", stage="finetune", dtype="float16")
    found, whole = describe_checkpoint(tmp_path / "small"), describe_checkpoint(stage)
    assert [one["name"] for one in found["stages"]] == ["finetune"]
    for here, there in zip(found["parameters"], whole["parameters"], strict=True):
        assert here == {**there, "bytes": there["bytes"] // 2}
    for key in ("taps", "classes", "trained_on", "normalisation"):
        assert found[key] == whole[key]
    assert found["results"] == whole["results"] is not None


def test_an_interrupted_stage_is_not_finished(stage, tiny_run, monkeypatch):
    real = description.open_meta
    monkeypatch.setattr(description, "open_meta", lambda path: {**real(path), "step": 6})
    assert not description.stage_entry("finetune", stage)["finished"]
    assert "step 6 of 8, not finished" in shown(describe_checkpoint(stage))


def test_averages_replace_the_trained_parameters():
    names = ("params/head", "ema/0.5/head", "ema/0.9/head", "frozen/unet", "stats/norm", "opt/0/mu")
    arrays = {name: {"shape": [size], "dtype": "float32"} for size, name in enumerate(names, 1)}
    shapes = description.shapes_of({"arrays": arrays, "ema": [0.9, 0.5]})
    sizes = jax.tree.map(lambda leaf: leaf.size, shapes)
    assert sizes == {"params": {"head": 3, "unet": 4}, "stats": {"norm": 5}}


def test_the_text_contains_everything_uncut(stage):
    found = describe_checkpoint(stage)
    page = shown(found)
    for heading in ("Stages", "Classes", "Parameters", "Trained on", "Normalisation", "Results"):
        assert f"\n{heading}" in page
    for text in (*found["classes"], *found["taps"], found["use"]["command"], "mIoU", str(stage)):
        assert text in page
    assert "\x1b" not in page


def test_terminals_with_colours_show_swatches(stage):
    found = describe_checkpoint(stage)
    page = shown(found, force_terminal=True, color_system="truecolor")
    red, green, blue = found["palette"][2]
    assert re.search(rf"\x1b\[38;2;{red};{green};{blue}m█+ ?\x1b\[0m{found['classes'][2]}", page)


def test_names_are_not_read_as_markup(stage):
    found = {**describe_checkpoint(stage), "classes": ["[red]road[/]"], "palette": []}
    assert "[red]road[/]" in shown(found)


def test_the_command_prints_json_and_sentences(stage, tmp_path, capsys):
    info.main([f"--checkpoint={stage}", "--json"])
    assert json.loads(capsys.readouterr().out) == describe_checkpoint(stage)
    with pytest.raises(SystemExit):
        info.main([f"--checkpoint={tmp_path / 'none'}"])
    assert re.fullmatch(r"error: .*none does not exist: looked for .*\n", capsys.readouterr().err)


def test_the_protocol_of_the_evaluation_is_one_line():
    options = {
        "evaluate": {"view": "slide", "window": [64, 96], "stride": [32, 48], "flip": True,
                     "scales": [0.5, 1.0], "limit": [0, 0], "short": 128, "batch_size": 4},
        "data": {"val": "test"},
    }  # fmt: skip
    assert task_report.protocol_line(description.evaluation_of(options)) == (
        "windows of 64 x 96 every 32 x 48 of split test, shorter side resized to 128, "
        "at scales 0.5, 1.0, and mirrored"
    )
    assert task_report.protocol_line(description.evaluation_of({})) == "whole images"


def test_numbered_parts_count_as_one():
    arrays = {
        f"params/{name}/kernel": {"shape": [2, 3], "dtype": "bfloat16"}
        for name in ("input_0", "input_11", "time1", "head")
    }
    arrays["frozen/unet/scale"] = {"shape": [], "dtype": "float32"}
    found = {entry["part"]: entry for entry in description.parameters_of(arrays)}
    assert {part: entry["count"] for part, entry in found.items()} == {
        "input": 12, "time": 6, "head": 6, "unet": 1,
    }  # fmt: skip
    assert found["input"]["bytes"] == 24 and not found["unet"]["trained"]
    assert np.isscalar(found["unet"]["count"])


@pytest.mark.quick
def test_results_say_whether_the_calibrator_is_kept():
    results = to_json(scores(np.diag([3, 1]), absent="skip"), ["road", "sky"])
    numbers = {"of": "uncertainty", "ECE": 0.1, **dict.fromkeys(("Brier", "AUROC", "AUPR", "AURC"))}
    for kept, words in ((True, "uncertainty, as"), (False, "uncertainty, which is not kept, as")):
        found = {**results, "step": 8, "images": 2, "calibrated": {**numbers, "kept": kept}}
        last = label_report.result_lines(found)[-1]
        assert last == f"{words} the chance of an error: ECE 0.100"
