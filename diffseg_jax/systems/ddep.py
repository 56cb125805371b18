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

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.diffusion.schedules import (
    LEVELS,
    add_noise,
    gamma_to_sigma,
    predict_clean,
    sigma_to_gamma,
)
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.models.inputs import choose_features, draw_per_row, scale_images
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.models.transunet import STRIDE, TransUNet
from diffseg_jax.systems.task import Task
from diffseg_jax.training.losses import losses_by_options, masked_cross_entropy, squared_error


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of one stage.

    config  reads dtype, remat, model, noise, pretrain, loss
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
        losses = losses_by_options(config.get("loss", {}), num_classes, loss)
        official = Arithmetic(config.model.arithmetic) is Arithmetic.OFFICIAL
        predict = functools.partial(class_probabilities, network, complete=official)
        return Task(
            init=network.init, meta=meta, predict=predict, features=features, stride=STRIDE,
            **losses,
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
    key_dropout = jax.random.fold_in(key_dropout, batch["row"][0])  # each part has its own mask
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


def segmentation_loss(network, params, stats, batch, key, mask_loss=masked_cross_entropy):
    """The loss of class logits, by default pixel cross-entropy, summed; metrics: pixel_accuracy.

    batch  image u8[B,h,w,3], mask i32[B,h,w] with 255 = ignored, valid i32[B,2], row i32[B]
    """
    model = network.bind(params, stats)
    image = scale_images(batch["image"], batch["valid"])
    key_dropout = jax.random.fold_in(key, batch["row"][0])  # each part has its own mask
    logits, _ = model(image, jnp.zeros(len(image)), key_dropout)
    loss, weight = mask_loss(logits, batch["mask"])
    correct = jnp.sum(jnp.argmax(logits, -1) == batch["mask"]).astype(jnp.float32)
    return loss, (weight, stats_of(model), {"pixel_accuracy": correct})


# ---- predictions -------------------------------------------------------------------------------


def class_probabilities(network, values, images, valid, seed=0, complete=False):
    """The maps "probs" f32[B,h,w,K] and "descriptor" of images u8[B,h,w,3], without any noise.

    complete  whether sums of the head that lack taps at the border of the image are scaled up; not
              for the arithmetic of the port, whose probabilities are those of PyTorch
    """
    model = network.bind_eval(values["params"], values["stats"])
    logits, found = model(scale_images(images, valid), jnp.zeros(len(images)))
    if complete:
        bias = values["params"]["head"]["bias"]
        logits = bias + (logits - bias) * tap_factors(*logits.shape[1:3])
    padded = tuple(STRIDE * side for side in token_grid(logits.shape[1:3]))
    descriptor = image_descriptor([found["root"], found["encoded"]], valid, padded)
    return {"probs": jax.nn.softmax(logits), "descriptor": descriptor}


def tap_factors(height: int, width: int) -> np.ndarray:
    """f32[h,w,1]: 9 over the taps of a 3x3 kernel that lie inside the padded image.

    Zeros around the image shrink the logits of its outermost pixels to 2/3, and to 4/9 in the
    corners, so that these pixels look less sure than their neighbours without being wrong more
    often. The factor is that of Liu et al., "Partial Convolution based Padding" (2018); the label
    stays the same but for the bias.
    """
    ones = (np.ones(STRIDE * side) for side in token_grid((height, width)))
    rows, columns = (np.convolve(side, np.ones(3), "same") for side in ones)
    return np.float32(9 / np.outer(rows, columns))[:height, :width, None]


def named_features(network, values, images, valid, taps=None, seed=0):
    """Features of the network's parts for clean images u8[B,h,w,3]: {name: f32[B,h',w',C]}."""
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
