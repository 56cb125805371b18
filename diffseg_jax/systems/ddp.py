"""DDP: segmentation by denoising a label map, conditioned on an image.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023, arXiv 2303.17559).

| stage   | the noisy map in training                     | an answer is                      |
|---|---|---|
| train   | the true labels, with noise                   | a few reverse steps               |
| align   | the network's own first answer, with noise    | the same (section 3.4)            |
| plain   | none: encoder and a convolutional head        | one forward pass; for comparison  |
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.config.schema import Flag, Number, Several, Text
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.diffusion.label_codes import CODES
from diffseg_jax.diffusion.process import add_noise
from diffseg_jax.diffusion.samplers import ddim_transition, ddpm_transition
from diffseg_jax.diffusion.schedules import LOG_SNRS, alpha_sigma, time_pairs
from diffseg_jax.errors import UserError
from diffseg_jax.layers.resize import resize_bilinear, resize_nearest
from diffseg_jax.metrics.divergence import entropy, jensen_shannon
from diffseg_jax.metrics.uncertainty import MEASURES
from diffseg_jax.models.ddp_network import SMALLEST, DDPNetwork, DDPSettings
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.systems.system import (
    Task,
    choose_features,
    draw_per_row,
    keys_of_pictures,
    require_same,
    scale_images,
)
from diffseg_jax.training.losses import masked_cross_entropy
from diffseg_jax.weights.backbones import load_backbone
from diffseg_jax.weights.ddp import is_ddp, load_ddp, settings_of
from diffseg_jax.weights.formats import read_arrays

STAGES = {"train": "labelled", "align": "labelled", "plain": "labelled"}  # kind -> data
CONVENTION = "default"  # of the paper's numbers
SAMPLERS = ("ddim", "ddpm")


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of one stage.

    config  reads dtype, remat, seed, model, diffusion, sampling, new_head
    kind    "train", "align" or "plain"
    crop    (height, width) of training images, 32 or more
    Raises UserError for settings that make no network.
    """
    settings = make_settings(config, num_classes)
    if problem := settings.problem():
        raise UserError(f"model: {problem}")
    network = make_network(settings, kind != "plain", config.dtype, config.remat)
    diffusion, sampling = config.diffusion.to_dict(), config.sampling.to_dict()
    sampling["schedule"] = diffusion["schedule"]
    meta = {
        "kind": kind,
        "model": dataclasses.asdict(settings),
        "num_classes": num_classes,
        "sampling": sampling,
        "new_head": config.new_head and kind != "align",  # align goes on with what was trained
        "normalisation": "(v - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    features = functools.partial(named_features, network)
    if kind == "plain":
        loss = functools.partial(plain_loss, network)
        predict = functools.partial(plain_maps, network)
        return Task(init=network.init, loss=loss, predict=predict, meta=meta, features=features)
    losses = {"train": diffusion_loss, "align": aligned_loss}
    reverse = functools.partial(reverse_process, network, sampling)
    return Task(
        init=network.init,
        loss=functools.partial(losses[kind], network, diffusion),
        predict=functools.partial(diffused_maps, reverse, sampling, seed=config.seed),
        trace=functools.partial(labels_of_steps, reverse, seed=config.seed),
        meta=meta,
        features=features,
    )


def make_settings(config, num_classes: int) -> DDPSettings:
    """The settings of a config's parts model and diffusion."""
    code = {word: config.diffusion[word] for word in ("code", "code_scale")}
    return settings_of_meta({"model": {**config.model, **code, "num_classes": num_classes}})


def make_network(settings: DDPSettings, diffuses: bool, dtype: str, remat: bool) -> Network:
    """The network as pure functions; dtype "float32" or "bfloat16"."""
    kind = jnp.dtype(dtype)
    return Network(
        lambda rngs: DDPNetwork(settings, diffuses=diffuses, dtype=kind, remat=remat, rngs=rngs)
    )


# ---- losses ------------------------------------------------------------------------------------


def diffusion_loss(network, options, params, stats, batch, key):
    """Cross-entropy of the map decoder's answer to a noised label map (algorithm 1).

    options  schedule; high, the latest time drawn; auxiliary, the weight of that head's loss
    batch    image u8[B,h,w,3], mask i32[B,h,w] with 255 = ignored, valid i32[B,2], row i32[B]

    Sums over counted pixels; the weight is the number of all pixels, ignored ones too, as in the
    original. Metrics: pixel_accuracy, auxiliary_loss.
    """
    model, x, keys = _encoded(network, params, stats, batch, key)
    labels = shrink_labels(batch["mask"], x.shape[1:3], model.settings.num_classes)
    eps = _draw_noise(model, x, batch["row"], keys["noise"])
    return _denoising_loss(model, options, x, labels, eps, batch, keys)


def aligned_loss(network, options, params, stats, batch, key):
    """The same with the network's own answer to pure noise in place of the labels (section 3.4).

    The noise that it answered is used again. Arguments and result as of `diffusion_loss`.
    """
    model, x, keys = _encoded(network, params, stats, batch, key)
    eps = _draw_noise(model, x, batch["row"], keys["noise"])
    last = LOG_SNRS[options["schedule"]](jnp.ones(len(x)))
    first = jax.lax.stop_gradient(_answer(model, x, eps, last))
    return _denoising_loss(model, options, x, jnp.argmax(first, -1), eps, batch, keys)


def plain_loss(network, params, stats, batch, key):
    """Cross-entropy of the convolutional head alone; arguments as of `diffusion_loss`."""
    model, x, keys = _encoded(network, params, stats, batch, key)
    loss, weight, metrics = pixel_loss(model.auxiliary(x, keys["dropout"]), batch["mask"])
    return loss, (weight, stats_of(model), metrics)


def _encoded(network, params, stats, batch, key):
    """(model, merged features, keys by purpose; those of dropout one per image)."""
    keys = dict(zip(("time", "noise", "dropout"), jax.random.split(key, 3)))
    keys["dropout"] = jax.vmap(lambda row: jax.random.fold_in(keys["dropout"], row))(batch["row"])
    model = network.bind(params, stats)
    image = scale_images(batch["image"], batch["valid"], IMAGENET_MEAN, IMAGENET_STD)
    x, _ = model.encode(image, keys["dropout"])
    return model, x, keys


def _draw_noise(model, x, rows, key):
    shape = (*x.shape[1:3], model.settings.code_width)
    return draw_per_row(lambda k: jax.random.normal(k, shape), key, rows)


def _denoising_loss(model, options, x, labels, eps, batch, keys):
    """That of the answer to labels i32[B,h,w] with noise, and of the auxiliary head's to x."""
    draw = lambda key: jax.random.uniform(key, maxval=options["high"])
    level = LOG_SNRS[options["schedule"]](draw_per_row(draw, keys["time"], batch["row"]))
    noisy = add_noise(model.codes()[labels], eps, *alpha_sigma(level))
    loss, weight, metrics = pixel_loss(_answer(model, x, noisy, level), batch["mask"])
    auxiliary, _, _ = pixel_loss(model.auxiliary(x, keys["dropout"]), batch["mask"])
    metrics["auxiliary_loss"] = auxiliary
    return loss + options["auxiliary"] * auxiliary, (weight, stats_of(model), metrics)


def _answer(model, x, noisy, level):
    """Class logits f32[B,h,w,K] for features, noisy maps and their log-SNRs f32[B]."""
    mixed = model.project_features(x) + model.project_codes(noisy)
    places = model.decoder.places(x.shape[1:3])
    return model.decode(mixed, places, model.modulations(level))


def pixel_loss(logits, mask):
    """(summed cross-entropy at the size of the mask, number of its pixels, metrics).

    pixel_accuracy is the share of counted pixels in this part of the batch, as the original logs
    it; it comes times the number of all pixels.
    """
    logits = resize_bilinear(logits, mask.shape[1:3])
    loss, counted = masked_cross_entropy(logits, mask)
    pixels = jnp.asarray(mask.size, jnp.float32)
    correct = jnp.sum(jnp.argmax(logits, -1) == mask) / jnp.maximum(counted, 1)
    return loss, pixels, {"pixel_accuracy": correct * pixels}


def shrink_labels(mask: jax.Array, size: tuple[int, int], num_classes: int) -> jax.Array:
    """Labels of a smaller map i32[B,h,w]: the nearest ones; the ignore label becomes K."""
    labels = resize_nearest(mask[..., None], size)[..., 0]
    return jnp.where(labels == IGNORE, num_classes, labels)


# ---- answers -----------------------------------------------------------------------------------


def plain_maps(network, values, images, valid, seed=0):
    """{"logits" f32[B,h,w,K]} of the convolutional head, for images u8[B,h,w,3]; no noise."""
    padded, valid = _padded(images, valid)
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = model.encode(scale_images(padded, valid, IMAGENET_MEAN, IMAGENET_STD))
    return {"logits": _enlarged(model.auxiliary(x), padded, images)}


def diffused_maps(reverse, sampling, values, images, valid, seed):
    """Scores and uncertainties f32[B,h,w,...] of images u8[B,h,w,3], after all reverse steps.

    sampling  see OPTIONS

    "logits", or with `accumulate` "probs", which are "logits" too: the original takes a second
    softmax of them before it averages views, and labels follow that. "changes", how often a cell's
    label changed, as a share of T - 1 (section 3.5), for two steps or more; "spread", by how much
    draws disagree, for two or more: the Jensen-Shannon divergence divided by ln K. "uncertainty" is
    the one that the options name, absent for "entropy", which `prediction.predict` works out.
    """
    padded, valid = _padded(images, valid)
    found = reverse(values, padded, valid, seed)
    maps = {"logits": _enlarged(found.pop("scores"), padded, images)}
    if sampling["accumulate"]:
        maps["probs"] = maps["logits"]
    del found["labels"]
    maps |= {n: _repeated(cells[..., None], padded, images)[..., 0] for n, cells in found.items()}
    if sampling["uncertainty"] in maps:
        maps["uncertainty"] = maps[sampling["uncertainty"]]
    return maps


def labels_of_steps(reverse, values, images, valid, seed):
    """The labels of the first draw after every step, i32[B,T,h,w], for images u8[B,h,w,3]."""
    padded, valid = _padded(images, valid)
    labels = jnp.moveaxis(reverse(values, padded, valid, seed)["labels"], 1, -1)  # [B, cells, T]
    return jnp.moveaxis(_repeated(labels, padded, images), -1, 1)


def named_features(network, values, images, valid, taps=None, seed=0):
    """What the encoder's parts answer to pictures u8[B,h,w,3]: {name: f32[B,h',w',C]}."""
    padded, valid = _padded(images, valid)
    model = network.bind_eval(values["params"], values["stats"])
    _, found = model.encode(scale_images(padded, valid, IMAGENET_MEAN, IMAGENET_STD))
    return choose_features(found, taps)


def _padded(images, valid):
    """Images of at least 32 pixels a side, and what of them is valid."""
    rest = [(0, max(SMALLEST - side, 0)) for side in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *rest, (0, 0))), valid


def _enlarged(maps, padded, images):
    height, width = images.shape[1:3]
    return resize_bilinear(maps, padded.shape[1:3])[:, :height, :width]


def _repeated(cells, padded, images):
    height, width = images.shape[1:3]
    return resize_nearest(cells, padded.shape[1:3])[:, :height, :width]


def reverse_process(network, sampling, values, images, valid, seed) -> dict:
    """What T reverse steps make of noise, for images u8[B,H,W,3]; noise is that of each picture.

    scores   f32[B,h,w,K]: logits of the last step averaged over draws, or, with `accumulate`,
             probabilities averaged over steps and draws
    labels   i32[B,T,h,w], of the first draw
    changes  f32[B,h,w] in [0, 1], for T > 1;  spread f32[B,h,w] in [0, 1], for several draws
    """
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = model.encode(scale_images(images, valid, IMAGENET_MEAN, IMAGENET_STD))
    shape = (*x.shape[1:3], model.settings.code_width)
    keys = keys_of_pictures(images, seed, "noise of a label map")
    draws = jnp.arange(sampling["draws"])
    keys = jax.vmap(lambda key: jax.vmap(lambda r: jax.random.fold_in(key, r))(draws))(keys)
    start = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape)))(keys)

    def fresh(step):
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)
        return jax.vmap(jax.vmap(draw))(keys)

    return denoise_map(model, x, start, sampling, fresh)


def denoise_map(model, x, noise, sampling, fresh) -> dict:
    """The reverse process for merged features f[B,h,w,E] from noise f32[B,R,h,w,n], R draws.

    fresh  step -> noise f32[B,R,h,w,n], for the sampler "ddpm"

    Steps run in the space after the 1x1 transform, which is linear: codes are projected once, and
    noisy maps are never formed. Result as of `reverse_process`.
    """
    batch, draws, height, width, _ = noise.shape
    steps, classes = sampling["steps"], model.settings.num_classes
    pairs = time_pairs(steps, sampling["time_difference"], sampling["start"])
    levels = LOG_SNRS[sampling["schedule"]](pairs, np)
    features = model.project_features(x)[:, None]
    codes = model.project_codes(model.codes()[:classes])
    places = model.decoder.places((height, width))
    folded = lambda maps: maps.reshape(batch * draws, *maps.shape[2:])

    def step(carry, inputs):
        state, before, scores, changes = carry
        number, (now, then), last, modulations = inputs
        modulations = jnp.broadcast_to(modulations, (batch * draws, *modulations.shape))
        logits = model.decode(folded(features + state), places, modulations)
        logits = logits.reshape(batch, draws, height, width, classes)
        labels = jnp.argmax(logits, -1)
        changes += (labels != before) & (number > 0)
        if sampling["accumulate"]:
            scores += jax.nn.softmax(logits) / steps
        else:
            scores = logits
        clean = codes[labels]
        if sampling["sampler"] == "ddim":
            state = ddim_transition(state, clean, now, then)
        else:
            noise = model.project_codes(fresh(number)) * ~last
            state = ddpm_transition(state, clean, now, then, noise)
        return (state, labels, scores, changes), labels[:, 0]

    inputs = (
        jnp.arange(steps), jnp.asarray(levels), jnp.asarray(pairs[:, 1] <= 0),
        model.modulations(jnp.asarray(levels[:, 0])),
    )  # fmt: skip
    empty = jnp.zeros((batch, draws, height, width), jnp.int32)
    scores = jnp.zeros((*empty.shape, classes))
    carry = (model.project_codes(noise), empty, scores, empty)
    (_, _, scores, changes), labels = jax.lax.scan(step, carry, inputs)
    found = {"scores": jnp.mean(scores, 1), "labels": jnp.moveaxis(labels, 0, 1)}
    if steps > 1:
        found["changes"] = jnp.mean(changes, 1) / (steps - 1)
    if draws > 1:
        probs = scores if sampling["accumulate"] else jax.nn.softmax(scores)
        mixture = entropy(jnp.mean(probs, 1))
        found["spread"] = jensen_shannon(mixture, entropy(probs), classes, axis=1)
    return found


# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    return "random" if start == "weights" and not config.weights else start


def skips_stage(config, kind: str) -> bool:
    """No choice of this system leaves a stage out."""
    return False


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """What a stage takes over from another one's network: all of it.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`

    With `new_head` what belongs to classes stays fresh. Raises UserError when label codes, classes
    or networks differ.
    """
    if "sampling" not in meta:
        raise UserError(
            "the checkpoint to start from is of another system. Give a stage of a ddp run, or what "
            "python -m diffseg_jax.convert --source=ddp wrote."
        )
    here, there = settings_of_meta(task.meta), settings_of_meta(meta)
    require_same_words(here, there, WORDS)
    pairs = {word: (getattr(here, word), getattr(there, word)) for word in ("code", "code_scale")}
    pairs["schedule"] = tuple(facts["sampling"]["schedule"] for facts in (task.meta, meta))
    for word, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise UserError(_other_code(word, mine, theirs))
    if not task.meta["new_head"]:
        if there.num_classes != here.num_classes:
            new = "a stage of kind train and " if task.meta["kind"] == "align" else ""
            raise UserError(
                f"the data have {here.num_classes} classes, but the checkpoint to start from has "
                f"{there.num_classes}. To train it further with a new head takes {new}--mode=train "
                "--config.new_head=True."
            )
        require_same(abstract, previous)
        return previous
    kept = _without_classes(previous)
    require_same(_without_classes(abstract), kept)
    return kept


WORDS = (  # of the settings, on which the shapes of arrays and what they mean depend
    "backbone", "channels", "depths", "heads", "window", "down_epsilon", "width", "layers",
    "decoder_heads", "points", "mlp", "groups",
)  # fmt: skip
IN_FILES = tuple(set(WORDS) - {"down_epsilon", "decoder_heads", "points", "groups"})  # deduced


def require_same_words(here: DDPSettings, there: DDPSettings, words):
    """Raises UserError that lists the options of config.model in which two networks differ."""
    differing = [word for word in WORDS if word in words]
    differing = [word for word in differing if getattr(here, word) != getattr(there, word)]
    if differing:
        listed = ", ".join(f"{word}={getattr(there, word)}" for word in differing)
        raise UserError(
            f"the checkpoint to start from has another network: {listed}, where config.model has "
            f"{', '.join(str(getattr(here, word)) for word in differing)}. Take the config, or the "
            "preset after its colon, that it was trained with."
        )


def _other_code(word, mine, theirs):
    return (
        f"diffusion.{word} is {mine}, but the checkpoint to start from was trained with {theirs}. "
        f"Try --config.diffusion.{word}={theirs}."
    )


CLASS_PARTS = (("head",), ("embedding",), ("auxiliary", "head"))


def _without_classes(network):
    """A network's tree without the parameters whose shape depends on the number of classes."""
    flat = flatten(network)
    return unflatten({
        path: leaf
        for path, leaf in flat.items()
        if not any(path[1 : 1 + len(part)] == part for part in CLASS_PARTS)
    })  # fmt: skip


def load_weights(config, abstract: dict, task: Task) -> dict:
    """What the file config.weights gives a stage.

    An official DDP checkpoint gives all of it, a classifier of ImageNet its backbone. Raises
    UserError for anything missing, extra or of another shape.
    """
    settings = settings_of_meta(task.meta)
    arrays = read_arrays(config.weights)
    if is_ddp(arrays):
        found = settings_of(arrays, config.weights)
        require_same_words(settings, found, IN_FILES)
        if settings.code != found.code:
            raise UserError(_other_code("code", settings.code, found.code))
        settings = dataclasses.replace(settings, num_classes=found.num_classes)
        network = load_ddp(arrays, settings, config.weights)
        return adopt(abstract, task, network, {**task.meta, "model": dataclasses.asdict(settings)})
    if task.meta["kind"] == "align":
        raise UserError(
            f"{config.weights} holds a backbone alone, but a stage of kind align goes on with a "
            "trained network. Train first, or give an official DDP checkpoint."
        )
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract["params"]["backbone"])
    return {"params": {"backbone": load_backbone(config.weights, shapes, settings)}}


def settings_of_meta(meta: dict) -> DDPSettings:
    """The settings that stand beside a checkpoint."""
    values = dict(meta["model"])
    for name in ("channels", "depths", "heads"):
        values[name] = tuple(values[name])
    return DDPSettings(**values)


# ---- what can be wrong with a config -----------------------------------------------------------


OPTIONS_OF = {}  # kind of stage -> what a config holds for it besides
OPTIONS = {
    "weights": Text(),
    "new_head": Flag(),
    "model": {
        "backbone": Text(("swin", "convnext")),
        "channels": Several(Number(int, 4, 16384), 4),
        "depths": Several(Number(int, 1, 64), 4),
        "heads": Several(Number(int, 1, 1024)),
        "window": Number(int, 0, 64),
        "drop_path": Number(float, 0, 0.99),
        "down_epsilon": Number(float, 1e-12, 1),
        "width": Number(int, 4, 16384),
        "layers": Number(int, 1, 64),
        "decoder_heads": Number(int, 1, 1024),
        "points": Number(int, 1, 64),
        "mlp": Number(int, 1, 65536),
        "groups": Number(int, 1, 16384),
        "auxiliary_dropout": Number(float, 0, 0.99),
    },
    "diffusion": {
        "schedule": Text(tuple(LOG_SNRS)),
        "code": Text(CODES),
        "code_scale": Number(float, 1e-6, 100),
        "high": Number(float, 0.001, 1),
        "auxiliary": Number(float, 0),
    },
    "sampling": {
        "steps": Number(int, 1, 1000),
        "sampler": Text(SAMPLERS),
        "draws": Number(int, 1, 256),
        "time_difference": Number(int, 0, 1000),
        "start": Number(float, 0, 0.99),
        "accumulate": Flag(),
        "uncertainty": Text(MEASURES),
    },
    "sweep": {
        "steps": Several(Number(int, 1, 1000), least=1),
        "draws": Several(Number(int, 1, 256)),
    },
}


def check(config):
    """Raises UserError for values that go with no network, beyond what OPTIONS says of each."""
    if problem := make_settings(config, 2).problem():
        raise UserError(f"model: {problem}")
    sampling = config.sampling
    needed = {"changes": "steps", "spread": "draws"}.get(sampling.uncertainty)
    if needed and sampling[needed] < 2:
        raise UserError(
            f"sampling.uncertainty is {sampling.uncertainty}, which needs 2 {needed} or more, but "
            f"sampling.{needed} is {sampling[needed]}. Try --config.sampling.{needed}=2, or "
            "--config.sampling.uncertainty=entropy."
        )
    if config.new_head:
        require_start(config)
    for name in config.run:
        stage = config.stages[name]
        if stage.kind == "align" and start_of(config, stage.kind, stage.start) == "random":
            raise UserError(
                f"stages.{name} is of kind align, which goes on with a trained network, but starts "
                f"at random. Try --config.stages.{name}.start=runs/a/checkpoints/train."
            )
        crop = tuple(config.stages[name].augment.crop)
        if min(crop) < SMALLEST:
            raise UserError(
                f"stages.{name}.augment.crop is {crop}, but both sides must be {SMALLEST} or more, "
                f'the stride of the backbones. Try --config.stages.{name}.augment.crop="(64, 64)".'
            )


def require_start(config):
    """Raises UserError when new_head is set, but every stage starts at random anyway."""
    kinds = {name: config.stages[name].kind for name in config.run}
    starts = [start_of(config, kind, config.stages[name].start) for name, kind in kinds.items()]
    within = [kind for kind, start in zip(kinds.values(), starts) if start in config.stages]
    if set(within) - {"align"}:
        raise UserError(
            "new_head is True, but a stage goes on from another one of this run, whose head it "
            "would lose. Run them in two commands, the second one without new_head."
        )
    if set(starts) <= {"random", *config.stages}:
        raise UserError(
            "new_head is True, but no stage starts from a checkpoint whose head could be replaced. "
            "Try --config.stages.train.start=runs/a/checkpoints/train, or new_head=False."
        )


def note(config, kind: str, start: str) -> str:
    """What a user should know before a stage with that `start` runs, or an empty string."""
    if start == "weights" and not config.weights:
        return (
            "no weights were given (--config.weights=<file>), so the backbone starts at random; "
            "the paper's knows ImageNet"
        )
    return ""
