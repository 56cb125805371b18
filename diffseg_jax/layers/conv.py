"""2-d convolutions: plain, after an enlargement, and with a standardised kernel."""

import enum
import math

import jax
import jax.numpy as jnp
from flax import nnx

FOLDED = 4  # pixels per input channel from which folding a kernel costs less than it saves
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
    pass (4x56x56, 512 -> 128 channels: 420 ms of processor time, as a product 170 ms). So is the
    whole convolution where pixels are fewer than channels (1x8x8, 1024 -> 1024 channels: 62 ms, as
    a product 24 ms).
    """
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])
    wide = kernel.shape[2] * kernel.shape[3] >= WIDE
    one_around = padding == [(1, 1)] * 2 or padding == "SAME" and kernel.shape[:2] == (3, 3)
    if wide and stride == 1 and one_around:
        return _convolve_wide(x, kernel)
    return _convolve(x, kernel, stride, padding)


def _convolve(x, kernel, stride=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve_wide(x, kernel):
    """Of stride 1 with one zero on every side."""
    if _few_pixels(x):
        return jax.lax.platform_dependent(x, kernel, cpu=_patch_product, default=_with_frame)
    return _with_frame(x, kernel)


def _convolve_wide_backward(saved, dy):
    x, kernel = saved
    _, gradients = jax.vjp(_with_frame, x, kernel)

    def product(dy):
        if _few_pixels(x):
            return jax.vjp(_patch_product, x, kernel)[1](dy)
        (dx,) = jax.vjp(lambda x: _with_frame(x, kernel), x)[1](dy)
        return dx, _kernel_gradient(x, _unfused(dy), kernel.shape[0])

    return jax.lax.platform_dependent(dy, cpu=product, default=gradients)


_convolve_wide.defvjp(lambda x, k: (_convolve_wide(x, k), (x, k)), _convolve_wide_backward)


def _with_frame(x, kernel):
    return _convolve(x, kernel, padding=[(1, 1)] * 2)


def _few_pixels(x):
    """Whether reading the kernel is the work, and not the products with it."""
    return x.shape[0] * x.shape[1] * x.shape[2] < x.shape[3]


def _patch_product(x, kernel):
    """The convolution as one product of all windows, side by side, with the kernel."""
    size = kernel.shape[0]
    rows, columns = (side + 3 - size for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = range(size)
    windows = [padded[:, i : i + rows, j : j + columns] for i in places for j in places]
    flat = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwi,io->bhwo", jnp.concatenate(windows, -1), flat)


def _kernel_gradient(x, dy, size):
    """f[B,H,W,in], f[B,H',W',out] -> f[size,size,in,out]: x times shifts of dy, over all pixels."""
    rows, columns, out = *x.shape[1:3], dy.shape[3]
    margin = (size - 2, size - 2)  # beyond the one zero around x, what its windows cover
    padded = jnp.pad(dy, ((0, 0), margin, margin, (0, 0)))
    places = range(size - 1, -1, -1)
    shifts = [padded[:, i : i + rows, j : j + columns] for i in places for j in places]
    product = jnp.einsum("bhwi,bhwo->io", x, jnp.concatenate(shifts, -1))
    return jnp.moveaxis(product.reshape(-1, size, size, out), 0, 2)


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


class Conv(nnx.Module):
    """Convolution with bias and size // 2 zeros on all sides; PyTorch's initial values.

    x    f[B, H, W, in]
    out  f[B, ceil(H / stride), ceil(W / stride), out] in the type of x
    Kernel and bias start uniform in +-1 / sqrt(fan in), or at 0 with `zero`.
    """

    def __init__(self, channels_in, channels, size, *, stride=1, zero=False, rngs: nnx.Rngs):
        bound = 0 if zero else 1 / math.sqrt(size * size * channels_in)
        draw = lambda shape: jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.kernel = nnx.Param(draw((size, size, channels_in, channels)))
        self.bias = nnx.Param(draw((channels,)))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        half = self.kernel.shape[0] // 2
        kernel = self.kernel[...].astype(x.dtype)
        y = convolve(x, kernel, self.stride, [(half, half)] * 2)
        return y + self.bias[...].astype(x.dtype)


def convolve_enlarged(x: jax.Array, conv: Conv) -> jax.Array:
    """The 3x3 convolution of x after every pixel was repeated 2x2: f[B,H,W,in] -> f[B,2H,2W,out].

    A 3x3 window over repeated pixels sees 2x2 different ones, so each of the four places that a
    pixel becomes has a 2x2 kernel of sums: 16 products in place of 36, and no enlarged input. Where
    pixels are few and channels many, the sums would cost more (CPU, 1x128x128, 256 channels: 174
    in place of 324 ms; 1x8x8, 1024 channels: 151 in place of 42 ms).
    """
    batch, height, width, channels_in = x.shape
    if batch * height * width < FOLDED * channels_in:
        return conv(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
    first = jnp.array([[1, 0, 0], [0, 1, 1]], jnp.float32)  # of 3 taps, those that fall on a pixel
    second = jnp.array([[1, 1, 0], [0, 0, 1]], jnp.float32)
    sums = jnp.stack([first, second])  # [place, tap of 2, tap of 3]
    kernel = jnp.einsum("aki,blj,ijco->klcabo", sums, sums, conv.kernel[...])
    channels = kernel.shape[-1]
    kernel = kernel.reshape(2, 2, channels_in, -1).astype(x.dtype)
    y = convolve(x, kernel, padding=[(1, 1)] * 2)
    y = y.reshape(batch, height + 1, width + 1, 2, 2, channels)
    rows = jnp.stack([y[:, a : a + height, :, a] for a in (0, 1)], 2)  # [B, H, 2, W+1, 2, out]
    both = jnp.stack([rows[:, :, :, b : b + width, b] for b in (0, 1)], 4)
    bias = conv.bias[...].astype(x.dtype)
    return both.reshape(batch, 2 * height, 2 * width, channels) + bias


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
