"""Predictions of an ensemble for pixels: recorded votes and divergences, and identities."""

import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.metrics.divergence import entropy
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.models.pixel_mlp import widths_for
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.systems import pixel_ensemble
from diffseg_jax.systems.pixel_ensemble import agree, ensemble_maps, make_member
from diffseg_jax.systems.recipes import RECIPES
from diffseg_jax.weights.pixel_mlp import load_ensemble

# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def every_pixel(member, ensemble, x):
    """Logits f32[M, n, K] of all members for vectors f32[n, D]."""
    one = lambda params, stats: member.bind_eval(params, stats)(x)
    return quick(jax.vmap(one))(ensemble["params"], ensemble["stats"])


# --- recorded -------------------------------------------------------------------------------------


def recorded_ensembles(golden, folder):
    """(arrays, member, ensemble) of every recorded case, by way of the published files."""
    for path in golden("adm/pixel_classifier_*.npz"):
        arrays = np.load(path)
        if "votes" not in arrays:
            continue
        here = folder / path.stem
        here.mkdir()
        for file in path.parent.glob(f"{path.stem}_model_*.pt"):
            shutil.copy(file, here / f"model_{file.stem.rpartition('_')[2]}.pth")
        width, classes = arrays["features"].shape[1], int(arrays["number_class"])
        ensemble = jax.tree.map(jnp.asarray, load_ensemble(here, width, classes))
        yield arrays, make_member(width, classes, widths_for(classes)), ensemble


@pytest.mark.golden
def test_recorded_votes_and_divergences(golden, tmp_path):
    cases = list(recorded_ensembles(golden, tmp_path))
    assert cases
    for arrays, member, ensemble in cases:
        classes = int(arrays["number_class"])
        logits = every_pixel(member, ensemble, jnp.asarray(arrays["features"]))
        np.testing.assert_allclose(logits, arrays["logits"], rtol=2e-5, atol=2e-5)
        each = entropy(jax.nn.softmax(logits))
        np.testing.assert_allclose(each, arrays["entropy"], rtol=0, atol=1e-5)
        size = tuple(map(int, arrays["size"]))
        maps = (jnp.asarray(arrays["features"].reshape(1, *size, -1)),)
        found = quick(functools.partial(ensemble_maps, member))(ensemble, PixelFeatures(maps, size))
        votes = np.asarray(found["votes"][0])
        assert votes.shape == (*size, classes)
        counts = (arrays["votes"][..., None] == np.arange(classes)).sum(0)
        np.testing.assert_array_equal(votes.reshape(-1, classes), counts)
        np.testing.assert_array_equal(votes.argmax(-1), arrays["vote"])
        probs = found["probs"][0].reshape(-1, classes)
        np.testing.assert_allclose(probs, arrays["mean_softmax"], rtol=0, atol=1e-5)
        nats = found["divergence"][0] * math.log(classes)
        np.testing.assert_allclose(nats.reshape(-1), arrays["js"], rtol=0, atol=1e-5)
        assert abs(image_uncertainty(nats) - arrays["top_k"]) < 1e-5


@pytest.mark.golden
def test_recorded_ties(golden):
    for path in golden("adm/metrics*.npz"):
        recorded = np.load(path)
        votes, result = recorded["mode__votes"].T, recorded["mode__result"]
        logits = votes[..., None] == np.arange(votes.max() + 1)
        found = agree(jnp.asarray(logits, jnp.float32))["votes"]
        tied = (found == found.max(-1, keepdims=True)).sum(-1) > 1
        assert tied.any()
        np.testing.assert_array_equal(jnp.argmax(found, -1), result)


# --- agreement ------------------------------------------------------------------------------------


def peaks(*classes, num_classes=4, height=50.0):
    """Logits [M, 1, K] of members that are each sure of a class."""
    return jnp.asarray(height * np.eye(num_classes)[list(classes)][:, None], jnp.float32)


def test_the_smallest_of_equal_classes_wins():
    found = agree(peaks(3, 1, 3, 1, 2))
    np.testing.assert_array_equal(found["votes"], [[0, 2, 1, 2]])
    assert np.argmax(found["votes"]) == 1
    level = agree(jnp.zeros((2, 1, 4)))["votes"]  # a member between equals takes the first
    np.testing.assert_array_equal(level, [[2, 0, 0, 0]])


def test_votes_and_not_probabilities_decide():
    unsure = jnp.log(jnp.asarray([[[0.4, 0.6]], [[0.4, 0.6]], [[0.99, 0.01]]]))
    found = agree(unsure)
    np.testing.assert_array_equal(found["votes"], [[1, 2]])
    np.testing.assert_allclose(found["probs"], [[1.79 / 3, 1.21 / 3]], rtol=1e-5)


@pytest.mark.parametrize(("logits", "expected"), [
    (peaks(0, 1, 2, 3), 1),                       # all differ
    (peaks(2, 2, 2), 0),                          # all agree and are sure
    (jnp.zeros((3, 1, 4)), 0),                    # all agree that they do not know
    (peaks(0, 0, 1, 1), 0.5),                     # one bit of two
    (peaks(0, 1, num_classes=2), 1),
    (peaks(1, 0, height=3e38), 0.5),
    (peaks(0, 0, num_classes=1), 0),
])  # fmt: skip
def test_divergence_is_the_part_of_a_full_disagreement(logits, expected):
    assert abs(float(agree(logits)["divergence"][0]) - expected) < 1e-6


def test_agreement_by_its_definition():
    logits = np.random.default_rng(0).normal(0, 3, (5, 40, 6))
    found = agree(jnp.asarray(logits, jnp.float32))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = lambda p: -(p * np.log(p)).sum(-1)
    spread = (entropy(probs.mean(0)) - entropy(probs).mean(0)) / np.log(6)
    np.testing.assert_allclose(found["probs"], probs.mean(0), atol=1e-6)
    np.testing.assert_allclose(found["divergence"], spread, atol=1e-6)
    assert 0.1 < spread.mean() < 0.9
    back = agree(jnp.asarray(logits[::-1], jnp.float32))  # members have no order
    np.testing.assert_array_equal(back["votes"], found["votes"])
    np.testing.assert_allclose(back["divergence"], found["divergence"], atol=1e-6)
    np.testing.assert_array_equal(found["votes"].sum(-1), 5)


# --- images ---------------------------------------------------------------------------------------


@functools.cache
def toy(members=3, shapes=((2, 3, 4), (5, 4, 2), (2, 3, 1)), images=2, size=(7, 6), classes=4):
    """(member, ensemble, features) with random values."""
    draw = np.random.default_rng(0)
    width = sum(shape[-1] for shape in shapes)
    member = make_member(width, classes, (8, 5))
    make = lambda s: jnp.asarray(draw.uniform(0.3, 1.2, (members, *s.shape)), jnp.float32)
    ensemble = jax.tree.map(make, member.abstract)
    sign = lambda a: a * jnp.asarray(draw.choice([-1, 1], a.shape), jnp.float32)
    ensemble["params"] = jax.tree.map(sign, ensemble["params"])
    normal = lambda shape: jnp.asarray(draw.standard_normal((images, *shape)), jnp.float32)
    return member, ensemble, PixelFeatures(tuple(map(normal, shapes)), size, ((1.0, 0.9),) * 3)


@pytest.mark.parametrize("strip_bytes", [1, 4 * 2 * 6 * 3 * 8 * 3, pixel_ensemble.STRIP_BYTES])
def test_a_prediction_is_that_of_the_members_at_every_pixel(monkeypatch, strip_bytes):
    """Whole classifiers on enlarged features agree with what is enlarged after their first layer.

    Strips of one row, of three, and all rows at once.
    """
    monkeypatch.setattr(pixel_ensemble, "STRIP_BYTES", strip_bytes)
    member, ensemble, features = toy()
    found = quick(functools.partial(ensemble_maps, member))(ensemble, features)
    x = features.dense().reshape(-1, features.width)
    expected = agree(every_pixel(member, ensemble, x))
    assert {name: f.shape for name, f in found.items()} == {
        "votes": (2, 7, 6, 4), "probs": (2, 7, 6, 4), "divergence": (2, 7, 6),
    }  # fmt: skip
    assert len(np.unique(np.argmax(expected["votes"], -1))) > 2
    for name, tolerance in (("votes", 0), ("probs", 1e-5), ("divergence", 1e-5)):
        flat = found[name].reshape(expected[name].shape)
        np.testing.assert_allclose(flat, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_a_single_member_does_not_diverge():
    member, ensemble, features = toy()
    one = jax.tree.map(lambda leaf: leaf[1:2], ensemble)
    found = quick(functools.partial(ensemble_maps, member))(one, features)
    np.testing.assert_allclose(found["divergence"], 0, atol=1e-6)
    np.testing.assert_array_equal(found["votes"].sum(-1), 1)
    np.testing.assert_array_equal(np.argmax(found["votes"], -1), np.argmax(found["probs"], -1))


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "steps"), [(64, 100), (63, 100), (1, 100), (191, 200),
                                               (192, 300), (2_621_440, 4_096_000)])  # fmt: skip
def test_the_papers_recipe_is_a_hundred_passes_of_whole_batches(pixels, steps):
    recipe = RECIPES["paper"]
    assert recipe.length(pixels) == steps and recipe.stops and recipe.own_order


@pytest.mark.parametrize("name, steps, batch_size", [
    ("fast", 1000, 1024), ("regularised", 500, 512), ("linear", 500, 512), ("strokes", 160, 256),
])  # fmt: skip
def test_recipes_of_a_number_of_steps_have_those_of_the_guide(name, steps, batch_size):
    recipe = RECIPES[name]
    assert recipe.length(1) == recipe.length(10_000_000) == steps
    assert recipe.batch_size == batch_size and not recipe.stops


def test_the_papers_rate_is_constant():
    """The rate of the fast recipe ends near zero."""

    def last_move(name, steps):
        optimizer, weight = RECIPES[name].optimizer(steps), jnp.ones(())
        state = optimizer.init(weight)
        moves = []
        for _ in range(steps):
            move, state = optimizer.update(jnp.ones(()), state, weight)
            moves.append(-float(move))
        return moves

    np.testing.assert_allclose(last_move("paper", 5), 1e-3, rtol=1e-4)
    moves = last_move("fast", 60)
    assert moves[0] == 0 and max(moves) == pytest.approx(3e-3, rel=1e-3) and moves[-1] < 1e-4
