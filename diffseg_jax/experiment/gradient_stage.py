"""A stage of the config as the loop takes it; and what is wrong with one before it runs."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import diffseg_jax
from diffseg_jax.data.pipeline import training_batches
from diffseg_jax.data.subsets import describe_subset
from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import local_rows, state_shardings
from diffseg_jax.errors import UserError, choose, counted
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.monitor import watcher
from diffseg_jax.experiment.plan import (
    STARTS,
    Run,
    augmentation,
    find_devices,
    is_fit,
    is_labelled,
    left_out,
)
from diffseg_jax.inference.views import Protocol
from diffseg_jax.storage.checkpoints import (
    has_checkpoint,
    open_network,
    require_checkpoint,
)
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.system import Task
from diffseg_jax.training import loop, resources
from diffseg_jax.training.optimizer import make_optimizer, make_schedule

PADDED_AT_MOST = 2  # times the image's side; a larger crop is mostly padding and surely a mistake
STILL = dict(scale=(1.0, 1.0), max_class_share=1.0, flip=False, photometric=False)  # of a fit
READ_FIRST = 32  # examples per split that are read before anything is written


def check_stages(run: Run):
    """Opens all that the stages read, so that mistakes are found before anything is written."""
    before = []
    for name in run.config.run:
        if left_out(run, name):
            continue
        options = run.config.stages[name]
        labelled = is_labelled(run, name)
        if labelled and not run.val.labels:
            raise UserError(
                f"dataset {run.config.data.source} has no classes to learn. Give it as "
                "config.unlabelled.source, and a labelled one as config.data.source."
            )
        source, indices, _ = stage_data(run, name)
        if not is_fit(run.config, name):
            stage_optimizer(options.optim, options.steps)
        example = source[int(indices[0])]
        task = run.task(name)
        padded = 1 if task.sample else PADDED_AT_MOST  # what is learned to be drawn is all picture
        check_crop(example["image"].shape[:2], options.augment, name, padded)
        change = augmentation({**STILL, **options.augment}, labelled)
        change(example["image"], example.get("mask"), np.random.default_rng(0))
        start = run.system.start_of(run.config, options.kind, options.start)
        if start == "weights" and not has_checkpoint(run.workdir / "checkpoints" / name):
            run.loaded[name] = loader(run, name, task)()
        elif start in run.config.stages and start not in before:
            if not has_checkpoint(run.workdir / "checkpoints" / start):
                raise UserError(
                    f"stages.{name}.start is {start}, which is not run before it and has no "
                    f"checkpoint in {run.workdir}. Add it to --config.run, or try "
                    f"--config.stages.{name}.start=runs/a/checkpoints/{start}."
                )
        elif start != "random" and start not in before:
            if not Path(start).exists() and "/" not in start:  # meant as a word
                choose({word: None for word in (*run.config.stages, *STARTS)}, start, "start")
            require_checkpoint(start)
        before.append(name)


def read_some(run: Run):
    """Reads a few labelled examples of every split, as a wrong mask should not wait for hours."""
    if any(is_labelled(run, name) and not left_out(run, name) for name in run.config.run):
        for source, places in ((run.train, run.labelled), (run.val, np.arange(len(run.val)))):
            for place in spread(places, READ_FIRST):
                source[int(place)]


def make_stage(run: Run, name: str, task: Task) -> loop.Stage:
    """A stage of the config as the loop takes it."""
    config, options = run.config, run.config.stages[name]
    source, indices, data = stage_data(run, name)
    change = augmentation(options.augment.to_dict(), is_labelled(run, name))
    optimizer, schedule = stage_optimizer(options.optim, options.steps)
    meta = stage_meta(run, name, task)
    loaded = loader(run, name, task)
    if name in run.loaded:
        loaded = functools.partial(run.loaded.pop, name)

    def batches(start):
        return training_batches(
            source, indices, change, seed=config.seed, batch_size=options.batch_size, start=start,
            steps=options.steps - start, rows=local_rows(run.mesh, options.batch_size),
            threads=data.threads, workers=data.workers,
        )  # fmt: skip

    return loop.Stage(
        name=name, steps=options.steps, batch_size=options.batch_size, batches=batches,
        init=task.init, loaded=loaded, trainable=task.trainable, loss=task.loss,
        optimizer=optimizer, schedule=schedule,
        every=options.every.to_dict(), meta=meta, accumulate=options.accumulate, ema=options.ema,
        evaluate=watcher(run, name, task), seed=config.seed,
    )  # fmt: skip


def stage_data(run: Run, name: str) -> tuple[Sequence, np.ndarray, ConfigDict]:
    """What a stage learns from: the source, the places in it, and how it is read."""
    if is_labelled(run, name):
        return run.train, run.labelled, run.config.data
    return run.unlabelled, np.arange(len(run.unlabelled)), run.config.unlabelled


def stage_optimizer(optim: ConfigDict, steps: int):
    """The optimizer and the learning-rate schedule inside it."""
    schedule = make_schedule(
        optim.schedule, optim.peak_lr, steps, optim.warmup_steps, optim.warmup_ratio
    )
    optimizer = make_optimizer(
        optim.name, schedule, b1=optim.b1, b2=optim.b2, epsilon=optim.epsilon,
        weight_decay=optim.weight_decay, no_decay=optim.no_decay, clip_norm=optim.clip_norm,
    )  # fmt: skip
    return optimizer, schedule


def check_crop(size: tuple[int, int], options: ConfigDict, name: str, padded: float):
    """Raises UserError when the crop is more than `padded` times as large as one image."""
    fitted = Protocol(limit=tuple(options.limit), short=options.short)
    height, width = fitted.sizes(size)[0]
    most = padded * options.get("scale", STILL["scale"])[1]
    allowed = tuple(int(most * side) for side in (height, width))
    if any(side > limit for side, limit in zip(options.crop, allowed)):
        raise UserError(
            f"stages.{name}.augment.crop is {tuple(options.crop)}, but the images are "
            f"{height} x {width} before it and at most {allowed} is allowed. "
            f'Try --config.stages.{name}.augment.crop="({height}, {width})".'
        )


def stage_meta(run: Run, name: str, task: Task) -> dict:
    """What a reader of the checkpoint needs beside the arrays."""
    options = run.config.stages[name]
    meta = {
        "version": diffseg_jax.__version__,
        "config": as_json(run.config.to_dict()),
        "start": run.system.start_of(run.config, options.kind, options.start),
        "task": task.meta,
    }
    if is_labelled(run, name):
        labels, data = run.val.labels, run.config.data
        meta["classes"] = list(labels.names)
        meta["palette"] = [list(colour) for colour in labels.palette]
        chosen = describe_subset(
            run.train.names, run.labelled, seed=data.subset_seed, list_path=data.list_path
        )
        if processes.is_first():
            write_json(run.workdir / "labelled.json", chosen)
        meta["labelled"] = {word: chosen[word] for word in ("n", "of", "seed", "sha256")}
    elif run.unlabelled.classes:
        meta["picture_classes"] = list(run.unlabelled.classes)
    return meta


def loader(run: Run, name: str, task: Task):
    """() -> what a fresh stage takes from elsewhere, or None to start at random."""
    config, options = run.config, run.config.stages[name]
    start = run.system.start_of(config, options.kind, options.start)
    if start == "random":
        return None
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    if start == "weights":
        return lambda: run.system.load_weights(config, abstract, task)

    def previous():
        inside = run.workdir / "checkpoints" / start
        network, meta = open_network(inside if start in config.stages else start)
        return run.system.adopt(abstract, task, network, meta["task"])

    return previous


def describe_stage(run: Run, stage: loop.Stage):
    """Says what is about to be trained, from what, on what."""
    options = run.config.stages[stage.name]
    abstract = loop.abstract_state(stage)
    kind = "labelled image" if is_labelled(run, stage.name) else "unlabelled image"
    images = counted(len(stage_data(run, stage.name)[1]), kind)
    run.log.say(
        f"{stage.name}: from {stage.meta['start']}; {images}; {counted(stage.steps, 'step')} of "
        f"{stage.batch_size}; {find_devices(run.mesh)}"
    )
    run.log.say(resources.of_state(abstract, state_shardings(abstract, run.mesh)))
    if note := run.system.note(run.config, options.kind, options.start):
        run.log.say(f"{stage.name}: {note}")
