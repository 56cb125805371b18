"""Our DDP for depth with Swin-T and the plain PyTorch one of torch_depth.py, in turn.

python tests/benchmarks/bench_depth.py [--torch-python PATH] [--rounds 3] [--steps 3]

One image of 352x1216 pixels, as KITTI is measured, float32, the published network (configs/
ddp_kitti.py:swin_t), one draw, no mirrored view; from normalised pixels to metres at the image's
size. Both programs have the same weights, image and noise, and the first line says how far their
depths are apart. `ours` and `torch` are medians of the seconds of all rounds, each round a process
of either; `ratio` is torch / ours (above 1 = we are faster), `MB` the peak of resident memory (ours
includes compilation), `first s` our first call, mostly compilation, and `load` the number of
programs that the machine ran, the mean of a minute, at the end.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_ddp import REPEATS, call, peak_mb, seconds

HERE = Path(__file__).parent
WITHIN = 1e-4  # of the largest depth
SAMPLING = dict(sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine")
GIVEN = ("image", "noise", "depth")


def make(case):
    """(network, values, image, noise, depth) of a file of torch_depth.py."""
    import jax
    import numpy as np

    from diffseg_jax.systems.ddp_depth import make_depth_network
    from diffseg_jax.weights.ddp_depth import depth_settings_of, load_ddp_depth

    arrays = dict(np.load(case))
    image, noise, depth = (np.moveaxis(arrays.pop(name), 1, -1) for name in GIVEN)
    settings = depth_settings_of(arrays, case)
    values = load_ddp_depth(arrays, settings, case)
    network = make_depth_network(settings, "train", "float32", False)
    return network, *map(jax.device_put, (values, image, noise)), depth


def depth_of(network, steps, values, image, noise):
    """Metres f32[1,H,W,1] after so many steps."""
    from diffseg_jax.layers.resize import resize_bilinear
    from diffseg_jax.systems.ddp import denoise_map
    from diffseg_jax.systems.ddp_depth import DEPTH

    model = network.bind_eval(**values)
    x, _ = model.encode(image)
    found = denoise_map(DEPTH, model, x, noise[None], SAMPLING | {"steps": steps}, None)
    return resize_bilinear(found["depth"][..., None], image.shape[1:3])


def time_ours(steps, case):
    """Prints one JSON line: seconds, first call, memory."""
    network, values, image, noise, _ = make(case)
    run = functools.partial(depth_of, network, steps)
    first, rest = seconds(run, values, image, noise)
    print(json.dumps(dict(steps=steps, seconds=rest, first=first, peak_rss_mb=peak_mb())))


def compare_depths(steps, case):
    """Says how far both depths are apart; ends the program where that is too far."""
    import jax
    import numpy as np

    network, values, image, noise, depth = make(case)
    run = jax.jit(functools.partial(depth_of, network, steps))
    apart = np.max(np.abs(run(values, image, noise) - depth)) / np.max(depth)
    print(f"depths of {np.min(depth):.1f} to {np.max(depth):.1f} m, {apart:.1e} of that apart")
    if not apart < WITHIN:
        sys.exit(f"the depths should be within {WITHIN:g} of each other")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--ours", help="time our side alone, on such a case")
    args = parser.parse_args()
    if args.ours:
        return time_ours(args.steps, args.ours)
    theirs = [args.torch_python, HERE / "torch_depth.py", f"--steps={args.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case.npz"
        subprocess.run(list(map(str, [*theirs, f"--save={case}"])), check=True)
        compare_depths(args.steps, str(case))
        ours = [sys.executable, __file__, f"--steps={args.steps}", f"--ours={case}"]
        theirs.append(f"--rounds={REPEATS}")
        lines = [(call(ours), call(theirs)) for _ in range(args.rounds)]
    times = [statistics.median(s for line in side for s in line["seconds"]) for side in zip(*lines)]
    peaks = [max(line["peak_rss_mb"] for line in side) for side in zip(*lines)]
    print("steps  ours s  torch s  ratio     MB  torch MB  first s  load")
    print(
        f"{args.steps:5} {times[0]:7.2f} {times[1]:8.2f} {times[1] / times[0]:6.2f} "
        f"{peaks[0]:6.0f} {peaks[1]:9.0f} {lines[-1][0]['first']:8.1f} {os.getloadavg()[0]:5.1f}"
    )


if __name__ == "__main__":
    main()
