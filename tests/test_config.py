"""Configs are checked whole, in sentences."""

import math
import runpy
from pathlib import Path

import pytest

from diffseg_jax import main
from diffseg_jax.config.files import MOVED, read_config
from diffseg_jax.config.schema import (
    Flag,
    Named,
    Number,
    Optional,
    Pattern,
    Several,
    Some,
    Text,
    check_options,
    differing_lines,
)
from diffseg_jax.errors import UserError, choose
from diffseg_jax.experiment.plan import check_config

pytestmark = pytest.mark.quick

TINY = Path(__file__).parent / "configs" / "tiny_ddep.py"
CONFIGS = sorted(Path(__file__).parents[1].glob("configs/*.py"))


EVERY = [  # each config file alone and with each of its presets
    f"{file}{preset}"
    for file in CONFIGS
    for preset in ("", *(f":{name}" for name in runpy.run_path(str(file)).get("PRESETS", ())))
]


@pytest.mark.parametrize("given", EVERY, ids=lambda given: Path(given).name)
def test_every_config_and_preset_is_valid(given, tmp_path):
    config = read_config(given)
    needs_file = any(stage.start == "weights" for stage in config.stages.values())
    if needs_file and not config.get("weights", "in a package"):
        config.weights = str(tmp_path / "official.pt")  # users name the file
        Path(config.weights).touch()
    check_config(config)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_its_command_and_its_presets(file):
    content = runpy.run_path(str(file))
    text = content["__doc__"]
    assert f"python -m diffseg_jax.main --config=configs/{file.name}" in text
    assert [name for name in content.get("PRESETS", ()) if name not in text] == []


@pytest.mark.parametrize(
    "given, meant",
    [
        ("ddp_scenes", "configs/ddp_scenes.py"),
        ("label_fractions", "configs/studies/label_fractions.py"),
        ("configs/steps.py:scenes", "configs/studies/steps.py:scenes"),
    ],
)
def test_a_config_without_its_folder_is_found_in_those_of_the_repository(given, meant, monkeypatch):
    monkeypatch.chdir(CONFIGS[0].parents[1])
    with pytest.raises(UserError, match=f'Did you mean "{meant}"'):
        read_config(given)


@pytest.mark.parametrize("old, new", MOVED.items(), ids=MOVED)
def test_an_old_file_name_is_still_accepted(old, new, capsys):
    folder = CONFIGS[0].parent
    assert read_config(str(folder / old)) == read_config(str(folder / new))
    assert capsys.readouterr().err == (
        f"warning: {folder / old} is now {folder / new}. Give --config={folder / new}; the next "
        "version refuses the old name.\n"
    )


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(UserError) as error:
        read_config(str(TINY.parents[2] / "configs/ddep_cityscapes.py:ddp"))
    assert 'cityscapes.py "ddp". Known: ddep, dep, none, ' in str(error.value)
    assert str(error.value).endswith('Did you mean "ddep"?')


def test_the_tiny_config_is_valid(tiny_config):
    check_config(tiny_config)


def test_choose_finds_or_suggests():
    assert choose({"ddep": 1, "ddp": 2}, "ddp", "system") == 2
    with pytest.raises(UserError) as error:
        choose({"ddep": 1, "ddp": 2}, "ddepp", "system")
    assert str(error.value) == 'unknown system "ddepp". Known: ddep, ddp. Did you mean "ddep"?'


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (Number(int, 1, 5), [1, 5], [0, 6, 2.0, "2", True, None]),
        (Number(), [0, -1.5], ["x", True, math.nan]),
        (Number(float, 0, 1), [0, 0.5, 1], [-0.1, 1.1, math.inf]),
        (Text(), ["", "x"], [1, None]),
        (Text(("a", "b")), ["a"], ["c", ""]),
        (Pattern(), ["norm", r"stage.*\.norm"], ["*norm", 3, None]),
        (Flag(), [True, False], [0, 1, "True"]),
        (Several(Number(int), 2), [(1, 2), [1, 2]], [(1,), (1, 2, 3), 3, (1, "x")]),
        (Several(Text()), [(), ("a",)], ["a", (1,)]),
    ],
)
def test_rules(rule, good, bad):
    assert [rule.problem(value) for value in good] == [""] * len(good)
    assert all(rule.problem(value) for value in bad)


ALLOWED = {
    "a": Number(int, 0),
    "b": {"c": Text(("x", "yes"))},
    "d": Named({"e": Flag()}),
    "f": Some({"g": Number(int, 0), "h": Flag()}),
    "w": Optional(Flag()),
}
GOOD = {"a": 1, "b": {"c": "x"}, "d": {"one": {"e": True}, "two": {"e": False}}, "f": {"g": 1}}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({}, ""),
        ({"f": {}}, ""),
        ({"w": True}, ""),
        ({"w": 1}, "w is 1, but it must be True or False."),
        ({"z": 1}, 'unknown option "z" in the config. Known: a, b, d, f, w.'),
        ({"b": {"cc": "x"}}, 'unknown option "b.cc" in the config. Did you mean "c"?'),
        ({"b": {}}, 'the config lacks the option "b.c"; write it into the file.'),
        ({"a": "1"}, "a is '1', but it must be a whole number."),
        ({"a": -1}, "a is -1, but it must be a whole number from 0 up."),
        ({"b": 3}, "b is 3, but it must be a dict of options."),
        ({"b": {"c": "ye"}}, "b.c is 'ye', but it must be one of x, yes. Did you mean \"yes\"?"),
        ({"d": {"one": {"e": 1}}}, "d.one.e is 1, but it must be True or False."),
        ({"f": {"i": 1}}, 'unknown option "f.i" in the config. Known: g, h.'),
        ({"f": {"h": 1}}, "f.h is 1, but it must be True or False."),
    ],
)
def test_the_first_mistake_is_one_sentence(change, sentence):
    if not sentence:
        check_options({**GOOD, **change}, ALLOWED)
        return
    with pytest.raises(UserError) as error:
        check_options({**GOOD, **change}, ALLOWED)
    assert str(error.value) == sentence


def test_an_option_that_a_config_lacks_is_an_empty_one():
    """So a run of an earlier version resumes with a config that has `weights_part`."""
    assert differing_lines({"a": 1}, {"a": 1, "weights_part": ""}) == []
    assert differing_lines({"a": 1}, {"a": 1, "weights_part": "ema"}) != []
    old, new = {"ensemble": {}}, {"ensemble": {"probe": True}}
    assert differing_lines(old, new) == [] == differing_lines(new, old)
    assert differing_lines(old, {"ensemble": {"probe": False}}) != []


def test_a_config_without_a_loss_is_one_with_that_of_the_paper():
    """So a run of an earlier version resumes with a config that has the options of the loss."""
    paper = dict(
        name="cross_entropy", focal_gamma=2, class_weights=["none"], region="none",
        region_weight=1.0,
    )  # fmt: skip
    assert differing_lines({"a": 1}, {"a": 1, "loss": paper}) == []
    assert differing_lines({"a": 1, "loss": paper}, {"a": 1, "loss": {}}) == []
    assert differing_lines({"a": 1}, {"a": 1, "loss": {**paper, "name": "focal"}}) == [
        "loss.name: (absent) -> focal"
    ]


def test_a_stage_without_the_changes_that_papers_do_not_make_has_them_off():
    off = dict(rotate=0.0, flip_vertical=False, grey=0, blur=0.0)
    old, new = ({"stages": {"a-b": {"augment": each}}} for each in ({}, off))
    assert differing_lines(old, new) == [] == differing_lines(new, old)
    new["stages"]["a-b"]["augment"]["rotate"] = 5.0
    assert differing_lines(old, new) == ["stages.a-b.augment.rotate: (absent) -> 5.0"]


def test_differing_lines_are_those_that_differ():
    old = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": 0}
    new = {"a": 1, "b": {"c": [1, 3], "d": 3}, "new": {"e": 1}}
    assert differing_lines(old, old) == []
    assert differing_lines(old, new) == [
        "b.c: [1, 2] -> [1, 3]", "gone: 0 -> (absent)", "new: (absent) -> {'e': 1}",
    ]  # fmt: skip


# ---- options changed by flags --------------------------------------------------------------------


def overridden(*arguments):
    """The tiny config after those arguments of the command line."""
    flags, overrides = main.split_overrides(arguments)
    assert not flags
    return read_config(str(TINY), overrides)


@pytest.mark.parametrize(
    "arguments, option, value",
    [
        (["--config.seed=4"], "seed", 4),
        (["--config.seed", "4"], "seed", 4),
        (["--config.mesh.data", "-1"], "mesh.data", -1),
        (["-config.seed=4"], "seed", 4),
        (["--config.seed=4", "--config.seed=5"], "seed", 5),
        (["--config.stages.pretrain.optim.peak_lr=1"], "stages.pretrain.optim.peak_lr", 1.0),
        (["--config.stages.pretrain.optim.peak_lr=1e-3"], "stages.pretrain.optim.peak_lr", 1e-3),
        (["--config.remat"], "remat", True),
        (["--config.remat", "--config.seed=1"], "remat", True),
        (["--config.remat=TRUE"], "remat", True),
        (["--config.data.cache=0"], "data.cache", False),
        (["--noconfig.data.cache"], "data.cache", False),
        (["--config.data.path=a=b"], "data.path", "a=b"),
        (["--config.data.path=1"], "data.path", "1"),
        (["--config.data.path="], "data.path", ""),
        (["--config.data.options.size=(1, 2)"], "data.options.size", (1, 2)),
        (["--config.data.options.size=1,2"], "data.options.size", (1, 2)),
        (["--config.evaluate.scales=[0.5, 1]"], "evaluate.scales", (0.5, 1)),
        (["--config.run=('finetune',)"], "run", ("finetune",)),
        (["--config.run=finetune"], "run", ("finetune",)),
        (["--config.run=pretrain", "--config.run=finetune"], "run", ("pretrain", "finetune")),
        (["--config.run=()"], "run", ()),
        (["--config.stages.scratch.augment.rotate=5"], "stages.scratch.augment.rotate", 5.0),
        (["--config.stages.scratch.augment.flip_vertical"], "stages.scratch.augment.flip_vertical",
         True),
        (["--config.loss.name=focal"], "loss.name", "focal"),  # the file has no group "loss"
        (["--config.loss.class_weights=none"], "loss.class_weights", ("none",)),
        (["--config.loss.class_weights=(1, 2.5)"], "loss.class_weights", (1, 2.5)),
        (["--config.loss.region_weight=1"], "loss.region_weight", 1.0),
        ([r"--config.stages.scratch.optim.no_decay=x\..*"], "stages.scratch.optim.no_decay",
         (r"x\..*",)),
    ],
)  # fmt: skip
def test_a_flag_has_the_type_of_the_option(arguments, option, value):
    found = overridden(*arguments)
    for key in option.split("."):
        found = found[key]
    assert found == value and type(found) is type(value)


def test_other_flags_are_left_to_the_command():
    flags, overrides = main.split_overrides(
        ["--config=a.py:x", "--config.seed", "1", "--mode", "eval", "--config.remat", "--workdir=w"]
    )
    assert flags == ["--config=a.py:x", "--mode", "eval", "--workdir=w"]
    assert overrides == [("seed", "1"), ("remat", True)]


def test_a_config_file_is_run_once(tmp_path):
    file = tmp_path / "counted.py"
    log = f'open({str(tmp_path / "log")!r}, "a").write("run ")'
    file.write_text(TINY.read_text().replace("def get_config", f"{log}\n\n\ndef get_config"))
    read_config(str(file), [("seed", "1")])
    assert (tmp_path / "log").read_text() == "run "


def test_a_config_is_locked():
    with pytest.raises(AttributeError):
        overridden().surplus = 1


@pytest.mark.parametrize(
    ("typed", "subset"),
    [
        ({"fraction": "0.5"}, (0.5, 0, "")), ({"list_path": "a.txt"}, (1.0, 0, "a.txt")),
        ({"count": "3"}, (1.0, 3, "")), ({"fraction": "1.0"}, (1.0, 0, "")), ({}, (1.0, 6, "")),
        ({"fraction": "1.0", "count": "3"}, (1.0, 3, "")), ({"count": "0"}, (1.0, 0, "")),
        ({"fraction": "0.5", "count": "3"}, (0.5, 3, "")),  # the user's own conflict is an error
    ],
)  # fmt: skip
def test_the_subset_that_is_typed_replaces_that_of_the_file(typed, subset, capsys):
    data = read_config(str(TINY), [(f"data.{key}", text) for key, text in typed.items()]).data
    assert (data.fraction, data.count, data.list_path) == subset
    said = "data.fraction is given, so data.count=6 of the config is off\n"
    assert capsys.readouterr().err in ("", said, said.replace("fraction", "list_path"))


def test_names_may_stand_between_commas_without_quotes():
    file = TINY.parents[2] / "configs/ddpm_seg_camvid.py"
    read = lambda *given: read_config(str(file), given).features.sources
    assert read(("features.sources", "adm,efficientnet_lite0")) == ("adm", "efficientnet_lite0")
    assert read(("features.sources", "dinov2=a/b.pth")) == ("dinov2=a/b.pth",)
    assert read(("features.source", "colour")) == ("colour",)  # the option of version 0.1.0
