"""Generated sets: the recorded filter, both layouts, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data import generated_sets
from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS
from diffseg_jax.data.fingerprint import fingerprint
from diffseg_jax.data.generated_sets import kept_by_uncertainty
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError

N, SIDE = 40, 4
DRAW = np.random.default_rng(0)
IMAGES = DRAW.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
LABELS = DRAW.integers(0, 15, (N, SIDE, SIDE), np.uint8)
SCORES = DRAW.uniform(0, 1, N).astype("f")
LATENTS = np.ones((N, 3), np.float32)


@pytest.mark.golden
@pytest.mark.quick
def test_recorded_filters(golden):
    for path in golden("baselines/datasetddpm*.json"):
        recorded = np.load(path.with_suffix(".npz"))
        cases = json.loads(path.read_text())["filter_cases"]
        assert cases
        for case in cases:
            kept = kept_by_uncertainty(
                recorded["filter_scores"], case["uncertainty_portion"], 30, case["max_data"]
            )
            assert len(kept) == case["kept"]
            np.testing.assert_array_equal(kept, recorded[case["name"]])


@pytest.mark.quick
def test_the_filter_drops_the_most_certain_and_the_least_certain():
    order = np.argsort(SCORES)
    np.testing.assert_array_equal(kept_by_uncertainty(SCORES, 0.25, 3), order[3:33])
    np.testing.assert_array_equal(kept_by_uncertainty(SCORES, 0.25, 0), order[:30])
    np.testing.assert_array_equal(kept_by_uncertainty(SCORES, 0.0, 30), np.arange(N))
    first = kept_by_uncertainty(SCORES, 0.5, 0, images=10)
    np.testing.assert_array_equal(first, np.argsort(SCORES[:10])[:5])


@pytest.mark.quick
@pytest.mark.parametrize(("count", "portion", "certain", "enough"), [
    (40, 0.1, 30, 310), (300, 0.1, 30, 310), (40, 0.5, 20, 42), (0, 0.0, 30, 1),
])  # fmt: skip
def test_a_filter_that_leaves_nothing_is_refused(count, portion, certain, enough):
    """Also where as many would be dropped as are certain, which leaves nothing in the original."""
    with pytest.raises(UserError, match="the filter leaves nothing") as error:
        kept_by_uncertainty(np.arange(count), portion, certain)
    assert f" {enough} images or more" in str(error.value)
    assert "--config.data.options.certain=0" in str(error.value)
    if count:
        assert len(kept_by_uncertainty(np.arange(enough), portion, certain))
        assert len(kept_by_uncertainty(np.arange(count), portion, 0))


@pytest.mark.parametrize("latents", [(), (LATENTS,)], ids=["diffusion", "GAN"])
def test_archives_are_read_with_and_without_latents(latents, tmp_path):
    np.savez(tmp_path / "samples_4x4x3.npz", IMAGES, LABELS, *latents, SCORES)
    for path in (tmp_path, tmp_path / "samples_4x4x3.npz"):
        source = open_source("generated", "", path=path, classes="cat_15", portion=0.25, certain=3)
        order = np.argsort(SCORES)[3:33]
        assert len(source) == 30 and source.names[0] == f"{order[0]:06d}"
        assert source.labels.names == FEW_LABEL_SETS["cat_15"].labels().names
        for row in (0, 7, 29):
            np.testing.assert_array_equal(source[row]["image"], IMAGES[order[row]])
            np.testing.assert_array_equal(source[row]["mask"], LABELS[order[row]])
            assert source[row]["mask"].dtype == np.int32
    assert len(open_source("generated", "", path=tmp_path, num_classes=15, images=8)) == 8
    before = fingerprint(source, np.arange(30))
    np.savez(tmp_path / "samples_4x4x3.npz", IMAGES + 1, LABELS, *latents, SCORES)
    assert fingerprint(source, np.arange(30)) != before


def test_class_zero_of_bedrooms_is_learned(tmp_path):
    np.savez(tmp_path / "samples.npz", IMAGES, 0 * LABELS, SCORES)
    source = open_source("generated", "", path=tmp_path, classes="bedroom_28")
    assert source[0]["mask"].max() == 0 and source.labels.unscored == ()


def datasetgan_folder(folder):
    """Images 9, 10, 11 as the program of DatasetGAN writes them."""
    divergence = {9: 0.5, 10: 0.1, 11: 0.9}
    for number, value in divergence.items():
        Image.fromarray(IMAGES[number]).save(folder / f"{number}.png")
        Image.fromarray(LABELS[number]).save(folder / f"label_{number}.png")
        np.save(folder / f"{number}.npy", np.full((SIDE, SIDE), value, "f"))


def test_folders_of_datasetgan_are_read_by_number_and_uncertainty(tmp_path):
    datasetgan_folder(tmp_path)
    source = open_source("generated", "", path=tmp_path, num_classes=15)
    assert source.names == ("9", "10", "11")
    np.testing.assert_array_equal(source[1]["image"], IMAGES[10])
    np.testing.assert_array_equal(source[1]["mask"], LABELS[10])
    source = open_source("generated", "", path=tmp_path, num_classes=15, portion=0.4)
    assert source.names == ("10", "9")  # 11 is the least certain
    np.testing.assert_array_equal(source[0]["mask"], LABELS[10])


def test_divergences_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    datasetgan_folder(tmp_path)
    read, read_npy = [], generated_sets.read_npy
    monkeypatch.setattr(
        generated_sets, "read_npy", lambda file, what: read.append(file) or read_npy(file, what)
    )
    names = lambda: open_source(
        "generated", "", path=tmp_path, num_classes=15, portion=0.4
    ).names  # fmt: skip
    assert names() == names() == ("10", "9") and len(read) == 3
    np.save(tmp_path / "10.npy", np.full((SIDE, SIDE + 1), 2, "f"))
    assert names() == ("9", "11")


def without_score(folder):
    datasetgan_folder(folder)
    (folder / "10.npy").unlink()


def without_label(folder):
    datasetgan_folder(folder)
    (folder / "label_10.png").unlink()


def saved(*arrays, save=np.savez):
    return lambda folder: save(folder / "samples.npz", *arrays)


@pytest.mark.parametrize(("make", "options", "sentence"), [
    (saved(IMAGES, LABELS, SCORES), {}, "classes of generated images are unknown"),
    (saved(IMAGES, LABELS, SCORES), {"classes": "cat_16"}, 'Did you mean "cat_15"?'),
    (saved(IMAGES, LABELS), {"num_classes": 15}, r"samples.npz holds uint8 \[40, 4, 4, 3\]; uint8"),
    (saved(IMAGES, LABELS[:9], SCORES), {"num_classes": 15}, r"uint8 \[9, 4, 4\]"),
    (saved(IMAGES, LABELS, SCORES, save=np.savez_compressed), {"num_classes": 15},
     "is compressed.* Write it again with numpy.savez"),
    (lambda folder: (folder / "a.npz").write_bytes(b"PK"), {"num_classes": 15}, "is no .npz"),
    (lambda folder: None, {"num_classes": 15}, "holds no generated images: one file samples_"),
    (without_label, {"num_classes": 15}, "10.png has no label_10.png"),
    (without_score, {"num_classes": 15, "portion": 0.4}, "10.npy is missing, by which images"),
    (saved(IMAGES, LABELS, SCORES), {"num_classes": 15, "portion": 0.1, "certain": 30},
     "the filter leaves nothing of 40 generated images"),
], ids=["no classes", "unknown classes", "two arrays", "other labels", "compressed", "damaged",
        "empty", "no label", "no score", "filter"])  # fmt: skip
def test_other_sets_are_refused(make, options, sentence, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=sentence):
        open_source("generated", "", path=tmp_path, **options)


def test_a_label_that_is_no_class_is_named(tmp_path):
    np.savez(tmp_path / "samples.npz", IMAGES, LABELS, SCORES)
    source = open_source("generated", "", path=tmp_path, num_classes=14)
    row = next(i for i in range(N) if LABELS[i].max() == 14)
    with pytest.raises(UserError, match=f"{row} of .*samples.npz has class id 14"):
        source[row]
