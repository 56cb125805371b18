"""Measures by linear probes which blocks, at which noise levels, separate the labelled classes.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
3, compare blocks and steps by training a classifier on each. Ridge regression has a solution in
closed form and ranks them in minutes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.config.options import FIT
from diffseg_jax.devices.processes import require_one
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError, choose, counted
from diffseg_jax.experiment.fit_images import examples, read_masks
from diffseg_jax.experiment.fit_network import open_backbone
from diffseg_jax.experiment.linear_probe import FOLDS, draw_pixels, folds_of_pixels, probe
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.experiment.stages import read_some
from diffseg_jax.figures import layout, sheets
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import make_workdir
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.system import TapGrid

PIXELS = 1000  # maximum number that is read per image
BYTES = 2**30  # maximum size of the features of all pixels
CHOSEN_STEPS, CHOSEN_BLOCKS = 3, 5  # as in the paper


@own_settings()
def choose_taps(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Scores every output block at several steps; leaves taps.json and pictures/taps.png.

    A score is the mean IoU of a linear probe on pixels of labelled images that it was not fitted
    to. Prints the grid and the line for the config. Raises UserError without a stage that fits an
    ensemble to a network, and with fewer than two labelled images.
    """
    require_one("--mode=taps")
    require_free(workdir, "taps", "--workdir")
    plan, taps = plan_taps(config, workdir, display)
    make_workdir(workdir)
    with locked(workdir, "taps", "--workdir"):
        _rank(plan, taps)


def _rank(plan, taps):
    steps, count, workdir = taps.steps, len(taps.widths), plan.workdir
    plan.log.say(
        f"{plan.name}, from {plan.start}: {count} blocks at {len(steps)} steps, linear "
        f"probes on {counted(len(plan.indices), 'labelled image')}, {FOLDS}-fold cross-validation: "
        "fast, and not the paper's figure, for which configs/studies/ddpm_seg_blocks.py trains an "
        "MLP for each"
    )
    grid = score_taps(plan, taps)
    chosen = best_taps(grid, steps)
    scored = {"steps": steps, "blocks": list(range(count)), "mIoU": grid.tolist()}
    write_json(workdir / "taps.json", {**scored, "chosen": chosen})
    image = workdir / "pictures" / "taps.png"
    layout.save_png(image, sheets.score_grid(100 * grid, "step", steps, "block"))
    plan.log.say(
        f"mIoU (%) of linear probes, by step (rows) and output block\n{score_table(grid, steps)}"
    )
    plan.log.say(f"the same table as an image: {image}")
    plan.log.say(
        f"the best {len(chosen['steps'])} steps and {len(chosen['blocks'])} blocks (small "
        "differences on few images are not reliable): "
        f'--config.features.steps="{chosen["steps"]}" --config.features.blocks="{chosen["blocks"]}"'
    )


def plan_taps(
    config: ConfigDict, workdir: Path, display: Display | None = None
) -> tuple[StagePlan, TapGrid]:
    """The stage whose features are compared, one that starts from a network if there is one."""
    names = [name for name in config.run if config.stages[name].kind == FIT]
    names = [name for name in names if config.stages[name].start != "random"] or names
    make_grid = choose(SYSTEMS, config.system, "system").tap_grid
    taps = make_grid(config) if names and make_grid else None
    if not taps:
        raise UserError(
            "--mode=taps needs a stage of kind fit whose features are those of a network. "
            "Try --config=configs/ddpm_seg_scenes.py."
        )
    taps.config.run = (names[0],)
    plan = make_plan(taps.config, workdir, display)
    for sentence in read_some(plan):
        plan.log.say(f"warning: {sentence}")
    return plan.stages[0], taps


def score_taps(plan: StagePlan, taps: TapGrid) -> np.ndarray:
    """Mean IoU f64[steps, blocks] of a linear probe on each tap, by k-fold over images."""
    read = read_masks(plan, small_objects=0)
    masks, indices = read.masks, read.shown
    if len(indices) < 2:
        raise UserError(
            "--mode=taps needs two labelled images or more for cross-validation, but there is 1. "
            "Raise --config.data.count."
        )
    extract, network = plan.task.fit.extract, open_backbone(plan)
    classes = len(plan.evaluation.source.labels.names)
    affordable = BYTES / (4 * len(indices) * sum(taps.widths))
    pixels = int(np.clip(affordable, 10, PIXELS))
    drawn = [draw_pixels(mask, pixels, number) for number, mask in enumerate(masks)]
    labels = np.concatenate([mask[y, x] for mask, (y, x) in zip(masks, drawn, strict=True)])
    folds = folds_of_pixels(len(indices), pixels)

    @jax.jit
    def read(network, image, valid, y, x, step):
        features = extract(network, image[None], valid[None], steps=step[None])
        return features.gather(jnp.zeros_like(y), y, x)

    grid = []
    with plan.log.progress(f"{plan.name}: noise steps", len(taps.steps)) as done:
        for step in done.each_of(taps.steps):
            vectors, shown = [], f"{plan.name}: step {step}: features"
            each, first = zip(examples(plan, indices), drawn, strict=True), "" if grid else COMPILES
            with plan.log.progress(shown, len(indices), unit="images", first=first) as progress:
                for e, (y, x) in progress.each_of(each):
                    found = read(network, e["image"], np.asarray(e["valid"]), y, x, jnp.int32(step))
                    vectors.append(np.asarray(found))
            blocks = np.split(np.concatenate(vectors), np.cumsum(taps.widths)[:-1], axis=1)
            with plan.log.progress(f"{plan.name}: step {step}: probes", len(blocks)) as progress:
                each = progress.each_of(blocks)
                grid.append([probe(block, labels, folds, classes) for block in each])
            plan.log.say(f"step {step}: best block {int(np.argmax(grid[-1]))}")
    return np.array(grid)


def best_taps(grid: np.ndarray, steps: tuple[int, ...]) -> dict:
    """The steps and blocks that score best on average: blocks over all steps, steps over those."""
    blocks = np.argsort(-grid.mean(0), kind="stable")[:CHOSEN_BLOCKS]
    rows = np.argsort(-grid[:, blocks].mean(1), kind="stable")[:CHOSEN_STEPS]
    return {
        "steps": tuple(sorted(steps[row] for row in rows)),
        "blocks": tuple(sorted(int(block) for block in blocks)),
    }


def score_table(grid: np.ndarray, steps: tuple[int, ...]) -> str:
    """The scores as plain text, in percent: a line per step."""
    lines = [" step" + "".join(f"{block:>6}" for block in range(grid.shape[1]))]
    for step, row in zip(steps, grid, strict=True):
        lines.append(f"{step:>5}" + "".join(f"{100 * score:>6.1f}" for score in row))
    return "\n".join(lines)
