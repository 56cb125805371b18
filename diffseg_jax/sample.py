"""Pictures from a trained diffusion model: a grid, and one file each.

python -m diffseg_jax.sample --checkpoint=runs/a/checkpoints/pretrain --output=samples --images=16 \
    --sampler=ddim --steps=ddim50
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.progress import track

from diffseg_jax import visualise
from diffseg_jax.checkpoints import open_network
from diffseg_jax.command import CACHE, use_cache, user_errors
from diffseg_jax.config import UserError
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.models.adm_unet import check_classes
from diffseg_jax.systems.ddpm_seg import (
    SAMPLERS,
    check_size,
    make_network,
    make_settings,
    make_step,
    sample_images,
)


def sample(
    checkpoint: str | os.PathLike, *, images: int = 16, seed: int = 0, steps: str = "",
    sampler: str = "ddpm", eta: float = 0.0, classes: Sequence[int] = (),
    size: tuple[int, int] | None = None, batch_size: int = 16, ema: str | float | None = None,
    dtype: str = "float32", progress: Callable = iter,
) -> np.ndarray:  # fmt: skip
    """Generates pictures u8[images, height, width, 3].

    checkpoint  directory of a stage, or of a converted file
    seed        picture i is a function of (seed, i), whatever the number or the batch
    steps       which steps are taken: "" all, "250" evenly spread, "ddim50" evenly strided
    sampler     "ddpm", or "ddim" with eta in [0, 1], 0 being deterministic
    classes     of a class-conditional network, taken in turns; () = all of them
    size        (height, width), multiples of the network's stride; None = as trained
    ema         rate of the moving average that is used, or "off"; None = the first that was kept
    progress    wraps the iterable of steps

    Raises UserError for whatever of this the checkpoint does not have.
    """
    network, meta = open_network(checkpoint, ema=ema)
    task = meta["task"]
    if "diffusion" not in task:
        raise UserError(
            f"{checkpoint} holds no diffusion model. Give the stage of a config whose system is "
            "ddpm_seg, or what convert --source=adm wrote."
        )
    settings, options = make_settings(task["model"]), task["diffusion"]
    size = tuple(size or task["size"])
    check_size(size, settings, "size")
    check_classes(classes, settings.num_classes)
    if images < 1 or batch_size < 1:
        raise UserError(f"images is {images} and batch_size {batch_size}; both must be 1 or more.")
    process = make_process(
        options["schedule"], options["steps"], steps, options["rescale_timesteps"]
    )
    step = make_step(make_network(settings, dtype, False), process, options, sampler, eta)
    params = jax.device_put(network["params"])
    chosen = np.resize(classes or np.arange(max(settings.num_classes, 1)), images)
    done = []
    for start in range(0, images, batch_size):
        places = range(start, min(start + batch_size, images))
        y = chosen[list(places)] if settings.num_classes else None
        made = sample_images(
            step, process, params, seed=seed, places=places, size=size, classes=y,
            progress=progress,
        )  # fmt: skip
        done.append(made)
    return np.concatenate(done)


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.sample", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="directory of a stage, or of a converted file")
    add("--output", required=True, help="folder for grid.png and 000000.png, 000001.png, ...")
    add("--images", type=int, default=16)
    add("--steps", default="", help='"" all, 250 evenly spread, ddim50 evenly strided')
    add("--sampler", choices=SAMPLERS, default="ddpm")
    add("--eta", type=float, default=0.0, help="of ddim: 0 deterministic, 1 as noisy as ddpm")
    add("--classes", type=_numbers, default=(), metavar="N,N,...", help="taken in turns")
    add("--seed", type=int, default=0)
    add("--size", type=_numbers, default=None, metavar="H,W", help="as trained, if left out")
    add("--batch_size", type=int, default=16, help="pictures made at a time")
    add("--ema", default=None, help="rate of the moving average, or off; the first, if left out")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--compilation_cache", default=CACHE, help="where compiled programs go; empty for nowhere")
    options = vars(parser.parse_args(arguments))
    output = Path(options.pop("output"))
    use_cache(options.pop("compilation_cache"))
    with user_errors():
        make_folder(output)
        images = sample(
            **options, progress=lambda steps: track(steps, description="samples", transient=True)
        )
        for place, image in enumerate(images):
            visualise.save_png(output / f"{place:06d}.png", image)
        visualise.save_png(output / "grid.png", visualise.grid(images))
        print(f"{len(images)} pictures in {output}, all of them in {output / 'grid.png'}")


def make_folder(path: Path):
    """Raises UserError when the folder cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}). Give another --output."
        ) from None


def _numbers(text):
    return tuple(int(part) for part in text.split(",")) if text else ()


if __name__ == "__main__":
    main()
