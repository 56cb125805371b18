"""Generates images with a trained diffusion model: a grid, and one file each.

  python -m diffseg_jax.sample --checkpoint=runs/a/checkpoints/pretrain --output=samples \\
      --images=16 --sampler=ddim --steps=ddim50
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.cli import (
    Flags,
    add_cache_flag,
    add_checkpoint_flags,
    numbers,
    use_cache,
    user_errors,
)
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError
from diffseg_jax.figures import layout
from diffseg_jax.inference.sampling import (
    generate,
    open_diffusion,  # noqa: F401  documented here in 0.1.0
)
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.outputs import open_local
from diffseg_jax.storage.paths import make_folder
from diffseg_jax.systems.ddpm_sampling import SAMPLERS

MAX_GRID_IMAGES = 100


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("sample", __doc__)
    add = flags.add_argument
    checkpoint = "directory of a stage, or of a converted file"
    add("--checkpoint", required=True, metavar="DIR", help=checkpoint)
    output = "a new folder: grid.png, 000000.png, 000001.png, ..."
    add("--output", required=True, metavar="DIR", help=output)
    add("--images", type=int, default=16, metavar="N", help="number of images; default: 16")
    add_sampling_flags(add)
    classes = "classes, taken in turns; default: all"
    add("--classes", type=numbers, default=(), metavar="N,N,...", help=classes)
    add_checkpoint_flags(add, ("ema",))
    dtype = "dtype of convolutions, float32 (default) or bfloat16"
    add("--dtype", default="float32", help=dtype)
    add_cache_flag(add)
    return flags


def add_sampling_flags(add: Callable, size: str = "as trained"):
    """Adds the flags of how images are drawn; add: `add_argument` of flags; size: the default."""
    steps = "how many of the trained steps: 250 spreads them evenly, ddim50 strides; default: all"
    add("--steps", default="", help=steps)
    sampler = "ddim is good with fewer steps; default: ddpm"
    add("--sampler", choices=SAMPLERS, default="ddpm", help=sampler)
    eta = "of ddim: 0 deterministic (default), 1 as noisy as ddpm"
    add("--eta", type=float, default=0.0, metavar="X", help=eta)
    seed = "image i is a function of the seed and i; default: 0"
    add("--seed", type=int, default=0, metavar="N", help=seed)
    add("--size", type=numbers, metavar="H,W", help=f"height and width; default: {size}")
    add("--batch_size", type=int, default=16, metavar="N", help="images in a batch; default: 16")


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = vars(make_flags().parse_args(arguments))
        output = open_local(given.pop("output"), "--output", "samples")
        use_cache(given.pop("compilation_cache"))
        find_devices()
        make_folder(output)
        with locked(output, "sample", "--output"):
            if any(output.glob("*.png")):
                raise UserError(f"{output} holds images already. Give another --output.")
            write_images(output, given)


def write_images(output: Path, options: dict):
    """Writes the images of `generate` and their grid, and shows its steps."""
    count, shown, display = 0, [], Display()
    with display.progress("steps", unit="steps", first=f"loads, {COMPILES}") as progress:

        def move(done, total):
            progress.total = total
            progress.at(done)

        for batch in generate(**options, progress=move):
            shown.extend(batch[: MAX_GRID_IMAGES - len(shown)])
            for image in batch:
                layout.save_png(output / f"{count:06d}.png", image)
                count += 1
    grid = output / "grid.png"
    layout.save_png(grid, layout.grid(np.stack(shown)))
    print(f"{count} images in {output}, the first {len(shown)} in {grid}")


if __name__ == "__main__":
    main()
