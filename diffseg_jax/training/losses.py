"""Losses as (sum, weight): sums add up over micro-batches and devices, and ratios come last.

Class logits are f32[B, H, W, K], masks i32[B, H, W] with 255 = ignored.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError, counted

BALANCED = "inverse_frequency"  # weights of classes that follow from the labels
LEAST_MISS = 1e-7  # of 1 - p, so that its powers have a finite slope


def masked_cross_entropy(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed pixel cross-entropy and the number of counted pixels."""
    counted = mask != IGNORE
    losses = _cross_entropy(logits, jnp.where(counted, mask, 0))
    return jnp.sum(losses * counted), jnp.sum(counted).astype(jnp.float32)


def _cross_entropy(logits, labels):
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@dataclasses.dataclass(frozen=True)
class SegmentationLoss:
    """A loss of class logits by its options; called like `masked_cross_entropy`, the default.

    name           "cross_entropy", or "focal": times (1 - p)^focal_gamma, where p is the
                   probability of the pixel's class (Lin et al., "Focal Loss", ICCV 2017)
    class_weights  one weight per class, by which a pixel's loss is multiplied; None: all 1
    region         a term that is added: "none", "dice" or "lovasz", times region_weight

    The region term of an image counts as often as the image has counted pixels, so that the mean
    over the weight is the mean over pixels plus region_weight times that over images.
    """

    name: str = "cross_entropy"
    focal_gamma: float = 2.0
    class_weights: tuple[float, ...] | None = None
    region: str = "none"
    region_weight: float = 1.0

    def __call__(self, logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The summed loss and the number of counted pixels, f32[] each."""
        loss, pixels = self.pixel_term(logits, mask)
        if self.region != "none" and self.region_weight:
            of_images = REGIONS[self.region](logits, mask)
            of_images *= jnp.sum(mask != IGNORE, (1, 2))
            loss += self.region_weight * jnp.sum(of_images)
        return loss, pixels

    def pixel_term(self, logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The summed loss of single pixels, and their number."""
        focal = self.name == "focal" and self.focal_gamma
        if not focal and self.class_weights is None:
            return masked_cross_entropy(logits, mask)
        counted = mask != IGNORE
        labels = jnp.where(counted, mask, 0)
        losses = _cross_entropy(logits, labels)
        if focal:
            losses *= jnp.maximum(-jnp.expm1(-losses), LEAST_MISS) ** self.focal_gamma
        if self.class_weights is not None:
            losses *= jnp.asarray(self.class_weights, jnp.float32)[labels]
        return jnp.sum(losses * counted), jnp.sum(counted).astype(jnp.float32)


def losses_by_options(options: Mapping, num_classes: int, loss: Callable) -> dict:
    """The fields "loss" and "balanced" of a Task, by a config's group `loss`.

    loss   takes the `SegmentationLoss` as mask_loss

    Raises UserError when the number of weights is not that of the classes.
    """
    options = dict(options)
    weights = tuple(options.pop("class_weights", ("none",)))
    chosen = SegmentationLoss(**options)
    with_weights = lambda weights: functools.partial(
        loss, mask_loss=dataclasses.replace(chosen, class_weights=weights)
    )
    if isinstance(weights[0], str):
        balanced = with_weights if weights[0] == BALANCED else None
        return {"loss": with_weights(None), "balanced": balanced}
    if len(weights) != num_classes:
        raise UserError(
            f"loss.class_weights holds {counted(len(weights), 'weight')}, but the data have "
            f"{num_classes} classes. Give one per class, or "
            "--config.loss.class_weights=inverse_frequency."
        )
    return {"loss": with_weights(weights), "balanced": None}


# ---- terms of whole images -----------------------------------------------------------------------


def dice_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - Dice of every image, the mean over the classes that its labels show: f32[B].

    Dice_k = 2 sum p_k y_k / (sum p_k + sum y_k), where p are probabilities and y is 1 on pixels of
    the class (Milletari et al., "V-Net", 3DV 2016, there with squares below the line).
    """
    probs, truth, _ = _maps_by_class(logits, mask)
    overlap, total = jnp.sum(probs * truth, -1), jnp.sum(probs + truth, -1)
    return _mean_over_shown(1 - 2 * overlap / jnp.maximum(total, 1), truth)


def lovasz_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """The Lovasz-softmax loss of every image, the mean over classes that its labels show: f32[B].

    It extends 1 - IoU, its value for predictions that are certain, to probabilities (Berman et al.,
    "The Lovasz-Softmax Loss", CVPR 2018, equations 8, 9 and 11). It sorts the pixels of an image
    once per class.
    """
    probs, truth, seen = _maps_by_class(logits, mask)
    errors = jnp.where(seen, jnp.abs(truth - probs), -1)  # ignored pixels come last
    order = jnp.argsort(-jax.lax.stop_gradient(errors), -1)
    errors, truth = (jnp.take_along_axis(each, order, -1) for each in (errors, truth))
    losses = jnp.sum(jnp.maximum(errors, 0) * _jaccard_slopes(truth), -1)
    return _mean_over_shown(losses, truth)


def _jaccard_slopes(truth):
    """By how much each pixel, if it is wrong too, raises 1 - IoU: f32[..., N] for i32[..., N].

    Both cases are written without the difference of two nearly equal ratios.
    """
    union = jnp.sum(truth, -1, keepdims=True) + jnp.cumsum(1 - truth, -1)
    overlap = jnp.sum(truth, -1, keepdims=True) - jnp.cumsum(truth, -1)
    union, overlap = union.astype(jnp.float32), overlap.astype(jnp.float32)
    return jnp.where(truth == 1, 1 / union, overlap / union / jnp.maximum(union - 1, 1))


def _maps_by_class(logits, mask):
    """Probabilities f32[B,K,N] and truth i32[B,K,N], both 0 on ignored pixels; seen bool[B,1,N]."""
    classes = logits.shape[-1]
    probs = jax.nn.softmax(logits.astype(jnp.float32)).reshape(len(logits), -1, classes)
    mask = mask.reshape(len(mask), 1, -1)
    truth = (mask == jnp.arange(classes)[:, None]).astype(jnp.int32)
    seen = mask != IGNORE
    return jnp.swapaxes(probs, 1, 2) * seen, truth * seen, seen


def _mean_over_shown(losses, truth):
    """f32[B], the mean of losses f32[B,K] over classes with a pixel; 0 where there is none."""
    shown = jnp.any(truth, -1)
    return jnp.sum(losses * shown, -1) / jnp.maximum(jnp.sum(shown, -1), 1)


REGIONS: dict[str, Callable] = {"dice": dice_loss, "lovasz": lovasz_loss}


def squared_error(prediction: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed squared difference and the number of elements; the mean is || f - target ||^2 / n."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.sum(jnp.square(error)), jnp.asarray(error.size, jnp.float32)
