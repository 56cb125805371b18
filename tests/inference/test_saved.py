"""The files of predictions hold what was predicted, and say what they hold."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours, numbered_labels
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.figures import sheets
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.inference.saved import SaveOptions, label_image
from diffseg_jax.inference.summary import overview_of, statistics_of
from diffseg_jax.inference.views import Maps
from image_files import random_image, save_image

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(2)
PALETTES = {
    "generated": distinct_colours(5),
    "black first": ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)),
    "greys": tuple((60 * k,) * 3 for k in range(5)),
    "many greys": tuple((4 * k + 3,) * 3 for k in range(64)),
    "black and white": ((255, 255, 255), (0, 0, 0)),
    "one": ((1, 2, 3),),
    "equal": ((9, 9, 9),) * 4,
    "all": distinct_colours(255),
}


def prediction(names=("a", "sub/b"), num_classes=5, size=(6, 8)):
    """A random prediction for images of one size."""
    maps = []
    for _ in names:
        probs = RNG.dirichlet(np.ones(num_classes), size).astype(np.float32)
        best = probs.max(-1)
        labels = probs.argmax(-1).astype(np.int32)
        maps.append(Maps(labels, probs, 1 - best, {"entropy": best}))
    images = [random_image(*size) for _ in names]
    return Prediction(names, images, maps, numbered_labels(num_classes))


@pytest.mark.parametrize("with_palette", [True, False], ids=["palette known", "names only"])
@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_saved_labels_are_masks(tmp_path, palette, with_palette):
    num_classes = len(palette)
    labels = (np.arange(16 * 32) % num_classes).reshape(16, 32)
    labels[0, 3:5] = 255
    save_image(tmp_path / "images/train/a.png", random_image(16, 32))
    file = tmp_path / "masks/train/a.png"
    file.parent.mkdir(parents=True)
    label_image(labels, palette).save(file)
    names = [f"c{k}" for k in range(num_classes)]
    entries = {"names": names} | ({"palette": palette} if with_palette else {})
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    (item,) = open_source("folder", "train", path=str(tmp_path))
    np.testing.assert_array_equal(item["mask"], labels)
    with Image.open(file) as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        shown = np.asarray(image.convert("RGB"))
    assert (shown[labels == 0] == palette[0]).all()
    assert not {tuple(colour) for colour in shown[0, 3:5].tolist()} & set(palette)


def test_extra_maps_hold_the_maps(tmp_path):
    found = prediction()
    for form in ("png16", "npy", "npz"):
        out = tmp_path / form
        paths = found.save(out, extra=("uncertainty", "probs", "entropy"), format=form)
        assert {str(file) for file in out.rglob("*_*.*")} == set(paths)
        files = {"png16": "16.png", "npy": ".npy", "npz": ".npz"}
        for name, maps in (("uncertainty", found.uncertainty), ("entropy", found.probs.max(-1))):
            for row, image in enumerate(found.names):
                np.testing.assert_allclose(
                    opened(out / f"{image}_{name}{files[form]}"), maps[row], atol=1e-5
                )
        probs = opened(out / f"a_probs.{'npy' if form == 'npy' else 'npz'}")
        assert probs.dtype == np.float16
        np.testing.assert_allclose(probs, found.probs[0], atol=1e-3)
        described = json.loads((out / "summary.json").read_text())["files"]
        assert {path.rpartition("_")[2] for path in paths} == set(described)


def opened(path):
    """The array of a saved map, in units of the map."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            array = np.asarray(image)
            assert array.dtype == np.uint16
            return array / 65535
    content = np.load(path)
    return content if path.suffix == ".npy" else content[path.stem.rpartition("_")[2]]


@pytest.mark.parametrize("overlay", ["fill", "contours"])
@pytest.mark.parametrize("reds", [(0, 255), (0, 9)], ids=["safe", "close"])
def test_overlays_are_filled_or_lines_and_have_numbers_where_needed(tmp_path, overlay, reds):
    found = prediction(("a",), 2, (60, 80)).recoloured([(red, 0, 0) for red in reds])
    found._maps[0].labels[:] = np.arange(80) // 40
    found.save(tmp_path, overlay=overlay)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["options"] == ({} if overlay == "fill" else {"overlay": "contours"})
    assert ("lines" in content["files"]["overlay.png"]) == (overlay == "contours")
    shown = found.overlay(contours=overlay == "contours")[0]
    with Image.open(tmp_path / "a_overlay.png") as image:
        changed = (np.asarray(image) != shown).any(-1)
    assert changed.any() == (reds == (0, 9)) and changed.mean() < 0.2


def test_review_and_rejection_are_in_the_files(tmp_path):
    found = prediction()
    found.save(tmp_path, review=0.3, reject=0.5, contours="coco")
    summary = json.loads((tmp_path / "summary.json").read_text())
    for row, name in enumerate(found.names):
        review = np.asarray(Image.open(tmp_path / f"{name}_review.png"))
        np.testing.assert_array_equal(review, 255 * found.review(0.3)[row])
        labels = np.asarray(Image.open(tmp_path / f"{name}_labels.png"))
        np.testing.assert_array_equal(labels, found.rejected(0.5)[row])
        entry, uncertainty = summary["pictures"][name], found.uncertainty[row]
        kept = labels != 255
        assert kept.any() and not kept.all()
        assert entry["expected_accuracy"] == pytest.approx(1 - uncertainty[kept].mean(), abs=1e-5)
        assert entry["rejected"] == pytest.approx(1 - kept.mean(), abs=1e-6)
        assert sum(entry["shares"].values()) == pytest.approx(kept.mean(), abs=1e-4)
        assert entry["to_review"] == pytest.approx((review > 0).mean(), abs=1e-6)
    legend = sheets.prediction_legend(numbered_labels(5), calibrated=False, ignored=True)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "legend.png")), legend)
    shown = {
        each["file_name"] for each in json.loads((tmp_path / "coco.json").read_text())["images"]
    }
    assert shown == set(found.names)


def test_the_summary_orders_images_by_need(tmp_path):
    found = prediction(names=("c", "a", "b"))
    sure = [dataclasses.replace(maps, uncertainty=maps.uncertainty * part) for maps, part in
            zip(found._maps, (0.5, 0.1, 1.0))]  # fmt: skip
    found = Prediction(found.names, found._images, sure, numbered_labels(5))
    for one in found:  # as after predict_each
        one.save(tmp_path, contours="coco")
    shown = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert {image["file_name"] for image in shown} == {"a", "b", "c"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["by_need"] == ["b", "c", "a"] and (tmp_path / "legend.png").exists()
    right = 1 - np.stack([maps.uncertainty for maps in sure])
    assert summary["expected_accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    for k, accuracy in enumerate(summary["expected_class_accuracy"].values()):
        assert accuracy == pytest.approx(right[found.labels == k].mean(), abs=1e-4)
    found[:1].save(tmp_path, review=0.1)  # with other options, it begins again
    assert json.loads((tmp_path / "summary.json").read_text())["by_need"] == ["c"]


def test_large_images_count_more_and_foreign_ones_come_first():
    entries, chances, classes = {}, [], ("a", "b")
    for name, size, chance in (("small", (4, 5), 0.3), ("large", (30, 40), 0.1)):
        labels = RNG.integers(0, 2, size, np.int32)
        uncertainty = np.where(labels, np.float32(chance), np.float32(chance / 2))
        maps = Maps(labels, None, uncertainty, {}, calibrated=name == "large")
        entries[name] = statistics_of(maps, classes, SaveOptions())
        chances.append((labels.ravel(), uncertainty.ravel()))
    found = overview_of(entries, classes)
    assert found["by_need"] == ["small", "large"] and found["calibrated"] is False
    entries["large"]["foreign"] = True
    assert overview_of(entries, classes)["by_need"] == ["large", "small"]
    labels, chances = map(np.concatenate, zip(*chances, strict=True))
    assert found["expected_accuracy"] == pytest.approx(1 - chances.mean(), abs=1e-5)
    for k, name in enumerate(classes):
        accuracy = 1 - chances[labels == k].mean()
        assert found["expected_class_accuracy"][name] == pytest.approx(accuracy, abs=1e-5)


def test_all_pixels_of_one_class_or_none(tmp_path):
    labels, probs = np.zeros((4, 5), np.int32), np.ones((4, 5, 1), np.float32)
    for name, chance in (("sure", 0.0), ("unsure", 0.9)):
        maps = Maps(labels, probs, np.full((4, 5), chance, np.float32), {})
        found = Prediction([name], [random_image(4, 5)], [maps], Labels(("all",), ((9, 8, 7),)))
        found.save(tmp_path / name, review=0.2, reject=0.5, contours="geojson")
        content = (tmp_path / name / "summary.json").read_text()
        summary = json.loads(content, parse_constant=lambda constant: pytest.fail(constant))
        assert summary["expected_accuracy"] == (1.0 if name == "sure" else None)


def test_the_folder_of_a_command_is_not_mixed(tmp_path):
    found = prediction()
    for content in ('{"pictures": {}, "checkpoint": "a"}', "[]", "{", '{"pictures": 3}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(UserError, match="Give another folder"):
            found.save(tmp_path)
        assert (tmp_path / "summary.json").read_text() == content
        assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(extra="prob"), 'unknown map to save "prob".*Did you mean "probs"'),
        (dict(extra=("probs", "labels")), "unknown map to save"),
        (dict(format="png"), 'Did you mean "png16"'),
        (dict(format="npz"), "no maps are to be saved in it.*--save=uncertainty --format=npz"),
        (dict(overlay="contour"), 'unknown overlay "contour".*Did you mean "contours"'),
        (dict(contours="geo"), 'Did you mean "geojson"|Known: coco, geojson'),
        (dict(review=0), "review is 0, but must lie between 0 and 1.*Try 0.2"),
        (dict(review=20), "Try 0.2"),
        (dict(reject=1.0), "reject is 1.0.*Try 0.05"),
        (dict(reject=float("nan")), "reject is nan"),
        (dict(reject="0.1"), "reject is 0.1"),
        (dict(review=True), "review is True"),
    ],
)
def test_wrong_options_are_sentences(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        SaveOptions(**options)
    with pytest.raises(UserError):
        prediction().save(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_map_that_a_network_lacks_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no map changes.*Save some of probs, uncertainty, entropy"):
        prediction().save(tmp_path / "out", extra="changes")
    assert not (tmp_path / "out").exists()
