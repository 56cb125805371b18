"""DeepLabV3: dilation, losses, where a stage starts, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import tiny_deeplab
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.models.deeplab import DeepLab, DeepLabSettings
from diffseg_jax.models.network import Network
from diffseg_jax.systems import deeplab_config
from diffseg_jax.systems.deeplab import segmentation_loss
from diffseg_jax.systems.methods import SYSTEMS

SMALL = DeepLabSettings(
    num_classes=3, width=2, depths=(1, 1, 2, 2), rates=(1, 2), channels=4, auxiliary=True
)


def network_of(settings, **options):
    return Network(lambda rngs: DeepLab(settings, rngs=rngs, **options))


SHALLOW = dataclasses.replace(SMALL, depths=(1, 1, 1, 1))


@functools.cache
def random_values(settings=SMALL):
    """Random parameters and statistics, none as at the start."""
    draw = np.random.default_rng(0)
    abstract = network_of(settings).abstract
    return {
        "params": jax.tree.map(
            lambda leaf: draw.normal(0.2, 0.4, leaf.shape).astype("f"), abstract["params"]
        ),
        "stats": jax.tree.map(
            lambda leaf: draw.uniform(0.5, 2, leaf.shape).astype("f"), abstract["stats"]
        ),
    }


def test_dilation_computes_the_values_between_those_of_strides():
    """Every fourth value of the last map of output stride 8 is one of output stride 32."""
    values, maps, size = random_values(), {}, (61, 70)
    images = jax.random.normal(jax.random.key(1), (1, *size, 3))
    for stride in (8, 16, 32):
        network = network_of(dataclasses.replace(SMALL, output_stride=stride))

        @jax.jit
        def last(values, images, network=network):
            return network.bind_eval(values["params"], values["stats"])(images)[1]["layer4"]

        maps[stride] = np.asarray(last(values, images))
        assert maps[stride].shape[1:3] == tuple(-(-side // stride) for side in size)
    scale = np.abs(maps[32]).max()
    np.testing.assert_allclose(maps[8][:, ::4, ::4], maps[32], atol=1e-5 * scale)
    np.testing.assert_allclose(maps[16][:, ::2, ::2], maps[32], atol=1e-5 * scale)


@pytest.fixture(scope="module")
def steps():
    """Loss, new statistics, metrics and gradients for weights of the auxiliary loss."""
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (2, 16, 24, 3), np.uint8),
        "mask": draw.integers(0, 3, (2, 16, 24)).astype(np.int32),
        "valid": np.array([[16, 24], [16, 20]], np.int32),
        "row": np.arange(2, dtype=np.int32),
    }
    values = random_values(SHALLOW)

    def loss(params, auxiliary, remat):
        network = network_of(SHALLOW, remat=remat)
        key = jax.random.key(3)
        return segmentation_loss(network, auxiliary, params, values["stats"], batch, key)

    graded = jax.value_and_grad(loss, has_aux=True)
    run = {
        (weight, remat): jax.jit(functools.partial(each, auxiliary=weight, remat=remat))
        for each, weight, remat in ((loss, 0.0, False), (graded, 0.5, False), (graded, 0.5, True))
    }
    return {kind: each(values["params"]) for kind, each in run.items()}


def test_the_auxiliary_loss_is_added_with_its_weight(steps):
    alone, (_, _, without) = steps[0.0, False]
    (both, (weight, _, metrics)), grads = steps[0.5, False]
    assert weight == 2 * 16 * 24 and "auxiliary_loss" not in without
    np.testing.assert_allclose(both - alone, 0.5 * metrics["auxiliary_loss"], rtol=1e-4)
    assert float(jnp.abs(grads["auxiliary"]["logits"]["kernel"]).max()) > 0


def test_recomputed_blocks_give_the_same_gradients_and_statistics(steps):
    plain, again = steps[0.5, False], steps[0.5, True]
    for (path, left), right in zip(
        flatten_dict({"grads": plain[1], "stats": plain[0][1][1]}).items(),
        flatten_dict({"grads": again[1], "stats": again[0][1][1]}).values(),
        strict=True,
    ):
        scale = max(float(jnp.abs(left).max()), 1.0)
        np.testing.assert_allclose(right, left, atol=1e-3 * scale, err_msg=str(path))
    before, after = random_values(SHALLOW)["stats"], plain[0][1][1]
    assert not np.allclose(before["head"]["norm"]["mean"], after["head"]["norm"]["mean"])


# ---- where a stage starts ----------------------------------------------------------------------


def task_of(num_classes=3, **changes):
    config = tiny_deeplab.get_config()
    config.update_from_flattened_dict(changes)
    return SYSTEMS["deeplab"].make_task(config, "train", (32, 48), num_classes)


def arrays_of(task):
    return jax.eval_shape(task.init, jax.random.key(0))


def test_a_new_head_leaves_out_what_depends_on_the_classes():
    old = task_of(5)
    with pytest.raises(UserError, match="the data have 3 classes, but the checkpoint.*has 5"):
        deeplab_config.adopt(arrays_of(task_of()), task_of(), arrays_of(old), old.meta)
    new = task_of(new_head=True)
    taken = deeplab_config.adopt(arrays_of(new), new, arrays_of(old), old.meta)
    lost = flatten_dict(arrays_of(old)).keys() - flatten_dict(taken).keys()
    assert lost == deeplab_config.class_rows(old.meta, "abcde").keys()


def test_another_network_is_refused_with_the_flags_that_make_it():
    wide = task_of(**{"model.rates": (2, 3, 4), "model.auxiliary": 0.0})
    with pytest.raises(UserError) as error:
        deeplab_config.adopt(arrays_of(task_of()), task_of(), arrays_of(wide), wide.meta)
    assert str(error.value) == (
        "the checkpoint to start from has rates (2, 3, 4), auxiliary False, where config.model has "
        '(1, 2, 3), True. Try --config.model.rates="(2, 3, 4)" --config.model.auxiliary=0.0.'
    )
    coarse = task_of(**{"model.output_stride": 32})  # whose arrays are the same
    deeplab_config.adopt(arrays_of(task_of()), task_of(), arrays_of(coarse), coarse.meta)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"stages.train.batch_size": 4, "stages.train.accumulate": 4},
     r"takes 1 image at a time .* Try --config.stages.train.batch_size=8"),
    ({"model.output_stride": 12}, "output_stride is 12, but it must be 8, 16 or 32"),
    ({"model.rates": ()}, "model.rates is .* must hold 1 to 16 values"),
    ({"new_head": True}, "no stage starts from a checkpoint whose head could be replaced"),
], ids=["one image", "stride", "rates", "head"])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(changes, sentence):
    config = tiny_deeplab.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence):
        check_config(config)
