"""2-d convolutions: plain, and with a standardised kernel."""

import enum

import jax
import jax.numpy as jnp
from flax import nnx


class Arithmetic(enum.Enum):
    """Which program's rounding, padding and norms a TransUNet follows (README, "Two arithmetics")."""

    OFFICIAL = "official"  # the JAX program that trained the released encoder weights
    PORT = "port"  # the PyTorch program that loads them


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    """f[B,H,W,in] * f[h,w,in,out] -> f[B,H',W',out], in the type of x.

    A 1x1 convolution is written as the matrix product that it is: XLA's CPU backend runs that up to
    twice as fast as a convolution of the same size. On a CPU, the kernel gradient of the 3x3
    convolutions is a matrix product too; see `_kernel_gradient`.
    """
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])
    if stride == 1 and kernel.shape[:2] == (3, 3):
        return _convolve3(x, kernel)
    return _plain(x, kernel, stride, padding)


def _plain(x, kernel, stride=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve3(x, kernel):
    """3x3, stride 1, one zero on every side."""
    return _plain(x, kernel)


def _convolve3_forward(x, kernel):
    return _plain(x, kernel), (x, kernel)


def _convolve3_backward(saved, dy):
    x, kernel = saved
    (dx,) = jax.vjp(lambda x: _plain(x, kernel), x)[1](dy)
    ours, xla = _kernel_gradient, lambda x, dy: jax.vjp(lambda k: _plain(x, k), kernel)[1](dy)[0]
    many = kernel.shape[2] * kernel.shape[3] >= 64 * 128
    return dx, jax.lax.platform_dependent(x, dy, cpu=ours if many else xla, default=xla)


_convolve3.defvjp(_convolve3_forward, _convolve3_backward)


def _kernel_gradient(x, dy):
    """d/dkernel of a 3x3 convolution: f[B,H,W,in], f[B,H,W,out] -> f[3,3,in,out].

    One product of x with the nine shifts of dy, contracted over every pixel.
    """
    rows, columns, out = dy.shape[1:]
    padded = jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, 2 - i : 2 - i + rows, 2 - j : 2 - j + columns] for i in range(3) for j in range(3)]
    product = jnp.einsum("bhwi,bhwo->io", x, jnp.concatenate(shifts, -1))
    return jnp.moveaxis(product.reshape(-1, 3, 3, out), 0, 2)


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
