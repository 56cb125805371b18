"""Brushed regions of Label Studio, held to its own recordings and to the layout of the stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffseg_jax.annotations.brush_rle import decode_brush, encode_brush
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

REGION = np.zeros((5, 7), bool)
REGION[1:4, 2:6] = True
REGION[2, 3] = False
RECORDED = [  # what Label Studio's own encoder makes of REGION, white and opaque
    0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 63, 248, 192, 39, 255, 182, 1, 127, 255,
    15, 128, 0,
]  # fmt: skip
NOISE = [  # the same encoder, for RGBA bytes that never repeat
    0, 0, 0, 48, 57, 27, 248, 27, 32, 81, 129, 4, 2, 40, 9, 192, 5, 0, 38, 0, 32, 5, 128, 104, 1,
    76, 7, 72, 16, 0, 77, 129, 240, 5, 208, 20, 32, 69, 129, 30, 7, 120, 8, 224, 104, 1, 86, 0, 0,
    12, 128, 109, 129, 26, 0, 64, 24, 96, 93, 1, 176, 1, 96, 2, 192, 110, 0, 10, 4, 80, 2, 128, 38,
    0, 246, 3, 96, 12, 224, 3, 128, 2, 0, 248, 0, 64, 85, 129, 12, 5, 40,
]  # fmt: skip


def packed(*fields):
    """A stream of (value, bits)."""
    text = "".join(f"{value:0{bits}b}" for value, bits in fields)
    return list(int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big"))


def header(words, word_bits=8, lengths=(3, 4, 8, 16)):
    return (words, 32), (word_bits - 1, 5), *((bits - 1, 4) for bits in lengths)


def test_recordings_of_label_studio_are_read():
    np.testing.assert_array_equal(decode_brush(RECORDED, (5, 7), "a"), 255 * REGION)
    assert decode_brush(NOISE, (3, 4), "a").tolist() == [
        [69, 4, 233, 186], [239, 0, 8, 44], [138, 108, 31, 165],
    ]  # fmt: skip


def test_a_region_is_written_as_label_studio_writes_it():
    assert encode_brush(REGION) == RECORDED


def test_blocks_of_both_kinds_and_any_lengths_are_read():
    """Two pixels: the words 1 2 3 4 5 one by one, then three times the word 7."""
    fields = header(8, lengths=(2, 5, 6, 7))
    words = [(0, 1), (1, 2), (4, 5), *((word, 8) for word in (1, 2, 3, 4, 5))]
    repeated = [(1, 1), (0, 2), (2, 2), (7, 8)]
    assert decode_brush(packed(*fields, *words, *repeated), (1, 2), "a").tolist() == [[4, 7]]


def test_only_the_opacity_counts():
    colour = [(0, 1), (0, 2), (3, 3), (9, 8), (9, 8), (9, 8), (0, 8)]
    assert decode_brush(packed(*header(4), *colour), (1, 1), "a").tolist() == [[0]]


@settings(max_examples=50, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_region_returns(region):
    np.testing.assert_array_equal(decode_brush(encode_brush(region), region.shape, "a") > 0, region)


def test_a_run_longer_than_the_longest_block_returns():
    region = np.ones((200, 100), bool)  # 80,000 words; a block holds 65,536
    region[0, 0] = False
    np.testing.assert_array_equal(decode_brush(encode_brush(region), region.shape, "a") > 0, region)


@pytest.mark.parametrize(
    "numbers, size, part",
    [
        (RECORDED, (7, 6), "has 140 values of 8 bits, but the image of 6x7"),
        (RECORDED[:-4], (5, 7), "ends too early"),
        (packed(*header(4), (1, 1), (3, 2), (9, 16), (0, 8)), (1, 1), "has more than 4 values"),
        (packed(*header(4, word_bits=16)), (1, 1), "4 values of 16 bits"),
        ([0, 0, 300], (1, 1), "integers in 0..255"),
        ([0, "a"], (1, 1), "integers in 0..255"),
        (None, (1, 1), "integers in 0..255"),
        (7, (1, 1), "integers in 0..255"),
        ([], (1, 1), "ends too early"),
    ],
)
def test_what_is_no_such_stream_is_refused(numbers, size, part):
    with pytest.raises(UserError, match=f"^task 3.*{part}"):
        decode_brush(numbers, size, "task 3")


def test_damaged_streams_are_read_or_refused():
    rng = np.random.default_rng(0)
    for _ in range(300):
        stream = list(RECORDED)
        for _ in range(rng.integers(1, 4)):
            stream[rng.integers(len(stream))] = int(rng.integers(256))
        try:
            assert decode_brush(stream[: rng.integers(1, 40)], (5, 7), "a").shape == (5, 7)
        except UserError:
            continue
