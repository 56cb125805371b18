"""Curves: every quantity of every run and stage has a line, also after a resumed run."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from diffseg_jax import plot
from diffseg_jax.errors import UserError
from diffseg_jax.figures.curve_data import read_curves, read_numbers
from diffseg_jax.figures.curves import draw_curves, smoothed, style_of
from diffseg_jax.training.log import Log

pytestmark = pytest.mark.quick


def write(workdir, *lines):
    """A workdir with these records, (stage, step, numbers), or lines of text."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "metrics.jsonl", "a") as file:
        for line in lines:
            if not isinstance(line, str):
                stage, step, numbers = line
                line = json.dumps({"stage": stage, "step": step, "time": 1.5, **numbers})
            file.write(line + "\n")
    return workdir


def train(workdir, stage="train", steps=range(10, 310, 10), shift=0.0):
    """A stage that logs and is evaluated at its end."""
    loss = lambda step: {"loss": 3 / step + shift, "learning_rate": 1e-3, "images_per_second": 8.0}
    return write(
        workdir,
        *((stage, step, loss(step)) for step in steps),
        (stage, steps[-1], {"mIoU": 0.4 + shift / 10, "images": 24}),
    )


def lines_of(figure, title):
    """The lines that the panel of that title shows."""
    (panel,) = (axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return list(panel.lines)


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_log_of_a_run_is_read(tmp_path):
    log = Log(tmp_path)
    log.rewind("train", 0)
    log.write("train", 20, {"loss": 0.5, "learning_rate": 1e-3})
    log.write("train", 20, {"mIoU": 0.25})
    log.write("align", 10, {"loss": 0.25})
    log.close()
    found = read_numbers(tmp_path)
    assert {stage: set(values) for stage, values in found.items()} == {
        "train": {"loss", "learning_rate", "mIoU"}, "align": {"loss"},
    }  # fmt: skip
    assert [part.tolist() for part in found["train"]["loss"]] == [[20], [0.5]]


def test_the_later_number_of_a_repeated_step_counts(tmp_path):
    write(
        tmp_path,
        *(("train", step, {"loss": float(step)}) for step in (1, 2, 3)),
        *(("train", step, {"loss": -float(step)}) for step in (2, 4)),
        ("train", 2, {"mIoU": 0.5}),
    )
    steps, values = read_numbers(tmp_path)["train"]["loss"]
    assert steps.tolist() == [1, 2, 3, 4] and values.tolist() == [1, -2, 3, -4]


def test_invalid_lines_are_skipped(tmp_path):
    write(
        tmp_path, ("train", 1, {"loss": 2.0, "text": "a", "list": [1], "flag": True}),
        "", "[1, 2]", "3", '"train"', "[" * 100_000, "\x00\xff", '{"stage": "train"}',
        '{"stage": 3, "step": 1, "loss": 1.0}', '{"stage": "train", "step": -1, "loss": 1.0}',
        '{"stage": "train", "step": 1e99, "loss": 1.0}', '{"stage": "a", "step": true, "loss": 1}',
        '{"stage": "train", "step": 2, "loss": 1' + 400 * "0" + "}",
        '{"stage": "train", "step": 3, "loss": NaN}',
        '{"stage": "train", "step": 4, "loss": Infinity}', '{"stage": "train", "st',
    )  # fmt: skip
    found = read_numbers(tmp_path)
    assert list(found) == ["train"] and list(found["train"]) == ["loss"]
    steps, values = found["train"]["loss"]
    assert steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(values, [2.0, np.nan, np.nan, np.nan])
    draw_curves(read_curves([tmp_path])).draw_without_rendering()


def test_every_quantity_has_a_panel_and_every_stage_a_line(tmp_path):
    train(train(tmp_path), "align", range(10, 60, 10))
    figure = draw_curves(read_curves([tmp_path]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:4] == ["loss", "mIoU (%)", "learning rate", "images/s"]
    assert legend_of(figure) == ["train", "align"]
    raw, smooth, few = lines_of(figure, "loss")
    np.testing.assert_allclose(raw.get_ydata(), 3 / np.arange(10, 310, 10))
    assert raw.get_linewidth() < 1 < smooth.get_linewidth() and few.get_marker() == "o"
    assert raw.get_color() == smooth.get_color() != few.get_color()
    assert figure.axes[0].get_yscale() == "log" and figure.axes[1].get_yscale() == "linear"
    assert [line.get_ydata().tolist() for line in lines_of(figure, "mIoU (%)")] == [[40.0]] * 2
    assert len(lines_of(figure, "learning rate")) == 2  # never smoothed


def test_runs_differ_by_colour_and_stages_by_line_style(tmp_path):
    folders = [tmp_path / name / "run" for name in ("a", "b")]
    for shift, folder in enumerate(folders):
        train(train(folder, shift=shift), "align", shift=shift)
    curves = read_curves([*folders, f"{folders[0]}/"])  # the first run twice
    assert [curve.name for curve in curves] == [
        f"{run}, {stage}" for run in ("a/run", "b/run") for stage in ("train", "align")
    ]
    styles = [style_of(curve, curves) for curve in curves]
    assert styles[0]["color"] == styles[1]["color"] != styles[2]["color"]
    assert styles[0]["linestyle"] == styles[2]["linestyle"] != styles[1]["linestyle"]


def test_many_runs_have_different_styles(tmp_path):
    curves = read_curves([train(tmp_path / f"run_{n}", steps=[1, 2]) for n in range(20)])
    styles = {tuple(style_of(curve, curves).values()) for curve in curves}
    assert len(styles) == 20
    assert [curve.name for curve in curves] == [f"run_{n}" for n in range(20)]
    figure = draw_curves(curves)
    figure.draw_without_rendering()
    assert legend_of(figure) == [curve.name for curve in curves]
    box = figure.legends[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1 and box.y0 > max(axes.bbox.y1 for axes in figure.axes)


@pytest.mark.parametrize("name", ["_hidden", "a$b", "$\\frac{$", "x" * 300, "ö\n"])
def test_the_legend_shows_names_unchanged(tmp_path, name):
    write(tmp_path, (name, 1, {"loss": 1.0, "$x$": 2.0}))
    figure = draw_curves(read_curves([tmp_path]))
    figure.draw_without_rendering()
    (shown,) = legend_of(figure)
    assert shown == name or (len(name) > 100 > len(shown))


def test_smoothing_keeps_smooth_curves_and_halves_noise():
    np.testing.assert_allclose(smoothed(np.full(200, 3.0)), 3.0)
    line = np.arange(200.0)
    np.testing.assert_allclose(smoothed(line)[20:-20], line[20:-20])  # does not lag
    noise = np.random.default_rng(0).normal(size=200)
    assert smoothed(noise).std() < 0.5 * noise.std()
    gap = np.where(np.arange(200) == 50, np.nan, 3.0)
    np.testing.assert_allclose(smoothed(gap), gap)  # one step does not spread


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
def test_the_command_writes_an_image_and_the_last_numbers(tmp_path, capsys, ending):
    folders = train(tmp_path / "a"), train(tmp_path / "long_name", shift=1.0)
    output = tmp_path / "new" / f"curves.{ending}"
    output.parent.mkdir()
    arguments = [f"--workdir={folder}" for folder in folders] + [f"--output={output}"]
    plot.main(arguments)
    printed, content = capsys.readouterr().out, output.read_bytes()
    assert [line.split() for line in printed.splitlines()] == [
        ["step", "loss", "mIoU", "images/s"],
        ["a", "300", "0.01", "40.00", "%", "8"],
        ["long_name", "300", "1.01", "50.00", "%", "8"],
        ["curves", "in", str(output)],
    ]
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending.lower()]
    assert content.startswith(start)
    if ending == "png":
        assert np.ptp(np.asarray(Image.open(output).convert("L"))) > 200
    if ending == "svg":
        plot.main(arguments)
        assert output.read_bytes() == content  # the same curves, the same bytes


@pytest.mark.parametrize("numbers", [{"loss": 0.0}, {"loss": -1.0}, {"loss": math.nan}])
def test_numbers_without_a_logarithm_are_drawn(tmp_path, numbers):
    write(tmp_path, *(("train", step, numbers) for step in range(30)))
    write(tmp_path, ("train", 0, {"loss": 100.0}))
    figure = draw_curves(read_curves([tmp_path]))
    figure.draw_without_rendering()
    assert figure.axes[0].get_yscale() == "linear"


def empty(folder):
    return write(folder, ("train", 1, {"images": 3}))


def as_file(folder):
    folder.write_text("")
    return folder


def bare(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda folder: folder, "there is no folder .*run.* main"),
        (bare, "holds no metrics.jsonl.* --workdir"),
        (empty, "holds no numbers yet.* --workdir"),
        (as_file, "there is no folder"),
    ],
)
def test_workdirs_without_numbers_are_refused(tmp_path, make, sentence):
    with pytest.raises(UserError, match=sentence):
        read_curves([train(tmp_path / "good"), make(tmp_path / "run")])


@pytest.mark.parametrize(
    "output, sentence",
    [
        ("curves.jpg", "must end with .png, .svg, .pdf"),
        ("curves", "must end with"),
        ("folder.png", "is a folder.*folder.png/curves.png"),
        ("run/metrics.jsonl/curves.png", "cannot be written .*--output"),
    ],
)
def test_impossible_outputs_are_one_sentence(tmp_path, capsys, output, sentence):
    (tmp_path / "folder.png").mkdir()
    workdir = train(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        plot.main([f"--workdir={workdir}", f"--output={tmp_path / output}"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert re.search(sentence, printed.err)
