"""Our DDP for depth with Swin-T, timed; torch_depth.py is its plain PyTorch twin.

python tests/benchmarks/bench_depth.py [--compare]

One image of 352x1216 pixels, as KITTI is measured, the published network (configs/
ddp_kitti.py:swin_t), three steps, one draw, no mirrored view; from normalised pixels to metres at
the image's size. `--compare` gives both programs the same weights, image and noise in float32 and
prints how far their depths are apart; it fails where that is too far.
"""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

from random_network import random_values
from timing import jax_program

SIZE = (352, 1216)
WITHIN = 1e-4  # of the largest depth
SAMPLING = dict(sampler="ddim", draws=1, time_difference=1, start=0.0, schedule="cosine", steps=3)
SWIN_T = dict(
    backbone="swin", channels=(96, 192, 384, 768), depths=(2, 2, 6, 2), heads=(3, 6, 12, 24),
    window=7,
)  # fmt: skip
GIVEN = ("image", "noise", "depth")


def depth_of(network, values, image, noise):
    """Metres f32[1,H,W,1] after three steps."""
    from diffseg_jax.layers.resize import resize_bilinear
    from diffseg_jax.systems.ddp import denoise_map
    from diffseg_jax.systems.ddp_depth import DEPTH

    model = network.bind_eval(**values)
    x, _ = model.encode(image)
    found = denoise_map(DEPTH, model, x, noise[None], SAMPLING, None)
    return resize_bilinear(found["depth"][..., None], image.shape[1:3])


def make_step(args):
    """The depths of an image, with random weights."""
    import jax
    import numpy as np

    from diffseg_jax.models.depth_network import DepthSettings
    from diffseg_jax.systems.ddp_depth import make_depth_network

    network = make_depth_network(DepthSettings(**SWIN_T), "train", args.dtype, False)
    draw = np.random.default_rng(0)
    normal = lambda *shape: jax.device_put(draw.standard_normal((1, *shape), np.float32))
    given = random_values(network), normal(*SIZE, 3), normal(*(side // 4 for side in SIZE), 1)
    run = jax.jit(functools.partial(depth_of, network))
    return lambda: run(*given)


def compare_depths():
    """Prints how far both depths are apart; ends the program where that is too far."""
    import jax
    import numpy as np

    from diffseg_jax.systems.ddp_depth import make_depth_network
    from diffseg_jax.weights.ddp_depth import depth_settings_of, load_ddp_depth

    with tempfile.TemporaryDirectory() as folder:
        case = str(Path(folder) / "case.npz")
        theirs = Path(__file__).with_name("torch_depth.py")
        command = [sys.executable, str(theirs), f"--save={case}", "--repeats=0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        arrays = dict(np.load(case))
    image, noise, depth = (np.moveaxis(arrays.pop(name), 1, -1) for name in GIVEN)
    settings = depth_settings_of(arrays, case)
    values = load_ddp_depth(arrays, settings, case)
    network = make_depth_network(settings, "train", "float32", False)
    run = jax.jit(functools.partial(depth_of, network))
    apart = np.max(np.abs(run(values, image, noise) - depth)) / np.max(depth)
    print(f"depths of {np.min(depth):.1f} to {np.max(depth):.1f} m, {apart:.1e} of that apart")
    if not apart < WITHIN:
        sys.exit(f"the depths should be within {WITHIN:g} of each other")


if __name__ == "__main__":
    if sys.argv[1:] == ["--compare"]:
        compare_depths()
    else:
        jax_program(__doc__, ("steps_3",), make_step)
