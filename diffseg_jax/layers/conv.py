"""2-d convolutions: plain, and with a standardised kernel."""

import enum

import jax
import jax.numpy as jnp
from flax import nnx

WIDE = 64 * 128  # in * out channels from which a 3x3 kernel gradient is faster as a product


class Arithmetic(enum.Enum):
    """Whose padding, pooling and norms a TransUNet follows (README, "Two arithmetics")."""

    OFFICIAL = "official"  # the JAX program that trained the released encoder weights
    PORT = "port"  # the PyTorch program that loads them


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    """f[B,H,W,in] * f[h,w,in,out] -> f[B,H',W',out], in the type of x.

    A 1x1 convolution is written as the matrix product that it is: XLA's CPU backend runs that up to
    twice as fast as a convolution of the same size. On CPUs the kernel gradient of a wide 3x3
    convolution is a matrix product too: XLA's own runs at a quarter of the speed of its forward
    pass (4x56x56, 512 -> 128 channels: 420 ms of processor time, as a product 170 ms).
    """
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])
    wide = kernel.shape[:2] == (3, 3) and kernel.shape[2] * kernel.shape[3] >= WIDE
    if wide and stride == 1 and padding in ("SAME", [(1, 1)] * 2):
        return _convolve_wide(x, kernel)
    return _convolve(x, kernel, stride, padding)


def _convolve(x, kernel, stride=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve_wide(x, kernel):
    """3x3 with stride 1 and one zero on every side."""
    return _convolve(x, kernel)


def _convolve_wide_backward(saved, dy):
    _, gradients = jax.vjp(_convolve, *saved)

    def product(dy):
        (dx,) = jax.vjp(lambda x: _convolve(x, saved[1]), saved[0])[1](dy)
        return dx, _kernel_gradient(saved[0], _unfused(dy))

    return jax.lax.platform_dependent(dy, cpu=product, default=gradients)


_convolve_wide.defvjp(
    lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _convolve_wide_backward
)


def _kernel_gradient(x, dy):
    """f[B,H,W,in], f[B,H,W,out] -> f[3,3,in,out]: x times nine shifts of dy, over all pixels."""
    rows, columns, out = dy.shape[1:]
    padded = jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + rows, j : j + columns] for i in (2, 1, 0) for j in (2, 1, 0)]
    product = jnp.einsum("bhwi,bhwo->io", x, jnp.concatenate(shifts, -1))
    return jnp.moveaxis(product.reshape(-1, 3, 3, out), 0, 2)


@jax.custom_vjp
def stop_fusion(x: jax.Array) -> jax.Array:
    """x itself; on CPUs its gradient is computed once and kept.

    Left alone, XLA's CPU backend recomputes the gradient of a residual stream, the sum of what all
    later layers gave, wherever it is read: a sixth of the train step, and most of its compilation.
    """
    return x


def _unfused(x):
    """x / 1, for XLA does not repeat divisions; it drops `optimization_barrier` before it fuses."""
    return x / (1 + 0 * x)


def _stop_fusion_backward(_, dy):
    return (jax.lax.platform_dependent(dy, cpu=_unfused, default=lambda dy: dy),)


stop_fusion.defvjp(lambda x: (x, None), _stop_fusion_backward)


def standardise(kernel: jax.Array, arithmetic: Arithmetic) -> jax.Array:
    """Kernel f32[h,w,in,out] with mean 0 and deviation 1 per output channel, in float32.

    `official` divides by std + 1e-5, `port` by sqrt(var + 1e-5); population deviation in both.
    """
    centred = kernel - jnp.mean(kernel, (0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(centred), (0, 1, 2), keepdims=True)
    if arithmetic is Arithmetic.OFFICIAL:
        return centred / (jnp.sqrt(var) + 1e-5)
    return centred * jax.lax.rsqrt(var + 1e-5)


class StdConv(nnx.Module):
    """Convolution whose kernel is standardised at every call, no bias (ViT's hybrid ResNet).

    x    f[B, H, W, in]
    out  f[B, ceil(H / stride), ceil(W / stride), out] in the type of x
    Padding is SAME in `official` (what is odd goes after), k // 2 on both sides in `port`.
    """

    def __init__(self, in_channels, channels, size, *, stride=1, arithmetic, rngs: nnx.Rngs):
        shape = (size, size, in_channels, channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.stride = stride
        self.arithmetic = arithmetic

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = standardise(self.kernel[...], self.arithmetic).astype(x.dtype)
        half = kernel.shape[0] // 2
        same = self.arithmetic is Arithmetic.OFFICIAL
        return convolve(x, kernel, self.stride, "SAME" if same else [(half, half)] * 2)
