"""DeepLabV3: supervised segmentation, the network that learns from generated images.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587). It
is trained on images that a generator drew and pixel classifiers labelled by Zhang et al.,
"DatasetGAN" (CVPR 2021), and by the DatasetDDPM of Baranchuk et al., "Label-Efficient Semantic
Segmentation with Diffusion Models" (ICLR 2022), whose recipe is configs/deeplab_published.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from diffseg_jax.models.deeplab import DeepLab, DeepLabSettings, enlarged_logits
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.models.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    choose_features,
    scale_images,
)
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.systems.task import Task
from diffseg_jax.training.losses import losses_by_options, masked_cross_entropy


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of the stage "train".

    config  reads dtype, remat, model, new_head, loss
    """
    settings = make_settings(config.model, num_classes)
    network = Network(
        lambda rngs: DeepLab(
            settings, dtype=jnp.dtype(config.dtype), remat=config.remat, rngs=rngs
        )
    )  # fmt: skip
    loss = functools.partial(segmentation_loss, network, config.model.auxiliary)
    return Task(
        init=network.init,
        predict=functools.partial(class_logits, network),
        features=functools.partial(named_features, network),
        meta={
            "kind": kind,
            "model": dataclasses.asdict(settings),
            "new_head": config.new_head,
            "normalisation": "(v - mean) / std",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        },
        **losses_by_options(config.get("loss", {}), num_classes, loss),
    )


def make_settings(model, num_classes: int) -> DeepLabSettings:
    """The settings of a config's part model; its `auxiliary` is the weight of a second loss."""
    return DeepLabSettings(
        num_classes, width=model.width, depths=tuple(model.depths),
        output_stride=model.output_stride, rates=tuple(model.rates), channels=model.channels,
        dropout=model.dropout, auxiliary=model.auxiliary > 0,
    )  # fmt: skip


def segmentation_loss(
    network, auxiliary, params, stats, batch, key, mask_loss=masked_cross_entropy
):  # fmt: skip
    """The loss of the enlarged class logits, summed; metrics: pixel_accuracy, auxiliary_loss.

    auxiliary  weight of the same loss of the third stage's logits, if the network has them
    batch      image u8[B,h,w,3], mask i32[B,h,w] with 255 = ignored, valid i32[B,2], row i32[B]
    """
    model = network.bind(params, stats)
    image = _normalised(batch["image"], batch["valid"])
    key_dropout = jax.random.fold_in(key, batch["row"][0])  # each part has its own mask
    logits, found = model(image, key_dropout)
    loss, weight = mask_loss(logits, batch["mask"])
    correct = jnp.sum(jnp.argmax(logits, -1) == batch["mask"]).astype(jnp.float32)
    metrics = {"pixel_accuracy": correct}
    if auxiliary:
        second, _ = mask_loss(enlarged_logits(found["auxiliary"], image), batch["mask"])
        loss, metrics = loss + auxiliary * second, {**metrics, "auxiliary_loss": second}
    return loss, (weight, stats_of(model), metrics)


def class_logits(network, values, images, valid, seed=0):
    """The maps "logits" f32[B,h,w,K] and "descriptor" of images u8[B,h,w,3]; no noise is drawn."""
    model = network.bind_eval(values["params"], values["stats"])
    logits, found = model(_normalised(images, valid))
    descriptor = image_descriptor([found["layer4"]], valid, images.shape[1:3])
    return {"logits": logits, "descriptor": descriptor}


def named_features(network, values, images, valid, taps=None, seed=0):
    """Features of the network's parts for images u8[B,h,w,3]: {name: f32[B,h',w',C]}."""
    model = network.bind_eval(values["params"], values["stats"])
    return choose_features(model(_normalised(images, valid))[1], taps)


def _normalised(images, valid):
    return scale_images(images, valid, IMAGENET_MEAN, IMAGENET_STD)
