"""Features of networks that stay as they are, in a fit, a directory and files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ddpm_seg
from diffseg_jax import features, load
from diffseg_jax.errors import UserError
from diffseg_jax.figures.layout import save_png
from diffseg_jax.inference.converted import save_converted
from diffseg_jax.models.efficientnet_lite import EfficientNetLite, EfficientNetSettings
from diffseg_jax.models.network import Network
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.ddpm_seg_config import make_task
from diffseg_jax.systems.feature_sources import Entry, chosen_sources
from diffseg_jax.systems.source_files import load_source, source_sizes

SMALL = EfficientNetSettings(stem=4, channels=(4, 4, 6, 6, 8, 8, 10), head=12)
NAME = "efficientnet_lite0"


def config_of(**options):
    config = tiny_ddpm_seg.get_config()
    with config.unlocked():
        config.features.update(
            sources=(NAME,), networks={NAME: dataclasses.asdict(SMALL)}, short=0, dtype="float32"
        )
        config.features.update(options)
    return config


def images_of(count=1, size=(40, 64)):
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.integers(0, 256, (count, *size, 3)), jnp.uint8)


def test_maps_are_those_of_the_network_for_the_padded_image():
    (source,) = chosen_sources(config_of(taps=("block0", "block4")), (40, 64))
    network = jax.jit(source.init)(jax.random.key(0))
    images, valid = images_of(), jnp.asarray([[40, 64]])
    found = jax.jit(source.extract)(network, images, valid)
    assert [m.shape for m in found.maps] == [(1, 32, 32, 4), (1, 8, 8, 6)]
    assert found.covered == ((40 / 64, 1.0),) * 2
    model = Network(lambda rngs: EfficientNetLite(SMALL, rngs=rngs)).bind(
        network["params"][NAME], {}
    )
    padded = jnp.pad((images - 127.0) / 128, ((0, 0), (0, 24), (0, 0), (0, 0)))
    expected = model(padded, ("block4",))["block4"]
    np.testing.assert_allclose(found.maps[1], expected, atol=1e-4)


def test_taps_may_be_named_after_their_source():
    (source,) = chosen_sources(config_of(taps=(f"{NAME}/block2",)), (32, 32))
    network = jax.eval_shape(source.init, jax.random.key(0))
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    assert list(jax.eval_shape(source.named, network, images_of(), valid)) == ["block2"]
    with pytest.raises(UserError, match="block2"):
        chosen_sources(config_of(taps=("blok2",)), (32, 32))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A directory of a small random network, as `convert` writes one."""
    folder = tmp_path_factory.mktemp("frozen") / "lite"
    config = config_of()
    with config.unlocked():
        del config.model, config.diffusion, config.samples
    task = make_task(config, "features", (32, 32), 0)
    network = jax.jit(task.init)(jax.random.key(1))
    save_converted(folder, network, "lite.pth", config.to_dict(), as_json(task.meta))
    return folder


def test_a_directory_gives_its_sizes_and_arrays(converted):
    entry = Entry(NAME, str(converted))
    sizes = source_sizes(entry)
    assert EfficientNetSettings(**{**sizes, "channels": tuple(sizes["channels"])}) == SMALL
    arrays = load_source(entry, sizes)
    expected = load(converted).network["params"][NAME]
    jax.tree.map(np.testing.assert_array_equal, arrays["params"][NAME], expected)


def test_files_of_features_hold_what_the_network_computes(converted, tmp_path, capsys):
    image = np.asarray(images_of(size=(30, 40))[0])
    save_png(tmp_path / "photos/a.png", image)
    flags = [f"--checkpoint={converted}", f"--images={tmp_path}/photos", "--taps=block2,block4"]
    features.main([*flags, f"--output={tmp_path}/out"])
    segmenter = load(converted)
    exact = segmenter.features(image, ("block2", "block4"))
    with np.load(tmp_path / "out/a.npz") as found:
        for key, maps in zip(("map_00", "map_01"), exact.values(), strict=True):
            np.testing.assert_allclose(found[key], maps[0], atol=1e-5)
        np.testing.assert_array_equal(found["covered"], [[30 / 32, 40 / 64]] * 2)
    described = json.loads((tmp_path / "out/features.json").read_text())
    assert described["taps"] == ["block2", "block4"]
    with pytest.raises(SystemExit):
        features.main([*flags[:2], "--taps=none", f"--output={tmp_path}/other"])
    assert 'unknown feature of efficientnet_lite0 "none"' in capsys.readouterr().err


@pytest.mark.parametrize(("entry", "part"), [
    (Entry("files"), "files=DIR"),
    (Entry("ddp"), "ddp=runs"),
    (Entry(NAME, "missing.pth"), "missing.pth"),
])  # fmt: skip
def test_a_source_without_its_file_says_what_to_type(entry, part):
    with pytest.raises(UserError, match=part):
        source_sizes(entry)


def test_a_directory_of_another_network_is_refused(converted):
    with pytest.raises(UserError, match="holds no dinov2 network"):
        source_sizes(Entry("dinov2", str(converted)))


def test_several_scales_are_read_and_named_side_by_side():
    config = config_of(taps=("block4@2", "block2"), scales=(1.0, 2.0))
    (source,) = chosen_sources(config, (32, 64))
    network = jax.eval_shape(source.init, jax.random.key(0))
    images, valid = images_of(size=(32, 64)), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    found = jax.eval_shape(source.extract, network, images, valid)
    assert [m.shape[1:] for m in found.maps] == [(8, 16, 4), (8, 16, 6), (16, 32, 4)]
    names = list(jax.eval_shape(source.named, network, images, valid))
    assert names == ["block2@1", "block2@2", "block4@2"]
    named = functools.partial(source.named, taps=("block4@1",))
    one = jax.eval_shape(named, network, images, valid)
    assert one["block4@1"].shape == (1, 4, 8, 6)
    with pytest.raises(UserError, match="scale of features"):
        chosen_sources(config_of(taps=("block4@3",), scales=(1.0, 2.0)), (32, 64))
