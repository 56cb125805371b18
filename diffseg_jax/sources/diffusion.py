"""Features of an ADM UNet: outputs of its blocks for noised images.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
4.
"""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.diffusion.process import Process, make_process, noising
from diffseg_jax.errors import UserError, choose, require_known
from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
from diffseg_jax.models.inputs import keys_of_images, scale_images
from diffseg_jax.models.network import COMPUTED, Network
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.sources.feature_source import FeatureSource, shown_size

LISTED_STEPS = (50, 150, 250)  # the paper's, at which features are listed by default
NOISE_LEVELS_PER_BATCH = 4  # of one image, on accelerators
NOISES = ("shared", "per_step", "per_image", "fresh")  # values of features.noise


def make_settings(model) -> ADMSettings:
    """ADMSettings from a mapping that may hold lists, as JSON does."""
    values = dict(model)
    for name in ("channel_mult", "attention_factors"):
        values[name] = tuple(values[name])
    return ADMSettings(**values)


def make_network(settings: ADMSettings, dtype: str, remat: bool) -> Network:
    """The ADM UNet as pure functions; dtype "float32" or "bfloat16", else UserError."""
    computed = choose(COMPUTED, dtype, "dtype")
    return Network(lambda rngs: ADMUNet(settings, dtype=computed, remat=remat, rngs=rngs))


def adm_source(config, crop: tuple[int, int], short: int) -> FeatureSource:
    """The blocks and noise levels of config.features, of the network of config.model.

    The network's tree is {"params": {"unet"}, "stats": {"noise" f32[draws, h, w, 3]}}.
    """
    features, diffusion = {**config.features.to_dict(), "short": short}, config.diffusion
    process = make_process(
        diffusion.schedule, diffusion.steps, rescale_timesteps=diffusion.rescale_timesteps
    )
    settings = make_settings(config.model)
    network = make_network(settings, config.dtype, config.remat)
    own_steps = len(features["steps"]) if noise_setting(features) == "per_step" else 1
    shape = (own_steps * features["draws"], *shown_size(crop, short), 3)

    def init(key):
        key_noise = jax.random.fold_in(key, zlib.crc32(b"noise"))
        key_kernels = jax.random.fold_in(key, zlib.crc32(b"awake"))
        params = randomise_kernels(network.init(key)["params"], key_kernels)
        return {
            "params": {"unet": params},
            "stats": {"noise": jax.random.normal(key_noise, shape)},
        }

    reads = network, process, features
    return FeatureSource(
        "adm", init, functools.partial(diffusion_features, *reads, config.seed),
        functools.partial(named_features, *reads, maps_of_diffusion(features), seed=config.seed),
        short=short, stride=settings.stride,
    )  # fmt: skip


def maps_of_diffusion(features: Mapping) -> list[str]:
    """The names of the maps of `steps` and `blocks`, such as output_5@50, in their order."""
    blocks = [f"output_{block}" for block in sorted(features["blocks"])]
    return [_tap(block, step) for step in features["steps"] for block in blocks]


def options_of_maps(features: Mapping) -> dict:
    """What such maps depend on beside the network, the seed, and the steps and blocks chosen."""
    given = {key: features[key] for key in ("short", "draws") if key in features}
    return {**given, "noise": noise_setting(features)}


def noise_setting(options: Mapping) -> str:
    """Which noise images get, one of NOISES.

    shared     one draw for all images and steps, in training and prediction
    per_step   another draw for each step, the same for all images
    per_image  another draw for each image and step, a function of the seed and the image's bytes
    fresh      as per_image, where every copy of a training image has a draw of its own

    Older configs have share_noise in its place; False is per_image.
    """
    return options.get("noise", "shared") if options.get("share_noise", True) else "per_image"


def randomise_kernels(params: dict, key: jax.Array) -> dict:
    """Fresh parameters with every kernel drawn, uniform in +- 1 / sqrt(fan in).

    The residual branches of a fresh network end in kernels of zeros, which would make it a linear
    filter of the image that ignores the timestep.
    """
    flat = flatten(params)
    for index, path in enumerate(sorted(flat)):
        if path[-1] == "kernel":
            shape = flat[path].shape
            bound = math.prod(shape[:-1]) ** -0.5
            draw = jax.random.fold_in(key, index)
            flat[path] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
    return unflatten(flat)


def diffusion_features(
    network: Network, process: Process, options: dict, seed: int, values: dict, images: jax.Array,
    valid: jax.Array, steps=None, other_seed=None,
) -> PixelFeatures:  # fmt: skip
    """The outputs of the chosen blocks at the chosen noise levels, per pixel of the images.

    options  steps, blocks, short, noise or share_noise, draws, dtype: see few_labels_config
    seed     of the noise that is not shared, which is a function of it and of the image's bytes;
             other_seed, i32[] or i32[B], replaces it
    values   {"params": {"unet"}, "stats": {"noise" f32[draws, h, w, 3]}}; with the noise per_step,
             f32[S * draws, h, w, 3]
    images   u8[B,H,W,3], valid i32[B,2] (height, width)
    steps    i32[S], instead of those of the options

    Channels are ordered by step as listed, within one by rising block number. Maps are averaged
    over draws. Shared noise (one draw for all images and steps, section 4) is cropped, or repeated,
    for images of another size.
    """
    model = network.bind(values["params"]["unet"], {})
    steps = jnp.asarray(options["steps"] if steps is None else steps, jnp.int32)
    blocks = [f"output_{block}" for block in sorted(options["blocks"])]
    seed = seed if other_seed is None else other_seed
    found, seen = _tapped(model, process, options, values, images, valid, blocks, steps, seed)
    maps = [values[index] for index in range(len(steps)) for values in found]
    stride = model.settings.stride  # the network pads to its multiples
    covered = tuple(side / (side + -side % stride) for side in seen)
    return stack(maps, images.shape[1:3], covered, jnp.dtype(options["dtype"]))


def named_features(
    network: Network, process: Process, options: dict, default: Sequence[str], values: dict,
    images: jax.Array, valid: jax.Array, taps: Sequence[str] | None = None, seed: int = 0,
) -> dict[str, jax.Array]:  # fmt: skip
    """Outputs of blocks for noised images u8[B,h,w,3]: {"output_5@50": f32[B,h',w',C], ...}.

    options  short, noise or share_noise, draws
    taps     block@step each, step a whole number of the diffusion, 0 the least noise; None = those
             of `default`, or where it is empty every block at LISTED_STEPS

    Other arguments as of `diffusion_features`. Raises UserError for other names.
    """
    model = network.bind(values["params"].get("unet", values["params"]), {})
    known = model.settings.blocks
    if taps is None:
        steps = [step for step in LISTED_STEPS if step < process.steps] or [process.steps - 1]
        taps = default or [_tap(block, step) for step in steps for block in known]
    pairs = [block_and_step(tap, known, process.steps) for tap in taps]
    blocks = sorted({block for block, _ in pairs}, key=known.index)
    steps = sorted({step for _, step in pairs})
    found, _ = _tapped(
        model, process, options, values, images, valid, blocks, jnp.asarray(steps), seed
    )
    return {
        tap: found[blocks.index(block)][steps.index(step)]
        for tap, (block, step) in zip(taps, pairs, strict=True)
    }


def shown_images(images: jax.Array, valid: jax.Array, short: int) -> jax.Array:
    """Images u8[B,H,W,3] as the network sees them: f32[B,h,w,3] in [-1, 1]."""
    image, seen = scale_images(images, valid), shown_size(images.shape[1:3], short)
    if seen == images.shape[1:3]:
        return image
    shape = (len(image), *seen, 3)
    return jnp.clip(jax.image.resize(image, shape, "cubic", antialias=True), -1, 1)


def _tap(block, step):
    return f"{block}@{step}"


def block_and_step(tap: str, known: Sequence[str], count: int) -> tuple[str, int]:
    """("output_5", 50) of "output_5@50"; UserError for another block or one of `count` steps."""
    block, _, step = tap.partition("@")
    require_known(block, known, "feature")
    if not step.isdecimal() or int(step) >= count:
        raise UserError(
            f"feature {tap} names no noise level after an @: 0 (least) to {count - 1}. "
            f"Try {block}@{min(50, count - 1)}."
        )
    return block, int(step)


def _tapped(model, process, options, values, images, valid, blocks, steps, seed):
    """Maps f32[S, B, h, w, C] of each block at each step, and the size at which images are seen.

    The network stops after the last of the blocks.
    """
    image, draws = shown_images(images, valid, options["short"]), options["draws"]
    seen, setting = image.shape[1:3], noise_setting(options)
    drawn = setting in ("per_image", "fresh")
    keys = keys_of_images(images, seed, "noise of a picture") if drawn else None
    rows = jnp.tile(jnp.arange(draws), len(steps))
    if setting == "per_step":  # that of the step's index in the config, of the first for others
        row = jnp.argmax(steps[:, None] == jnp.asarray(options["steps"]), 1)
        rows = (row[:, None] * draws + jnp.arange(draws)).reshape(-1)

    def tapped(inputs):
        step, draw, row = inputs
        if keys is None:
            noise = _crop(values["stats"]["noise"][row], seen)[None]
        else:
            noise = _own_noise(keys, step, draw, seen)
        t = jnp.full(len(image), step)
        noisy = noising(process, image, t, jnp.broadcast_to(noise, image.shape))
        _, found = model(noisy, process.network_time(t), until=blocks[-1])
        return [found[block].astype(jnp.float32) for block in blocks]

    # On a CPU a batch of one is as fast as a larger one and needs less memory.
    cpu = jax.default_backend() == "cpu"
    batch = 1 if cpu else min(len(steps) * draws, NOISE_LEVELS_PER_BATCH)
    inputs = jnp.repeat(steps, draws), jnp.tile(jnp.arange(draws), len(steps)), rows
    found = jax.lax.map(tapped, inputs, batch_size=batch)
    return [maps.reshape(-1, draws, *maps.shape[1:]).mean(1) for maps in found], seen


def _own_noise(keys, step, number, size):
    """Noise f32[B,h,w,3] from one key per image, for one step and the number of the draw."""
    fold = jax.random.fold_in
    draw = lambda key: jax.random.normal(fold(fold(key, step), number), (*size, 3))
    return jax.vmap(draw)(keys)


def _crop(noise, size):
    """Noise f32[h,w,3] at another size, repeated where it is too small."""
    rows, columns = (jnp.arange(side) for side in size)
    return jnp.take(jnp.take(noise, rows, 0, mode="wrap"), columns, 1, mode="wrap")
