"""Prepared TFDS data sets return what was prepared."""

import io
import pickle

import numpy as np
import pytest

from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import png_bytes, random_ids, random_image

pytestmark = pytest.mark.quick


def prepare(path, pairs, *, mask_key="mask", labels=None, metadata=None, name="streets"):
    """An array_record folder whose splits, train and validation, both hold all pairs."""
    tfds = pytest.importorskip("tensorflow_datasets")
    masks = tfds.features.Image(shape=(None, None, 1))
    if labels:
        masks = tfds.features.LabeledImage(labels=labels, shape=(None, None, 1))

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(None, None, 3)), mask_key: masks}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata)

        def _split_generators(self, _):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            for key, (image, mask) in enumerate(pairs):
                yield (
                    key,
                    {"image": io.BytesIO(png_bytes(image)), mask_key: io.BytesIO(png_bytes(mask))},
                )

    Prepared.name = name
    Prepared(data_dir=str(path), file_format="array_record").download_and_prepare()
    return str(path)


def test_tfds_returns_what_was_prepared(tmp_path):
    pairs = [(random_image(), random_ids()) for _ in range(3)]
    path = prepare(tmp_path, pairs, labels=["a", "b", "c"])
    by_name = open_source("tfds:streets", "val", path=path)
    by_folder = open_source(f"tfds:{path}/streets/1.0.0", "train")
    assert by_name.labels.names == ("a", "b", "c") and len(by_name) == len(by_folder) == 3
    assert by_name.names == ("val_000000", "val_000001", "val_000002")
    stored = {(image.tobytes(), mask.astype(np.int32).tobytes()) for image, mask in pairs}
    for source in (by_name, pickle.loads(pickle.dumps(by_folder))):
        assert {(item["image"].tobytes(), item["mask"].tobytes()) for item in source} == stored
    assert len(open_source("tfds:streets", "train[:2]", path=path)) == 2


def test_tfds_metadata_provide_names_and_colours(tmp_path):
    import tensorflow_datasets as tfds

    metadata = tfds.core.MetadataDict(
        names=["x", "y", "z"], palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    )
    path = prepare(tmp_path, [(random_image(), random_ids())], metadata=metadata)
    labels = open_source("tfds:streets", "train", path=path).labels
    assert labels.names == ("x", "y", "z") and labels.palette[2] == (7, 8, 9)


def test_tfds_pets_are_shifted_and_hold_no_zero(tmp_path):
    masks = np.array([[1, 2, 3]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    for name, mask in zip(("good", "bad"), masks, strict=True):
        pairs = [(random_image(1, 3), mask)]
        prepare(tmp_path / name, pairs, mask_key="segmentation_mask", name="oxford_iiit_pet")
    source = open_source("tfds:oxford_iiit_pet", "train", path=tmp_path / "good")
    np.testing.assert_array_equal(source[0]["mask"], [[0, 1, 2]])
    assert source.labels.names == ("pet", "background", "outline")
    with pytest.raises(UserError, match=r"class id 0, but classes are 1\.\.3"):
        open_source("tfds:oxford_iiit_pet", "train", path=tmp_path / "bad")[0]


def test_wrong_tfds_names_and_options_are_refused(tmp_path):
    ids = random_ids(7)
    ids[0, 0] = 6
    path = prepare(tmp_path, [(random_image(), ids)], mask_key="label_map")
    for name in ("strets", "/nowhere/1.0.0", ""):
        with pytest.raises(UserError, match="nothing is downloaded"):
            open_source(f"tfds:{name}", "train", path=path)
    with pytest.raises(UserError, match='Did you mean "train"'):
        open_source("tfds:streets", "trian", path=path)
    with pytest.raises(UserError, match=r"Give --config\.data\.options\.num_classes=N"):
        open_source("tfds:streets", "train", path=path)
    with pytest.raises(UserError, match='Did you mean "label_map"'):
        open_source("tfds:streets", "train", path=path, num_classes=7, mask_key="label_mask")
    with pytest.raises(UserError, match="cannot open split"):
        open_source("tfds:streets", "train[:x]", path=path, num_classes=7)
    assert open_source("tfds:streets", "train", path=path, num_classes=7)[0]["mask"].max() == 6
    with pytest.raises(UserError, match="class id"):
        open_source("tfds:streets", "train", path=path, num_classes=2)[0]


def prepare_animals(path, pairs):
    """A prepared folder of images with a class and without masks."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "animal": tfds.features.ClassLabel(names=["hen", "ant"]),
        "number": tfds.features.Scalar(np.int64),
    }

    class Animals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for key, (image, animal) in enumerate(pairs):
                yield key, {"image": io.BytesIO(png_bytes(image)), "animal": animal, "number": key}

    Animals(data_dir=str(path), file_format="array_record").download_and_prepare()
    return str(path)


def test_tfds_classes_come_from_the_named_feature(tmp_path):
    pairs = [(random_image(), "ant"), (random_image(), "hen"), (random_image(), "ant")]
    path = prepare_animals(tmp_path, pairs)
    source = open_source("tfds:animals", "train", path=path, label_key="animal")
    assert source.classes == ("hen", "ant") and source.labels is None
    stored = {(image.tobytes(), source.classes.index(animal)) for image, animal in pairs}
    again = pickle.loads(pickle.dumps(source))
    assert {(item["image"].tobytes(), item["class"].item()) for item in again} == stored
    assert source[0]["class"].dtype == np.int32
    assert "class" not in open_source("tfds:animals", "train", path=path)[0]
    square = open_source("tfds:animals", "train", path=path, label_key="animal", square=3)
    assert square[0]["class"] == source[0]["class"] and square.classes == source.classes
    with pytest.raises(UserError, match="no split val of validation images, only train. Give"):
        open_source("tfds:animals", "val", path=path)
    for wrong in ("number", "image", "annimal"):
        with pytest.raises(UserError, match=f'class label of animals "{wrong}". Known: animal'):
            open_source("tfds:animals", "train", path=path, label_key=wrong)


def test_tfds_examples_without_their_class_are_refused(tmp_path):
    path = prepare_animals(tmp_path, [(random_image(), -1)])
    with pytest.raises(UserError, match="train_000000 has no class in animal"):
        open_source("tfds:animals", "train", path=path, label_key="animal")[0]
