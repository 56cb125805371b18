"""Our DINOv2 ViT-S/14 and the plain PyTorch one of torch_dino.py, in turn, each in its own process.

python tests/benchmarks/bench_dino.py [--torch-python PATH] [--rounds 3] [--only one eight large]

one     an image of 224x224: the normalised outputs of blocks 2, 5, 8 and 11, float32
eight   eight of them in one batch
large   an image of 518x518, for which the table of positions was made

`ours` and `torch` are the best seconds of all rounds, `ratio` is torch / ours (above 1 = we are
faster), `MB` the peak of resident memory (ours includes compilation), `first s` our first call,
mostly compilation. Random weights.

Measured 2026-11-28 with PyTorch 2.14.1 and jax 0.10.2 on 2 cores (AMD EPYC), two rounds with other
programs running beside them, seconds of ours and torch: one 0.067 and 0.145, eight 0.476 and 1.414,
large 0.842 and 1.288. PyTorch's threads suffer more from others: CPU seconds of one thread on one
core were 0.065 and 0.126, 0.66 and 0.97, 0.89 and 0.94.
"""

import argparse
import json
import resource
import subprocess
import sys
import timeit
from pathlib import Path

TIMED = dict(one=(1, 224), eight=(8, 224), large=(1, 518))  # batch, size; as in torch_dino.py
REPEATS = 10
HERE = Path(__file__).parent


def make_step(what):
    """A function of no arguments that computes the features of a batch to their end."""
    import jax
    import numpy as np

    from diffseg_jax.models.dino import Dino, DinoSettings, dino_default_taps
    from diffseg_jax.models.network import Network

    settings, draw = DinoSettings(), np.random.default_rng(0)
    network, taps = Network(lambda rngs: Dino(settings, rngs=rngs)), dino_default_taps(settings)
    fill = lambda leaf: 0.02 * draw.standard_normal(leaf.shape, np.float32)
    values = jax.device_put(jax.tree.map(fill, network.abstract))
    batch, size = TIMED[what]
    images = jax.device_put(draw.standard_normal((batch, size, size, 3), np.float32))
    run = jax.jit(lambda values, images: network.bind_eval(**values)(images, taps))
    return lambda: jax.block_until_ready(run(values, images))


def time_ours(what):
    """Prints one JSON line like torch_dino.py, with the seconds of the first call."""
    step = make_step(what)
    line = dict(what=what, first=timeit.timeit(step, number=1))
    line["seconds"] = timeit.repeat(step, number=1, repeat=REPEATS)
    line["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB
    print(json.dumps(line))


def call(command):
    """The last line that a program prints, as JSON."""
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(what, torch_python, rounds):
    """One line of the table: both programs in turn, `rounds` times."""
    torch_command = [torch_python, HERE / "torch_dino.py", f"--what={what}", f"--repeats={REPEATS}"]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(call([sys.executable, __file__, f"--ours={what}"]))
        theirs.append(call(torch_command))
    best = lambda lines: min(second for line in lines for second in line["seconds"])
    peak = lambda lines: max(line["peak_rss_mb"] for line in lines)
    print(
        f"{what:6} {best(ours):7.3f} {best(theirs):8.3f} {best(theirs) / best(ours):6.2f} "
        f"{peak(ours):6.0f} {peak(theirs):9.0f} {ours[-1]['first']:8.1f}", flush=True,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TIMED, default=tuple(TIMED))
    parser.add_argument("--ours", choices=TIMED, help="time our side alone, in this process")
    args = parser.parse_args()
    if args.ours:
        return time_ours(args.ours)
    print("       ours s  torch s  ratio     MB  torch MB  first s")
    for what in args.only:
        compare(what, args.torch_python, args.rounds)


if __name__ == "__main__":
    main()
