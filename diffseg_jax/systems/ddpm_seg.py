"""DDPM-Seg: an ADM UNet learns to denoise unlabelled pictures; pixel classifiers read its features.

The method is that of Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion
Models" (ICLR 2022). Training and sampling of the network follow Dhariwal and Nichol, "Diffusion
Models Beat GANs on Image Synthesis" (NeurIPS 2021), and Nichol and Dhariwal, "Improved Denoising
Diffusion Probabilistic Models" (ICML 2021).
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.config.options import FIT
from diffseg_jax.config.schema import Flag, Number, Several, Text
from diffseg_jax.data.npy import array_from
from diffseg_jax.devices.mesh import batch_sharding
from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.bounds import LOSSES, training_losses
from diffseg_jax.diffusion.process import (
    TARGETS,
    VARIANCES,
    Process,
    make_process,
    noising,
    reverse,
)
from diffseg_jax.diffusion.samplers import ddim_step, ddpm_step
from diffseg_jax.diffusion.schedules import BETAS
from diffseg_jax.errors import UserError, choose, require_known, shortened
from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
from diffseg_jax.models.network import Network
from diffseg_jax.models.pixel_mlp import widths_for
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.storage.paths import read_bytes
from diffseg_jax.systems.pixel_ensemble import RECIPES, PixelFit, answer, make_member
from diffseg_jax.systems.system import (
    Task,
    draw_per_row,
    keys_of_pictures,
    require_same,
    scale_images,
)
from diffseg_jax.weights.adm import ORDERS, load_adm
from diffseg_jax.weights.formats import read_arrays

STAGES = {"pretrain": "unlabelled", FIT: "labelled"}  # kind -> data that it learns from
CONVENTION = "ddpm_seg"  # of the paper's numbers, reported beside the library's own
SAMPLERS = ("ddpm", "ddim")
STEPS = (50, 150, 250)  # of the paper, whose features are listed where nothing else is said
AT_ONCE = 4  # noise levels of a picture that accelerators compute together
START = 2**31 - 1  # folded into the key of an image for its first noise; steps fold in their number


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of a stage.

    config       reads dtype, remat, model, diffusion, and samples or features and ensemble
    crop         (height, width) of training images and of samples
    num_classes  of the pictures, 0 if they have none; of their pixels for a fit
    """
    return (fit_task if kind == FIT else pretrain_task)(config, kind, crop, num_classes)


def pretrain_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The network learns to denoise.

    Raises UserError when the network's number of classes is not that of the pictures.
    """
    diffusion, settings = config.diffusion, make_settings(config.model)
    if settings.num_classes != num_classes:
        raise UserError(
            f"model.num_classes is {settings.num_classes}, but the pictures have "
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
        sample=functools.partial(_samples, step, sampled, crop, settings.num_classes),
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
    """Settings from a mapping that may hold lists, as JSON does."""
    values = dict(model)
    for name in ("channel_mult", "attention_factors"):
        values[name] = tuple(values[name])
    return ADMSettings(**values)


def make_network(settings: ADMSettings, dtype: str, remat: bool) -> Network:
    """The ADM UNet as pure functions; dtype "float32" or "bfloat16", else UserError."""
    kind = choose({"float32": jnp.float32, "bfloat16": jnp.bfloat16}, dtype, "dtype")
    return Network(lambda rngs: ADMUNet(settings, dtype=kind, remat=remat, rngs=rngs))


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
    key_dropout = jax.random.fold_in(key_dropout, batch["row"][0])  # another mask in each part
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
    """Classifiers learn from the features of the network, which rests.

    The network's tree is {"params": {"unet"}, "stats": {"noise"}}, and {"params": {"ensemble"},
    "stats": {"ensemble"}} once they are fitted; features of colours have no "unet" and no "noise".
    """
    features, options = config.features.to_dict(), config.ensemble
    from_colours = features["source"] == "colour"
    init, extract, named = _colours() if from_colours else _network(config, crop)
    picture = jax.ShapeDtypeStruct((1, *crop, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    network = jax.eval_shape(init, jax.random.key(0))
    features_per_pixel = jax.eval_shape(extract, network, picture, valid).width
    widths = tuple(options.widths) or widths_for(num_classes)
    member = make_member(features_per_pixel, num_classes, widths)
    return Task(
        init=init,
        fit=PixelFit(
            extract, member, options.members, RECIPES[options.recipe], options.small_objects,
            on_host=features["place"] == "host",
        ),
        predict=functools.partial(_vote, extract, member, seed=config.seed),
        features=named,
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
        params = awake(network.init(key)["params"], jax.random.fold_in(key, zlib.crc32(b"awake")))
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
    """The same of what needs no network, of which there are no names."""
    return lambda key: {"params": {}, "stats": {}}, colour_features, None


def awake(params: dict, key: jax.Array) -> dict:
    """Fresh parameters with every kernel drawn, uniform in +- 1 / sqrt(fan in).

    A fresh network's residual branches end in zeros, so that it is a linear filter of the picture
    that ignores the timestep; with random weights it should be as deep as with trained ones.
    """
    flat = flatten(params)
    for place, path in enumerate(sorted(flat)):
        if path[-1] == "kernel":
            shape = flat[path].shape
            bound = math.prod(shape[:-1]) ** -0.5
            draw = jax.random.fold_in(key, place)
            flat[path] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
    return unflatten(flat)


def _vote(extract, member, values, images, valid, seed):
    """The answers of the ensemble, one picture a device at a time: features of many take much."""
    ensemble = {part: values[part]["ensemble"] for part in ("params", "stats")}
    share = jax.local_device_count()
    share = 1 if len(images) % share else share

    def of_each_device(pictures):
        return answer(member, ensemble, extract(values, *pictures, other_seed=seed))

    def in_turns(x):  # [B, ...] -> [B / share, share, ...]; a device keeps its neighbouring rows
        return x.reshape(share, -1, *x.shape[1:]).swapaxes(0, 1)

    maps = jax.lax.map(of_each_device, (in_turns(images), in_turns(valid)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(len(images), *x.shape[2:]), maps)


def diffusion_features(
    network: Network, process: Process, options: dict, seed: int, values: dict, images: jax.Array,
    valid: jax.Array, steps=None, other_seed=None,
) -> PixelFeatures:  # fmt: skip
    """What the chosen blocks answer at the chosen noise levels, per pixel of the pictures.

    options  steps, blocks, short, share_noise, draws, dtype: see OPTIONS_OF
    seed     of the noise that is not shared, which is a function of it and of the picture's bytes;
             other_seed takes its place
    values   {"params": {"unet"}, "stats": {"noise" f32[draws, h, w, 3]}}
    images   u8[B,H,W,3], valid i32[B,2] (height, width)
    steps    i32[S], in place of those of the options

    Channels are ordered by step as listed, within one by rising block number. Maps are averaged
    over draws. Shared noise (one draw for all pictures and steps, section 4) is cut, or repeated,
    for pictures of another size.
    """
    model = network.bind(values["params"]["unet"], {})
    steps = jnp.asarray(options["steps"] if steps is None else steps, jnp.int32)
    blocks = [f"output_{block}" for block in sorted(options["blocks"])]
    seed = seed if other_seed is None else other_seed
    found, seen = _tapped(model, process, options, values, images, valid, blocks, steps, seed)
    maps = [values[place] for place in range(len(steps)) for values in found]
    stride = model.settings.stride  # the network pads to its multiples
    covered = tuple(side / (side + -side % stride) for side in seen)
    return stack(maps, images.shape[1:3], covered, jnp.dtype(options["dtype"]))


def named_features(
    network: Network, process: Process, options: dict, usual: Sequence[str], values: dict,
    images: jax.Array, valid: jax.Array, taps: Sequence[str] | None = None, seed: int = 0,
) -> dict[str, jax.Array]:  # fmt: skip
    """What blocks answer to noised pictures u8[B,h,w,3]: {"output_5@50": f32[B,h',w',C], ...}.

    options  short, share_noise, draws
    taps     block@step each, step a whole number of the diffusion, 0 the least noise; None = those
             of `usual`, or where there are none every block at STEPS

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
    """Maps f32[S, B, h, w, C] of each block at each step, and the size at which pictures are seen.

    The network goes no further than the last of the blocks.
    """
    size, draws = images.shape[1:3], options["draws"]
    seen = shown_size(size, options["short"])
    image = scale_images(images, valid)
    if seen != size:
        shape = (len(image), *seen, 3)
        image = jnp.clip(jax.image.resize(image, shape, "cubic", antialias=True), -1, 1)
    keys = None if options["share_noise"] else keys_of_pictures(images, seed, "noise of a picture")

    def tapped(inputs):
        step, draw = inputs
        if keys is None:
            noise = _cut(values["stats"]["noise"][draw], seen)[None]
        else:
            noise = _own_noise(keys, step, draw, seen)
        t = jnp.full(len(image), step)
        noisy = noising(process, image, t, jnp.broadcast_to(noise, image.shape))
        _, found = model(noisy, process.network_time(t), until=blocks[-1])
        return [found[block].astype(jnp.float32) for block in blocks]

    # on a CPU a batch of one is as fast as a larger one, and needs less memory
    at_once = 1 if jax.default_backend() == "cpu" else min(len(steps) * draws, AT_ONCE)
    places = jnp.repeat(steps, draws), jnp.tile(jnp.arange(draws), len(steps))
    found = jax.lax.map(tapped, places, batch_size=at_once)
    return [maps.reshape(-1, draws, *maps.shape[1:]).mean(1) for maps in found], seen


def _own_noise(keys, step, number, size):
    """f32[B,h,w,3] of the pictures' own keys, for one step and one of its draws, by number."""
    fold = jax.random.fold_in
    draw = lambda key: jax.random.normal(fold(fold(key, step), number), (*size, 3))
    return jax.vmap(draw)(keys)


def _cut(noise, size):
    """Noise f32[h,w,3] of another size, repeated where it is too small."""
    rows, columns = (jnp.arange(side) for side in size)
    return jnp.take(jnp.take(noise, rows, 0, mode="wrap"), columns, 1, mode="wrap")


def given_arrays(config, abstract: dict) -> dict:
    """What the config gives a fresh fit besides its start: the noise of a file, if it names one."""
    if not config.features.noise_file:
        return {}
    shape = abstract["stats"]["noise"].shape
    return {"stats": {"noise": read_noise(config.features.noise_file, shape)}}


def read_noise(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The noise f32[draws, h, w, 3] of a .npy file, as PyTorch ([draws, 3, h, w]) or as here.

    A first axis of one draw may be missing. Raises UserError for a file without such an array.
    """
    try:
        noise = array_from(read_bytes(path))
    except Exception as error:  # numpy reports damage by many types
        raise UserError(
            f"cannot read features.noise_file {path}: {shortened(str(error), 200)}. "
            "Give an array saved by numpy.save."
        ) from None
    noise = noise[None] if noise.ndim == 3 else noise
    if noise.ndim == 4 and noise.shape[-1] != 3:
        noise = np.moveaxis(noise, 1, -1)
    if noise.shape != shape or noise.dtype.kind != "f":
        raise UserError(
            f"features.noise_file {path} holds {noise.dtype}{list(noise.shape)}, but the network "
            f"sees pictures with noise float32{list(shape)}. Save an array of that shape and type."
        )
    if not np.isfinite(noise).all():
        raise UserError(f"features.noise_file {path} holds NaN or infinity. Save it again.")
    return noise.astype(np.float32)


def colour_features(
    values: dict, images: jax.Array, valid: jax.Array, other_seed=None
) -> PixelFeatures:  # fmt: skip
    """What no network has to say of a pixel: its colour and its place, five numbers in [-1, 1]."""
    image = scale_images(images, valid)
    rows, columns = ((2 * jnp.arange(side) + 1) / side - 1 for side in image.shape[1:3])
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    maps = jnp.concatenate([image, jnp.broadcast_to(grid, (*image.shape[:3], 2))], -1)
    return stack([maps], image.shape[1:3])


def shown_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) at which the network sees pictures of `size`; short = 0: as they are."""
    if not short:
        return tuple(size)
    return tuple(max(1, round(side * short / min(size))) for side in size)


# ---- samples -----------------------------------------------------------------------------------


def sample_images(
    step: Callable, process: Process, params: dict, *, seed: int, places: Sequence[int],
    size: tuple[int, int], classes: np.ndarray | None = None, progress: Callable = iter,
) -> np.ndarray:  # fmt: skip
    """Images u8[n, height, width, 3], each a function of the seed and its place alone.

    step      what `make_step` returned for the same process
    params    of the network; on a mesh, its devices share the images
    places    numbers of the images, n of them
    classes   i32[n] of a class-conditional network
    progress  wraps the iterable of steps, as a progress bar does
    """
    split, whole, share = _placement(params)
    count = len(places)
    places = np.resize(np.asarray(places), -(-count // share) * share)  # some twice, if need be
    classes = None if classes is None else np.resize(classes, len(places))

    def begin():
        purpose = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"samples"))
        keys = jax.vmap(lambda i: jax.random.fold_in(purpose, i))(jnp.asarray(places))
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, START), (*size, 3))
        return keys, jax.vmap(draw)(keys)

    keys, x = jax.jit(begin, out_shardings=split)()
    classes = None if classes is None else jax.device_put(np.asarray(classes, np.int32), split)
    for index in progress(range(process.steps - 1, -1, -1)):
        x = jax.block_until_ready(step(params, x, jnp.int32(index), keys, classes))
    x = np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))[:count]  # in every process
    return np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8)


def _placement(params):
    """Where images live during sampling, where every process reads them, and how many share."""
    where = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
    if not isinstance(where, NamedSharding):
        return where, where, 1
    whole = NamedSharding(where.mesh, PartitionSpec())
    return batch_sharding(where.mesh), whole, where.mesh.size


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


def _samples(step, process, size, num_classes, values, seed, count):
    """The first `count` images of a seed; the classes take turns."""
    classes = np.arange(count) % num_classes if num_classes else None
    return sample_images(
        step, process, values["params"], seed=seed, places=range(count), size=size, classes=classes
    )


# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    return start


def skips_stage(config, kind: str) -> bool:
    """No choice of this system leaves a stage out."""
    return False


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """What a stage takes over from another one's network: its parameters.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`
    Raises UserError when the networks differ; to read features from, also when their settings or
    noise levels do, of which the arrays say nothing.
    """
    here = task.meta
    for part, words in (("model", sorted(here["model"])), ("diffusion", WORDS_OF_PROCESS)):
        for word in words:
            mine, theirs = (facts[part][word] for facts in (here, meta))
            if task.fit and word != "dropout" and _plain(mine) != _plain(theirs):
                raise UserError(
                    f"{part}.{word} is {mine}, but the network to start from was trained with "
                    f"{theirs}. Try --config.{part}.{word}={theirs}."
                )
    unet = previous["params"].get("unet", previous["params"])
    taken = {"params": {"unet": unet} if task.fit else unet}
    require_same({"params": abstract["params"]}, taken)
    return taken


WORDS_OF_PROCESS = ("schedule", "steps", "rescale_timesteps")  # which features depend on


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def load_weights(config, abstract: dict, task: Task) -> dict:
    """What an official guided-diffusion checkpoint gives a stage: all parameters.

    Raises UserError for anything missing, extra or of another shape.
    """
    arrays = read_arrays(config.weights)
    settings = make_settings(task.meta["model"])
    unet = load_adm(arrays, settings, config.weights_order, config.weights)
    return {"params": {"unet": unet} if task.fit else unet}


# ---- what can be wrong with a config -----------------------------------------------------------


OPTIONS = {
    "weights": Text(),
    "weights_order": Text(ORDERS),
    "model": {
        "channels": Number(int, 32, 8192),
        "channel_mult": Several(Number(float, 0.1, 64), least=1, most=10),
        "res_blocks": Number(int, 1, 16),
        "attention_factors": Several(Number(int, 1)),
        "heads": Number(int, 1, 1024),
        "heads_up": Number(int, -1, 1024),
        "head_channels": Number(int, -1, 16384),
        "resample_in_blocks": Flag(),
        "scale_shift": Flag(),
        "num_classes": Number(int, 0, 2**20),
        "learn_sigma": Flag(),
        "dropout": Number(float, 0, 0.99),
    },
    "diffusion": {
        "schedule": Text(tuple(BETAS)),
        "steps": Number(int, 1, 100_000),
        "rescale_timesteps": Flag(),
        "target": Text(TARGETS),
        "variance": Text(VARIANCES),
        "loss": Text(LOSSES),
        "timesteps": Text(timesteps.SAMPLERS),
    },
}
OPTIONS_OF = {  # kind of stage -> what a config holds for it besides
    "pretrain": {
        "samples": {
            "images": Number(int, 1, 64),
            "sampler": Text(SAMPLERS),
            "steps": Text(),
            "eta": Number(float, 0, 1),
        },
    },
    FIT: {
        "features": {
            "source": Text(("network", "colour")),
            "steps": Several(Number(int, 0), least=1),
            "blocks": Several(Number(int, 0), least=1),
            "short": Number(int, 0, 16384),
            "share_noise": Flag(),
            "noise_file": Text(),
            "draws": Number(int, 1, 256),
            "dtype": Text(("float16", "float32")),
            "place": Text(("device", "host")),
        },
        "ensemble": {
            "recipe": Text(tuple(RECIPES)),
            "members": Number(int, 1, 1000),
            "widths": Several(Number(int, 1, 16384)),  # none, or two
            "small_objects": Number(int, 0),
            "classifiers": Text(),
        },
    },
}


def check(config):
    """Raises UserError for values that go with no network, beyond what OPTIONS says of each."""
    settings, diffusion = make_settings(config.model), config.diffusion
    if problem := settings.problem():
        raise UserError(f"model: {problem}")
    if settings.learn_sigma != (diffusion.variance == "learned"):
        wanted = "learned" if settings.learn_sigma else "fixed_large"
        raise UserError(
            f"model.learn_sigma is {settings.learn_sigma}, which does not go with "
            f"diffusion.variance {diffusion.variance}. Try --config.diffusion.variance={wanted}."
        )
    if diffusion.loss.startswith("hybrid") and not settings.learn_sigma:
        raise UserError(
            f"diffusion.loss is {diffusion.loss}, which trains a learned variance, but "
            "model.learn_sigma is False. Try --config.diffusion.loss=simple."
        )
    if "samples" in config:
        make_process(diffusion.schedule, diffusion.steps, config.samples.steps)
    if "samples" in config and config.samples.eta and config.samples.sampler == "ddpm":
        raise UserError(
            f"samples.eta is {config.samples.eta}, which only ddim reads. "
            "Try --config.samples.sampler=ddim."
        )
    if "features" in config:
        check_fit(config, settings)
    for name in config.run:
        stage = config.stages[name]
        if stage.start == "weights" and not config.weights:
            raise UserError(
                f"stages.{name}.start is weights, but no file is given. "
                "Try --config.weights=lsun_bedroom.pt."
            )
        if stage.kind == FIT:
            continue
        square = config.unlabelled.options.get("square", 0)
        check_size(tuple(stage.augment.crop), settings, f"stages.{name}.augment.crop")
        if square and max(stage.augment.crop) > square:
            raise UserError(
                f"stages.{name}.augment.crop is {tuple(stage.augment.crop)}, but pictures are "
                f"squares of {square}; the rest would be padding. "
                f"Try --config.unlabelled.options.square={max(stage.augment.crop)}."
            )


def check_fit(config, settings: ADMSettings):
    """Raises UserError for features that the network does not have, and options that clash."""
    features, ensemble = config.features, config.ensemble
    starts = {config.stages[name].start for name in config.run if config.stages[name].kind == FIT}
    widened = [scale for scale in config.evaluate.scales if scale != 1]
    rules = (
        (
            len(ensemble.widths) not in (0, 2),
            f"ensemble.widths is {tuple(ensemble.widths)}, but a classifier has two hidden layers. "
            "Try (128, 32), or () for the paper's.",
        ),
        (
            features.noise_file and not features.share_noise,
            "features.noise_file is given, but features.share_noise=False reads no file. "
            "Try --config.features.share_noise=True.",
        ),
        (
            features.source == "colour" and starts - {"random"},
            "features.source is colour, which starts from no network. "
            "Try --config.stages.fit.start=random.",
        ),
        (
            features.short and (widened or config.evaluate.view != "whole"),
            f"features.short is {features.short}, to which every window and scale would be brought "
            'back. Use evaluate.view="whole" and scales=(1.0,), or features.short=0.',
        ),
        (
            settings.num_classes,
            f"model.num_classes is {settings.num_classes}, but features are read from networks "
            "that need no class. Take an unconditional one, such as lsun_bedroom.",
        ),
    )
    for wrong, sentence in rules:
        if wrong:
            raise UserError(sentence)
    if features.source == "network":
        check_taps(features, settings, config.diffusion.steps)


def check_taps(features, settings: ADMSettings, steps: int):
    """Raises UserError for blocks and steps that the network and its diffusion do not have."""
    blocks = settings.levels * (settings.res_blocks + 1)
    given = ("block", features.blocks, blocks), ("step", features.steps, steps)
    for what, values, count in given:
        for place, value in enumerate(values):
            if value >= count:
                raise UserError(
                    f"features.{what}s holds {value}, but this network has the {what}s 0 to "
                    f"{count - 1}. Which serve best: --mode=taps."
                )
            if value in values[:place]:
                raise UserError(f"features.{what}s holds {value} twice. Give each {what} once.")


def check_size(size: tuple[int, int], settings: ADMSettings, what: str):
    """Raises UserError unless height and width are multiples of the network's stride."""
    stride = settings.stride
    if len(size) != 2:
        raise UserError(
            f"{what} is {tuple(size)}, but it is a height and a width. Try --size=64,64."
        )
    if any(side < 1 or side % stride for side in size):
        near = tuple(max(stride, round(side / stride) * stride) for side in size)
        raise UserError(
            f"{what} is {tuple(size)}, but a network of {settings.levels} levels makes images "
            f"whose sides are multiples of {stride}. Try {near}."
        )


def note(config, kind: str, start: str) -> str:
    """What a user should know before a stage with that `start` runs, or an empty string."""
    return ""
