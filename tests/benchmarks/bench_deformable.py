"""Deformable attention here and on PyTorch's grid_sample, timed.

python tests/benchmarks/bench_deformable.py [torch] --what=core_forward|core_both|attention_...

One map of 128x256 (an image of 512x1024), 256 channels, 8 heads, 4 points, float32. Points lie
around their query, 2.5 cells away on average in each direction (normal).

core        only the sampling, from locations and weights to weighted sums
attention   with the projections of values, offsets, weights and output, from a query; ours projects
            the encoded positions before, since all steps of a prediction share that
forward     without gradients
both        with those of all inputs of the sampling, or of query and parameters; in training the
            positions are projected each time, here as in PyTorch
"""

import sys

from timing import compiled, jax_program, torch_program

H, W, HEADS, D, POINTS = 128, 256, 8, 32, 4
SPREAD = 2.5  # cells
WHATS = ("core_forward", "core_both", "attention_forward", "attention_both")


def draw():
    """What both sides read: numpy arrays by name."""
    import numpy as np

    generator = np.random.default_rng(0)
    normal = lambda *shape: generator.standard_normal(shape, np.float32)
    rows, columns = np.mgrid[:H, :W].astype(np.float32)
    cells = np.stack([(columns + 0.5) / W, (rows + 0.5) / H], -1).reshape(-1, 2)
    offsets = SPREAD * normal(1, H * W, HEADS, 1, POINTS, 2) / np.float32([W, H])
    weights = np.exp(normal(1, H * W, HEADS, 1, POINTS))
    dim = HEADS * D
    return dict(
        values=normal(1, H * W, HEADS, D), reference=cells,
        locations=cells[:, None, None, None] + offsets,
        weights=weights / weights.sum(-1, keepdims=True),
        query=normal(1, H * W, dim), positions=normal(H * W, dim), dy=normal(1, H * W, dim),
        kernel_offsets=SPREAD / dim**0.5 * normal(dim, HEADS * POINTS * 2),
        kernel_weights=normal(dim, HEADS * POINTS) / dim**0.5,
    )  # fmt: skip


# --- ours -----------------------------------------------------------------------------------------


def our_call(args):
    """A function of no arguments that runs one pass."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from diffseg_jax.layers.deformable import DeformableAttention, sample_points

    a = jax.device_put(draw())
    module = DeformableAttention(HEADS * D, HEADS, 1, POINTS, dtype=jnp.float32, rngs=nnx.Rngs(0))
    module.offsets.kernel[...], module.weights.kernel[...] = (
        a["kernel_offsets"],
        a["kernel_weights"],
    )
    graph, state = nnx.split(module)
    positions, (what, passes) = a["positions"], args.what.split("_")

    def core(values, locations, weights):
        return sample_points(values, ((H, W),), locations, weights)

    def attention(state, query, constants):
        return nnx.merge(graph, state)(query, constants, a["reference"], ((H, W),))

    def both(dy, positions, *inputs):
        def trained(state, query):
            return attention(state, query, nnx.merge(graph, state).constants(positions))

        out, pull = jax.vjp(trained if what == "attention" else core, *inputs)
        return out, pull(dy)

    function, inputs = core, (a["values"], a["locations"], a["weights"])
    if what == "attention":
        function, inputs = attention, (state, a["query"])
        if passes == "forward":
            inputs += (module.constants(positions),)
    if passes == "both":
        function, inputs = both, (a["dy"], positions, *inputs)
    run = jax.jit(function)
    return lambda: run(*inputs)


# --- PyTorch --------------------------------------------------------------------------------------


def torch_call(args):
    """The same of a plain PyTorch program: one grid_sample over all heads as images."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    device = torch.get_default_device()
    a = {name: torch.from_numpy(array).to(device) for name, array in draw().items()}
    dim, size = HEADS * D, torch.tensor([W, H])
    value, out = nn.Linear(dim, dim), nn.Linear(dim, dim)
    offsets, weights = nn.Linear(dim, HEADS * POINTS * 2), nn.Linear(dim, HEADS * POINTS)
    offsets.weight.data = a["kernel_offsets"].T.contiguous()
    weights.weight.data = a["kernel_weights"].T.contiguous()
    parameters = [p for layer in (value, out, offsets, weights) for p in layer.parameters()]

    def core(values, locations, weights):
        maps = values.permute(0, 2, 3, 1).reshape(-1, D, H, W)
        grid = (2 * locations[:, :, :, 0] - 1).transpose(1, 2).flatten(0, 1)
        samples = F.grid_sample(maps, grid, "bilinear", "zeros", align_corners=False)
        shares = weights[:, :, :, 0].transpose(1, 2).flatten(0, 1)[:, None]
        return (samples * shares).sum(-1).view(len(values), dim, -1).transpose(1, 2)

    def attention(query):
        asking = query + a["positions"]
        moves = offsets(asking).view(1, -1, HEADS, 1, POINTS, 2) / size
        shares = weights(asking).view(1, -1, HEADS, 1, POINTS).softmax(-1)
        points = a["reference"][:, None, None, None] + moves
        return out(core(value(query).view(1, -1, HEADS, D), points, shares))

    function, inputs, others = core, [a["values"], a["locations"], a["weights"]], []
    if args.what.startswith("attention"):
        function, inputs, others = attention, [a["query"]], parameters
    run = compiled(args, function)
    if args.what.endswith("forward"):
        return torch.no_grad()(lambda: run(*inputs))
    leaves = [x.requires_grad_() for x in (*inputs, *others)]
    return lambda: torch.autograd.grad(run(*inputs), leaves, a["dy"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["torch"]:
        del sys.argv[1]
        torch_program(__doc__, WHATS, torch_call)
    else:
        jax_program(__doc__, WHATS, our_call)
