"""Image and mask changed together: numpy in, numpy out, and the generator is an argument.

Images are uint8 RGB [H,W,3], masks integer [H,W] with 255 = ignored; an unlabelled image has mask
None, which every function here takes and gives back. Sizes are (height, width). A result may be a
view of what came in, so nothing is changed in place; `pad` and `augment` return fresh arrays.
Resizing and colour follow OpenCV's conventions, with which the published recipes were trained. Of
a generator only `integers(low, high)` and `uniform(low, high)` are used.
"""

import math
from functools import cache, partial

import numpy as np
from PIL import Image

from diffseg_jax.data.interpolation import half_pixel_neighbours
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError

REDRAWS = 10  # of a crop in which one class rules

# Means and deviations of ImageNet in levels, RGB (the DDP recipe; DDeP scales to [-1, 1] instead).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def keep_ratio_size(size, limit):
    """The largest size with the aspect of `size` whose sides fit `limit`, as (height, width).

    limit   (long, short) in either order; math.inf leaves the longer side free
    """
    factor = min(max(limit) / max(size), min(limit) / min(size))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def random_size(size, limit, rng, low, high):
    """`keep_ratio_size` with a limit scaled by r ~ U[low, high) and cut to whole pixels."""
    r = rng.uniform(low, high)
    return keep_ratio_size(size, [int(side * r) for side in limit])


def _whole(size):
    return 0, 0, *size


def resize_image(image, size, box=None):
    """Bilinear, without antialiasing; within one level of OpenCV.

    box     (top, left, height, width) of the resized image: only that part is computed and returned
    """
    top, left, height, width = box or _whole(size)
    if image.shape[:2] == tuple(size):
        return image[top : top + height, left : left + width]
    (h, w), (out_h, out_w) = image.shape[:2], size
    y0, y1, wy = half_pixel_neighbours(h, out_h, start=top, stop=top + height)
    x0, x1, wx = half_pixel_neighbours(w, out_w, start=left, stop=left + width)
    image = image[:, x0[0] : x1[-1] + 1]  # the columns that are needed
    x0, x1 = x0 - x0[0], x1 - x0[0]

    rows = image.take(y0, axis=0).astype(np.float32)
    rows += (image.take(y1, axis=0) - rows) * wy[:, None, None]
    out = rows.take(x0, axis=1)
    out += (rows.take(x1, axis=1) - out) * wx[:, None]
    out += 0.5  # the cast rounds down
    return out.astype(np.uint8)


def _nearest(n, out, start, count):
    # floor(i * n / out), by a reciprocal as in OpenCV, so that whole quotients round as there.
    return np.minimum((np.arange(start, start + count) * (1 / (out / n))).astype(np.intp), n - 1)


def resize_mask(mask, size, box=None):
    """Nearest neighbour, any integer type, equals OpenCV. `box` as in `resize_image`."""
    top, left, height, width = box or _whole(size)
    if mask.shape == tuple(size):
        return mask[top : top + height, left : left + width]
    rows = _nearest(mask.shape[0], size[0], top, height)
    columns = _nearest(mask.shape[1], size[1], left, width)
    return mask.take(rows, axis=0).take(columns, axis=1)


def resize_antialiased(image, size):
    """Bilinear as Pillow does it: shrinking averages over all that a pixel covers.

    image  uint8[H,W,3], returned as it is if it has the size;  returns uint8[*size,3]
    """
    if image.shape[:2] == tuple(size):
        return image
    picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)


def resize(image, mask, size, box=None):
    """Both resized to `size`, or the part `box` of that."""
    return resize_image(image, size, box), None if mask is None else resize_mask(mask, size, box)


def resize_short(image, mask, short):
    """Both resized to a shorter side of `short` pixels, aspect kept."""
    return resize(image, mask, keep_ratio_size(image.shape[:2], (math.inf, short)))


def random_scale(image, mask, rng, limit, low, high):
    """Both resized to fit r * limit, r ~ U[low, high), aspect kept."""
    return resize(image, mask, random_size(image.shape[:2], limit, rng, low, high))


def _one_class_rules(labels, share):
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    counts[IGNORE] = 0
    return not counts.any() or counts.max() / counts.sum() >= share


def random_box(size, crop, rng, labels_in=None, max_class_share=1.0):
    """Where to crop an image of `size`: (top, left, height, width), no larger than the image.

    A box whose counted pixels hold at most one class, or one class with a share of max_class_share
    or more, is drawn again, at most 10 times; the last one is used whatever it holds.

    labels_in           box -> its labels; None: there are none, and the first box is used
    max_class_share     1 or more: the first box is used
    """

    def draw():
        top, left = (int(rng.integers(0, max(n - c, 0) + 1)) for n, c in zip(size, crop))
        return top, left, min(size[0], crop[0]), min(size[1], crop[1])

    box = draw()
    if labels_in is None or max_class_share >= 1:
        return box
    for _ in range(REDRAWS):
        if not _one_class_rules(labels_in(box), max_class_share):
            break
        box = draw()
    return box


def random_crop(image, mask, size, rng, max_class_share=0.75):
    """A part of at most `size`, chosen as in `random_box`; smaller where the image is."""
    whole = image.shape[:2]
    labels_in = None if mask is None else partial(resize_mask, mask, whole)
    box = random_box(whole, size, rng, labels_in, max_class_share)
    return resize(image, mask, whole, box)


def random_flip(image, mask, rng, probability=0.5):
    """Left and right exchanged with the given probability."""
    if rng.uniform(0.0, 1.0) >= probability:
        return image, mask
    return image[:, ::-1], None if mask is None else mask[:, ::-1]


def pad(image, mask, size):
    """Filled up to `size` at the bottom and the right: the image with 0, the mask with 255.

    Returns image and mask, always fresh arrays, and the (height, width) that came in. Raises
    UserError if that is more than `size`.
    """
    h, w = image.shape[:2]
    if h > size[0] or w > size[1]:
        raise UserError(
            f"an image of {h}x{w} pixels does not fit in {size[0]}x{size[1]}: "
            "only smaller ones are padded, so crop or resize it first, or ask for a larger size."
        )
    padded = np.zeros((*size, *image.shape[2:]), image.dtype)
    padded[:h, :w] = image
    if mask is None:
        return padded, None, (h, w)
    labels = np.full(size, IGNORE, mask.dtype)
    labels[:h, :w] = mask
    return padded, labels, (h, w)


def drop_small_objects(mask, least):
    """The mask with 255 in the pixels of each class that covers fewer than `least` of them.

    mask  integer[H,W] of 0..255, left as it is;  returns a fresh array of that type
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    return np.where(counts[mask] < least, mask.dtype.type(IGNORE), mask)


def center_square(image, side):
    """The middle of a picture as a square, made smaller or larger as guided-diffusion does.

    The picture is halved by a box filter for as long as its shorter side is at least twice `side`,
    brought to it by a bicubic filter, and cropped; on an odd remainder the left and top lose less.

    image  uint8[H,W,3];  returns uint8[side,side,3]
    Raises UserError for a side below 1.
    """
    if side < 1:
        raise UserError(f"the square's side is {side}, but must be 1 pixel or more, such as 256.")
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * side:
        width, height = picture.size
        picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = side / min(picture.size)
    width, height = (round(length * scale) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(picture.crop((left, top, left + side, top + side)))


# Colour. OpenCV's 8-bit hue counts steps of two degrees, 0..179, so a sixth of the circle has 30;
# its divisions by value and chroma use 12 fraction bits.

_LEVELS = np.arange(256)
_DIVISOR = np.maximum(_LEVELS, 1)  # for dividing by a level; 0 / 0 is 0
_SATURATION_PER = np.rint((255 << 12) / _DIVISOR).astype(np.int32)  # indexed by the value
_HUE_PER = np.rint((30 << 12) / _DIVISOR).astype(np.int32)  # indexed by the chroma
_HUES = 180


@cache
def _shares():
    # float32[3, 180, 256]: red, green and blue as parts of the value, by hue and saturation. What
    # red lacks is, by sixths of the circle: nothing, a ramp up, all of the saturation, all, a ramp
    # down, nothing; green and blue are two and four sixths behind.
    angle = np.arange(_HUES, dtype=np.float32) * np.float32(1 / 30)
    sixth = angle.astype(np.intp)
    up = angle - sixth
    no, full = np.zeros_like(up), np.ones_like(up)
    red = np.stack([no, up, full, full, 1 - up, no])
    lack = np.stack([red[(sixth - behind) % 6, np.arange(_HUES)] for behind in (0, 2, 4)])
    saturation = _LEVELS.astype(np.float32) * np.float32(1 / 255)
    # Rounded once, after the subtraction: with the fused multiply-add of OpenCV.
    return (1 - lack[:, :, None].astype(np.float64) * saturation).astype(np.float32)


def rgb_to_hsv(image):
    """uint8 [H,W,3] -> hue 0..179, saturation and value 0..255, each uint8 [H,W].

    Equals OpenCV.
    """
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    saturation = (chroma * _SATURATION_PER.take(value) + (1 << 11)) >> 12

    r, g, b = planes.astype(np.int16)
    chroma_16 = chroma.astype(np.int16)
    # Hue in sixths of the circle, times the chroma; where two channels are largest, red goes first.
    sixths = np.where(value == g, b - r + 2 * chroma_16, r - g + 4 * chroma_16)
    sixths = np.where(value == r, g - b, sixths)
    hue = (sixths * _HUE_PER.take(chroma) + (1 << 11)) >> 12
    hue += _HUES * (hue < 0)
    return hue.astype(np.uint8), saturation.astype(np.uint8), value


def hsv_to_rgb(hue, saturation, value):
    """The inverse of `rgb_to_hsv`, up to rounding: uint8 [H,W,3].

    As in OpenCV's vectorised code it is down in whole blocks of 32 columns, and to nearest in those
    that are left over.
    """
    where = hue.astype(np.uint16) * 256 + saturation
    value = value * np.float32(1 / 255)
    width = hue.shape[1]
    rounding = np.where(np.arange(width) < width // 32 * 32, 0, 0.5).astype(np.float32)
    image = np.empty((*hue.shape, 3), np.uint8)
    for channel, share in enumerate(_shares()):
        image[..., channel] = value * share.take(where) * np.float32(255) + rounding
    return image


def _linear(levels, gain=1.0, shift=0.0):
    table = np.clip(_LEVELS.astype(np.float32) * gain + shift, 0, 255).astype(np.uint8)
    return table.take(levels)


def _contrast(image, rng):
    return _linear(image, gain=rng.uniform(0.5, 1.5)) if rng.integers(0, 2) else image


def photometric_distortion(image, rng):
    """Brightness, contrast, saturation and hue, each with probability 1/2, as in DDP's recipe.

    Brightness adds U(-32, 32). Contrast multiplies by U(0.5, 1.5), before or after the next two by
    a fair coin. Saturation is multiplied by U(0.5, 1.5); hue turns by -18 .. 17 of 180 steps. Every
    step clips and rounds down. Draws, in this order: brightness gate [value], coin, (heads:
    contrast gate [value]), saturation gate [value], hue gate [value], (tails: contrast gate
    [value]).
    """
    if rng.integers(0, 2):
        image = _linear(image, shift=rng.uniform(-32.0, 32.0))
    contrast_first = rng.integers(0, 2)
    if contrast_first:
        image = _contrast(image, rng)
    if rng.integers(0, 2):
        hue, saturation, value = rgb_to_hsv(image)
        image = hsv_to_rgb(hue, _linear(saturation, gain=rng.uniform(0.5, 1.5)), value)
    if rng.integers(0, 2):
        hue, saturation, value = rgb_to_hsv(image)
        turned = (hue.astype(np.int16) + int(rng.integers(-18, 18))) % _HUES
        image = hsv_to_rgb(turned, saturation, value)
    return image if contrast_first else _contrast(image, rng)


def _check(image, mask, limit, short, scale, crop):
    if mask is not None and mask.shape != image.shape[:2]:
        sizes = ["x".join(map(str, shape)) for shape in (image.shape[:2], mask.shape)]
        raise UserError(
            f"an image of {sizes[0]} pixels came with a mask of {sizes[1]}; they must be equal."
        )
    if short and any(limit):
        raise UserError(
            f"short={short} and limit={tuple(limit)} both set a size: "
            "keep one, and set the other to short=0 or limit=(0, 0)."
        )
    if any(limit) and min(limit) < 1:
        raise UserError(
            f"limit is {tuple(limit)}, but must be two sides in pixels, like (2048, 512); "
            "(0, 0) keeps the image's own size."
        )
    if not 0 < scale[0] <= scale[1]:
        raise UserError(
            f"scale is {tuple(scale)}, but must be (low, high) with 0 < low <= high, "
            "like (0.5, 2.0)."
        )
    if min(crop) < 1:
        raise UserError(
            f"crop is {tuple(crop)}, but must be (height, width) in pixels, like (512, 1024)."
        )


def augment(
    image,
    mask,
    rng,
    *,
    limit=(0, 0),
    short=0,
    scale=(1.0, 1.0),
    crop,
    max_class_share=0.75,
    flip=True,
    photometric=False,
):
    """One training example: resize, crop, flip, colours, pad; in this order.

    image   uint8[H,W,3];  mask   integer[H,W] or None
    limit   (long, short) sides to fit, aspect kept; (0, 0): the image's own size
    short   length of the shorter side, aspect kept; instead of limit; 0: off
    scale   (low, high): the size is multiplied by r ~ U[low, high)
    crop    (h, w); what is smaller is padded; max_class_share as in `random_box`

    Returns image uint8[h,w,3]; mask int32[h,w], if there was one; valid int32[2], the (h, w) that
    is not padding.
    Raises UserError for options that contradict each other and for a mask of another size.
    """
    _check(image, mask, limit, short, scale, crop)
    own = image.shape[:2]
    if short:
        limit = keep_ratio_size(own, (math.inf, short))
    size = random_size(own, limit if any(limit) else own, rng, *scale)
    # The box is drawn before anything is resized, so that only its pixels are ever computed.
    labels_in = None if mask is None else partial(resize_mask, mask, size)
    box = random_box(size, crop, rng, labels_in, max_class_share)
    image, mask = resize(image, mask, size, box)
    if flip:
        image, mask = random_flip(image, mask, rng)
    if photometric:
        image = photometric_distortion(image, rng)
    image, mask, valid = pad(image, mask, crop)
    example = {"image": image, "valid": np.array(valid, np.int32)}
    if mask is not None:
        example["mask"] = mask.astype(np.int32)
    return example
