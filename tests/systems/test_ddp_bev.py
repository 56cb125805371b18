"""Maps seen from above as a task of DDP: recorded reverse steps, and its parts by themselves."""


import numpy as np
import pytest

from bev_case import difference, quick, recorded_case
from diffseg_jax.systems.ddp import denoise_map
from diffseg_jax.systems.ddp_bev import BEV

PROBABILITIES, NOISY = 5e-5, 1e-5
SAMPLING = dict(steps=3, sampler="ddim", draws=2, time_difference=1, start=0.0, schedule="cosine")


@pytest.mark.golden
def test_recorded_steps(golden):
    """The probabilities after every step, and their mean, from the recorded features."""
    for path in golden("ddp/bev_ddp_*.json"):
        told, arrays, settings, network, values, _ = recorded_case(path)
        config, draws = told["config"], arrays["noise_init"].shape[0]
        sampling = SAMPLING | dict(steps=config["T"], draws=1)

        def sample(values, x, noise, network=network, sampling=sampling):
            model = network.bind_eval(values["params"], values["stats"])
            return denoise_map(BEV, model, x, noise, sampling, None)

        x = np.repeat(np.moveaxis(arrays["feature"], 1, -1), draws, 0)
        noise = np.moveaxis(arrays["noise_init"], 1, -1)[:, None]
        found = quick(sample)(values, x, noise)
        for step in range(config["T"]):
            expected = np.moveaxis(arrays[f"step{step}_prob"], 1, -1)
            assert difference(found["shown"][:, step], expected) < PROBABILITIES, (path.name, step)
        mean = np.moveaxis(np.asarray(found["probs"]).mean(0), -1, 0)
        assert difference(mean, arrays["out"]) < PROBABILITIES, path.name
