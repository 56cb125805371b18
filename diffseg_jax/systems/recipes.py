"""How pixel classifiers learn, by name.

The recipe "paper" is that of Baranchuk et al., "Label-Efficient Semantic Segmentation with
Diffusion Models" (ICLR 2022), section 4, with constants of its code.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.models.pixel_mlp import steps_of_pass


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the members learn.

    batch_size  pixels
    steps       of every member; 0 = `epochs` passes over the pixels
    epochs      passes at most; a last, incomplete batch of a pass is dropped
    stops       whether a member may stop early, by the paper's rule (training.fit_loop.stop_rule)
    own_order   whether every member draws its own order of the pixels; else they share batches
    optimizer   steps -> optax transformation
    layers      hidden layers of a member: 2 for a `PixelMLP`, 1 or 0 for a `PixelHead`
    power       pixels are drawn so that a class of share f has a share in proportion to f^power;
                None: every pixel once in a pass
    votes       whether members vote for the label; else the mean of their probabilities decides
    """

    batch_size: int
    steps: int
    epochs: int
    stops: bool
    own_order: bool
    optimizer: Callable[[int], optax.GradientTransformation]
    layers: int = 2
    power: float | None = None
    votes: bool = True

    def length(self, pixels: int) -> int:
        """The maximum number of steps."""
        return self.steps or self.epochs * steps_of_pass(pixels, self.batch_size)


# Each is made once, so that fits of one optimizer share a compiled program.
@functools.cache
def _paper():
    return optax.adam(1e-3)


@functools.cache
def _fast(steps):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, max(steps, 51)))


@functools.cache
def _regularised(steps, peak=2e-3):
    def rate(step):
        return peak * jnp.minimum(1, (step + 1) / 50) * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))

    kernels = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.adamw(rate, b2=0.99, weight_decay=0.01, mask=kernels)


RECIPES = {
    "paper": Recipe(64, 0, 100, stops=True, own_order=True, optimizer=lambda _: _paper()),
    "fast": Recipe(1024, 1_000, 0, stops=False, own_order=False, optimizer=_fast),
    "regularised": Recipe(
        512, 500, 0, stops=False, own_order=False, optimizer=_regularised, layers=1, power=0.5,
        votes=False,
    ),
    "strokes": Recipe(  # of experiment.stroke_members, in seconds
        256, 160, 0, stops=False, own_order=False, optimizer=_regularised, layers=1, power=0.0,
        votes=False,
    ),
    "linear": Recipe(
        512, 500, 0, stops=False, own_order=False, optimizer=_regularised, layers=0, votes=False
    ),
}
# Of the baseline: zeros, from which it starts, are far from the weights that a few features need.
PROBE = dataclasses.replace(
    RECIPES["linear"], optimizer=functools.partial(_regularised, peak=5e-3)
)  # fmt: skip
