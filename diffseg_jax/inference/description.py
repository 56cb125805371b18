"""Describes the content of a checkpoint from the metadata beside its arrays."""

import json
import os
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError
from diffseg_jax.inference.locate import find_stage, stages_in, step_to_open
from diffseg_jax.inference.outputs import OUTPUTS, predicts, task_in
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.storage.checkpoints import steps_in
from diffseg_jax.storage.networks import open_meta
from diffseg_jax.storage.paths import absolute
from diffseg_jax.storage.workdir import read_results

WHOLE_VIEW = {"view": "whole", "scales": [1.0], "flip": False, "limit": [0, 0], "short": 0}


@own_settings()
def describe_checkpoint(
    path: str | os.PathLike, stage: str | None = None, with_taps: bool = True
) -> dict:  # fmt: skip
    """The content of a checkpoint, as JSON values.

    path, stage  as of `diffseg_jax.load`
    with_taps    whether features are listed, for which the network is traced

    Unknown values are None, or an empty list. Raises UserError if there is no checkpoint.
    """
    directory = find_stage(path, stage)
    directory = absolute(directory)
    meta = open_meta(directory)
    in_run = directory.parent.name == "checkpoints"
    workdir = directory.parent.parent if in_run else None
    stages = stages_in(workdir) if in_run else {meta["stage"]: directory}
    description = {
        "checkpoint": str(path),
        "directory": str(directory),
        "system": meta["config"]["system"],
        "task": task_in(meta["config"]),
        "version": meta.get("version"),
        "stage": meta["stage"],
        "stages": [stage_entry(name, folder) for name, folder in stages.items()],
        "classes": meta.get("classes", []),
        "palette": meta.get("palette", []),
        "taps": taps_of(directory, meta) if with_taps else [],
        "parameters": parameters_of(meta["arrays"]),
        "bytes": sum(map(_bytes, meta["arrays"].values())),
        "averages": meta.get("ema", []),
        "normalisation": {
            key: meta["task"].get(key) for key in ("normalisation", "mean", "std")
        },
        "trained_on": data_of(meta),
        "evaluation": evaluation_of(meta["config"], meta.get("labelled")),
        "sampling": meta["task"].get("sampling"),
        "results": read_results(workdir).get(directory.name) if in_run else meta.get("results"),
    }  # fmt: skip
    used_path = str(path) if stage is None else str(directory)
    return {**description, "use": usage(description, used_path, meta["task"])}


def stage_entry(name: str, directory) -> dict:
    """One stage: its saved steps, the step that `load` opens, and the number of steps to train."""
    meta = open_meta(directory)
    options = meta["config"].get("stages", {}).get(meta["stage"], {})
    step, total = meta["step"], options.get("steps")
    finished = meta.get("finished", total is None or step == total and meta.get("evaluated", True))
    opened = step_to_open(directory)
    return {
        "name": name,
        "kind": meta["task"]["kind"],
        "start": meta.get("start"),
        "step": step,
        "of": total,
        "kept": sorted(steps_in(directory)),
        "opened": step if opened is None else opened,
        "finished": finished,
    }


def taps_of(directory, meta: dict) -> list[str]:
    """Names of the features of the network; empty if it has none."""
    segmenter = Segmenter(directory, {}, meta)
    segmenter.network = shapes_of(meta)
    try:
        return list(segmenter.taps)
    except UserError:
        return []


def shapes_of(meta: dict) -> dict:
    """The shapes of {"params", "stats"} as `checkpoints.open_network` would return them."""
    averages = any(name.startswith("ema/") for name in meta["arrays"])
    branches = {"frozen": "params", "params": "params", "stats": "stats"}
    if averages:  # they replace the trained parameters
        branches[f"ema/{meta['ema'][0]}"] = branches.pop("params")
    flat = {}
    for name, array in meta["arrays"].items():
        for branch, part in branches.items():
            if name.startswith(f"{branch}/"):
                dtype = jnp.dtype(array["dtype"])
                dtype = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
                path = part, *name.removeprefix(f"{branch}/").split("/")
                flat[path] = jax.ShapeDtypeStruct(tuple(array["shape"]), dtype)
    return {"params": {}, "stats": {}, **unflatten(flat)}


def parameters_of(arrays: dict) -> list[dict]:
    """The parts of a network: name, number of parameters, bytes, and whether they were trained.

    Numbered parts count as one: input_0, input_1, ... are "input".
    """
    parts = {}
    for name, array in arrays.items():
        branch, part, *_ = [*name.split("/"), ""]
        if branch not in ("params", "frozen"):
            continue
        part = re.sub(r"_?\d+$", "", part)
        empty = {"part": part, "count": 0, "bytes": 0, "trained": branch == "params"}
        entry = parts.setdefault((branch, part), empty)
        entry["count"] += int(np.prod(array["shape"], dtype=int))
        entry["bytes"] += _bytes(array)
    return list(parts.values())


def _bytes(array):
    return int(np.prod(array["shape"], dtype=int)) * jnp.dtype(array["dtype"]).itemsize


def data_of(meta: dict) -> dict | None:
    """The training data of a stage; None if it was not trained by this package."""
    config = meta["config"]
    data = config.get("data" if "labelled" in meta else "unlabelled")
    if data is None:
        return None
    split = data["train"] if "labelled" in meta else data["split"]
    return {
        "source": data["source"], "path": data["path"], "options": data["options"],
        "split": split, "labelled": meta.get("labelled"),
    }  # fmt: skip


def evaluation_of(config: dict, labelled: dict | None = None) -> dict:
    """The view of the run's evaluation; whole images, and no split, if it had none.

    labelled  of the checkpoint's metadata
    """
    data = config.get("data", {})
    split = f"{data['train']}, held out" if "folds" in (labelled or {}) else data.get("val")
    keys = (*WHOLE_VIEW, "window", "stride")
    options = {key: v for key, v in config.get("evaluate", {}).items() if key in keys}
    return {**WHOLE_VIEW, "split": split, **options}


def usage(description: dict, path: str, task: dict) -> dict:
    """The lines that use the checkpoint, in Python and on the command line; task: `Task.meta`."""
    python = ["import diffseg_jax", f"segmenter = diffseg_jax.load({json.dumps(path)})"]
    directory, path = shlex.quote(description["directory"]), shlex.quote(path)
    if predicts(description):
        kind = OUTPUTS[description["task"]](task)
        python += kind.call
        flags = f"--checkpoint={path} --images={kind.inputs} --output=" + (
            "labelled" if description["classes"] else "predicted"
        )
        return {"python": python, "command": f"python -m diffseg_jax.predict {flags}"}
    taps = json.dumps(description["taps"][:1])
    python.append(f'features = segmenter.features("image.png", {taps})')
    run = f"python -m diffseg_jax.sample --checkpoint={directory} --output=samples"
    if task["kind"] in ("features", "clean", "mae"):
        flags = f"--checkpoint={path} --images=photos --output=features"
        run = f"python -m diffseg_jax.features {flags}"
    elif "diffusion" not in task:  # it was pretrained for a stage with labels
        run = f"python -m diffseg_jax.main ... --config.stages.finetune.start={directory}"
    return {"python": python, "command": run}
