"""PNGs of label maps that change a little at a time: a stroke compresses only its rows anew."""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

BAND_ROWS = 64  # of a band
ADLER = 65521  # the modulus of Adler-32
BEGIN, END = b"\x78\x01", b"\x03\x00"  # of a stream of zlib: its header, and an empty last block


class BandedPng:
    """The 8-bit grey PNG of a map u8[H,W], in bands of rows that are compressed one by one.

    A value: `changed` returns another one, which shares the bands that are the same.
    """

    def __init__(self, ids: np.ndarray):
        self.shape = ids.shape
        self.bands = [_band(ids[y : y + BAND_ROWS]) for y in range(0, len(ids), BAND_ROWS)]

    def changed(self, ids: np.ndarray, first: int, last: int) -> "BandedPng":
        """The PNG of a map of this size that differs in the rows first..last - 1 only."""
        other = BandedPng.__new__(BandedPng)
        other.shape, other.bands = self.shape, list(self.bands)
        for number in range(first // BAND_ROWS, -(-last // BAND_ROWS)):
            other.bands[number] = _band(ids[number * BAND_ROWS : (number + 1) * BAND_ROWS])
        return other

    def content(self, text: Mapping[str, str]) -> bytes:
        """The file, with ASCII text beside the pixels."""
        height, width = self.shape
        sum_1, sum_2 = 1, 0  # Adler-32 of all bands, from those of each
        for _, adler, length in self.bands:
            sum_2 += (adler >> 16) + length * (sum_1 - 1)
            sum_1 += (adler & 0xFFFF) - 1
        checksum = struct.pack(">HH", sum_2 % ADLER, sum_1 % ADLER)
        data = b"".join([BEGIN, *(compressed for compressed, _, _ in self.bands), END, checksum])
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"".join([
            b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header),
            *(_chunk(b"tEXt", f"{key}\0{value}".encode("ascii")) for key, value in text.items()),
            _chunk(b"IDAT", data), _chunk(b"IEND", b""),
        ])  # fmt: skip


def _band(rows: np.ndarray) -> tuple[bytes, int, int]:
    """(compressed rows, their Adler-32, their length); each row but the first as a difference."""
    raw = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    raw[:, 0], raw[0, 0] = 2, 0  # the filters "up" and "none" of PNG
    raw[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=raw[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    compressed = packer.compress(raw) + packer.flush(zlib.Z_FULL_FLUSH)  # ends at a byte
    return compressed, zlib.adler32(raw), raw.size


def _chunk(kind, data):
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))
