"""What is in a checkpoint, as lines for people."""

from rich.console import Console
from rich.text import Text

from diffseg_jax.metrics.segmentation import format_table
from diffseg_jax.training.resources import size

VIEWS = {
    "whole": "whole pictures",
    "slide": "windows of {window[0]} x {window[1]} every {stride[0]} x {stride[1]}",
    "halves": "a left and a right half",
}


def show(found: dict, console: Console):
    """Prints what `describe` found; swatches of colours where the terminal has any."""
    written = f"diffseg_jax {found['version']}" if found["version"] else "an unknown version"
    say = lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)
    head = Text(f"{found['directory']}\n", style="bold")
    arrays = f"{size(found['bytes'])} of arrays"
    say(head.append(f"{found['system']}, written by {written}, {arrays}", "not bold"))
    for heading, lines in sections(found, bool(console.color_system)):
        say(Text(f"\n{heading}", style="bold"))
        for line in lines:
            say(Text("  ").append(line))


def sections(found: dict, colours: bool) -> list[tuple[str, list]]:
    """Headings and what stands below them; what is not known is left out."""
    normal, data = found["normalisation"], found["trained_on"]
    pictures = [normal["normalisation"] or "unknown"]
    pictures += [f"{word} {normal[word]}" for word in ("mean", "std") if normal[word]]
    everything = [
        ("Stages", stage_lines(found)),
        (f"Classes ({len(found['classes'])})", class_lines(found, colours)),
        ("Parameters", parameter_lines(found)),
        ("Trained on", [data_line(data)] if data else []),
        ("Normalisation", [", ".join(pictures)]),
        ("Evaluated on", [protocol_line(found["evaluation"])] if found["classes"] else []),
        ("Features (taps)", [", ".join(found["taps"])] if found["taps"] else []),
        ("Results", result_lines(found["results"]) if found["results"] else []),
        ("To use it", [found["use"]["command"], *found["use"]["python"]]),
    ]
    return [(heading, lines) for heading, lines in everything if lines]


def stage_lines(found: dict) -> list[str]:
    """One line a stage; the one that is described is marked."""
    lines = []
    for stage in found["stages"]:
        steps = f"step {stage['step']:,}" + (f" of {stage['of']:,}" if stage["of"] else "")
        said = [steps, "finished" if stage["finished"] else "not finished"]
        said.append(f"from {stage['start']}")
        if stage["opened"] != stage["step"]:
            said.append(f"opens step {stage['opened']:,}, the best")
        if len(stage["kept"]) > 1:
            said.append(f"keeps {', '.join(map(str, stage['kept']))}")
        mark = "*" if stage["name"] == found["stage"] and len(found["stages"]) > 1 else " "
        lines.append(f"{mark} {stage['name']}: {', '.join(said)}")
    return lines


def class_lines(found: dict, colours: bool) -> list[Text]:
    """Ids and names, with a swatch each where there are colours."""
    lines = []
    for number, name in enumerate(found["classes"]):
        line = Text(f"{number:3d} ")
        if colours and number < len(found["palette"]):
            line.append("██ ", style="rgb({},{},{})".format(*found["palette"][number]))
        lines.append(line.append(name))
    return lines


def parameter_lines(found: dict) -> list[str]:
    """One line a part, and their sum."""
    parts = [
        (entry["part"] + ("" if entry["trained"] else " (frozen)"), entry["count"], entry["bytes"])
        for entry in found["parameters"]
    ]
    parts.append(("all", sum(part[1] for part in parts), sum(part[2] for part in parts)))
    width = max(len(name) for name, _, _ in parts)
    lines = [f"{name:{width}}  {count:>13,}  {size(held):>9}" for name, count, held in parts]
    if found["averages"]:
        lines.append(f"and moving averages of rate {', '.join(map(str, found['averages']))}")
    return lines


def data_line(data: dict) -> str:
    """What a stage learned from."""
    place = data["source"] + (f" in {data['path']}" if data["path"] else "")
    place += f", split {data['split']}"
    chosen = data["labelled"]
    if chosen is None:
        return f"{place}, without labels"
    images = f"{chosen['n']:,} of {chosen['of']:,} labelled images"
    return f"{place}: {images} (seed {chosen['seed']}, sha256 {chosen['sha256'][:12]})"


def protocol_line(options: dict) -> str:
    """How evaluation shows pictures."""
    said = [VIEWS[options["view"]].format(**options)]
    if options["split"]:
        said[0] += f" of split {options['split']}"
    if options["short"]:
        said.append(f"shorter side brought to {options['short']}")
    elif any(options["limit"]):
        said.append("made to fit {} x {}".format(*options["limit"]))
    if list(options["scales"]) != [1.0]:
        said.append(f"at scales {', '.join(map(str, options['scales']))}")
    if options["flip"]:
        said.append("and mirrored")
    return ", ".join(said)


def result_lines(results: dict) -> list[str]:
    """The table of IoU, and what it was measured on."""
    table = format_table({f"step {results['step']:,}": results}).splitlines()
    measured = f"on {results['images']:,} images"
    if results.get("AUROC") is not None:
        measured += f"; uncertainty tells errors with an AUROC of {results['AUROC']:.3f}"
    return [*table, measured]
