"""A convolution without bias and its batch norm, as one layer."""

from collections.abc import Mapping
from types import MappingProxyType

import jax
from flax import nnx

from diffseg_jax.layers.conv import convolve
from diffseg_jax.layers.norm import BatchNorm

KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvBatchNorm(nnx.Module):
    """Convolution, batch norm, and a ReLU unless `active` is False: f[B,H,W,in] -> f[B,H',W',out].

    size    side of the kernel, padded by dilation (size // 2) zeros on every side: H' is
            ceil(H / stride)
    dilation  pixels from one tap of the kernel to the next
    out     in the dtype of x; Kaiming-normal kernel by the outputs, norms at 1 and 0
    norm    keyword arguments of `BatchNorm`
    """

    def __init__(
        self, channels_in: int, channels: int, size: int, *, stride: int = 1, dilation: int = 1,
        active: bool = True, norm: Mapping = MappingProxyType({}), rngs: nnx.Rngs,
    ):  # fmt: skip
        self.kernel = nnx.Param(KAIMING(rngs.params(), (size, size, channels_in, channels)))
        self.norm = BatchNorm(channels, **norm)
        self.stride, self.dilation = stride, dilation
        self.active = active

    def __call__(self, x: jax.Array) -> jax.Array:
        half = self.dilation * (self.kernel.shape[0] // 2)
        kernel = self.kernel[...].astype(x.dtype)
        padding = [(half, half)] * 2
        if self.dilation == 1:
            y = convolve(x, kernel, self.stride, padding)
        else:
            y = convolve_dilated(x, kernel, self.stride, padding, self.dilation)
        y = self.norm(y)
        return nnx.relu(y) if self.active else y


def convolve_dilated(x: jax.Array, kernel: jax.Array, stride: int, padding, dilation: int):
    """As `convolve`, with kernels whose taps are `dilation` pixels apart."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
