"""Trains a planned stage by gradient descent."""

from diffseg_jax.data.pipeline import training_batches
from diffseg_jax.devices.mesh import describe_devices, local_rows, state_shardings
from diffseg_jax.errors import counted
from diffseg_jax.experiment.monitor import make_monitor
from diffseg_jax.experiment.plan import StagePlan, augmentation
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training import loop, resources


def train_stage(plan: StagePlan, checkpoints: StageCheckpoints):
    """Trains a stage from where it stopped to its last step."""
    stage = make_stage(plan)
    announce(plan, stage)
    loop.train_network(stage, checkpoints, plan.mesh, plan.log)


def make_stage(plan: StagePlan) -> loop.Stage:
    """Data, loss, optimizer and monitoring of a planned stage."""
    options, task = plan.options, plan.task
    change = augmentation(options.augment, labelled=plan.evaluation is not None)

    def batches(start):
        return training_batches(
            plan.source, plan.indices, change, seed=plan.seed, batch_size=options.batch_size,
            start=start, steps=options.steps - start,
            rows=local_rows(plan.mesh, options.batch_size), threads=plan.threads,
            workers=plan.workers,
        )  # fmt: skip

    return loop.Stage(
        name=plan.name, steps=options.steps, batch_size=options.batch_size, batches=batches,
        init=task.init, loaded=plan.loaded, trainable=task.trainable, loss=task.loss,
        optimizer=plan.optimizer, schedule=plan.schedule, every=options.every.to_dict(),
        meta=plan.meta, accumulate=options.accumulate, ema=options.ema,
        evaluate=make_monitor(plan), seed=plan.seed,
    )  # fmt: skip


def announce(plan: StagePlan, stage: loop.Stage):
    """Logs the start, the data, the steps and the devices of a stage before it is trained."""
    abstract = loop.abstract_state(stage)
    kind = "labelled image" if plan.evaluation else "unlabelled image"
    plan.log.say(
        f"{stage.name}: from {plan.start}; {counted(len(plan.indices), kind)}; "
        f"{counted(stage.steps, 'step')} of {stage.batch_size}; {describe_devices(plan.mesh)}"
    )
    plan.log.say(resources.of_state(abstract, state_shardings(abstract, plan.mesh)))
    if plan.evaluation:
        plan.log.say(f"{stage.name}: {evaluations_of(plan)}")
    if plan.note:
        plan.log.say(f"{stage.name}: {plan.note}")


def evaluations_of(plan: StagePlan) -> str:
    """How a labelled stage is evaluated during training and at its end, for its log."""
    evaluation, every = plan.evaluation, plan.options.every.evaluate
    chosen = "best checkpoint by these" if evaluation.keep_best else "last checkpoint"
    return (
        f"evaluated quickly every {counted(every, 'step')} on "
        f"{counted(len(evaluation.quick_indices), 'image')} {evaluation.quick_protocol}; "
        f"finally the {chosen} on {counted(len(evaluation.indices), 'image')} "
        f"{evaluation.protocol}"
    )
