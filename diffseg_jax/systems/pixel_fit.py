"""What a stage needs to fit an ensemble of pixel classifiers to features.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
4; constants of the recipe "paper" are those of its code.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.models.pixel_mlp import steps_of_pass
from diffseg_jax.systems.map_files import MapFiles


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the members learn.

    batch_size  pixels
    steps       of every member; 0 = `epochs` passes over the pixels
    epochs      passes at most; a last, incomplete batch of a pass is dropped
    stops       whether a member may stop early, by the paper's rule (training.fit_loop.stop_rule)
    own_order   whether every member draws its own order of the pixels; else they share batches
    optimizer   steps -> optax transformation
    """

    batch_size: int
    steps: int
    epochs: int
    stops: bool
    own_order: bool
    optimizer: Callable[[int], optax.GradientTransformation]

    def length(self, pixels: int) -> int:
        """The maximum number of steps."""
        return self.steps or self.epochs * steps_of_pass(pixels, self.batch_size)


def _fast(steps):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, max(steps, 51)))


RECIPES = {
    "paper": Recipe(64, 0, 100, stops=True, own_order=True, optimizer=lambda _: optax.adam(1e-3)),
    "fast": Recipe(1024, 1_000, 0, stops=False, own_order=False, optimizer=_fast),
}


@dataclasses.dataclass(frozen=True)
class PixelFit:
    """What a stage needs to fit an ensemble.

    extract        (network, images u8[B,h,w,3], valid i32[B,2]) -> PixelFeatures of the B images;
                   that of a diffusion model also takes `steps`
    member         one classifier
    members        number of classifiers
    small_objects  pixels; a class that covers less of an image is ignored there; 0 = off
    on_host        whether features stay in the host's memory
    classifiers    folder of published classifiers, which are taken instead of a fit; "" = none
    files          whose maps of an image `extract` and `Task.predict` take after `valid`; None
                   where the network computes them
    """

    extract: Callable
    member: Network
    members: int
    recipe: Recipe
    small_objects: int
    on_host: bool
    classifiers: str = ""
    files: MapFiles | None = None

    def loss(self, params: dict, stats: dict, x: jax.Array, y: jax.Array):
        """Mean cross-entropy of one member over pixels x f32[B,D], y i32[B], and its statistics."""
        model = self.member.bind(params, stats)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
        return jnp.mean(losses), stats_of(model)
