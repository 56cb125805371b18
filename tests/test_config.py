"""Configs are checked whole, in sentences."""

import math
import runpy
from pathlib import Path

import pytest

from diffseg_jax.config.schema import (
    Flag,
    Named,
    Number,
    Pattern,
    Several,
    Some,
    Text,
    check_options,
    differing_lines,
)
from diffseg_jax.errors import UserError, choose
from diffseg_jax.experiment.plan import check_config

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/*.py"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_ours_is_valid(file, tmp_path):
    config = runpy.run_path(str(file))["get_config"]()
    if any(stage.start == "weights" for stage in config.stages.values()) and not config.weights:
        config.weights = str(tmp_path / "official.pt")  # which is the user's to name
        Path(config.weights).touch()
    check_config(config)


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
}
GOOD = {"a": 1, "b": {"c": "x"}, "d": {"one": {"e": True}, "two": {"e": False}}, "f": {"g": 1}}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({}, ""),
        ({"f": {}}, ""),
        ({"z": 1}, 'unknown option "z" in the config. Known: a, b, d, f.'),
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


def test_differing_lines_are_those_that_differ():
    old = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": 0}
    new = {"a": 1, "b": {"c": [1, 3], "d": 3}, "new": {"e": 1}}
    assert differing_lines(old, old) == []
    assert differing_lines(old, new) == [
        "b.c: [1, 2] -> [1, 3]", "gone: 0 -> (absent)", "new: (absent) -> {'e': 1}",
    ]  # fmt: skip
