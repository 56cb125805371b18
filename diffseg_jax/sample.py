"""Pictures from a trained diffusion model: a grid, and one file each.

python -m diffseg_jax.sample --checkpoint=runs/a/checkpoints/pretrain --output=samples --images=16 \
    --sampler=ddim --steps=ddim50
"""

from pathlib import Path

import numpy as np
from rich.progress import Progress

from diffseg_jax.cli import CACHE, Flags, numbers, use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.errors import UserError
from diffseg_jax.figures import sheets
from diffseg_jax.inference.sampling import generate
from diffseg_jax.storage.paths import make_folder
from diffseg_jax.systems.ddpm_sampling import SAMPLERS

MOST = 100  # pictures on a grid


def main(arguments=None):
    """The command line."""
    flags = Flags("sample", __doc__)
    add = flags.add_argument
    add("--checkpoint", required=True, help="directory of a stage, or of a converted file")
    add("--output", required=True, help="a new folder: grid.png, 000000.png, 000001.png, ...")
    add("--images", type=int, default=16, help="how many; default: 16")
    steps = "how many of the trained steps: 250 spreads them evenly, ddim50 strides; default: all"
    add("--steps", default="", help=steps)
    add("--sampler", choices=SAMPLERS, default="ddpm", help="default: ddpm; ddim needs fewer steps")
    add("--eta", type=float, default=0.0, help="of ddim: 0 (default) deterministic, 1 as ddpm")
    add("--classes", type=numbers, default=(), metavar="N,N,...", help="in turns; default: all")
    add("--seed", type=int, default=0, help="image i is a function of it and i; default: 0")
    add("--size", type=numbers, default=None, metavar="H,W", help="default: as trained")
    add("--batch_size", type=int, default=16, help="images made at a time; default: 16")
    add("--ema", default=None, help="rate of the moving average, or off; default: the first")
    dtypes = ("float32", "bfloat16")
    add("--dtype", choices=dtypes, default="float32", help="of convolutions; default: float32")
    add("--compilation_cache", default=CACHE, help="where compiled programs go; empty for nowhere")
    with user_errors():
        options = vars(flags.parse_args(arguments))
        output = Path(options.pop("output"))
        use_cache(options.pop("compilation_cache"))
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
