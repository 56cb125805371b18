"""DDP's map decoder without diffusion: a learned vector in place of the noisy map, one pass.

The control for Ji et al. (2023): what DDP gains over it comes from diffusion, not from its layers.
"""

import functools

import jax.numpy as jnp

from diffseg_jax.models.network import stats_of
from diffseg_jax.systems.ddp import decode, encoded, named_features
from diffseg_jax.systems.ddp_segmentation import SEGMENTATION, label_loss, label_losses
from diffseg_jax.systems.dense_images import describe_image, encode_image, enlarged, pad_image
from diffseg_jax.systems.task import Task
from diffseg_jax.training.losses import masked_cross_entropy


def query_task(network, config, num_classes: int, meta: dict) -> Task:
    """The task of a stage of kind decoder, as of `DenseTask.plain`."""
    options = config.diffusion.to_dict()
    return Task(
        init=network.init,
        predict=functools.partial(query_maps, network, options["schedule"]),
        meta=meta,
        features=functools.partial(named_features, SEGMENTATION, network),
        **label_losses(config, num_classes, functools.partial(query_loss, network, options)),
    )


def query_logits(schedule, model, x):
    """Class logits f32[B,h,w,K] of the map decoder for features f[B,h,w,E] and its learned query.

    The decoder is told of the highest noise level.
    """
    last = jnp.ones(len(x))
    announced = SEGMENTATION.announced(last, SEGMENTATION.level(schedule, last, jnp))
    return decode(model, x, model.query[...], announced)


def query_loss(network, options, params, stats, batch, key, mask_loss=masked_cross_entropy):
    """The loss of both heads as of `label_loss`, without noise; else as `ddp.diffusion_loss`."""
    model, x, keys = encoded(SEGMENTATION, network, params, stats, batch, key)
    logits = query_logits(options["schedule"], model, x)
    loss, weight, metrics = label_loss(
        model, x, logits, batch, keys["dropout"], options, mask_loss
    )  # fmt: skip
    return loss, (weight, stats_of(model), metrics)


def query_maps(network, schedule, values, images, valid, seed=0):
    """Maps of images u8[B,h,w,3]: "logits" f32[B,h,w,K] of one pass, and "descriptor"."""
    padded = pad_image(images)
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = encode_image(model, padded, valid)
    logits = enlarged(query_logits(schedule, model, x), padded, images)
    return {"logits": logits, **describe_image(x, padded, valid)}
