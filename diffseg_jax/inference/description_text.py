"""Prints the description of a checkpoint on a terminal."""

from rich.console import Console
from rich.text import Text

from diffseg_jax.errors import size
from diffseg_jax.metrics.depth import DEPTH_METRICS
from diffseg_jax.metrics.segmentation import format_table

VIEWS = {
    "whole": "whole images",
    "slide": "windows of {window[0]} x {window[1]} every {stride[0]} x {stride[1]}",
    "halves": "a left and a right half",
}


def show(description: dict, console: Console):
    """Prints a checkpoint's description, with swatches if the terminal has colours."""
    version = description["version"]
    version = f"diffseg_jax {version}" if version else "an unknown version"
    print_text = lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False)
    head = Text(f"{description['directory']}\n", style="bold")
    arrays = f"{size(description['bytes'])} of arrays"
    task = description["task"] if description["task"] != "segmentation" else ""
    system = f"{description['system']} for {task}" if task else description["system"]
    line = f"{system}, written by {version}, {arrays}"
    print_text(head.append(line, "not bold"))
    for heading, lines in sections(description, bool(console.color_system)):
        print_text(Text(f"\n{heading}", style="bold"))
        for line in lines:
            print_text(Text("  ").append(line))


def sections(description: dict, colours: bool) -> list[tuple[str, list]]:
    """Headings and the lines below them; unknown values have none."""
    normalisation, data = description["normalisation"], description["trained_on"]
    taps, results = description["taps"], description["results"]
    shown = description["classes"] or description["task"] != "segmentation"
    evaluation = description["evaluation"] if shown else None
    inputs = [normalisation["normalisation"] or "unknown"]
    inputs += [f"{key} {normalisation[key]}" for key in ("mean", "std") if normalisation[key]]
    all_sections = [
        ("Stages", stage_lines(description)),
        (f"Classes ({len(description['classes'])})", class_lines(description, colours)),
        ("Parameters", parameter_lines(description)),
        ("Trained on", [data_line(data)] if data else []),
        ("Normalisation", [", ".join(inputs)]),
        ("Evaluated on", [protocol_line(evaluation)] if evaluation else []),
        ("Features (taps)", [", ".join(taps)] if taps else []),
        ("Results", result_lines(results) if results else []),
        ("To use it", [description["use"]["command"], *description["use"]["python"]]),
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


def data_line(data: dict) -> str:
    """The training data of a stage."""
    source = data["source"] + (f" in {data['path']}" if data["path"] else "")
    source += f", split {data['split']}"
    subset = data["labelled"]
    if subset is None:
        return f"{source}, without labels"
    images = f"{subset['n']:,} of {subset['of']:,} labelled images"
    digest = f" (seed {subset['seed']}, sha256 {subset['sha256'][:12]})" if subset["sha256"] else ""
    return f"{source}: {images}{digest}"


def protocol_line(options: dict) -> str:
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


def depth_lines(results: dict) -> list[str]:
    """The errors of depth maps, and the number of images."""
    numbers = [f"{name} {results[name]:.4f}" for name in DEPTH_METRICS if results[name] is not None]
    return [", ".join(numbers), f"on {results['images']:,} images"]


def layer_lines(results: dict) -> list[str]:
    """IoU of the layers of maps, each at its best threshold, and the number of rigs."""
    numbers = [f"{name} {100 * value:.2f}" for name, value in results["IoU"].items()]
    mean = f"mean IoU {100 * results['mIoU']:.2f} %"
    mean += f", of a constant map {100 * results['constant']:.2f} %"
    return [mean, ", ".join(numbers), f"on {results['images']:,} rigs of cameras"]


def result_lines(results: dict) -> list[str]:
    """The table of IoU, the number of images, and how right the chance of an error is."""
    if "abs_rel" in results:
        return depth_lines(results)
    if "constant IoU" in results:
        return layer_lines(results)
    table = format_table({f"step {results['step']:,}": results}).splitlines()
    images = f"on {results['images']:,} images"
    if results.get("AUROC") is not None:
        images += f"; uncertainty predicts errors with an AUROC of {results['AUROC']:.3f}"
    lines = [*table, images]
    keys = ("ECE", "Brier", "AUROC", "AUPR", "AURC")
    for scores in filter(None, (results.get("calibration"), results.get("calibrated"))):
        numbers = [f"{key} {scores[key]:.3f}" for key in keys if scores[key] is not None]
        kept = "" if scores.get("kept", True) else ", which is not kept"
        lines.append(f"{scores['of']}{kept}, as the chance of an error: {', '.join(numbers)}")
    return lines
