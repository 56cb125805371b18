"""The ids that mask files store, as written and not as shown."""

import io
import re
import struct

import numpy as np
from PIL import Image

from diffseg_jax.data.class_advice import colour_advice, listed_colours, more_colours
from diffseg_jax.data.class_ids import SMOOTHED, MaskRules, id_table
from diffseg_jax.data.formats import LOSSY_FORMATS
from diffseg_jax.data.images import decode, read_file, read_image, require_file
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.npy import is_array, read_npy
from diffseg_jax.data.orientation import fit_mask, stored_orientation
from diffseg_jax.errors import UserError, counted

GREY_MODES = ("1", "L", "F")  # and those whose name starts with I
COLOUR_MODES = ("RGB", "RGBA")
EIGHT_BIT_MODES = ("L", "LA", *COLOUR_MODES)
PNM_EXACT = (*range(1, 256), 65535)  # largest samples after which ids can be read again
ARGMAX = "numpy.argmax(mask, axis={}).astype(numpy.uint8)"
EXPORT = "Export the masks again, as PNG of ids."
IN_COLOURS = MaskRules(id_table(1), reading="colours")


def read_ids(path, encoded=None, rules=None, others=()):
    """The ids of a mask as stored, integer [H,W]: of an image file, .npy or .npz.

    path     of the file, or its name in errors when `encoded` is given
    encoded  the bytes of such a file, never of an array, if they are in memory already
    rules    MaskRules: masks in colours are read where it tells their ids
    others   () -> colours [r, g, b] of several masks, by which an error can advise

    Grey images hold their samples, whatever the depth, and palette images their indices. Raises
    UserError for damaged files, for lossy compression, for arrays that are no map of integers, and
    where two readings are possible.
    """
    stored = _read(path, encoded, rules)
    if stored.ndim == 2:
        return stored
    ids = _ids_of_colours(stored, path, rules)
    if ids is None:
        raise UserError(f"mask {path} {_unknown_colours(_rows(stored), rules, others)}")
    return ids


def read_colours(path):
    """The colours uint8[H,W,3] of a mask, of a palette image those of its palette.

    Raises UserError as read_ids, and for a mask without colours.
    """
    stored = _read(path, None, IN_COLOURS)
    if stored.ndim == 2:
        raise UserError(f"mask {path} holds numbers ({stored.dtype}), no colours. {EXPORT}")
    return stored


def values_in(path, rules=None):
    """({stored id: pixels}, colours [r, g, b]) of a mask, as far as it can be read as either.

    Raises UserError as read_ids.
    """
    stored = _read(path, None, rules)
    if stored.ndim == 2:
        return _counts(stored), []
    ids = _ids_of_colours(stored, path, rules)
    return {} if ids is None else _counts(ids), _rows(stored)


def _counts(ids):
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def _read(path, encoded, rules):
    """Ids [H,W], or colours uint8[H,W,3], of a mask."""
    if encoded is None and is_array(path):
        require_file(path)
        return _map_in(read_npy(path, "mask"), path)
    content = read_file(path) if encoded is None else encoded
    return _stored(decode(path, content), content, path, rules)


def read_pair(image_path, mask_path, rules=None, others=()):
    """(uint8[H,W,3], ids [H,W]) of an image and its mask, both upright.

    A mask that has the size of the stored image only is turned with it; one of another size is
    returned as it is. Raises UserError as read_image and read_ids.
    """
    content = read_file(image_path)
    image = read_image(image_path, content)
    if is_array(mask_path):
        ids, orientation = read_ids(mask_path, rules=rules, others=others), 1
    else:
        encoded = read_file(mask_path)
        ids = read_ids(mask_path, encoded, rules, others)
        orientation = stored_orientation(encoded, decoded=True)
    return image, fit_mask(ids, orientation, image.shape[:2], stored_orientation(content))


# ---- arrays ------------------------------------------------------------------------------------


def _map_in(array, path):
    """An integer [H,W], or colours uint8[H,W,3], from an array as programs save masks."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8 and array.max() > 1:
        return array
    what = f"mask {path} is {array.dtype}{list(array.shape)}"
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        advice = "Save it as integers [height, width]."
        axis = 0 if array.ndim == 3 and array.shape[0] < array.shape[-1] else -1
        if array.ndim == 3 and array.dtype.kind in "biuf":
            advice = f"If it holds one channel per class, save {ARGMAX.format(axis)}."
        raise UserError(f"{what}, but a mask is an integer array [height, width]. {advice}")
    return _integers(array, path)


def _integers(array, path):
    """Floats as integers, bool as uint8, integers as they are."""
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            wrong = array[whole != array][0]
            raise UserError(
                f"mask {path} holds {wrong}, but a mask holds one class id per pixel, an integer. "
                "Save the ids, not probabilities; 255 is ignored."
            )
        return whole
    return array.astype(np.uint8) if array.dtype == bool else array


# ---- images ------------------------------------------------------------------------------------


def _stored(image, content, path, rules):
    """Ids [H,W] or colours uint8[H,W,3] of a decoded image."""
    if reason := _why_not_exact(image, content):
        raise UserError(f"mask {path} {reason} {EXPORT}")
    image = _without_alpha(image, path)
    array = np.asarray(image)
    if image.mode == "P":
        return _of_palette(image, array, path, rules)
    if image.mode in COLOUR_MODES:
        return array
    if image.mode not in GREY_MODES and image.mode[0] != "I":
        raise UserError(f"mask {path} holds colours (mode {image.mode}), no ids. {EXPORT}")
    if rules and rules.reading == "colours" and image.mode in ("1", "L"):
        return np.asarray(image.convert("RGB"))
    if image.mode == "L" and (most := _largest(image, content)) < 255:
        return ((array.astype(np.int32) * most + 127) // 255).astype(np.uint8)
    return _integers(array, path)


def _largest(image, content):
    """The largest sample of a grey image, which Pillow expands to 255."""
    if image.format == "PPM":
        return _largest_in_pnm(content)
    return 2 ** min(_depth(image, content), 8) - 1


def _largest_in_pnm(content):
    """The largest sample that the header of a PGM or PPM names, 0 if it cannot be found."""
    header = re.match(rb"\S+" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)", content)
    return int(header[3]) if header else 0


def _depth(image, content):
    """Bits per sample of a PNG, TIFF or SGI; 8 for other formats."""
    if image.format == "PNG":
        return content[24]
    if image.format == "SGI":
        return 8 * content[3]
    return max(image.tag_v2.get(258, (1,))) if image.format == "TIFF" else 8


def _why_not_exact(image, content):
    """What is wrong with a file that may not show the ids that were meant, or ""."""
    if _is_lossy(image, content):
        return "is compressed as a JPEG is, which changes ids."
    if image.mode in EIGHT_BIT_MODES and _depth(image, content) > 8:
        return "has samples of 16 bits, of which only 8 can be read."
    if image.mode in COLOUR_MODES and _has_16_bit_pixels(image, content):
        return "has colours of 16 bits per pixel, which are scaled when they are read."
    if image.format == "PPM" and image.mode == "1":
        return "is a bitmap whose 0 is white, so programs do not agree on its ids."
    if image.format == "PPM" and not _is_exact_pnm(image.mode, content):
        return "has samples that are scaled when they are read."
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:
        return "is a TIFF whose 0 is white, so programs do not agree on its ids."
    try:
        pages = _pages(image, content)
    except Exception as error:  # Pillow raises many types on damaged files
        return f"holds several images, of which one cannot be read ({error})."
    if pages > 1:
        return f"holds {pages} images, so it is not clear which one is the mask."
    return ""


def _has_16_bit_pixels(image, content):
    """Whether a TGA or BMP in colours stores 5 or 6 bits per channel."""
    if image.format == "TGA":
        return content[16] == 16
    if image.format not in ("BMP", "DIB"):
        return False
    header = 14 * (image.format == "BMP")
    is_core = content[header] == 12  # the header of OS/2, whose sizes have 16 bits
    return content[header + (10 if is_core else 14)] == 16


def _is_exact_pnm(mode, content):
    """Whether Pillow reads the samples of a PGM or PPM so that they can be told again."""
    if mode == "F":  # a PFM, whose header holds a scale instead
        return True
    return _largest_in_pnm(content) in ((255,) if mode in COLOUR_MODES else PNM_EXACT)


def _is_lossy(image, content):
    if image.format == "TIFF":
        return image.tag_v2.get(259, 1) in (6, 7, 33003, 33005, 34712, 34892, 50001)
    if image.format == "WEBP":
        return b"VP8L" not in _webp_chunks(content)
    return image.format in LOSSY_FORMATS


def _webp_chunks(content):
    """The kinds of the chunks of a WebP file."""
    kinds, start = set(), 12
    while start + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, start)
        kinds.add(kind)
        start += 8 + length + length % 2
    return kinds


def _pages(image, content):
    """The number of images in a file; smaller versions and masks in a TIFF do not count."""
    if image.format == "PNG":
        return image.n_frames
    if image.format not in ("TIFF", "GIF", "WEBP"):
        return 1
    with Image.open(io.BytesIO(content), formats=[image.format]) as pages:
        if image.format != "TIFF":
            return pages.n_frames
        whole = 0
        for index in range(pages.n_frames):
            pages.seek(index)
            whole += not pages.tag_v2.get(254, 0)
        return whole


def _without_alpha(image, path):
    """The image without its alpha channel, which must be opaque."""
    if not image.mode.endswith(("A", "a")) or image.mode == "LAB":
        return image
    if image.getchannel(image.getbands()[-1]).getextrema()[0] < 255:
        raise UserError(
            f"mask {path} has transparent pixels, and it is not clear which ids they have. Save it "
            "without transparency, with 255 for ignored pixels."
        )
    return image.convert({"LA": "L", "PA": "P"}.get(image.mode, "RGB"))


# ---- colours -----------------------------------------------------------------------------------


def _of_palette(image, indices, path, rules):
    """The indices of a palette image, or its colours where these tell the classes.

    Raises UserError where both are ids, but not the same ones.
    """
    reading = rules.reading if rules else ""
    if reading == "ids":
        return indices
    palette = np.zeros((256, 3), np.uint8)
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(colours)] = colours
    if reading == "colours":
        return palette[indices]
    if image.format != "GIF" and not (rules and rules.colours) and not _is_grey(palette):
        return indices
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    shown = _ids_shown(palette[used], rules)
    if shown is None and image.format == "GIF":
        raise UserError(
            f"mask {path} is a GIF in colours, whose indices programs renumber when they save it. "
            f"{EXPORT}"
        )
    if shown is None or np.array_equal(shown, used):
        return indices
    at = np.flatnonzero(shown != used)[0]
    raise UserError(
        f"mask {path} has index {used[at]} where its palette shows {palette[used[at]].tolist()}, "
        f"which is id {shown[at]}, so two readings are possible. {_which(path, rules)}"
    )


def _ids_shown(colours, rules):
    """The ids that the colours of a palette show, if every one is known; else None."""
    if _is_grey(colours):
        values = colours[:, 0].astype(int)
        classes = [rules.class_of(value) for value in values] if rules else [-1]
        in_between = [c for c, value in zip(classes, values) if value not in (0, 255)]
        if -1 not in classes and set(in_between) - {IGNORE}:  # else a picture in black and white
            return values
    known = rules.colours if rules else {}
    shown = np.array([known.get(tuple(rgb), -2) for rgb in colours.tolist()])
    return shown if (shown > -2).all() else None


def _is_grey(colours):
    return (colours == colours[:, :1]).all()


def _which(path, rules):
    if rules.colours:
        return f'Set "masks": "ids" or "masks": "colours" in {rules.file}.'
    grey = f"Image.open(path).convert('L').save('{path.rpartition('.')[0]}.png')"
    ids = f'set "masks": "ids" in {rules.file}' if rules.entries else "save its indices as grey PNG"
    return f"If the grey values are meant, save them, in Python: {grey}; else {ids}."


def _ids_of_colours(colours, path, rules):
    """The ids of a mask whose channels are equal, or whose colours are those of the classes.

    None where a colour is not known.
    """
    known, reading = (rules.colours, rules.reading) if rules else ({}, "")
    grey = reading != "colours" and _is_grey(colours.reshape(-1, 3))
    shown = _look_up(colours, known) if known and reading != "ids" else None
    if shown is None:
        return colours[..., 0] if grey else None
    values = np.unique(colours[..., 0]).tolist() if grey else []
    if any(known[value, value, value] != value and rules.class_of(value) >= 0 for value in values):
        raise UserError(
            f"mask {path} is grey, and its values are ids as well as colours of other classes. "
            f"{_which(path, rules)}"
        )
    return shown


def _rows(colours):
    """The different colours of a mask as lists."""
    packed = np.unique(_packed(colours)).tolist()
    return [[value >> 16, value >> 8 & 255, value & 255] for value in packed]


def _look_up(colours, known):
    """The ids int32[H,W] of colours, or None if one of them is not known."""
    keys = np.array([_packed(np.array(rgb, np.uint8)) for rgb in known])
    order, packed = np.argsort(keys), _packed(colours)
    found = order[np.minimum(np.searchsorted(keys[order], packed), len(keys) - 1)]
    if not np.array_equal(keys[found], packed):
        return None
    return np.array(list(known.values()), np.int32)[found]


def _packed(colours):
    """Colours uint8[..., 3] as integers."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _unknown_colours(rows, rules, others):
    """The end of an error about colours that are of no class, or of several."""
    known = rules.colours if rules else {}
    unknown = [row for row in rows if tuple(row) not in known]
    if len(rows) >= IGNORE or (known and len(unknown) > SMOOTHED):
        return (
            f"holds {counted(len(rows), 'colour')}, as photographs and smoothed or lossy images "
            f"do. {EXPORT}"
        )
    if not rules or not rules.file:
        listed = listed_colours(unknown)
        return f"holds {listed}, but masks of this data set hold class ids. {EXPORT}"
    if others:
        rows = sorted([*rows, *(row for row in others() if row not in rows)])
    unknown = [row for row in rows if tuple(row) not in known]
    if known and rules.reading != "ids":
        return (
            f"holds colours that belong to no class, or to several. The masks hold "
            f"{listed_colours(unknown)} of that kind. {more_colours(unknown, rules)}"
        )
    return f"holds colours. The masks hold {listed_colours(rows)}. {colour_advice(rows, rules)}"
