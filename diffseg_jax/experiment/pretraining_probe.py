"""Scores a network while it learns without labels: do its features separate the labelled classes?

A linear probe of the features that a later fit will read is fitted to the labelled images every so
many steps. Its mean IoU says when more steps are of no use, and can end the stage.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import place_tree, state_shardings
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import counted
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.fit_features import collect, extractor
from diffseg_jax.experiment.fit_images import read_masks
from diffseg_jax.experiment.fit_network import completed
from diffseg_jax.experiment.linear_probe import draw_pixels, folds_of_pixels, probe
from diffseg_jax.experiment.plan import probe_option
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training import loop
from diffseg_jax.training.state import network_of

PROBES = "probes"  # in the metadata of a checkpoint: [step, mean IoU] of every probe so far
SCORE = "probe_mIoU"  # in metrics.jsonl
SAID_AFTER = 3  # probes without a gain: the log says that it is enough
MOST_IMAGES = 16  # that are read, which takes some 12 steps of a small diffusion model
PROBE_PIXELS = 6_400  # of all images together
FEWEST_PIXELS = 100  # of an image


# ---- the stage ---------------------------------------------------------------------------------


def probed(stage: loop.Stage, plan: StagePlan, checkpoints: StageCheckpoints) -> loop.Stage:
    """The stage with its probe, where its options ask for one and a later fit reads its network.

    It has no steps left where the scores so far are enough for its options, which may have changed.
    """
    every, patience, gain = (probe_option(plan.options, n) for n in ("every", "patience", "gain"))
    if not every:
        return stage
    score, note = make_scorer(plan)
    plan.log.say(f"{plan.name}: {note}")
    if not score:
        return stage
    start = checkpoints.latest() or 0
    scores = checkpoints.meta(start).get(PROBES, []) if start else []
    if is_enough(scores, patience, gain):
        plan.log.say(f"{plan.name}: ends after step {start:,}; {reason(scores, patience, gain)}")
        stage = dataclasses.replace(stage, steps=start)
    return dataclasses.replace(
        stage, every={**stage.every, "probe": every}, meta={**stage.meta, PROBES: scores},
        probe=watching(plan, score, patience, gain),
    )  # fmt: skip


def watching(
    plan: StagePlan, score: Callable[[dict], float], patience: int, gain: float
) -> Callable:  # fmt: skip
    """The `probe` of a stage, see `training.loop.Stage`."""

    def watch(stage, state, step):
        earlier = [[s, found] for s, found in stage.meta[PROBES] if s < step]
        scores = [*earlier, [step, score(state)]]
        changed = dataclasses.replace(stage, meta={**stage.meta, PROBES: scores})
        if is_enough(scores, patience, gain):
            plan.log.say(f"{plan.name}: ends after step {step:,}; {reason(scores, patience, gain)}")
            changed = dataclasses.replace(changed, steps=step)
        enough = [is_enough(each, SAID_AFTER, gain) for each in (earlier, scores)]
        if not patience and enough == [False, True]:
            plan.log.say(f"{plan.name}: {advice(plan.name, scores)}")
        return changed, {SCORE: scores[-1][1]}, summary(scores)

    return watch


# ---- what the scores say -----------------------------------------------------------------------


def waits(scores: Sequence, gain: float) -> list[int]:
    """For each probe, how many of them in a row, up to it, were no gain over the best before.

    scores  pairs (step, mean IoU);  gain  the smallest difference that counts
    """
    best, counts = -math.inf, []
    for _, score in scores:
        gained = score > best and score - best >= gain - 1e-9
        best = score if gained else best
        counts.append(0 if gained else counts[-1] + 1)
    return counts


def is_enough(scores: Sequence, patience: int, gain: float) -> bool:
    """Whether there were so many probes in a row without a gain; never for patience 0."""
    return bool(patience) and max(waits(scores, gain), default=0) >= patience


def summary(scores: Sequence) -> str:
    """Such as "linear probe 38.2 % (best 38.5 % at step 1,000)"; scores as of `waits`."""
    step, best = max(scores, key=lambda pair: pair[1])
    return f"linear probe {100 * scores[-1][1]:.1f} % (best {100 * best:.1f} % at step {step:,})"


def reason(scores: Sequence, patience: int, gain: float) -> str:
    """Why a stage ends."""
    return (
        f"{summary(scores)} has not gained {100 * gain:g} points for "
        f"{counted(patience, 'probe')}, its probe.patience"
    )


def advice(name: str, scores: Sequence) -> str:
    """The sentence for a stage that has no patience."""
    return (
        f"{summary(scores)} has not gained for {SAID_AFTER} probes: good enough; to stop here and "
        f"go on: Ctrl-C, then the same command with --config.stages.{name}.probe.patience="
        f"{SAID_AFTER}"
    )


# ---- one score ---------------------------------------------------------------------------------


def make_scorer(plan: StagePlan) -> tuple[Callable[[dict], float] | None, str]:
    """(training state -> mean IoU of a linear probe, or None; a sentence about it).

    The pixels are the same in every call, and each image is predicted by a probe that has not seen
    it. It takes no random numbers of the training.
    """
    if not plan.reader:
        return None, "is not probed, as no stage of this run fits classifiers to its features"
    given = plan.reader.fit
    fit = dataclasses.replace(given, indices=spread(given.indices, MOST_IMAGES))
    read = read_masks(fit, small_objects=0)
    masks, shown = read.masks, read.shown
    if len(shown) < 2:
        return None, "is not probed, which needs two labelled images"
    count = max(PROBE_PIXELS // len(shown), FEWEST_PIXELS)
    drawn = [draw_pixels(mask, count, number) for number, mask in enumerate(masks)]
    labels = np.concatenate([mask[y, x] for mask, (y, x) in zip(masks, drawn, strict=True)])
    folds, classes = folds_of_pixels(len(shown), count), len(fit.evaluation.source.labels.names)
    extract, size, kept = extractor(fit), plan.mesh.size, {}
    gather = jax.jit(lambda features, image, y, x: features.gather(image, y, x))

    def score(state):
        network = _network_of_fit(plan, network_of(state, plan.options.ema), kept)
        what, vectors = f"{plan.name}: features for the probe", []
        with plan.log.progress(what, len(shown), unit="images", first=COMPILES) as progress:
            for start in range(0, len(shown), size):
                features = collect(fit, network, shown[start : start + size], extract, progress)
                for image, (y, x) in enumerate(drawn[start : start + size]):
                    vectors.append(np.asarray(gather(features, np.full_like(y, image), y, x)))
        found = probe(np.concatenate(vectors), labels, folds, classes)
        return processes.broadcast_from_first(round(1e6 * found)) / 1e6

    images = counted(len(shown), "labelled image")
    every = probe_option(plan.options, "every")
    return score, f"probed every {counted(every, 'step')} on {images}, as {fit.name} reads them"


def _network_of_fit(plan, network, kept) -> dict:
    """The network of the fit with the current parameters.

    kept  by path: what the fit does not take over, the same in every call; filled by the first one
    """
    fit, taken = plan.reader.fit, flatten(plan.reader.adopt(network))
    if not kept:
        given = plan.reader.given()
        placed = place_tree(given, state_shardings(given, plan.mesh))
        found = unflatten({**flatten(placed), **taken})
        whole = flatten(completed(fit.task, fit.seed, fit.mesh, found))
        kept.update({path: leaf for path, leaf in whole.items() if path not in taken})
    return {"params": {}, "stats": {}, **unflatten({**kept, **taken})}
