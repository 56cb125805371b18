"""DeepLabV3 in torchvision's names: the recorded network, its sizes, and what does not fit."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

from deeplab_file import torch_arrays
from diffseg_jax.errors import UserError
from diffseg_jax.models.deeplab import DeepLab, DeepLabSettings
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.models.network import Network
from diffseg_jax.training.losses import masked_cross_entropy
from diffseg_jax.weights.deeplab import (
    deeplab_settings,
    load_deeplab,
    load_deeplab_backbone,
)
from diffseg_jax.weights.formats import read_arrays

SMALL = DeepLabSettings(
    num_classes=5, width=2, depths=(1, 2, 2, 1), rates=(12, 24, 36), channels=3, auxiliary=True
)
ONE = np.ones((2, 2), np.float32)


def size_of(settings):
    network = Network(lambda rngs: DeepLab(settings, rngs=rngs))
    return sum(leaf.size for leaf in jax.tree.leaves(network.abstract["params"]))


# ---- the recorded network ----------------------------------------------------------------------


@pytest.mark.golden
def test_recorded_networks_and_their_loss(golden):
    for path in golden("baselines/deeplab*.json"):
        case = json.loads(path.read_text())
        config, limits = case["config"], case["tolerance"]
        recorded = np.load(path.with_suffix(".npz"))
        arrays = read_arrays(path.parent / case["checkpoint"])
        settings = deeplab_settings(arrays, str(path))
        assert settings == DeepLabSettings(
            num_classes=config["num_classes"], width=config["stem_width"],
            depths=tuple(config["layers"]), output_stride=settings.output_stride,
            rates=settings.rates, channels=config["aspp_channels"],
        )  # fmt: skip
        settings = dataclasses.replace(
            settings, output_stride=config["output_stride"], rates=tuple(config["aspp_rates"])
        )
        values = load_deeplab(arrays, settings, str(path))
        network = Network(lambda rngs, settings=settings: DeepLab(settings, rngs=rngs))

        @jax.jit
        def run(values, images, network=network):
            return network.bind_eval(values["params"], values["stats"])(images)

        images = recorded["input"].astype(np.float32).transpose(0, 2, 3, 1)
        logits, found = run(values, images)
        channels_first = lambda maps: np.asarray(maps).transpose(0, 3, 1, 2)
        close = functools.partial(np.testing.assert_allclose, **limits["features"])
        close(channels_first(found["logits"]), recorded["logits_low"])
        if "backbone_out" in recorded:
            close(channels_first(found["layer4"]), recorded["backbone_out"])
        if "logits_full_sample0" in recorded:
            close(channels_first(logits)[0], recorded["logits_full_sample0"])
        assert np.mean(np.argmax(logits, -1) == recorded["argmax"]) >= 0.999
        loss, weight = masked_cross_entropy(logits, recorded["labels"].astype(np.int32))
        limit = limits["cross_entropy"]
        np.testing.assert_allclose(loss / weight, recorded["cross_entropy"], **limit)


# ---- torchvision's names and sizes -------------------------------------------------------------


@pytest.mark.parametrize(("settings", "count"), [
    # The number that the specification of the paper's baseline states for 29 classes.
    (DeepLabSettings(29), 58_633_053),
    # Those that torchvision's documentation states for its released weights of 21 classes.
    (DeepLabSettings(21, depths=(3, 4, 6, 3), auxiliary=True), 42_004_074),
    (DeepLabSettings(21, auxiliary=True), 60_996_202),
], ids=["paper", "resnet50", "resnet101"])  # fmt: skip
def test_published_numbers_of_parameters(settings, count):
    assert size_of(settings) == count


@functools.cache
def network_and_file():
    """A random network and the file that torchvision would save of it."""
    draw = np.random.default_rng(0)
    abstract = Network(lambda rngs: DeepLab(SMALL, rngs=rngs)).abstract
    values = jax.tree.map(lambda leaf: draw.uniform(0.5, 2, leaf.shape).astype("f"), abstract)
    file = torch_arrays(values)
    return values, file


def test_every_array_of_a_file_has_its_place():
    values, file = network_and_file()
    settings = deeplab_settings(file, "f.pth")
    assert settings == SMALL
    jax.tree.map(np.testing.assert_array_equal, load_deeplab(file, settings, "f.pth"), values)


def test_the_auxiliary_classifier_may_be_left_out_but_not_be_missing():
    values, file = network_and_file()
    plain = {name: array for name, array in file.items() if not name.startswith("aux_")}
    assert not deeplab_settings(plain, "f.pth").auxiliary
    without = dataclasses.replace(SMALL, auxiliary=False)
    expected = {part: {k: v for k, v in tree.items() if k != "auxiliary"}
                for part, tree in values.items()}  # fmt: skip
    for given in (file, plain):
        found = load_deeplab(given, without, "f.pth")
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match=r"no entry for params.auxiliary"):
        load_deeplab(plain, SMALL, "f.pth")


def test_an_imagenet_resnet_gives_the_backbone():
    values, file = network_and_file()
    resnet = {name.removeprefix("backbone."): array for name, array in file.items()
              if name.startswith("backbone.")}  # fmt: skip
    resnet |= {"fc.weight": ONE, "fc.bias": ONE[0]}
    found = load_deeplab_backbone(resnet, SMALL, "resnet.pth")
    expected = {part: {"backbone": tree["backbone"]} for part, tree in values.items()}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    other = dataclasses.replace(SMALL, depths=(3, 4, 6, 3))
    with pytest.raises(UserError, match=r'.model.width=2 --config.model.depths="\(1, 2'):
        load_deeplab_backbone(resnet, other, "resnet.pth")
    with pytest.raises(UserError, match="has layer5.0.conv1.weight, which has no counterpart"):
        load_deeplab_backbone({**resnet, "layer5.0.conv1.weight": ONE}, SMALL, "resnet.pth")


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda f: {"layer1.0.conv1.weight": ONE}, "f.pth is no DeepLabV3"),
    (lambda f: {n: a for n, a in f.items() if n != "classifier.4.weight"},
     "it lacks classifier.4.weight"),
    (lambda f: {**f, "classifier.5.weight": ONE}, "has classifier.5.weight, which has no"),
    (lambda f: {n: a for n, a in f.items() if n != "classifier.2.running_var"},
     "has no entry for stats.head.norm.var"),
    (lambda f: {n: a for n, a in f.items() if not n.startswith("backbone.")},
     "in no known format of a ResNet"),
    (lambda f: {**f, "backbone.layer1.0.conv1.weight": np.ones((4, 2, 1, 1), "f"),
                "backbone.layer1.0.conv2.weight": np.ones((4, 4, 3, 3), "f")}, "not a wide one"),
], ids=["resnet", "no logits", "extra", "missing", "no backbone", "wide"])  # fmt: skip
def test_other_files_are_refused(change, sentence):
    file = change(network_and_file()[1])
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_deeplab(file, deeplab_settings(file, "f.pth"), "f.pth")


@pytest.mark.quick
def test_normalisation_is_that_of_torchvision():
    np.testing.assert_allclose(np.array(IMAGENET_MEAN) / 255, (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_allclose(np.array(IMAGENET_STD) / 255, (0.229, 0.224, 0.225), rtol=1e-6)
