"""Shapes of meshes and shardings; runs on several devices are tested in test_devices.py."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from diffseg_jax.devices import mesh as meshes
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick


@pytest.fixture
def eight(monkeypatch):
    """Makes jax report 8 devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    made = lambda shape, names, axis_types: dict(zip(names, shape))
    monkeypatch.setattr(jax, "make_mesh", made)


@pytest.mark.parametrize(
    "data, fsdp, shape",
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (1, -1, (1, 8)), (2, 4, (2, 4)), (8, -1, (8, 1))],
)
def test_minus_one_is_inferred_from_the_other_axis(eight, data, fsdp, shape):
    assert meshes.make_mesh(data, fsdp) == dict(zip(("data", "fsdp"), shape))


@pytest.mark.parametrize("data, fsdp", [(3, 1), (-1, 3), (-1, -1), (0, 1), (1, 0), (-1, 16)])
def test_axes_must_multiply_to_the_number_of_devices(eight, data, fsdp):
    with pytest.raises(UserError, match=r"devices, 8\. Try --config\.mesh\.data="):
        meshes.make_mesh(data, fsdp)


@pytest.mark.parametrize("batch, accumulate", [(8, 1), (16, 2), (48, 3)])
def test_batches_that_the_devices_divide_are_accepted(eight, batch, accumulate):
    meshes.check_batch(batch, accumulate, "stages.finetune.batch_size")


@pytest.mark.parametrize("batch, accumulate", [(1, 1), (12, 1), (8, 2), (40, 2)])
def test_the_error_for_a_batch_size_suggests_valid_sizes(eight, batch, accumulate):
    with pytest.raises(UserError) as error:
        meshes.check_batch(batch, accumulate, "stages.finetune.batch_size")
    message = str(error.value)
    assert f"stages.finetune.batch_size is {batch}, but 8 devices" in message
    for size in map(int, re.search(r"batch_size=(\d+) or (\d+)", message).groups()):
        meshes.check_batch(size, accumulate, "x")


def test_large_leaves_are_split_along_their_largest_fitting_axis(monkeypatch):
    monkeypatch.setattr(meshes, "NamedSharding", lambda mesh, spec: spec)
    fake = SimpleNamespace(shape={"data": 2, "fsdp": 4})
    shapes = {"wide": (3, 3, 64, 128), "tall": (1000, 64), "odd": (101, 1000)}
    shapes |= {"small": (64,), "none": (129, 131)}
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    placed = meshes.state_shardings(tree, fake)
    assert placed["wide"] == jax.P(None, None, None, "fsdp")
    assert placed["tall"] == jax.P("fsdp")
    assert placed["odd"] == jax.P(None, "fsdp")
    assert placed["small"] == placed["none"] == jax.P()


def test_a_batch_arrives_unchanged():
    batch = {"image": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)}
    sent = meshes.to_devices(batch, meshes.make_mesh(), 2)
    np.testing.assert_array_equal(sent["image"], batch["image"])
