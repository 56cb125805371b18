"""An ensemble of pixel classifiers on the features of any network: its prediction.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
4. Nothing here depends on where the features come from.
"""

import jax
import jax.numpy as jnp

from diffseg_jax.metrics.divergence import jensen_shannon
from diffseg_jax.models.network import Network
from diffseg_jax.models.pixel_mlp import PixelHead, PixelMLP
from diffseg_jax.models.taps import PixelFeatures

STRIP_BYTES = 2**25  # maximum size of the first layer's output during prediction


def make_member(features: int, num_classes: int, widths: tuple[int, ...]) -> Network:
    """One classifier of D = `features` numbers a pixel, as pure functions.

    widths  of two hidden layers for a `PixelMLP`; of one, or none, for a `PixelHead`
    """
    if len(widths) < 2:
        width = sum(widths)
        return Network(lambda rngs: PixelHead(features, num_classes, width, rngs=rngs))
    return Network(lambda rngs: PixelMLP(features, num_classes, widths, rngs=rngs))


def ensemble_maps(member: Network, ensemble: dict, features: PixelFeatures) -> dict:
    """Votes, probabilities and divergence of the members at every pixel of N images.

    ensemble  {"params", "stats"} of `member` with a leading axis of M members
    out       "votes" f32[N,H,W,K] the number of members that choose a class;
              "probs" f32[N,H,W,K] the mean of their softmaxes; "divergence" f32[N,H,W] in [0, 1]

    The label is the class with most votes, the smallest index among ties. The divergence is that of
    Jensen and Shannon between the members, H(mean p) - mean H(p), divided by ln K.
    """
    params, stats = ensemble["params"], ensemble["stats"]
    kernel, bias = jax.vmap(lambda p, s: member.bind_eval(p, s).first_layer())(params, stats)
    count, width, hidden = kernel.shape
    kernel = jnp.moveaxis(kernel, 0, 1).reshape(width, count * hidden)

    def of_member(params, stats, h):
        return member.bind_eval(params, stats).after_first(h)

    def after(h):
        shape = h.shape[:-1]
        h = h.reshape(-1, count, hidden) + bias
        logits = jax.vmap(of_member, in_axes=(0, 0, 1))(params, stats, h)
        return {key: f.reshape(*shape, *f.shape[1:]) for key, f in agree(logits).items()}

    return features.project(kernel, after, strip=_strip(features, count * hidden))


def linear_probs(layer: dict, features: PixelFeatures) -> jax.Array:
    """Probabilities f32[N,H,W,K] of a linear layer {"kernel" f32[D,K], "bias" f32[K]}."""
    kernel, bias = layer["kernel"], layer["bias"]
    after = lambda h: jax.nn.softmax(h + bias)
    return features.project(kernel, after, strip=_strip(features, len(bias)))


def _strip(features, outputs):
    """Rows of which a layer of that many outputs is computed at a time."""
    return max(1, STRIP_BYTES // (4 * features.count * features.size[1] * outputs))


def agree(logits: jax.Array) -> dict:
    """Votes, mean probabilities and disagreement of M members: f32[M, n, K]."""
    num_classes = logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    mean = sum(probs) / len(probs)  # XLA's sums over a first axis are slow on CPUs
    each = -jnp.sum(probs * log_probs, -1)  # exact; `divergence.entropy` clips
    mixture = -jnp.sum(jax.scipy.special.xlogy(mean, mean), -1)
    spread = jensen_shannon(mixture, each, num_classes)
    votes = sum(jax.nn.one_hot(jnp.argmax(logits, -1), num_classes))
    return {"votes": votes, "probs": mean, "divergence": spread}
