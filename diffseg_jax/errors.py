"""UserError, the sentences that describe a user's mistake, choosing by name, and units."""

import difflib
from collections.abc import Collection, Mapping


class UserError(ValueError):
    """A mistake in what the user gave: one sentence with what came, what is allowed, what to type.

    The command line prints it without a traceback; in Python it is an ordinary ValueError.
    Control characters from files and names are escaped, and long sentences are shortened.
    """

    def __init__(self, sentence: str):
        lines = map(visible, sentence.split("\n  "))
        super().__init__(shortened("\n  ".join(lines), LONGEST_SENTENCE))


MISTAKE, STOPPED, INTERRUPTED, LOST = 2, 75, 130, 134  # exit codes; the last is that of SIGABRT
LONGEST_SENTENCE = 10_000  # characters
LONGEST_VALUE = 200  # characters of a value within a sentence
LONGEST_TEXT = 4096  # bytes of an option; the limit of Linux for a path


def counted(number: int, noun: str) -> str:
    """1 step, 2 steps; 1 class, 2 classes."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("ss") else "s")


def size(count: float) -> str:
    """Bytes as 12.3 MB or 6.63 GB, of 10**6 and 10**9."""
    return scaled(count, "B")


def scaled(number: float, unit: str) -> str:
    """A number of three digits with the prefix of its unit: 12.3 MB, 1.5 GFLOP."""
    prefix, larger = "", iter("kMGTP")
    while float(f"{number:.3g}") >= 1000:
        number, prefix = number / 1000, next(larger)
    return f"{number:.3g} {prefix}{unit}"


def shortened(text: str, length: int) -> str:
    """The text; without its middle if it has more than `length` characters."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def visible(text: str) -> str:
    """The text with escapes for what cannot be printed: control characters, names of bytes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value):
    """The repr of a value, shortened for an error message."""
    try:
        return shortened(repr(value), LONGEST_VALUE)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a number of very many digits"


def choose(options: Mapping, name: str, what: str):
    """The value of `name` in `options`; `what` is the noun for it in the error message.

    Raises UserError that lists the known names and the nearest one.
    """
    require_known(name, options, what)
    return options[name]


def require_known(name: str, known: Collection[str], what: str):
    """Raises UserError unless `name` is one of the known ones, which the message lists."""
    if isinstance(name, str) and name in known:
        return
    name = shortened(name, LONGEST_VALUE) if isinstance(name, str) else shown(name)
    raise UserError(
        f'unknown {what} "{name}". Known: {", ".join(sorted(known))}.{nearest(name, known)}'
    )


def nearest(name: str, options: Collection[str]) -> str:
    """The question whether the nearest option was meant; "" if none is similar."""
    near = difflib.get_close_matches(str(name), list(options), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""


def hint(name: str, known: Collection[str]) -> str:
    """A sentence with the nearest of the known names, or with all of them."""
    near = nearest(shortened(name, LONGEST_VALUE), known)
    return near or (f" Known: {', '.join(sorted(known))}." if known else "")
