"""The loss of depth maps: recorded values, and what must not change it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.training.depth_loss import ScaleInvariantLoss

pytestmark = pytest.mark.quick


@pytest.fixture
def maps():
    """Depths f32[2, 6, 7] of which a third is not measured, and predictions."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 60, (2, 6, 7)).astype(np.float32)
    prediction = depth * rng.uniform(0.7, 1.2, depth.shape).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = 0
    return prediction, depth


def value(loss, *maps, **options):
    total, images = loss(*map(jnp.asarray, maps), **options)
    return float(total / images)


@pytest.mark.golden
def test_recorded_losses(golden):
    for path in golden("ddp/depth_losses_metrics*.npz"):
        record, arrays = json.loads(path.with_suffix(".json").read_text())["sigloss"], np.load(path)
        cases = [name.removesuffix("_pred") for name in arrays if name.endswith("_pred")]
        cases = [name for name in cases if name.startswith("sig")]
        assert cases
        for case in cases:
            maps = arrays[f"{case}_pred"][:, 0], arrays[f"{case}_gt"][:, 0]
            loss = ScaleInvariantLoss(eps=record["eps"])
            np.testing.assert_allclose(value(loss, *maps), arrays[f"{case}_loss"], rtol=1e-5)
            near = ScaleInvariantLoss(eps=record["eps"], max_depth=record["w10_max_depth"])
            expected = arrays[f"{case}_loss_max_w10"]
            np.testing.assert_allclose(10 * value(near, *maps), expected, rtol=1e-5)
            if f"{case}_loss_warm_first" in arrays:
                first, second = (arrays[f"{case}_loss_warm_{n}"] for n in ("first", "second"))
                np.testing.assert_allclose(value(loss, *maps, warm=True), first, rtol=1e-5)
                np.testing.assert_allclose(value(loss, *maps, warm=False), second, rtol=1e-5)


def test_predictions_without_a_measurement_do_not_count(maps):
    prediction, depth = maps
    loss = jax.jit(jax.grad(lambda p, d: ScaleInvariantLoss()(p, d)[0]))
    wild = np.where(depth == 0, 0.0, prediction)  # whose logarithm would be large
    assert value(ScaleInvariantLoss(), wild, depth) == value(ScaleInvariantLoss(), *maps)
    slopes = loss(wild, depth)
    assert np.isfinite(slopes).all() and not slopes[depth == 0].any() and slopes.any()


def test_a_wrong_unit_costs_only_the_mean():
    """With one factor for all pixels the spread is 0, up to eps."""
    depth = jnp.full((1, 4, 4), 20.0)
    loss = ScaleInvariantLoss(eps=0.0)
    np.testing.assert_allclose(value(loss, 3 * depth, depth), 0.15**0.5 * np.log(3), rtol=1e-5)


@pytest.mark.parametrize("depth", [0.0, 5.0], ids=["nothing measured", "exact"])
def test_the_slope_is_finite_where_the_loss_is_zero(depth):
    depth = jnp.full((2, 3, 3), depth)
    loss = lambda p: ScaleInvariantLoss()(p, depth)
    total, images = loss(jnp.full(depth.shape, 5.0))
    assert total == 0 and images == (2 if depth.any() else 0)
    assert np.isfinite(jax.grad(lambda p: loss(p)[0])(jnp.full(depth.shape, 5.0))).all()


def test_a_step_may_decide_whether_the_loss_is_warm(maps):
    compiled = jax.jit(lambda warm, *maps: ScaleInvariantLoss()(*maps, warm=warm)[0])
    for warm in (True, False):
        np.testing.assert_allclose(
            compiled(warm, *maps), ScaleInvariantLoss()(*maps, warm=warm)[0], rtol=1e-6
        )
    assert compiled(True, *maps) < compiled(False, *maps)
