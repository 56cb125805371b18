"""A stage that fits an ensemble: first the features of labelled pictures, then the fit."""

import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import drop_small_objects
from diffseg_jax.devices.mesh import local_rows, place_tree, state_shardings, to_devices
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.gradient_stage import STILL, loader, stage_meta
from diffseg_jax.experiment.plan import Run, augmentation
from diffseg_jax.inference.views import Protocol
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.checkpoints import StageCheckpoints, has_checkpoint, open_network
from diffseg_jax.systems.system import Task
from diffseg_jax.training import fit_loop
from diffseg_jax.training.log import duration
from diffseg_jax.weights.pixel_mlp import load_ensemble

GB = 2**30
SPEAK_EVERY = 20  # seconds


def check_fit(run: Run, name: str):
    """Finds what would stop a fit stage, before anything runs.

    Raises UserError for classifiers of other features or classes, when no labelled pixel is left,
    and when the features do not fit in memory.
    """
    if has_checkpoint(run.workdir / "checkpoints" / name):
        return
    task = run.task(name)
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    run.system.given_arrays(run.config, abstract)
    if run.config.ensemble.classifiers:
        read_classifiers(run, task)
        return
    masks, _ = read_masks(run, name, task.fit.small_objects)
    require_memory(run, name, task, abstract, masks)


def fit_stage(run: Run, name: str, checkpoints: StageCheckpoints):
    """Fits the ensemble of a stage, or takes published classifiers; saves it beside its network."""
    task, config = run.task(name), run.config
    frozen = open_backbone(run, name, task)
    meta = stage_meta(run, name, task)
    if config.ensemble.classifiers:
        learned = read_classifiers(run, task)
        own = {"stage": name, "step": 0, "ema": [], "finished": True}
        checkpoints.save(0, fit_loop.saved(learned, frozen, 0), {**meta, **own})
        checkpoints.wait()
        run.log.say(f"{name}: takes the classifiers in {config.ensemble.classifiers}")
        if config.features.source == "network" and not config.features.noise_file:
            run.log.say(
                f"{name}: without --config.features.noise_file the noise is drawn here, and is not "
                "the one that published classifiers were trained with"
            )
        return
    masks, kept = read_masks(run, name, task.fit.small_objects, run.log.say)
    need = require_memory(run, name, task, frozen, masks)
    run.log.say(
        f"{name}: from {meta['start']}; reads features of {counted(len(kept), 'picture')}, "
        f"{need / GB:.2f} GB; compiles the first"
    )
    features = collect(run, name, task, frozen, kept)
    pixels = np.flatnonzero(masks.reshape(-1) != IGNORE).astype(np.int32)
    recipe, steps = task.fit.recipe, task.fit.recipe.length(len(pixels))
    fit_loop.run(
        fit_loop.Fit(
            name=name, features=features, pixels=pixels, labels=masks.reshape(-1)[pixels],
            init=task.fit.member.init, loss=task.fit.loss, members=task.fit.members, steps=steps,
            batch_size=recipe.batch_size, stops=recipe.stops, own_order=recipe.own_order,
            optimizer=recipe.optimizer(steps), frozen=frozen,
            every=config.stages[name].every.to_dict(), meta=meta, seed=config.seed,
        ),
        checkpoints, run.mesh, run.log,
    )  # fmt: skip


def read_classifiers(run: Run, task: Task) -> dict:
    """Published classifiers as what a fit would have learned: {"params", "stats"}.

    Raises UserError when they read other features, know other classes, or are of other widths.
    """
    folder, num_classes = run.config.ensemble.classifiers, len(run.val.labels.names)
    given = load_ensemble(folder, task.meta["features_per_pixel"], num_classes)
    for part in given:
        check_shapes(given[part], task.fit.member.abstract[part], folder)
    return {part: {"ensemble": given[part]} for part in ("params", "stats")}


def check_shapes(given: dict, abstract: dict, folder: str):
    """Raises UserError unless every array is that of one member, with a first axis of members."""
    wanted = flatten(abstract)
    for path, array in flatten(given).items():
        if array.shape[1:] != wanted[path].shape:
            widths = tuple(given["linear2"]["kernel"].shape[1:]) if "linear2" in given else ()
            raise UserError(
                f"the classifiers in {folder} have other hidden layers. "
                f"Try --config.ensemble.widths={widths}."
            )


def open_backbone(run: Run, name: str, task: Task) -> dict:
    """The network whose features are read, on devices: of this stage's checkpoint, or its start."""
    directory = run.workdir / "checkpoints" / name
    key = jax.random.fold_in(jax.random.key(run.config.seed), zlib.crc32(b"features"))
    if has_checkpoint(directory):
        found = open_network(directory)[0]
        for part in found.values():
            del part["ensemble"]
    else:
        load = None if name in run.loaded else loader(run, name, task)
        found = run.loaded.pop(name, None) or (load() if load else {})
        abstract = jax.eval_shape(task.init, key)
        found = {**found, **run.system.given_arrays(run.config, abstract)}
    found = flatten(found)

    def rest(key):  # what was found need not be drawn
        return {path: leaf for path, leaf in flatten(task.init(key)).items() if path not in found}

    where = state_shardings(jax.eval_shape(rest, key), run.mesh)
    drawn = jax.jit(rest, out_shardings=where)(key)
    placed = place_tree(found, state_shardings(found, run.mesh))
    return {"params": {}, "stats": {}, **unflatten({**placed, **drawn})}


def examples(run: Run, name: str, places) -> Iterator[dict]:
    """Labelled pictures of the training split at the stage's size: image, mask, valid, name."""
    change = augmentation({**STILL, **run.config.stages[name].augment.to_dict()}, labelled=True)
    for place in places:
        example = run.train[int(place)]
        rng = np.random.default_rng([run.config.seed, int(place)])
        yield {**change(example["image"], example["mask"], rng), "name": example["name"]}


def check_sizes(run: Run, name: str):
    """Raises UserError for labelled pictures that do not fit into the crop of a stage.

    They must also fill it where `features.short` brings them to another size, as a network should
    see no padding that evaluation does not show it.
    """
    options = run.config.stages[name].augment
    fitted, crop = Protocol(limit=tuple(options.limit), short=options.short), tuple(options.crop)
    shapes = (run.train[int(place)]["image"].shape[:2] for place in run.labelled)
    sizes = sorted({tuple(map(int, fitted.sizes(shape)[0])) for shape in shapes})
    most = tuple(max(sides) for sides in zip(*sizes))
    fills = sizes == [crop] or not run.config.features.short
    if fills and all(side <= limit for side, limit in zip(most, crop)):
        return
    advice = f'Try --config.stages.{name}.augment.crop="{most}"'
    if fills or len(sizes) == 1:
        raise UserError(
            f"stage {name}: labelled pictures are up to {most} (height, width) before the crop "
            f"{crop}, but they must {'fit into' if fills else 'fill'} it. {advice}."
        )
    raise UserError(
        f"stage {name}: labelled pictures are of {len(sizes)} sizes before the crop, {sizes[0]} "
        f"(height, width) to {sizes[-1]}, but with features.short they must be of one. {advice} "
        "--config.features.short=0, or bring them to one aspect ratio."
    )


def read_masks(
    run: Run, name: str, small_objects: int, say: Callable = lambda text: None
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Masks u8[N,H,W] after the rules, and the places of the N pictures that still have a label.

    small_objects  what a class covers less of, in pixels of one picture, is ignored; 0 = off
    say            is told of the pictures that have none left

    Raises UserError when no picture has.
    """
    check_sizes(run, name)
    masks, kept, empty = [], [], []
    for place, example in zip(run.labelled, examples(run, name, run.labelled), strict=True):
        mask = drop_small_objects(example["mask"], small_objects)
        if (mask != IGNORE).any():
            masks.append(mask.astype(np.uint8))
            kept.append(place)
            continue
        small = (example["mask"] != IGNORE).any()
        rule = f"no class covers {small_objects} pixels" if small else "all pixels are ignored"
        empty.append(f"{example['name']} ({rule})")
    if not kept:
        raise UserError(
            f"stage {name}: no labelled pixel is left in {len(empty)} pictures, such as {empty[0]}."
            " Look at them with --mode=check, or lower --config.ensemble.small_objects."
        )
    if empty:
        say(f"{name}: no labelled pixel is left in {', '.join(empty)}")
    return np.stack(masks), np.asarray(kept)


def require_memory(run: Run, name: str, task: Task, frozen: dict, masks: np.ndarray) -> int:
    """Bytes of the features; UserError when they and the fit do not fit where they shall live."""
    shape = jax.eval_shape(task.fit.extract, frozen, *_one(masks.shape[1:]))
    features = shape.nbytes * len(masks)
    member = sum(leaf.size * 4 for leaf in jax.tree.leaves(task.fit.member.abstract["params"]))
    orders = 2 * (task.fit.members if task.fit.recipe.own_order else 1)  # of two passes
    fit = 4 * task.fit.members * member + masks.size * (1 + 4 + 4 * orders)
    need = features + fit
    free = free_bytes(task.fit.on_host)
    if free and need > free:
        chosen, advice = run.config.features, ""
        if chosen.dtype == "float32":
            advice += ", or --config.features.dtype=float16"
        if not task.fit.on_host and jax.default_backend() != "cpu":
            advice += ", or --config.features.place=host"
        allowed = max(int((free - fit) / shape.nbytes), 0)
        raise UserError(
            f"stage {name} needs {need / GB:.1f} GB for {len(masks)} pictures of {shape.width} "
            f"features a pixel, but {free / GB:.1f} GB are free, enough for {allowed}. Lower "
            "--config.data.count or --config.features.short, or take fewer --config.features.steps "
            f"or blocks{advice}."
        )
    return features


def _one(size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    return image, jax.ShapeDtypeStruct((1, 2), jnp.int32)


def free_bytes(on_host: bool) -> int:
    """Memory that is free on the device, or in the host; 0 where nobody says."""
    device = jax.local_devices()[0]
    if not on_host and device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    facts = Path("/proc/meminfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 0


def collect(run: Run, name: str, task: Task, network: dict, places: np.ndarray) -> PixelFeatures:
    """Features of the pictures at some places of the training split, whole on every device.

    Each device works on one picture at a time, and each process reads those of its devices.
    """
    mesh = run.mesh
    extract = jax.jit(task.fit.extract, out_shardings=NamedSharding(mesh, PartitionSpec()))
    write = jax.jit(_write, donate_argnums=0)
    groups = [places[start : start + mesh.size] for start in range(0, len(places), mesh.size)]
    mine = [np.resize(group, mesh.size)[local_rows(mesh, mesh.size)] for group in groups]
    shown, buffers, done = examples(run, name, np.concatenate(mine)), [], 0
    for group, own in zip(groups, mine, strict=True):
        read = [next(shown) for _ in own]
        batch = {word: np.stack([e[word] for e in read]) for word in ("image", "valid")}
        batch = to_devices(batch, mesh, mesh.size)
        one = extract(network, batch["image"], batch["valid"])
        maps = [values[: len(group)] for values in one.maps]
        if not buffers:
            make = np.zeros if task.fit.on_host else jnp.zeros
            buffers = [make((len(places), *m.shape[1:]), m.dtype) for m in maps]
        if task.fit.on_host:
            for buffer, values in zip(buffers, maps, strict=True):
                buffer[done : done + len(group)] = np.asarray(values)
        else:
            buffers = jax.block_until_ready(write(buffers, maps, done))
        first, done = not done, done + len(group)
        if first:
            start, before = time.perf_counter(), done  # the first ones compile
            spoke = start
        elif time.perf_counter() - spoke > SPEAK_EVERY:
            spoke = time.perf_counter()
            left = duration((spoke - start) / (done - before) * (len(places) - done))
            run.log.say(f"{name}: features {done}/{len(places)}   {left} left")
    return PixelFeatures(tuple(buffers), one.size, one.covered)


def _write(buffers, maps, place):
    put = jax.lax.dynamic_update_slice_in_dim
    return [put(buffer, values, place, 0) for buffer, values in zip(buffers, maps, strict=True)]
