"""Collectives are counted in the text of programs, in loops as often as these run."""

import pytest

from diffseg_jax.devices.accelerators import ACCELERATORS, EXACT_FLOAT32
from diffseg_jax.devices.collectives import Collective, collectives_of

pytestmark = pytest.mark.quick

TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x = bf16[1,8]{1,0} get-tuple-element(%p), index=1
  %all-gather.1 = bf16[4,8]{1,0} all-gather(%x), dimensions={0}, replica_groups=[2,4]<=[8]
  ROOT %t = (s32[], bf16[4,8]{1,0}) tuple(%p, %all-gather.1)
}

ENTRY %main (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  %all-reduce.2 = (f32[10]{0}, /*index=1*/s32[]) all-reduce(%x, %n), replica_groups=MESH
  %alone = f32[10]{0} all-reduce(%x), replica_groups={{0},{1}}, to_apply=%sum
  %reduce-scatter.3 = f32[5]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %while.4 = (s32[], bf16[4,8]{1,0}) while(%t), condition=%c, body=%body, BACKEND
  ROOT %y = f32[10]{0} add(%x, %x)
}
""".replace("MESH", "mesh['a'=2,'b'=4] {'a','b':(1)2}").replace(
    "BACKEND", 'backend_config={"known_trip_count":{"n":"3"}}'
)  # fmt: skip


def test_kinds_groups_and_bytes_are_those_of_the_program():
    assert collectives_of(TEXT) == [
        Collective("all-gather", 4, 3, 3 * 4 * 8 * 2),
        Collective("all-reduce", 4, 1, 44),
        Collective("reduce-scatter", 2, 1, 20),
    ]


def test_an_all_reduce_sends_as_much_as_what_it_may_be_split_into():
    """In rings: a reduce-scatter to parts, and an all-gather of them."""
    whole = Collective("all-reduce", 8, 1, 800).sent
    parts = Collective("reduce-scatter", 8, 1, 100).sent + Collective("all-gather", 8, 1, 800).sent
    assert whole == parts == 1400


@pytest.mark.parametrize(
    ("name", "seconds"), [("a100", 2 + 4 + 32), ("tpu_v6e", (2 + 2 + 12) * 312 / 918)]
)
def test_products_take_the_time_of_their_precision(name, seconds):
    """In multiples of what an A100 does in bfloat16: half of it in TF32, a 16th in full."""
    operations = dict.fromkeys(("bfloat16", "float32", EXACT_FLOAT32), 2 * 312e12)
    assert ACCELERATORS[name].product_seconds(operations) == pytest.approx(seconds)
