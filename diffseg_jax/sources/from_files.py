"""The feature source whose maps other programs computed: one .npz of maps per image."""

import functools
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.sources.feature_source import FeatureSource
from diffseg_jax.storage.paths import open_path, read_bytes
from diffseg_jax.systems.map_files import MapFiles


def files_source(sizes: Mapping, dtype: str) -> FeatureSource:
    """The maps of files; images themselves are not looked at.

    sizes  as of `folder_sizes`;  dtype  in which the maps are stored
    """
    stored, covered = jnp.dtype(dtype), tuple(map(tuple, sizes["covered"]))
    folder, channels = sizes["folder"], tuple(sizes["channels"])

    def extract(values, images, valid, *maps, other_seed=None):
        largest = float(jnp.finfo(stored).max)
        kept = tuple(jnp.clip(each, -largest, largest).astype(stored) for each in maps)
        return PixelFeatures(kept, tuple(images.shape[1:3]), covered)

    example = tuple(jax.ShapeDtypeStruct((1, 2, 2, c), jnp.float32) for c in channels)
    read = functools.partial(read_batch, folder, channels, covered)
    nothing = {"params": {}, "stats": {}}
    files = MapFiles(folder, example, read)
    return FeatureSource("files", lambda key: nothing, extract, None, files=files)


def read_batch(folder: str, channels, covered, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """The maps of images of one size, f32[B, h, w, C] each.

    channels, covered  those of every file, as of `folder_sizes`
    Raises UserError where a file is missing or holds other maps.
    """
    found = [_maps_of(folder, channels, covered, name) for name in names]
    shapes = sorted({tuple(values.shape for values in maps) for maps in found})
    if len(shapes) > 1:
        raise UserError(
            f"maps in {folder} are of {len(shapes)} shapes for images of one size, such as "
            f"{shapes[0][0]} and {shapes[1][0]}. Compute them again."
        )
    return tuple(np.stack(each) for each in zip(*found, strict=True))


def _maps_of(folder, channels, covered, name):
    if not name:
        raise UserError(
            f"features in {folder} go by the names of images, but this image has none. Give a file "
            "or a folder."
        )
    maps, own = read_maps(folder, name)
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


def read_maps(folder: str, name: str) -> tuple[list[np.ndarray], tuple[tuple[float, float], ...]]:
    """The maps f32[h,w,C] of an image, and the fractions that it covers; UserError for none.

    name  of the image: the path below its folder, without ending, or the last part of it
    """
    file = _file_of(folder, name)
    try:
        with np.load(io.BytesIO(read_bytes(file)), allow_pickle=False) as arrays:
            keys = sorted(key for key in arrays.files if key.startswith("map_"))
            maps = [np.asarray(arrays[key]) for key in keys]
            given = arrays["covered"].tolist() if "covered" in arrays.files else ()
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{file} is no .npz file of arrays. Compute it again.") from None
    if not maps or any(values.ndim != 3 or values.dtype.kind not in "fiu" for values in maps):
        raise UserError(f"{file} must hold maps [height, width, channels] as map_00, map_01, ....")
    maps = [values.astype(np.float32) for values in maps]
    if not all(np.isfinite(values).all() for values in maps):
        raise UserError(f"{file} holds NaN or infinity. Compute it again.")
    covered = tuple(tuple(pair) for pair in given) or ((1.0, 1.0),) * len(maps)
    return maps, covered


def _file_of(folder, name):
    exact = open_path(f"{folder}/{name}.npz")
    if exact.is_file():
        return exact
    named = _by_last_part(folder).get(PurePath(name).name, [])
    if not named:
        raise UserError(
            f"there are no features of {name}: no file {exact}. Compute them, with "
            "python -m diffseg_jax.features or the program that made the others."
        )
    if len(named) > 1:
        raise UserError(
            f"{folder} holds several features of {name}: {named[0]} and {named[1]}. Give images "
            "names of their own."
        )
    return named[0]


@functools.cache
def _by_last_part(folder) -> dict[str, list[Path]]:
    """The files of a folder and its subfolders by name, without ending."""
    found = {}
    for file in sorted(open_path(folder).rglob("*.npz")):
        found.setdefault(file.stem, []).append(file)
    return found


def folder_sizes(folder: str) -> dict:
    """Channels and covered fractions of the maps in a folder, JSON values."""
    path = open_path(folder)
    first = next(iter(sorted(path.rglob("*.npz"))), None) if path.is_dir() else None
    if first is None:
        problem = "holds no .npz file" if path.is_dir() else "does not exist"
        raise UserError(
            f"the folder {folder} of feature source files {problem}. Give the --output of "
            "python -m diffseg_jax.features, or a folder with a .npz of maps for every image."
        )
    maps, covered = read_maps(folder, Path(first).relative_to(path).with_suffix("").as_posix())
    return {"folder": folder, "channels": [m.shape[-1] for m in maps], "covered": covered}
