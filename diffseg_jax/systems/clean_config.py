"""Noise-free features in a config: checks, and what stages take over from each other."""

from collections.abc import Sequence

import jax
import numpy as np

from diffseg_jax.config.options import FIT
from diffseg_jax.config.schema import Number, Several
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import ADMSettings
from diffseg_jax.systems.clean import clean_blocks
from diffseg_jax.systems.system import split_start

CLEAN_OPTIONS = {
    "clean": {
        "blocks": Several(Number(int, 0)),  # () = those of the fit
        "steps": Several(Number(int, 0), 2),  # noise levels of the teacher, from and to
    }
}


# ---- where a stage starts ----------------------------------------------------------------------


def unets_in(params: dict, kind: str) -> dict:
    """The diffusion model "unet" and the network for images without noise "clean", as far as there.

    params  of a stage of that kind
    """
    if kind == "clean":
        return {"unet": params["teacher"], "clean": params["student"]}
    return {name: params[name] for name in ("unet", "clean") if name in params} or {"unet": params}


def student_and_teacher(unet: dict) -> dict:
    """Both with the parameters of a diffusion model; not as one memory, as one of them changes."""
    return {"student": jax.tree.map(np.copy, unet), "teacher": unet}


def require_unet(name: str, found: dict, here: dict, meta: dict):
    """UserError where the stage to start from lacks a network, or has not trained its blocks.

    name, found  of `unets_in`
    here, meta   `Task.meta` of this stage and of that stage
    """
    if name not in found and name == "clean":
        raise UserError(
            f"features.sources names clean, but the stage to start from is of kind {meta['kind']}, "
            "whose network needs noise. Give one of kind clean, as "
            "configs/ddpm_seg_scenes.py:clean trains, or try --config.features.sources=adm."
        )
    if name not in found:
        raise UserError(
            "the stage to start from holds only a network for images without noise. Give the stage "
            "of kind clean or pretrain from which it started."
        )
    if name == "clean":
        trained = meta["clean" if meta["kind"] == "clean" else "features"]["blocks"]
        _require_trained(here["features"], trained)


def _require_trained(features, trained):
    """UserError for blocks that are read, but at which the student did not learn."""
    taps, known = features.get("taps", ()), tuple(sorted(trained))
    mine = [tap for tap in taps if "/" not in tap or tap.startswith("clean/")]
    names = {f"output_{block}" for block in known}
    if other := [tap for tap in mine if tap.removeprefix("clean/") not in names]:
        prefix = "clean/" if other[0].startswith("clean/") else ""
        others = [tap for tap in taps if tap not in mine]
        fitting = "taps", other[0], (*(f"{prefix}output_{block}" for block in known), *others)
    elif not mine and (other := sorted(set(features["blocks"]) - set(known))):
        fitting = "blocks", other[0], known
    else:
        return
    option, given, advised = fitting
    raise UserError(
        f"features.{option} holds {given}, but the network for images without noise learned at the "
        f'blocks {", ".join(map(str, known))}. Try --config.features.{option}="{advised}".'
    )


# ---- checks ------------------------------------------------------------------------------------


def check_clean_starts(config, names: Sequence[str]):
    """Raises UserError for a stage without its teacher, and for a fit without its student.

    names  of the sources
    """
    kinds = {name: stage.kind for name, stage in config.stages.items()}
    for name in config.run:
        if kinds[name] == "clean":
            _check_start(config, kinds, name, "pretrain")
        if kinds[name] == FIT and "clean" in names:
            _check_start(config, kinds, name, "clean")
            start = split_start(config.stages[name].start)[0]
            if kinds.get(start) == "clean":
                _require_trained(config.features, clean_blocks(config))


def _check_start(config, kinds, name, needed):
    """UserError unless a stage starts from one of kind `needed`, or as one that did."""
    given = config.stages[name].start
    start = split_start(given)[0]
    known = [stage for stage, kind in kinds.items() if kind == needed]
    example = f"--config.stages.{name}.start={(known or [f'runs/a/checkpoints/{needed}'])[0]}"
    if start == "weights" and needed == "clean":
        raise UserError(
            f"stages.{name}.start is weights, but official networks need noise. "
            f"Try {example}, or --config.features.sources=adm."
        )
    if start == "random" or kinds.get(start, needed) not in (needed, kinds[name]):
        raise UserError(
            f"stages.{name}.start is {given}, but it reads the network of a stage of kind "
            f"{needed}. Try {example}."
        )


def check_clean_options(config, settings: ADMSettings):
    """Raises UserError for options of a stage of kind clean that do not go together."""
    last = config.diffusion.steps - 1
    if not config.clean.steps[0] <= config.clean.steps[1] <= last:
        raise UserError(
            f"clean.steps is {tuple(config.clean.steps)}, but they are the lowest and the highest "
            f'noise level of the teacher, in 0 to {last}. Try --config.clean.steps="(0, {last})".'
        )
    if not clean_blocks(config):
        raise UserError(
            "clean.blocks is empty, and the config has no features.blocks to take instead. "
            'Try --config.clean.blocks="(0, 1)".'
        )
    if settings.num_classes:
        raise UserError(
            f"model.num_classes is {settings.num_classes}, but a stage of kind clean reads images "
            "without classes. Try --config.model.num_classes=0."
        )
