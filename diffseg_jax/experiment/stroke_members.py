"""The networks of a fit to strokes, which learn in one program that is compiled once.

Beside the members of the prediction there are some for each fold of the strokes, which never see
that fold: what they say of it is as honest as of new images. Classes without a stroke that a member
learns from have the probability 0, since nothing corrects what it begins with.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffseg_jax.devices.compiled import BoundedPrograms
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.labelled_pixels import MIN_DEVIATION
from diffseg_jax.experiment.stroke_network import STAGE
from diffseg_jax.experiment.stroke_scores import MAX_FOLDS, expected_signals
from diffseg_jax.models.pixel_mlp import PixelHead
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.systems.pixel_ensemble import agree, ensemble_maps
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.training import fit_loop

PIXELS_DRAWN = 8192  # that a fit draws from the strokes, with repetition where there are fewer
HELD_OUT_MEMBERS = 2  # of each fold
CLASS_BITS = 8  # of a code that holds the class and the fold of a pixel
ALL_FOLDS = -1  # of a member of the prediction, which sees them all
UNPAINTED = -1e4  # logit of a class of which a member sees no pixel: its probability is 0


class Cancelled(Exception):
    """A fit that was asked to end."""


@dataclasses.dataclass(frozen=True)
class PixelTable:
    """The PIXELS_DRAWN pixels that a fit learns from, a row each.

    x       f32[PIXELS_DRAWN, D], features
    labels  i32[PIXELS_DRAWN], classes;  folds  i64[PIXELS_DRAWN], in which they are held out
    units   i64[PIXELS_DRAWN], the images, or of a single one the strokes
    pixels  i64[PIXELS_DRAWN], numbers of the painted pixels
    """

    x: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    units: np.ndarray
    pixels: np.ndarray


class StrokeMembers:
    """Fits the members of a `PixelFit`, and those that hold out a fold each, to tables of pixels.

    Its programs are compiled at their first use, and serve all later tables; that of a prediction
    is compiled for each size of images.
    """

    def __init__(self, fit: PixelFit, seed: int):
        self.member, self.members, self.seed = fit.member, fit.members, seed
        self.unfitted = _without_data(fit, seed)
        self.num_classes = _classes_of(fit.member)
        self.begin = jax.jit(functools.partial(fit_loop.initial_state, self.unfitted))
        steps = functools.partial(fit_loop.steps_of, self.unfitted)
        self.steps = jax.jit(steps, donate_argnums=0)
        self.logits = jax.jit(functools.partial(_logits, fit.member))
        self.predict = BoundedPrograms(functools.partial(_maps, fit.member))

    def fit(
        self, table: PixelTable, progress: Callable, cancelled: Callable
    ) -> tuple[dict, np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        """Members {"params", "stats"}, and what others say of the table that have not seen it.

        out  of each of n pixels the probabilities f32[n,K] by the members that hold out its fold,
             and the signals f32[n] of as many members as those of the prediction

        Raises Cancelled, and UserError for a loss that is not finite.
        """
        mean, deviation = table.x.mean(0), table.x.std(0) + MIN_DEVIATION
        table = dataclasses.replace(table, x=(table.x - mean) / deviation)
        learned = self._learn(table, progress, cancelled)
        absent = unpainted(table, self.num_classes, [ALL_FOLDS])[0]
        return self._members(learned, absent, mean, deviation), *self._held_out(learned, table)

    def warm_up(self, features: int):
        """Compiles what a fit of pixels with so many features runs."""
        zeros = np.zeros(PIXELS_DRAWN, np.int64)
        x = np.zeros((PIXELS_DRAWN, features), np.float32)
        table = PixelTable(x, zeros, zeros, zeros, zeros)
        learned = self._learn(table, lambda *_: None, lambda: False, calls=1)
        self._held_out(learned, table)

    def _learn(self, table, progress, cancelled, calls=None) -> dict:
        """The state after all calls, or so many of them, of STEPS_PER_CALL steps."""
        fit, length = self.unfitted, fit_loop.STEPS_PER_CALL
        codes = (table.labels + (table.folds << CLASS_BITS)).astype(np.int32)
        state, rng = self.begin(), np.random.default_rng(self.seed)
        folds = np.full(fit.members, ALL_FOLDS, np.int32)
        folds[self.members :] = np.repeat(np.arange(MAX_FOLDS), HELD_OUT_MEMBERS)
        masks = np.where(unpainted(table, self.num_classes, folds), UNPAINTED, 0).astype(np.float32)
        state["stats"]["ensemble"] |= {"fold": jnp.asarray(folds), "mask": jnp.asarray(masks)}
        for start in range(0, fit.steps, length)[:calls]:
            if cancelled():
                raise Cancelled
            progress("fit", start, fit.steps)
            numbers = np.arange(start, start + length)
            rows = rng.integers(0, PIXELS_DRAWN, (length, fit.batch_size))
            batch, never = (table.x[rows], codes[rows]), np.zeros(length, bool)
            state, losses = self.steps(state, (), batch, numbers + 1, never, numbers < fit.steps)
            if not np.isfinite(np.asarray(losses)).all():
                raise UserError(
                    "the fit to the strokes fails: its loss is not finite. Give another --features "
                    "or --checkpoint."
                )
        progress("fit", fit.steps, fit.steps)
        return state

    def _held_out(self, learned, table):
        logits = np.asarray(self.logits(learned, table.x))[self.members :]
        logits = logits.reshape(MAX_FOLDS, HELD_OUT_MEMBERS, *logits.shape[1:])
        of_pixels = np.moveaxis(logits, 2, 0)[np.arange(PIXELS_DRAWN), table.folds]
        said = _agree(np.moveaxis(of_pixels, 1, 0))
        probs, divergence = np.asarray(said["probs"]), np.asarray(said["divergence"])
        return probs, expected_signals(probs, divergence, HELD_OUT_MEMBERS, self.members)

    def _members(self, learned, absent, mean, deviation) -> dict:
        """Those of the prediction, for features as they are; absent: bool[K], unpainted classes."""
        of = lambda tree: jax.tree.map(lambda leaf: leaf[: self.members], tree)
        repeated = lambda values: jnp.tile(jnp.asarray(values, jnp.float32), (self.members, 1))
        moments = {"mean": repeated(mean), "deviation": repeated(deviation)}
        stats = of(learned["stats"]["ensemble"]["head"])
        params = of(learned["params"]["ensemble"])
        last = params["linear2"]
        last["kernel"] = jnp.where(absent, 0.0, last["kernel"])
        last["bias"] = jnp.where(absent, UNPAINTED, last["bias"])
        return {"params": params, "stats": {**stats, **moments}}


def unpainted(table: PixelTable, num_classes: int, folds: Sequence[int]) -> np.ndarray:
    """Whether classes have no pixel outside of each of F folds: bool[F, num_classes]."""
    seen = np.zeros((len(folds), num_classes), bool)
    for row, fold in enumerate(folds):
        seen[row, table.labels[table.folds != fold]] = True
    return ~seen


def _classes_of(member) -> int:
    """The number of classes of a `PixelHead`."""
    return member.abstract["params"]["linear2"]["bias"].shape[0]


def _without_data(fit, seed) -> fit_loop.Fit:
    """All networks as the loop of ensembles takes them; pixels come with each call."""
    width, recipe = fit.member.abstract["stats"]["mean"].shape[0], fit.recipe
    members = fit.members + MAX_FOLDS * HELD_OUT_MEMBERS

    def init(key):
        network = fit.member.init(key)
        mask = jnp.zeros(_classes_of(fit.member))
        stats = {"head": network["stats"], "fold": jnp.int32(ALL_FOLDS), "mask": mask}
        return {"params": network["params"], "stats": stats}

    return fit_loop.Fit(
        name=STAGE, features=PixelFeatures((np.zeros((1, 1, 1, width), np.float32),), (1, 1)),
        pixels=np.zeros(0, np.int32), labels=np.zeros(0, np.uint8), init=init,
        loss=functools.partial(_loss, fit.member, seed), members=members, steps=recipe.steps,
        batch_size=recipe.batch_size, stops=False, own_order=False,
        optimizer=recipe.optimizer(recipe.steps), frozen={}, every={}, meta={}, seed=seed,
        advice="",
    )  # fmt: skip


def _loss(member, seed, params, stats, x, y, step):
    """Mean cross-entropy of one member over the pixels of a batch that are not of its fold.

    x  f32[B,D], standardised;  y  i32[B], class + fold * 2^CLASS_BITS

    Dropout is the same for all members, so that their first layers are one product of matrices.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    kept = jax.random.bernoulli(key, 1 - PixelHead.DROPOUT, x.shape)
    x = jnp.where(kept, x / (1 - PixelHead.DROPOUT), 0.0)
    labels, folds = y & (2**CLASS_BITS - 1), y >> CLASS_BITS
    logits = _of_standardised(member, params, stats, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    learned = (folds != stats["fold"]).astype(jnp.float32)
    return jnp.sum(losses * learned) / jnp.maximum(learned.sum(), 1.0), stats


def _of_standardised(member, params, stats, x):
    model = member.bind_eval(params, stats["head"])
    return model.after_first(model.linear1(x)) + stats["mask"]


def _logits(member, learned, x):
    """The logits f32[members, n, K] of all networks for standardised features f32[n, D]."""
    of_one = lambda params, stats: _of_standardised(member, params, stats, x)
    return jax.vmap(of_one)(learned["params"]["ensemble"], learned["stats"]["ensemble"])


def _maps(member, ensemble, features):
    """The maps of an image by which a prediction is made."""
    found = ensemble_maps(member, ensemble, features)
    return {name: found[name] for name in ("probs", "divergence")}


_agree = jax.jit(agree)
