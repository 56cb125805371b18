"""The feature sources that a config names, and several as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ddpm_seg
from diffseg_jax.errors import UserError
from diffseg_jax.sources.feature_source import joined
from diffseg_jax.systems.feature_sources import Entry, chosen_sources, source_entries
from diffseg_jax.systems.few_labels_config import check_sources


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


def test_taps_of_a_source_that_is_not_read_have_no_effect():
    config = tiny_ddpm_seg.get_config()
    with config.unlocked():
        config.features.taps = ("efficientnet_lite0/block2",)
    assert [source.name for source in chosen_sources(config, (32, 48))] == ["adm"]
