"""2-d convolutions: plain, after upsampling, and with a standardised kernel."""

import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.layers.mlp import by_rows

MIN_FOLDED_RATIO = 4  # minimum pixels per input channel for which a folded kernel is faster
MIN_WIDE = 64 * 128  # minimum in * out channels for other algorithms of the forward pass on CPUs
MIN_BLOCKED = 576  # minimum pixels of an image for `_by_blocks`
BLOCKED = range(8, 129)  # numbers of channels for it, on the side that has fewer
BLOCK = 131072  # values of all windows of a block, which stay in the cache
MIN_FILTERED = (4096, 128)  # minimum pixels and channels on both sides for `_filter_rows`
ROWS_IN = (  # minimal filtering F(4, 3): Lavin and Gray (2016), section 4.3
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
ROWS_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
ROWS_OUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class Arithmetic(enum.Enum):
    """The program whose padding, pooling and norms a TransUNet follows.

    .docs/denoising_pretraining.md lists the differences.
    """

    OFFICIAL = "official"  # JAX, with which the released encoder weights were trained
    PORT = "port"  # PyTorch, which loads them


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    """f[B,H,W,in] * f[h,w,in,out] -> f[B,H',W',out], in the dtype of x.

    A 1x1 convolution is computed as a matrix product, which XLA's CPU backend runs faster than a
    convolution of the same size (`bench_forms.py --form=pointwise`). On CPUs, convolutions of many
    channels or pixels and stride 1 use other algorithms:

    - the kernel gradient is a sum of products of blocks of pixels, or one product of all pixels for
      each tap, in place of XLA's gradient (`bench_forms.py --form=blocks,kernel_gradient`);
    - where pixels are fewer than channels, all windows side by side make one product
      (`bench_forms.py --form=patches`);
    - large ones in float32 need half the multiplications, see `_filter_rows`
      (`bench_forms.py --form=filter_rows`).
    """
    if kernel.shape[:2] == (1, 1):
        return by_rows(x[:, ::stride, ::stride], kernel[0, 0])
    one_around = padding == [(1, 1)] * 2 or padding == "SAME" and kernel.shape[:2] == (3, 3)
    if stride == 1 and one_around and (_wide(kernel) or _blocked(x, kernel)):
        return _convolve_framed(x, kernel)
    return _convolve(x, kernel, stride, padding)


def _convolve(x, kernel, stride=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve_framed(x, kernel):
    """Stride 1, with one zero of padding on every side."""
    if (cpu := _cpu_form(x, kernel)) is _with_frame:
        return _with_frame(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=_with_frame)


def _convolve_framed_backward(saved, dy):
    x, kernel = saved

    def gradients(dy):
        of_image = jax.linear_transpose(lambda x: _with_frame(x, kernel), x)
        of_kernel = jax.linear_transpose(lambda kernel: _with_frame(x, kernel), kernel)
        return *of_image(dy), *of_kernel(dy)

    def products(dy):
        dy, form = unfused(dy), _cpu_form(x, kernel)
        if form is not _with_frame:
            return jax.vjp(form, x, kernel)[1](dy)
        return _image_gradient(dy, kernel), _kernel_gradient(x, dy, kernel)

    return jax.lax.platform_dependent(dy, cpu=products, default=gradients)


_convolve_framed.defvjp(lambda x, k: (_convolve_framed(x, k), (x, k)), _convolve_framed_backward)


def _with_frame(x, kernel):
    return _convolve(x, kernel, padding=[(1, 1)] * 2)


def _cpu_form(x, kernel):
    """The fastest algorithm on a CPU for these shapes."""
    pixels = _least(x.shape[:3])
    if not _wide(kernel):
        return _with_frame
    if _few_pixels(x):
        return _patch_product
    large = pixels >= MIN_FILTERED[0] and min(kernel.shape[2:]) >= MIN_FILTERED[1]
    if large and kernel.shape[0] == 3 and x.dtype == jnp.float32:
        return _filter_rows
    return _with_frame


def _image_gradient(dy, kernel):
    """The gradient of the image: dy convolved with the flipped kernel."""
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    if kernel.shape[0] == 2:  # windows of a 2x2 kernel lie on the corners between pixels
        return _patch_product(dy, flipped, frame=0)
    return _cpu_form(dy, flipped)(dy, flipped)


def _filter_rows(x, kernel):
    """The 3x3 convolution by Winograd's minimal filtering F(4, 3) along rows, direct along columns.

    Four output rows cost six products with a 1x3 kernel instead of twelve. Outputs differ from
    those of a direct convolution by about 1e-5 of their size in float32.
    """
    rows = x.shape[1]
    blocks = -(-rows // 4)
    padded = jnp.pad(x, ((0, 0), (1, 4 * blocks - rows + 1), (0, 0), (0, 0)))
    taken = _combine(ROWS_IN, [padded[:, j : j + 4 * blocks : 4] for j in range(6)])
    kernels = jnp.einsum("ai,ijco->ajco", np.float32(ROWS_KERNEL), kernel)
    products = [_convolve_row(taken[a], kernels[a]) for a in range(6)]
    made = jnp.stack(_combine(ROWS_OUT, products), 2)  # [B, blocks, 4, W, out]
    return made.reshape(x.shape[0], 4 * blocks, *made.shape[3:])[:, :rows]


@jax.custom_vjp
def _convolve_row(x, kernel):
    """A 1x3 convolution, kernel f32[3,in,out], with one zero on the left and on the right."""
    return _convolve(x, kernel[None], padding=[(0, 0), (1, 1)])


def _convolve_row_backward(saved, dy):
    x, kernel = map(unfused, saved)
    dy, columns = unfused(dy), x.shape[2]
    padded = jnp.pad(dy, ((0, 0), (0, 0), (1, 1), (0, 0)))
    shifts = [padded[:, :, j : j + columns] for j in (2, 1, 0)]
    dk = jnp.stack([jnp.einsum("bhwi,bhwo->io", x, shift) for shift in shifts])
    return _convolve_row(dy, jnp.swapaxes(kernel[::-1], 1, 2)), dk


_convolve_row.defvjp(lambda x, k: (_convolve_row(x, k), (x, k)), _convolve_row_backward)


def _combine(matrix, arrays):
    """Sums of the arrays with the weights of each row of the matrix."""
    return [sum(w * a for w, a in zip(weights, arrays) if w) for weights in matrix]


def _wide(kernel):
    return kernel.shape[2] * kernel.shape[3] >= MIN_WIDE


def _few_pixels(x):
    """Whether reading the kernel takes longer than multiplying by it."""
    return _least(x.shape[:3]) < x.shape[3]


def _least(sizes):
    """Their product; one that is known only when an exported program runs counts as 1."""
    return math.prod(n for n in sizes if isinstance(n, int))


def _patch_product(x, kernel, frame=1):
    """The convolution as one matrix product of all windows with the kernel."""
    size = kernel.shape[0]
    rows, columns = (side + 2 * frame + 1 - size for side in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (frame, frame), (frame, frame), (0, 0)))
    offsets = range(size)
    windows = [padded[:, i : i + rows, j : j + columns] for i in offsets for j in offsets]
    flat = kernel.reshape(-1, kernel.shape[-1])
    return by_rows(jnp.concatenate(windows, -1), flat)


def _blocked(x, kernel):
    """Whether blocks sum the kernel gradient: they need many pixels, and sums smaller than blocks.

    Their loop over images would gather those of other devices.
    """
    few = min(kernel.shape[2:]) in BLOCKED and kernel.shape[0] == 3
    return few and _least(x.shape[1:3]) >= MIN_BLOCKED and jax.device_count() == 1


def _kernel_gradient(x, dy, kernel):
    """f[B,H,W,in], f[B,H',W',out] -> f[h,w,in,out]: x times shifts of dy, over all pixels."""
    return _by_blocks(x, dy) if _blocked(x, kernel) else _by_taps(x, dy, kernel.shape[0])


def _by_blocks(x, dy):
    """f[3,3,in,out]: products of pixels of one side and windows around them of the other.

    The windows of some rows of an image are made and multiplied while they are in the cache, so
    neither map is read once for every tap (`bench_forms.py --form=blocks`).
    """
    turned = x.shape[3] < dy.shape[3]  # windows are those of the side with fewer channels
    plain, seen, taps = (dy, x, (0, 1, 2)) if turned else (x, dy, (2, 1, 0))
    batch, height, width, channels = plain.shape
    window = 9 * seen.shape[3]
    blocks = -(-height // max(1, BLOCK // (width * window)))  # of an image
    rows = -(-height // blocks)  # of a block
    after = blocks * rows - height
    plain = jnp.pad(plain, ((0, 0), (0, after), (0, 0), (0, 0)))
    seen = jnp.pad(seen, ((0, 0), (1, 1 + after), (1, 1), (0, 0)))

    def add(step, total):
        start = step // blocks, step % blocks * rows, 0, 0
        given = jax.lax.dynamic_slice(plain, start, (1, rows, *plain.shape[2:]))
        block = jax.lax.dynamic_slice(seen, start, (1, rows + 2, *seen.shape[2:]))
        taken = [block[:, i : i + rows, j : j + width] for i in taps for j in taps]
        pixels = given.reshape(-1, channels).T
        windows = jnp.concatenate(taken, -1).reshape(-1, window)
        return total + jnp.dot(pixels, windows, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, batch * blocks, add, jnp.zeros((channels, window), jnp.float32))
    total = total.reshape(channels, 3, 3, -1)
    return jnp.moveaxis(total, 0, 3 if turned else 2).astype(x.dtype)


def _by_taps(x, dy, size):
    """One product of all pixels for each tap."""
    rows, columns = x.shape[1:3]
    margin = (size - 2, size - 2)  # pixels that windows cover beyond the one zero around x
    padded = jnp.pad(dy, ((0, 0), margin, margin, (0, 0)))
    offsets = range(size - 1, -1, -1)
    shifts = [padded[:, i : i + rows, j : j + columns] for i in offsets for j in offsets]
    products = [jnp.einsum("bhwi,bhwo->io", x, shift) for shift in shifts]
    return jnp.stack(products).reshape(size, size, *products[0].shape)


@jax.custom_vjp
def stop_fusion(x: jax.Array) -> jax.Array:
    """x itself; on CPUs its gradient is computed only once.

    Otherwise XLA's CPU backend recomputes the gradient of a residual stream, a sum over all later
    layers, wherever it is read (`bench_forms.py --form=stop_fusion`), and compiles it as often.
    """
    return x


def unfused(x):
    """x / 1: XLA does not repeat divisions, and drops `optimization_barrier` before it fuses."""
    return x / (1 + 0 * x)


def _stop_fusion_backward(_, dy):
    return (jax.lax.platform_dependent(dy, cpu=unfused, default=lambda dy: dy),)


stop_fusion.defvjp(lambda x: (x, None), _stop_fusion_backward)


class Conv(nnx.Module):
    """Convolution with bias; PyTorch's initial values.

    x        f[B, H, W, in]
    out      f[B, H', W', out] in the dtype of x
    padding  zeros (before, after) along both axes, by default size // 2: H' is ceil(H / stride)
    Kernel and bias start uniform in +-1 / sqrt(fan in), or at 0 with `zero`.
    """

    def __init__(
        self, channels_in, channels, size, *, stride=1, padding=None, zero=False, rngs: nnx.Rngs
    ):
        bound = 0 if zero else 1 / math.sqrt(size * size * channels_in)
        draw = lambda shape: jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.kernel = nnx.Param(draw((size, size, channels_in, channels)))
        self.bias = nnx.Param(draw((channels,)))
        self.stride = stride
        self.padding = padding or (size // 2, size // 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        y = convolve(x, kernel, self.stride, [self.padding] * 2)
        return y + self.bias[...].astype(x.dtype)


def enlarge(x: jax.Array) -> jax.Array:
    """Repeats every pixel in a 2x2 block: f[B,H,W,C] -> f[B,2H,2W,C]."""
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def convolve_enlarged(x: jax.Array, conv: Conv) -> jax.Array:
    """The 3x3 convolution of `enlarge(x)`: f[B,H,W,in] -> f[B,2H,2W,out].

    A 3x3 window over repeated pixels sees 2x2 different ones, so each of the four output positions
    of a pixel has a 2x2 kernel of sums: 16 products instead of 36, and no enlarged input
    (`bench_forms.py --form=enlarged`). Where pixels are few and channels many, the sums would cost
    more.
    """
    batch, height, width, channels_in = x.shape
    if _least((batch, height, width)) < MIN_FOLDED_RATIO * channels_in:
        return conv(enlarge(x))
    first = jnp.array([[1, 0, 0], [0, 1, 1]], jnp.float32)  # which of 3 taps fall on a pixel
    second = jnp.array([[1, 1, 0], [0, 0, 1]], jnp.float32)
    sums = jnp.stack([first, second])  # [position, tap of 2, tap of 3]
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
    out  f[B, ceil(H / stride), ceil(W / stride), out] in the dtype of x
    Padding is SAME in `official` (an odd pixel goes after), k // 2 on both sides in `port`.
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
