"""Entropy and Jensen-Shannon divergence against their definitions and limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.metrics.divergence import entropy, jensen_shannon, normalised

pytestmark = pytest.mark.quick


def test_entropy_is_0_when_certain_and_ln_k_when_uniform():
    np.testing.assert_allclose(entropy(jnp.eye(5)), 0, atol=1e-6)
    np.testing.assert_allclose(entropy(jnp.full(5, 0.2)), np.log(5), rtol=1e-6)
    assert normalised(entropy(jnp.full(5, 0.2)), 5) == pytest.approx(1)


def test_numpy_and_jax_give_the_same_entropy():
    probs = np.random.default_rng(0).dirichlet(np.ones(7), (4, 3)).astype(np.float32)
    np.testing.assert_allclose(entropy(probs, np), entropy(jnp.asarray(probs)), rtol=1e-5)
    assert isinstance(normalised(entropy(probs, np), 7, np), np.ndarray)


def test_divergence_is_0_for_equal_distributions_and_1_for_opposite_ones():
    opposite = jnp.eye(2)[None]  # [1, R, K]: each is certain of another of two classes
    equal = jnp.broadcast_to(jnp.array([0.3, 0.7]), (1, 4, 2))
    for probs, expected in ((opposite, 1), (equal, 0)):
        found = jensen_shannon(entropy(jnp.mean(probs, 1)), entropy(probs), 2, axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_class_alone_is_certain():
    assert normalised(entropy(jnp.ones((3, 1))), 1).max() == 0
