"""A config and a workdir -> stages, one after another, and their results."""

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import diffseg_jax
from diffseg_jax import visualise
from diffseg_jax.checkpoints import (
    StageCheckpoints,
    has_checkpoint,
    open_network,
    require_checkpoint,
    write_json,
)
from diffseg_jax.config import COMMON, LABELLED, UserError, check_options, choose, differing_lines
from diffseg_jax.data.datasets import open_source
from diffseg_jax.data.pipeline import Cached, training_batches
from diffseg_jax.data.subsets import describe_subset, subset
from diffseg_jax.data.transforms import augment
from diffseg_jax.evaluate import evaluate, make_forward, spread
from diffseg_jax.mesh import check_batch, make_mesh
from diffseg_jax.metrics import segmentation
from diffseg_jax.systems import SYSTEMS
from diffseg_jax.systems.prediction import Protocol, make_protocol
from diffseg_jax.systems.task import Task
from diffseg_jax.training import loop
from diffseg_jax.training.log import Log
from diffseg_jax.training.optimizer import make_optimizer, make_schedule
from diffseg_jax.training.state import network_of

PADDED_AT_MOST = 2  # times the image's side; a larger crop is mostly padding and surely a mistake
READ_FIRST = 32  # examples per split that are read before anything is written
PROTOCOL = (  # options of evaluate that are written beside the results
    "view", "window", "stride", "limit", "short", "scales", "flip", "absent",
)  # fmt: skip


@dataclasses.dataclass
class Run:
    """What all stages of one command share."""

    config: ConfigDict
    workdir: Path
    log: Log
    mesh: jax.sharding.Mesh
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    loaded: dict[str, dict] = dataclasses.field(default_factory=dict)  # by the check, until used

    @property
    def system(self):
        return SYSTEMS[self.config.system]

    def task(self, name: str) -> Task:
        """What the system wants to be done in a stage; made once."""
        if name not in self.tasks:
            self.tasks[name] = make_task(self, name)
        return self.tasks[name]

    @functools.cached_property
    def train(self) -> Sequence:
        return open_data(self.config, "data", self.config.data.train)

    @functools.cached_property
    def val(self) -> Sequence:
        return open_data(self.config, "data", self.config.data.val)

    @functools.cached_property
    def unlabelled(self) -> Sequence:
        return open_data(self.config, "unlabelled", self.config.unlabelled.split)

    @functools.cached_property
    def labelled(self) -> np.ndarray:
        """Places in `train` of the images whose labels are used."""
        data = self.config.data
        return subset(
            self.train.names, fraction=data.fraction, count=data.count, seed=data.subset_seed,
            list_path=data.list_path,
        )  # fmt: skip

    def places_of_val(self, most: int = 0) -> np.ndarray:
        """The first `most` validation images, all for 0."""
        return np.arange(len(self.val))[: most or None]


def open_data(config: ConfigDict, part: str, split: str) -> Sequence:
    """The source that a config's part "data" or "unlabelled" names."""
    data = config[part]
    try:
        source = open_source(data.source, split, path=data.path, **data.options.to_dict())
    except UserError as error:
        raise UserError(f"--config.{part}: {error}") from None
    return Cached(source) if data.cache else source


# ---- before anything runs ------------------------------------------------------------------------


def check_config(config: ConfigDict):
    """Raises UserError for a config that cannot run, before anything is read or written."""
    values = config.to_dict()
    system = choose(SYSTEMS, values.get("system", ""), "system")
    labelled = _learns_from_labels(values, system)
    check_options(values, {**COMMON, **(LABELLED if labelled else {}), **system.OPTIONS})
    for name in config.run:
        stage = choose(config.stages, name, "stage in config.run")
        choose(system.STAGES, stage.kind, f"kind of stage {name}")
    system.check(config)
    for name in config.run:
        stage = config.stages[name]
        check_batch(stage.batch_size, stage.accumulate, f"stages.{name}.batch_size")
        evaluate, checkpoint = stage.every.evaluate, stage.every.checkpoint
        if labelled and config.evaluate.checkpoint == "best" and evaluate % checkpoint:
            raise UserError(
                f"stages.{name}.every.evaluate is {evaluate}, but to keep the best checkpoint it "
                f"must be a multiple of every.checkpoint, {checkpoint}. "
                f"Try --config.stages.{name}.every.checkpoint={evaluate}."
            )
    if labelled:
        protocol_of(config)


def _learns_from_labels(values, system):
    """Whether any stage of a config, which is not checked yet, is of a kind that reads labels."""
    stages = values.get("stages")
    stages = stages.values() if isinstance(stages, Mapping) else ()
    kinds = [stage.get("kind") for stage in stages if isinstance(stage, Mapping)]
    return any(name in kinds for name, data in system.STAGES.items() if data == "labelled")


def protocol_of(config: ConfigDict) -> Protocol:
    """How evaluation shows its pictures to the network."""
    options = config.evaluate
    return make_protocol(
        options.view, options.window, options.stride, options.scales, options.flip, options.limit,
        options.short,
    )  # fmt: skip


def start_run(config: ConfigDict, workdir: Path) -> Run:
    """Checks the config; what the stages read and the workdir are checked by the caller."""
    check_config(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    return Run(config, workdir, Log(workdir, jax.process_index() == 0), mesh)


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
        stage_optimizer(options.optim, options.steps)
        example = source[int(indices[0])]
        task = run.task(name)
        padded = 1 if task.sample else PADDED_AT_MOST  # what is learned to be drawn is all picture
        check_crop(example["image"].shape[:2], options.augment, name, padded)
        change = augmentation(options.augment.to_dict(), labelled)
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
            require_checkpoint(start)
        before.append(name)


def read_some(run: Run):
    """Reads a few labelled examples of every split, as a wrong mask should not wait for hours."""
    if any(is_labelled(run, name) and not left_out(run, name) for name in run.config.run):
        for source, places in ((run.train, run.labelled), (run.val, np.arange(len(run.val)))):
            for place in spread(places, READ_FIRST):
                source[int(place)]


def is_labelled(run: Run, name: str) -> bool:
    """Whether a stage learns from labels, hence can be measured."""
    return run.system.STAGES[run.config.stages[name].kind] == "labelled"


def left_out(run: Run, name: str) -> bool:
    """Whether a stage is not run: the system says so, or it has no steps."""
    options = run.config.stages[name]
    return run.system.skips_stage(run.config, options.kind) or options.steps == 0


def claim_workdir(config: ConfigDict, workdir: Path):
    """Makes the workdir and writes config.json, or checks that its checkpoints are this config's.

    A run that stopped before its first checkpoint left nothing to mix up, so its config may change.
    Raises UserError when the workdir cannot be written or holds a run of another config.
    """
    make_workdir(workdir)
    if has_checkpoints(workdir) and (workdir / "config.json").exists():
        check_same(config, workdir, may_differ=("mesh",))
    elif jax.process_index() == 0:
        write_json(workdir / "config.json", _plain(config.to_dict()))


def make_workdir(workdir: Path):
    """Raises UserError when it cannot be made or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror}). "
            "Give a directory of yours, such as --workdir=runs/a."
        ) from None


def has_checkpoints(workdir: Path) -> bool:
    """Whether a stage saved anything whole there."""
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*/*"))


def check_same(config: ConfigDict, workdir: Path, may_differ: tuple[str, ...]):
    """Raises UserError with the lines in which a config is not the workdir's.

    may_differ  first words of options that may
    """
    file = workdir / "config.json"
    try:
        old = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}), so whose checkpoints {workdir} holds is unknown. "
            "Take another --workdir, or put the file back."
        ) from None
    lines = [
        line for line in differing_lines(old, _plain(config.to_dict()))
        if not line.startswith(tuple(f"{word}." for word in may_differ))
    ]  # fmt: skip
    if lines:
        raise UserError(
            f"workdir {workdir} holds a run of another config; take another --workdir, or undo:\n  "
            + "\n  ".join(lines)
        )


# ---- the three things that a command can do ------------------------------------------------------


def train(config: ConfigDict, workdir: Path):
    """Runs the stages that are not finished yet and leaves results.json."""
    run = start_run(config, workdir)
    check_stages(run)
    read_some(run)
    claim_workdir(config, workdir)
    measured = read_results(workdir)
    results = {}
    for name in config.run:
        if left_out(run, name):
            run.log.say(f"{name}: left out")
            continue
        task = run.task(name)
        stage = make_stage(run, name, task)
        directory = workdir / "checkpoints" / name
        with StageCheckpoints(directory) as checkpoints:
            if checkpoints.latest() == stage.steps:
                run.log.say(f"{name}: is finished")
            else:
                describe_stage(run, stage)
                state = loop.run(stage, checkpoints, run.mesh, run.log)
                del state  # before the next one is made
                measured.pop(name, None)
            step = chosen_step(run, checkpoints) if task.predict else None
        if task.predict and name in measured:
            results[name] = measured[name]
        elif task.predict:
            network, meta = open_network(directory, step)
            results[name] = result_of(run, name, task, network, meta)
            write_results(run, {**measured, **results}, "results.json")
    finish(run, results, "results.json")


def evaluate_only(config: ConfigDict, workdir: Path):
    """Evaluates the stages that have a checkpoint, with the options at hand; results_eval.json."""
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run. Train first, with --mode=train.")
    run = start_run(config, workdir)
    if not any(is_labelled(run, name) for name in config.run):
        raise UserError(
            "no stage in config.run learns from labels, so there is nothing to evaluate. Pictures "
            "of a diffusion model are drawn by python -m diffseg_jax.sample."
        )
    check_same(config, workdir, may_differ=("evaluate", "mesh"))
    results = {}
    for name in config.run:
        directory = workdir / "checkpoints" / name
        if not is_labelled(run, name) or not directory.is_dir():
            continue
        with StageCheckpoints(directory, read_only=True) as checkpoints:
            step = chosen_step(run, checkpoints)
        if step is None:
            continue
        network, meta = open_network(directory, step)
        results[name] = result_of(run, name, run.task(name), network, meta, "eval")
    if not results:
        raise UserError(f"{workdir} holds no checkpoint that can segment yet. Train first.")
    finish(run, results, "results_eval.json")


def read_results(workdir: Path) -> dict:
    """What results.json says of each stage, {} without the file."""
    file = workdir / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


def write_results(run: Run, results: dict, file: str):
    """The results of the stages so far, in the order of the run."""
    if jax.process_index() == 0:
        ordered = {name: results[name] for name in run.config.run if name in results}
        write_json(run.workdir / file, ordered)


def finish(run: Run, results: dict, file: str):
    """Writes the results and shows them as a table."""
    if not results:
        stage = run.workdir / "checkpoints" / run.config.run[-1]
        draws = run.tasks and run.task(run.config.run[-1]).sample
        advice = f"pictures: python -m diffseg_jax.sample --checkpoint={stage} --output=samples"
        nothing = "no stage of this run segments, so there is nothing to measure"
        run.log.say(f"finished; {advice if draws else nothing}")
        run.log.close()
        return
    write_results(run, results, file)
    columns = {f"{name} (from {r['start']})": r for name, r in results.items()}
    run.log.say(segmentation.format_table(columns))
    pictures = run.workdir / "pictures"
    run.log.say(f"finished; numbers in {run.workdir / file}, pictures in {pictures}")
    run.log.close()


# ---- one stage -----------------------------------------------------------------------------------


def chosen_step(run: Run, checkpoints: StageCheckpoints) -> int | None:
    """The step whose network is measured: the last or the best, as the config says."""
    best = run.config.evaluate.checkpoint == "best"
    return checkpoints.best() if best else checkpoints.latest()


def make_task(run: Run, name: str) -> Task:
    """What the system wants to be done in a stage, its answers compiled once for all askers."""
    options = run.config.stages[name]
    classes = run.val.labels.names if is_labelled(run, name) else run.unlabelled.classes
    task = run.system.make_task(run.config, options.kind, tuple(options.augment.crop), len(classes))
    whole = NamedSharding(run.mesh, PartitionSpec())  # readable in every process
    return dataclasses.replace(
        task,
        predict=task.predict and jax.jit(task.predict),
        denoise=task.denoise and jax.jit(task.denoise, out_shardings=whole),
    )


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
            steps=options.steps - start, process=(jax.process_index(), jax.process_count()),
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


def augmentation(options: dict, labelled: bool):
    """(image, mask, rng) -> example; unlabelled stages never see a mask."""
    change = functools.partial(augment, **options)
    return change if labelled else functools.partial(_without_mask, change)


def _without_mask(change, image, mask, rng):
    return change(image, None, rng)


def check_crop(size: tuple[int, int], options: ConfigDict, name: str, padded: float):
    """Raises UserError when the crop is more than `padded` times as large as one image."""
    fitted = Protocol(limit=tuple(options.limit), short=options.short)
    height, width = fitted.sizes(size)[0]
    allowed = tuple(int(padded * options.scale[1] * side) for side in (height, width))
    if any(side > most for side, most in zip(options.crop, allowed)):
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
        "config": _plain(run.config.to_dict()),
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
        if jax.process_index() == 0:
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
    learns, rests = (
        sum(leaf.size for leaf in jax.tree.leaves(abstract[part])) for part in ("params", "frozen")
    )
    kind = "labelled image" if is_labelled(run, stage.name) else "unlabelled image"
    images = counted(len(stage_data(run, stage.name)[1]), kind)
    run.log.say(
        f"{stage.name}: from {stage.meta['start']}; {learns:,} parameters learn, {rests:,} rest; "
        f"{images}; {counted(stage.steps, 'step')} of {stage.batch_size}; "
        f"{counted(run.mesh.size, 'device')}"
    )
    if note := run.system.note(run.config, options.kind, options.start):
        run.log.say(f"{stage.name}: {note}")


# ---- looking at a stage --------------------------------------------------------------------------


def watcher(run: Run, name: str, task: Task):
    """(state, step) -> numbers, drawing pictures on the way; what the loop calls now and then."""
    ema = run.config.stages[name].ema
    if task.sample:
        count = run.config.samples.images

        def draw(state, step):
            images = task.sample(network_of(state, ema), run.config.seed, count)
            file = f"{name}_{step:06d}"
            save_picture(run, visualise.grid(images), file, name, step)
            run.log.say(f"{name} {step}: samples in {run.workdir / 'pictures' / file}.png")
            return {}

        return draw
    options = run.config.evaluate
    if task.predict:
        whole = protocol_of(run.config)
        nearest = min(whole.scales, key=lambda scale: abs(math.log(scale)))
        quick = dataclasses.replace(whole, scales=(nearest,), flip=False)
        places = run.places_of_val(options.quick_images)

        def watch(state, step):
            counts, kept = measure(run, task, network_of(state, ema), places, quick)
            draw_predictions(run, kept, f"{name}_{step:06d}", name, step)
            scored = segmentation.scores(counts, absent=options.absent)
            return {**{mean: scored[mean] for mean in segmentation.MEANS}, "images": len(places)}

        return watch
    examples = _some_crops(run, name)

    def look(state, step):
        key = jax.random.key(run.config.seed)
        images, valid = examples["image"], examples["valid"]
        *pictures, error = task.denoise(network_of(state, ema), images, valid, key)
        sheet = visualise.denoising_sheet(*map(np.asarray, pictures))
        save_picture(run, sheet, f"{name}_{step:06d}", name, step)
        return {"denoising_error_of_pictures": float(error)}

    return look


def _some_crops(run, name):
    """A few fixed training crops of an unlabelled stage, as one batch."""
    change = augmentation(run.config.stages[name].augment.to_dict(), labelled=False)
    places = spread(np.arange(len(run.unlabelled)), max(run.config.evaluate.pictures, 1))
    crops = [
        change(run.unlabelled[int(place)]["image"], None, np.random.default_rng(place))
        for place in places
    ]
    return {key: np.stack([crop[key] for crop in crops]) for key in ("image", "valid")}


def measure(run: Run, task: Task, network: dict, places, protocol: Protocol):
    """Confusion counts of a network and the examples to draw."""
    options = run.config.evaluate
    forward = make_forward(task.predict, network, run.mesh, options.batch_size)
    return evaluate(
        forward, run.val, places, len(run.val.labels.names), protocol, options.batch_size,
        options.pictures,
    )  # fmt: skip


def result_of(
    run: Run, name: str, task: Task, network: dict, meta: dict, picture: str = "result"
) -> dict:
    """The final numbers of a stage under the whole protocol, and what they are of; JSON values.

    picture  last word of the name of the sheet of examples
    """
    options = run.config.evaluate
    places = run.places_of_val(options.images)
    run.log.say(f"{name}: evaluates step {meta['step']} on {counted(len(places), 'image')}")
    counts, kept = measure(run, task, network, places, protocol_of(run.config))
    draw_predictions(run, kept, f"{name}_{picture}", name, meta["step"])
    scored = segmentation.scores(counts, absent=options.absent)
    return {
        "step": meta["step"],
        "start": meta["start"],
        "images": len(places),
        "labelled_images": meta["labelled"]["n"],
        "protocol": _plain({word: options[word] for word in PROTOCOL}),
        **segmentation.to_json(scored, run.val.labels.names),
    }


def draw_predictions(run: Run, kept: list[dict], file: str, name: str, step: int):
    """Saves a sheet of examples: image, truth, prediction, uncertainty, error."""
    if kept:
        columns = [[e[key] for e in kept] for key in ("image", "mask", "labels", "uncertainty")]
        save_picture(run, visualise.prediction_sheet(*columns, run.val.labels), file, name, step)


def save_picture(run: Run, picture: np.ndarray, file: str, name: str, step: int):
    """Saves a picture to the workdir and the events, in the first process only."""
    if jax.process_index() == 0:
        (run.workdir / "pictures").mkdir(exist_ok=True)
        visualise.save_png(run.workdir / "pictures" / f"{file}.png", picture)
        run.log.picture(name, step, file.rsplit("_", 1)[0], picture)


def counted(number: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _plain(values):
    """The same values as JSON gives them back: tuples as lists."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, (tuple, list)) else values
