"""Pictures from a trained diffusion model."""

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from diffseg_jax.devices.mesh import make_mesh, place_tree, state_shardings
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import check_classes
from diffseg_jax.models.network import Network
from diffseg_jax.storage.checkpoints import open_meta, open_network
from diffseg_jax.systems.ddpm_sampling import make_step, sample_images
from diffseg_jax.systems.ddpm_seg import make_network, make_settings
from diffseg_jax.systems.ddpm_seg_config import check_size


def open_diffusion(
    checkpoint: str | os.PathLike, ema: str | float | None = None, dtype: str = "float32"
) -> tuple[Network, dict, dict]:
    """A trained diffusion model: the network, its parameters (numpy), and how it was trained.

    checkpoint  directory of a stage, or of a converted file
    ema         rate of the moving average, or "off"; None = the first that was kept
    dtype       "float32" or "bfloat16", of convolutions

    `network.bind(params, {})` is the ADMUNet. The last of the three holds "model" (the settings),
    "diffusion", "size" (height, width). Raises UserError when no diffusion model or no such average
    is there.
    """
    task = read_task(checkpoint)
    network = make_network(make_settings(task["model"]), dtype, False)
    return network, open_network(checkpoint, ema=ema)[0]["params"], task


def read_task(checkpoint: str | os.PathLike) -> dict:
    """What a checkpoint says of its diffusion model; UserError when it holds none."""
    task = open_meta(checkpoint)["task"]
    if task.get("kind") != "pretrain" or "diffusion" not in task:
        raise UserError(
            f"{checkpoint} holds no diffusion model. Give the stage of a config whose system is "
            "ddpm_seg, or what convert --source=adm wrote."
        )
    return task


def generate(
    checkpoint: str | os.PathLike, *, images: int = 16, seed: int = 0, steps: str = "",
    sampler: str = "ddpm", eta: float = 0.0, classes: Sequence[int] = (),
    size: tuple[int, int] | None = None, batch_size: int = 16, ema: str | float | None = None,
    dtype: str = "float32", progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Generates pictures in batches u8[B, height, width, 3], `images` in all.

    checkpoint  directory of a stage, or of a converted file
    seed        picture i is a function of (seed, i), whatever the number or the batch; rounding may
                move a byte by one
    steps       which steps are taken: "" all, "250" evenly spread, "ddim50" evenly strided
    sampler     "ddpm", or "ddim" with eta in [0, 1], 0 being deterministic
    classes     of a class-conditional network, taken in turns; () = all of them
    size        (height, width), multiples of the network's stride; None = as trained
    ema         rate of the moving average that is used, or "off"; None = the first that was kept
    progress    called after every step with the number of steps made, and of all

    Raises UserError for whatever of this the checkpoint does not have.
    """
    task = read_task(checkpoint)
    settings, options = make_settings(task["model"]), task["diffusion"]
    size = tuple(size or task["size"])
    check_size(size, settings, "size")
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
    known = classes if len(classes) else range(max(settings.num_classes, 1))
    starts = range(0, images, batch_size)
    for batch, start in enumerate(starts):

        def counted(indices, before=batch * process.steps):
            for made, index in enumerate(indices, before + 1):
                yield index
                progress(made, len(starts) * process.steps)

        places = np.arange(start, start + batch_size)  # the last batch too, so as to compile once
        made = sample_images(
            step, process, params, seed=seed, indices=places, size=size, progress=counted,
            classes=np.resize(known, start + batch_size)[places] if settings.num_classes else None,
        )  # fmt: skip
        yield made[: images - start]


def sample(checkpoint: str | os.PathLike, **options) -> np.ndarray:
    """All pictures of `generate` at once, u8[images, height, width, 3]."""
    return np.concatenate(list(generate(checkpoint, **options)))
