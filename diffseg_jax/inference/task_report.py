"""What is said of the networks of a task, as a plain value: on a terminal and in model cards."""

import dataclasses
import re
from collections.abc import Callable, Mapping

from diffseg_jax.errors import counted

VIEWS = {
    "whole": "whole images",
    "slide": "windows of {window[0]} x {window[1]} every {stride[0]} x {stride[1]}",
    "halves": "a left and a right half",
}


def protocol_line(options: Mapping) -> str:
    """How evaluation shows images."""
    parts = [VIEWS[options["view"]].format(**options)]
    if options["split"]:
        parts[0] += f" of split {options['split']}"
    if options["short"]:
        parts.append(f"shorter side resized to {options['short']}")
    elif any(options["limit"]):
        parts.append("resized to fit {} x {}".format(*options["limit"]))
    if list(options["scales"]) != [1.0]:
        parts.append(f"at scales {', '.join(map(str, options['scales']))}")
    if options["flip"]:
        parts.append("and mirrored")
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """Words and functions of results and of names of classes.

    `results` are an entry of results.json.

    purpose    what networks predict, where it must be said; ""
    classes    whether predictions are of classes: a network without any then predicts nothing
    pipeline   the Hub's name of the task;  tag  its tag of the Hub
    examples   what a network learns from, in the plural
    learned    names -> a sentence of a card about them, or ""
    predicted  names -> what a network predicts, in few words
    protocol   how it is evaluated -> a line
    lines      results -> lines for a terminal
    measured   (results, names, `protocol` as a line) -> paragraphs of a card; [] if nothing was
               measured
    metrics    results -> {name in the Hub: (name for people, value)}
    limits     what it learned from -> the intended use and limits in a card
    """

    purpose: str
    classes: bool
    pipeline: str
    tag: str
    examples: str
    learned: Callable
    predicted: Callable
    lines: Callable
    measured: Callable
    metrics: Callable
    limits: Callable
    protocol: Callable = protocol_line


def class_rows_of(
    results: Mapping, names, second: str, of_class: str, mean: str
) -> str:  # fmt: skip
    """A table in Markdown: IoU of each class beside another number.

    second    heading of that;  of_class, mean  its keys in `results`, per class and for all
    """
    rows = [f"| class | IoU, % | {second}, % |", "|---|---|---|"]
    rows += [
        f"| {plain_text(name)} | {percent(results['IoU'].get(name))} "
        f"| {percent(results[of_class].get(name))} |" for name in names
    ]  # fmt: skip
    rows.append(f"| **mean** | **{percent(results['mIoU'])}** | **{percent(results[mean])}** |")
    return "\n".join(rows)


def is_of_learned(results: Mapping) -> bool:
    """Whether the numbers are of images from which the network learned."""
    return results.get("measured_on", {}).get("held_out") is False


def on_images(results: Mapping) -> str:
    """Such as "on 20 images", and whether the network learned from them."""
    learned = ", from which it learned" if is_of_learned(results) else ""
    return f"on {counted(results['images'], 'image')}{learned}"


def plain_text(name: str) -> str:
    """A name that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", name)


def percent(ratio: float | None) -> str:
    """A ratio in percent with one digit, or "-" for None."""
    return "-" if ratio is None else f"{100 * ratio:.1f}"
