"""Deformable attention here and on PyTorch's grid_sample, in turn, each in its own process.

python tests/benchmarks/bench_deformable.py [--torch-python PATH] [--rounds 3]

One map of 128x256 (an image of 512x1024), 256 channels, 8 heads, 4 points, float32, two threads.
Points lie around their query, 2.5 cells away on average in each direction (normal).

core        only the sampling, from locations and weights to weighted sums
attention   with the projections of values, offsets, weights and output, from a query

`forward` and `both` (forward and backward, all gradients) in ms, the best of all rounds; `ratio` is
torch / ours (above 1 = we are faster).

Measured 2026-11-21 with PyTorch 2.13.0 and jax 0.10.2 on 2 cores (Intel Xeon of family 6, model
207, with AVX-512), nothing else running, two rounds, ms of ours and torch: core forward 75 and 178,
core both 274 and 582, attention forward 150 and 267, attention both 535 and 712.
"""

import argparse
import json
import subprocess
import sys
import timeit

H, W, HEADS, D, POINTS = 128, 256, 8, 32, 4
SPREAD = 2.5  # cells
REPEATS = 5
WHATS = ("core forward", "core both", "attention forward", "attention both")


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


def our_calls():
    """Functions of no arguments by name, each running one pass to its end."""
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
    constants = module.constants(a["positions"])

    def core(values, locations, weights):
        return sample_points(values, ((H, W),), locations, weights)

    def attention(state, query, constants):
        return nnx.merge(graph, state)(query, constants, a["reference"], ((H, W),))

    def both(function):
        def run(dy, *inputs):
            out, pull = jax.vjp(function, *inputs)
            return out, pull(dy)

        return run

    def call(function, *inputs):
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*inputs))

    sampled, attended = (a["values"], a["locations"], a["weights"]), (state, a["query"], constants)
    return dict(zip(WHATS, (
        call(core, *sampled), call(both(core), a["dy"], *sampled),
        call(attention, *attended), call(both(attention), a["dy"], *attended),
    )))  # fmt: skip


# --- PyTorch --------------------------------------------------------------------------------------


def torch_calls(threads=2):
    """The same of a plain PyTorch program: one grid_sample over all heads as images."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(threads)
    a = {name: torch.from_numpy(array) for name, array in draw().items()}
    dim = HEADS * D
    value, out = nn.Linear(dim, dim), nn.Linear(dim, dim)
    offsets, weights = nn.Linear(dim, HEADS * POINTS * 2), nn.Linear(dim, HEADS * POINTS)
    offsets.weight.data, weights.weight.data = a["kernel_offsets"].T, a["kernel_weights"].T
    parameters = [p for layer in (value, out, offsets, weights) for p in layer.parameters()]

    def core(values, locations, weights):
        maps = values.permute(0, 2, 3, 1).reshape(-1, D, H, W)
        grid = (2 * locations[:, :, :, 0] - 1).transpose(1, 2).flatten(0, 1)
        samples = F.grid_sample(maps, grid, "bilinear", "zeros", align_corners=False)
        shares = weights[:, :, :, 0].transpose(1, 2).flatten(0, 1)[:, None]
        return (samples * shares).sum(-1).view(len(values), dim, -1).transpose(1, 2)

    def attention(query):
        asking = query + a["positions"]
        moves = offsets(asking).view(1, -1, HEADS, 1, POINTS, 2) / torch.tensor([W, H])
        shares = weights(asking).view(1, -1, HEADS, 1, POINTS).softmax(-1)
        points = a["reference"][:, None, None, None] + moves
        return out(core(value(query).view(1, -1, HEADS, D), points, shares))

    def both(function, inputs, others=()):
        leaves = [x.requires_grad_() for x in (*inputs, *others)]
        return lambda: torch.autograd.grad(function(*inputs), leaves, a["dy"])

    sampled = a["values"], a["locations"], a["weights"]
    forward = torch.no_grad()
    return dict(zip(WHATS, (
        forward(lambda: core(*sampled)), both(core, sampled),
        forward(lambda: attention(a["query"])), both(attention, (a["query"],), parameters),
    )))  # fmt: skip


# --- both sides -----------------------------------------------------------------------------------


def time_calls(calls):
    """Prints one JSON line: the seconds of every call, by name."""
    line = {}
    for what, call in calls.items():
        call()  # compile, warm up
        line[what] = timeit.repeat(call, number=1, repeat=REPEATS)
    print(json.dumps(line))


def measure(python, side):
    """The seconds that one side prints, run by `python`."""
    command = [python, __file__, f"--side={side}"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "torch"), help="time one side in this process")
    args = parser.parse_args()
    if args.side:
        return time_calls(our_calls() if args.side == "ours" else torch_calls())
    best = {side: dict.fromkeys(WHATS, float("inf")) for side in ("ours", "torch")}
    for _ in range(args.rounds):
        for side, python in (("ours", sys.executable), ("torch", args.torch_python)):
            for what, seconds in measure(python, side).items():
                best[side][what] = min(best[side][what], *seconds)
    print("                   ours ms  torch ms  ratio")
    for what in WHATS:
        ours, theirs = best["ours"][what], best["torch"][what]
        print(f"{what:18} {1e3 * ours:8.0f} {1e3 * theirs:9.0f} {theirs / ours:6.2f}")


if __name__ == "__main__":
    main()
