"""The run-length encoding of brushed regions in Label Studio: @thi.ng/rle-pack of RGBA bytes.

A stream of bits, the highest of each byte first:

    32 bits    number of words: 4 for each pixel, row after row
     5 bits    bits of a word, less 1: 7
    4 x 4 bits   bits of a length, less 1, for each of four classes of lengths
    blocks     1 bit: whether one word is repeated; 2 bits: the class of the length; the length,
               less 1; then the word that is repeated, or as many words as the length says

Only the last word of each pixel counts, its opacity.
"""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.errors import UserError

WORD_BITS, LENGTH_BITS = 8, (3, 4, 8, 16)  # bits that are written; every length may be read


def decode_brush(numbers: Sequence[int], size: tuple[int, int], name: str) -> np.ndarray:
    """The opacity uint8[H,W] of a brushed region.

    numbers  bytes of the stream;  size  (height, width);  name  of the region, for errors

    Raises UserError for what is no such stream, and for one of another size.
    """
    try:
        stream = _Bits(bytes(list(numbers)))
    except (TypeError, ValueError):
        raise UserError(
            f'{name}: "rle" must be a list of bytes, integers in 0..255. Export the labels again.'
        ) from None
    try:
        return _decoded(stream, size).reshape(size)
    except _Refused as error:
        raise UserError(f"{name}: its brushed region {error}. Export the labels again.") from None


class _Refused(ValueError):
    """What is wrong with a stream, as the end of a sentence."""


class _Bits:
    """A stream of bits that is read from its beginning."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def read(self, count):
        """The next bits as an integer."""
        end = self.at + count
        if end > 8 * len(self.content):
            raise _Refused("ends too early")
        part = int.from_bytes(self.content[self.at // 8 : -(-end // 8)], "big")
        self.at = end
        return part >> -end % 8 & (1 << count) - 1

    def read_bytes(self, count):
        """The next 8 * count bits as uint8[count]."""
        start, shift = divmod(self.at, 8)
        if self.at + 8 * count > 8 * len(self.content):
            raise _Refused("ends too early")
        part = np.frombuffer(self.content[start : start + count + 1] + b"\0", np.uint8)
        part = part.astype(np.uint16)
        self.at += 8 * count
        both = part[:count] << 8 | part[1 : count + 1]
        return (both >> (8 - shift) & 255).astype(np.uint8)


def _decoded(stream, size):
    """The opacity uint8[H * W]."""
    words, bits = stream.read(32), stream.read(5) + 1
    lengths = [stream.read(4) + 1 for _ in range(4)]
    height, width = size
    if words != 4 * height * width or bits != WORD_BITS:
        raise _Refused(
            f"has {words} values of {bits} bits, but the image of {width}x{height} pixels needs "
            f"{4 * height * width} of {WORD_BITS} bits"
        )
    opacity, start = np.zeros(height * width, np.uint8), 0
    while start < words:
        repeated = stream.read(1)
        end = start + 1 + stream.read(lengths[stream.read(2)])
        if end > words:
            raise _Refused(f"has more than {words} values")
        # The last word of pixel k is word 4 * k + 3, so those in [start, end) are of these pixels.
        pixels = slice(start // 4, end // 4)
        if repeated:
            opacity[pixels] = stream.read(WORD_BITS)
        else:
            values = stream.read_bytes(end - start)
            opacity[pixels] = values[3 - start % 4 :: 4]
        start = end
    return opacity


def encode_brush(inside: np.ndarray) -> list[int]:
    """The stream of a region bool[H,W], which is white and opaque inside; transparent elsewhere."""
    flat = inside.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    ends = np.append(starts[1:], flat.size)
    parts = [
        f"{4 * flat.size:032b}{WORD_BITS - 1:05b}",
        *(f"{bits - 1:04b}" for bits in LENGTH_BITS),
    ]
    for start, end in zip(starts.tolist(), ends.tolist()):
        parts += _repeated(4 * (end - start), 255 * bool(flat[start]))
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _repeated(count, word):
    """The blocks of a repeated word, as text of bits."""
    longest = 1 << LENGTH_BITS[-1]
    for length in [longest] * (count // longest) + [count % longest] * (count % longest > 0):
        kind = next(k for k, bits in enumerate(LENGTH_BITS) if length <= 1 << bits)
        yield f"1{kind:02b}{length - 1:0{LENGTH_BITS[kind]}b}{word:0{WORD_BITS}b}"
