"""Pictures from a trained diffusion model: a grid, and one file each.

python -m diffseg_jax.sample --checkpoint=runs/a/checkpoints/pretrain --output=samples --images=16 \
    --sampler=ddim --steps=ddim50
"""

import argparse
from pathlib import Path

import numpy as np
from rich.progress import Progress

from diffseg_jax.cli import CACHE, numbers, use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.errors import UserError
from diffseg_jax.figures import sheets
from diffseg_jax.inference.sampling import generate
from diffseg_jax.storage.paths import make_folder
from diffseg_jax.systems.ddpm_seg import SAMPLERS

MOST = 100  # pictures on a grid


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.sample",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="directory of a stage, or of a converted file")
    add("--output", required=True, help="a new folder: grid.png, 000000.png, 000001.png, ...")
    add("--images", type=int, default=16, help="how many")
    steps = "how many of the trained steps: 250 spreads them evenly, ddim50 strides; empty is all"
    add("--steps", default="", help=steps)
    add("--sampler", choices=SAMPLERS, default="ddpm", help="ddim is good with fewer steps")
    add("--eta", type=float, default=0.0, help="of ddim: 0 deterministic, 1 as noisy as ddpm")
    add("--classes", type=numbers, default=(), metavar="N,N,...", help="taken in turns; () is all")
    add("--seed", type=int, default=0, help="picture i is a function of the seed and i")
    add("--size", type=numbers, default=None, metavar="H,W", help="None is as trained")
    add("--batch_size", type=int, default=16, help="pictures made at a time")
    add("--ema", default=None, help="rate of the moving average, or off; None is the first kept")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of convolutions")
    add("--compilation_cache", default=CACHE, help="where compiled programs go; empty for nowhere")
    options = vars(parser.parse_args(arguments))
    output = Path(options.pop("output"))
    use_cache(options.pop("compilation_cache"))
    with user_errors():
        find_devices()
        make_folder(output)
        if any(output.glob("*.png")):
            raise UserError(f"{output} holds pictures already. Give another --output.")
        count, shown = 0, []
        print(f"{options['checkpoint']}: loads, and compiles the first step", flush=True)
        with Progress(transient=True) as bar:
            task = bar.add_task("steps", total=None)
            move = lambda done, total: bar.update(task, completed=done, total=total)
            for batch in generate(**options, progress=move):
                shown.extend(batch[: MOST - len(shown)])
                for image in batch:
                    sheets.save_png(output / f"{count:06d}.png", image)
                    count += 1
        grid = output / "grid.png"
        sheets.save_png(grid, sheets.grid(np.stack(shown)))
        print(f"{count} pictures in {output}, the first {len(shown)} in {grid}")


if __name__ == "__main__":
    main()
