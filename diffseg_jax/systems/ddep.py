"""Denoising pretraining for segmentation: DDeP, DeP and their two baselines.

Brempong et al., "Denoising Pretraining for Semantic Segmentation" (CVPR workshops 2022) and
"Decoder Denoising Pretraining for Semantic Segmentation" (TMLR 2022, arXiv 2205.11423).

| pretrain   | encoder before fine-tuning | decoder before fine-tuning |
|---|---|---|
| none       | random                     | random                     |
| supervised | loaded weights             | random                     |
| dep        | learned to remove noise, with the decoder               |
| ddep       | loaded weights, frozen     | learned to remove noise    |
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.config.schema import Flag, Number, Optional, Several, Text
from diffseg_jax.devices import processes
from diffseg_jax.diffusion.process import add_noise, predict_clean
from diffseg_jax.diffusion.schedules import LEVELS, gamma_to_sigma, sigma_to_gamma
from diffseg_jax.errors import UserError
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.models.transunet import STRIDE, TransUNet, resize_positions
from diffseg_jax.systems.system import (
    Task,
    choose_features,
    draw_per_row,
    require_same,
    scale_images,
)
from diffseg_jax.training.losses import masked_cross_entropy, squared_error
from diffseg_jax.weights.transunet import load_official, load_port, table_grid

STAGES = {"pretrain": "unlabelled", "finetune": "labelled"}  # kind -> data that it learns from
CHOICES = ("none", "supervised", "dep", "ddep")
STARTS = {
    "none": "random",
    "supervised": "weights",
}  # else: the pretrain stage


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of one stage.

    config  reads dtype, remat, model, noise, pretrain
    kind    "pretrain" or "finetune"
    crop    (height, width) of training images; it fixes the grid of the position table
    """
    grid = token_grid(crop)
    outputs = 3 if kind == "pretrain" else num_classes
    network = Network(functools.partial(_transunet, config, outputs, grid))
    normalisation = "(v - 127.5) / 127.5"
    meta = {"kind": kind, "grid": list(grid), "normalisation": normalisation}
    features = functools.partial(named_features, network)
    if kind == "finetune":
        loss = functools.partial(segmentation_loss, network)
        predict = functools.partial(class_probabilities, network)
        return Task(
            init=network.init, loss=loss, meta=meta, predict=predict, features=features,
            stride=STRIDE,
        )  # fmt: skip
    frozen = config.pretrain == "ddep"
    noise = config.noise.to_dict()
    return Task(
        init=network.init,
        trainable=lambda path: not (frozen and path[0] == "encoder"),
        loss=functools.partial(denoising_loss, network, noise, not frozen),
        meta=meta,
        denoise=functools.partial(denoise, network, noise),
        features=features,
    )


def token_grid(crop: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens for an image size, padded to multiples of 16."""
    return tuple(-(-side // STRIDE) for side in crop)


def _transunet(config, outputs, grid, rngs):
    model = config.model
    decoder, bridge = decoder_channels(model)
    return TransUNet(
        outputs, resnet_width=model.resnet_width, resnet_units=model.resnet_units,
        hidden=model.hidden, layers=model.layers, heads=model.heads, mlp=model.mlp, grid=grid,
        decoder=decoder, bridge=bridge, skips=model.skips,
        dropout=model.dropout, condition=config.noise.condition,
        arithmetic=Arithmetic(model.arithmetic), dtype=jnp.dtype(config.dtype), remat=config.remat,
        rngs=rngs,
    )  # fmt: skip


def decoder_channels(model) -> tuple[tuple[int, ...], int]:
    """Channels of the decoder's stages, and of the bridge before them."""
    width = model.decoder_width
    bridge = round(model.bridge * (width if model.scale_bridge else 1))
    return tuple(round(width * channels) for channels in model.decoder), bridge


# ---- losses ------------------------------------------------------------------------------------


def denoising_loss(network, noise, dropout, params, stats, batch, key):
    """|| f(x~) - eps ||^2 summed, x~ the noisy image (the papers' equations 1 and 2).

    noise    kind ("simple" or "scaled"), low and high of the level, uniform in "sigma" or "gamma",
             target ("noise" or "image"), condition
    dropout  on for DeP; off with a frozen encoder
    batch    image u8[B,h,w,3], valid i32[B,2], row i32[B]
    """
    key_level, key_noise, key_dropout = jax.random.split(key, 3)
    image = scale_images(batch["image"], batch["valid"])
    sigma = draw_per_row(lambda k: draw_sigma(k, noise), key_level, batch["row"])
    eps = draw_per_row(lambda k: jax.random.normal(k, image.shape[1:]), key_noise, batch["row"])
    noisy = add_noise(image, eps, *LEVELS[noise["kind"]](sigma))
    model = network.bind(params, stats)
    key_dropout = jax.random.fold_in(key_dropout, batch["row"][0])  # another mask in each part
    prediction, _ = model(noisy, sigma, key_dropout if dropout else None)
    loss, weight = squared_error(prediction, eps if noise["target"] == "noise" else image)
    return loss, (weight, stats_of(model), {})


def draw_sigma(key, noise) -> jax.Array:
    """The noise level of one image, f32[]: fixed, or uniform in sigma or in gamma."""
    low, high = noise["low"], noise["high"]
    if low == high:
        return jnp.asarray(low, jnp.float32)
    if noise["uniform_in"] == "sigma":
        return jax.random.uniform(key, (), minval=low, maxval=high)
    gammas = sigma_to_gamma(high), sigma_to_gamma(low)
    return gamma_to_sigma(jax.random.uniform(key, (), minval=gammas[0], maxval=gammas[1]))


def segmentation_loss(network, params, stats, batch, key):
    """Pixel cross-entropy summed over counted pixels; metrics: pixel_accuracy.

    batch  image u8[B,h,w,3], mask i32[B,h,w] with 255 = ignored, valid i32[B,2], row i32[B]
    """
    model = network.bind(params, stats)
    image = scale_images(batch["image"], batch["valid"])
    key_dropout = jax.random.fold_in(key, batch["row"][0])  # another mask in each part of a batch
    logits, _ = model(image, jnp.zeros(len(image)), key_dropout)
    loss, weight = masked_cross_entropy(logits, batch["mask"])
    correct = jnp.sum(jnp.argmax(logits, -1) == batch["mask"]).astype(jnp.float32)
    return loss, (weight, stats_of(model), {"pixel_accuracy": correct})


# ---- answers -----------------------------------------------------------------------------------


def class_probabilities(network, values, images, valid, seed=0):
    """f32[B,h,w,K] for images u8[B,h,w,3]; the network in evaluation mode, without any noise."""
    model = network.bind_eval(values["params"], values["stats"])
    logits, _ = model(scale_images(images, valid), jnp.zeros(len(images)))
    return jax.nn.softmax(logits)


def named_features(network, values, images, valid, taps=None, seed=0):
    """What parts of the network answer to clean pictures u8[B,h,w,3]: {name: f32[B,h',w',C]}."""
    rows, columns = token_grid(images.shape[1:3])
    model = network.bind_eval(values["params"], values["stats"])
    _, found = model(scale_images(images, valid), jnp.zeros(len(images)))
    found = choose_features(found, taps)
    for name, maps in found.items():
        if maps.ndim == 3:  # tokens
            found[name] = maps.reshape(len(maps), rows, columns, -1)
    return found


def denoise(network, noise, values, images, valid, key):
    """Clean, noisy, denoised f32[B,h,w,3] in [-1, 1] at the middle level; mean squared error."""
    image = scale_images(images, valid)
    sigma = jnp.full(len(image), (noise["low"] + noise["high"]) / 2, jnp.float32)
    alpha, spread = LEVELS[noise["kind"]](sigma)
    draw = lambda k: jax.random.normal(k, image.shape[1:])
    eps = draw_per_row(draw, key, jnp.arange(len(image)))
    noisy = add_noise(image, eps, alpha, spread)
    output, _ = network.bind_eval(values["params"], values["stats"])(noisy, sigma)
    predicts_noise = noise["target"] == "noise"
    clean = predict_clean(noisy, output, alpha, spread) if predicts_noise else output
    loss, weight = squared_error(output, eps if predicts_noise else image)
    scale = alpha[:, None, None, None]
    return image, jnp.clip(noisy / scale, -1, 1), jnp.clip(clean, -1, 1), loss / weight


# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    if kind == "pretrain":
        return "weights" if config.pretrain == "ddep" and config.weights else "random"
    replaced = STARTS.get(config.pretrain, start) if start == "pretrain" else start
    return "random" if replaced == "weights" and not config.weights else replaced


def skips_stage(config, kind: str) -> bool:
    """Whether the choice of `config.pretrain` leaves this kind of stage out."""
    return kind == "pretrain" and config.pretrain in STARTS


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """What a stage takes over from another one's network: all but the projection to noise.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`
    The position table moves to this stage's grid. Raises UserError when the networks differ.
    """
    params = resize_positions(previous["params"], tuple(meta["grid"]), tuple(task.meta["grid"]))
    if meta["kind"] != task.meta["kind"]:
        params = {name: tree for name, tree in params.items() if name != "head"}
    taken = {"params": params, "stats": previous["stats"]}
    require_same(abstract, taken, may_lack="head")
    return taken


def load_weights(config, abstract: dict, task: Task) -> dict:
    """What the file config.weights gives a stage: the encoder, or all of it.

    An .npz of the ViT authors gives the encoder, a PyTorch checkpoint the decoder too and, for
    fine-tuning, the head. The position table moves to this stage's grid, from that of the file:
    config.weights_grid, or a square where the config lacks it. Raises UserError for anything
    missing, extra or of another shape.
    """
    path, params = config.weights, abstract["params"]
    grid = tuple(config.get("weights_grid", ()))
    if Path(path).suffix == ".npz":
        encoder = load_official(path, _shapes(params["encoder"]), grid)
        loaded, stats = {"encoder": encoder}, {}
    else:
        head = task.meta["kind"] == "finetune"
        loaded, stats = load_port(
            path, _shapes(params), _shapes(abstract["stats"]), head=head, grid=grid
        )
    rows, columns = table_grid(loaded["encoder"]["position_embedding"].shape[1], grid)
    if not grid and processes.is_first():
        print(
            f"{path}: assumed a position table of {rows}x{columns}; for another grid write "
            "c.weights_grid = (rows, columns) into the config file"
        )
    loaded = resize_positions(loaded, (rows, columns), tuple(task.meta["grid"]))
    return jax.tree.map(np.asarray, {"params": loaded, "stats": stats})


def _shapes(tree):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


# ---- what can be wrong with a config -----------------------------------------------------------


CONVENTION = "default"  # of the paper's numbers
OPTIONS_OF = {}  # kind of stage -> what a config holds for it besides
OPTIONS = {
    "pretrain": Text(CHOICES),
    "weights": Text(),
    "weights_grid": Optional(Several(Number(int, 1, 65536), 2)),
    "noise": {
        "kind": Text(tuple(LEVELS)),
        "low": Number(float, 0, 1000),
        "high": Number(float, 0, 1000),
        "uniform_in": Text(("sigma", "gamma")),
        "target": Text(("noise", "image")),
        "condition": Flag(),
    },
    "model": {
        "arithmetic": Text(tuple(kind.value for kind in Arithmetic)),
        "resnet_width": Number(float, 0.5, 8),
        "resnet_units": Several(Number(int, 1, 64), 3),
        "hidden": Number(int, 1, 16384),
        "layers": Number(int, 1, 64),
        "heads": Number(int, 1, 1024),
        "mlp": Number(int, 1, 65536),
        "decoder": Several(Number(int, 1, 16384), 4),
        "decoder_width": Number(float, 0.01, 64),
        "bridge": Number(int, 1, 16384),
        "scale_bridge": Flag(),
        "skips": Number(int, 0, 3),
        "dropout": Number(float, 0, 0.99),
    },
}


def check(config):
    """Raises UserError for values that go with no network, beyond what OPTIONS says of each."""
    noise, model = config.noise, config.model
    if noise.low > noise.high:
        raise UserError(
            f"noise.low is {noise.low} and noise.high {noise.high}; give low <= high, "
            "for example 0.22 for both."
        )
    if 64 * model.resnet_width % 32:
        raise UserError(
            f"model.resnet_width is {model.resnet_width}, but 64 times it must be a multiple of 32 "
            "for its group norms. Try 0.5 or 1.0."
        )
    if model.hidden % model.heads:
        raise UserError(
            f"model.hidden is {model.hidden}, which {model.heads} heads cannot share evenly. "
            f"Try --config.model.hidden={math.ceil(model.hidden / model.heads) * model.heads}."
        )
    decoder, bridge = decoder_channels(model)
    if not 1 <= min(*decoder, bridge) <= max(*decoder, bridge) <= 65536:
        raise UserError(
            f"model.decoder_width is {model.decoder_width}, which makes {(*decoder, bridge)} "
            "channels, but each must be 1 to 65536. Try --config.model.decoder_width=1.0."
        )


def note(config, kind: str, start: str) -> str:
    """What a user should know before a stage with that `start` runs, or an empty string."""
    missing = "no encoder weights were given (--config.weights=R50+ViT-B_16.npz)"
    if config.weights:
        return ""
    if kind == "pretrain" and config.pretrain == "ddep":
        return f"{missing}, so the frozen encoder is random; the paper's knows ImageNet-21k"
    if kind == "finetune" and config.pretrain == "supervised" and start != "random":
        return f"{missing}, so the encoder starts at random, as with pretrain=none"
    return ""
