"""What is in a checkpoint: where it comes from, what it knows, how good it is, how to use it.

python -m diffseg_jax.info --checkpoint=runs/a [--stage=pretrain] [--json]

Reads what stands beside the arrays, and no arrays.
"""

import argparse
import json
import os
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict as unflatten
from rich.console import Console
from rich.text import Text

from diffseg_jax.cli import use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.errors import UserError
from diffseg_jax.inference.segmenter import Segmenter, chosen_step, find, stages_in
from diffseg_jax.metrics.segmentation import format_table
from diffseg_jax.storage.checkpoints import open_meta, steps_in
from diffseg_jax.storage.paths import in_bucket
from diffseg_jax.storage.workdir import read_results
from diffseg_jax.training.resources import size

WHOLE = {"view": "whole", "scales": [1.0], "flip": False, "limit": [0, 0], "short": 0}
VIEWS = {
    "whole": "whole pictures",
    "slide": "windows of {window[0]} x {window[1]} every {stride[0]} x {stride[1]}",
    "halves": "a left and a right half",
}


def describe(path: str | os.PathLike, stage: str | None = None) -> dict:
    """What is in a checkpoint, as JSON values.

    path, stage  as of `diffseg_jax.load`

    What is not known is None, or an empty list. Raises UserError when nothing is there.
    """
    directory = find(path, stage)
    directory = directory if in_bucket(directory) else Path(os.path.abspath(directory))
    meta = open_meta(directory)
    in_run = directory.parent.name == "checkpoints"
    workdir = directory.parent.parent if in_run else None
    stages = stages_in(workdir) if in_run else {meta["stage"]: directory}
    found = {
        "checkpoint": str(path),
        "directory": str(directory),
        "system": meta["config"]["system"],
        "version": meta.get("version"),
        "stage": meta["stage"],
        "stages": [describe_stage(name, place) for name, place in stages.items()],
        "classes": meta.get("classes", []),
        "palette": meta.get("palette", []),
        "taps": taps_of(directory, meta),
        "parameters": parameters_of(meta["arrays"]),
        "bytes": sum(map(_bytes, meta["arrays"].values())),
        "averages": meta.get("ema", []),
        "normalisation": {
            word: meta["task"].get(word) for word in ("normalisation", "mean", "std")
        },
        "trained_on": data_of(meta),
        "evaluation": evaluation_of(meta["config"]),
        "sampling": meta["task"].get("sampling"),
        "results": read_results(workdir).get(directory.name) if in_run else meta.get("results"),
    }  # fmt: skip
    return {**found, "use": usage(found, str(path) if stage is None else str(directory))}


def describe_stage(name: str, directory) -> dict:
    """The steps of one stage: those that are there, the one that is opened, and those to make."""
    meta = open_meta(directory)
    options = meta["config"].get("stages", {}).get(meta["stage"], {})
    step, to_make = meta["step"], options.get("steps")
    finished = meta.get(
        "finished", to_make is None or step == to_make and meta.get("evaluated", True)
    )
    opened = chosen_step(directory)
    return {
        "name": name,
        "kind": meta["task"]["kind"],
        "start": meta.get("start"),
        "step": step,
        "of": to_make,
        "kept": sorted(steps_in(directory)),
        "opened": step if opened is None else opened,
        "finished": finished,
    }


def taps_of(directory, meta: dict) -> list[str]:
    """Names of the features that the network gives; none where it has none."""
    segmenter = Segmenter(directory, {}, meta)
    segmenter.network = shapes_of(meta)
    try:
        return list(segmenter.taps)
    except UserError:
        return []


def shapes_of(meta: dict) -> dict:
    """The shapes of {"params", "stats"}, as `checkpoints.open_network` would give them."""
    averages = any(name.startswith("ema/") for name in meta["arrays"])
    branches = {"frozen": "params", "params": "params", "stats": "stats"}
    if averages:  # of the trained parameters, in their place
        branches[f"ema/{meta['ema'][0]}"] = branches.pop("params")
    flat = {}
    for name, facts in meta["arrays"].items():
        for branch, place in branches.items():
            if name.startswith(f"{branch}/"):
                kind = jnp.dtype(facts["dtype"])
                kind = jnp.float32 if jnp.issubdtype(kind, jnp.floating) else kind
                path = place, *name.removeprefix(f"{branch}/").split("/")
                flat[path] = jax.ShapeDtypeStruct(tuple(facts["shape"]), kind)
    return {"params": {}, "stats": {}, **unflatten(flat)}


def parameters_of(arrays: dict) -> list[dict]:
    """Part, number, bytes, and whether it was trained here, of what stands below the parameters.

    Numbered parts count as one: input_0, input_1, ... are "input".
    """
    parts = {}
    for name, facts in arrays.items():
        branch, part, *_ = [*name.split("/"), ""]
        if branch not in ("params", "frozen"):
            continue
        part = re.sub(r"_?\d+$", "", part)
        empty = {"part": part, "count": 0, "bytes": 0, "trained": branch == "params"}
        entry = parts.setdefault((branch, part), empty)
        entry["count"] += int(np.prod(facts["shape"], dtype=int))
        entry["bytes"] += _bytes(facts)
    return list(parts.values())


def _bytes(facts):
    return int(np.prod(facts["shape"], dtype=int)) * jnp.dtype(facts["dtype"]).itemsize


def data_of(meta: dict) -> dict | None:
    """What a stage learned from, None where it was not trained by this package."""
    config = meta["config"]
    data = config.get("data" if "labelled" in meta else "unlabelled")
    if data is None:
        return None
    split = data["train"] if "labelled" in meta else data["split"]
    found = {"source": data["source"], "path": data["path"], "options": data["options"]}
    return {**found, "split": split, "labelled": meta.get("labelled")}


def evaluation_of(config: dict) -> dict:
    """How pictures are shown, as the run evaluated; whole, and of no split, where it did not."""
    words = (*WHOLE, "window", "stride")
    options = {word: v for word, v in config.get("evaluate", {}).items() if word in words}
    return {**WHOLE, "split": config.get("data", {}).get("val"), **options}


def usage(found: dict, path: str) -> dict:
    """The lines that use the checkpoint, in Python and on the command line."""
    python = ["import diffseg_jax", f"segmenter = diffseg_jax.load({json.dumps(path)})"]
    directory, path = shlex.quote(found["directory"]), shlex.quote(path)
    if found["classes"]:
        python.append('prediction = segmenter.predict("picture.png")')
        run = f"python -m diffseg_jax.predict --checkpoint={path} --images=photos --output=answers"
        return {"python": python, "command": run}
    python.append(f'features = segmenter.features("picture.png", {json.dumps(found["taps"][:1])})')
    run = f"python -m diffseg_jax.sample --checkpoint={directory} --output=samples"
    if found["system"] != "ddpm_seg":  # what it learned is for a stage with labels
        run = f"python -m diffseg_jax.main ... --config.stages.finetune.start={directory}"
    return {"python": python, "command": run}


# ---- as lines for people -----------------------------------------------------------------------


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


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.info", description=__doc__.splitlines()[0]
    )
    where = "a workdir, a stage in it, a converted directory, gs://..., hf://..., or scenes"
    parser.add_argument("--checkpoint", required=True, help=where)
    parser.add_argument("--stage", default=None, help="of a workdir; else the one that load takes")
    parser.add_argument("--json", action="store_true", help="for programs: all of it as JSON")
    given = parser.parse_args(arguments)
    use_cache("")
    with user_errors():
        find_devices()
        found = describe(given.checkpoint, given.stage)
        if given.json:
            print(json.dumps(found, indent=2))
        else:
            show(found, Console())


if __name__ == "__main__":
    main()
