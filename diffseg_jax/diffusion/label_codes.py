"""Label maps encoded as numbers, to which noise can be added (Ji et al., 2023: DDP, section 3.2).

Every code is a table with one row per class and a last one for the ignore label, so that encoding
is a look-up. A code has n numbers per class, between -scale and scale.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

CODES = ("embedding", "bits", "one_hot")  # only "embedding" is learned


def code_width(kind: str, num_classes: int, embedding: int) -> int:
    """n: the width of the embedding, the number of bits ceil(log2(K + 1)), or K + 1."""
    bits = math.ceil(math.log2(num_classes + 1))
    return {"embedding": embedding, "bits": bits, "one_hot": num_classes + 1}[kind]


def code_table(kind: str, num_classes: int, scale: float, embedding=None) -> jax.Array:
    """f32[K + 1, n] in [-scale, scale].

    kind       "embedding": 2 sigmoid(embedding) - 1; "bits": analog bits, the most significant one
               first (Chen et al., 2023); "one_hot"
    embedding  f32[K + 1, n], learned; only for "embedding"
    """
    labels = np.arange(num_classes + 1)
    if kind == "embedding":
        unit = 2 * jax.nn.sigmoid(embedding) - 1
    elif kind == "bits":
        shifts = np.arange(code_width(kind, num_classes, 0))[::-1]
        unit = 2.0 * (labels[:, None] >> shifts & 1) - 1
    else:
        unit = 2 * np.eye(len(labels)) - 1
    return jnp.asarray(unit, jnp.float32) * scale
