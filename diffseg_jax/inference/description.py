"""What is in a checkpoint, read from what stands beside the arrays."""

import json
import os
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.errors import UserError
from diffseg_jax.inference.locate import chosen_step, find, stages_in
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.storage.checkpoints import open_meta, steps_in
from diffseg_jax.storage.paths import in_bucket
from diffseg_jax.storage.workdir import read_results

WHOLE = {"view": "whole", "scales": [1.0], "flip": False, "limit": [0, 0], "short": 0}


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
