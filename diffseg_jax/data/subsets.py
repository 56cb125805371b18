"""Which images of a data set keep their labels: seeded, nested and recorded subsets."""

import hashlib
import math
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from diffseg_jax.errors import UserError, shortened

GENERATOR = "sorted names, numpy.random.Generator(numpy.random.PCG64(seed)).permutation, first n"
LIST_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def subset(names, *, fraction=1.0, count=0, seed=0, list_path=""):
    """Indices in `names` of the chosen images, int64[n], ascending.

    fraction   in (0, 1]: ceil(fraction * len(names)) images
    count      number of images, if not 0
    seed       of two subsets with the same seed, the larger contains the smaller
    list_path  text file with one image per line ("image-path label-path", or a path alone)

    The choice depends on the set of names, not on their order. At most one of fraction, count and
    list_path may be given; UserError for more, for values out of range, and for a line that matches
    no name or several.
    """
    _require_one(fraction, count, list_path)
    if list_path:
        return _listed(names, Path(list_path))
    total = len(names)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, but it must lie in (0, 1]. Try fraction=0.125.")
    if not 0 <= count <= total:
        raise UserError(
            f"count is {count}, but there are {total} images. Give 1 to {total}, or 0 for all."
        )
    by_name = np.array(sorted(range(total), key=lambda index: names[index]), np.int64)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(total)
    return np.sort(by_name[order[: count or subset_size(total, fraction)]])


def subset_size(total, fraction):
    """ceil(fraction * total), computed so that 0.1 * 20210 is 2021, not 2021.0000000000002."""
    return min(total, max(1, math.ceil(round(fraction * total, 6))))


def describe_subset(names, indices, *, seed=0, list_path=""):
    """A dict for JSON with the chosen names and how they were chosen, to be stored with a run.

    sha256 is the hash of the sorted names, one per line: equal hashes mean equal labels.
    """
    chosen = sorted(names[index] for index in indices)
    return {
        "seed": None if list_path else seed,
        "generator": f"list {list_path}" if list_path else GENERATOR,
        "n": len(chosen),
        "of": len(names),
        "sha256": hashlib.sha256("".join(f"{name}\n" for name in chosen).encode()).hexdigest(),
        "names": chosen,
    }


def _require_one(fraction, count, list_path):
    given = {"fraction": fraction != 1.0, "count": count != 0, "list_path": bool(list_path)}
    if sum(given.values()) > 1:
        both = " and ".join(name for name, is_given in given.items() if is_given)
        raise UserError(
            f"{both} are given, but only one of them can choose the subset. Remove the others."
        )


def _listed(names, file):
    """Indices of the images in a list file; a path and a name match if one ends with the other."""
    try:
        text = file.read_text(encoding="utf-8")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the list {file}: {shortened(str(error), 400)}. "
            "It must hold one image per line."
        ) from None
    if not lines:
        raise UserError(f"the list {file} is empty. It must hold one image per line.")
    by_last = defaultdict(list)
    for index, name in enumerate(names):
        parts = _parts(name)
        by_last[parts[-1]].append((parts, index))
    found = [_match(_image_path(line), by_last) for line in lines]
    for line, indices in zip(lines, found, strict=True):
        if len(indices) != 1:
            matches = f"matches {len(indices)} images" if indices else "matches no image"
            raise UserError(
                f'line "{shortened(line, 200)}" of {file} {matches} of this data set of '
                f"{len(names)}, such as {names[0]}. Check that list and data belong together."
            )
    return np.unique(np.array(found, np.int64)[:, 0])


def _image_path(line):
    """The image of a line: its first field if that is an image file, else the line."""
    first = line.split()[0]
    return first if first.lower().endswith(LIST_ENDINGS) else line


def _match(path, by_last):
    parts = _parts(path)
    if not parts:
        return []
    return [
        index
        for known, index in by_last[parts[-1]]
        if _is_tail(known, parts) or _is_tail(parts, known)
    ]


def _is_tail(short, long):
    return long[len(long) - len(short) :] == short if len(short) <= len(long) else False


def _parts(path):
    """Components of a path with "/" or "\\", without the ending of an image file."""
    path = PurePosixPath(path.replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in LIST_ENDINGS else path).parts
