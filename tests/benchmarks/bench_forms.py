"""Every special form of our layers beside what would run without it, timed on CPUs in one process.

python tests/benchmarks/bench_forms.py [--form=NAME,...] [--seconds=2]

Prints a line for each form and size: milliseconds without the form (plain) and with it (ours), the
medians of calls that alternate; plain / ours; and the largest difference as a share of the largest
value. "+" marks passes with gradients. Sizes are those of the published networks, in float32, their
batch that of a prediction or of a small train step. "same program" marks a size at which the layer
does not choose the form. Forms, what their sizes mean, and what is plain:

layers/conv.py, B x H x W x in x out; plain is XLA's convolution
  pointwise        1x1 convolutions as a matrix product
  patches          all windows of few pixels as one matrix
  filter_rows      minimal filtering; plain is `convolve` without it
  row_gradient     the backward pass of its 1x3 convolutions; plain is XLA's
  blocks           the kernel gradient by blocks of rows; plain is XLA's
  kernel_gradient  one product of all pixels for each tap, size of the kernel last; plain is XLA's
  image_gradient   a convolution with the flipped kernel, likewise
  stop_fusion      residual blocks in a row, their number x B x N x C of a transformer, x B x H x W
                   x C of ConvNeXt
  enlarged         a folded kernel on the small map; plain enlarges the map first
layers/depthwise.py, B x H x W x C x size of the kernel; plain is XLA's grouped convolution
  depthwise, depthwise_halved
  finished         with a layer norm after it; plain lets XLA fuse the sum into the norm
  taps             the kernel gradient by blocks; plain is a sum over all pixels for each tap
layers/pieces.py; plain is the module in training mode, which processes all rows together
  pieces           a ConvNeXt block in evaluation, B x H x W x C
  few_rows         the same where rows are few and computed once
  map_pieces       a layer of the map decoder, H x W x C
others
  group_norm       layers/norm.py and a SiLU, B x H x W x C x groups; plain is nnx.GroupNorm
  gelu             layers/mlp.py, rows x C; plain is jax.nn.gelu
  attend           layers/attention.py, B x N x heads x d; plain is jax.nn.dot_product_attention
  attend_windows   the same, heads first and with biases, whose inputs plain transposes
  by_rows          layers/mlp.py, rows of any axes x in x out; plain is a product of these axes
  sample           layers/deformable.py, H x W x heads x points x d; plain is the gradient of the
                   gathers
"""

import argparse
import contextlib
import dataclasses
import functools
import re
import statistics
import sys
import timeit
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from random_network import random_values

from diffseg_jax.layers import conv, deformable, depthwise
from diffseg_jax.layers.attention import attend
from diffseg_jax.layers.mlp import by_rows, gelu
from diffseg_jax.layers.norm import GroupNorm
from diffseg_jax.models import convnext, transunet
from diffseg_jax.models.map_decoder import MapDecoderLayer, reference_points
from diffseg_jax.models.network import Network

LEAST, MOST = 3, 100  # calls of each side


# --- inputs and networks --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two functions of the same arithmetic.

    plain_inputs  those of plain, where they are others
    off           a context in which plain is traced, with its gradients
    """

    ours: Callable
    plain: Callable
    inputs: tuple
    plain_inputs: tuple = ()
    off: contextlib.AbstractContextManager = contextlib.nullcontext()


def without(ours, inputs, module, **attributes):
    """Ours, and the same while attributes of a module have other values."""
    return Pair(ours, ours, inputs, off=mock.patch.multiple(module, **attributes))


def normal(*shape, seed=0):
    """Values f32[shape] of deviation 1."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def kernel_of(size, channels_in, channels):
    """A kernel f32[size,size,in,out] that keeps the deviation of values."""
    return normal(size, size, channels_in, channels, seed=1) / (size * channels_in**0.5)


def layer_of(make):
    """(network, its random values) of a layer made by make(rngs)."""
    network = Network(make)
    return network, random_values(network)


def same(x):
    return x


# --- layers/conv.py -------------------------------------------------------------------------------


def pointwise(b, h, w, channels_in, channels):
    inputs = normal(b, h, w, channels_in), kernel_of(1, channels_in, channels)
    return Pair(conv.convolve, conv._convolve, inputs)


def patches(b, h, w, channels_in, channels):
    inputs = normal(b, h, w, channels_in), kernel_of(3, channels_in, channels)
    return Pair(conv._patch_product, conv._with_frame, inputs)


def filter_rows(b, h, w, channels_in, channels):
    inputs = normal(b, h, w, channels_in), kernel_of(3, channels_in, channels)
    return without(conv.convolve, inputs, conv, MIN_FILTERED=(np.inf, np.inf))


def row_gradient(b, h, w, channels_in, channels):
    plain = lambda x, kernel: conv._convolve(x, kernel[None], padding=[(0, 0), (1, 1)])
    inputs = normal(b, h, w, channels_in), kernel_of(3, channels_in, channels)[0]
    return Pair(conv._convolve_row, plain, inputs)


def blocks(*sizes):
    return dataclasses.replace(kernel_gradient(*sizes, 3), ours=conv._by_blocks)


def kernel_gradient(b, h, w, channels_in, channels, size):
    def plain(x, dy):
        kernel = jax.ShapeDtypeStruct((size, size, channels_in, channels), x.dtype)
        return jax.linear_transpose(lambda kernel: conv._with_frame(x, kernel), kernel)(dy)[0]

    ours = lambda x, dy: conv._by_taps(x, dy, size)
    dy = normal(b, h + 3 - size, w + 3 - size, channels, seed=2)
    return Pair(ours, plain, (normal(b, h, w, channels_in), dy))


def image_gradient(b, h, w, channels_in, channels, size):
    def plain(dy, kernel):
        x = jax.ShapeDtypeStruct((b, h, w, channels_in), dy.dtype)
        return jax.linear_transpose(lambda x: conv._with_frame(x, kernel), x)(dy)[0]

    dy = normal(b, h + 3 - size, w + 3 - size, channels)
    return Pair(conv._image_gradient, plain, (dy, kernel_of(size, channels_in, channels)))


def stop_fusion(kind, blocks, b, *sizes):
    """Blocks of the networks that stop it, without dropout."""
    channels = sizes[-1]
    module, make, *others = dict(
        vit=(transunet, lambda rngs: transunet.EncoderLayer(
            channels, channels // 64 or 1, 4 * channels, rate=0.0,
            arithmetic=conv.Arithmetic.PORT, dtype=jnp.float32, rngs=rngs), None),
        convnext=(convnext, lambda rngs: convnext.ConvNeXtBlock(
            channels, rate=0.0, name="block", dtype=jnp.float32, rngs=rngs)),
    )[kind]  # fmt: skip
    network, values = layer_of(make)

    def ours(all_values, x):
        for values in all_values:
            x = network.bind(**values)(x, *others)
        return x

    return without(ours, ([values] * blocks, normal(b, *sizes)), module, stop_fusion=same)


def enlarged(b, h, w, channels_in, channels):
    network, values = layer_of(lambda rngs: conv.Conv(channels_in, channels, 3, rngs=rngs))
    ours = lambda values, x: conv.convolve_enlarged(x, network.bind(**values))
    plain = lambda values, x: network.bind(**values)(conv.enlarge(x))
    return Pair(ours, plain, (values, normal(b, h, w, channels_in)))


# --- layers/depthwise.py --------------------------------------------------------------------------


def map_and_taps(b, h, w, channels, size):
    return normal(b, h, w, channels), normal(size, size, 1, channels, seed=1) / size


def depthwise_form(ours, plain):
    return lambda *sizes: Pair(ours, plain, map_and_taps(*sizes))


def finished(b, h, w, channels, size):
    network, values = layer_of(lambda rngs: convnext._layer_norm(channels, rngs))
    ours = lambda values, *inputs: network.bind(**values)(depthwise._shifted_sum(*inputs))
    inputs = values, *map_and_taps(b, h, w, channels, size)
    return without(ours, inputs, depthwise, _finished=same)


def taps(b, h, w, channels, size):
    def plain(x, dy):
        padded = depthwise._frame(x, size // 2)
        sums = [
            jnp.sum(padded[:, i : i + h, j : j + w] * dy, (0, 1, 2))
            for i in range(size)
            for j in range(size)
        ]
        return jnp.stack(sums).reshape(size, size, 1, channels)

    ours = lambda x, dy: depthwise._kernel_gradient(x, dy, size)
    return Pair(ours, plain, (normal(b, h, w, channels), normal(b, h, w, channels, seed=2)))


# --- layers/pieces.py -----------------------------------------------------------------------------


def convnext_block(b, h, w, channels):
    network, values = layer_of(lambda rngs: convnext.ConvNeXtBlock(
        channels, rate=0.0, name="block", dtype=jnp.float32, rngs=rngs))  # fmt: skip
    ours = lambda values, x: network.bind_eval(**values)(x)
    plain = lambda values, x: network.bind(**values)(x)
    return Pair(ours, plain, (values, normal(b, h, w, channels)))


def map_pieces(h, w, channels):
    network, values = layer_of(lambda rngs: MapDecoderLayer(
        channels, 8, 4, 4 * channels, timed=False, dtype=jnp.float32, rngs=rngs))  # fmt: skip
    run = lambda layer, *inputs: layer(*inputs, (h, w))
    ours = lambda values, *inputs: run(network.bind_eval(**values), *inputs)
    plain = lambda values, *inputs: run(network.bind(**values), *inputs)
    inputs = normal(1, h * w, channels), normal(h * w, 3 * 8 * 4), normal(1, 2 * channels)
    return Pair(ours, plain, (values, *inputs, reference_points((h, w))))


# --- others ---------------------------------------------------------------------------------------


def group_norm(b, h, w, channels, groups):
    options = dict(num_groups=groups, use_fast_variance=False, epsilon=1e-5)
    network, values = layer_of(lambda rngs: GroupNorm(channels, groups))
    other, _ = layer_of(lambda rngs: nnx.GroupNorm(channels, rngs=rngs, **options))
    ours, plain = (
        lambda values, x, network=network: nnx.silu(network.bind(**values)(x))
        for network in (network, other)
    )
    return Pair(ours, plain, (values, normal(b, h, w, channels)))


def gelu_of(rows, channels):
    plain = functools.partial(jax.nn.gelu, approximate=False)
    return Pair(gelu, plain, (normal(rows, channels),))


def tokens(b, n, heads, d):
    """Queries, keys and values f32[B,N,heads,d], queries scaled."""
    query, key, value = (normal(b, n, heads, d, seed=seed) for seed in range(3))
    return query / d**0.5, key, value


def attend_of(*sizes):
    plain = lambda query, key, value: jax.nn.dot_product_attention(query, key, value, scale=1.0)
    return Pair(attend, plain, tokens(*sizes))


def attend_windows(b, n, heads, d):
    swap = lambda x: x.swapaxes(1, 2)

    def plain(query, key, value, bias):
        out = jax.nn.dot_product_attention(*map(swap, (query, key, value)), bias, scale=1.0)
        return swap(out)

    inputs = *map(swap, tokens(b, n, heads, d)), normal(1, heads, n, n)
    return Pair(functools.partial(attend, heads_first=True), plain, inputs)


def matrix_product(*sizes):
    *rows, channels_in, channels = sizes
    return Pair(by_rows, jnp.matmul, (normal(*rows, channels_in), normal(channels_in, channels)))


def sample(h, w, heads, points, d):
    """Points lie around their query, 2.5 cells away on average in each direction (normal)."""
    offsets = 2.5 * normal(1, h * w, heads, points, 2) / np.float32([w, h])
    weights = np.exp(normal(1, h * w, heads, points, seed=1))
    locations = reference_points((h, w))[:, None, None] + offsets
    maps = normal(1, h, w, heads, d, seed=2)
    inputs = maps, locations, weights / weights.sum(-1, keepdims=True)
    return Pair(deformable._sample, deformable.bilinear_sums, inputs)


FORMS = dict(
    pointwise=pointwise, patches=patches, filter_rows=filter_rows, row_gradient=row_gradient,
    blocks=blocks, kernel_gradient=kernel_gradient, image_gradient=image_gradient,
    stop_fusion=stop_fusion, enlarged=enlarged,
    depthwise=depthwise_form(depthwise.depthwise, depthwise._grouped),
    depthwise_halved=depthwise_form(depthwise.depthwise_halved, depthwise._grouped_halved),
    finished=finished, taps=taps,
    pieces=convnext_block, few_rows=convnext_block, map_pieces=map_pieces,
    group_norm=group_norm, gelu=gelu_of, attend=attend_of, attend_windows=attend_windows,
    by_rows=matrix_product, sample=sample,
)  # fmt: skip
CASES = (  # form, sizes, whether with gradients; the networks that have these sizes
    ("pointwise", (1, 64, 64, 1024, 512), False),  # LSUN network
    ("pointwise", (4, 56, 56, 64, 256), True),  # TransUNet
    ("patches", (1, 8, 8, 1024, 1024), False),  # LSUN network
    ("patches", (2, 8, 8, 1024, 1024), True),
    ("filter_rows", (1, 256, 256, 256, 256), False),
    ("filter_rows", (1, 64, 64, 512, 512), False),
    ("filter_rows", (8, 64, 64, 128, 128), True),  # 100 million parameters on 64x64 pixels
    ("row_gradient", (8, 16, 64, 128, 128), True),
    ("blocks", (4, 28, 28, 128, 128), False),  # TransUNet
    ("blocks", (4, 112, 112, 192, 64), False),
    ("blocks", (4, 112, 112, 64, 64), False),
    ("blocks", (4, 224, 224, 16, 16), False),
    ("kernel_gradient", (4, 14, 14, 256, 256, 3), False),
    ("kernel_gradient", (4, 28, 28, 1024, 256, 3), False),
    ("image_gradient", (4, 112, 112, 192, 64, 3), False),
    ("image_gradient", (8, 32, 32, 256, 1024, 2), False),  # of `enlarged`
    ("stop_fusion", ("vit", 12, 1, 196, 768), True),  # TransUNet
    ("stop_fusion", ("convnext", 9, 1, 32, 64, 384), True),  # ConvNeXt-T
    ("enlarged", (1, 128, 128, 256, 256), False),  # LSUN network
    ("enlarged", (8, 32, 32, 256, 256), True),
    ("depthwise", (1, 128, 256, 96, 7), False),  # ConvNeXt-T
    ("depthwise", (2, 64, 128, 96, 7), True),
    ("depthwise_halved", (1, 180, 240, 96, 3), False),  # EfficientNet-Lite0
    ("finished", (1, 128, 256, 96, 7), False),
    ("taps", (2, 64, 128, 96, 7), False),
    ("pieces", (1, 128, 256, 96), False),
    ("few_rows", (1, 32, 64, 384), False),
    ("map_pieces", (128, 256, 256), False),  # DDP
    ("group_norm", (1, 128, 256, 256, 32), False),
    ("group_norm", (1, 256, 256, 256, 32), False),  # LSUN network
    ("group_norm", (8, 64, 64, 128, 32), True),
    ("group_norm", (4, 112, 112, 64, 32), True),  # TransUNet
    ("gelu", (8192, 1024), False),
    ("gelu", (8192, 1024), True),
    ("attend", (1, 1024, 8, 64), False),  # LSUN network
    ("attend", (4, 196, 12, 64), True),  # TransUNet
    ("attend_windows", (200, 49, 3, 32), True),  # Swin-T
    ("by_rows", (1, 64, 64, 96, 384), True),  # Swin-T
    ("by_rows", (4, 196, 768, 3072), True),  # TransUNet
    ("by_rows", (4, 56, 56, 64, 256), True),
    ("sample", (128, 256, 8, 4, 32), True),  # DDP
)


# --- timing ---------------------------------------------------------------------------------------


def compiled(function, inputs, gradients):
    """A function of no arguments that runs the compiled one, and its program as text."""

    def call(dy, *inputs):
        if dy is None:
            return function(*inputs)
        out, pull = jax.vjp(function, *inputs)
        return out, pull(dy)

    dy = normal(*jax.eval_shape(function, *inputs).shape, seed=3) if gradients else None
    inputs = jax.device_put((dy, *inputs))
    program = jax.jit(call).lower(*inputs).compile()
    # Without the places in the source, which differ, and their table.
    text = re.sub(r'(?m), metadata=\{[^}]*\}|^\d+ ["{].*\n', "", program.as_text())
    return lambda: jax.block_until_ready(program(*inputs)), text


def difference(ours, plain):
    """The largest |ours - plain| as a share of the largest |plain|, in all arrays together."""
    largest = lambda arrays: max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(arrays))
    return largest(jax.tree.map(jnp.subtract, ours, plain)) / largest(plain)


def measure(form, sizes, gradients, seconds):
    """Milliseconds of calls, plain and ours; their difference; whether both are one program."""
    pair = FORMS[form](*sizes)
    with pair.off:
        plain, plain_text = compiled(pair.plain, pair.plain_inputs or pair.inputs, gradients)
    ours, text = compiled(pair.ours, pair.inputs, gradients)
    apart, times = difference(ours(), plain()), ([], [])
    start = timeit.default_timer()
    while len(times[0]) < LEAST or (
        len(times[0]) < MOST and timeit.default_timer() - start < seconds
    ):
        for taken, run in zip(times, (plain, ours)):
            taken.append(1000 * timeit.timeit(run, number=1))
    return *times, apart, text == plain_text


def line(form, sizes, gradients, plain, ours, apart, is_same):
    label = "x".join(map(str, sizes)) + "+" * gradients
    plain, ours = map(statistics.median, (plain, ours))
    numbers = f"{plain:9.2f} {ours:9.2f} {plain / ours:6.2f} {apart:8.1e}"
    return f"{form:16} {label:21} {numbers}{'  same program' * is_same}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", default="", help="names of forms, by commas; all without it")
    parser.add_argument("--seconds", type=float, default=2, help="that each case is repeated for")
    args = parser.parse_args()
    names = args.form.split(",") if args.form else list(FORMS)
    if unknown := set(names) - set(FORMS):
        sys.exit(f"error: no form {', '.join(sorted(unknown))}. Known: {', '.join(FORMS)}.")
    jax.config.update("jax_platforms", "cpu")
    print(f"{'form':16} {'sizes':21} {'plain ms':>9} {'ours ms':>9} {'ratio':>6} difference")
    for case in CASES:
        if case[0] in names:
            print(line(*case, *measure(*case, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
