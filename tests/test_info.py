"""What `info` says of a checkpoint, from the JSON beside it alone."""

import io
import json
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from diffseg_jax import info
from diffseg_jax.inference import description, description_text
from diffseg_jax.inference.converted import convert_run
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.storage import checkpoints
from diffseg_jax.storage.checkpoints import open_network


@pytest.fixture
def stage(tiny_run):
    return tiny_run.workdir / "checkpoints" / "finetune"


def shown(found, **options):
    console = Console(file=io.StringIO(), width=60, **options)
    description_text.show(found, console)
    return console.file.getvalue()


def test_a_workdir_tells_its_stages_data_and_results(tiny_run):
    found = description.describe(tiny_run.workdir, "finetune")
    assert [stage["name"] for stage in found["stages"]] == ["pretrain", "finetune", "scratch"]
    assert all(stage["finished"] and stage["step"] == stage["of"] == 8 for stage in found["stages"])
    assert found["trained_on"]["labelled"]["n"] == 6 and found["trained_on"]["source"] == "scenes"
    results = json.loads((tiny_run.workdir / "results.json").read_text())
    assert found["results"] == results["finetune"]
    assert found["system"] == "ddep" and len(found["classes"]) == len(found["palette"])


def test_parameters_are_those_that_are_opened(stage):
    network, meta = open_network(stage)
    found = description.describe(stage)
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
    description.describe(stage)


def test_a_converted_directory_stands_alone(tiny_run, stage, tmp_path):
    convert_run(tiny_run.workdir, tmp_path / "small", stage="finetune", dtype="float16")
    found, whole = description.describe(tmp_path / "small"), description.describe(stage)
    assert [one["name"] for one in found["stages"]] == ["finetune"]
    for here, there in zip(found["parameters"], whole["parameters"], strict=True):
        assert here == {**there, "bytes": there["bytes"] // 2}
    for word in ("taps", "classes", "trained_on", "normalisation"):
        assert found[word] == whole[word]
    assert found["results"] == whole["results"] is not None


def test_a_stage_that_is_cut_short_is_not_finished(stage, tiny_run, monkeypatch):
    real = description.open_meta
    monkeypatch.setattr(description, "open_meta", lambda path: {**real(path), "step": 6})
    assert not description.describe_stage("finetune", stage)["finished"]
    assert "step 6 of 8, not finished" in shown(description.describe(stage))


def test_averages_take_the_place_of_what_was_trained():
    names = ("params/head", "ema/0.5/head", "ema/0.9/head", "frozen/unet", "stats/norm", "opt/0/mu")
    arrays = {name: {"shape": [place], "dtype": "float32"} for place, name in enumerate(names, 1)}
    shapes = description.shapes_of({"arrays": arrays, "ema": [0.9, 0.5]})
    sizes = jax.tree.map(lambda leaf: leaf.size, shapes)
    assert sizes == {"params": {"head": 3, "unet": 4}, "stats": {"norm": 5}}


def test_the_page_shows_all_and_cuts_nothing(stage):
    found = description.describe(stage)
    page = shown(found)
    for heading in ("Stages", "Classes", "Parameters", "Trained on", "Normalisation", "Results"):
        assert f"\n{heading}" in page
    for text in (*found["classes"], *found["taps"], found["use"]["command"], "mIoU", str(stage)):
        assert text in page
    assert "\x1b" not in page


def test_swatches_come_with_colours(stage):
    found = description.describe(stage)
    page = shown(found, force_terminal=True, color_system="truecolor")
    red, green, blue = found["palette"][2]
    assert re.search(rf"\x1b\[38;2;{red};{green};{blue}m█+ ?\x1b\[0m{found['classes'][2]}", page)


def test_names_are_not_read_as_markup(stage):
    found = {**description.describe(stage), "classes": ["[red]road[/]"], "palette": []}
    assert "[red]road[/]" in shown(found)


def test_the_command_prints_json_and_sentences(stage, tmp_path, capsys):
    info.main([f"--checkpoint={stage}", "--json"])
    assert json.loads(capsys.readouterr().out) == description.describe(stage)
    with pytest.raises(SystemExit):
        info.main([f"--checkpoint={tmp_path / 'none'}"])
    assert re.fullmatch(r"error: .*none is not there: looked for .*\n", capsys.readouterr().err)


def test_how_pictures_are_shown_is_said():
    options = {
        "evaluate": {"view": "slide", "window": [64, 96], "stride": [32, 48], "flip": True,
                     "scales": [0.5, 1.0], "limit": [0, 0], "short": 128, "batch_size": 4},
        "data": {"val": "test"},
    }  # fmt: skip
    assert description_text.protocol_line(description.evaluation_of(options)) == (
        "windows of 64 x 96 every 32 x 48 of split test, shorter side brought to 128, "
        "at scales 0.5, 1.0, and mirrored"
    )
    assert description_text.protocol_line(description.evaluation_of({})) == "whole pictures"


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
