"""Which images below a folder are masks, so that unlabelled images do not contain them.

Four signs are combined: the name of a folder, an addition to the name of the file, another image of
the same name, and the content, few grey levels or colours.
"""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.data.files import LOSSY_ENDINGS, ends_with
from diffseg_jax.data.formats import image_endings, image_formats
from diffseg_jax.errors import counted
from diffseg_jax.storage.paths import read_bytes

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos")
MASK_WORDS = (
    "mask|masks|label|labels|labelid|labelids|labeltrainids|instanceids|annotation|annotations|"
    "annot|annots|anno|gt|gts|gtfine|gtcoarse|groundtruth|ground_truth|panoptic|seg|segs|segmap|segmaps|segmentation|"
    "segmentations|semantic|trimap|trimaps|matte|mattes|labelmap|labelmaps"
)
MASK_FOLDER = re.compile(rf"(.*_)?({MASK_WORDS}|segmentation(class|object)\w*)(_.*)?")
MASK_NAME = re.compile(  # before and after the name of the image
    rf"((?:{MASK_WORDS})_)?(.*?)((?:_(?:{MASK_WORDS}|colou?r|l))+)?"
)
IMAGE_NAME = re.compile(r"(.*?)(_(leftimg8bit|image|img|rgb|photo|sat|orig))?")
SAMPLE = 32  # files of a group whose content is read; all of them if they differ
FEW = 64  # grey levels or colours that a mask has at most
AREA_OF_EACH = 8  # pixels of each level, on average, at least
FLAT_SHARE = 0.5  # of the pixels of a flat image that have one of its FEW commonest colours
GREY, COLOUR, BLANK, FLAT = "few grey levels", "few colours", "one colour", "flat areas"
MAX_REASONS = 4  # in a sentence
KEEP_OPTION = "To take them as images: --config.unlabelled.options.keep_masks=True."


def is_mask_folder(name: str) -> bool:
    """Whether a folder is named as those of masks are: labels, train_masks, SegmentationClass."""
    return bool(MASK_FOLDER.fullmatch(_plain(name)))


def is_image_folder(name: str) -> bool:
    """Whether a folder is named as those of images are: images, JPEGImages, leftImg8bit."""
    return _plain(name).replace("_", "") in IMAGE_FOLDERS


def _plain(name):
    """A name in lower case with _ for every other sign."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def without_masks(
    root: Path, files: Sequence[str], by_name: bool = True, remedy: str = KEEP_OPTION
) -> tuple[list[str], tuple[str, ...]]:
    """The files that are no masks, and a sentence about the others.

    files    paths of images relative to root, with "/"
    by_name  whether names of folders and files count; not where they name classes
    remedy   the sentence that says how to take them all the same

    Masks are: files with few levels in a folder or with a name of masks, or with the name of
    another image; flat files with such a name and that of another image; grey ones with few levels,
    if not all files have few. If nothing else is left, all are images.
    """
    endings = image_endings()
    signs = {file: _Signs(file, by_name, endings) for file in files}
    _look(lambda file: content_of(f"{root}/{file}"), signs)
    images = Counter(each.stem for each in signs.values() if not each.is_suspect)
    some_have_many = any(not each.has_few for each in signs.values())
    masks = {}
    for file, each in signs.items():
        if reason := each.reason(images[each.stem] > 0, some_have_many):
            masks[file] = reason
    if not masks and some_have_many:
        return list(files), ()
    if len(masks) in (0, len(files)):
        return list(files), (
            f"all {len(files)} images in {root} look like masks, such as {files[0]}; they are "
            "taken as images, since there are no others.",
        )
    kept = [file for file in files if file not in masks]
    return kept, (f"{_sentence(root, masks, len(files))} {remedy}",)


class _Signs:
    """What speaks for a file being a mask.

    stem     name without ending and without what masks and images add to it
    named    whether a folder, or the name of the file, is one of masks
    content  GREY, COLOUR, BLANK or "", once it is known
    """

    def __init__(self, file, by_name, endings):
        *folders, name = file.split("/")
        name = name.rpartition(".")[0]
        while ends_with(name, endings):  # a.jpg.png is the mask of a.jpg
            name = name.rpartition(".")[0]
        plain = _plain(name)
        before, stem, after = MASK_NAME.fullmatch(plain).groups()
        self.folder = next((f for f in folders if is_mask_folder(f)), "") if by_name else ""
        self.affixed = by_name and bool(stem and (before or after))
        self.stem = stem if self.affixed else IMAGE_NAME.fullmatch(plain)[1] if by_name else plain
        self.is_lossy = ends_with(file, LOSSY_ENDINGS)
        self.group = file.rpartition(".")[2].lower(), self.named
        self.content = ""

    @property
    def named(self):
        return bool(self.folder or self.affixed)

    @property
    def has_few(self):
        return self.content in (GREY, COLOUR, BLANK)

    @property
    def is_suspect(self):
        return self.named or self.has_few

    def reason(self, has_image, some_have_many):
        """Why the file is a mask, or ""."""
        if self.folder and (self.has_few or (has_image and self.content)):
            return f"in a folder {self.folder}"
        if has_image and (self.has_few or (self.affixed and self.content)):
            return "with the name of another image"
        if self.affixed and self.has_few:
            return f"with {self.content} and a name of masks"
        return f"with {GREY}" if self.content == GREY and some_have_many else ""


def _look(content: Callable[[str], str], signs: dict[str, _Signs]):
    """Sets the content of files; of lossy formats only where the name is one of masks."""
    groups = defaultdict(list)
    for file, each in signs.items():
        if each.named or not each.is_lossy:
            groups[each.group].append(file)
    for group in groups.values():
        _look_at(content, signs, group)


def _look_at(content, signs, group, by_parent=True):
    """Sets the content of the files of a group; it is not read completely if a sample agrees."""
    sample = np.linspace(0, len(group) - 1, min(len(group), SAMPLE)).astype(int)
    found = {group[index]: content(group[index]) for index in sample}
    if by_parent and len(set(found.values())) > 1 and len(group) > len(found):
        parents = defaultdict(list)
        for file in group:
            parents[file.rpartition("/")[0]].append(file)
        for part in parents.values():
            _look_at(content, signs, part, by_parent=False)
        return
    common = next(iter(found.values())) if len(set(found.values())) == 1 else None
    for file in group:
        value = found.get(file, common)
        signs[file].content = content(file) if value is None else value


def content_of(path: str) -> str:
    """GREY, COLOUR, BLANK or FLAT, if an image file has as few levels as masks have; or ""."""
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=image_formats()) as image:
            return _content(image)
    except Exception:  # whoever reads the image says what is wrong
        return ""


def _content(image):
    grey = image.mode in ("1", "L", "LA", "P", "PA") or image.mode[0] == "I"
    if grey:
        plane = np.asarray(image.getchannel(0) if image.mode[-1] == "A" else image)
        levels = len(np.unique(plane))
    else:
        image = image.convert("RGB")
        colours = image.getcolors(FEW) or ()
        levels = len(colours) or FEW + 1
        plane, grey = image, all(r == g == b for _, (r, g, b) in colours)
    if levels <= FEW and levels * AREA_OF_EACH <= image.width * image.height:
        return BLANK if levels == 1 else GREY if grey else COLOUR
    return FLAT if _is_flat(np.asarray(plane)) else ""


def _is_flat(pixels):
    """Whether few values cover most of an image, as in masks with smoothed or lossy edges."""
    step = max(1, max(pixels.shape[:2]) // 256)
    some = pixels[::step, ::step].astype(np.int64)
    some = some @ np.array([65536, 256, 1]) if some.ndim == 3 else some
    counts = np.sort(np.unique(some, return_counts=True)[1])
    return len(counts) * AREA_OF_EACH <= some.size and counts[-FEW:].sum() >= FLAT_SHARE * some.size


def _sentence(root, masks, total):
    reasons = Counter(masks.values())
    shown = [
        f"{count} {reason}, such as {next(file for file in masks if masks[file] == reason)}"
        for reason, count in reasons.most_common(MAX_REASONS)
    ]
    return (
        f"{len(masks)} of {counted(total, 'image')} in {root} are left out, since they look like "
        f"masks: {'; '.join(shown)}{'; ...' if len(reasons) > MAX_REASONS else ''}."
    )
