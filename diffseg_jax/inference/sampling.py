"""Generates images with a trained diffusion model."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.devices.mesh import make_mesh, place_tree, state_shardings
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import check_classes
from diffseg_jax.models.network import Network
from diffseg_jax.sources.diffusion import make_network, make_settings
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.storage.paths import open_path
from diffseg_jax.systems.ddpm_sampling import make_step, sample_images
from diffseg_jax.systems.ddpm_seg_config import check_size


def open_diffusion(
    checkpoint: str | os.PathLike, ema: str | float | None = None, dtype: str = "float32"
) -> tuple[Network, dict, dict]:
    """A trained diffusion model: the network, its parameters (numpy), its training's metadata.

    checkpoint  directory of a stage, or of a converted file
    ema         rate of the moving average, or "off"; None = the first rate
    dtype       "float32" or "bfloat16", of convolutions

    `network.bind(params, {})` is the ADMUNet. The metadata are a dict with "model" (the settings),
    "diffusion" and "size" (height, width). Raises UserError if there is no diffusion model or no
    such average.
    """
    checkpoint = open_path(checkpoint)
    task = read_task(checkpoint)
    network = make_network(make_settings(task["model"]), dtype, False)
    return network, open_network(checkpoint, ema=ema)[0]["params"], task


def read_task(checkpoint: Path) -> dict:
    """The metadata of the diffusion model in a checkpoint; UserError if it holds none."""
    task = open_meta(checkpoint)["task"]
    if task.get("kind") == "mae":
        raise UserError(
            f"{checkpoint} holds an MAE, which reconstructs hidden parts of images and samples "
            "none. Its features can be read: python -m diffseg_jax.features "
            f"--checkpoint={checkpoint} --images=photos --output=features."
        )
    if task.get("kind") != "pretrain" or "diffusion" not in task:
        raise UserError(
            f"{checkpoint} holds no diffusion model. Give a stage of kind pretrain of a config "
            "whose system is ddpm_seg, or a directory that convert --source=adm wrote."
        )
    return task


def generate(
    checkpoint: str | os.PathLike, *, images: int = 16, seed: int = 0, steps: str = "",
    sampler: str = "ddpm", eta: float = 0.0, classes: Sequence[int] = (),
    size: tuple[int, int] | None = None, batch_size: int = 16, ema: str | float | None = None,
    dtype: str = "float32", progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Generates `images` images, in batches u8[B, height, width, 3].

    checkpoint  directory of a stage, or of a converted file
    seed        image i is a function of (seed, i), whatever the number of images and the batch
                size; rounding may change a byte by one
    steps       which steps are taken: "" all, "250" evenly spread, "ddim50" evenly strided
    sampler     "ddpm", or "ddim" with eta in [0, 1], 0 being deterministic
    classes     of a class-conditional network, taken in turns; () = all of them
    size        (height, width), multiples of the network's stride; None = as trained
    ema         rate of the moving average to take, or "off"; None = the first rate
    progress    called after every step with the number of finished steps and of all steps

    Raises UserError for values that do not fit the checkpoint.
    """
    checkpoint = open_path(checkpoint)
    task = read_task(checkpoint)
    settings, options = make_settings(task["model"]), task["diffusion"]
    size = tuple(size or task["size"])
    check_size(size, settings, "size", "--size={},{}")
    check_classes(classes, settings.num_classes)
    if images < 1 or batch_size < 1:
        raise UserError(f"images is {images} and batch_size {batch_size}; both must be 1 or more.")
    process = make_process(
        options["schedule"], options["steps"], steps, options["rescale_timesteps"]
    )
    network = make_network(settings, dtype, False)
    step = make_step(network, process, options, sampler, eta)
    params, mesh = open_network(checkpoint, ema=ema)[0]["params"], make_mesh(-1, 1)
    params = place_tree(params, state_shardings(params, mesh))
    classes = classes if len(classes) else range(max(settings.num_classes, 1))
    starts = range(0, images, batch_size)
    for batch, start in enumerate(starts):

        def counted(steps_down, before=batch * process.steps):
            for finished, t in enumerate(steps_down, before + 1):
                yield t
                progress(finished, len(starts) * process.steps)

        indices = np.arange(start, start + batch_size)  # a full last batch compiles nothing new
        turns = np.resize(classes, start + batch_size)[indices]
        made = sample_images(
            step, process, params, seed=seed, indices=indices, size=size, progress=counted,
            classes=turns if settings.num_classes else None,
        )  # fmt: skip
        yield made[: images - start]


def sample(checkpoint: str | os.PathLike, **options) -> np.ndarray:
    """All images of `generate` as one array, u8[images, height, width, 3]."""
    return np.concatenate(list(generate(checkpoint, **options)))
