"""Our camera encoder of BEV networks and the plain PyTorch one of torch_bev.py, in turn.

python tests/benchmarks/bench_bev.py [--torch-python PATH] [--rounds 3] [--only encoder pool]

encoder  six images of 256x704 to features of 128x128 cells, at the published sizes, float32
pool     the sum over 6 x 118 x 32 x 88 points of 80 features into 256x256 cells alone

`ours` and `torch` are the best seconds of all rounds, `ratio` is torch / ours (above 1 = we are
faster), `MB` the peak of resident memory (ours includes compilation), `first s` our first call,
mostly compilation. Random weights; both programs pool into the same cells.

Measured 2026-11-29 with PyTorch 2.14.1 and jax 0.10.2 on 2 cores (Intel Xeon), one round with many
other programs running beside both, seconds of ours and torch: encoder 17.3 and 25.1, pool 0.53 and
6.8; MB 1310 and 2284, 423 and 2044.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

REPEATS = 3
WHAT = ("encoder", "pool")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # helpers of tests


def cameras():
    """f32[1, 6, 2, 3, 4] of six cameras around a car, whose photographs are 1600x900."""
    import numpy as np

    from bev_case import rig
    from diffseg_jax.data.bev_transforms import RigView, affine_maps

    intrinsics, to_world, image, world = rig(number=6, image=(900, 1600))
    image = np.stack([RigView((256, 704), 0.48).matrix(900, 1600)] * 6)
    return affine_maps(intrinsics, to_world, image, world)[None]


def make_step(what):
    """A function of no arguments that computes to the end, and the cells of all points."""
    import jax
    import numpy as np

    from diffseg_jax.layers.bev_pooling import (
        Grid,
        cells_of_points,
        depth_bins,
        frustum,
        points_of,
        pool,
    )
    from diffseg_jax.models.bev_network import BEVNetwork, BEVSettings
    from diffseg_jax.models.network import Network

    settings, draw = BEVSettings(num_classes=6), np.random.default_rng(0)
    pixels = frustum((256, 704), (32, 88), depth_bins(settings.depth))
    grid = Grid(settings.x, settings.y, settings.z)
    placed = cameras()
    cells = jax.jit(lambda c: cells_of_points(points_of(c, pixels), grid))(placed)
    if what == "pool":
        depth = draw.random(cells.shape, np.float32)
        lifted = draw.standard_normal((1, 6, 32, 88, settings.lifted)).astype(np.float32)
        given = jax.device_put((depth, lifted, np.asarray(cells)))
        run = jax.jit(lambda *given: pool(*given, 256 * 256))
        return lambda: jax.block_until_ready(run(*given)), np.asarray(cells)[0]
    network = Network(lambda rngs: BEVNetwork(settings, rngs=rngs))

    def fill(path, leaf):
        noise = draw.standard_normal(leaf.shape, np.float32)
        return 1 + 0.1 * noise if path[-1].key in ("scale", "var") else 0.02 * noise

    values = jax.device_put(jax.tree_util.tree_map_with_path(fill, network.abstract))
    values["stats"] = jax.tree.map(abs, values["stats"])
    images = jax.device_put(draw.standard_normal((1, 6, 256, 704, 3)).astype(np.float32))
    run = jax.jit(lambda v, i, c: network.bind_eval(**v).encode(i, c)[0])
    return lambda: jax.block_until_ready(run(values, images, placed)), np.asarray(cells)[0]


def time_ours(what):
    """Prints one JSON line like torch_bev.py, with the seconds of the first call."""
    step, _ = make_step(what)
    line = dict(what=what, first=timeit.timeit(step, number=1))
    line["seconds"] = timeit.repeat(step, number=1, repeat=REPEATS)
    line["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB
    print(json.dumps(line))


def call(command):
    """The last line that a program prints, as JSON."""
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(what, torch_python, rounds, cells):
    """One line of the table: both programs in turn, `rounds` times."""
    command = [torch_python, HERE / "torch_bev.py", f"--what={what}", f"--repeats={REPEATS}"]
    command.append(f"--cells={cells}")
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(call([sys.executable, __file__, f"--ours={what}"]))
        theirs.append(call(command))
    best = lambda lines: min(second for line in lines for second in line["seconds"])
    peak = lambda lines: max(line["peak_rss_mb"] for line in lines)
    print(
        f"{what:8} {best(ours):7.3f} {best(theirs):8.3f} {best(theirs) / best(ours):6.2f} "
        f"{peak(ours):6.0f} {peak(theirs):9.0f} {ours[-1]['first']:8.1f}", flush=True,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--ours", choices=WHAT, help="time our side alone, in this process")
    args = parser.parse_args()
    if args.ours:
        return time_ours(args.ours)
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        cells = Path(folder) / "cells.npy"
        np.save(cells, make_step("pool")[1])
        print("         ours s  torch s  ratio     MB  torch MB  first s")
        for what in args.only:
            compare(what, args.torch_python, args.rounds, cells)


if __name__ == "__main__":
    main()
