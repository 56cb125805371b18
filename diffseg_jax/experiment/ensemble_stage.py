"""A planned stage that fits an ensemble: first the features of labelled images, then the fit."""

import dataclasses
import functools

import jax
import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.fit_feature_files import GB, maps_of_fit
from diffseg_jax.experiment.fit_features import (
    collect,
    extractor,
    features_shown,
    require_memory,
)  # fmt: skip
from diffseg_jax.experiment.fit_images import read_masks
from diffseg_jax.experiment.fit_network import open_backbone, read_classifiers
from diffseg_jax.experiment.fold_files import folds_in_turn, lacking_folds, write_fold
from diffseg_jax.experiment.grid_note import describe_grid
from diffseg_jax.experiment.label_strokes import groups_of
from diffseg_jax.experiment.labelled_pixels import LabelledPixels
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.experiment.time_budget import Budget
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import first_has_checkpoint
from diffseg_jax.training import fit_loop


def check_fit(plan: StagePlan):
    """Checks a fit stage before anything runs.

    Raises UserError for classifiers of other features or classes, when no labelled pixel is left,
    when the features do not fit in memory, and for images whose maps should be in files that are
    missing, also those of the evaluation.
    """
    if first_has_checkpoint(plan.directory):
        return
    if plan.task.fit.classifiers:
        read_classifiers(plan)
        _require_files(plan)
        return
    masks = read_masks(plan, plan.task.fit.small_objects, _copies(plan)).masks
    _require_files(plan)
    require_memory(plan, jax.eval_shape(plan.task.init, jax.random.key(0)), masks)


def _require_files(plan):
    """Raises UserError for images of the fit and its evaluation whose maps files lack."""
    files, evaluation = plan.task.fit.files, plan.evaluation
    if not files:
        return
    read = ((plan.source, plan.indices), (evaluation.source, evaluation.indices))
    names = {source.names[int(i)]: None for source, indices in read for i in indices}
    if lacking := files.lacking(list(names)):
        raise UserError(
            f"stage {plan.name}: there are no features in {files.folder} of "
            f"{counted(len(lacking), 'image')} of {len(names)} to learn from and to measure with, "
            f"such as {lacking[0]}. Compute them, with python -m diffseg_jax.features or the "
            "program that made the others."
        )


def fit_stage(plan: StagePlan, checkpoints: StageCheckpoints, budget: Budget | None = None):
    """Fits the ensemble of a stage, or takes published classifiers; saves it beside its network.

    budget  the time in which the stage should end, with fewer copies or steps; None: any
    """
    with plan.log.progress(f"{plan.name}: opens its network"):
        fit, frozen = plan.task.fit, open_backbone(plan)
    if fit.classifiers:
        state = fit_loop.saved(read_classifiers(plan), frozen, 0)
        finished = {"stage": plan.name, "step": 0, "ema": [], "finished": True}
        checkpoints.save(0, state, {**plan.meta, **finished})
        checkpoints.wait()
        plan.log.say(f"{plan.name}: takes the classifiers in {fit.classifiers}")
        if plan.note:
            plan.log.say(f"{plan.name}: {plan.note}")
        return
    step = checkpoints.latest()
    saved = {} if step is None else checkpoints.meta(step)
    extract = extractor(plan)
    copies = saved.get("copies", _copies(plan))
    read = read_masks(plan, fit.small_objects, copies)
    if read.empty:
        plan.log.say(read.empty)
    with plan.log.progress(f"{plan.name}: looks for its features in files"):
        files = maps_of_fit(plan, frozen, extract, read)
    if budget and step is None:
        copies = _copies_in_time(plan, budget, frozen, read.shown, extract, files)
        rows = np.flatnonzero(read.shown[:, 1] <= copies)
        read, files = read.of(rows), files and files.of(rows)
    if copies != _copies(plan):
        plan = dataclasses.replace(plan, meta={**plan.meta, "copies": copies})
    masks, kept = read.masks, read.shown
    with plan.log.progress(f"{plan.name}: counts its features"):  # it is traced
        need = require_memory(plan, frozen, masks)
    originals = len({index for index, _ in kept})
    copies = f" and {len(kept) - originals} changed copies" if len(kept) > originals else ""
    lacking = len(files.lacking()) if files else len(kept)
    found = f"; those of {len(kept) - lacking} are in files" if lacking < len(kept) else ""
    plan.log.say(
        f"{plan.name}: from {plan.start}; reads features of {counted(originals, 'image')}{copies}, "
        f"{need / GB:.2g} GB{found}"
    )
    with features_shown(plan, kept) as progress:
        features = collect(plan, frozen, kept, extract, progress, files)
    names = plan.evaluation.source.labels.names
    for sentence in describe_grid(features, masks, names, plan.task):
        plan.log.say(f"{plan.name}: {sentence}")
    pixels = np.flatnonzero(masks.reshape(-1) != IGNORE).astype(np.int32)
    labels = masks.reshape(-1)[pixels]
    if "steps" in saved:
        plan = dataclasses.replace(plan, meta={**plan.meta, "steps": saved["steps"]})
    groups = groups_of(plan.options.get("balance", "recipe"), masks)
    fits = LabelledPixels(plan, frozen, features, pixels, labels, groups)
    if not all_are_fitted(checkpoints):
        _fit_to_all(fits, checkpoints, budget if step is None else None)
    if plan.evaluation.folds:
        of_row = np.array([plan.evaluation.folds[int(index)] for index, _ in kept])
        meta = checkpoints.meta(checkpoints.latest())
        fit_folds(fits, of_row[pixels // masks[0].size], meta)


def all_are_fitted(checkpoints: StageCheckpoints) -> bool:
    """Whether all members of a fit have made their last step."""
    step = checkpoints.latest()
    return step is not None and checkpoints.meta(step)["finished"]


def _fit_to_all(fits, checkpoints, budget):
    """Fits the probe and the ensemble to all pixels; budget: None where the steps are known."""
    plan, fit = fits.plan, fits.plan.task.fit
    if fit.probe and "probe" not in fits.frozen["stats"]:
        plan.log.say(f"{plan.name}: fits a linear probe, the baseline")
        stats = {**fits.frozen["stats"], "probe": fits.probe(f"{plan.name}: linear probe")}
        fits.frozen = {**fits.frozen, "stats": stats}
    members = fits.make(fit, steps=plan.meta.get("steps"))
    if budget:
        shorten = functools.partial(_shorter, plan, members, fit.recipe, budget)
        members = dataclasses.replace(members, shorten=shorten)
    compiled = functools.partial(fits.compiled, fit=fit)
    fit_loop.train_members(members, checkpoints, plan.mesh, plan.log, compiled)


def fit_folds(fits: LabelledPixels, of: np.ndarray, meta: dict):
    """Fits classifiers to all folds but one, for each that has none yet, and writes them.

    of    the fold of every pixel
    meta  of the checkpoint of those that were fitted to all folds
    """
    plan, fit = fits.plan, fits.plan.task.fit
    evaluation, steps = plan.evaluation, meta.get("steps")
    names = [plan.source.names[int(index)] for index in plan.indices]
    folds = [evaluation.folds[int(index)] for index in plan.indices]
    every, lacking = folds_in_turn(evaluation), lacking_folds(evaluation, meta)
    shown = plan.log.progress(f"{plan.name}: folds", len(every), done=len(every) - len(lacking))
    with shown as progress:
        for fold in every:
            if fold not in lacking:
                plan.log.say(f"{plan.name}: fold {fold} of {len(every)} is fitted")
                continue
            learned = [name for name, each in zip(names, folds, strict=True) if each != fold]
            among = np.flatnonzero(of != fold)
            if not len(among):
                raise UserError(
                    f"stage {plan.name}: without {', '.join(set(names) - set(learned))}, held out "
                    f"as fold {fold}, no labelled pixel is left to learn from. Label more images, "
                    "or, to measure on what is learned, take another --workdir with "
                    "--config.data.val=train --config.data.folds=0."
                )
            plan.log.say(
                f"{plan.name}: fold {fold} of {len(every)}: "
                f"{counted(len(names) - len(learned), 'image')} held out, "
                f"{len(learned)} to learn from"
            )
            single = fits.make(fit, among, steps)
            what = f"{plan.name}: fold {fold} of {len(every)}"
            fitted = fits.fitted(single, fit, what)
            arrays = {part: {"ensemble": fitted[part]["ensemble"]} for part in ("params", "stats")}
            if fit.probe:
                arrays["stats"]["probe"] = fits.probe(f"{what}, linear probe", among)
            write_fold(evaluation, fold, meta, arrays, learned)
            progress.add()


def _copies(plan):
    return plan.options.augment.get("variants", 0)


def _copies_in_time(plan, budget, frozen, kept, extract, files) -> int:
    """Changed copies of each image whose features can be read in time; pairs as of `examples`.

    files  of features, whose reading takes no time; None for none
    """
    lacking = files.lacking() if files else range(len(kept))
    if not lacking:
        return _copies(plan)
    plan.log.say(f"{plan.name}: measures the features of an image")
    few = np.resize(lacking[: 2 * plan.mesh.size], 2 * plan.mesh.size)  # the first ones compile
    with features_shown(plan, few) as progress:
        collect(plan, frozen, kept[few], extract, progress, files and files.of(few))
    images = len({index for index, _ in kept}) * len(lacking) / len(kept)
    return budget.copies(plan, max(round(images), 1), _copies(plan), progress.seconds_each)


def _shorter(plan, members, recipe, budget, seconds) -> fit_loop.Fit | None:
    """The members with fewer steps where so many of some seconds each would not end in time."""
    fits = 1 + len(folds_in_turn(plan.evaluation))
    steps = budget.fit_steps(plan, members.steps, fits * seconds)
    if steps == members.steps:
        return None
    optimizer, meta = recipe.optimizer(steps), {**members.meta, "steps": steps}
    return dataclasses.replace(members, steps=steps, optimizer=optimizer, meta=meta, shorten=None)
