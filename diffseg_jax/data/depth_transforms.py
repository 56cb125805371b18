"""Image and depth changed together, by the recipe of DDP for depth: numpy in, numpy out.

Images are uint8 RGB [H,W,3], depths float32 [H,W] in metres with 0 where nothing was measured.
Depth is never interpolated and its values never change: pixels move, and what comes from outside
counts as not measured. Of a generator only `integers(low, high)` and `uniform(low, high)` are used.
"""

import math

import numpy as np
from PIL import Image

from diffseg_jax.data.transforms import (
    keep_ratio_size,
    random_box,
    random_flip,
    random_size,
    resize,
)
from diffseg_jax.errors import UserError

UNCHANGED = 1.0, 1.0


def rotated(image, depth, degrees: float):
    """Both turned anticlockwise about the centre: bilinear and nearest; 0 comes from outside."""
    turn = lambda array, method: np.asarray(Image.fromarray(array).rotate(degrees, method))
    image = turn(np.ascontiguousarray(image), Image.Resampling.BILINEAR)
    return image, turn(np.ascontiguousarray(depth), Image.Resampling.NEAREST)


def changed_colours(image, gamma: float, brightness: float, channels) -> np.ndarray:
    """image ** gamma times brightness times a factor per channel, on the scale of 0 to 255.

    There 255 ** 1.1 is 443, so that gamma changes the brightness as well, as in the original.
    Results are clipped and rounded to uint8, where the original keeps fractions.
    """
    levels = np.arange(256, dtype=np.float64)[:, None] ** gamma * brightness * np.asarray(channels)
    table = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return np.stack([table[:, c].take(image[..., c]) for c in range(3)], -1)


def padded_depth(image, depth, size):
    """(image, depth, (height, width) of the input), padded with 0 at the bottom and the right."""
    h, w = depth.shape
    down, right = size[0] - h, size[1] - w
    image = np.pad(image, ((0, down), (0, right), (0, 0)))
    return image, np.pad(depth, ((0, down), (0, right))), (h, w)


def augment_depth(
    image,
    depth,
    rng,
    *,
    limit=(0, 0),
    short=0,
    scale=UNCHANGED,
    crop,
    rotate=0.0,
    rotate_share=0.5,
    flip=True,
    colour_share=0.5,
    gamma=UNCHANGED,
    brightness=UNCHANGED,
    channels=UNCHANGED,
):
    """One training example: resize, rotate, flip, crop, change colours and pad, in this order.

    image, depth  uint8[H,W,3] and float32[H,W]
    limit, short, scale  of the size, as in `transforms.augment`; depth keeps its metres, so that
                  networks see objects of one distance in several sizes
    crop          (h, w); smaller images are padded
    rotate        degrees: a share rotate_share is turned by an angle ~ U[-rotate, rotate)
    flip          whether half of them are mirrored left to right
    gamma, brightness, channels  (low, high): a share colour_share of the images has their colours
                  changed by numbers drawn from these, one for each channel

    Returns {"image": uint8[h,w,3], "depth": float32[h,w], "valid": int32[2], the (h, w) that is not
    padding}. Raises UserError for a depth of another size and for ranges that are none.
    """
    _check_depth_options(
        image, depth, limit, short, crop,
        dict(scale=scale, gamma=gamma, brightness=brightness, channels=channels),
    )  # fmt: skip
    original = image.shape[:2]
    if short:
        limit = keep_ratio_size(original, (math.inf, short))
    size = random_size(original, limit if any(limit) else original, rng, *scale)
    image, depth = resize(image, depth, size)
    if rotate and rng.uniform(0.0, 1.0) < rotate_share:
        image, depth = rotated(image, depth, rng.uniform(-rotate, rotate))
    if flip:
        image, depth = random_flip(image, depth, rng)
    top, left, height, width = random_box(size, crop, rng)
    box = np.s_[top : top + height, left : left + width]
    image, depth = image[box], depth[box]
    ranges = gamma, brightness, channels, channels, channels
    has_changes = any(tuple(each) != UNCHANGED for each in ranges)
    if has_changes and rng.uniform(0.0, 1.0) < colour_share:
        power, factor, *factors = (rng.uniform(*each) for each in ranges)
        image = changed_colours(image, power, factor, factors)
    image, depth, valid = padded_depth(image, depth, crop)
    return {"image": image, "depth": depth.astype(np.float32), "valid": np.array(valid, np.int32)}


def _check_depth_options(image, depth, limit, short, crop, ranges):
    if depth.shape != image.shape[:2]:
        sizes = ["x".join(map(str, shape)) for shape in (image.shape[:2], depth.shape)]
        raise UserError(
            f"an image of {sizes[0]} pixels came with a depth of {sizes[1]}; their sizes must be "
            "equal."
        )
    if short and any(limit):
        raise UserError(
            f"short={short} and limit={tuple(limit)} both set a size. Give one, and set the other "
            "to short=0 or limit=(0, 0)."
        )
    if min(crop) < 1 or any(limit) and min(limit) < 1:
        raise UserError(
            f"crop is {tuple(crop)} and limit {tuple(limit)}, but both are sides in pixels, such "
            "as crop=(352, 704); only limit may be (0, 0), which keeps the image's own size."
        )
    for name, (low, high) in ranges.items():
        if not 0 < low <= high:
            raise UserError(
                f"{name} is {(low, high)}, but must be (low, high) with 0 < low <= high, such as "
                "(0.9, 1.1); (1.0, 1.0) changes nothing."
            )
