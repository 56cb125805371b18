"""Pictures, label maps and classes.json in folders: found, paired, read and checked."""

import io
import json
import os
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.errors import UserError, choose, shortened
from diffseg_jax.storage.paths import BUCKET, in_bucket, open_path, reachable, read_bytes

MAX_PIXELS = 178_000_000  # larger headers are taken for decompression bombs, as Pillow's own limit
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
MASK_ENDINGS = (".png", ".npy")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # Pillow's others may start programs (EPS)
LONGEST_NAME = 200  # characters of a class name


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Images, with label maps or without, as a random-access sequence; files open when read.

    source[i] is {"image": uint8[H,W,3], "mask": int32[H,W] with 255 = ignored, "name": str},
    without "mask" for unlabelled pictures, with "class": int32 where pictures have one; the arrays
    may be read-only. Bad files raise UserError here, by name.

    images  paths
    masks   paths in the same order, or () for unlabelled pictures
    names   one string per image, the same on every machine; no two are equal
    labels  class names and colours, or None
    table   int32[n], raw id on disk -> class, 255 where ignored, -1 where the id is a mistake
    hint    one sentence for whoever meets such an id
    report  sentences about what opening found: files without partner and choices made
    classes names of the classes that whole pictures belong to, or (); ranks: the class of each
    """

    images: tuple[str, ...] = field(repr=False)
    masks: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    labels: object = None
    table: np.ndarray | None = field(default=None, repr=False)
    hint: str = ""
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    ranks: tuple[int, ...] = field(default=(), repr=False)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        item = {"image": read_image(self.images[index]), "name": self.names[index]}
        if self.masks:
            raw = read_ids(self.masks[index])
            require_same_size(item["image"], raw, self.images[index], self.masks[index])
            item["mask"] = to_classes(raw, self.table, self.masks[index], self.hint)
        if self.ranks:
            item["class"] = np.int32(self.ranks[index])
        return item


def read_image(path, encoded=None, turned=False):
    """The picture as uint8[H,W,3], RGB; grey is repeated, transparency dropped.

    path     of the file, or what messages call it when `encoded` is given
    encoded  the bytes of such a file, if they are in memory already
    turned   whether the EXIF orientation is applied; it is not beside label maps, which are drawn
             on the stored pixels and would not match

    Raises UserError if the file cannot be decoded whole, has 16 bits per channel or over 178
    megapixels.
    """
    with _opened(path, encoded) as picture:
        if picture.mode[0] in "IF":
            raise UserError(
                f"image {path} has more than 8 bits per channel (mode {picture.mode}), but images "
                "are 8-bit. Save it as an 8-bit PNG or JPEG."
            )
        picture = upright(picture) if turned else picture
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow reports damaged EXIF by many types
        return picture


def read_ids(path, encoded=None):
    """Raw ids of a label map as stored, integer [H,W]: PNG (grey, palette, 16 bit) or .npy.

    path and encoded as in read_image; encoded holds no .npy.
    Raises UserError for coloured masks, non-integer or not two-dimensional arrays, unreadable
    files.
    """
    if encoded is None and path.lower().endswith(".npy"):
        return _read_array(path)
    with _opened(path, encoded) as picture:
        if len(picture.getbands()) != 1 or picture.mode == "F":
            raise UserError(
                f"mask {path} holds colours (mode {picture.mode}), but a mask holds one class id "
                "per pixel. Save it as an 8-bit grey or palette PNG, 16-bit grey PNG, or integer "
                ".npy."
            )
        ids = np.asarray(picture)
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def _read_array(path):
    _require_file(path)
    try:
        ids = array_of(read_bytes(path))
    except Exception as error:  # numpy reports damage by many types
        raise UserError(
            f"cannot read mask {path}: {shortened(str(error), 200)}. "
            "Write it again with numpy.save."
        ) from None
    if ids.dtype.kind not in "biu" or ids.ndim != 2:
        raise UserError(
            f"mask {path} is {ids.dtype}{list(ids.shape)}, but a mask is an integer array [height, "
            "width]. Save it as mask.astype(numpy.uint8)."
        )
    return ids.astype(np.uint8) if ids.dtype == bool else ids


NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def array_of(content: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, read-only, without memory of its own.

    Raises an error of any type for other bytes, for Python objects, and where the header does not
    tell the number of bytes that follow.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise ValueError(f"version {version} of the format holds no plain array")
    shape, fortran, dtype = NPY_HEADERS[version](file)
    data = memoryview(content)[file.tell() :]
    if dtype.hasobject or min(shape, default=1) < 1:
        raise ValueError(f"{len(data)} bytes are no array of {dtype} {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _require_file(path):
    """UserError for what is no file of bytes, such as a folder or a pipe, which would not end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a file. Remove it.")


PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour
ADAM7 = (  # first column and row, steps along both, of the seven passes of an interlaced picture
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip


def png_parts(content: bytes) -> list[tuple[bytes, memoryview]]:
    """(kind, data) of the chunks of a PNG file; Pillow passes over damage that this does not.

    Raises ValueError or struct.error for a file that is cut, and where a checksum differs.
    """
    view, place, parts = memoryview(content), len(PNG_START), []
    while not parts or parts[-1][0] != b"IEND":
        (length,) = struct.unpack_from(">I", content, place)
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        named = view[place + 4 : place + 8 + length]
        if zlib.crc32(named) != checksum:
            raise ValueError(f"the checksum of its part {bytes(named[:4])} differs")
        parts.append((bytes(named[:4]), named[4:]))
        place += 12 + length
    return parts


def has_all_rows(parts: list[tuple[bytes, memoryview]]) -> bool:
    """Whether a PNG file holds all the pixels that its header tells of; Pillow leaves them zeros.

    parts  as `png_parts` gives them
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", parts[0][1])
    bits, missing = depth * PNG_CHANNELS[colour], 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        missing += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    inflater, data = zlib.decompressobj(), b"".join(d for kind, d in parts if kind == b"IDAT")
    while missing > 0 and (block := inflater.decompress(data, 2**22)):
        missing, data = missing - len(block), inflater.unconsumed_tail
    return missing <= 0


@contextmanager
def _opened(path, encoded):
    """`with _opened(...) as picture`: a decoded Pillow image; every failure is a UserError."""
    if encoded is None:
        _require_file(path)
    try:
        content = read_bytes(path) if encoded is None else encoded
        parts = png_parts(content) if content[:8] == PNG_START else ()
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height}")
            picture.load()
            # rows that are missing are zeros; so may be those of a mask, which takes a closer look
            last = np.asarray(picture.crop((0, height - 1, width, height)))
            if parts and (parts[0][1][12] or not last.any()) and not has_all_rows(parts):
                raise ValueError("it holds fewer rows of pixels than it says")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} is too large ({error}): pictures of at most {MAX_PIXELS} pixels are opened. "
            "Cut it into tiles."
        ) from None
    except UnidentifiedImageError:
        raise UserError(
            f"cannot read {path}: it is no whole picture of the kinds {', '.join(FORMATS)}. "
            "Replace or remove the file."
        ) from None
    except Exception as error:  # Pillow reports damage by many types
        error = "it is cut" if isinstance(error, struct.error) else error
        raise UserError(f"cannot read {path}: {error}. Replace or remove the file.") from None
    yield picture


def require_same_size(image, mask, image_path, mask_path):
    """UserError with both sizes and paths unless the mask has the height and width of the image."""
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise UserError(
            f"mask {mask_path} is {mask_width}x{mask_height}, but its image {image_path} is "
            f"{width}x{height} (width x height). Resize the mask with nearest neighbour."
        )


# Found by a search: every prefix is about as far apart as its length allows, and far from black and
# from the vermillion of errors, in CIE Lab, for full colour vision and as each of the three kinds
# of dichromats sees it. The first 12 are at least 21 apart, 20 are 15, 40 are 10, 150 are 5.
DISTINCT = (
    "960f0f 6978ff f0d24b 4b3c78 5affa5 b4d2ff 87785a b4b4a5 871e4b 2dc35a 780fa5 c35a96 c378d2 "
    "96ff87 f087c3 a53cb4 78b4ff f08700 d20f3c 00692d 78b478 004bd2 e1d2e1 8787f0 d2f0d2 965a69 "
    "a54b00 d2873c e1e11e 781e5a 789687 694b78 a5d25a 965aa5 2d4b00 69e178 2d96a5 4b4b96 b4b42d "
    "a5875a 96d296 785ad2 b4692d c3d2c3 4b7887 00c3d2 ff87ff c35ad2 f0a5e1 e1e1ff 96a587 d2f069 "
    "c396a5 b4e1b4 960f96 e169b4 963c4b 784b69 d2c300 874b2d d2a55a 0078c3 008778 d2b4c3 5a3c2d "
    "f02d4b e19678 69783c ffe1a5 c3f0e1 2d2db4 4be187 2d3c87 ffb478 3cb43c c396e1 783cc3 96c396 "
    "695ae1 3c695a 87870f f01e78 785a1e 69693c 6978b4 4ba569 2db4a5 b42d1e 1e4b3c 5a5aa5 96003c "
    "ff4b96 b46978 8778f0 f01e96 4b3c5a 782d1e 1ee1d2 2d964b 96f087 96a5c3 692d69 782da5 e1f04b "
    "785a87 874b96 e17869 694b5a e1a5f0 7887c3 b4d2b4 f0692d a54b5a a587b4 964b78 7887e1 87c387 "
    "d2e169 781e78 e1b44b 5af0f0 f0964b b4a500 a5d2a5 a5e1a5 e1d22d a5d2f0 69a5f0 a5c369 962d78 "
    "5a5a4b b44bc3 007869 c3e1c3 87962d 784b87 693c69 5a3c4b d296b4 695ab4 9669a5 4bd2e1 e1c33c "
    "c35a4b 3c4bb4 b487c3 c3002d 870f2d 783c87 d22d69 691e87 b45a00 c3e196 a50000 78ffb4 78784b "
    "4b2d96 78692d 4b8796 c3b4b4 5a78e1 c369a5 b4c3ff 78d278 c3a5d2 a52da5 d2965a c35ab4 a55a87 "
    "b45a78 1ea5d2 6996e1 c3f078 c369c3 5a69f0 8778d2 005ac3 4b3cc3 872db4 6969e1 d2c3d2 c387d2 "
    "f078f0 d2e1d2 784bd2 96b487 c33c2d d26987 c38700 2d5a5a b40f5a c3a596 a59696 87b4c3 00b4e1 "
    "7887ff 782d3c f0a569 f07878 ffb4e1 c3e15a 005ae1 a5964b 5ad24b d23c3c d2d269 b4784b 5ac3ff "
    "4b8769 0f5a00 b4f0c3 698787 e1695a d2692d 69b4b4 b40096 f0d2f0 f0b42d 87c3f0 b4d287 96693c "
    "b4c3a5 ffe15a 2dd269 00ffff a5a52d 5a3c87 e15a69 69c3a5 b4a569 5ac33c 780096 6996ff c34bb4 "
    "a57800 a59678 e10f87 4b5a1e 69f096 5a2db4 e1963c 1ea52d c378a5 b40f0f 87b496 ff8787 96c3d2 "
    "00d2b4 a55ad2 2df078 a5e1ff d2c396 78f0d2 e1f096 c34b1e"
)


def distinct_colours(count):
    """`count` <= 255 different colours in 0..255; the first do not depend on the count.

    About 20 of them are told apart at a glance, by colour-blind readers too.
    """
    return tuple(tuple(bytes.fromhex(colour)) for colour in DISTINCT.split()[:count])


def numbered_labels(num_classes):
    """Labels class_0 .. class_{K-1} with generated colours, for sets that name no classes."""
    return Labels(tuple(f"class_{k}" for k in range(num_classes)), distinct_colours(num_classes))


def id_table(num_classes, *, ignore=(), zero_is_ignored=False):
    """int32[n >= 256] for to_classes: ids 0..K-1 stay, 255 and `ignore` become 255, the rest is -1.

    With zero_is_ignored the stored ids are 1..K: 0 becomes 255 and k becomes k-1 (ADE20K's rule).
    Raises UserError if a class would fall on the id 255.
    """
    first = int(zero_is_ignored)
    if not 1 <= num_classes <= IGNORE - first:
        raise UserError(
            f"num_classes is {num_classes}, but 1 to {IGNORE - first} classes fit beside the "
            "ignore label 255. Give the number of classes that the masks hold."
        )
    table = np.full(max([256, *(i + 1 for i in ignore)]), -1, np.int32)
    table[first : first + num_classes] = np.arange(num_classes)
    table[[*ignore, *range(first), IGNORE]] = IGNORE
    return table


def read_classes(file, num_classes, ignore=()):
    """(Labels, id table) of a classes.json, or of num_classes where there is no such file.

    ignore  ids on disk in 0..65535 that become 255, besides those that the file lists

    {"names": [str, ...], "palette": [[r, g, b], ...], "ignore": [id, ...], "zero_is_ignored":
    bool}; all but the names may be left out. Ids that are ignored keep their place among the
    classes, if they have one, and the class is unscored. With "zero_is_ignored" the stored ids are
    1..K and the names are those of 1..K.
    """
    if not _integers(list(ignore), 65535):
        raise UserError(f"ignore is {ignore}, but must hold ids in 0..65535, such as (0,).")
    if not file.exists():
        if num_classes < 1:
            raise UserError(
                f"there is no {file} and num_classes is {num_classes}, so the classes are unknown. "
                'Write {"names": [...], "palette": [[r, g, b], ...]} into it, or give num_classes.'
            )
        table = id_table(num_classes, ignore=ignore)
        return _without_ignored(numbered_labels(num_classes), table), table
    try:
        entries = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}. It must be JSON.") from None
    if not isinstance(entries, dict):
        raise UserError(f'{file} is not an object. It must read {{"names": [...], ...}}.')
    for key in entries:
        choose(CLASSES_KEYS, key, f"key in {file}")
    entries = CLASSES_KEYS | entries
    for wrong, sentence in _wrong_classes(**entries, num_classes=num_classes):
        if wrong:
            raise UserError(f"{file}: {sentence}.")
    names, palette = entries["names"], entries["palette"] or distinct_colours(len(entries["names"]))
    table = id_table(
        len(names), ignore=(*entries["ignore"], *ignore), zero_is_ignored=entries["zero_is_ignored"]
    )
    labels = Labels(tuple(names), tuple(tuple(colour) for colour in palette))
    return _without_ignored(labels, table), table


def _each_once(pairs):
    """A JSON object as a dict; ValueError for a key that is given twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key is given twice")
    return entries


def _without_ignored(labels, table):
    """Labels whose unscored classes are those that no id on disk becomes."""
    unscored = set(range(len(labels.names))) - set(table.tolist())
    return replace(labels, unscored=tuple(sorted(unscored)))


CLASSES_KEYS = {"names": [], "palette": [], "ignore": [], "zero_is_ignored": False}


def _wrong_classes(names, palette, ignore, zero_is_ignored, num_classes):
    """(is it wrong, sentence) for each rule of classes.json, which people write by hand."""
    named = isinstance(names, list) and names and all(map(_is_name, names))
    yield (
        not named or len(set(names)) < len(names),
        f"names must be a list of different strings, of 1 to {LONGEST_NAME} printable characters",
    )
    yield (
        num_classes not in (0, len(names)),
        f"it names {len(names)} classes, but num_classes is {num_classes}",
    )
    rows = isinstance(palette, list) and all(
        _integers(row, 255) and len(row) == 3 for row in palette
    )
    yield (
        not rows or len(palette) not in (0, len(names)),
        f"palette must hold one [r, g, b] in 0..255 for each of the {len(names)} names",
    )
    yield not _integers(ignore, 65535), "ignore must be a list of ids in 0..65535"
    yield not isinstance(zero_is_ignored, bool), "zero_is_ignored must be true or false"


def _is_name(value):
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _integers(values, most):
    """Whether `values` is a list of integers in 0..most."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= most for value in values
    )


def to_classes(raw, table, path, hint=""):
    """Raw ids, integer [H,W], to int32[H,W] classes; -1 in signed arrays counts as 255.

    Raises UserError with the file and the smallest id that the table does not know.
    """
    if raw.dtype == np.uint8 and len(table) > 255:
        mask = table.take(raw)  # no index can lie outside: the common case, checked by one minimum
        bad = mask.min() < 0
    else:
        raw = np.where(raw == -1, np.int32(IGNORE), raw) if raw.dtype.kind == "i" else raw
        outside = (raw < 0) | (raw >= len(table))
        mask = np.where(outside, -1, table[np.where(outside, 0, raw)])
        bad = mask.min() < 0
    if bad:
        classes = np.flatnonzero((table >= 0) & (table != IGNORE))
        ignored = np.flatnonzero(table == IGNORE)
        raise UserError(
            f"mask {path} has class id {raw[mask < 0].min()}, but classes are {_ranges(classes)} "
            f"({_ranges(ignored)} is ignored). {hint}".rstrip()
        )
    return mask


def _ranges(ids):
    """Sorted integers in words: "0..10", "0..6, 9, 255"; long lists are cut."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if len(run)]
    return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")


def list_files(folder, endings):
    """Paths below `folder` relative to it, with "/", sorted; hidden files and folders are left out.

    Raises UserError if the folder is missing (with its neighbours) or holds no such file.
    """
    folder = open_path(folder)
    with reachable(folder):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder. {_what_is_there(folder)}")
        found = files_below(folder, endings)
    if not found:
        raise UserError(
            f"{folder} holds no file that ends with {' '.join(endings)}. Check the path."
        )
    return found


def files_below(folder, endings):
    """As list_files, but [] where nothing is."""
    found, root = [], Path(str(folder).removeprefix(BUCKET))
    remote = in_bucket(folder)
    walk = folder.walk(on_error=_unless_empty) if remote else os.walk(root, followlinks=True)
    for base, folders, files in walk:
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (remote or not _leads_back(Path(base, name)))
        ]
        below = Path(str(base).removeprefix(BUCKET)).relative_to(root).as_posix()
        prefix = "" if below == "." else below + "/"
        found += [
            prefix + name
            for name in files
            if name.lower().endswith(endings) and not name.startswith(".")
        ]
    return sorted(found)


def _leads_back(folder):
    """Whether a folder is a link to one that it lies in, which a walk would enter without end."""
    if not folder.is_symlink():
        return False
    target = os.path.realpath(folder)
    return any(os.path.realpath(above) == target for above in folder.parents)


def _unless_empty(error):
    """Raises what a walk in a bucket would pass over, but for folders that are not there."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _what_is_there(folder):
    """A sentence: the nearest folder above that exists, and the folders in it."""
    if in_bucket(folder):
        return f"To see what is there: gcloud storage ls {folder.parent}"
    above = next((parent for parent in folder.parents if parent.is_dir()), Path("/"))
    folders = sorted(entry.name for entry in above.iterdir() if entry.is_dir())[:12]
    return f"Folders in {above}: {', '.join(folders) or 'none'}."


def by_stem(files, folder, cut=""):
    """{relative path without ending: file} of the stems that end with `cut`, which is dropped.

    Raises UserError if none does, or two files share a stem, since pairs would be ambiguous.
    """
    stems = {}
    for file in files:
        stem = file.rpartition(".")[0]
        if not stem.endswith(cut):
            continue
        stem = stem.removesuffix(cut)
        if stem in stems:
            raise UserError(
                f"{stems[stem]} and {file} in {folder} differ in their ending only, so which one "
                "belongs to the pair is not clear. Remove or rename one."
            )
        stems[stem] = file
    if not stems:
        raise UserError(f"no file in {folder} has a name that ends with {cut}. Check the layout.")
    return stems


def unpaired(images, masks):
    """(stems of images without mask, stems of masks without image), both sorted."""
    return sorted(set(images) - set(masks)), sorted(set(masks) - set(images))


def pair(image_folder, images, mask_folder, masks):
    """(image paths, mask paths, stems, report) of what `by_stem` found, sorted by stem.

    Masks without image are only reported. Raises UserError naming the first image without mask.
    """
    no_mask, no_image = unpaired(images, masks)
    if no_mask:
        first = images[no_mask[0]]
        raise UserError(
            f"{len(no_mask)} of {len(images)} images in {image_folder} have no mask in "
            f"{mask_folder}; the first is {first}. Add the masks (same name, .png or .npy) or move "
            "the images away."
        )
    report = ()
    if no_image:
        first = masks[no_image[0]]
        report = (f"{len(no_image)} masks in {mask_folder} have no image; the first is {first}.",)
    stems = tuple(sorted(images))
    image_paths = tuple(f"{image_folder}/{images[stem]}" for stem in stems)
    return image_paths, tuple(f"{mask_folder}/{masks[stem]}" for stem in stems), stems, report


def open_pairs(
    image_folder, mask_folder, labels, table, *, image_tail="", mask_tail="", keep=None, hint=""
):
    """FolderSource of the stems in both folders; tails such as _leftImg8bit are no part of them.

    keep  stems to open, or None for all; a stem without image is an error
    """
    images = by_stem(list_files(image_folder, IMAGE_ENDINGS), image_folder, image_tail)
    masks = by_stem(list_files(mask_folder, MASK_ENDINGS), mask_folder, mask_tail)
    if keep is not None:
        missing = [stem for stem in keep if stem not in images]
        if missing:
            raise UserError(
                f"{len(missing)} listed images are not in {image_folder}; the first is "
                f"{missing[0]}. Complete the folder or the list."
            )
        # What the list leaves out belongs to other splits and is no finding.
        images = {stem: images[stem] for stem in keep}
        masks = {stem: masks[stem] for stem in keep if stem in masks}
    paths, mask_paths, stems, report = pair(image_folder, images, mask_folder, masks)
    names = tuple(stem + image_tail for stem in stems)
    return FolderSource(paths, mask_paths, names, labels, table, hint, report)


def _prefix(file):
    start, underscore, _ = file.rpartition("/")[2].partition("_")
    return start if underscore else ""


def _parent(file):
    return file.rpartition("/")[0].rpartition("/")[2]


CLASSES_OF_PICTURES = {  # option -> (class of a relative path or "", what an example looks like)
    "prefix": (_prefix, 'a name that starts with its class and "_", such as cat_0001.jpg'),
    "folder": (_parent, "a folder named after its class, such as cat/0001.jpg"),
}


def classes_of_pictures(how, folder, files):
    """(class names, sorted; class of each file) that the file names tell, ((), ()) for how = "".

    how    "prefix": the part of the name before the first "_"; "folder": the folder that it is in
    files  paths relative to `folder`, with "/"
    Raises UserError if a file tells none, or all tell the same.
    """
    if not how:
        return (), ()
    class_of, form = choose(CLASSES_OF_PICTURES, how, "classes")
    found = [class_of(file) for file in files]
    if "" in found:
        raise UserError(
            f"classes={how} needs {form}, but {found.count('')} of {len(files)} pictures in "
            f"{folder} have none; the first is {files[found.index('')]}. Rename or move them, or "
            "give classes=''."
        )
    names = sorted(set(found))
    if len(names) == 1:
        raise UserError(
            f"classes={how} finds one class only in {folder}, {names[0]}, so there is nothing to "
            f"tell apart. Give every picture {form}, or give classes=''."
        )
    rank = {name: k for k, name in enumerate(names)}
    return tuple(names), tuple(rank[name] for name in found)


def require_folder(path, name, layout):
    """`path` as `open_path` gives it; UserError with the layout that dataset `name` needs.

    Raises it where there is no such folder.
    """
    if not path:
        raise UserError(
            f"path is empty, but dataset {name} is read from a folder with {layout}. Give path."
        )
    root = open_path(path)
    with reachable(root):
        if not root.is_dir():
            raise UserError(
                f"path {path} is not a folder. Dataset {name} needs one with {layout}."
            )
    return root
