"""Rules for the options of a config, and error messages for values that break them."""

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

LACKING = {  # option that a config may lack -> what one without it means, if that is not empty
    "task": "segmentation", "ensemble.probe": True, "data.folds": 0, "data.fold": -1,
    "loss.name": "cross_entropy", "loss.focal_gamma": 2.0, "loss.class_weights": ("none",),
    "loss.region": "none", "loss.region_weight": 1.0,
    "stages.*.augment.rotate": 0.0, "stages.*.augment.flip_vertical": False,
    "stages.*.augment.grey": 0.0, "stages.*.augment.blur": 0.0,
    "stages.*.augment.variants": 0, "clusters.k": 5, "clusters.images": 2,
    "clusters.restarts": 10, "clusters.per_image": False,
    "stages.*.probe.every": 0, "stages.*.probe.patience": 0, "stages.*.probe.gain": 0.005,
    "evaluate.corruptions.stage": "", "evaluate.corruptions.types": (),
    "evaluate.corruptions.severities": (1, 3, 5), "evaluate.corruptions.images": 0,
    "evaluate.corruptions.frost": "", "evaluate.corruptions.constants": "224",
    "evaluate.step_folds": 0,
    "stages.*.balance": "recipe", "features.noise": "shared", "features.share_noise": True,
}  # fmt: skip
LARGEST = {int: 2**31 - 1, float: 3e38}  # the limits of int32 and, rounded, of float32


@dataclasses.dataclass(frozen=True)
class Number:
    """An option that is an int or a float in [low, high] and fits in int32 or float32."""

    number_type: type = float
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        is_integer = self.number_type is int
        noun = "whole number" if is_integer else "number"
        types = int if is_integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, types) or value != value:
            return f"must be a {noun}"
        high = min(self.high, LARGEST[self.number_type])
        if not max(self.low, -high) <= value <= high:
            unbounded = value < self.low and self.high == math.inf
            to = "up" if unbounded else f"to {high}" if is_integer else f"to {high:g}"
            return f"must be a {noun} from {self.low:g} {to}"
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
    """An option that is a regular expression."""

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        if not isinstance(value, str) or len(value) > LONGEST_VALUE:
            return f"must be text of at most {LONGEST_VALUE} characters"
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            return f"must be text or a regular expression ({error})"
        return ""


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option that is True or False."""

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        return "" if isinstance(value, bool) else "must be True or False"


@dataclasses.dataclass(frozen=True)
class Several:
    """An option that is a tuple of `each`, with `count` values if it is given.

    minimum, maximum  limits of the number of values
    """

    each: object
    count: int = 0
    minimum: int = 0
    maximum: int = 1000

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        if not isinstance(value, (tuple, list)) or self.count and len(value) != self.count:
            example = (1,) * self.count or (1,)
            return f"must be a tuple of {self.count or 'some'} values, such as {example}"
        if not self.minimum <= len(value) <= self.maximum:
            return f"must hold {self.minimum} to {self.maximum} values"
        problems = [self.each.problem(entry) for entry in value]
        return next((f"holds a value that {problem}" for problem in problems if problem), "")


@dataclasses.dataclass(frozen=True)
class ClassWeights:
    """An option that is a tuple of one of `names`, or of weights 0 or more, not all 0."""

    names: tuple[str, ...]

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        listed = " or ".join(f'("{name}",)' for name in self.names)
        advice = f"must be {listed}, or a tuple of one number per class, such as (1.0, 2.5)"
        if not isinstance(value, (tuple, list)) or not value:
            return advice
        if len(value) == 1 and isinstance(value[0], str):
            return "" if value[0] in self.names else advice
        if problem := Several(Number(float, 0), maximum=65535).problem(value):
            return f"{problem}; it {advice}"
        return "" if any(value) else "holds only zeros, so nothing would be learned"


@dataclasses.dataclass(frozen=True)
class Named:
    """A dict with any names, whose values follow `each`, or the rules of their "kind"."""

    each: dict
    kinds: Mapping = dataclasses.field(default_factory=dict)

    def form(self, value):
        """The rules for a value."""
        kind = value.get("kind") if isinstance(value, Mapping) else None
        return self.kinds.get(kind, self.each) if isinstance(kind, str) else self.each


@dataclasses.dataclass(frozen=True)
class Some:
    """A dict that holds some of the options in `each`."""

    each: dict


@dataclasses.dataclass(frozen=True)
class Optional:
    """An option that follows `rule`, and that a config may lack."""

    rule: object


def check_options(
    values: Mapping, allowed: Mapping, where: str = "", complete: bool = True
) -> None:
    """Raises UserError for the first option that is unknown, missing, or of a wrong value.

    values    nested dicts as a config holds them
    allowed   nested dicts with Number, Text, Flag, Several, Named, Some or Optional at the leaves
    complete  whether all allowed options must be present
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
            if not complete or isinstance(rule, Optional):
                continue
            raise UserError(f'the config lacks the option "{where}{name}"; write it into the file.')
        value, path = values[name], f"{where}{name}"
        rule = rule.rule if isinstance(rule, Optional) else rule
        if isinstance(rule, Named) and not isinstance(value, Mapping):
            raise UserError(f"{path} is {shown(value)}, but it must be a dict of options.")
        if isinstance(rule, dict):
            check_options(value, rule, f"{path}.")
        elif isinstance(rule, Some):
            check_options(value, rule.each, f"{path}.", complete=False)
        elif isinstance(rule, Named):
            for key in value:
                if not re.fullmatch(r"[\w-]{1,64}", str(key)):
                    raise UserError(
                        f"{path} holds the name {shown(key)}, which becomes a folder name. Use "
                        "only letters, digits, _ and -, at most 64."
                    )
                check_options(value[key], rule.form(value[key]), f"{path}.{key}.")
        elif problem := rule.problem(value):
            raise UserError(
                f"{path} is {shown(value)}, but it {problem}".rstrip(".?")
                + ("?" if problem.endswith("?") else ".")
            )


def differing_lines(old: Mapping, new: Mapping, where: str = "") -> list[str]:
    """`path: old -> new` for every option in which two nested dicts differ.

    An option that a config may lack means the same as an empty one, or as LACKING says.
    """
    lines = []
    for name in sorted(old.keys() | new.keys()):
        path = f"{where}{name}"
        nothing = {} if lacking(f"{path}.") else as_tuples(lacking(where).get(name, ""))
        before, after = old.get(name, nothing), new.get(name, nothing)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differing_lines(before, after, f"{path}.")
        elif as_tuples(before) != as_tuples(after):
            before, after = (values.get(name, "(absent)") for values in (old, new))
            lines.append(f"{path}: {before} -> {after}")
    return lines


def lacking(group: str) -> dict:
    """The options in LACKING of a group, such as "stages.train.augment.", by their names."""
    group = re.sub(r"^stages\.[^.]+", "stages.*", group)
    below = {option.removeprefix(group): option for option in LACKING if option.startswith(group)}
    return {name: LACKING[option] for name, option in below.items() if "." not in name}


def as_tuples(values):
    """JSON values with tuples in place of lists, as configs hold them."""
    if isinstance(values, Mapping):
        return {name: as_tuples(value) for name, value in values.items()}
    return tuple(map(as_tuples, values)) if isinstance(values, (list, tuple)) else values
