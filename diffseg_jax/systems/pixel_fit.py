"""What a stage needs to fit an ensemble of pixel classifiers to features.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.sources.map_files import MapFiles


@dataclasses.dataclass(frozen=True)
class PixelFit:
    """What a stage needs to fit an ensemble.

    extract        (network, images u8[B,h,w,3], valid i32[B,2]) -> PixelFeatures of the B images;
                   that of a diffusion model also takes `steps`
    member         one classifier
    members        number of classifiers
    recipe         how they learn, one of `recipes.RECIPES`
    small_objects  pixels; a class that covers less of an image is ignored there; 0 = off
    on_host        whether features stay in the host's memory
    classifiers    folder of published classifiers, which are taken instead of a fit; "" = none
    files          whose maps `extract` and `Task.predict` take after `valid`; None: computed here
    own_seeds      whether `extract` draws noise for every copy of an image anew, from `other_seed`
    probe          one linear classifier, fitted and measured beside the ensemble; None for none
    """

    extract: Callable
    member: Network
    members: int
    recipe: object
    small_objects: int
    on_host: bool
    classifiers: str = ""
    files: MapFiles | None = None
    own_seeds: bool = False
    probe: "PixelFit | None" = None

    def loss(self, params: dict, stats: dict, x: jax.Array, y: jax.Array, step=None):
        """Mean cross-entropy of one member over pixels x f32[B,D], y i32[B], and its statistics."""
        model = self.member.bind(params, stats)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x, step), y)
        return jnp.mean(losses), stats_of(model)
