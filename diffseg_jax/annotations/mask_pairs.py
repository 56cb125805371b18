"""Folders of masks, one file an image, and the image files that belong to them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.annotations.entries import image_size
from diffseg_jax.annotations.photos import Photo, Photos, both_labels, safe_name, stem_of
from diffseg_jax.annotations.regions import IGNORED, LabelledImage, LabelMap, Notes
from diffseg_jax.data.files import by_stem, files_below, list_masks
from diffseg_jax.data.images import read_file
from diffseg_jax.data.mask_files import is_image_folder, is_mask_folder
from diffseg_jax.data.names import folded, partners
from diffseg_jax.data.npy import is_array
from diffseg_jax.data.orientation import fit_mask, stored_orientation, turned
from diffseg_jax.errors import UserError

OTHER_FORMATS = (  # files and folders of formats that are told by them
    "masks", "SegmentationClass", "gtFine", "annotations.xml", "data.yaml", "summary.json",
)  # fmt: skip
FEW_MASKS = 4  # masks that are looked at to recognise a format


@dataclass(frozen=True)
class MaskFile:
    """A mask: its path, the name of its image file, or its own, and the image if it is known."""

    path: Path
    name: str
    photo: Photo | None

    def labelled(self, ids: np.ndarray) -> LabelledImage:
        """The labels of the image; ids: of `LabelledImage`, int[H,W], as the file stores them."""
        ids = upright_mask(self, ids)
        size = image_size(*ids.shape, str(self.path))
        return LabelledImage(self.name, size, ids=ids, photo=self.photo)


def folder_in(path: Path, is_wanted: Callable[[str], bool]) -> Path | None:
    """The only folder in a path with such a name, or None."""
    found = [each for each in path.iterdir() if each.is_dir() and is_wanted(each.name)]
    return found[0] if len(found) == 1 else None


def some_masks(path: Path) -> list[str]:
    """The paths of some PNGs that may be masks; [] where a folder is that of another format."""
    if not path.is_dir() or any((path / name).exists() for name in OTHER_FORMATS):
        return []
    folder = folder_in(path, is_mask_folder)
    if folder is None and any(is_image_folder(each.name) for each in path.iterdir()):
        return []
    files = files_below(folder or path, (".png",))
    return [
        f"{folder or path}/{file}" for file in files[:: max(len(files) // FEW_MASKS, 1)][:FEW_MASKS]
    ]


def mask_files(
    path: Path, photos: Photos, suffix: str = "", image_suffix: str = "",
    folder: Path | None = None, images: Path | None = None,
) -> list[MaskFile]:  # fmt: skip
    """The masks below a path, or below its only folder whose name is one of masks, by name.

    suffix, image_suffix  the end of the names of masks, and that of images, which may lack it
    folder, images        of the masks and the images; None: by their names

    Images are those of `photos`, or else of a folder beside that of the masks; they have the path
    of the mask below it, or its name.
    """
    require_folder_of_masks(path)
    folder = folder or folder_in(path, is_mask_folder) or path
    masks = by_stem(list_masks(folder), folder, suffix)
    given = photos
    if photos.folder is None:
        beside = images or folder_in(path, is_image_folder)
        given = Photos(beside if beside is not None and beside.is_dir() else None)
    files = by_stem(sorted(given.files), given.folder) if given.files else {}
    files = {stem.removesuffix(image_suffix): file for stem, file in files.items()}
    image_of, found, label_of = _by_path_or_name(masks, files), [], {}
    for stem, image in image_of.items():
        if (before := label_of.setdefault(image, stem)) != stem:
            raise UserError(both_labels(before, stem, files[image], given.folder))
        if stem != image:
            photos.only_by_name[files[image]] = stem
    for stem, file in masks.items():
        name = files[image_of[stem]] if stem in image_of else f"{stem}{image_suffix}.png"
        photo = given.find(name) if stem in image_of else None
        found.append(MaskFile(folder / file, name, photo))
    return found


def _by_path_or_name(masks, images):
    """{stem of a mask: that of its image}: the same path, or else the only one of its name."""
    found, named = partners(masks, images), defaultdict(list)
    for stem in images:
        named[folded(stem.rpartition("/")[2])].append(stem)
    for stem in masks:
        same = named.get(folded(stem.rpartition("/")[2]), ())
        if stem not in found and len(same) == 1:
            found[stem] = same[0]
    return found


def located(written, file: Path, notes: Notes) -> tuple[str, Photo | None]:
    """(name of an image, its file if it lies beside an annotation file, or in images/ there).

    Raises UserError as safe_name.
    """
    name, is_whole = safe_name(written, file)
    if not is_whole:
        rest = "whose path leads out of the folder: only the name of the file is kept"
        notes.add("renamed", "image", rest, str(written))
    for folder in (file.parent / "images", file.parent):
        if (folder / name).is_file():
            return name, Photo(folder / name)
    return name, None


def require_folder_of_masks(path: Path):
    """UserError unless the path is a folder."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder. Give that of the masks as --input.")


def upright_mask(mask: MaskFile, ids: np.ndarray) -> np.ndarray:
    """The ids [H,W] that a mask stores, turned so that they lie on its upright image."""
    own = 1
    if not is_array(mask.path):
        own = stored_orientation(read_file(mask.path), decoded=True)
    if mask.photo is None:
        return turned(ids, own)
    return fit_mask(ids, own, mask.photo.size, mask.photo.orientation)


def indices_or_ignored(ids: np.ndarray, count: int, ignored: int, path) -> np.ndarray:
    """int[H,W]: ids below `count` as they are, `ignored` as IGNORED; UserError for any other."""
    wrong = ids[(ids != ignored) & ((ids < 0) | (ids >= count))]
    if wrong.size:
        raise UserError(
            f"mask {path} has id {int(wrong.flat[0])}, but there are {count} classes, 0 to "
            f"{count - 1}, and {ignored} is ignored. Name more classes, or correct the mask."
        )
    return np.where(ids == ignored, IGNORED, ids.astype(np.int64))


def save_masks(folder: Path, maps: Iterable[LabelMap], encode: Callable[[np.ndarray], Image.Image]):
    """Writes the image that `encode` makes of each label map u8[H,W], by the name of its image."""
    for each in maps:
        file = folder / f"{stem_of(each.name)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        encode(each.ids).save(file)


def indexed_image(ids: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A palette image with the indices u8[H,W] and these colours."""
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image
