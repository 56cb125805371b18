"""Whatever settings a host program has made, results are the same, and its settings stay."""

import contextlib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffseg_jax.devices.settings import own_settings
from diffseg_jax.experiment import corruption_study, stages, steps_study, tap_study
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.systems import ddpm_sampling

HOST = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_transfer_guard": "disallow",
}
SLOW, OTHERS = pytest.mark.slow, ("ddep", "ddpm_seg")
IMAGES = np.random.default_rng(0).integers(0, 256, (1, 33, 47, 3), np.uint8)


@contextlib.contextmanager
def hosted():
    """Within it, the process has the settings of HOST, and numpy raises errors."""
    before = {name: getattr(jax.config, name) for name in HOST}
    for name, value in HOST.items():
        jax.config.update(name, value)
    try:
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def draw():
    return jax.random.normal(jax.random.key(0), (3,)) + np.float64(1)


@pytest.mark.quick
def test_the_settings_are_those_of_the_package_within_and_of_the_host_without():
    expected = draw()
    with hosted():
        with own_settings():
            found = draw()
        assert found.dtype == jnp.float32
        assert {name: getattr(jax.config, name) for name in HOST} == HOST
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("system", ["ddp", *(pytest.param(name, marks=SLOW) for name in OTHERS)])
def test_predictions_do_not_depend_on_the_host(tiny_network, system):
    def results():
        prediction = Segmenter(Path("x"), *tiny_network(system), device="cpu").predict(IMAGES)
        return *prediction.probs, *prediction.uncertainty

    expected = results()
    with hosted():
        found = results()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


COMPUTING = {  # what computes, beside predictions -> a function that it calls
    stages.train: (stages, "make_plan"),
    stages.evaluate_only: (stages, "check_config"),
    steps_study.choose_steps: (steps_study, "plan_sweep"),
    tap_study.choose_taps: (tap_study, "require_one"),
    corruption_study.measure_corruptions: (stages, "check_config"),
    ddpm_sampling.sample_images: (ddpm_sampling, "_placement"),
}


@pytest.mark.quick
@pytest.mark.parametrize("function", COMPUTING, ids=lambda function: function.__name__)
def test_what_trains_and_measures_has_the_settings_of_the_package(function, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def stop(*arguments):
        assert jnp.asarray(np.arange(2)).dtype == jnp.int32
        raise Reached

    monkeypatch.setattr(*COMPUTING[function], stop)
    (tmp_path / "config.json").write_text("{}")
    with hosted(), pytest.raises(Reached):
        if function is ddpm_sampling.sample_images:
            function(None, None, None, seed=0, indices=range(1), size=(8, 8))
        else:
            function(ConfigDict(), tmp_path)
