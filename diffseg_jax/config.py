"""What is wrong with a user's input, in sentences; choosing by name."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping


class UserError(ValueError):
    """A mistake in what the user gave: one sentence with what came, what is allowed, what to type.

    The command line prints it without a traceback; in Python it is an ordinary ValueError. What
    files and names put into it cannot steer a terminal, nor fill it.
    """

    def __init__(self, sentence: str):
        lines = ("".join(map(_visible, line)) for line in sentence.split("\n  "))
        super().__init__(shortened("\n  ".join(lines), LONGEST_SENTENCE))


LONGEST_SENTENCE = 10_000  # characters
LONGEST_VALUE = 200  # of a value within a sentence
LONGEST_TEXT = 4096  # of an option: what systems allow a path


def counted(number: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shortened(text: str, length: int) -> str:
    """Text of more than `length` characters without its middle."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def _visible(character):
    return character if character.isprintable() else ascii(character)[1:-1]


def _shown(value):
    """A value as a sentence shows it."""
    try:
        return shortened(repr(value), LONGEST_VALUE)
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of very many digits"


def choose(options: Mapping, name: str, what: str):
    """The value of `name` in `options`; `what` says what is being chosen.

    Raises UserError that lists the known names and the nearest one.
    """
    if isinstance(name, str) and name in options:
        return options[name]
    name = shortened(name, LONGEST_VALUE) if isinstance(name, str) else _shown(name)
    raise UserError(
        f'unknown {what} "{name}". Known: {", ".join(sorted(options))}.{_nearest(name, options)}'
    )


def _nearest(name, options):
    near = difflib.get_close_matches(str(name), list(options), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


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
            near = _nearest(shortened(value, LONGEST_VALUE), self.choices)
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


SIZE = Several(Number(int, 0, 65536), 2)
DATA = {
    "source": Text(),
    "path": Text(),
    "options": Some(  # what sources read beyond their path; which of them, open_source knows
        {
            "size": Several(Number(int, 0, 4096), 2),
            "images": Number(int, 0),
            "seed": Number(int, 0),
            "num_classes": Number(int, 0, 65535),
            "raw_459": Flag(),
            "image_key": Text(),
            "mask_key": Text(),
            "label_key": Text(),
            "classes": Text(),
            "ignore": Several(Number(int, 0, 65535)),
            "square": Number(int, 0, 16384),
        }
    ),
    "threads": Number(int, 1, 1024),
    "workers": Number(int, 0, 1024),
    "cache": Flag(),
}
STAGE = {
    "kind": Text(),
    "start": Text(),
    "steps": Number(int, 0),
    "batch_size": Number(int, 1, 2**20),
    "accumulate": Number(int, 1, 2**20),
    "ema": Several(Number(float, 0.000001, 0.999999), most=16),  # rates; () is off
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0, 65536),
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
    "augment": {
        "limit": SIZE,
        "short": Number(int, 0, 65536),
        "crop": Several(Number(int, 1, 16384), 2),
    },
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
        "short": Number(int, 0, 65536),
        "scales": Several(Number(float, 0.01, 100), least=1, most=64),
        "flip": Flag(),
        "batch_size": Number(int, 1, 2**16),
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
    if not isinstance(values, Mapping):
        where = where.rstrip(".")
        raise UserError(f"{where} is {_shown(values)}, but it must be a dict of options.")
    for name in values:
        if name not in allowed:
            name = shortened(str(name), LONGEST_VALUE)
            hint = _nearest(name, allowed) or f" Known: {', '.join(sorted(allowed))}."
            raise UserError(f'unknown option "{where}{name}" in the config.{hint}')
    for name, rule in allowed.items():
        if name not in values:
            if not whole:
                continue
            raise UserError(f'the config lacks the option "{where}{name}"; write it into the file.')
        value, path = values[name], f"{where}{name}"
        if isinstance(rule, Named) and not isinstance(value, Mapping):
            raise UserError(f"{path} is {_shown(value)}, but it must be a dict of options.")
        if isinstance(rule, dict):
            check_options(value, rule, f"{path}.")
        elif isinstance(rule, Some):
            check_options(value, rule.each, f"{path}.", whole=False)
        elif isinstance(rule, Named):
            for key in value:
                if not re.fullmatch(r"[\w-]{1,64}", str(key)):
                    raise UserError(
                        f"{path} holds the name {_shown(key)}, of which a folder is made. Take "
                        "letters, digits, _ and - only, at most 64."
                    )
                check_options(value[key], rule.form(value[key]), f"{path}.{key}.")
        elif problem := rule.problem(value):
            raise UserError(
                f"{path} is {_shown(value)}, but it {problem}".rstrip(".?")
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
