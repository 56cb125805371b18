"""How spread out class probabilities are, and how far several of them differ, in [0, 1].

Functions take numpy or jax arrays; `xp` is the library of the arrays.
"""

import jax.numpy as jnp
import numpy as np


def entropy(probs, xp=jnp):
    """-sum p ln p over the last axis, in nats, with p >= 1e-12 in ln p: f32[..., K] -> f32[...]."""
    return -xp.sum(probs * xp.log(xp.maximum(probs, 1e-12)), axis=-1)


def normalised(nats, num_classes: int, xp=jnp):
    """Nats f32[...] as a share of their maximum, ln K (K at least 2), clipped to [0, 1]."""
    return xp.clip(nats / np.log(max(num_classes, 2)), 0, 1)


def jensen_shannon(mixture, entropies, num_classes: int, axis: int = 0):
    """H(mean p) - mean H(p) of R distributions over K classes, divided by ln K.

    mixture    f32[...], entropy of the mean of the distributions
    entropies  f32[..., R, ...], entropy of each of them along `axis`
    out        f32[...] in [0, 1]: 0 when all agree
    """
    return normalised(mixture - jnp.mean(entropies, axis), num_classes)
