"""The pixel classifiers: small perceptrons on the features of one pixel.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
4: layer sizes, the order of ReLU and batch norm, and initial values of `PixelMLP` follow its
published code.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.norm import BatchNorm

HEAD_WIDTH = 64  # of the hidden layer of a `PixelHead`
MIN_CLASSES_WIDE = 30  # classes from which the hidden layers are wider


def widths_for(num_classes: int) -> tuple[int, int]:
    """Hidden widths of the paper's classifiers: (128, 32) below 30 classes, else (256, 128)."""
    return (128, 32) if num_classes < MIN_CLASSES_WIDE else (256, 128)


def steps_of_pass(pixels: int, batch_size: int) -> int:
    """Steps in a pass over the pixels, without a last incomplete batch; at least one."""
    return max(pixels // batch_size, 1)


class PixelMLP(nnx.Module):
    """Linear, ReLU, batch norm, twice; then a linear layer.

    x    f32[n, D]   features of n pixels; in training mode batch norm is over these n
    out  f32[n, K]   logits

    Weights start normal with deviation 0.02, biases at 0.
    """

    def __init__(self, features: int, num_classes: int, widths: tuple[int, int], *, rngs: nnx.Rngs):
        def linear(inputs, outputs):
            start = nnx.initializers.normal(0.02)
            return nnx.Linear(
                inputs, outputs, kernel_init=start, precision="highest", rngs=rngs
            )  # fmt: skip

        self.linear1 = linear(features, widths[0])
        self.norm1 = BatchNorm(widths[0])
        self.linear2 = linear(widths[0], widths[1])
        self.norm2 = BatchNorm(widths[1])
        self.linear3 = linear(widths[1], num_classes)

    def __call__(self, x: jax.Array, step=None) -> jax.Array:
        return self.after_first(self.linear1(x))

    def first_layer(self) -> tuple[jax.Array, jax.Array]:
        """Kernel f32[D, widths[0]] and bias of the layer whose output `after_first` takes."""
        return self.linear1.kernel[...], self.linear1.bias[...]

    def after_first(self, h: jax.Array) -> jax.Array:
        """f32[n, widths[0]], the first layer's output with its bias -> logits f32[n, K]."""
        h = self.norm1(nnx.relu(h))
        h = self.norm2(nnx.relu(self.linear2(h)))
        return self.linear3(h)


class PixelHead(nnx.Module):
    """Dropout on standardised features, linear, ReLU, linear: for very few labels.

    width of the hidden layer; 0 for a single linear layer without dropout
    x     f32[n, D]   features of n pixels
    step  i32[] of the training, which draws the dropout; None = without
    out   f32[n, K]   logits

    `mean` and `deviation` f32[D] of the features, and `seed` u32[], are statistics that stay as
    they are.
    """

    DROPOUT = 0.3

    def __init__(self, features: int, num_classes: int, width: int, *, rngs: nnx.Rngs):
        def linear(inputs, outputs, gain):
            start = nnx.initializers.normal(math.sqrt(gain / inputs))
            return nnx.Linear(inputs, outputs, kernel_init=start, precision="highest", rngs=rngs)

        self.linear1 = linear(features, width or num_classes, 2)
        self.linear2 = linear(width, num_classes, 1) if width else None
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.deviation = nnx.BatchStat(jnp.ones(features))
        self.seed = nnx.BatchStat(jax.random.bits(rngs.params(), (), jnp.uint32))

    def __call__(self, x: jax.Array, step=None) -> jax.Array:
        x = (x - self.mean[...]) / self.deviation[...]
        if step is not None and self.linear2:
            key = jax.random.fold_in(jax.random.key(self.seed[...]), step)
            kept = jax.random.bernoulli(key, 1 - self.DROPOUT, x.shape)
            x = jnp.where(kept, x / (1 - self.DROPOUT), 0.0)
        return self.after_first(self.linear1(x))

    def first_layer(self) -> tuple[jax.Array, jax.Array]:
        """Kernel f32[D, width] and bias for features as they are, not standardised."""
        kernel = self.linear1.kernel[...] / self.deviation[...][:, None]
        return kernel, self.linear1.bias[...] - jnp.matmul(
            self.mean[...], kernel, precision="highest"
        )

    def after_first(self, h: jax.Array) -> jax.Array:
        """f32[n, width], the first layer's output with its bias -> logits f32[n, K]."""
        return self.linear2(nnx.relu(h)) if self.linear2 else h
