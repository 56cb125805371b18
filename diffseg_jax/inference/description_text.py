"""Prints the description of a checkpoint on a terminal."""

import contextlib

from rich.console import Console
from rich.text import Text

from diffseg_jax.display.output import whole_lines
from diffseg_jax.errors import size
from diffseg_jax.inference.outputs import REPORTS, predicts

USE = "To use it"  # the heading of lines that are copied


def show(description: dict, console: Console):
    """Prints a checkpoint's description, with swatches if the terminal has colours."""
    version = description["version"]
    version = f"diffseg_jax {version}" if version else "an unknown version"
    print_text = lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)
    head = Text(f"{description['directory']}\n", style="bold")
    arrays = f"{size(description['bytes'])} of arrays"
    purpose = REPORTS[description["task"]].purpose
    system = f"{description['system']} for {purpose}" if purpose else description["system"]
    line = f"{system}, written by {version}, {arrays}"
    print_text(head.append(line, "not bold"))
    for heading, lines in sections(description, bool(console.color_system)):
        print_text(Text(f"\n{heading}", style="bold"))
        with whole_lines() if heading == USE else contextlib.nullcontext():
            for line in lines:
                print_text(Text("  ").append(line))


def sections(description: dict, colours: bool) -> list[tuple[str, list]]:
    """Headings and the lines below them; unknown values have none."""
    normalisation, data = description["normalisation"], description["trained_on"]
    taps, results = description["taps"], description["results"]
    report = REPORTS[description["task"]]
    evaluation = description["evaluation"] if predicts(description) else None
    inputs = [normalisation["normalisation"] or "unknown"]
    inputs += [f"{key} {normalisation[key]}" for key in ("mean", "std") if normalisation[key]]
    all_sections = [
        ("Stages", stage_lines(description)),
        (f"Classes ({len(description['classes'])})", class_lines(description, colours)),
        ("Parameters", parameter_lines(description)),
        ("Trained on", [data_line(data, report.examples)] if data else []),
        ("Normalisation", [", ".join(inputs)]),
        ("Evaluated on", [report.protocol(evaluation)] if evaluation else []),
        ("Features (taps)", [", ".join(taps)] if taps else []),
        ("Results", report.lines(results) if results else []),
        (USE, [description["use"]["command"], *description["use"]["python"]]),
    ]
    return [(heading, lines) for heading, lines in all_sections if lines]


def stage_lines(description: dict) -> list[str]:
    """One line per stage; the described stage is marked."""
    lines = []
    for stage in description["stages"]:
        steps = f"step {stage['step']:,}" + (f" of {stage['of']:,}" if stage["of"] else "")
        parts = [steps, "finished" if stage["finished"] else "not finished"]
        parts.append(f"from {stage['start']}")
        if stage["opened"] != stage["step"]:
            parts.append(f"opens step {stage['opened']:,}, the best")
        if len(stage["kept"]) > 1:
            parts.append(f"keeps {', '.join(map(str, stage['kept']))}")
        is_described = stage["name"] == description["stage"] and len(description["stages"]) > 1
        mark = "*" if is_described else " "
        lines.append(f"{mark} {stage['name']}: {', '.join(parts)}")
    return lines


def class_lines(description: dict, colours: bool) -> list[Text]:
    """Ids and names, with swatches if the terminal has colours."""
    lines = []
    for number, name in enumerate(description["classes"]):
        line = Text(f"{number:3d} ")
        if colours and number < len(description["palette"]):
            line.append("██ ", style="rgb({},{},{})".format(*description["palette"][number]))
        lines.append(line.append(name))
    return lines


def parameter_lines(description: dict) -> list[str]:
    """One line per part of the network, and their sum."""
    parts = [
        (entry["part"] + ("" if entry["trained"] else " (frozen)"), entry["count"], entry["bytes"])
        for entry in description["parameters"]
    ]
    parts.append(("all", sum(part[1] for part in parts), sum(part[2] for part in parts)))
    width = max(len(name) for name, _, _ in parts)
    lines = [f"{name:{width}}  {count:>13,}  {size(total):>9}" for name, count, total in parts]
    if description["averages"]:
        lines.append(f"and moving averages of rate {', '.join(map(str, description['averages']))}")
    return lines


def data_line(data: dict, examples: str) -> str:
    """The training data of a stage; examples: what those with a truth are called."""
    source = data["source"] + (f" in {data['path']}" if data["path"] else "")
    source += f", split {data['split']}"
    subset = data["labelled"]
    if subset is None:
        return f"{source}, without labels"
    images = f"{subset['n']:,} of {subset['of']:,} {examples}"
    digest = f" (seed {subset['seed']}, sha256 {subset['sha256'][:12]})" if subset["sha256"] else ""
    return f"{source}: {images}{digest}"
