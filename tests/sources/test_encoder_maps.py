"""Swin, ConvNeXt and the hybrid ViT as feature sources, from files of other libraries."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ddpm_seg
from diffseg_jax import load
from diffseg_jax.convert import main as convert
from diffseg_jax.errors import UserError
from diffseg_jax.models.network import Network
from diffseg_jax.systems.feature_sources import FROZEN, Entry, chosen_sources
from diffseg_jax.systems.source_files import load_source, source_sizes, table_note

RECORDED = Path(__file__).parents[1] / "recorded" / "libraries"
_spec = importlib.util.spec_from_file_location("record", RECORDED / "record.py")
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)
CASES = {"swin": "hugging_swin", "convnext": "timm_convnext", "vit": "timm_hybrid"}
LIMITS = {"swin": 2e-5, "convnext": 2e-5, "vit": 1e-4}  # as in tests/weights/test_libraries.py


def write_case(name, folder):
    """The file of a recorded case, its json and the recorded outputs."""
    case = json.loads((RECORDED / f"{CASES[name]}.json").read_text())
    arrays = {
        entry: record.draw(entry, shape)
        for entry, (shape, dtype) in case["entries"].items() if dtype == "float32"
    }  # fmt: skip
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path, case, np.load(RECORDED / f"{CASES[name]}.npz")


@pytest.mark.parametrize("name", CASES)
def test_maps_are_those_of_the_library(name, tmp_path):
    path, case, expected = write_case(name, tmp_path)
    options = {"heads": record.HYBRID["heads"]} if name == "vit" else {}
    sizes = source_sizes(Entry(name, str(path)), **options)
    values, kind = load_source(Entry(name, str(path)), sizes), FROZEN[name]
    settings = kind.settings(json.loads(json.dumps(sizes)))
    network = Network(lambda rngs: kind.module(settings, rngs=rngs))
    default = kind.default(settings)
    taps = {f"stage{i}": tap for i, tap in enumerate(default)} if name != "vit" else {
        "block3": "block3", "encoded": "encoded"
    }  # fmt: skip
    look = jax.jit(lambda params, image: network.bind(params, {})(image, default))
    found = look(values["params"][name], record.image(case["side"]))
    assert list(found) == sorted(default)
    for key in expected.files:
        array = np.asarray(found[taps[key]]).reshape(expected[key].shape)
        assert np.abs(array - expected[key]).max() / np.abs(expected[key]).max() < LIMITS[name]


@pytest.mark.parametrize("name", CASES)
def test_a_source_has_all_maps_that_it_names(name, tmp_path):
    path, _, _ = write_case(name, tmp_path)
    config, kind = tiny_ddpm_seg.get_config(), FROZEN[name]
    sizes = source_sizes(Entry(name, str(path)), **({"heads": 4} if name == "vit" else {}))
    with config.unlocked():
        config.features.update(sources=(f"{name}={path}",), networks={name: sizes})
    (source,) = chosen_sources(config, (40, 64))
    network = jax.eval_shape(source.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 40, 64, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    every = kind.taps(kind.settings(sizes))
    found = jax.eval_shape(lambda *x: source.named(*x, every), network, images, valid)
    assert set(found) == set(every) and {len(x.shape) for x in found.values()} == {4}
    assert found[every[-1]].shape[1:3] == ((3, 4) if name == "vit" else (2, 2))


def test_random_networks_are_those_of_their_names():
    assert source_sizes(Entry("dinov3", "random"))["rotary"]
    assert source_sizes(Entry("swav_w2", "random"))["channels"][-1] == 4096
    assert not source_sizes(Entry("mae", "random"))["decoder_width"]


def test_a_converted_file_gives_features(tmp_path, capsys):
    path, _, _ = write_case("swin", tmp_path)
    convert(["--source=swin", f"--input={path}", f"--output={tmp_path / 'swin'}"])
    assert "channels (4, 8, 16, 32), depths (2, 1, 1, 1)" in capsys.readouterr().out
    image = np.zeros((32, 40, 3), np.uint8)
    found = load(tmp_path / "swin").features(image, ("stage0.block1",))
    assert found["stage0.block1"].shape == (1, 8, 16, 4)


def test_what_does_not_fit_is_refused_with_what_to_type(tmp_path):
    path, _, _ = write_case("convnext", tmp_path)
    with pytest.raises(UserError, match="is a ConvNeXt. Try .*convnext="):
        source_sizes(Entry("swin", str(path)))
    path, _, _ = write_case("vit", tmp_path)
    with np.load(path) as file:
        arrays = {**file, "pos_embed": np.zeros((1, 1 + 14, 32), np.float32)}
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="--source=vit .*--grid="):
        source_sizes(Entry("vit", str(path)))
    assert source_sizes(Entry("vit", str(path)), grid=(3, 5))["grid"] == (3, 5)


def test_the_guide_for_tables_of_positions_is_named_where_the_programs_differ():
    sizes = dict(grid=37, registers=0, layout="transformers")
    assert "37x37" in table_note(sizes) and "transformers" in table_note(sizes)
    assert not table_note({**sizes, "registers": 4})
    assert not table_note(source_sizes(Entry("dinov3", "random")))
