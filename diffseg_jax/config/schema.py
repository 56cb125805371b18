"""The forms that options of a config may take, and what is wrong with one that has another."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping

from diffseg_jax.errors import (
    LONGEST_TEXT,
    LONGEST_VALUE,
    UserError,
    hint,
    nearest,
    shortened,
    shown,
)

LARGEST = {int: 2**31 - 1, float: 3e38}  # that int32 and float32 hold


@dataclasses.dataclass(frozen=True)
class Number:
    """An option that is a number in [low, high], which the network's types hold; whole for int."""

    kind: type = float
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        whole = "whole number" if self.kind is int else "number"
        kinds = int if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or value != value:
            return f"must be a {whole}"
        most = min(self.high, LARGEST[self.kind])
        if not max(self.low, -most) <= value <= most:
            up = value < self.low and self.high == math.inf
            to = "up" if up else f"to {most}" if self.kind is int else f"to {most:g}"
            return f"must be a {whole} from {self.low:g} {to}"
        return ""


@dataclasses.dataclass(frozen=True)
class Text:
    """An option that is text; one of `choices` if there are any."""

    choices: tuple[str, ...] = ()

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        if not isinstance(value, str):
            return "must be text"
        if self.choices and value not in self.choices:
            near = nearest(shortened(value, LONGEST_VALUE), self.choices)
            return f"must be one of {', '.join(self.choices)}.{near}"
        return "" if _can_be_path(value) else f"must be text of at most {LONGEST_TEXT} characters"


def _can_be_path(text):
    try:
        return len(os.fsencode(text)) <= LONGEST_TEXT and "\0" not in text
    except UnicodeEncodeError:
        return False


@dataclasses.dataclass(frozen=True)
class Pattern:
    """An option that is a regular expression, such as a word to look for."""

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        if not isinstance(value, str) or len(value) > LONGEST_VALUE:
            return f"must be text of at most {LONGEST_VALUE} characters"
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            return f"must be a word or a regular expression ({error})"
        return ""


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option that is True or False."""

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        return "" if isinstance(value, bool) else "must be True or False"


@dataclasses.dataclass(frozen=True)
class Several:
    """An option that is a tuple of `each`, of one length if `count` is given."""

    each: object
    count: int = 0
    least: int = 0
    most: int = 1000

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        if not isinstance(value, (tuple, list)) or self.count and len(value) != self.count:
            example = (1,) * self.count or (1,)
            return f"must be a tuple of {self.count or 'some'} values, such as {example}"
        if not self.least <= len(value) <= self.most:
            return f"must hold {self.least} to {self.most} values"
        problems = [self.each.problem(entry) for entry in value]
        return next((f"holds a value that {problem}" for problem in problems if problem), "")


@dataclasses.dataclass(frozen=True)
class Named:
    """A dict with any names, whose values have one form, or that of their own "kind"."""

    each: dict
    kinds: Mapping = dataclasses.field(default_factory=dict)

    def form(self, value):
        """The form of a value."""
        kind = value.get("kind") if isinstance(value, Mapping) else None
        return self.kinds.get(kind, self.each) if isinstance(kind, str) else self.each


@dataclasses.dataclass(frozen=True)
class Some:
    """A dict that holds some of the options in `each`."""

    each: dict


@dataclasses.dataclass(frozen=True)
class Optional:
    """An option of the form `rule` that a config may lack."""

    rule: object


def check_options(values: Mapping, allowed: Mapping, where: str = "", whole: bool = True) -> None:
    """Raises UserError for the first option that is unknown, missing, or of a wrong value.

    values   nested dicts as a config holds them
    allowed  nested dicts with Number, Text, Flag, Several, Named, Some or Optional at the leaves
    whole    whether all that is allowed must be there
    """
    if not isinstance(values, Mapping):
        where = where.rstrip(".")
        raise UserError(f"{where} is {shown(values)}, but it must be a dict of options.")
    for name in values:
        if name not in allowed:
            name = shortened(str(name), LONGEST_VALUE)
            raise UserError(f'unknown option "{where}{name}" in the config.{hint(name, allowed)}')
    for name, rule in allowed.items():
        if name not in values:
            if not whole or isinstance(rule, Optional):
                continue
            raise UserError(f'the config lacks the option "{where}{name}"; write it into the file.')
        value, path = values[name], f"{where}{name}"
        rule = rule.rule if isinstance(rule, Optional) else rule
        if isinstance(rule, Named) and not isinstance(value, Mapping):
            raise UserError(f"{path} is {shown(value)}, but it must be a dict of options.")
        if isinstance(rule, dict):
            check_options(value, rule, f"{path}.")
        elif isinstance(rule, Some):
            check_options(value, rule.each, f"{path}.", whole=False)
        elif isinstance(rule, Named):
            for key in value:
                if not re.fullmatch(r"[\w-]{1,64}", str(key)):
                    raise UserError(
                        f"{path} holds the name {shown(key)}, of which a folder is made. Take "
                        "letters, digits, _ and - only, at most 64."
                    )
                check_options(value[key], rule.form(value[key]), f"{path}.{key}.")
        elif problem := rule.problem(value):
            raise UserError(
                f"{path} is {shown(value)}, but it {problem}".rstrip(".?")
                + ("?" if problem.endswith("?") else ".")
            )


def differing_lines(old: Mapping, new: Mapping, where: str = "") -> list[str]:
    """`path: old -> new` for every option in which two nested dicts differ."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differing_lines(before, after, f"{where}{name}.")
        elif before != after:
            lines.append(f"{where}{name}: {before} -> {after}")
    return lines
