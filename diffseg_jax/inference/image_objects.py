"""Images as Python holds them: arrays, PIL images, bytes and file objects of image files."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from diffseg_jax.data.images import complete, read_image, require_few_pixels, to_rgb
from diffseg_jax.data.orientation import orientation_of
from diffseg_jax.errors import UserError

ACCEPTED = (
    "uint8 arrays [H, W, 3] or [B, H, W, 3], PIL images, paths of images or of folders, bytes or "
    "file objects of image files"
)
BYTES = bytes | bytearray


def is_file_content(item) -> bool:
    """Whether an object is an image file in memory, or open: bytes, or an object with `read`."""
    if isinstance(item, memoryview | np.ndarray):
        return item.ndim == 1 and item.itemsize == 1 and memoryview(item).format == "B"
    return isinstance(item, BYTES) or hasattr(item, "read")


def from_file_content(item) -> np.ndarray:
    """The image u8[H,W,3] in such an object, judged as the same file would be."""
    if not hasattr(item, "read"):
        return read_image("<bytes>", bytes(item))
    name = item.name if isinstance(item, io.IOBase) and hasattr(item, "name") else "<file object>"
    try:
        if hasattr(item, "seekable") and item.seekable():
            item.seek(0)
        content = item.read()
    except Exception as error:  # closed, opened for writing or as text, a broken connection
        raise UserError(
            f"{name} cannot be read ({error}). Give the path, or open(path, 'rb')."
        ) from None
    if not isinstance(content, BYTES):
        raise UserError(
            f"reading {name} gives {type(content).__name__}, not bytes. Give the path, or "
            "open(path, 'rb')."
        )
    return read_image(str(name), bytes(content))


def from_pil(image: Image.Image) -> np.ndarray:
    """A PIL image as upright u8[H,W,3], judged as its file would be."""
    name = "<PIL image>"
    if isinstance(image, ImageFile.ImageFile) and image.filename:
        name = image.filename
    try:
        require_few_pixels(image)
        with complete:
            image.load()
        return to_rgb(image, name, orientation_of(image))
    except UserError:
        raise
    except Exception as error:  # a closed image, or a cut file
        raise UserError(
            f"cannot read {name}: {error}. Open it again, or give the path of another file."
        ) from None


def from_array(item) -> Iterator[np.ndarray]:
    """The images u8[H,W,3] of an array, or of an object that becomes one."""
    try:
        array = np.asarray(item)
    except Exception as error:  # tensors of torch on a GPU or with gradients
        raise UserError(
            f"a {type(item).__name__} cannot become an array ({error}). Give "
            "image.detach().cpu().numpy()."
        ) from None
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size:
        yield from array if array.ndim == 4 else [array]
        return
    raise UserError(
        f"an image is {array.dtype}{list(array.shape)}, but images must be {ACCEPTED}."
        f"{_advice(array, 'image' if array is item else 'np.asarray(image)')}"
    )


def _advice(array, code):
    """A sentence with the expression that makes an accepted image of `code`, or ""."""
    if array.dtype.name == "bfloat16":
        array, code = array.astype(np.float32), f"{code}.astype(np.float32)"
    code = array.size and _with_channels(array.shape, code)
    if not code:
        return ""
    scaled = _as_bytes(array, code)
    return f" Try {scaled}." if scaled else " Scale its values to 0..255 and make them uint8."


def _with_channels(shape, code):
    """The expression with three channels on the last axis; "" for shapes that are no images."""
    if len(shape) not in (2, 3, 4):
        return ""
    if len(shape) > 2 and shape[-1] > 4 and shape[-3] <= 4:  # channels first
        code = f"np.moveaxis({code}, -3, -1)"
        shape = (*shape[:-3], *shape[-2:], shape[-3])
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] > 4):
        return f"np.repeat({code}[..., None], 3, -1)"
    channels = {
        1: f"np.repeat({code}, 3, -1)",
        2: f"np.repeat({code}[..., :1], 3, -1)",  # grey with transparency
        3: code,
        4: f"{code}[..., :3]",
    }
    return channels.get(shape[-1], "")


def _as_bytes(array, code):
    """The expression with values 0..255 of dtype uint8; "" where the scale is not known."""
    if array.dtype == np.uint8:
        return code
    if array.dtype.kind == "b":
        return f"np.uint8(255) * {code}"
    if array.dtype.kind not in "uif":
        return ""
    finite = array[np.isfinite(array)]
    if finite.size < array.size:
        code = f"np.nan_to_num({code}, posinf=0, neginf=0)"
    low, high = finite.min(initial=0), finite.max(initial=0)
    scales = {  # expression: whether the values fit it
        f"np.rint(255 * {code}).astype(np.uint8)": array.dtype.kind == "f" and 0 <= low < high <= 1,
        f"np.rint({code}).astype(np.uint8)": low >= 0 and high <= 255,
        f"np.rint(127.5 * ({code} + 1)).astype(np.uint8)": low >= -1 and high <= 1,
        f"({code} // 257).astype(np.uint8)": array.dtype == np.uint16,
    }
    return next((scaled for scaled, fits in scales.items() if fits), "")
