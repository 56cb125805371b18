"""DDPM-Seg: an ADM UNet learns to denoise unlabelled images; pixel classifiers read its features.

The method is that of Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion
Models" (ICLR 2022). Training and sampling of the network follow Dhariwal and Nichol, "Diffusion
Models Beat GANs on Image Synthesis" (NeurIPS 2021), and Nichol and Dhariwal, "Improved Denoising
Diffusion Probabilistic Models" (ICML 2021).
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.bounds import training_losses
from diffseg_jax.diffusion.process import Process, make_process, noising
from diffseg_jax.errors import UserError, choose, require_known
from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
from diffseg_jax.models.network import Network
from diffseg_jax.models.pixel_mlp import widths_for
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.systems.ddpm_sampling import first_images, make_step
from diffseg_jax.systems.inputs import draw_per_row, keys_of_images, scale_images
from diffseg_jax.systems.pixel_ensemble import ensemble_maps, make_member
from diffseg_jax.systems.pixel_fit import RECIPES, PixelFit
from diffseg_jax.systems.task import Task

STEPS = (50, 150, 250)  # the paper's, at which features are listed by default
NOISE_LEVELS_PER_BATCH = 4  # of one image, on accelerators


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of a stage.

    config       reads dtype, remat, model, diffusion, and samples or features and ensemble
    kind         "pretrain" or "fit"
    crop         (height, width) of training images and of samples
    num_classes  of the images, 0 if they have none; of their pixels for a fit
    """
    make = pretrain_task if kind == "pretrain" else fit_task
    return make(config, kind, crop, num_classes)


def pretrain_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The network learns to denoise.

    Raises UserError when the network's number of classes is not that of the images.
    """
    diffusion, settings = config.diffusion, make_settings(config.model)
    if settings.num_classes != num_classes:
        raise UserError(
            f"model.num_classes is {settings.num_classes}, but the images have "
            f"{num_classes or 'no'} classes. Try --config.model.num_classes={num_classes}, or an "
            f"unlabelled source whose options name {'no' if num_classes else 'the'} classes."
        )
    network = make_network(settings, config.dtype, config.remat)
    process = make_process(
        diffusion.schedule, diffusion.steps, rescale_timesteps=diffusion.rescale_timesteps
    )
    options, samples = diffusion.to_dict(), config.samples
    sampled = make_process(
        diffusion.schedule, diffusion.steps, samples.steps, diffusion.rescale_timesteps
    )
    step = make_step(network, sampled, options, samples.sampler, samples.eta)
    return Task(
        init=lambda key: {
            **network.init(key),
            "stats": timesteps.start(diffusion.timesteps, diffusion.steps),
        },
        loss=functools.partial(diffusion_loss, network, process, options),
        sample=functools.partial(
            first_images, step, sampled, crop, settings.num_classes,
            samples.get("images", 0),  # absent from what `diffseg_jax.convert` writes
        ),
        features=functools.partial(
            named_features, network, process, {"share_noise": False, "short": 0, "draws": 1}, (),
            seed=0,
        ),
        meta={
            "kind": kind,
            "model": dataclasses.asdict(settings),
            "diffusion": options,
            "size": list(crop),
            "normalisation": "v / 127.5 - 1",
        },
    )


def make_settings(model) -> ADMSettings:
    """ADMSettings from a mapping that may hold lists, as JSON does."""
    values = dict(model)
    for name in ("channel_mult", "attention_factors"):
        values[name] = tuple(values[name])
    return ADMSettings(**values)


def make_network(settings: ADMSettings, dtype: str, remat: bool) -> Network:
    """The ADM UNet as pure functions; dtype "float32" or "bfloat16", else UserError."""
    computed = choose({"float32": jnp.float32, "bfloat16": jnp.bfloat16}, dtype, "dtype")
    return Network(lambda rngs: ADMUNet(settings, dtype=computed, remat=remat, rngs=rngs))


# ---- loss --------------------------------------------------------------------------------------


def diffusion_loss(network, process: Process, options: dict, params, stats, batch, key):
    """The loss of `training_losses` summed over images; metrics: mse and vb, where they are known.

    options  target, variance, loss (Nichol and Dhariwal, 2021, section 3)
    stats    state of the timestep sampler
    batch    image u8[B,h,w,3], valid i32[B,2], row i32[B], class i32[B] if class-conditional
    """
    key_time, key_noise, key_dropout = jax.random.split(key, 3)
    image = scale_images(batch["image"], batch["valid"])
    draw = functools.partial(timesteps.draw, stats, process.steps)
    t, weights = draw_per_row(draw, key_time, batch["row"])
    eps = draw_per_row(lambda k: jax.random.normal(k, image.shape[1:]), key_noise, batch["row"])
    noisy = noising(process, image, t, eps)
    model = network.bind(params, {})
    key_dropout = jax.random.fold_in(key_dropout, batch["row"][0])  # each part has its own mask
    classes = batch["class"] if model.settings.num_classes else None
    output, _ = model(noisy, process.network_time(t), classes, key_dropout)
    losses = training_losses(
        process, output, image, noisy, t, eps, options["target"], options["variance"],
        options["loss"],
    )  # fmt: skip
    loss = losses.pop("loss")
    stats = timesteps.update(stats, t, jax.lax.stop_gradient(loss))
    metrics = {name: jnp.sum(jax.lax.stop_gradient(values)) for name, values in losses.items()}
    return jnp.sum(weights * loss), (jnp.float32(len(loss)), stats, metrics)


# ---- features and the ensemble -----------------------------------------------------------------


def fit_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """Classifiers learn from the features of the network, which is frozen.

    The network's tree is {"params": {"unet"}, "stats": {"noise"}}, to which the fit adds
    {"params": {"ensemble"}, "stats": {"ensemble"}}; colour features need no "unet" and "noise".
    """
    features, options = config.features.to_dict(), config.ensemble
    colours = features["source"] == "colour"
    init, extract, named = _colours() if colours else _network(config, crop)
    image = jax.ShapeDtypeStruct((1, *crop, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    network = jax.eval_shape(init, jax.random.key(0))
    features_per_pixel = jax.eval_shape(extract, network, image, valid).width
    widths = tuple(options.widths) or widths_for(num_classes)
    member = make_member(features_per_pixel, num_classes, widths)
    return Task(
        init=init,
        fit=PixelFit(
            extract, member, options.members, RECIPES[options.recipe], options.small_objects,
            on_host=features["place"] == "host", classifiers=options.classifiers,
        ),
        predict=functools.partial(_vote, extract, member, seed=config.seed),
        features=named,
        short=features["short"],
        meta={
            "kind": kind,
            "model": dataclasses.asdict(make_settings(config.model)),
            "diffusion": config.diffusion.to_dict(),
            "features": features,
            "features_per_pixel": features_per_pixel,
            "widths": list(widths),
            "seed": config.seed,
            "size": list(crop),
            "normalisation": "v / 127.5 - 1",
        },
    )  # fmt: skip


def _network(config, crop):
    """(init, extract, named features) of a diffusion model."""
    features, diffusion = config.features.to_dict(), config.diffusion
    process = make_process(
        diffusion.schedule, diffusion.steps, rescale_timesteps=diffusion.rescale_timesteps
    )
    network = make_network(make_settings(config.model), config.dtype, config.remat)
    shape = (features["draws"], *shown_size(crop, features["short"]), 3)

    def init(key):
        key_noise = jax.random.fold_in(key, zlib.crc32(b"noise"))
        key_kernels = jax.random.fold_in(key, zlib.crc32(b"awake"))
        params = randomise_kernels(network.init(key)["params"], key_kernels)
        return {
            "params": {"unet": params},
            "stats": {"noise": jax.random.normal(key_noise, shape)},
        }

    reads = network, process, features
    blocks = [f"output_{block}" for block in sorted(features["blocks"])]
    taps = [_tap(block, step) for step in features["steps"] for block in blocks]
    named = functools.partial(named_features, *reads, taps, seed=config.seed)
    return init, functools.partial(diffusion_features, *reads, config.seed), named


def _colours():
    """(init, extract, None) of colour features, which need no network and have no names."""
    return lambda key: {"params": {}, "stats": {}}, colour_features, None


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


def _vote(extract, member, values, images, valid, seed):
    """The maps of the ensemble, for one image per device at a time to bound memory."""
    ensemble = {part: values[part]["ensemble"] for part in ("params", "stats")}
    share = jax.local_device_count()
    share = 1 if len(images) % share else share

    def of_each_device(inputs):
        return ensemble_maps(member, ensemble, extract(values, *inputs, other_seed=seed))

    def in_turns(x):  # [B, ...] -> [B / share, share, ...]; a device keeps its neighbouring rows
        return x.reshape(share, -1, *x.shape[1:]).swapaxes(0, 1)

    maps = jax.lax.map(of_each_device, (in_turns(images), in_turns(valid)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(len(images), *x.shape[2:]), maps)


def diffusion_features(
    network: Network, process: Process, options: dict, seed: int, values: dict, images: jax.Array,
    valid: jax.Array, steps=None, other_seed=None,
) -> PixelFeatures:  # fmt: skip
    """The outputs of the chosen blocks at the chosen noise levels, per pixel of the images.

    options  steps, blocks, short, share_noise, draws, dtype: see ddpm_seg_config
    seed     of the noise that is not shared, which is a function of it and of the image's bytes;
             other_seed replaces it
    values   {"params": {"unet"}, "stats": {"noise" f32[draws, h, w, 3]}}
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
    network: Network, process: Process, options: dict, usual: Sequence[str], values: dict,
    images: jax.Array, valid: jax.Array, taps: Sequence[str] | None = None, seed: int = 0,
) -> dict[str, jax.Array]:  # fmt: skip
    """Outputs of blocks for noised images u8[B,h,w,3]: {"output_5@50": f32[B,h',w',C], ...}.

    options  short, share_noise, draws
    taps     block@step each, step a whole number of the diffusion, 0 the least noise; None = those
             of `usual`, or where it is empty every block at STEPS

    Other arguments as of `diffusion_features`. Raises UserError for other names.
    """
    model = network.bind(values["params"].get("unet", values["params"]), {})
    known = model.settings.blocks
    if taps is None:
        steps = [step for step in STEPS if step < process.steps] or [process.steps - 1]
        taps = usual or [_tap(block, step) for step in steps for block in known]
    pairs = [_block_and_step(tap, known, process.steps) for tap in taps]
    blocks = sorted({block for block, _ in pairs}, key=known.index)
    steps = sorted({step for _, step in pairs})
    found, _ = _tapped(
        model, process, options, values, images, valid, blocks, jnp.asarray(steps), seed
    )
    return {
        tap: found[blocks.index(block)][steps.index(step)]
        for tap, (block, step) in zip(taps, pairs, strict=True)
    }


def _tap(block, step):
    return f"{block}@{step}"


def _block_and_step(tap, known, count):
    """("output_5", 50) of "output_5@50"; UserError for what the network does not have."""
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
    size, draws = images.shape[1:3], options["draws"]
    seen = shown_size(size, options["short"])
    image = scale_images(images, valid)
    if seen != size:
        shape = (len(image), *seen, 3)
        image = jnp.clip(jax.image.resize(image, shape, "cubic", antialias=True), -1, 1)
    keys = None if options["share_noise"] else keys_of_images(images, seed, "noise of a picture")

    def tapped(inputs):
        step, draw = inputs
        if keys is None:
            noise = _crop(values["stats"]["noise"][draw], seen)[None]
        else:
            noise = _own_noise(keys, step, draw, seen)
        t = jnp.full(len(image), step)
        noisy = noising(process, image, t, jnp.broadcast_to(noise, image.shape))
        _, found = model(noisy, process.network_time(t), until=blocks[-1])
        return [found[block].astype(jnp.float32) for block in blocks]

    # On a CPU a batch of one is as fast as a larger one and needs less memory.
    cpu = jax.default_backend() == "cpu"
    batch = 1 if cpu else min(len(steps) * draws, NOISE_LEVELS_PER_BATCH)
    inputs = jnp.repeat(steps, draws), jnp.tile(jnp.arange(draws), len(steps))
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


def colour_features(
    values: dict, images: jax.Array, valid: jax.Array, other_seed=None
) -> PixelFeatures:  # fmt: skip
    """Colour and position of every pixel, five numbers in [-1, 1]; needs no network."""
    image = scale_images(images, valid)
    rows, columns = ((2 * jnp.arange(side) + 1) / side - 1 for side in image.shape[1:3])
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    maps = jnp.concatenate([image, jnp.broadcast_to(grid, (*image.shape[:3], 2))], -1)
    return stack([maps], image.shape[1:3])


def shown_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) at which the network sees images of `size`; short = 0 keeps the size."""
    if not short:
        return tuple(size)
    return tuple(max(1, round(side * short / min(size))) for side in size)
