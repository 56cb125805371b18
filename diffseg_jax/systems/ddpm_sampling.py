"""Images drawn from a trained diffusion model, step by step.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (NeurIPS 2021); Song, Meng and
Ermon, "Denoising Diffusion Implicit Models" (ICLR 2021).
"""

import functools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.devices.mesh import batch_sharding
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.diffusion.process import Process, reverse
from diffseg_jax.diffusion.samplers import ddim_step, ddpm_step
from diffseg_jax.errors import UserError, require_known

SAMPLERS = ("ddpm", "ddim")
START = 2**31 - 1  # folded into the key of an image for its first noise; steps fold in their number


def sample_images(step: Callable, process: Process, params: dict, **options) -> np.ndarray:
    """The images of `sample_floats` as they are stored, u8[n, height, width, 3]."""
    return stored_bytes(sample_floats(step, process, params, **options))


def stored_bytes(x: np.ndarray) -> np.ndarray:
    """Images f32 in [-1, 1] as bytes, truncated as guided diffusion does; beyond, clipped."""
    return np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8)


@own_settings()
def sample_floats(
    step: Callable, process: Process, params: dict, *, seed: int, indices: Sequence[int],
    size: tuple[int, int], classes: np.ndarray | None = None, progress: Callable = iter,
) -> np.ndarray:  # fmt: skip
    """Images f32[n, height, width, 3], about in [-1, 1], each a function of the seed and its index.

    step      what `make_step` returned for the same process
    params    of the network; on a mesh, its devices share the images
    indices   of the images, n of them
    classes   i32[n] of a class-conditional network
    progress  wraps the iterable of steps, as a progress bar does
    """
    split, replicated, share = _placement(params)
    count = len(indices)
    padded = np.resize(np.asarray(indices), -(-count // share) * share)  # repeats the first ones
    classes = None if classes is None else np.resize(classes, len(padded))

    purpose = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"samples"))
    keys, x = _compiled(_begin, split, (0,))(tuple(size), purpose, padded)
    classes = None if classes is None else jax.device_put(np.asarray(classes, np.int32), split)
    for index in progress(range(process.steps - 1, -1, -1)):
        x = jax.block_until_ready(step(params, x, jnp.int32(index), keys, classes))
    return np.asarray(_compiled(_same, replicated)(x))[:count]  # everywhere


@functools.cache
def _compiled(function, where, static=()):
    return jax.jit(function, out_shardings=where, static_argnums=static)


def _begin(size, purpose, indices):
    """A key for each image, and its first noise."""
    keys = jax.vmap(lambda i: jax.random.fold_in(purpose, i))(indices)
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, START), (*size, 3))
    return keys, jax.vmap(draw)(keys)


def _same(x):
    return x


def _placement(params):
    """The sharding of images during sampling, that of the result, and the number of devices."""
    where = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
    if not isinstance(where, NamedSharding):
        return where, where, 1
    replicated = NamedSharding(where.mesh, PartitionSpec())
    return batch_sharding(where.mesh), replicated, where.mesh.size


def make_step(network, process: Process, options: dict, sampler: str, eta: float) -> Callable:
    """Compiled (params, x_t, index i32[], keys[B], classes i32[B] or None) -> x_{t-1}.

    The result is placed on devices as x_t was.

    options  target and variance of the network's output
    sampler  "ddpm", or "ddim" with eta in [0, 1]

    Raises UserError for an unknown sampler, and for an eta that the sampler does not read.
    """
    require_known(sampler, SAMPLERS, "sampler")
    if eta and sampler == "ddpm":
        raise UserError(f"eta is {eta}, which only ddim reads. Set it to 0, or sampler to ddim.")

    def step(params, x, index, keys, classes):
        t = jnp.full(len(x), index)
        output, _ = network.bind(params, {})(x, process.network_time(t), classes)
        past = reverse(process, output, x, t, options["target"], options["variance"])
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:])
        noise = jax.vmap(draw)(keys)
        if sampler == "ddpm":
            return ddpm_step(process, past, t, noise)
        return ddim_step(process, x, past.clean, t, eta, noise)

    @functools.cache
    def compiled(placement):
        return jax.jit(step, donate_argnums=1, out_shardings=placement)

    @functools.wraps(step)
    def placed(params, x, *rest):
        return compiled(x.sharding)(params, x, *rest)

    return placed


def first_images(step, process, size, num_classes, count, values, seed, progress=iter):
    """The first `count` images of a seed, of each class in turn; progress: as `sample_floats`."""
    classes = np.arange(count) % num_classes if num_classes else None
    return sample_images(
        step, process, values["params"], seed=seed, indices=range(count), size=size,
        classes=classes, progress=progress,
    )  # fmt: skip
