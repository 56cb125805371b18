"""Image and mask changed together: numpy in, numpy out, and the generator is an argument.

Images are uint8 RGB [H,W,3], masks integer [H,W] with 255 = ignored. An unlabelled image has mask
None, which every function accepts and returns. Sizes are (height, width). A result may be a view of
the input, so nothing is changed in place; `pad` and `augment` return new arrays. Resizing follows
OpenCV's conventions, with which the published recipes were trained. Of a generator only
`integers(low, high)` and `uniform(low, high)` are used.
"""

import math
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from diffseg_jax.data.colour import photometric_distortion
from diffseg_jax.data.interpolation import half_pixel_neighbours
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError

MAX_REDRAWS = 10  # of a crop that one class dominates


def keep_ratio_size(size, limit):
    """The largest size with the aspect of `size` whose sides fit `limit`, as (height, width).

    limit   (long, short) in either order; math.inf leaves the longer side free
    """
    factor = min(max(limit) / max(size), min(limit) / min(size))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def random_size(size, limit, rng, low, high):
    """`keep_ratio_size` with a limit scaled by r ~ U[low, high) and rounded down."""
    r = rng.uniform(low, high)
    return keep_ratio_size(size, [int(side * r) for side in limit])


def _full_box(size):
    return 0, 0, *size


def resize_image(image, size, box=None):
    """Bilinear, without antialiasing; within one level of OpenCV.

    box  (top, left, height, width) of the resized image; only that part is computed and returned
    """
    top, left, height, width = box or _full_box(size)
    if image.shape[:2] == tuple(size):
        return image[top : top + height, left : left + width]
    (h, w), (out_h, out_w) = image.shape[:2], size
    y0, y1, wy = half_pixel_neighbours(h, out_h, start=top, stop=top + height)
    x0, x1, wx = half_pixel_neighbours(w, out_w, start=left, stop=left + width)
    image = image[:, x0[0] : x1[-1] + 1]  # the columns that are read
    x0, x1 = x0 - x0[0], x1 - x0[0]

    rows = image.take(y0, axis=0).astype(np.float32)
    rows += (image.take(y1, axis=0) - rows) * wy[:, None, None]
    out = rows.take(x0, axis=1)
    out += (rows.take(x1, axis=1) - out) * wx[:, None]
    out += 0.5  # because the cast rounds down
    return out.astype(np.uint8)


def _nearest(n, out, start, count):
    # floor(i * n / out) by a reciprocal, so that integer quotients round as they do in OpenCV.
    return np.minimum((np.arange(start, start + count) * (1 / (out / n))).astype(np.intp), n - 1)


def resize_mask(mask, size, box=None):
    """Nearest neighbour for any integer dtype; equals OpenCV. `box` as in `resize_image`."""
    top, left, height, width = box or _full_box(size)
    if mask.shape == tuple(size):
        return mask[top : top + height, left : left + width]
    rows = _nearest(mask.shape[0], size[0], top, height)
    columns = _nearest(mask.shape[1], size[1], left, width)
    return mask.take(rows, axis=0).take(columns, axis=1)


def resize_antialiased(image, size):
    """Bilinear as in Pillow: when shrinking, a pixel averages over the area that it covers.

    image  uint8[H,W,3], returned unchanged if it has the size;  returns uint8[*size,3]
    """
    if image.shape[:2] == tuple(size):
        return image
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize(image, mask, size, box=None):
    """Both resized to `size`, or the part `box` of that."""
    return resize_image(image, size, box), None if mask is None else resize_mask(mask, size, box)


def _one_class_dominates(labels, share):
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)
    counts[IGNORE] = 0
    return not counts.any() or counts.max() / counts.sum() >= share


def random_box(size, crop, rng, labels_in=None, max_class_share=1.0):
    """A random crop of an image of `size`: (top, left, height, width), no larger than the image.

    A box in which one class has a share of max_class_share or more of the labelled pixels, or in
    which no pixel is labelled, is drawn again up to 10 times; then the last one is used. One
    without a labelled pixel is replaced by a box around a labelled pixel that is drawn, if the
    image has one: most boxes of sparse labels would teach nothing.

    labels_in        function of a box that returns its labels; None for unlabelled images, which
                     use the first box
    max_class_share  if 1 or more, no box is drawn again because of it
    """

    def draw():
        top, left = (int(rng.integers(0, max(n - c, 0) + 1)) for n, c in zip(size, crop))
        return top, left, min(size[0], crop[0]), min(size[1], crop[1])

    box = draw()
    if labels_in is None:
        return box
    for _ in range(MAX_REDRAWS if max_class_share < 1 else 0):
        if not _one_class_dominates(labels_in(box), max_class_share):
            return box
        box = draw()
    return box if (labels_in(box) != IGNORE).any() else _labelled_box(box, size, rng, labels_in)


def _labelled_box(box, size, rng, labels_in):
    """A box as large as `box` that holds a labelled pixel, if there is one; else `box`."""
    labelled = np.argwhere(labels_in(_full_box(size)) != IGNORE)
    if not len(labelled):
        return box
    pixel = labelled[int(rng.integers(0, len(labelled)))]
    corner = []
    for place, side, length in zip(pixel, box[2:], size, strict=True):
        first, last = max(place - side + 1, 0), min(place, length - side)
        corner.append(int(rng.integers(first, last + 1)))
    return *corner, *box[2:]


def random_flip(image, mask, rng, probability=0.5, axis=1):
    """Both mirrored left to right, or for axis 0 upside down, with the given probability."""
    if rng.uniform(0.0, 1.0) >= probability:
        return image, mask
    return np.flip(image, axis), None if mask is None else np.flip(mask, axis)


def rotated_part(image, mask, size, box, degrees):
    """The part `box` of both resized to `size`, turned anticlockwise about the centre of that part.

    What comes from outside the image is its mirrored continuation, and ignored (255) in the mask.
    """
    angle, half = math.radians(degrees), np.array(box[2:]) / 2
    cos, sin, centre = math.cos(angle), math.sin(angle), box[:2] + half
    reach = np.abs([[cos, sin], [sin, cos]]) @ half + 1  # rows and columns that are read, halved
    start, stop = np.floor(centre - reach).astype(int), np.ceil(centre + reach).astype(int)
    low, high = np.maximum(start, 0), np.minimum(stop, size)
    margins = np.stack([low - start, stop - high], 1)
    image, mask = resize(image, mask, size, (*low, *(high - low)))
    image = np.pad(image, (*margins, (0, 0)), mode="symmetric")

    def turned(array, method):
        (y, x), (h, w) = centre - start, half
        affine = cos, -sin, x - cos * w + sin * h, sin, cos, y - sin * w - cos * h
        read = Image.fromarray(array)
        return np.asarray(read.transform(box[:1:-1], Image.Transform.AFFINE, affine, method))

    image = turned(image, Image.Resampling.BILINEAR)
    if mask is None:
        return image, None
    mask = np.pad(mask.astype(np.int32), margins, constant_values=IGNORE)
    return image, turned(mask, Image.Resampling.NEAREST)


def _turned_part(image, mask, size, box, degrees):
    """`rotated_part`, but not turned where that would remove every labelled pixel."""
    turned = rotated_part(image, mask, size, box, degrees)
    if mask is None or (turned[1] != IGNORE).any():
        return turned
    plain = resize(image, mask, size, box)
    return plain if (plain[1] != IGNORE).any() else turned


def blurred(image, sigma):
    """The image blurred by Pillow's approximation of a Gaussian, sigma in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def in_grey(image):
    """The image in grey, as uint8[H,W,3], by the luma of ITU-R 601."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def pad(image, mask, size):
    """Both padded to `size` at the bottom and the right: the image with 0, the mask with 255.

    Returns image and mask, always new arrays, and the (height, width) of the input. Raises
    UserError if that is larger than `size`.
    """
    h, w = image.shape[:2]
    if h > size[0] or w > size[1]:
        raise UserError(
            f"an image of {h}x{w} pixels does not fit into {size[0]}x{size[1]}. Crop or resize it "
            "first, or give a larger size."
        )
    padded = np.zeros((*size, *image.shape[2:]), image.dtype)
    padded[:h, :w] = image
    if mask is None:
        return padded, None, (h, w)
    labels = np.full(size, IGNORE, mask.dtype)
    labels[:h, :w] = mask
    return padded, labels, (h, w)


def drop_small_objects(mask, minimum):
    """The mask with 255 in place of each class that covers fewer than `minimum` pixels.

    mask  integer[H,W] in 0..255;  returns a new array of the same dtype
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    return np.where(counts[mask] < minimum, mask.dtype.type(IGNORE), mask)


def center_square(image, side):
    """The centre of an image as a square, resized as guided-diffusion does.

    The image is halved by a box filter while its shorter side is at least twice `side`, resized to
    it by a bicubic filter, and cropped; of an odd remainder the left and top lose less.

    image  uint8[H,W,3];  returns uint8[side,side,3]
    Raises UserError for a side below 1.
    """
    if side < 1:
        raise UserError(
            f"the side of the square is {side}, but must be at least 1 pixel, such as 256."
        )
    resized = Image.fromarray(image)
    while min(resized.size) >= 2 * side:
        width, height = resized.size
        resized = resized.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = side / min(resized.size)
    width, height = (round(length * scale) for length in resized.size)
    resized = resized.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _check_options(image, mask, limit, short, scale, crop):
    if mask is not None and mask.shape != image.shape[:2]:
        sizes = ["x".join(map(str, shape)) for shape in (image.shape[:2], mask.shape)]
        raise UserError(
            f"an image of {sizes[0]} pixels came with a mask of {sizes[1]}; their sizes must be "
            "equal."
        )
    if short and any(limit):
        raise UserError(
            f"short={short} and limit={tuple(limit)} both set a size. Give one, and set the "
            "other to short=0 or limit=(0, 0)."
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
    rotate=0.0,
    flip=True,
    flip_vertical=False,
    photometric=False,
    grey=0.0,
    blur=0.0,
):
    """One training example: resize, crop, turn, flip, change colours, blur and pad, in this order.

    image   uint8[H,W,3];  mask   integer[H,W] or None
    limit   (long, short) sides to fit, keeping the aspect ratio; (0, 0) for the size of the image
    short   length of the shorter side, keeping the aspect ratio, in place of limit; 0 for none
    scale   (low, high): the size is multiplied by r ~ U[low, high)
    crop    (h, w); smaller images are padded; max_class_share as in `random_box`
    rotate  degrees: turned by an angle ~ U[-rotate, rotate), unless no labelled pixel would remain
    flip    whether half of them are mirrored left to right; flip_vertical: upside down
    grey    share of the images that lose their colours
    blur    pixels: blurred by sigma ~ U[0, blur)

    Returns image uint8[h,w,3]; mask int32[h,w], if there was one; valid int32[2], the (h, w) that
    is not padding.
    Raises UserError for options that contradict each other and for a mask of another size.
    """
    _check_options(image, mask, limit, short, scale, crop)
    original = image.shape[:2]
    if short:
        limit = keep_ratio_size(original, (math.inf, short))
    size = random_size(original, limit if any(limit) else original, rng, *scale)
    # The box is drawn before resizing, so that only its pixels are computed.
    labels_in = None if mask is None else partial(resize_mask, mask, size)
    box = random_box(size, crop, rng, labels_in, max_class_share)
    if rotate:
        image, mask = _turned_part(image, mask, size, box, rng.uniform(-rotate, rotate))
    else:
        image, mask = resize(image, mask, size, box)
    if flip:
        image, mask = random_flip(image, mask, rng)
    if flip_vertical:
        image, mask = random_flip(image, mask, rng, axis=0)
    if photometric:
        image = photometric_distortion(image, rng)
    if grey and rng.uniform(0.0, 1.0) < grey:
        image = in_grey(image)
    if blur:
        image = blurred(image, rng.uniform(0.0, blur))
    image, mask, valid = pad(image, mask, crop)
    example = {"image": image, "valid": np.array(valid, np.int32)}
    if mask is not None:
        example["mask"] = mask.astype(np.int32)
    return example
