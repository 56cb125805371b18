"""The flags of a command and their types; loads no jax, so that --help and lists are quick."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence

from diffseg_jax.errors import UserError, hint, nearest

OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


class Flags(argparse.ArgumentParser):
    """The flags of a command, as --flag=value or --flag value; --flag=a b where it takes several.

    No flag may be abbreviated; in its name - and _ are the same. A flag that is True or False may
    stand alone, for True. --help prints all flags and exits with 0. A mistake raises UserError, so
    `parse_args` belongs inside `user_errors`.
    """

    def __init__(self, command: str, description: str):
        """command: the module below diffseg_jax; description: shown as it is by --help."""
        super().__init__(
            prog=f"python -m diffseg_jax.{command}", description=(description or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        self.register("type", int, number(int))
        self.register("type", float, number(float))

    def parse_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of the flags; None parses sys.argv."""
        arguments = sys.argv[1:] if arguments is None else map(str, arguments)
        for action in self._actions:
            if action.type is truth:
                action.nargs, action.const = "?", True
        usage = self.format_usage()
        known = {"--help", *re.findall(r"--[\w-]+", usage)}
        several = set(re.findall(r"(--\w+) \w+ \[\w+ \.\.\.\]", usage))
        checked = [_checked(argument, known) for argument in arguments]
        split = [part for argument in checked for part in _split(argument, several)]
        given, rest = self.parse_known_args(split)
        if rest:
            self.error(f'"{rest[0]}" is not a flag; flags begin with --')
        return given

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            near = nearest(value, action.choices)
            raise argparse.ArgumentError(action, f"is {value}, but known are {known}.{near}")

    def error(self, message: str):
        """Raises UserError with argparse's sentence."""
        message = re.sub(r"^argument (\S+): (?=is )", r"\1 ", message)  # "--a is 3, but ..."
        message = message.removeprefix("argument ")
        end = "" if message.endswith(("?", ".")) else "."
        raise UserError(f"{message}{end} All flags: {self.prog} --help")


def _checked(argument, known):
    """The argument, with the flag as it is in `known`; UserError for an unknown flag."""
    match = re.match(r"--?([a-zA-Z][^=]*)", argument)
    if not match or match[0] == "-h":
        return argument
    spelt = {flag.replace("_", "-"): flag for flag in known}
    name = f"--{match[1]}"
    name = spelt.get(name.replace("_", "-"), name)
    if name not in known:
        raise UserError(f"there is no flag {name}.{hint(name.partition('.')[0], known)}")
    return name + at_home(argument[match.end() :])


def at_home(value: str) -> str:
    """A value, or =value, with the home folder for "~/", which shells leave in --flag=~/a."""
    equals, path = value[: value.startswith("=")], value.removeprefix("=")
    return equals + os.path.expanduser(path) if path.startswith("~/") else value


def _split(argument, several):
    """--flag=a as two arguments where the flag takes several values, so that others may follow."""
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name in several and value[:1] != "-" else [argument]


def number(
    number_type: type, low: float = -math.inf, high: float = math.inf
) -> Callable[[str], float]:
    """The type of a flag that is an int or a float in [low, high]."""
    name = "a whole number" if number_type is int else "a number"
    upper = "up" if high == math.inf else f"to {high:g}"
    limits = "" if low == -math.inf else f" from {low:g} {upper}"

    def parse(text):
        try:
            value = number_type(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"is {text}, but it must be {name}{limits}")
        return value

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """A flag such as 8,16,32; "" is ()."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be whole numbers, such as 0,1"
        ) from None


def truth(text: str) -> bool:
    """A flag that is True or False."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"is {text}, but it must be True or False")
    return values[text.lower()]


def sides(text: str) -> tuple[int, int]:
    """A flag such as 512, or 256,512, or 256x512: (height, width)."""
    try:
        given = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        given = ()
    if len(given) not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be a side, such as 512, or height,width"
        )
    return given * 2 if len(given) == 1 else given


def height_and_width(text: str) -> tuple[int, int]:
    """A flag such as 256,512, or 256x512."""
    try:
        height, width = map(int, text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be height,width, such as 96,128 or 96x128"
        ) from None
    return height, width


def factors(text: str) -> tuple[float, ...]:
    """A flag such as 0.75,1,1.25."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be numbers, such as 0.75,1,1.25"
        ) from None


def names(text: str) -> tuple[str, ...]:
    """A flag such as probs,uncertainty; "" is ()."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | bool]]]:
    """The flags, and the options of the config as pairs of a path and its value."""
    flags, overrides, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        match = OVERRIDE.fullmatch(argument)
        if not match:
            flags.append(argument)
            continue
        negated, path, text = match.groups()
        if text is None and not negated and rest and not re.match(r"--?[a-zA-Z]", rest[0]):
            text = rest.pop(0)
        overrides.append((path, not negated if text is None else at_home(text)))
    return flags, overrides
