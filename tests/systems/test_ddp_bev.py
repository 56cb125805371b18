"""Maps seen from above as a task of DDP: recorded reverse steps, and its parts by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bev_case import TINY, bev_network, difference, quick, recorded_case
from conftest import filled
from diffseg_jax.systems.ddp import aligned_loss, denoise_map, diffusion_loss, reverse_process
from diffseg_jax.systems.ddp_bev import (
    BEV,
    code_of_logits,
    decided_layers,
    finish_layers,
    follow_layers,
    projected_layers,
)

PROBABILITIES = 5e-5
SAMPLING = dict(steps=3, sampler="ddim", draws=2, time_difference=1, start=0.0, schedule="cosine")


@pytest.mark.golden
def test_recorded_steps(golden):
    """The probabilities of the first draw after every step, and the mean over steps and draws."""
    for path in golden("ddp/bev_ddp_*.json"):
        told, arrays, settings, network, values, _ = recorded_case(path)
        config, draws = told["config"], arrays["noise_init"].shape[0]
        sampling = SAMPLING | dict(steps=config["T"], draws=draws)

        def sample(values, x, noise, network=network, sampling=sampling):
            model = network.bind_eval(values["params"], values["stats"])
            return denoise_map(BEV, model, x, noise, sampling, None)

        x, noise = np.moveaxis(arrays["feature"], 1, -1), np.moveaxis(arrays["noise_init"], 1, -1)
        noise = noise[None]  # of one rig
        found = quick(sample)(values, x, noise)
        for step in range(config["T"]):
            expected = np.moveaxis(arrays[f"step{step}_prob"], 1, -1)[:1]
            assert difference(found["shown"][:, step], expected) < PROBABILITIES, (path.name, step)
        mean = np.moveaxis(np.asarray(found["probs"])[0], -1, 0)
        assert difference(mean, arrays["out"]) < PROBABILITIES, path.name


# ---- parts by themselves -------------------------------------------------------------------------


def batch_of(settings, number=2):
    """The shapes of a batch of image sets."""
    n, shape = settings.side, jax.ShapeDtypeStruct
    return {
        "images": shape((number, 3, 32, 48, 3), jnp.uint8),
        "cameras": shape((number, 3, 2, 3, 4), jnp.float32),
        "bev": shape((number, settings.num_classes, n, n), jnp.uint8),
        "valid": shape((number, 2), jnp.int32), "row": shape((number,), jnp.int32),
        "step": shape((number,), jnp.int32),
    }  # fmt: skip


@pytest.mark.parametrize("loss", [diffusion_loss, aligned_loss])
def test_both_stages_have_a_loss(loss):
    network = bev_network()
    options = dict(schedule="cosine", high=0.999)
    run = lambda params, stats, batch: loss(
        BEV, network, options, params, stats, batch, jax.random.key(0)
    )
    found, (weight, stats, metrics) = jax.eval_shape(
        run, *network.abstract.values(), batch_of(TINY)
    )
    assert found.shape == weight.shape == () and set(metrics) == {"cell_accuracy"}
    assert jax.tree.structure(stats) == jax.tree.structure(network.abstract["stats"])


def test_a_prediction_has_the_cells_of_the_output():
    network, batch = bev_network(), batch_of(TINY)
    rig = {name: batch[name] for name in ("images", "cameras")}
    run = lambda values, rig, valid: reverse_process(BEV, network, SAMPLING, values, rig, valid, 0)
    found = jax.eval_shape(run, network.abstract, rig, batch["valid"])
    n, classes = TINY.side, TINY.num_classes
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "probs": (2, n, n, classes), "shown": (2, 3, n, n, classes), "changes": (2, n, n),
        "spread": (2, n, n),
    }  # fmt: skip


def test_the_table_of_combinations_holds_the_codes_of_layers():
    """What the sampler looks up is what training encodes and projects."""
    network = bev_network()
    values = filled(network.abstract)
    shape = (2, 1, TINY.side, TINY.side, TINY.num_classes)
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def both(values, logits):
        model = network.bind_eval(values["params"], values["stats"])
        _, looked_up = projected_layers(model)(logits)
        return looked_up[:, 0], model.project_codes(code_of_logits(model, logits[:, 0]))

    looked_up, encoded = quick(both)(values, logits)
    np.testing.assert_allclose(looked_up, encoded, atol=1e-6)


def test_the_map_is_the_mean_over_steps_and_draws():
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((3, 1, 2, 4, 4, 5)).astype(np.float32)  # steps, B, draws, ...
    followed = jnp.zeros(outputs.shape[1:]), jnp.zeros(outputs.shape[1:], jnp.uint8), 0.0
    shown = []
    for number, output in enumerate(outputs):
        followed, first = follow_layers(followed, output, decided_layers(output), number, SAMPLING)
        shown.append(first)
    found = finish_layers(None, followed, jnp.stack(shown), SAMPLING)
    probs = 1 / (1 + np.exp(-outputs))
    np.testing.assert_allclose(found["probs"], probs.mean((0, 2)), atol=1e-6)
    np.testing.assert_allclose(found["shown"][0], probs[:, 0, 0], atol=1e-6)
    turned = (probs[1:] > 0.5) != (probs[:-1] > 0.5)
    np.testing.assert_allclose(found["changes"], turned.mean((0, 2, -1)), atol=1e-6)
