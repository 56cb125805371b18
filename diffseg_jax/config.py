"""What is wrong with a user's input, in sentences; choosing by name."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping


class UserError(ValueError):
    """A mistake in what the user gave: one sentence with what came, what is allowed, what to type.

    The command line prints it without a traceback; in Python it is an ordinary ValueError.
    """


def choose(options: Mapping, name: str, what: str):
    """The value of `name` in `options`; `what` says what is being chosen.

    Raises UserError that lists the known names and the nearest one.
    """
    if name in options:
        return options[name]
    raise UserError(
        f'unknown {what} "{name}". Known: {", ".join(sorted(options))}.{_nearest(name, options)}'
    )


def _nearest(name, options):
    near = difflib.get_close_matches(str(name), list(options), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


@dataclasses.dataclass(frozen=True)
class Number:
    """An option that is a number in [low, high]; whole if `kind` is int."""

    kind: type = float
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        whole = "whole number" if self.kind is int else "number"
        kinds = int if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            return f"must be a {whole}"
        if not self.low <= value <= self.high:
            return f"must be a {whole} from {self.low:g} to {self.high:g}".replace(" to inf", " up")
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
            return f"must be one of {', '.join(self.choices)}.{_nearest(value, self.choices)}"
        return ""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """An option that is a regular expression, such as a word to look for."""

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        try:
            re.compile(value)
        except (re.error, TypeError) as error:
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

    def problem(self, value):
        """What is wrong with a value, or an empty string."""
        if not isinstance(value, (tuple, list)) or self.count and len(value) != self.count:
            example = (1,) * self.count or (1,)
            return f"must be a tuple of {self.count or 'some'} values, such as {example}"
        if len(value) < self.least:
            return f"must hold {self.least} or more"
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


SIZE = Several(Number(int, 0), 2)
DATA = {
    "source": Text(),
    "path": Text(),
    "options": Some(  # what sources read beyond their path; which of them, open_source knows
        {
            "size": SIZE,
            "images": Number(int, 0),
            "seed": Number(int, 0),
            "num_classes": Number(int, 0),
            "raw_459": Flag(),
            "image_key": Text(),
            "mask_key": Text(),
            "label_key": Text(),
            "classes": Text(),
            "ignore": Several(Number(int, 0, 65535)),
            "square": Number(int, 0),
        }
    ),
    "threads": Number(int, 1),
    "workers": Number(int, 0),
    "cache": Flag(),
}
STAGE = {
    "kind": Text(),
    "start": Text(),
    "steps": Number(int, 0),
    "batch_size": Number(int, 1),
    "accumulate": Number(int, 1),
    "ema": Several(Number(float, 0.000001, 0.999999)),  # rates; () is off
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0),
        "scale": Several(Number(float, 0.01, 100), 2),
        "crop": Several(Number(int, 1, 16384), 2),
        "max_class_share": Number(float, 0, 1),
        "flip": Flag(),
        "photometric": Flag(),
    },
    "optim": {
        "name": Text(),
        "schedule": Text(),
        "peak_lr": Number(float, 0),
        "warmup_steps": Number(int, 0),
        "warmup_ratio": Number(float, 0, 1),
        "b1": Number(float, 0, 0.999999),
        "b2": Number(float, 0, 0.999999),
        "epsilon": Number(float, 0),
        "weight_decay": Number(float, 0),
        "no_decay": Several(Pattern()),
        "clip_norm": Number(float, 0),
    },
    "every": {"log": Number(int, 1), "checkpoint": Number(int, 1), "evaluate": Number(int, 1)},
}
FIT = "fit"  # the kind of a stage that fits an ensemble to features, without the training loop
FIT_STAGE = {
    "kind": Text(),
    "start": Text(),
    "augment": {"limit": SIZE, "short": Number(int, 0), "crop": Several(Number(int, 1, 16384), 2)},
    "every": {"log": Number(int, 1), "checkpoint": Number(int, 1)},
}
COMMON = {  # what every system's config holds; each system adds its own
    "system": Text(),
    "seed": Number(int, 0, 2**31 - 1),
    "dtype": Text(("float32", "bfloat16")),
    "remat": Flag(),
    "mesh": {"data": Number(int, -1), "fsdp": Number(int, -1)},
    "run": Several(Text(), least=1),
    "stages": Named(STAGE, {FIT: FIT_STAGE}),
}
UNLABELLED = {"unlabelled": {**DATA, "split": Text()}}  # besides, if a stage learns without labels
LABELLED = {  # and if one learns from labels
    "data": {
        **DATA,
        "train": Text(),
        "val": Text(),
        "fraction": Number(float, 0, 1),
        "count": Number(int, 0),
        "subset_seed": Number(int, 0),
        "list_path": Text(),
    },
    "evaluate": {
        "view": Text(("whole", "slide", "halves")),
        "window": SIZE,
        "stride": SIZE,
        "limit": SIZE,
        "short": Number(int, 0),
        "scales": Several(Number(float, 0.01, 100), least=1),
        "flip": Flag(),
        "batch_size": Number(int, 1),
        "images": Number(int, 0),
        "quick_images": Number(int, 1),
        "absent": Text(("skip", "zero")),
        "checkpoint": Text(("last", "best")),
        "pictures": Number(int, 0, 64),
    },
}


def check_options(values: Mapping, allowed: Mapping, where: str = "", whole: bool = True) -> None:
    """Raises UserError for the first option that is unknown, missing, or of a wrong value.

    values   nested dicts as a config holds them
    allowed  nested dicts with Number, Text, Flag, Several, Named or Some at the leaves
    whole    whether all that is allowed must be there
    """
    for name in values:
        if name not in allowed:
            hint = _nearest(name, allowed) or f" Known: {', '.join(sorted(allowed))}."
            raise UserError(f'unknown option "{where}{name}" in the config.{hint}')
    for name, rule in allowed.items():
        if name not in values:
            if not whole:
                continue
            raise UserError(f'the config lacks the option "{where}{name}"; write it into the file.')
        value, path = values[name], f"{where}{name}"
        if isinstance(rule, (dict, Named, Some)) and not isinstance(value, Mapping):
            raise UserError(f"{path} is {value!r}, but it must be a dict of options.")
        if isinstance(rule, dict):
            check_options(value, rule, f"{path}.")
        elif isinstance(rule, Some):
            check_options(value, rule.each, f"{path}.", whole=False)
        elif isinstance(rule, Named):
            for key in value:
                check_options(value[key], rule.form(value[key]), f"{path}.{key}.")
        elif problem := rule.problem(value):
            raise UserError(
                f"{path} is {value!r}, but it {problem}".rstrip(".?")
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
