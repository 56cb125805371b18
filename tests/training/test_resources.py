"""The reported resources are those of the arrays and the compiled step."""

import jax
import jax.numpy as jnp
import pytest

from diffseg_jax.devices.mesh import make_mesh, state_shardings
from diffseg_jax.errors import size
from diffseg_jax.training import resources
from diffseg_jax.training.state_sizes import STATE_PARTS, of_state

pytestmark = pytest.mark.quick


def test_the_table_adds_up_the_parts_of_the_state():
    leaf = jax.ShapeDtypeStruct((1000, 500), jnp.float32)
    half = jax.ShapeDtypeStruct((7,), jnp.bfloat16)
    state = {
        "params": {"w": leaf}, "frozen": {}, "stats": {"s": half}, "ema": {},
        "opt": {"mu": leaf, "nu": leaf},
    }  # fmt: skip
    lines = of_state(state, state_shardings(state, make_mesh())).splitlines()
    assert [line.split()[-6:] for line in lines if "trained" in line] == [
        ["parameters", "500,000", "2", "MB", "2", "MB"]
    ]
    assert not any("frozen" in line or "averages" in line for line in lines)
    assert lines[-1].split() == ["total", "1,500,007", "6", "MB", "6", "MB"]


def test_a_device_holds_its_part_of_what_is_split():
    mesh = jax.sharding.AbstractMesh((1, 4), ("data", "fsdp"))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    leaf = jax.ShapeDtypeStruct((1000, 500), jnp.float32)
    state = {part: {} for part in STATE_PARTS} | {"params": {"w": leaf}}
    shardings = {part: {} for part in STATE_PARTS} | {"params": {"w": where}}
    last = of_state(state, shardings)
    assert last.splitlines()[-1].split() == ["total", "500,000", "2", "MB", "500", "kB"]


def test_a_products_operations_and_memory_are_counted():
    lowered = jax.jit(lambda a, b: a @ b).lower(jnp.ones((100, 200)), jnp.ones((200, 300)))
    text = resources.of_step(lowered, lowered.compile(), 2, 61.0)
    assert text.startswith("compiled in 1 min 01 s; 6 MFLOP per device and step; ")  # 2 n m k / 2
    assert "440 kB of memory expected on each device, 440 kB of it between steps" in text


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (6_633_769_032, "6.63 GB"), (999.7e6, "1 GB"),
        (5e15, "5 PB"),
    ],
)  # fmt: skip
def test_sizes_read_well(count, text):
    assert size(count) == text
