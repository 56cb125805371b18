"""Weights of classes that follow from the labels: their formula, and that they are kept."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.tiny_ddep import get_config
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.class_weights import (
    LEAST,
    MOST,
    WEIGHTS_KEY,
    inverse_frequencies,
    with_class_weights,
)
from diffseg_jax.experiment.plan import make_plan

pytestmark = pytest.mark.quick


def test_balanced_classes_weigh_the_same_in_all():
    pixels = {0: 600, 1: 300, 3: 100, 255: 5000}
    weights = np.array(inverse_frequencies(pixels, 5))
    shares = np.array([0.6, 0.3, 0, 0.1, 0])
    np.testing.assert_allclose((weights * shares)[[0, 1, 3]], 1 / 3, rtol=1e-12)
    assert weights[2] == weights[4] == 1  # classes that no label shows
    assert inverse_frequencies({0: 10**6, 1: 1}, 2)[1] == MOST
    assert inverse_frequencies({0: 10**6} | dict.fromkeys(range(1, 30), 1), 30)[0] == LEAST
    assert inverse_frequencies({255: 9}, 2) == [1.0, 1.0]


def planned(tmp_path, **loss):
    config = get_config()
    config.run, config.loss = ("scratch",), loss
    (stage,) = make_plan(config, tmp_path).stages
    return stage


def test_weights_follow_from_the_labels_in_use_and_a_resumed_stage_keeps_them(tmp_path, capsys):
    stage = planned(tmp_path, class_weights=("inverse_frequency",))
    fresh = with_class_weights(stage, SimpleNamespace(latest=lambda: None))
    masks = np.stack([stage.source[int(index)]["mask"] for index in stage.indices])
    labels, counts = np.unique(masks, return_counts=True)
    expected = inverse_frequencies(dict(zip(labels, counts)), 9)
    assert fresh.meta[WEIGHTS_KEY] == expected and len(set(expected)) > 2
    assert "scratch: weights of classes: " in capsys.readouterr().out
    kept = [float(k) for k in range(9)]
    saved = SimpleNamespace(latest=lambda: 4, meta=lambda step: {WEIGHTS_KEY: kept})
    resumed = with_class_weights(stage, saved)
    assert resumed.meta[WEIGHTS_KEY] == kept and not capsys.readouterr().out

    logits = np.random.default_rng(0).standard_normal((1, 8, 8, 9)).astype(np.float32)
    mask = np.arange(64, dtype=np.int32).reshape(1, 8, 8) % 9
    for each, weights in ((fresh, expected), (resumed, kept)):
        ours, pixels = each.task.loss.keywords["mask_loss"](logits, mask)
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        of_pixels = np.take_along_axis(log_probs, mask[..., None], -1)[..., 0]
        np.testing.assert_allclose(ours, -np.sum(of_pixels * np.take(weights, mask)), rtol=1e-5)


def test_only_the_option_reads_labels(tmp_path):
    for loss in ({}, {"name": "focal", "class_weights": tuple(range(9))}):
        stage = planned(tmp_path, **loss)
        assert with_class_weights(stage, None) is stage and WEIGHTS_KEY not in stage.meta


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ({"class_weights": (1.0, 2.0)}, "holds 2 weights, but the data have 9 classes. Give one"),
        ({"class_weights": ("inverse",)}, r'or \("inverse_frequency",\), or a tuple of one number'),
        ({"class_weights": "none"}, r'must be \("none",\) or'),
        ({"class_weights": (-1.0,) * 9}, "holds a value that must be a number from 0 up; it must"),
        ({"class_weights": (0.0,) * 9}, "holds only zeros, so nothing would be learned"),
        ({"name": "focl"}, 'must be one of cross_entropy, focal. Did you mean "focal"'),
        ({"focal_gama": 1.0}, 'unknown option "loss.focal_gama" in the config. Did you mean'),
        ({"region": "iou"}, "must be one of none, dice, lovasz"),
        ({"region_weight": -1.0}, "must be a number from 0 to"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, loss, sentence):
    with pytest.raises(UserError, match=sentence):
        planned(tmp_path, **loss)
