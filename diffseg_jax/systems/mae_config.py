"""MAE in a config: options and checks of its stage, and what stages take over from it."""

import dataclasses
import os
from collections.abc import Callable

from diffseg_jax.config.options import FIT
from diffseg_jax.config.schema import Flag, Number
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.models.mae import MAESettings, encoder_alone
from diffseg_jax.storage.networks import open_meta
from diffseg_jax.storage.paths import open_path
from diffseg_jax.systems.feature_sources import FROM_STAGES, MAE_OF_START, source_entries
from diffseg_jax.systems.mae import check_mae_options
from diffseg_jax.systems.source_files import arrays_in, sizes_in
from diffseg_jax.systems.system import require_same_network, split_start
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.mae import load_mae, mae_settings

MAE_OPTIONS = {
    "mae": {
        "patch": Number(int, 1, 256),  # pixels per side
        "width": Number(int, 4, 16384),
        "depth": Number(int, 1, 256),
        "heads": Number(int, 1, 1024),
        "mlp": Number(int, 1, 65536),
        "decoder_width": Number(int, 4, 16384),
        "decoder_depth": Number(int, 1, 256),
        "decoder_heads": Number(int, 1, 1024),
        "decoder_mlp": Number(int, 1, 65536),
    },
    "masking": {"ratio": Number(float, 0, 1), "normalise": Flag()},
}
MAE_EXAMPLE = "mae_pretrain_vit_large.pth"  # one of the published files


# ---- where a stage starts ----------------------------------------------------------------------


def start_sizes(config, name: str, kept: Callable[[str], dict]) -> dict:
    """The sizes of the MAE, an encoder alone, that a fit takes from its start.

    name  of the fit;  kept  as of `System.complete`
    Raises UserError for a start without an MAE.
    """
    start = split_start(config.stages[name].start)[0]
    if start != "random" and start not in config.stages:
        if "/" not in start and not os.path.exists(start):
            require_known(start, (*config.stages, "random"), "start")
        return _sizes_of(open_meta(open_path(start))["task"])
    if start in config.stages and (task := kept(start)):
        return _sizes_of(task)
    return dataclasses.asdict(encoder_alone(MAESettings(**config.mae)))


def _sizes_of(task):
    """The sizes of the encoder in a stage with that `Task.meta`."""
    if sizes := sizes_in("mae", task):
        return sizes
    raise UserError(
        f"features.sources names mae, but the stage to start from is of kind {task['kind']} and "
        "holds no MAE. Give one of kind mae, as configs/mae_camvid.py trains."
    )


def adopt_mae(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """The arrays that a stage with an MAE takes over from another one; as of `System.adopt`.

    A fit takes the encoder alone.
    """
    if task.fit:
        _sizes_of(meta)
        taken = {"mae": arrays_in("mae", previous, meta)["params"]["mae"]}
        require_same_network({"params": {"mae": abstract["params"]["mae"]}}, {"params": taken})
        return {"params": taken}
    if meta["kind"] != "mae":
        raise UserError(
            f"the stage to start from is of kind {meta['kind']}, but pretraining continues from "
            "one of kind mae, which has a decoder. Give such a stage, or start from weights, with "
            f"--config.weights={MAE_EXAMPLE}."
        )
    if unequal := [key for key, value in task.meta["model"].items() if value != meta["model"][key]]:
        listed = lambda task: ", ".join(f"mae.{key} {task['model'][key]}" for key in unequal)
        flags = " ".join(f"--config.mae.{key}={meta['model'][key]}" for key in unequal)
        raise UserError(
            f"the config has {listed(task.meta)}, but the stage to start from has {listed(meta)}. "
            f"Try {flags}."
        )
    return {"params": previous["params"]}


def mae_weights(config, settings: MAESettings) -> dict:
    """The MAE in the file config.weights; without its decoder where the file has none."""
    arrays = read_arrays(config.weights, config.get("weights_part", ""))
    if not mae_settings(arrays, config.weights, heads=1, decoder_heads=1).decoder_width:
        settings = encoder_alone(settings)
    return {"params": load_mae(arrays, settings, config.weights)["params"]}


# ---- checks ------------------------------------------------------------------------------------


def check_mae_stage(config, name: str):
    """Raises UserError for options of a stage of kind mae that do not go together."""
    crop = tuple(config.stages[name].augment.crop)
    check_mae_options(MAESettings(**config.mae), config.masking.ratio, crop)


def check_mae_starts(config):
    """Raises UserError for a fit that reads an MAE without a file, and starts from none."""
    entries = source_entries(config.features) if "features" in config else []
    fits = [name for name in config.run if config.stages[name].kind == FIT]
    if MAE_OF_START not in entries or not fits:
        return
    if others := [entry.name for entry in entries if entry.name in FROM_STAGES]:
        raise UserError(
            f"features.sources names mae and {others[0]}, but a fit starts from one stage. Give "
            "the directory of the other, such as mae=runs/a/checkpoints/mae."
        )
    kinds = {name: stage.kind for name, stage in config.stages.items()}
    for name in fits:
        given = config.stages[name].start
        start = split_start(given)[0]
        lacking = start == "random" and "mae" not in config
        if start == "weights" or lacking or kinds.get(start, "mae") not in ("mae", FIT):
            known = [stage for stage, kind in kinds.items() if kind == "mae"]
            stage = (known or ["runs/a/checkpoints/mae"])[0]
            file = "random" if lacking else MAE_EXAMPLE
            raise UserError(
                f"stages.{name}.start is {given}, which gives the feature source mae no network. "
                f"Try --config.stages.{name}.start={stage}, or a file as in "
                f'--config.features.sources="mae={file}" --config.stages.{name}.start=weights.'
            )
