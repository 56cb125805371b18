"""ResNets: every layout gives the same network, and what does not fit is named."""

import functools
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.errors import UserError
from diffseg_jax.models.network import Network
from diffseg_jax.models.resnet import ResNet, ResNetSettings
from diffseg_jax.weights.formats import without_wrappers
from diffseg_jax.weights.resnet import load_resnet, resnet_settings

pytestmark = pytest.mark.quick

SMALL = ResNetSettings(stem=2, inner=(1, 2, 3, 4), channels=(5, 6, 7, 8), depths=(2, 1, 1, 3))


@functools.cache
def body():
    """The entries that torchvision saves of a network of that size, of random numbers."""
    draw, arrays = np.random.default_rng(0), {}
    net = Network(lambda rngs: ResNet(SMALL, rngs=rngs))
    for path, leaf in flatten_dict(net.abstract["params"], sep=".").items():
        if path.endswith("kernel"):
            name = path.removesuffix(".kernel").replace(".block", ".")
            name = name.replace("shortcut", "downsample.0").replace("stem", "conv1")
            arrays[f"{name}.weight"] = draw.standard_normal(leaf.shape).transpose(3, 2, 0, 1)
            norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
            for entry in ("weight", "bias", "running_mean", "running_var"):
                arrays[f"{norm}.{entry}"] = draw.uniform(0.5, 2, leaf.shape[-1])
            arrays[f"{norm}.num_batches_tracked"] = np.array(7)
    return arrays


def hugging(name):
    """Hugging Face's name of an entry, by plain replacement."""
    for number in (1, 2, 3, 4):
        name = name.replace(f"layer{number}.", f"encoder.stages.{number - 1}.layers.")
        name = name.replace(f".conv{number}.", f".layer.{number - 1}.convolution.")
        name = name.replace(f".bn{number}.", f".layer.{number - 1}.normalization.")
    name = re.sub(r"^conv1", "embedder.embedder.convolution", name)
    name = re.sub(r"^bn1", "embedder.embedder.normalization", name)
    name = name.replace("downsample.0", "shortcut.convolution")
    return name.replace("downsample.1", "shortcut.normalization")


def prefixed(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


ONE = np.ones((2, 2))
OTHER = {"conv1.weight": ONE, "layer1.0.conv1.weight": ONE}  # of the network that is not read
LAYOUTS = {
    "torchvision": lambda: {**body(), "fc.weight": ONE, "fc.bias": ONE},
    "Hugging Face": lambda: {
        **prefixed("resnet.", {hugging(name): array for name, array in body().items()}),
        "classifier.1.weight": ONE,
    },
    "Hugging Face without classes": lambda: {hugging(n): array for n, array in body().items()},
    "SwAV": lambda: prefixed("module.", {
        **body(), "projection_head.0.weight": ONE, "projection_head.1.num_batches_tracked": ONE,
        "prototypes.weight": ONE, "prototypes.prototypes0.weight": ONE,
    }),
    "MoCo": lambda: prefixed("module.", {
        **prefixed("encoder_q.", {**body(), "fc.0.weight": ONE}), **prefixed("encoder_k.", OTHER),
        "queue": ONE, "queue_ptr": ONE,
    }),
    "MoCo v3": lambda: prefixed("module.", {
        **prefixed("base_encoder.", {**body(), "fc.0.weight": ONE}),
        **prefixed("momentum_encoder.", OTHER), "predictor.0.weight": ONE,
    }),
    "DINO": lambda: {**prefixed("backbone.", body()), "head.mlp.0.weight": ONE},
}  # fmt: skip


def load(arrays):
    arrays = without_wrappers(arrays)  # as `read_arrays` returns them
    settings = resnet_settings(arrays, "f.pth")
    return settings, load_resnet(arrays, settings, "f.pth")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout):
    settings, loaded = load(LAYOUTS[layout]())
    assert settings == SMALL
    expected = load(body())[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    layer = loaded["params"]["layer2"]["block0"]["shortcut"]
    scale, var = (body()[f"layer2.0.downsample.1.{name}"] for name in ("weight", "running_var"))
    factor = scale / np.sqrt(var + 1e-5)
    kernel = body()["layer2.0.downsample.0.weight"][:, :, 0, 0].T
    np.testing.assert_allclose(layer["kernel"][0, 0], kernel * factor, rtol=1e-6)


def changed(remove="", **entries):
    kept = {name: array for name, array in body().items() if name != remove}
    return {**kept, **entries}


@pytest.mark.parametrize(("arrays", "sentence"), [
    (lambda: prefixed("net.body.", body()), "in no known format of a ResNet: it is a ResNet;"),
    (lambda: {"blocks.0.attn.qkv.weight": ONE}, "it is a plain vision transformer"),
    (lambda: changed("layer4.2.conv2.weight"), "has layer4.2.bn2.weight, which has no counterpart"),
    (lambda: changed("layer4.2.bn2.running_mean"), "has no entry for layer4.2.bn2.running_mean"),
    (lambda: changed("layer2.0.conv3.weight"), "has no convolution layer2.0.conv3.weight"),
    (lambda: changed(**{"layer1.0.se.fc1.weight": ONE}), "layer1.0.se.fc1.weight, which has no"),
    (lambda: changed(**{"conv1.0.weight": ONE}), "with three convolutions in its stem"),
    (lambda: changed(**{"layer1.0.conv2.weight": np.ones((2, 1, 3, 3))}), "such as ResNeXt"),
    (lambda: {n: a for n, a in body().items() if "conv3" not in n and "bn3" not in n},
     "of basic blocks, such as ResNet-18"),
    (lambda: {**prefixed("backbone.", body()), "classifier.0.convs.0.0.weight": ONE},
     "has classifier.0.convs.0.0.weight, which has no counterpart"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_other_files_are_refused_with_what_they_are(arrays, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        load(arrays())
