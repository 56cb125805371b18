"""Our DDP with ConvNeXt-T and the plain PyTorch one of torch_ddp.py, in turn, each in a process.

python tests/benchmarks/bench_ddp.py [--torch-python PATH] [--rounds 1] [--steps 1 3]

One image of 512x1024, 19 classes, float32, the published size; from normalised pixels to logits of
the image's size. `ours` and `torch` are the best seconds of all rounds, `ratio` is torch / ours
(above 1 = we are faster), `MB` the peak of resident memory (ours includes compilation), `first s`
our first call, mostly compilation. Then the shares: every part alone, compiled and timed by itself
and multiplied by how often it runs, in seconds and GFLOP/s; within the network the decoder is
faster, because it applies each layer to 1024 tokens at a time.

Measured 2026-11-21 with PyTorch 2.13.0 and jax 0.10.2 on 2 cores (Intel Xeon of family 6, model
207, with AVX-512), nothing else running, two rounds: 1 step 2.65 and 4.48 s, 1325 and 1055 MB;
3 steps 5.93 and 11.05 s, 1375 and 1142 MB; backbone 0.55 s, neck 0.26 s, a layer's attention 0.15 s
and feed-forward 0.23 s, enlarging 0.06 s. A large matrix product reached 240 GFLOP/s.
"""

import argparse
import functools
import json
import math
import resource
import subprocess
import sys
import timeit
from pathlib import Path

SIZE, CLASSES, REPEATS = (512, 1024), 19, 3
HERE = Path(__file__).parent


# --- our side, in a process of its own ------------------------------------------------------------


def make():
    """(network, values by numpy, image): the published size, no parameter zero."""
    import jax
    import numpy as np

    from diffseg_jax.models.ddp_network import DDPSettings
    from diffseg_jax.systems.ddp_segmentation import make_network

    settings = DDPSettings(
        "convnext", channels=(96, 192, 384, 768), depths=(3, 3, 9, 3), heads=(), window=0,
        num_classes=CLASSES,
    )  # fmt: skip
    network = make_network(settings, "train", "float32", False)
    draw = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var", "gamma"):
            return np.ones(leaf.shape, np.float32)
        if name in ("bias", "mean"):
            return 0.1 * draw.standard_normal(leaf.shape, np.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return draw.standard_normal(leaf.shape, np.float32) * np.float32(fan_in**-0.5)

    values = jax.tree_util.tree_map_with_path(fill, network.abstract)
    image = draw.standard_normal((1, *SIZE, 3), np.float32)
    return network, jax.device_put(values), jax.device_put(image)


def logits_of(network, steps, values, image):
    """Logits f32[1,H,W,K] after so many steps."""
    import jax

    from diffseg_jax.layers.resize import resize_bilinear
    from diffseg_jax.systems.ddp import denoise_map
    from diffseg_jax.systems.ddp_segmentation import SEGMENTATION

    model = network.bind_eval(**values)
    x, _ = model.encode(image)
    noise = jax.random.normal(jax.random.key(0), (1, 1, *x.shape[1:]))
    sampling = dict(
        steps=steps, sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine",
        accumulate=False,
    )  # fmt: skip
    found = denoise_map(SEGMENTATION, model, x, noise, sampling, None)
    return resize_bilinear(found["scores"], image.shape[1:3])


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB


def seconds(function, *inputs):
    """(seconds of the first call, of each of the next)."""
    import jax

    run = jax.jit(function)
    step = lambda: jax.block_until_ready(run(*inputs))
    return timeit.timeit(step, number=1), timeit.repeat(step, number=1, repeat=REPEATS)


def time_ours(steps):
    """Prints one JSON line: seconds, first call, memory."""
    network, values, image = make()
    first, rest = seconds(functools.partial(logits_of, network, steps), values, image)
    print(json.dumps(dict(steps=steps, seconds=rest, first=first, peak_rss_mb=peak_mb())))


def time_parts():
    """Prints one JSON line: name of a part -> seconds, GFLOP, runs per image, runs per step."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.layers.resize import resize_bilinear
    from diffseg_jax.models.map_decoder import reference_points

    network, values, image = make()
    bind = lambda values: network.bind_eval(**values)
    h, w = (side // 4 for side in SIZE)
    query = jax.random.normal(jax.random.key(1), (1, h * w, 256))
    maps, _ = jax.jit(lambda values, image: bind(values).backbone(image))(values, image)
    constants = jax.jit(lambda values: bind(values).decoder.constants((h, w)))(values)[0]
    layer = lambda values: bind(values).decoder.layer0

    def attention(values, query):
        reference = jnp.asarray(reference_points((h, w)))
        return layer(values).attention(query, constants, reference, ((h, w),))

    logits = jnp.zeros((1, h, w, CLASSES))
    parts = {  # name: (function, inputs, GFLOP of one run, runs per image, runs per step)
        "backbone": (lambda v, x: bind(v).backbone(x)[0], (values, image), 93.1, 1, 0),
        "neck": (lambda v, maps: bind(v).neck(maps)[0], (values, maps), 71.5, 1, 0),
        "attention": (attention, (values, query), 10.2, 0, 6),
        "feed-forward": (lambda v, q: layer(v).mlp(q), (values, query), 34.4, 0, 6),
        "resizing": (lambda x: resize_bilinear(x, SIZE), (logits,), 0.2, 1, 0),
    }  # fmt: skip
    found = {name: [min(seconds(f, *xs)[1]), *rest] for name, (f, xs, *rest) in parts.items()}
    print(json.dumps(found))


# --- both sides -----------------------------------------------------------------------------------


def call(command):
    """The last line a program prints, as JSON."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(steps, torch_python, rounds):
    """One line of the table: both programs in turn, `rounds` times; returns our seconds."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(call([sys.executable, __file__, f"--ours={steps}"]))
        theirs.append(call([torch_python, HERE / "torch_ddp.py", "--steps", steps, "--rounds", 2]))
    best = lambda lines: min(min(line["seconds"]) for line in lines)
    peak = lambda lines: max(line["peak_rss_mb"] for line in lines)
    print(
        f"{steps:5} {best(ours):7.2f} {best(theirs):8.2f} {best(theirs) / best(ours):6.2f} "
        f"{peak(ours):6.0f} {peak(theirs):9.0f} {ours[-1]['first']:8.1f}", flush=True,
    )  # fmt: skip
    return best(ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=(1, 3))
    parser.add_argument("--ours", type=int, help="time our side alone, with so many steps")
    parser.add_argument("--parts", action="store_true", help="time our parts alone")
    args = parser.parse_args()
    if args.ours:
        return time_ours(args.ours)
    if args.parts:
        return time_parts()
    print("steps  ours s  torch s  ratio     MB  torch MB  first s")
    totals = {steps: compare(steps, args.torch_python, args.rounds) for steps in args.steps}
    parts = call([sys.executable, __file__, "--parts"])
    titles = "".join(f"  {steps:2} steps, share" for steps in totals)
    print(f"\npart          {titles}  GFLOP/s")
    for name, (once, gflop, per_image, per_step) in parts.items():
        spent = [once * (per_image + per_step * steps) for steps in totals]
        shares = "".join(f"  {s:7.2f} s {s / totals[t]:5.0%}" for s, t in zip(spent, totals))
        print(f"{name:14}{shares} {gflop / once:8.0f}")


if __name__ == "__main__":
    main()
