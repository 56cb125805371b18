"""How images are cut, mirrored and scaled, with networks of one line."""

import ast
import re
import tracemalloc

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.inference import views
from diffseg_jax.inference.bands import ShownRows, window_starts
from diffseg_jax.inference.views import (
    Protocol,
    View,
    make_protocol,
    predict,
    predict_whole,
)
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.familiarity import known_images

pytestmark = pytest.mark.quick

CLASSES = 3


def random_images(height, width, count=2, seed=0):
    shape = (count, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def per_pixel(images, valid):
    """Probabilities that depend on the pixel only, which no view may change."""
    logits = images.astype(np.float32) / 60
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    return probs / probs.sum(-1, keepdims=True)


def positional(images, valid):
    """Probabilities that also depend on the position in the image that the network is shown."""
    ramp = np.linspace(0, 1, images.shape[2], dtype=np.float32)[None, None, :, None]
    probs = per_pixel(images, valid) + ramp * np.array([1, 0, 0], np.float32)
    return probs / probs.sum(-1, keepdims=True)


class Recorder:
    """A network that records its inputs."""

    def __init__(self, forward=per_pixel):
        self.forward, self.seen = forward, []

    def __call__(self, images, valid):
        self.seen.append((images, valid))
        return self.forward(images, valid)


# --- where windows lie ----------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "window", "stride", "starts"), [
    (10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 3, [0]), (3, 4, 3, [0]),
    (5, 4, 4, [0, 1]), (8, 4, 4, [0, 4]), (2048, 1024, 1024, [0, 1024]), (6, 4, 1, [0, 1, 2]),
])  # fmt: skip
def test_window_starts_are_the_listed_ones(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize("length", range(1, 30))
def test_windows_cover_every_pixel_and_stay_inside(length):
    for window in (1, 4, 7):
        for stride in range(1, window + 1):
            starts = window_starts(length, window, stride)
            assert len(starts) == max(length - window + stride - 1, 0) // stride + 1
            covered = {p for s in starts for p in range(s, min(s + window, length))}
            assert covered == set(range(length))
            assert starts[0] == 0 and all(s + window <= length for s in starts if s)


# --- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [
    Protocol(), Protocol(flip=True), Protocol(View.HALVES), Protocol(View.HALVES, flip=True),
    Protocol(View.SLIDE, (4, 5), (3, 2)), Protocol(View.SLIDE, (16, 32), (16, 32), flip=True),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(8, 12), (9, 7), (1, 1)])
def test_a_network_of_single_pixels_predicts_the_same_in_every_view(protocol, size):
    images = random_images(*size)
    maps = predict(per_pixel, images, protocol)
    expected = per_pixel(images, None)
    np.testing.assert_allclose(maps.probs, expected, atol=1e-6)
    assert maps.probs.dtype == maps.uncertainty.dtype == np.float32
    np.testing.assert_array_equal(maps.labels, expected.argmax(-1))
    assert maps.labels.dtype == np.int32 and maps.uncertainty.shape == images.shape[:3]


def test_halves_are_the_whole_view_of_each_half():
    images = random_images(6, 10)
    maps = predict(positional, images, Protocol(View.HALVES))
    for half in (np.s_[:, :, :5], np.s_[:, :, 5:]):
        alone = predict(positional, images[half], Protocol())
        np.testing.assert_allclose(maps.probs[half], alone.probs, atol=1e-6)
    complete = predict(positional, images, Protocol())
    assert np.abs(maps.probs - complete.probs).max() > 0.05


def test_halves_of_an_odd_width_share_the_middle_column():
    network = Recorder()
    predict(network, random_images(4, 7), Protocol(View.HALVES))
    assert [images.shape[1:3] for images, _ in network.seen] == [(4, 4), (4, 4)]


def test_overlapping_windows_are_averaged():
    images = random_images(1, 6, count=1)
    probs = predict(positional, images, Protocol(View.SLIDE, (1, 4), (1, 2))).probs[0, 0]
    left, right = (positional(images[:, :, s : s + 4], None)[0, 0] for s in (0, 2))
    np.testing.assert_allclose(probs[:2], left[:2], atol=1e-6)
    np.testing.assert_allclose(probs[2:4], (left[2:] + right[:2]) / 2, atol=1e-6)
    np.testing.assert_allclose(probs[4:], right[2:], atol=1e-6)


def test_small_images_are_padded_to_the_window_and_valid_excludes_the_padding():
    network, images = Recorder(), random_images(5, 12)
    predict(network, images, Protocol(View.SLIDE, (8, 8), (4, 4)))
    assert [shown.shape[1:3] for shown, _ in network.seen] == [(8, 8), (8, 8)]
    for shown, valid in network.seen:
        assert valid.tolist() == [[5, 8], [5, 8]] and valid.dtype == np.int32
        assert not shown[:, 5:].any() and shown[:, :5].any()


def test_a_whole_image_is_valid_everywhere():
    network, images = Recorder(), random_images(5, 12)
    predict(network, images, Protocol())
    ((shown, valid),) = network.seen
    np.testing.assert_array_equal(shown, images)
    assert valid.tolist() == [[5, 12], [5, 12]]


# --- mirror images and scales ---------------------------------------------------------------------


@pytest.mark.parametrize("view", [View.WHOLE, View.HALVES])
def test_flip_averaging_is_symmetric(view):
    images, protocol = random_images(6, 8), Protocol(view, flip=True)
    straight = predict(positional, images, protocol).probs
    mirrored = predict(positional, images[:, :, ::-1], protocol).probs
    np.testing.assert_allclose(straight, mirrored[:, :, ::-1], atol=1e-6)
    plain = predict(positional, images, Protocol(view)).probs
    other = predict(positional, images[:, :, ::-1], Protocol(view)).probs[:, :, ::-1]
    assert np.abs(plain - other).max() > 0.05


def test_flip_is_the_mean_of_both_predictions():
    images = random_images(4, 6)
    mirrored = positional(images[:, :, ::-1], None)[:, :, ::-1]
    expected = (positional(images, None) + mirrored) / 2
    maps = predict(positional, images, Protocol(flip=True))
    np.testing.assert_allclose(maps.probs, expected, atol=1e-6)


def test_scales_show_other_sizes_and_average_at_the_size_of_the_image():
    by_height = lambda images, valid: np.full((*images.shape[:3], 2), 1 / images.shape[1])
    network = Recorder(by_height)
    maps = predict(network, random_images(8, 12), Protocol(scales=(0.5, 1.0, 1.5)))
    assert [images.shape[1:3] for images, _ in network.seen] == [(4, 6), (8, 12), (12, 18)]
    assert maps.probs.shape == (2, 8, 12, 2)
    np.testing.assert_allclose(maps.probs, (1 / 4 + 1 / 8 + 1 / 12) / 3, rtol=1e-5)


def test_averaged_probabilities_sum_to_one():
    protocol = Protocol(View.SLIDE, (6, 6), (3, 4), scales=(0.6, 1.0, 1.3), flip=True)
    maps = predict(positional, random_images(9, 11), protocol)
    np.testing.assert_allclose(maps.probs.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (8, 12), (17, 5), (1, 1)])
def test_probabilities_are_resized_with_half_pixel_centres(size):
    probs = np.random.default_rng(0).random((2, 8, 12, 3), np.float32)
    rows = ShownRows(lambda *_: probs, np.zeros((2, 8, 12, 3), np.uint8), None, None, False)
    resized = rows.resized(size, 0, size[0])["probs"]
    np.testing.assert_allclose(resized, resize_bilinear(probs, size), atol=1e-5)


SHOWN = {
    "whole": Protocol(),
    "slide": Protocol(View.SLIDE, (6, 6), (3, 4)),
    "gaps of rows": Protocol(View.SLIDE, (7, 5), (7, 5)),
    "halves, mirrored": Protocol(View.HALVES, flip=True),
    "scales": Protocol(View.SLIDE, (6, 6), (5, 4), scales=(0.3, 1.0, 2.7), flip=True),
    "smaller": Protocol(View.SLIDE, (6, 6), (2, 6), short=9),
    "larger": Protocol(short=40),
}


@pytest.mark.parametrize("pixels", [1, 60, 150])
@pytest.mark.parametrize("case", SHOWN)
def test_strips_of_rows_change_no_bit(case, pixels, monkeypatch):
    images = random_images(19, 23, count=1)

    def forward(images, valid):
        logits = positional(images, valid) * 3
        return {"logits": logits, "spread": logits[..., 0] / 9, "descriptor": logits[:, :1, :1, :2]}

    whole = predict(forward, images, SHOWN[case])
    monkeypatch.setattr(views, "STRIP", pixels)
    strips = predict(forward, images, SHOWN[case])
    for name in ("labels", "probs", "uncertainty", "descriptor"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(strips, name))
    for name, values in whole.signals.items():
        np.testing.assert_array_equal(values, strips.signals[name])
    few = predict(forward, images, SHOWN[case], keep=("spread",))
    assert few.probs is None and few[0].probs is None and set(few.signals) == {"spread"}
    np.testing.assert_array_equal(few.uncertainty, whole.uncertainty)


def test_probabilities_of_a_large_image_are_not_held_at_once(monkeypatch):
    monkeypatch.setattr(views, "STRIP", 2**10)
    images, classes = random_images(6000, 8, count=1), 64
    forward = lambda images, valid: np.full((*images.shape[:3], classes), 1 / classes, np.float32)
    for protocol in (Protocol(View.SLIDE, (8, 8), (6, 6)), Protocol(short=4)):
        tracemalloc.start()
        predict(forward, images, protocol, keep=())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < images[..., 0].size * classes * 4 / 2


# --- uncertainty ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 19])
def test_signals_are_0_for_one_class_and_highest_for_equal_classes(classes):
    def signals(probs):
        forward = lambda images, valid: np.tile(probs, (*images.shape[:3], 1)).astype(np.float32)
        return predict(forward, random_images(2, 2), Protocol()).signals

    sure, alike = np.eye(classes)[1], np.full(classes, 1 / classes)
    for name, highest in (("entropy", 1), ("least_confidence", 1 - 1 / classes)):
        np.testing.assert_array_equal(signals(sure)[name], 0)
        np.testing.assert_allclose(signals(alike)[name], highest, atol=1e-6)
        between = signals((sure + alike) / 2)[name]
        assert np.all((between > 0.1) & (between < 0.9))


def test_views_that_disagree_are_uncertain():
    """Each of two views is certain, but of another class."""
    sure = lambda images, valid: np.eye(2, dtype=np.float32)[
        np.broadcast_to(np.arange(images.shape[2]) * 2 // images.shape[2], images.shape[:3])
    ]
    maps = predict(sure, random_images(2, 4), Protocol(flip=True))
    np.testing.assert_allclose(maps.uncertainty, 0.5, atol=1e-6)
    np.testing.assert_allclose(maps.signals["entropy"], 1, atol=1e-6)


# --- from a config --------------------------------------------------------------------------------


def test_a_protocol_is_made_of_plain_values():
    protocol = make_protocol("slide", [8, 8], [4, 8], [1.0, 0.5], True)
    assert protocol == Protocol(View.SLIDE, (8, 8), (4, 8), (1.0, 0.5), True)
    assert make_protocol("whole", (0, 0), (0, 0), (1.0,), False) == Protocol()


@pytest.mark.parametrize("stride", [(0, 4), (4, 0), (9, 4), (4, 9)])
def test_strides_that_leave_gaps_are_refused(stride):
    with pytest.raises(UserError, match=r"evaluate\.stride .*between 1 and its window"):
        make_protocol("slide", (8, 8), stride, (1.0,), False)


@pytest.mark.parametrize("window, stride", [((8, 8), (9, 4)), ((0, 0), (0, 0)), ((1, 90), (0, 0))])
def test_the_advice_on_windows_works(window, stride):
    with pytest.raises(UserError) as error:
        make_protocol("slide", window, stride, (1.0,), False)
    typed = dict(re.findall(r'--config.evaluate.(\w+)="(.*?)"', str(error.value)))
    given = {name: ast.literal_eval(value) for name, value in typed.items()}
    make_protocol("slide", given.get("window", window), given["stride"], (1.0,), False)


# --- logits, and signals of uncertainty -----------------------------------------------------------


def as_logits(images, valid):
    return {"logits": images.astype(np.float32) / 20 - 4, "changes": images[..., 0] / 255}


def test_logits_become_probabilities_after_enlarging_and_before_views_are_averaged():
    images = random_images(6, 8, count=1)
    maps = predict(as_logits, images, Protocol(limit=(4, 3)))
    shown = predict(lambda *inputs: as_logits(*inputs)["logits"], images, Protocol(limit=(4, 3)))
    powers = np.exp(shown.probs)  # here the enlarged logits themselves
    np.testing.assert_allclose(maps.probs, powers / powers.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(maps.probs.sum(-1), 1, rtol=1e-5)
    both = predict(as_logits, images, Protocol(scales=(1.0, 0.5)))
    alone = [predict(as_logits, images, Protocol(scales=(scale,))).probs for scale in (1.0, 0.5)]
    np.testing.assert_allclose(both.probs, np.mean(alone, 0), rtol=1e-5)


def test_a_baseline_is_labelled_beside_the_prediction_in_every_view():
    """It changes nothing else, and is itself as if it were the network."""
    def forward(images, valid):
        return {"probs": per_pixel(images, valid), "baseline": positional(images, valid)}

    images, protocol = random_images(9, 8), Protocol(flip=True, scales=(1.0, 0.5))
    found, alone = (predict(f, images, protocol) for f in (forward, per_pixel))
    np.testing.assert_array_equal(found.probs, alone.probs)
    np.testing.assert_array_equal(found.labels, alone.labels)
    assert alone.baseline is None and (found.baseline != found.labels).any()
    expected = predict(positional, images, protocol).labels
    np.testing.assert_array_equal(found.baseline, expected)
    np.testing.assert_array_equal(found[1].baseline, expected[1])


def described(images, valid):
    """With a descriptor of two features: the red of a pixel, and its green."""
    inside = [image[:h, :w, :2] / 255 for image, (h, w) in zip(images, valid)]
    moments = [np.concatenate([(i**n).mean((0, 1)) for n in (1, 2)]) for i in inside]
    descriptor = np.stack(moments)[:, None, None].astype(np.float32)
    return {"probs": per_pixel(images, valid), "descriptor": descriptor}


@pytest.mark.parametrize("protocol", [
    Protocol(), Protocol(flip=True), Protocol(View.SLIDE, (4, 6), (4, 6)), Protocol(View.HALVES),
    Protocol(View.SLIDE, (16, 32), (16, 32)),
], ids=str)  # fmt: skip
def test_every_view_describes_an_image_by_means_and_deviations(protocol):
    images = random_images(8, 12, count=3)
    found, alone = predict(described, images, protocol), predict(per_pixel, images, protocol)
    shown = images[..., :2] / 255
    expected = np.concatenate([shown.mean((1, 2)), shown.std((1, 2))], -1)
    np.testing.assert_allclose(found.descriptor, expected, atol=1e-4)
    np.testing.assert_array_equal(found[1].descriptor, found.descriptor[1])
    np.testing.assert_array_equal(found.probs, alone.probs)
    assert found.signals.keys() == alone.signals.keys() and alone.descriptor is None


def test_known_images_judge_those_whose_descriptors_are_of_their_kind():
    images = random_images(6, 8, count=20)
    known = known_images(predict(described, images, Protocol()).descriptor)
    shown = np.stack([images[0], np.full_like(images[0], 255)])
    found = predict(described, shown, Protocol(), known=known)
    assert found.foreign.tolist() == [False, True] and found.familiarity.dtype == np.float32
    assert found.familiarity[1] == np.float32(1 / 21) < found[0].familiarity
    wider = known_images(np.random.default_rng(0).normal(size=(20, 6)))
    for forward, others in ((described, wider), (per_pixel, known), (described, None)):
        assert predict(forward, shown, Protocol(), known=others).familiarity is None
    whole = predict_whole(described(shown, np.full((2, 2), 99)))
    np.testing.assert_array_equal(whole.labels, found.labels)


def test_votes_decide_the_label_and_not_the_probabilities():
    probs = np.array([[[[0.6, 0.4], [0.6, 0.4]]]], np.float32)
    votes = np.array([[[[1, 2], [2, 2]]]], np.float32)
    found = predict(lambda *_: {"probs": probs, "votes": votes}, random_images(1, 2, 1), Protocol())
    assert found.labels.tolist() == [[[1, 0]]]
    np.testing.assert_allclose(found.uncertainty, 0.4)


def test_without_a_calibrator_uncertainty_is_1_minus_the_highest_probability():
    images = random_images(6, 8)
    maps = predict(as_logits, images, Protocol())
    assert set(maps.signals) == {"least_confidence", "entropy", "changes"}
    np.testing.assert_array_equal(maps.uncertainty, maps.signals["least_confidence"])
    np.testing.assert_allclose(maps.uncertainty, 1 - maps.probs.max(-1), atol=1e-6)
    np.testing.assert_allclose(maps.signals["changes"], images[..., 0] / 255, rtol=1e-6)
    assert not maps.calibrated and not maps[0].calibrated


def test_a_calibrator_estimates_the_uncertainty_from_the_signals_that_it_knows():
    images = random_images(6, 8)
    calibrator = lambda *names: Calibrator(
        names, np.ones(len(names)), np.array([0.0, 1, 2]), np.array([-9.0, 9]),
        np.array([0.1, 0.8]), {},
    )  # fmt: skip
    known = calibrator("changes", "entropy")
    maps = predict(as_logits, images, Protocol(), calibrator=known)
    assert maps.calibrated and maps[0].calibrated
    np.testing.assert_array_equal(maps.uncertainty, known.chance(maps.signals, maps.labels))
    unknown = predict(as_logits, images, Protocol(), calibrator=calibrator("spread"))
    assert not unknown.calibrated
    np.testing.assert_array_equal(unknown.uncertainty, unknown.signals["least_confidence"])


def test_scales_multiply_the_limit_not_the_rounded_size():
    """mmsegmentation fits an image once into each scaled limit."""
    own, limit = (683, 512), (2048, 512)
    sizes = Protocol(limit=limit, scales=(0.75, 1.75)).sizes(own)
    assert sizes == [(512, 384), (1195, 896)]
    assert Protocol(limit=limit).sizes((333, 500))[0] == (512, 769)
    assert Protocol(limit=limit, scales=(0.5,)).sizes((333, 500)) == [(256, 384)]  # 769 / 2 = 385
