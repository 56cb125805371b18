"""Which images of a data set keep their labels, and which are held out: seeded and recorded."""

import math
import re
from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np

from diffseg_jax.data.files import ends_with
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.names import digest_of, folded, read_text
from diffseg_jax.errors import UserError, shortened
from diffseg_jax.storage.paths import open_path

GENERATOR = "sorted names, numpy.random.Generator(numpy.random.PCG64(seed)).permutation, first n"


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
        return _listed(names, open_path(list_path))
    total = len(names)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, but it must lie in (0, 1]. Try fraction=0.125.")
    if not 0 <= count <= total:
        raise UserError(
            f"count is {count}, but there are {total} images. Give 1 to {total}, or 0 for all."
        )
    return np.sort(_drawn_order(names, seed)[: count or subset_size(total, fraction)])


def used_images(data, names) -> np.ndarray:
    """Indices of the images whose labels are used, those that are held out too.

    data  config.data: fraction, count, subset_seed and list_path, the options of `subset`
    """
    return subset(
        names, fraction=data.fraction, count=data.count, seed=data.subset_seed,
        list_path=data.list_path,
    )  # fmt: skip


def _drawn_order(names, seed):
    """Indices of all names in an order that depends on their set and the seed, i64[n]."""
    by_name = np.array(sorted(range(len(names)), key=lambda index: names[index]), np.int64)
    return by_name[np.random.Generator(np.random.PCG64(seed)).permutation(len(names))]


def folds_of(names, indices, folds, *, seed=0, kept=None):
    """The fold of each of the images at `indices`, i64[n] in 0..folds - 1; their sizes are alike.

    kept  {name: fold} of images that have one, which stays. Where folds have become fewer, those
          that are too large become the last one, which is not 0

    The choice depends on the names, not on their order. An image of a smaller `subset` is in the
    same fold in a larger one.
    """
    kept, chosen = kept or {}, set(map(int, indices))
    found = {i: min(kept[names[i]], folds - 1) for i in chosen if names[i] in kept}
    sizes = np.bincount(list(found.values()), minlength=folds)
    for index in map(int, _drawn_order(names, seed)):
        if index in chosen and index not in found:
            found[index] = int(np.argmin(sizes))
            sizes[found[index]] += 1
    return np.array([found[int(index)] for index in indices], np.int64)


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
        "sha256": digest_of(chosen),
        "names": chosen,
    }


def _require_one(fraction, count, list_path):
    given = {"fraction": fraction != 1.0, "count": count != 0, "list_path": bool(list_path)}
    if sum(given.values()) > 1:
        both = " and ".join(name for name, is_given in given.items() if is_given)
        raise UserError(
            f"{both} are given, but only one of them can choose the subset. Keep one; "
            'fraction=1.0, count=0 and list_path="" are off.'
        )


def _listed(names, file):
    """Indices of the images in a list file; a path and a name match if one ends with the other."""
    try:
        text = read_text(file, errors="surrogateescape")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the list {file}: {shortened(str(error), 400)}. "
            "It must hold one image per line."
        ) from None
    if not lines:
        raise UserError(f"the list {file} is empty. It must hold one image per line.")
    endings = image_endings()
    paths = [_image_path(line, endings) for line in lines]
    exact, alike = _Index(names, endings), _Index(map(folded, names), endings)
    found = [exact.matches(path) or alike.matches(folded(path)) for path in paths]
    for line, indices in zip(lines, found, strict=True):
        if len(indices) != 1:
            matches = f"matches {len(indices)} images" if indices else "matches no image"
            raise UserError(
                f'line "{shortened(line, 200)}" of {file} {matches} of this data set of '
                f"{len(names)}, such as {names[0]}. Check that list and data belong together."
            )
    return np.unique(np.array(found, np.int64)[:, 0])


class _Index:
    """Names of images by their last component; a path and a name match if one ends the other."""

    def __init__(self, names, endings):
        self.endings, self.by_last = endings, defaultdict(list)
        for index, name in enumerate(names):
            parts = self._parts(name)
            self.by_last[parts[-1]].append((parts, index))

    def matches(self, path):
        """The indices of the names that match a path."""
        parts = self._parts(path)
        return [
            index
            for known, index in (self.by_last.get(parts[-1], []) if parts else [])
            if _is_tail(known, parts) or _is_tail(parts, known)
        ]

    def _parts(self, path):
        """Components of a path with "/" or "\\", without the ending of an image file."""
        path = PurePosixPath(path.replace("\\", "/"))
        return (path.with_suffix("") if ends_with(path.suffix, self.endings) else path).parts


def _image_path(line, endings):
    """The image of a line: what ends as an image file before a space or comma, else the line."""
    ends = "|".join(map(re.escape, endings))
    match = re.match(rf'"?(.+?(?:{ends}))"?(?=[\s,;]|$)', line, re.IGNORECASE)
    return match[1] if match else line.strip('"')


def _is_tail(short, long):
    return long[len(long) - len(short) :] == short if len(short) <= len(long) else False
