"""MAE's pretraining: recorded losses and gradients, and what must hold for any weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from diffseg_jax.errors import UserError
from diffseg_jax.models.mae import to_patches
from diffseg_jax.systems import mae
from diffseg_jax.training.optimizer import decayed
from mae_case import TINY, filled, mae_case, network_for, path_of

# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NO_DECAY = (r"\.(bias|scale)$",)


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.golden
def test_recorded_losses_and_gradients(golden):
    for path in golden("baselines/mae_*.json"):
        network, params, arrays, record = mae_case(path)
        image, noise = arrays["input"].transpose(0, 2, 3, 1), arrays["shuffle_noise"]
        ratio = 1 - (arrays["ids_keep"].shape[1] + 0.5) / noise.shape[1]

        run = gradients_of(network, ratio, image, noise)
        for kind, weights in {"normpix": (1.0, 0.0), "rawpix": (0.0, 1.0)}.items():
            (loss, (hidden, output)), grads = run(params, weights)
            assert np.array_equal(hidden, arrays["train_mask"])
            np.testing.assert_allclose(
                output, arrays["train_pred"], **record["tolerance"]["features"]
            )
            np.testing.assert_allclose(
                loss, arrays[f"train_loss_{kind}"], **record["tolerance"]["loss"], err_msg=kind
            )
            check_gradients(grads, arrays, f"gradnorm_{kind}/", record["tolerance"]["grad_norm"])


def gradients_of(network, ratio, image, noise):
    """(params, weights of the two losses) -> their sum, and its gradients; one program for both."""

    def loss(params, weights):
        masking, model = {"ratio": ratio, "normalise": True}, network.bind(params, {})
        errors, hidden, output = mae.reconstruction_errors(model, masking, image, noise)
        raw = mae.patch_errors(output, to_patches(image, model.settings.patch), False)
        total = jnp.sum((weights[0] * errors + weights[1] * raw) * hidden)
        return total / jnp.sum(hidden), (hidden, output)

    return quick(jax.value_and_grad(loss, has_aux=True))


def check_gradients(grads, arrays, prefix, tolerance):
    """Norms of the gradients of all parameters."""
    norms = {path: jnp.linalg.norm(leaf) for path, leaf in flatten_dict(grads).items()}
    recorded = [name for name in arrays if name.startswith(prefix)]
    for name in recorded:
        norm = norms.pop(path_of(name.removeprefix(prefix)))
        np.testing.assert_allclose(norm, arrays[name], **tolerance, err_msg=name)
    assert recorded and not norms


@pytest.mark.golden
def test_recorded_masks_and_patches(golden):
    for path in golden("baselines/mae_*.npz"):
        arrays = np.load(path)
        image, target = arrays["input"].transpose(0, 2, 3, 1), arrays["target_patchify"]
        patch = round((image.shape[1] * image.shape[2] / target.shape[1]) ** 0.5)
        assert np.array_equal(to_patches(image, patch), target)
        kept, count = arrays["ids_keep"].shape[1], target.shape[1]
        keep, restore = mae.choose_patches(arrays["shuffle_noise"], 1 - (kept + 0.5) / count)
        assert np.array_equal(keep, arrays["ids_keep"])
        assert np.array_equal(restore, arrays["ids_restore"])


@pytest.mark.golden
def test_recorded_groups_of_weight_decay(golden):
    """Of all parameters but the position tables, which are computed and not trained."""
    for path in golden("baselines/mae_*.json"):
        network, params, _, record = mae_case(path)
        groups = flatten_dict(decayed(params, NO_DECAY))
        recorded = {path_of(name): True for name in record["weight_decay_names"]}
        recorded |= {path_of(name): False for name in record["no_weight_decay_names"]}
        assert groups == recorded


# --- for any weights ------------------------------------------------------------------------------


def make_config(ratio=0.5, normalise=True, **sizes):
    sizes = {**vars(TINY), **sizes}
    return ConfigDict({
        "dtype": "float32", "remat": False, "mae": sizes,
        "masking": {"ratio": ratio, "normalise": normalise},
    })  # fmt: skip


def batch_of(count, size=(8, 14)):
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (count, *size, 3), np.uint8),
        "valid": np.full((count, 2), size, np.int32),
        "row": np.arange(count, dtype=np.int32),
    }


PARAMS = functools.cache(lambda: filled(network_for(TINY)))


@functools.cache
def tiny_task():
    return mae.mae_task(make_config(), "mae", (8, 14), 0)


@functools.cache
def tiny_loss():
    return quick(tiny_task().loss)


def test_any_split_of_a_batch_has_the_same_loss():
    loss, whole, key = tiny_loss(), batch_of(4), jax.random.key(0)
    total, (weight, _, _) = loss(PARAMS(), {}, whole, key)
    assert weight == 4 * 4  # half of 2 x 4 patches of four pixels, the right ones padded
    halves = slice(0, 2), slice(2, 4)
    losses = [
        loss(PARAMS(), {}, {name: x[half] for name, x in whole.items()}, key)[0] for half in halves
    ]
    np.testing.assert_allclose(sum(losses), total, rtol=1e-5)
    assert not np.allclose(losses[0], losses[1])


def test_masks_differ_between_rows_and_keys():
    noise = lambda key: mae.patch_noise(jax.random.key(key), np.arange(3), (8, 16), 4)
    drawn = np.concatenate([noise(0), noise(1)])
    assert len(np.unique(np.argsort(drawn, 1), axis=0)) == 6 and drawn.shape == (6, 8)
    assert np.array_equal(noise(0), noise(0))


def test_images_show_kept_patches_unchanged_and_the_loss_of_the_others():
    batch, task, key = batch_of(2), tiny_task(), jax.random.key(1)
    values = {"params": PARAMS(), "stats": {}}
    clean, seen, filled_in, error = quick(task.denoise)(values, batch["image"], batch["valid"], key)
    np.testing.assert_allclose(clean, batch["image"] / 127.5 - 1, atol=1e-5)
    hidden = (seen != clean).any(-1)
    assert 0.3 < hidden.mean() < 0.7
    assert np.array_equal((filled_in != clean).any(-1) & ~hidden, np.zeros_like(hidden))
    assert np.abs(filled_in).max() <= 1
    loss, (weight, _, _) = tiny_loss()(PARAMS(), {}, batch, key)
    np.testing.assert_allclose(error, loss / weight, rtol=1e-4)


def test_features_cover_images_padded_to_whole_patches():
    batch, task = batch_of(1), tiny_task()
    values = {"params": PARAMS(), "stats": {}}
    found = quick(task.features)(values, batch["image"], batch["valid"])
    assert {name: maps.shape for name, maps in found.items()} == {
        "block0": (1, 2, 4, 16), "block1": (1, 2, 4, 16),
    }  # fmt: skip
    one = functools.partial(task.features, taps=["block0"])
    assert list(jax.eval_shape(one, values, batch["image"], batch["valid"])) == ["block0"]


@pytest.mark.parametrize(("changes", "message"), [
    (dict(width=18), "mae.width is 18"), (dict(decoder_heads=3), "mae.decoder_width is 8"),
    (dict(ratio=0.99), "keeps 0 of the 8 patches"), (dict(ratio=0.0), "keeps 8 of the 8 patches"),
    (dict(patch=16), "keeps 0 of the 1 patches"),
])  # fmt: skip
def test_the_advice_for_values_that_do_not_fit_works(changes, message):
    config = make_config(**changes)
    with pytest.raises(UserError, match=message) as error:
        mae.mae_task(config, "mae", (8, 14), 0)
    advice = re.findall(r"--config\.(\w+)\.(\w+)=([\d.]*\d)", str(error.value))
    for part, name, value in advice:
        config[part][name] = type(config[part][name])(value)
    mae.mae_task(config, "mae", (8, 14), 0)
