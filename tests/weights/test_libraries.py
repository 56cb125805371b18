"""Weights of timm, torchvision and transformers compute here what they compute there."""

import functools
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffseg_jax.errors import UserError
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.models.convnext import ConvNeXt
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.deeplab import DeepLab
from diffseg_jax.models.network import Network
from diffseg_jax.models.swin import Swin
from diffseg_jax.models.transunet import Encoder
from diffseg_jax.systems import ddep_config, ddp_config, ddpm_seg_config
from diffseg_jax.weights.backbones import load_backbone
from diffseg_jax.weights.deeplab import deeplab_settings, load_deeplab
from diffseg_jax.weights.transunet import load_official

# In float32, of the largest recorded value. To the deviation of a kernel, by which it is divided,
# the code that trained the hybrid adds 1e-5; timm and transformers leave that out.
LIMITS = {"swin": 2e-5, "convnext": 2e-5, "hybrid": 1e-4, "deeplab": 2e-5}
RECORDED = Path(__file__).parents[1] / "recorded" / "libraries"  # not made by papers' programs
_spec = importlib.util.spec_from_file_location("record", RECORDED / "record.py")
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)
CASES = sorted(path.stem for path in RECORDED.glob("*.json") if "deeplab" not in path.stem)
SMALL = dict(width=32, layers=1, decoder_heads=4, mlp=32, num_classes=3)
SWIN = DDPSettings(backbone="swin", **record.SWIN, **SMALL)
CONVNEXT = DDPSettings(backbone="convnext", heads=(), window=0, **record.CONVNEXT, **SMALL)


@functools.cache
def networks():
    """Our networks of the recorded sizes, by the last word of a case."""
    swin, convnext, h = record.SWIN, record.CONVNEXT, record.HYBRID
    return {
        "swin": Network(lambda rngs: Swin(**swin, rngs=rngs)),
        "convnext": Network(lambda rngs: ConvNeXt(**convnext, down_epsilon=1e-6, rngs=rngs)),
        "hybrid": Network(lambda rngs: Encoder(
            resnet_width=h["width"] / 64, resnet_units=h["units"], hidden=h["hidden"],
            layers=h["layers"], heads=h["heads"], mlp=h["mlp"], grid=h["grid"], dropout_rate=0.1,
            arithmetic=Arithmetic.OFFICIAL, dtype=np.float32, remat=False, rngs=rngs,
        )),
    }  # fmt: skip


@functools.cache
def forward(family):
    """(params, image) -> the recorded features, compiled once for the libraries of a family."""
    network, depths = networks()[family], getattr(record, family.upper()).get("depths", ())
    names = {f"stage{i}": f"stage{i}.block{depth - 1}" for i, depth in enumerate(depths)}
    names = names or {"block3": "block3", "encoded": "encoded"}

    def features(params, image):
        _, found = network.bind(params, {})(image)
        return {name: found[ours] for name, ours in names.items()}

    return jax.jit(features)


def file_of(case):
    """The entries of a file, as `record.record` drew them; the index tables of Swin are Swin's."""
    entries = json.loads((RECORDED / f"{case}.json").read_text())["entries"]
    return {
        name: record.draw(name, shape)
        for name, (shape, dtype) in entries.items() if dtype == "float32"
    }  # fmt: skip


@pytest.fixture
def loaded(tmp_path):
    """case, changed names -> parameters"""

    def load(case, rename=lambda name: name):
        path, family = tmp_path / "weights.npz", case.split("_")[-1]
        np.savez(path, **{rename(name): array for name, array in file_of(case).items()})
        shapes = jax.tree.map(lambda leaf: leaf.shape, networks()[family].abstract["params"])
        if family == "hybrid":
            return load_official(path, shapes)
        return load_backbone(path, shapes, {"swin": SWIN, "convnext": CONVNEXT}[family])

    return load


@pytest.mark.parametrize("case", CASES)
def test_recorded_outputs_of_other_libraries(case, loaded):
    params, family = loaded(case), case.split("_")[-1]
    norms = {f"norm{i}": {"scale": np.ones(c), "bias": np.zeros(c)} for i, c in enumerate(
        getattr(record, family.upper()).get("channels", ()))}  # fmt: skip
    expected = np.load(RECORDED / f"{case}.npz")
    side = json.loads((RECORDED / f"{case}.json").read_text())["side"]
    found = forward(family)({**norms, **params}, record.image(side))
    assert expected.files
    for name in expected.files:
        array = np.asarray(found[name]).reshape(expected[name].shape)
        error = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert error < LIMITS[family], (name, error)


@pytest.mark.parametrize(("case", "name"), [
    ("timm_convnext", "head.norm"), ("torchvision_convnext", "classifier.0"),
    ("hugging_convnext", "convnext.layernorm"),
])  # fmt: skip
def test_the_norm_before_the_classifier_is_that_of_the_last_map(case, name, loaded):
    found, arrays = loaded(case), file_of(case)
    np.testing.assert_array_equal(found["norm3"]["scale"], arrays[f"{name}.weight"])
    np.testing.assert_array_equal(found["norm3"]["bias"], arrays[f"{name}.bias"])
    assert "norm2" not in found


def test_recorded_outputs_of_a_deeplab():
    arrays, expected = file_of("torchvision_deeplab"), np.load(RECORDED / "torchvision_deeplab.npz")
    settings = deeplab_settings(arrays, "recorded")
    c = record.DEEPLAB
    assert (settings.num_classes, settings.width, settings.depths) == (
        c["classes"], c["width"], c["depths"])  # fmt: skip
    values = load_deeplab(arrays, settings, "recorded")
    network = Network(lambda rngs: DeepLab(settings, rngs=rngs))
    enlarged, found = jax.jit(lambda values, image: network.bind_eval(**values)(image))(
        values, record.image(expected["enlarged"].shape[1])
    )
    for name in ("layer4", "logits", "enlarged"):
        array = enlarged if name == "enlarged" else found[name]
        error = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert error < LIMITS["deeplab"], (name, error)


def in_memory(name):
    """What transformers 5 calls an entry of Swin in memory, where `save_pretrained` renames it."""
    for saved, held in (
        ("attention.output.dense", "attention.o_proj"), ("self.query", "q_proj"),
        ("self.key", "k_proj"), ("self.value", "v_proj"), ("intermediate.dense", "mlp.fc1"),
        ("self.relative", "relative_position_bias.relative"), ("output.dense", "mlp.fc2"),
    ):  # fmt: skip
        name = name.replace(saved, held)
    return name


@pytest.mark.parametrize(("case", "rename"), [
    ("timm_swin", lambda name: name.replace("layers.", "layers_", 1)),
    ("timm_convnext", lambda name: name.replace("stages.", "stages_").replace("stem.", "stem_")),
    ("torchvision_swin", lambda name: f"backbone.{name}"),
    ("hugging_swin", lambda name: name.removeprefix("swin.")),
    ("hugging_swin", in_memory),
    ("hugging_hybrid", lambda name: name.removeprefix("vit.")),
    ("timm_hybrid", lambda name: f"model.{name}"),
])  # fmt: skip
def test_other_prefixes_of_the_same_file_give_the_same_parameters(case, rename, loaded):
    one, other = loaded(case), loaded(case, rename)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("module", [ddp_config, ddep_config, ddpm_seg_config])
def test_a_config_may_name_the_part_of_a_file(module, monkeypatch):
    """`weights_part`, which older configs lack, reaches the reader."""
    asked = []

    def read(path, part=""):
        asked.append(part)
        raise UserError("enough")

    monkeypatch.setattr(module, "read_arrays", read)
    task = SimpleNamespace(meta={"kind": "train", "model": vars(SWIN)})
    for config in ({"weights": "a"}, {"weights": "a", "weights_part": "model_ema"}):
        with pytest.raises(UserError, match="enough"):
            module.load_weights(ConfigDict(config), {"params": {}, "stats": {}}, task)
    assert asked == ["", "model_ema"]
