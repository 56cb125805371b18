"""A planned stage that fits an ensemble: first the features of labelled images, then the fit."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import drop_small_objects
from diffseg_jax.devices.mesh import local_rows, place_tree, state_shardings, to_devices
from diffseg_jax.display.progress import COMPILES, Progress
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.augmentation import augmentation
from diffseg_jax.experiment.fold_files import folds_in_turn, lacking_folds, write_fold
from diffseg_jax.experiment.grid_note import describe_grid
from diffseg_jax.experiment.label_strokes import chances, groups_of
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.experiment.time_budget import Budget
from diffseg_jax.inference.views import Protocol
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import first_has_checkpoint, open_network
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.systems.task import Task
from diffseg_jax.training import fit_loop
from diffseg_jax.training.log import Log
from diffseg_jax.weights.pixel_mlp import load_ensemble

GB = 2**30
MOMENT_PIXELS = 20_000  # from which the mean and deviation of features are computed
MOMENT_BATCH = 1_000  # pixels that are read at a time
MIN_DEVIATION = 1e-3  # is added to the deviation of features


def check_fit(plan: StagePlan):
    """Checks a fit stage before anything runs.

    Raises UserError for classifiers of other features or classes, when no labelled pixel is left,
    and when the features do not fit in memory.
    """
    if first_has_checkpoint(plan.directory):
        return
    if plan.task.fit.classifiers:
        read_classifiers(plan)
        return
    masks, _ = read_masks(plan, plan.task.fit.small_objects, copies=_copies(plan))
    require_memory(plan, jax.eval_shape(plan.task.init, jax.random.key(0)), masks)


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
    masks, kept = read_masks(plan, fit.small_objects, plan.log, copies)
    if budget and step is None:
        plan.log.say(f"{plan.name}: measures the features of an image")
        copies = _copies_in_time(plan, budget, frozen, kept, extract)
        masks, kept = masks[kept[:, 1] <= copies], kept[kept[:, 1] <= copies]
    if copies != _copies(plan):
        plan = dataclasses.replace(plan, meta={**plan.meta, "copies": copies})
    need = require_memory(plan, frozen, masks)
    originals = len({index for index, _ in kept})
    copies = f" and {len(kept) - originals} changed copies" if len(kept) > originals else ""
    plan.log.say(
        f"{plan.name}: from {plan.start}; reads features of {counted(originals, 'image')}{copies}, "
        f"{need / GB:.2g} GB"
    )
    with _features_shown(plan, kept) as progress:
        features = collect(plan, frozen, kept, extract, progress)
    for sentence in describe_grid(features, masks, plan.evaluation.source.labels.names):
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
    compiled = fits.compiled(members, fit)
    fit_loop.train_members(members, checkpoints, plan.mesh, plan.log, compiled)


def fit_folds(fits: "LabelledPixels", of: np.ndarray, meta: dict):
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
        for number, fold in enumerate(every, 1):
            if fold not in lacking:
                plan.log.say(f"{plan.name}: fold {number} of {len(every)} is fitted")
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
                f"{plan.name}: fold {number} of {len(every)}: "
                f"{counted(len(names) - len(learned), 'image')} held out, "
                f"{len(learned)} to learn from"
            )
            single = fits.make(fit, among, steps)
            what = f"{plan.name}: fold {number} of {len(every)}"
            fitted = fits.fitted(single, fit, what)
            arrays = {part: {"ensemble": fitted[part]["ensemble"]} for part in ("params", "stats")}
            if fit.probe:
                arrays["stats"]["probe"] = fits.probe(f"{what}, linear probe", among)
            write_fold(evaluation, fold, meta, arrays, learned)
            progress.add()


def _copies_in_time(plan, budget, frozen, kept, extract) -> int:
    """Changed copies of each image whose features can be read in time; pairs as of `examples`."""
    few = kept[: 2 * plan.mesh.size]
    with _features_shown(plan, few) as progress:
        collect(plan, frozen, few, extract, progress)
    images = len({index for index, _ in kept})
    return budget.copies(plan, images, _copies(plan), progress.seconds_each)


def _features_shown(plan, shown) -> Progress:
    what = f"{plan.name}: features"
    return plan.log.progress(what, len(shown), unit="images", first=COMPILES)


def _shorter(plan, members, recipe, budget, seconds) -> fit_loop.Fit | None:
    """The members with fewer steps where so many of some seconds each would not end in time."""
    fits = 1 + len(folds_in_turn(plan.evaluation))
    steps = budget.fit_steps(plan, members.steps, fits * seconds)
    if steps == members.steps:
        return None
    optimizer, meta = recipe.optimizer(steps), {**members.meta, "steps": steps}
    return dataclasses.replace(members, steps=steps, optimizer=optimizer, meta=meta, shorten=None)


class LabelledPixels:
    """Makes fits of the labelled pixels of a stage, or of some of them, which compile once.

    frozen  {"params", "stats"} of the network that computes the features
    groups  of the pixels, by which they are drawn, as of `groups_of`; None: as the recipe draws
    """

    def __init__(self, plan, frozen, features, pixels, labels, groups=None):
        self.plan, self.frozen, self.programs = plan, frozen, {}
        self.features, self.pixels, self.labels = features, pixels, labels
        self.groups = groups
        self.moments = None, None  # rows, and the moments of their features

    def make(
        self, fit: PixelFit, among: np.ndarray | None = None, steps: int | None = None
    ) -> fit_loop.Fit:
        """The classifiers of a `PixelFit` with what they learn from, those rows of the pixels.

        steps  at most; None: those of the recipe
        """
        plan, recipe = self.plan, fit.recipe
        pixels = self.pixels if among is None else self.pixels[among]
        if self.moments[1] is None or self.moments[0] is not among:
            read = functools.partial(_moments, self.features, pixels, plan.seed)
            self.moments = among, functools.cache(read)
        steps = steps or recipe.length(len(pixels))
        power = None if plan.options.get("balance") == "none" else recipe.power
        return fit_loop.Fit(
            name=plan.name, features=self.features, pixels=self.pixels, labels=self.labels,
            init=_member_init(fit, self.moments[1]), loss=fit.loss, members=fit.members,
            steps=steps, batch_size=recipe.batch_size, stops=recipe.stops,
            own_order=recipe.own_order, power=power, optimizer=recipe.optimizer(steps),
            frozen=self.frozen, every=plan.options.every.to_dict(), meta=plan.meta,
            seed=plan.seed, advice="--config.features.dtype=float32", among=among,
            chances=self._chances(among),
        )  # fmt: skip

    def _chances(self, among):
        """Of the pixels that are learned from, or None."""
        if self.groups is None:
            return None
        rows = slice(None) if among is None else among
        return chances(self.labels[rows], self.groups[rows])

    def compiled(self, single: fit_loop.Fit, fit: PixelFit) -> tuple:
        """The program of what was made of a `PixelFit`, that of an earlier one where it serves."""
        key = fit is self.plan.task.fit, single.steps
        if key not in self.programs:
            self.programs[key] = fit_loop.compile_steps(single, self.plan.mesh)
        return self.programs[key]

    def fitted(self, single: fit_loop.Fit, fit: PixelFit, what: str) -> dict:
        """The state of a fit without checkpoints, shown as `what`."""
        compiled, mesh = self.compiled(single, fit), self.plan.mesh
        shown = self.plan.log.progress(what, single.steps, unit="steps", first=COMPILES)
        with shown as progress:
            return fit_loop.fit_without_checkpoints(single, mesh, compiled, progress)

    def probe(self, what: str, among: np.ndarray | None = None) -> dict:
        """The linear probe of all pixels, or of those rows of them, shown as `what`."""
        fit = self.plan.task.fit.probe
        fitted = functools.partial(self.fitted, fit=fit, what=f"{what}: steps")
        with self.plan.log.progress(what):
            return fit_probe(self.make(fit, among), fit, self.plan.mesh, fitted)


def fit_probe(
    single: fit_loop.Fit, fit: PixelFit, mesh, fitted: Callable[[fit_loop.Fit], dict]
) -> dict:
    """A fitted linear classifier as a layer: {"kernel" f32[D,K], "bias" f32[K]}.

    single  the one member of `fit`, with the pixels that it learns from; as its loss is convex, it
            starts from zeros
    fitted  its state after all steps, as of `fit_loop.fit_without_checkpoints`
    """

    def zeros(key):
        network = single.init(key)
        return {**network, "params": jax.tree.map(jnp.zeros_like, network["params"])}

    from_zeros = dataclasses.replace(single, init=zeros)
    learned = fitted(from_zeros)

    def layer(learned):
        parts = (learned[part]["ensemble"] for part in ("params", "stats"))
        params, stats = (jax.tree.map(lambda leaf: leaf[0], part) for part in parts)
        kernel, bias = fit.member.bind_eval(params, stats).first_layer()
        return {"kernel": kernel, "bias": bias}

    return jax.jit(layer, out_shardings=NamedSharding(mesh, PartitionSpec()))(learned)


def _copies(plan):
    return plan.options.augment.get("variants", 0)


def _member_init(fit, moments) -> Callable:
    """The `init` of a member, that of a `PixelHead` with `moments()` of the features."""
    if "deviation" not in fit.member.abstract["stats"]:
        return fit.member.init
    given = moments()

    def init(key):
        network = fit.member.init(key)
        return {**network, "stats": {**network["stats"], **given}}

    return init


def _moments(features, pixels, seed) -> dict:
    """{"mean", "deviation"} f32[D] of the features of some labelled pixels."""
    height, width = features.size
    rng = np.random.default_rng([seed, zlib.crc32(b"moments of features")])
    drawn = rng.choice(pixels, min(len(pixels), MOMENT_PIXELS), replace=False, shuffle=False)
    total = np.zeros((2, features.width))
    for part in np.array_split(drawn, -(-len(drawn) // MOMENT_BATCH)):
        image, position = divmod(part, height * width)
        x = np.asarray(features.gather(image, *divmod(position, width)), np.float64)
        total += x.sum(0), np.square(x).sum(0)
    mean, square = total / len(drawn)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    moments = {"mean": mean, "deviation": deviation + MIN_DEVIATION}
    return {name: jnp.asarray(values, jnp.float32) for name, values in moments.items()}


def read_classifiers(plan: StagePlan) -> dict:
    """Published classifiers, which replace fitted ones: {"params", "stats"}.

    Raises UserError when they read other features, know other classes, or are of other widths.
    """
    task = plan.task
    folder, num_classes = task.fit.classifiers, len(plan.evaluation.source.labels.names)
    given = load_ensemble(folder, task.meta["features_per_pixel"], num_classes)
    for part in given:
        check_shapes(given[part], task.fit.member.abstract[part], folder)
    return {part: {"ensemble": given[part]} for part in ("params", "stats")}


def check_shapes(given: dict, abstract: dict, folder: str):
    """Raises UserError unless every array is that of one member, with a first axis of members."""
    expected = flatten(abstract)
    for path, array in flatten(given).items():
        if array.shape[1:] != expected[path].shape:
            widths = tuple(given["linear2"]["kernel"].shape[1:]) if "linear2" in given else ()
            raise UserError(
                f"the classifiers in {folder} have other hidden layers. "
                f"Try --config.ensemble.widths={widths}."
            )


def open_backbone(plan: StagePlan) -> dict:
    """The network whose features are read, on devices: of this stage's checkpoint, or its start."""
    found = {}
    if first_has_checkpoint(plan.directory):
        found = open_network(plan.directory)[0]
        for part in found.values():
            del part["ensemble"]
    elif plan.loaded:
        found = plan.loaded()
    found = place_tree(found, state_shardings(found, plan.mesh))
    return completed(plan.task, plan.seed, plan.mesh, found)


def completed(task: Task, seed: int, mesh: Mesh, found: dict) -> dict:
    """The network of a fit: the arrays that are found, on devices, and drawn ones for others."""
    found = flatten(found)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"features"))

    def draw_missing(key):
        return {
            path: leaf for path, leaf in flatten(task.init(key)).items() if path not in found
        }

    where = state_shardings(jax.eval_shape(draw_missing, key), mesh)
    drawn = jax.jit(draw_missing, out_shardings=where)(key)
    return {"params": {}, "stats": {}, **unflatten({**found, **drawn})}


def examples(plan: StagePlan, shown) -> Iterator[dict]:
    """Labelled images of the training split at the stage's size: image, mask, valid, name.

    shown  pairs (index, number of the copy); copy 0 is the image itself, others are changed as the
           stage's augment says
    """
    options = plan.options.augment
    alike = {key: options[key] for key in ("limit", "short", "crop")}
    still, change = (augmentation(each, labelled=True) for each in (alike, options))
    for index, copy in shown:
        example = plan.source[int(index)]
        rng = np.random.default_rng([plan.seed, int(index), int(copy)])
        made = (change if copy else still)(example["image"], example["mask"], rng)
        yield {**made, "name": example["name"]}


def sizes_before_crop(
    source: Sequence, indices: Sequence[int], augment: Mapping
) -> list[tuple[int, int]]:
    """The sizes (height, width), ascending, to which a stage fits images before its crop."""
    fitted = Protocol(limit=tuple(augment["limit"]), short=augment["short"])
    shapes = (source[int(index)]["image"].shape[:2] for index in indices)
    return sorted({tuple(map(int, fitted.sizes(shape)[0])) for shape in shapes})


def largest_sides(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest (height, width) into which all sizes fit."""
    height, width = map(max, zip(*sizes))
    return height, width


def check_sizes(plan: StagePlan):
    """Raises UserError for labelled images that do not fit into the crop of a stage.

    They must also fill it where the network resizes them (`Task.short`), as a network should see no
    padding that evaluation does not show it, and where files hold their maps, which have none.
    """
    options, short, files = plan.options.augment, plan.task.short, plan.task.files
    sizes, crop = sizes_before_crop(plan.source, plan.indices, options), tuple(options.crop)
    largest = largest_sides(sizes)
    fills = sizes == [crop] or not (short or files)
    if fills and all(side <= limit for side, limit in zip(largest, crop)):
        return
    advice = f'Try --config.stages.{plan.name}.augment.crop="{largest}"'
    if fills or len(sizes) == 1:
        raise UserError(
            f"stage {plan.name}: labelled images are up to {largest} (height, width) before the "
            f"crop {crop}, but they must {'fit into' if fills else 'fill'} it. {advice}."
        )
    several = (
        f"stage {plan.name}: labelled images are of {len(sizes)} sizes before the crop, {sizes[0]} "
        f"(height, width) to {sizes[-1]}, but "
    )
    if files:
        raise UserError(
            f"{several}maps in files need images of one. Resize the images to one size, and "
            "compute their maps again."
        )
    raise UserError(
        f"{several}with features.short they must be of one. {advice} "
        "--config.features.short=0, or bring them to one aspect ratio."
    )


def read_masks(
    plan: StagePlan, small_objects: int, log: Log | None = None, copies: int = 0
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Masks u8[N,H,W] after the rules, and what is shown of the N that still have a label.

    small_objects  pixels; a class that covers less of an image is ignored there; 0 = off
    copies         changed copies of every image
    out            i64[N,2], pairs as of `examples`
    log            gets a line that names the images without a label, if there are any

    Raises UserError when no image has one.
    """
    check_sizes(plan)
    masks, kept, empty = [], [], []
    shown = [(index, copy) for index in plan.indices for copy in range(copies + 1)]
    with plan.log.progress(f"{plan.name}: reads masks", len(shown), unit="images") as progress:
        read = zip(shown, examples(plan, shown), strict=True)
        for pair, example in progress.each_of(read):
            mask = drop_small_objects(example["mask"], small_objects)
            if (mask != IGNORE).any():
                masks.append(mask.astype(np.uint8))
                kept.append(pair)
            elif not pair[1]:
                small = (example["mask"] != IGNORE).any()
                less = f"no class covers {small_objects} pixels"
                rule = less if small else "all pixels are ignored"
                empty.append(f"{example['name']} ({rule})")
    if not kept:
        raise UserError(
            f"stage {plan.name}: no labelled pixel is left in {len(empty)} images, such as "
            f"{empty[0]}. Look at them with --mode=check, or lower --config.ensemble.small_objects."
        )
    if empty and log:
        log.say(f"{plan.name}: no labelled pixel is left in {', '.join(empty)}")
    return np.stack(masks), np.asarray(kept)


def require_memory(plan: StagePlan, frozen: dict, masks: np.ndarray) -> int:
    """Bytes of the features; UserError when they and the fit exceed the memory that is free."""
    fit = plan.task.fit
    read = tuple(plan.source.names[int(index)] for index in plan.indices[:1])
    maps = fit.files.read(read) if fit.files else ()
    shape = jax.eval_shape(fit.extract, frozen, *_one_image(masks.shape[1:]), *maps)
    features = shape.nbytes * len(masks)
    member = sum(leaf.size * 4 for leaf in jax.tree.leaves(fit.member.abstract["params"]))
    orders = 2 * (fit.members if fit.recipe.own_order else 1)  # of two passes
    training = 4 * fit.members * member + masks.size * (1 + 4 + 4 * orders)
    need = features + training
    free = free_bytes(fit.on_host)
    if free and need > free:
        advice = ""
        if shape.maps[0].dtype == jnp.float32:
            advice += ", or --config.features.dtype=float16"
        if not fit.on_host and jax.default_backend() != "cpu":
            advice += ", or --config.features.place=host"
        allowed = max(int((free - training) / shape.nbytes), 0)
        raise UserError(
            f"stage {plan.name} needs {need / GB:.1f} GB for {len(masks)} images of {shape.width} "
            f"features a pixel, but {free / GB:.1f} GB are free, enough for {allowed}. Lower "
            f"--config.data.count, or the limit, crop or variants of --config.stages.{plan.name}."
            "augment, or take fewer taps, scales, steps or blocks in --config.features"
            f"{advice}."
        )
    return features


def _one_image(size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    return image, jax.ShapeDtypeStruct((1, 2), jnp.int32)


def free_bytes(on_host: bool) -> int:
    """Memory that is free on the device, or in the host; 0 where it is unknown."""
    device = jax.local_devices()[0]
    if not on_host and device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 0


def extractor(plan) -> Callable:
    """`PixelFit.extract`, compiled; what it returns is replicated on every device."""
    return jax.jit(plan.task.fit.extract, out_shardings=NamedSharding(plan.mesh, PartitionSpec()))


def collect(
    plan: StagePlan, network: dict, shown: np.ndarray, extract: Callable | None = None,
    progress: Progress | None = None,
) -> PixelFeatures:  # fmt: skip
    """Features of training images, pairs as of `examples`, replicated on every device.

    Each device works on one image at a time, and each process reads those of its devices.
    extract, progress  for several calls, a compiled function, and what counts the images
    """
    fit, mesh = plan.task.fit, plan.mesh
    extract = extract or extractor(plan)
    progress = progress or _features_shown(plan, shown)  # else it is counted, not shown
    write = jax.jit(_write, donate_argnums=0)
    groups = [shown[start : start + mesh.size] for start in range(0, len(shown), mesh.size)]
    filled = [np.resize(group, (mesh.size, 2)) for group in groups]
    mine = [pairs[local_rows(mesh, mesh.size)] for pairs in filled]
    changed, buffers, done = examples(plan, np.concatenate(mine)), [], 0
    for group, rows in zip(groups, mine, strict=True):
        read = [next(changed) for _ in rows]
        batch = {key: np.stack([e[key] for e in read]) for key in ("image", "valid")}
        if fit.files:
            maps = fit.files.read([example["name"] for example in read])
            batch |= {f"map_{i:02}": values for i, values in enumerate(maps)}
        batch = to_devices(batch, mesh, mesh.size)
        own = seeds_of_copies(plan.seed, group, mesh.size)
        own = {"other_seed": own} if fit.own_seeds else {}
        one = extract(network, *batch.values(), **own)
        maps = [values[: len(group)] for values in one.maps]
        _require_alike(plan, read[0]["name"], maps, buffers or maps)
        if not buffers:
            make = np.zeros if fit.on_host else jnp.zeros
            buffers = [make((len(shown), *m.shape[1:]), m.dtype) for m in maps]
        if fit.on_host:
            for buffer, values in zip(buffers, maps, strict=True):
                buffer[done : done + len(group)] = np.asarray(values)
        else:
            buffers = jax.block_until_ready(write(buffers, maps, done))
        done += len(group)
        progress.add(len(group))
    return PixelFeatures(tuple(buffers), one.size, one.covered)


def seeds_of_copies(seed: int, group: np.ndarray, size: int) -> np.ndarray:
    """Seeds i32[size] of the noise of some images, pairs as of `examples`: one for each copy.

    That of predictions, `seed` itself, is none of them.
    """
    copies = np.resize(group, (size, 2))[:, 1]
    return ((seed + 1 + copies) % np.iinfo(np.int32).max).astype(np.int32)


def _require_alike(plan, name, maps, first):
    """Raises UserError for maps of another size than those of the first image."""
    sizes, expected = ([values.shape[1:3] for values in each] for each in (maps, first))
    if sizes != expected:
        folder = plan.task.fit.files.folder if plan.task.fit.files else "the features"
        raise UserError(
            f"stage {plan.name}: maps in {folder} are of several sizes (height, width): {expected} "
            f"of the first image, but {sizes} of {name}. Compute them again from images of one "
            "size."
        )


def _write(buffers, maps, start):
    update = jax.lax.dynamic_update_slice_in_dim
    return [update(buffer, values, start, 0) for buffer, values in zip(buffers, maps, strict=True)]
