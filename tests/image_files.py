"""Image and mask files for the tests of data sets."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)


def random_image(height=4, width=6):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def random_ids(num_classes=3, height=4, width=6, dtype=np.uint8):
    return RNG.integers(0, num_classes, (height, width)).astype(dtype)


def save_image(path, array, mode=None):
    """Writes an array as the ending of the path says; mode "P" makes a palette PNG of ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif mode == "P":
        image = Image.fromarray(array, "L").copy()
        image.putpalette([i % 256 for i in range(768)])
        image.save(path)
    else:
        Image.fromarray(array).save(path)
    return array


def labelled_folder(path, masks, split="train", ending=".png"):
    """Images and the given masks, by name, in the layout of data set folder."""
    for name, mask in masks.items():
        save_image(path / "images" / split / f"{name}.png", random_image(*mask.shape))
        save_image(path / "masks" / split / f"{name}{ending}", mask)
    return str(path)


def png_bytes(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def packed(ids, depth):
    """uint8[H,W] as rows of bytes, whole ones, of samples of 1, 2, 4 or 8 bits."""
    bits = np.unpackbits(ids[..., None], axis=-1)[..., 8 - depth :]
    return np.packbits(bits.reshape(len(ids), -1), axis=-1)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png(ids, depth):
    """A grey PNG that holds the ids as samples of `depth` bits."""
    rows = b"".join(b"\0" + row.tobytes() for row in packed(ids, depth))
    header = struct.pack(">IIBBBBB", *ids.shape[::-1], depth, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    chunks += png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def grey_tiff(ids, depth, photometric=1):
    """A grey TIFF that holds the ids as samples of `depth` bits; photometric 0: zero is white."""
    data = packed(ids, depth).tobytes()
    data += b"\0" * (len(data) % 2)
    tags = {
        256: ids.shape[1], 257: ids.shape[0], 258: depth, 259: 1, 262: photometric, 273: 8, 277: 1,
        278: ids.shape[0], 279: len(data),
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


COUNT, STEP = 30, 8  # frames of a video, and how much brighter each one is


def write_clip(path, codec="libx264", size=(32, 48), count=COUNT):
    """A video of left halves of growing brightness, with several key frames; skips without PyAV."""
    av = pytest.importorskip("av", reason='needs pip install "diffseg_jax[video]"')
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        (stream.height, stream.width), stream.pix_fmt, stream.gop_size = size, "yuv420p", 12
        for number in range(count):
            image = np.full((*size, 3), STEP * number, np.uint8)
            image[:, size[1] // 2 :] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return path
