"""Fits to the labelled pixels of a stage, whose features are read: members, folds and the probe."""

import dataclasses
import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.display.progress import COMPILES
from diffseg_jax.experiment.label_strokes import chances
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.training import fit_loop

MOMENT_PIXELS = 20_000  # from which the mean and deviation of features are computed
MOMENT_BATCH = 1_000  # pixels that are read at a time
MIN_DEVIATION = 1e-3  # is added to the deviation of features


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
            read = functools.partial(feature_moments, self.features, pixels, plan.seed)
            self.moments = among, functools.cache(read)
        steps = steps or recipe.length(len(pixels))
        power = None if plan.options.get("balance") == "none" else recipe.power
        return fit_loop.Fit(
            name=plan.name, features=self.features, pixels=self.pixels, labels=self.labels,
            init=fit.member.init, given=given_to(fit, self.moments[1]), loss=fit.loss,
            members=fit.members, steps=steps, batch_size=recipe.batch_size, stops=recipe.stops,
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
        key = fit is self.plan.task.fit, fit_loop.steps_per_call(single), single.optimizer
        if key not in self.programs:
            self.programs[key] = fit_loop.compile_steps(single, self.plan.mesh)
        return self.programs[key]

    def fitted(self, single: fit_loop.Fit, fit: PixelFit, what: str) -> dict:
        """The state of a fit without checkpoints, shown as `what`."""
        compiled, mesh = functools.partial(self.compiled, fit=fit), self.plan.mesh
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

    learned = fitted(dataclasses.replace(single, init=zeros))
    layer = _layer(fit.member, {part: learned[part]["ensemble"] for part in ("params", "stats")})
    return jax.device_put(layer, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=0)
def _layer(member, network):
    one = jax.tree.map(lambda leaf: leaf[0], network)
    kernel, bias = member.bind_eval(**one).first_layer()
    return {"kernel": kernel, "bias": bias}


def given_to(fit: PixelFit, moments: Callable[[], dict]) -> Callable[[], dict]:
    """What members do not draw: to a `PixelHead` `moments` of the features, to others nothing."""
    return moments if "deviation" in fit.member.abstract["stats"] else dict


def feature_moments(features, pixels, seed) -> dict:
    """{"mean", "deviation"} f32[D] of the features of some labelled pixels."""
    height, width = features.size
    rng = np.random.default_rng([seed, zlib.crc32(b"moments of features")])
    drawn = rng.choice(pixels, min(len(pixels), MOMENT_PIXELS), replace=False, shuffle=False)
    total = np.zeros((2, features.width))
    for part in np.array_split(drawn, -(-len(drawn) // MOMENT_BATCH)):
        image, position = divmod(np.resize(part, MOMENT_BATCH), height * width)
        x = features.gather_to_host(image, *divmod(position, width))[: len(part)]
        x = np.asarray(x, np.float64)
        total += x.sum(0), np.square(x).sum(0)
    mean, square = total / len(drawn)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    moments = {"mean": mean, "deviation": deviation + MIN_DEVIATION}
    return {name: jnp.asarray(values, jnp.float32) for name, values in moments.items()}
