"""What all commands share: flags with several values, and streams that lose their reader."""

import builtins
import math
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from diffseg_jax import (
    annotate,
    cli,
    features,
    labels,
    main,
    plot,
    predict,
    sample,
    study,
    suggest,
    synthesise,
)
from diffseg_jax.devices import starting
from diffseg_jax.display.output import Output
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stages
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.labelled_images import CONTINUED
from diffseg_jax.inference.segmenter import load
from diffseg_jax.metrics import segmentation
from diffseg_jax.storage.paths import write_json

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "given",
    [
        ["--images=a", "b"],
        ["--images", "a", "b"],
        ["--images=a", "--images=b"],
        ["--images", "a", "--images=b"],
    ],
)
def test_several_images_follow_one_flag(given):
    flags = predict.make_flags()
    assert flags.parse_args([*given, "--checkpoint=c", "--output=o"]).images == ["a", "b"]
    assert "--images a.jpg more" in " ".join(flags.format_help().split())


@pytest.mark.parametrize("module", [annotate, features, predict, suggest])
def test_a_flag_that_is_true_or_false_may_stand_alone(module):
    flags = module.make_flags()
    actions = [action for action in flags._actions if action.type is cli.truth]
    required = [f"{a.option_strings[0]}=x" for a in flags._actions if a.required]
    alone = [action.option_strings[0] for action in actions]
    assert alone
    for given, expected in ((alone, True), ([f"{name}=False" for name in alone], False)):
        values = vars(flags.parse_args([*given, *required]))
        assert {values[action.dest] for action in actions} == {expected}


def test_a_wrong_choice_is_refused_with_the_nearest():
    sentence = r'--from is coko, but known are .*Did you mean "coco"\? All flags'
    with pytest.raises(UserError, match=sentence):
        labels.make_flags().parse_args(["--from=coko", "--input=a", "--output=b"])


def test_several_runs_are_drawn_from_one_flag():
    given = plot.make_flags().parse_args(["--workdir=a", "b", "--output=c.png"])
    assert given.workdir == ["a", "b"]


def test_the_home_folder_may_be_given_as_a_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    given = sample.make_flags().parse_args(["--checkpoint=~/a", "--output", "~/b"])
    assert given.checkpoint == "/home/x/a" and given.output == "~/b"  # expanded by shells
    _, overrides = main.split_overrides(["--config.data.path=~/c", "--config.cache"])
    assert overrides == [("data.path", "/home/x/c"), ("cache", True)]


def test_unknown_and_shortened_flags_are_refused_with_the_nearest():
    with pytest.raises(UserError, match='no flag --image. Did you mean "--images"'):
        predict.make_flags().parse_args(["--image=a", "--checkpoint=c", "--output=o"])
    for wrong in ("--confg=x", "--confg.data.path=x", "--conf=x"):
        with pytest.raises(UserError, match='Did you mean "--config"'):
            main.make_flags().parse_args([wrong])


@pytest.mark.parametrize("spelt", ["--dry-run", "--dry_run", "-dry-run"])
def test_dashes_and_underscores_in_the_name_of_a_flag_are_the_same(spelt):
    assert study.make_flags().parse_args(["--config=c", "--workdir=w", spelt]).dry_run
    given = main.make_flags().parse_args(["--memory-fraction=0.5"])
    assert given.memory_fraction == 0.5


@pytest.mark.parametrize("module", [sample, synthesise])
def test_commands_that_write_to_disks_refuse_a_bucket(module, capsys):
    with pytest.raises(SystemExit) as stopped:
        module.main(["--checkpoint=nowhere", "--output=gs://b/x", "--compilation_cache="])
    assert stopped.value.code == 2
    assert "--output is gs://b/x, but this command writes to a folder" in capsys.readouterr().err


def test_a_closed_pipe_stops_nothing(capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        output = Output(stream)
        for _ in range(3):
            print("x" * 100_000, file=output, flush=True)


def test_names_that_are_no_text_are_printed(capfd):
    with cli.user_errors():
        print("caf\udce9.png")
    assert capfd.readouterr().out == "caf\\udce9.png\n"


def test_a_process_without_streams_works():
    output = Output(None)
    print("x", file=output, flush=True)


def test_compiled_programs_are_kept_where_a_user_says(monkeypatch, tmp_path):
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    for cache, folder in ((False, None), (tmp_path / "x", tmp_path / "x"), (True, ".cache")):
        changed.clear()
        with pytest.raises(UserError, match="does not exist"):
            load(tmp_path / "nothing", cache=cache)
        kept = changed.get("jax_compilation_cache_dir")
        expected = folder and str(tmp_path / folder)
        assert kept == (f"{expected}/diffseg_jax" if cache is True else expected)


def test_a_run_without_images_names_none(monkeypatch, tmp_path):
    said = []
    log = SimpleNamespace(say=said.append, close=lambda: None)
    monkeypatch.setattr(segmentation, "format_table", lambda columns: "")
    results = {"a": {"start": "random", "mIoU": 0.5}}
    for images in ("", f", images in {tmp_path / 'pictures'}"):
        stages.report_results(LABEL_TARGET, ("a",), results, tmp_path / "results.json", log)
        file = tmp_path / "results.json"
        assert said[-1] == f"finished: mIoU 50.0 %; numbers in {file}{images}"
        (tmp_path / "pictures").mkdir(exist_ok=True)


def test_the_help_of_minutes_does_not_promise_that_a_fit_fills_them():
    text = " ".join(main.make_flags().format_help().split())
    assert "or fewer where it only fits classifiers" in text


def test_a_run_ends_with_its_main_number_and_the_next_command(tmp_path):
    numbers = {"a": {"mIoU": 0.5}, "b": {"abs_rel": 0.2656, "rmse": 1.0}}
    assert stages.main_number(numbers) == ": abs_rel 0.266"
    assert stages.main_number({**numbers, "c": {"mIoU": None}}) == ""
    learned = {"mIoU": 0.99, "measured_on": {"held_out": False}}
    assert stages.main_number({"a": learned}) == ": mIoU 99.0 % of images that it learned from"
    stage = SimpleNamespace(
        evaluation=True, directory=tmp_path / "my run", task=SimpleNamespace(sample=None)
    )
    run, photos = tmp_path / "my run", "--images=photos --output=predicted"
    command = f"to predict: python -m diffseg_jax.predict '--checkpoint={run}' {photos}"
    write_json(run / "config.json", {})
    for workdir in (run, run / CONTINUED):  # which takes its place
        plan = SimpleNamespace(stages=(stage,), workdir=workdir)
        assert stages.next_command(plan) == command
    plan.workdir = tmp_path / CONTINUED  # a run that is called so
    assert f"--checkpoint={plan.workdir}" in stages.next_command(plan)
    stage.evaluation = None
    assert "nothing to measure" in stages.next_command(plan)
    stage.task.sample = True
    expected = f"diffseg_jax.sample '--checkpoint={stage.directory}' --output=samples"
    assert stages.next_command(plan) == f"to draw images: python -m {expected}"


def test_a_command_knows_when_its_process_was_started(monkeypatch):
    monkeypatch.setattr(starting, "BUSIEST", math.inf)  # these tests may have waited long
    begun = time.monotonic()
    passed = starting.seconds_of_process()
    time.sleep(0.05)
    assert 0.03 < starting.seconds_of_process() - passed <= time.monotonic() - begun + 0.01
    monkeypatch.setattr(starting, "BUSIEST", 0.0)  # as if a shell had slept before
    assert abs(starting.seconds_of_process() - time.process_time()) < 0.02


@pytest.mark.parametrize("given, used", [(None, "3"), ("0", "0")])
def test_the_log_of_xla_is_off_when_it_is_loaded_unless_asked_for(monkeypatch, given, used):
    """XLA reads TF_CPP_MIN_LOG_LEVEL when jax is imported."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", given or "")
    if not given:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    levels, load_module = [], builtins.__import__

    def noting(name, *rest):
        if name.partition(".")[0] in ("jax", "diffseg_jax"):
            levels.append(os.environ.get("TF_CPP_MIN_LOG_LEVEL"))
        return load_module(name, *rest)

    monkeypatch.setattr(builtins, "__import__", noting)
    exec(compile(Path(cli.__file__).read_text(), cli.__file__, "exec"), {"__name__": cli.__name__})
    assert set(levels) == {used}


def test_commands_import_nothing_that_loads_xla_before_the_command_line():
    for file in Path(cli.__file__).parent.glob("*.py"):
        text = file.read_text()
        if re.search(r"^from diffseg_jax\.cli import", text, re.M):  # others load jax later
            text = re.sub(r"^from diffseg_jax\.annotations\.", "", text, flags=re.M)  # without jax
            first = re.search(r"^(from|import) (diffseg_jax|jax|flax|optax|orbax).*$", text, re.M)
            assert first[0].startswith("from diffseg_jax.cli import"), file
