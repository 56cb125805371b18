"""What stages do, from their config alone: shapes in place of images, labels and weights."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffseg_jax.data.sources import known_classes
from diffseg_jax.devices.mesh import batch_sharding, state_shardings
from diffseg_jax.experiment.augmentation import blank_image
from diffseg_jax.experiment.gradient_stage import reading_of
from diffseg_jax.experiment.targets import target_of
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.task import Task
from diffseg_jax.training import fit_loop, loop

ASSUMED_IMAGES = 40  # of a fit, where config.data.count is 0: only files say how many there are


def blank_task(config: ConfigDict, name: str) -> Task:
    """The task of a stage. Raises UserError where only files say how many classes there are."""
    system, options = SYSTEMS[config.system], config.stages[name]
    if system.stages[options.kind] == "labelled":
        classes = known_classes(config.data.source, config.data.options)
    else:
        classes = config.get("model", {}).get("num_classes", 0)
    return system.make_task(config, options.kind, tuple(options.augment.crop), classes)


def blank_row(config: ConfigDict, name: str) -> dict:
    """A row of a batch of a stage, made of a blank image as rows are made of others.

    Key -> array without the axis of the batch: image u8[H, W, 3] of the size of the crop, valid
    i32[2], the target, such as mask i32[H, W], and class i32[] where the network is given one.
    """
    options = config.stages[name]
    labelled = SYSTEMS[config.system].stages[options.kind] == "labelled"
    target = target_of(config) if labelled else None
    change, parts = reading_of(options, target)
    example = target.blank(config, options) if labelled else blank_image(options)
    row = change(*parts(example), np.random.default_rng(0))
    classes = not labelled and config.get("model", {}).get("num_classes", 0)
    return row | {"class": np.int32(0)} if classes else row


def inputs_of(stage: loop.Stage, row: dict, mesh: Mesh) -> tuple:
    """Shapes of the inputs of `loop.jitted_step`, on the devices of the mesh.

    The state, a batch of `stage.batch_size` such rows, a key, and the rate f32[].
    """
    state = loop.abstract_state(stage)
    batch = batch_of(row, stage.batch_size, batch_sharding(mesh))
    return placed(state, state_shardings(state, mesh)), batch, *key_and_rate()


def key_and_rate() -> tuple:
    """Shapes of the last two inputs of a step."""
    return jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))


def batch_of(row: dict, size: int, sharding=None) -> dict:
    """Shapes of a batch of so many such rows."""
    return {
        name: jax.ShapeDtypeStruct(
            (size, *np.shape(value)), canonicalize_dtype(np.asarray(value).dtype), sharding=sharding
        )
        for name, value in row.items()
    }  # fmt: skip


def placed(tree, shardings):
    """The shapes with shardings, a tree of them or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda leaf: shardings, tree)
    shape = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(shape, tree, shardings)


def fit_of(config: ConfigDict, name: str, task: Task) -> tuple[fit_loop.Fit, dict, tuple]:
    """A fit without its data, its frozen network, and shapes of an image for `extract`.

    It learns from config.data.count images, or ASSUMED_IMAGES, and their variants; all of their
    pixels are labelled. The image is u8[1, H, W, 3], i32[1, 2] and what files of features add.
    """
    options, fit = config.stages[name], task.fit
    size, recipe = tuple(options.augment.crop), task.fit.recipe
    network = jax.eval_shape(task.init, jax.random.key(0))
    image = {"image": np.zeros((*size, 3), np.uint8), "valid": np.zeros(2, np.int32)}
    image = *batch_of(image, 1).values(), *(fit.files.example if fit.files else ())
    one = jax.eval_shape(fit.extract, network, *image)
    images = (config.data.count or ASSUMED_IMAGES) * (1 + options.augment.get("variants", 0))
    shapes = [jax.ShapeDtypeStruct((images, *m.shape[1:]), m.dtype) for m in one.maps]
    if fit.on_host:
        shapes = [np.broadcast_to(np.zeros((), m.dtype), m.shape) for m in shapes]
    pixels = images * size[0] * size[1]
    steps = recipe.length(pixels)
    return fit_loop.Fit(
        name=name, features=PixelFeatures(tuple(shapes), one.size, one.covered),
        pixels=np.broadcast_to(np.int32(0), pixels), labels=np.broadcast_to(np.uint8(0), pixels),
        init=fit.member.init, loss=fit.loss, members=fit.members, steps=steps,
        batch_size=recipe.batch_size, stops=recipe.stops, own_order=recipe.own_order,
        optimizer=recipe.optimizer(steps), frozen=network, every=options.every.to_dict(), meta={},
        seed=config.seed, advice="",
    ), network, image  # fmt: skip


def inputs_of_fit(fit: fit_loop.Fit, mesh: Mesh) -> tuple:
    """Shapes of the inputs of `fit_loop.jitted_steps`, on the devices of the mesh."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    owners = (fit.members,) if fit.own_order else ()
    length = fit_loop.steps_per_call(fit)
    rows = length, *owners, fit.batch_size
    data, batch = (fit.features, fit.pixels, fit.labels), jax.ShapeDtypeStruct(rows, jnp.int32)
    if fit.on_host:
        vectors = jax.ShapeDtypeStruct((*rows, fit.features.width), jnp.float32)
        data, batch = (), (vectors, batch)
    numbers, truths = (jax.ShapeDtypeStruct((length,), t) for t in (jnp.int32, jnp.bool_))
    state = jax.eval_shape(lambda: fit_loop.initial_state(fit))
    shapes = placed((state, data), everywhere)
    return *shapes, batch, numbers, truths, truths

