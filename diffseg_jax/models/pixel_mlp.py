"""The pixel classifier of DDPM-Seg: a small perceptron on the features of one pixel.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
4; layer sizes, the order of ReLU and batch norm, and initial values follow its published code.
"""

import jax
from flax import nnx

from diffseg_jax.layers.norm import BatchNorm

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

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.after_first(self.linear1(x))

    def after_first(self, h: jax.Array) -> jax.Array:
        """f32[n, widths[0]], the first layer's output with its bias -> logits f32[n, K]."""
        h = self.norm1(nnx.relu(h))
        h = self.norm2(nnx.relu(self.linear2(h)))
        return self.linear3(h)
