"""The feature sources that a config names, and several as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import tiny_ddpm_seg
from diffseg_jax.errors import UserError
from diffseg_jax.models.dino import DinoSettings
from diffseg_jax.sources.feature_source import joined
from diffseg_jax.systems import source_files
from diffseg_jax.systems.feature_sources import (
    DINOV3,
    Entry,
    _own_taps,
    chosen_sources,
    source_entries,
)
from diffseg_jax.systems.few_labels_config import check_once, check_sources
from diffseg_jax.systems.source_files import source_sizes


@pytest.mark.parametrize(("features", "entries"), [
    ({"sources": ("adm", "dinov2=runs/a=b.pth")}, [Entry("adm"), Entry("dinov2", "runs/a=b.pth")]),
    ({"source": "network"}, [Entry("adm")]),
    ({"source": "colour"}, [Entry("colour")]),
    ({"source": "network", "sources": ("colour",)}, [Entry("colour")]),
])  # fmt: skip
def test_entries_are_read_with_their_files_and_old_names(features, entries):
    assert source_entries(features) == entries


@pytest.mark.parametrize(("changes", "part"), [
    ({"sources": ("amd",)}, "adm"),
    ({"sources": ("colour", "colour")}, "twice"),
    ({"sources": ("colour=a.pth",)}, "Leave the file out"),
])  # fmt: skip
def test_sources_that_cannot_be_are_refused(changes, part):
    features = tiny_ddpm_seg.get_config().features
    with features.unlocked():
        features.update(changes)
    with pytest.raises(UserError, match=part):
        check_sources(features)


def test_features_of_several_sources_stand_side_by_side():
    config = tiny_ddpm_seg.get_config()
    config.features.sources = ("colour", "adm")
    colour, adm = chosen_sources(config, (32, 48))
    both = joined([colour, adm])
    network = jax.jit(both.init)(jax.random.key(0))
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.integers(0, 256, (2, 32, 48, 3)), jnp.uint8)
    valid = jnp.asarray([[32, 48]] * 2)

    @jax.jit
    def read(network, images, valid):
        parts = [source.extract(network, images, valid) for source in (colour, adm)]
        together = both.extract(network, images, valid).dense()
        return [part.dense() for part in parts], together, both.named(network, images, valid)

    parts, together, named = read(network, images, valid)
    np.testing.assert_allclose(together, jnp.concatenate(parts, -1), atol=1e-3)
    assert sorted(named) == [f"adm/output_{block}@{step}" for block in (0, 2) for step in (1, 5)]
    assert both.short == adm.short == 16


@pytest.mark.parametrize(("sources", "taps", "part"), [
    (("adm",), ("nonsense",), "has no taps to choose"),
    (("colour",), ("x",), "has no taps to choose"),
    (("adm", "ddp=runs/a"), ("stage0.block1",), "does not say whose it is"),
    (("adm", "ddp=runs/a"), ("adm/output_5@50",), "has no taps to choose"),
])  # fmt: skip
def test_a_tap_that_no_source_reads_is_refused(sources, taps, part):
    config = tiny_ddpm_seg.get_config()
    with config.unlocked():
        config.features.update(sources=sources, taps=taps)
    with pytest.raises(UserError, match=rf"features.taps holds .*{part}.*--config.features.taps="):
        chosen_sources(config, (32, 48))
    config.features.taps = ()
    with pytest.raises(UserError, match=f"^--taps holds .*{part}.* --taps[ =]") as refused:
        chosen_sources(config, (32, 48), taps, "--taps")
    assert "--config" not in str(refused.value)


def test_a_lone_source_takes_taps_with_and_without_its_name():
    taps = ("dinov2/block5", "block11", "swin/stage0.block1", "block2")
    assert _own_taps(taps, "dinov2", 1) == ("block5", "block11", "block2")
    assert _own_taps(taps, "dinov2", 2) == ("block5",)


@pytest.mark.parametrize(("changes", "part"), [
    ({"scales": (1.0, 2.0, 2)}, "features.scales holds 2 twice"),
    ({"taps": ("block5", "block5")}, "features.taps holds block5 twice"),
    ({"taps": ("dinov2/block5", "block5")}, "features.taps holds block5 twice"),
    ({"taps": ("block5", "block5@2")}, "holds block5@2 and block5, which is"),
    ({"taps": ("block5@1", "block5@2"), "scales": (1.0, 2.0)}, ""),
])  # fmt: skip
def test_scales_and_taps_are_given_once(changes, part):
    if not part:
        return check_once(changes, ["dinov2"])
    with pytest.raises(UserError, match=part):
        check_once(changes, ["dinov2"])


def dino_named(tmp_path, monkeypatch, source, file, rotary=True):
    """Reads the sizes of a DINO of such a file name, whatever it holds."""
    settings = DINOV3 if rotary else DinoSettings()
    monkeypatch.setattr(source_files, "dino_settings", lambda *_: settings)
    monkeypatch.setattr(source_files, "read_arrays", lambda *_: {})
    return source_sizes(Entry(source, str(tmp_path / file)))


@pytest.mark.parametrize(("source", "file", "right"), [
    ("dinov3", "sat493m/dinov3.pth", ""), ("dinov3_satellite", "model.safetensors", ""),
    ("dinov3", "dinov3-vitl16-sat493m/model.safetensors", "dinov3_satellite"),
    ("dinov3_satellite", "dinov3_SAT493m.pth", ""), ("dinov3", "dinov3_lvd1689m.pth", ""),
    ("dinov3", "dinov3_vitl16_sat493m.pth", "dinov3_satellite"),
    ("dinov3_satellite", "dinov3_vitl16_lvd1689m.pth", "dinov3"), ("dinov2", "a.pth", "dinov3"),
])  # fmt: skip
def test_weights_of_satellite_images_go_by_the_name_of_the_source(
    tmp_path, monkeypatch, source, file, right
):
    if not right:
        assert dino_named(tmp_path, monkeypatch, source, file)["rotary"]
        return
    with pytest.raises(UserError, match=f'Try .*sources="{right}=') as refused:
        dino_named(tmp_path, monkeypatch, source, file)
    dino_named(tmp_path, monkeypatch, right, file)
    assert "satellite" not in right or "by its name of satellite images" in str(refused.value)


def test_a_network_of_dinov2_is_no_dinov3(tmp_path, monkeypatch):
    for source in ("dinov3", "dinov3_satellite"):
        with pytest.raises(UserError, match='Try .*sources="dinov2='):
            dino_named(tmp_path, monkeypatch, source, "sat493m.pth", rotary=False)


def test_a_folder_of_weights_is_none_of_a_checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UserError, match="a folder without weights"):
        source_sizes(Entry("swav", str(folder)))
    save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="no known format of a ResNet"):
        source_sizes(Entry("swav", str(folder)))
    (folder / "checkpoints/fit/3").mkdir(parents=True)
    with pytest.raises(UserError, match="Did you mean .*model/checkpoints/fit"):
        source_sizes(Entry("swav", str(folder)))


@pytest.mark.parametrize(("system", "advice"), [
    ("ddep", 'Try --config.features.sources="ddep=runs/a"'),
    ("ddpm_seg", "Give a run of ddp or ddep; .*dinov2=runs/a"),
    ("deeplab", "Give a run of ddp or ddep"),
])  # fmt: skip
def test_a_directory_of_another_system_is_refused_with_what_can_be_read(
    monkeypatch, system, advice
):
    meta = {"config": {"system": system}, "stage": "fit", "task": {}}
    monkeypatch.setattr(source_files, "open_meta", lambda directory: meta)
    with pytest.raises(UserError, match=f"is of system {system}, not ddp. {advice}"):
        source_sizes(Entry("ddp", "runs/a"))


def test_taps_of_a_source_that_is_not_read_have_no_effect():
    config = tiny_ddpm_seg.get_config()
    with config.unlocked():
        config.features.taps = ("efficientnet_lite0/block2",)
    assert [source.name for source in chosen_sources(config, (32, 48))] == ["adm"]
