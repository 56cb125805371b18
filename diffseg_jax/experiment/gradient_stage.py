"""Trains a planned stage by gradient descent."""

import dataclasses
from collections.abc import Callable, Mapping

from diffseg_jax.data.pipeline import image_alone, training_batches
from diffseg_jax.devices.mesh import describe_devices, local_rows, state_shardings
from diffseg_jax.errors import counted
from diffseg_jax.experiment.augmentation import augmentation
from diffseg_jax.experiment.monitor import make_monitor
from diffseg_jax.experiment.plan import stage_optimizer, stage_schedule
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.experiment.pretraining_probe import probed
from diffseg_jax.experiment.step_folds import forget_later_counts
from diffseg_jax.experiment.target import Target
from diffseg_jax.experiment.time_budget import FIRST_STEPS, MOST_STEPS, Budget
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.systems.task import Task
from diffseg_jax.training import loop
from diffseg_jax.training.state_sizes import of_state


def train_stage(plan: StagePlan, checkpoints: StageCheckpoints, budget: Budget | None = None):
    """Trains a stage from where it stopped to its last step, or as long as the time allows."""
    start = checkpoints.latest() or 0
    planned = planned_steps(plan, checkpoints)
    steps = planned if budget else steps_without_budget(plan, start, planned)
    stage = probed(make_stage(plan, steps), plan, checkpoints)
    if budget and start < stage.steps:  # else only its last evaluation is missing
        stage = _paced(stage, plan, start, budget)
    if plan.evaluation:
        forget_later_counts(plan.evaluation, start)
    announce(plan, stage)
    loop.train_network(stage, checkpoints, plan.mesh, plan.log)


def planned_steps(plan: StagePlan, checkpoints: StageCheckpoints) -> int:
    """Steps of a stage: its recipe's, unless it was begun in a given time, which changes them."""
    step = checkpoints.latest()
    saved = {} if step is None else checkpoints.meta(step)
    return saved.get("steps", plan.options.steps)


def steps_without_budget(plan: StagePlan, start: int, planned: int) -> int:
    """Steps of a stage that is resumed without a given time: its recipe's, if it has made fewer.

    start, planned  steps made, and those that fitted into the time with which it was begun
    """
    recipe = plan.options.steps
    if planned == recipe or start >= min(planned, recipe):  # nothing to change, or too late for it
        return planned
    plan.log.say(
        f"{plan.name}: with --minutes it was to end after {counted(planned, 'step')}, of which "
        f"{start:,} are made; without, it makes all {recipe:,} of its recipe"
    )
    return recipe


def _paced(stage, plan, start, budget):
    """The stage with as many steps as fit into its time; how many is known after one or a few."""
    steps = max(stage.steps, start + 2 * FIRST_STEPS)
    never = {"checkpoint": MOST_STEPS, "evaluate": MOST_STEPS}
    return dataclasses.replace(
        stage, steps=steps, schedule=stage_schedule(plan.options, steps),
        every={**stage.every, "log": 1, **never},
        evaluate=budget.watch(plan, stage.evaluate), pace=budget.paced(plan, start),
        batches=lambda start: _batches(plan, start, start + MOST_STEPS),
    )  # fmt: skip


def make_stage(plan: StagePlan, steps: int | None = None) -> loop.Stage:
    """Data, loss, optimizer and monitoring of a planned stage; steps: others than its recipe's."""
    stage = blank_stage(plan.name, plan.options, plan.task, plan.seed, steps)
    return dataclasses.replace(
        stage, batches=lambda start: _batches(plan, start, stage.steps), loaded=plan.loaded,
        optimizer=plan.optimizer, meta=plan.meta, evaluate=make_monitor(plan),
    )  # fmt: skip


def blank_stage(
    name: str, options: Mapping, task: Task, seed: int, steps: int | None = None
) -> loop.Stage:
    """A stage by its options, without data to learn from, metadata and monitoring."""
    steps = options.steps if steps is None else steps
    return loop.Stage(
        name=name, steps=steps, batch_size=options.batch_size, batches=lambda start: iter(()),
        init=task.init, trainable=task.trainable, loss=task.loss,
        optimizer=stage_optimizer(options)[0], schedule=stage_schedule(options, steps),
        every=options.every.to_dict(), meta={}, accumulate=options.accumulate, ema=options.ema,
        seed=seed,
    )  # fmt: skip


def _batches(plan, start, steps):
    """Batches of the steps from `start` on, up to `steps`."""
    options = plan.options
    change, parts = reading_of(options, plan.target if plan.evaluation else None)
    return training_batches(
        plan.source, plan.indices, change, parts=parts, seed=plan.seed,
        batch_size=options.batch_size, start=start, steps=steps - start,
        rows=local_rows(plan.mesh, options.batch_size), threads=plan.threads,
        workers=plan.workers,
    )  # fmt: skip


def reading_of(options: Mapping, target: Target | None) -> tuple[Callable, Callable]:
    """The `augment` and `parts` of `training_batches`; target: of a labelled stage, else None."""
    if target:
        return target.change(options.augment), target.parts
    return augmentation(options.augment, labelled=False), image_alone


def announce(plan: StagePlan, stage: loop.Stage):
    """Logs the start, the data, the steps and the devices of a stage before it is trained."""
    with plan.log.progress(f"{stage.name}: prepares its network"):  # it is traced
        abstract = loop.abstract_state(stage)
    kind = "labelled image" if plan.evaluation else "unlabelled image"
    steps = "steps" if stage.pace else counted(stage.steps, "step")
    plan.log.say(
        f"{stage.name}: from {plan.start}; {counted(len(plan.indices), kind)}; "
        f"{steps} of {stage.batch_size}; {describe_devices(plan.mesh)}"
    )
    plan.log.say(of_state(abstract, state_shardings(abstract, plan.mesh)))
    if plan.evaluation:
        plan.log.say(f"{stage.name}: {evaluations_of(plan, paced=stage.pace is not None)}")
    if plan.note:
        plan.log.say(f"{stage.name}: {plan.note}")


def evaluations_of(plan: StagePlan, paced: bool = False) -> str:
    """How a labelled stage is evaluated during training and at its end, for its log.

    paced  whether the time decides how often
    """
    evaluation, every = plan.evaluation, plan.options.every.evaluate
    often = f" every {counted(every, 'step')}" if every < plan.options.steps else " at the end"
    often = "" if paced else often
    chosen = "best checkpoint by these" if evaluation.keep_best else "last checkpoint"
    return (
        f"evaluated quickly{often} on "
        f"{counted(len(evaluation.quick_indices), 'image')} {evaluation.quick_protocol}; "
        f"finally the {chosen} on {counted(len(evaluation.indices), 'image')} "
        f"{evaluation.protocol}"
    )
