"""The feature source whose maps other programs computed: one .npz of maps per image."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.data.npy import arrays_in_npz, names_in_npz, shapes_in_npz
from diffseg_jax.errors import UserError, shortened
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.sources.diffusion import options_of_maps
from diffseg_jax.sources.feature_source import FeatureSource
from diffseg_jax.sources.map_files import MapFiles
from diffseg_jax.storage.paths import absolute, open_path, read_object

DESCRIPTION_FILE = "features.json"  # in a folder of features; `maps` names those of --mode=features
SPLIT_FOLDERS = {"train", "training", "val", "validation", "valid", "test"}


class FolderOfMaps:
    """The files of a folder, which is listed once, and again where an image has none in the list.

    An image's file lies below the folder by its name, or else is the only one that ends with it.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.listed: dict[str, list[tuple[str, ...]]] = {}  # file name -> parts of such files

    def file_of(self, name: str) -> Path:
        """The file of an image; UserError for none, and for several.

        One in a folder of a split is not of an image whose name lacks the split, as another split
        may have an image of that name.
        """
        exact, found = open_path(f"{self.folder}/{name}.npz"), self._ending_with(name)
        if _parts_of(name) in found or exact.is_file():
            return exact
        if not found:
            self._list()
            found = self._ending_with(name)
        if not found:
            raise UserError(
                f"there are no features of {name}: no file {exact}. Compute them, with "
                "python -m diffseg_jax.features or the program that made the others."
            )
        file, *others = (open_path(self.folder).joinpath(*parts) for parts in found)
        if others:
            raise UserError(
                f"{self.folder} holds several features of {name}: {file} and {others[0]}. Give "
                "images names of their own."
            )
        outer = found[0][: -len(_parts_of(name))]
        if SPLIT_FOLDERS & {part.lower() for part in outer}:
            raise UserError(
                f"{file} may be of an image {name} of another split. Give images of all splits "
                "names of their own, and put their files beside each other, this one as "
                f"{exact}, as python -m diffseg_jax.features --images images/train images/val does."
            )
        return file

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Those of the images that have no file now; UserError where that of one is not clear."""
        self._list()
        exact = lambda name: open_path(f"{self.folder}/{name}.npz").is_file()  # behind links, too
        lacking = [name for name in names if not (self._ending_with(name) or exact(name))]
        for name in set(names) - set(lacking):
            self.file_of(name)
        return lacking

    def _list(self):
        folder, self.listed = open_path(self.folder), {}
        for file in sorted(folder.rglob("*.npz")):
            parts = file.relative_to(folder).parts
            self.listed.setdefault(parts[-1], []).append(parts)

    def _ending_with(self, name):
        own = _parts_of(name)
        return [parts for parts in self.listed.get(own[-1], ()) if parts[-len(own) :] == own]


def _parts_of(name):
    return PurePosixPath(f"{name}.npz").parts


def files_source(sizes: Mapping, dtype: str, chosen: Sequence[int] | None = None) -> FeatureSource:
    """The maps of files; images themselves are not looked at, and have no padding.

    sizes   as of `folder_sizes`;  dtype  in which the maps are stored
    chosen  numbers of the maps that are read; None: all
    """
    stored, covered = jnp.dtype(dtype), tuple(map(tuple, sizes["covered"]))
    folder, channels = sizes["folder"], tuple(sizes["channels"])
    if chosen is not None:
        covered = tuple(covered[number] for number in chosen)
        channels = tuple(channels[number] for number in chosen)

    def extract(values, images, valid, *maps, other_seed=None):
        if chosen is not None:
            return stack(maps, images.shape[1:3], covered[0], stored)
        largest = float(jnp.finfo(stored).max)
        kept = tuple(jnp.clip(each, -largest, largest).astype(stored) for each in maps)
        return PixelFeatures(kept, tuple(images.shape[1:3]), covered)

    example = tuple(jax.ShapeDtypeStruct((1, 2, 2, c), jnp.float32) for c in channels)
    listed = FolderOfMaps(folder)
    read = functools.partial(read_batch, listed, channels, covered, chosen=chosen)
    nothing = {"params": {}, "stats": {}}
    files = MapFiles(folder, example, read, listed.lacking)
    return FeatureSource("files", lambda key: nothing, extract, None, files=files)


def read_batch(
    listed: FolderOfMaps, channels, covered, names: Sequence[str],
    chosen: Sequence[int] | None = None,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """The maps of images of one size, f32[B, h, w, C] each.

    channels, covered  those of every file, as of `folder_sizes`;  chosen  as of `files_source`
    Raises UserError where a file is missing or holds other maps.
    """
    found = [_maps_of(listed, channels, covered, name, chosen) for name in names]
    shapes = sorted({tuple(values.shape for values in maps) for maps in found})
    if len(shapes) > 1:
        raise UserError(
            f"maps in {listed.folder} are of {len(shapes)} shapes for images of one size, such as "
            f"{shapes[0][0]} and {shapes[1][0]}. Compute them again."
        )
    return tuple(np.stack(each) for each in zip(*found, strict=True))


def _maps_of(listed, channels, covered, name, chosen):
    folder = listed.folder
    if not name:
        raise UserError(
            f"features in {folder} go by the names of images, but this image has none. Give a file "
            "or a folder."
        )
    maps, own = read_maps(listed.file_of(name), chosen)
    if (found := tuple(values.shape[-1] for values in maps)) != channels:
        raise UserError(
            f"{folder}/{name}.npz holds maps of {list(found)} channels, where others hold "
            f"{list(channels)}. Compute it again."
        )
    if own != covered:
        raise UserError(
            f"{folder}/{name}.npz was padded differently from the others. Give images of one size."
        )
    return maps


def read_maps(
    file: Path, chosen: Sequence[int] | None = None
) -> tuple[list[np.ndarray], tuple[tuple[float, float], ...]]:  # fmt: skip
    """The maps f32[h,w,C] of an image, and the fractions that they cover; UserError for none.

    chosen  as of `files_source`; others are not read
    """
    with _opened(file) as content:
        names, more = _names_of_maps(content)
        count = len(names)
        numbers = range(count) if chosen is None else chosen
        read = [names[number] for number in numbers if number < count]
        arrays = arrays_in_npz(content, {*read, *more})
    if names and len(read) < len(numbers):
        raise UserError(
            f"{file} holds {count} maps, but {DESCRIPTION_FILE} names more. Compute it again."
        )
    maps = [arrays[name] for name in read]
    _require_maps(file, [(values.shape, values.dtype) for values in maps])
    maps = [values.astype(np.float32) for values in maps]
    if not all(np.isfinite(values).all() for values in maps):
        raise UserError(f"{file} holds NaN or infinity. Compute it again.")
    covered = _fractions(file, arrays, count)
    return maps, tuple(covered[number] for number in numbers)


@contextlib.contextmanager
def _opened(file):
    """An open file; within it, an error of numpy and zipfile becomes a UserError."""
    try:
        with open_path(file).open("rb") as content:
            yield content
    except Exception as error:  # both raise many types on damaged files
        raise UserError(
            f"{file} is no .npz file of arrays: {shortened(str(error), 200)}. Compute it again."
        ) from None


def _names_of_maps(content) -> tuple[list[str], set[str]]:
    """The names of the maps in a file, in their order, and of what else is read."""
    names = names_in_npz(content)
    maps = sorted(name for name in names if name.startswith("map_"))
    return maps, {"covered"} & set(names)


def _require_maps(file, shapes):
    """UserError unless arrays of these shapes and dtypes are maps."""
    if not shapes or any(len(shape) != 3 or dtype.kind not in "fiu" for shape, dtype in shapes):
        raise UserError(f"{file} must hold maps [height, width, channels] as map_00, map_01, ....")


def _fractions(file, arrays, count) -> tuple[tuple[float, float], ...]:
    """The fractions that the maps of a file cover."""
    covered = arrays.get("covered", np.ones((count, 2)))
    numbers = covered.shape == (count, 2) and covered.dtype.kind in "fiu"
    if not numbers or not ((covered > 0) & (covered <= 1)).all():
        raise UserError(
            f"{file} must hold a height and a width above 0 and up to 1 for each of its "
            f"{count} maps as covered. Compute it again."
        )
    return tuple(map(tuple, covered.tolist()))


def folder_sizes(folder: str) -> dict:
    """Channels and covered fractions of the maps in a folder.

    Also, of those of --mode=features, the names of the maps, and options as of `options_of_maps`.
    """
    path = open_path(folder)
    first = next(iter(sorted(path.rglob("*.npz"))), None) if path.is_dir() else None
    if first is None:
        problem = "holds no .npz file" if path.is_dir() else "does not exist"
        raise UserError(
            f"the folder {folder} of feature source files {problem}. Give the --output of "
            "python -m diffseg_jax.features, or a folder with a .npz of maps for every image."
        )
    with _opened(first) as content:  # the maps may be larger than the memory
        names, more = _names_of_maps(content)
        shapes, arrays = shapes_in_npz(content, names), arrays_in_npz(content, more)
    _require_maps(first, shapes)
    covered = _fractions(first, arrays, len(names))
    folder = str(absolute(path))
    sizes = {"folder": folder, "channels": [shape[-1] for shape, _ in shapes], "covered": covered}
    described = read_object(path / DESCRIPTION_FILE)
    if not (kept := described.get("maps")):
        return sizes
    if len(kept) != len(names):
        raise UserError(
            f"{first} holds {len(names)} maps, but {DESCRIPTION_FILE} names {len(kept)}. Compute "
            "it again."
        )
    options = options_of_maps(described["options"]) if "options" in described else {}
    return {**sizes, "maps": kept, "options": options}
