"""Measures a stage and draws sheets of it while it runs."""

from collections.abc import Callable

import jax
import numpy as np

from diffseg_jax.display.progress import COMPILES
from diffseg_jax.experiment.augmentation import augmentation
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.experiment.results import save_sheet, trace_steps
from diffseg_jax.experiment.step_folds import keep_step_counts
from diffseg_jax.figures import layout, sheets
from diffseg_jax.training.state import network_of


def make_monitor(plan: StagePlan) -> Callable[[dict, int], dict[str, float]]:
    """(state, step) -> numbers to log; it also draws a sheet. The loop calls it periodically."""
    if plan.task.sample:
        return _sampling_monitor(plan)
    if plan.evaluation:
        return _measuring_monitor(plan)
    return _denoising_monitor(plan) if plan.task.denoise else lambda state, step: {}


def _sampling_monitor(plan):
    def draw(state, step):
        network = network_of(state, plan.options.ema)
        with plan.log.progress(f"{plan.name}: draws samples", first=COMPILES) as progress:

            def each_of(steps):
                progress.total = len(steps)
                return progress.each_of(steps)

            images = plan.task.sample(network, plan.seed, progress=each_of)
        file = f"{plan.name}_{step:06d}"
        save_sheet(plan, layout.grid(images), file, step)
        plan.log.say(f"{plan.name} {step}: samples in {plan.workdir / 'pictures' / file}.png")
        return {}

    return draw


def _measuring_monitor(plan):
    evaluation, target = plan.evaluation, plan.target
    protocol, indices = evaluation.quick_protocol, evaluation.quick_indices

    def measure_quickly(state, step):
        network = network_of(state, plan.options.ema)
        counts, examples = target.measure(evaluation, network, indices, protocol)
        keep_step_counts(evaluation, step)
        trace_steps(evaluation, network, examples, protocol)
        target.draw(evaluation, examples, f"{plan.name}_{step:06d}", step)
        return {**target.quick(evaluation, counts), "images": len(indices)}

    return measure_quickly


def _denoising_monitor(plan):
    examples = _some_crops(plan)
    what = "reconstruction" if plan.task.meta["kind"] == "mae" else "denoising"

    def denoise(state, step):
        key = jax.random.key(plan.seed)
        network = network_of(state, plan.options.ema)
        with plan.log.progress(f"{plan.name}: {what} of some images", first=COMPILES):
            found = plan.task.denoise(network, examples["image"], examples["valid"], key)
            *images, error = jax.device_get(found)
        sheet = sheets.denoising_sheet(*map(np.asarray, images))
        save_sheet(plan, sheet, f"{plan.name}_{step:06d}", step)
        return {f"{what}_error_of_pictures": float(error)}

    return denoise


def _some_crops(plan):
    """A few fixed training crops of an unlabelled stage, as one batch."""
    change = augmentation(plan.options.augment, labelled=False)
    crops = [
        change(plan.source[int(index)]["image"], None, np.random.default_rng(index))
        for index in spread(plan.indices, max(plan.examples, 1))
    ]
    return {key: np.stack([crop[key] for crop in crops]) for key in ("image", "valid")}
