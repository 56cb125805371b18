"""Losses of class logits: what they are for certain predictions, and that sums add up."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.config.options import MASK_LOSS
from diffseg_jax.config.schema import LACKING
from diffseg_jax.errors import UserError
from diffseg_jax.training import losses
from diffseg_jax.training.losses import (
    SegmentationLoss,
    dice_loss,
    losses_by_options,
    lovasz_loss,
    masked_cross_entropy,
)

pytestmark = pytest.mark.quick

CLASSES = 4
WEIGHTS = (0.5, 1.0, 2.0, 0.0)
ALL = [
    SegmentationLoss("focal", 2.0, None, "dice"),
    SegmentationLoss("focal", 0.5, WEIGHTS, "lovasz"),
    SegmentationLoss("cross_entropy", 2.0, WEIGHTS, "dice", 0.5),
    SegmentationLoss("cross_entropy", 2.0, None, "lovasz"),
]


def maps(seed=0, images=4, side=6):
    """Logits and labels, of which the first image has none, and others lack a class."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((images, side, side, CLASSES)).astype(np.float32)
    mask = rng.integers(0, CLASSES - 1, (images, side, side)).astype(np.int32)
    mask[rng.uniform(size=mask.shape) < 0.2] = 255
    mask[0] = 255
    mask[1, 0] = CLASSES - 1
    return logits, mask


def certain(labels):
    """Logits of predictions that are sure of these labels."""
    return 200 * jax.nn.one_hot(labels, CLASSES)


def test_the_default_is_cross_entropy_to_the_bit():
    logits, mask = maps()
    default = losses_by_options({}, CLASSES, lambda mask_loss: mask_loss(logits, mask))
    assert default["balanced"] is None
    for options in ({}, {"name": "focal", "focal_gamma": 0.0}, {"region_weight": 3.0}):
        loss = losses_by_options(options, CLASSES, lambda mask_loss: mask_loss(logits, mask))
        assert loss["loss"]() == masked_cross_entropy(logits, mask)
    program = jax.make_jaxpr(SegmentationLoss())(logits, mask)
    assert str(program) == str(jax.make_jaxpr(masked_cross_entropy)(logits, mask))


def test_options_of_a_config_are_those_of_the_loss():
    rules = MASK_LOSS.rule.each
    assert SegmentationLoss.__dataclass_fields__.keys() == rules.keys()
    defaults = {name: LACKING[f"loss.{name}"] for name in rules}
    assert losses_by_options(defaults, 2, lambda mask_loss: mask_loss)["loss"]() == (
        SegmentationLoss()
    )
    assert not any(rule.problem(defaults[name]) for name, rule in rules.items())
    assert {"none", *losses.REGIONS} == set(rules["region"].choices)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_a_certain_right_prediction_costs_nothing(loss):
    _, mask = maps()
    total, pixels = loss(certain(np.where(mask == 255, 0, mask)), mask)
    assert total == 0 and pixels == (mask != 255).sum()


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_sums_of_parts_are_that_of_the_batch_and_ignored_pixels_change_nothing(loss):
    logits, mask = maps()
    together, apart = loss(logits, mask), [loss(x[None], y[None]) for x, y in zip(logits, mask)]
    np.testing.assert_allclose(together, np.sum(apart, 0), rtol=1e-5)
    other = np.where((mask == 255)[..., None], maps(seed=1)[0], logits)
    assert loss(other, mask) == together
    slope = jax.grad(lambda logits: loss(logits, mask)[0])(jnp.asarray(logits))
    assert jnp.all(slope[mask == 255] == 0) and jnp.any(slope != 0)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_slopes_are_finite_where_predictions_are_certain(loss):
    _, mask = maps()
    slopes = jax.grad(lambda logits: loss(logits, mask)[0])
    for labels in (np.where(mask == 255, 0, mask), (mask + 1) % CLASSES):
        for factor in (1e-6, 1, 1e6):
            assert jnp.all(jnp.isfinite(slopes(factor * certain(labels))))


def test_weights_of_one_change_nothing_and_others_scale_their_class():
    logits, mask = maps()
    equal = SegmentationLoss(class_weights=(1.0,) * CLASSES)(logits, mask)
    np.testing.assert_allclose(equal, masked_cross_entropy(logits, mask), rtol=1e-6)
    weights = (0.5, 1.0, 3.0, 0.25)
    total, pixels = SegmentationLoss(class_weights=weights)(logits, mask)
    parts = [masked_cross_entropy(logits, np.where(mask == k, k, 255))[0] for k in range(CLASSES)]
    np.testing.assert_allclose(total, np.dot(weights, parts), rtol=1e-5)
    assert pixels == (mask != 255).sum()


def test_focal_loss_is_its_formula_and_forgets_easy_pixels():
    logits, mask = maps()
    probs = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)
    p = np.take_along_axis(probs, np.where(mask == 255, 0, mask)[..., None], -1)[..., 0]
    expected = ((1 - p) ** 2 * -np.log(p))[mask != 255].sum()
    np.testing.assert_allclose(SegmentationLoss("focal")(logits, mask)[0], expected, rtol=1e-5)


def pairs():
    """Two label maps of one image, each with all classes."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, CLASSES, (2, 1, 8, 8))
    first[0, 0, :CLASSES] = second[0, 1, :CLASSES] = range(CLASSES)
    return first, second


def test_dice_of_certain_predictions_is_symmetric_and_that_of_areas():
    first, second = pairs()
    dice = [
        2 * np.sum((first == k) & (second == k)) / (np.sum(first == k) + np.sum(second == k))
        for k in range(CLASSES)
    ]
    for truth, prediction in itertools.permutations((first, second)):
        found = dice_loss(certain(prediction), truth)
        np.testing.assert_allclose(found, 1 - np.mean(dice), rtol=1e-6)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    first, second = pairs()
    iou = [
        np.sum((first == k) & (second == k)) / np.sum((first == k) | (second == k))
        for k in range(CLASSES)
    ]
    np.testing.assert_allclose(lovasz_loss(certain(second), first), 1 - np.mean(iou), rtol=1e-6)


def test_lovasz_is_the_papers_sum_over_sorted_errors():
    """Equation 9 of the paper with the Jaccard loss of growing sets of wrong pixels, in float64."""
    logits, mask = maps()
    probs = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)
    for image in range(1, len(mask)):
        seen, values = mask[image] != 255, []
        for k in np.unique(mask[image][seen]):
            truth = mask[image][seen] == k
            errors = np.abs(truth - probs[image][seen][:, k])
            wrong, before, total = np.zeros(len(truth), bool), 0.0, 0.0
            for pixel in np.argsort(-errors):
                wrong[pixel] = True
                jaccard = 1 - np.sum(truth & ~wrong) / np.sum(truth | wrong)
                total, before = total + errors[pixel] * (jaccard - before), jaccard
            values.append(total)
        found = lovasz_loss(logits[image : image + 1], mask[image : image + 1])
        np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)


def test_weights_must_be_as_many_as_classes():
    with pytest.raises(UserError, match="holds 3 weights, but the data have 4 classes"):
        losses_by_options({"class_weights": (1, 2, 3)}, CLASSES, None)
