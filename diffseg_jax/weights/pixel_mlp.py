"""Published pixel classifiers of DDPM-Seg: model_0.pth, model_1.pth, ... as one ensemble.

Each file is a state dict of torch's Sequential: 0 linear, 1 ReLU, 2 batch norm, 3 linear, 4 ReLU,
5 batch norm, 6 linear.
"""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.recognised import described, local_path
from diffseg_jax.weights.tables import convert
from diffseg_jax.weights.torch_rows import linear_rows, norm, statistics

LAYERS = (0, 3, 6)  # indices of the linear layers
TABLE = (
    *linear_rows(r"layers\.0", "params.linear1"),
    *norm(r"layers\.2", "params.norm1"),
    *statistics(r"layers\.2", "stats.norm1"),
    *linear_rows(r"layers\.3", "params.linear2"),
    *norm(r"layers\.5", "params.norm2"),
    *statistics(r"layers\.5", "stats.norm2"),
    *linear_rows(r"layers\.6", "params.linear3"),
)
CLASSIFIER_UNUSED = (r"layers\.[25]\.num_batches_tracked",)
FOLDER_ADVICE = "Give the folder that holds model_0.pth, model_1.pth, ..."


def load_ensemble(folder: str | os.PathLike, features: int, num_classes: int) -> dict:
    """The classifiers of a folder as one ensemble, float32, in the order of their numbers.

    folder       contains model_0.pth, model_1.pth, ... (or .pt) without a gap; files of other names
                 are not read
    features     D, the features of one pixel
    num_classes  K
    out          {"params", "stats"} of M `models.pixel_mlp.PixelMLP`: every leaf has a leading axis
                 M, such as params["linear1"]["kernel"] [M, D, a]; the hidden widths are the files'

    Raises UserError for a missing folder or file, for files of another network, of other taps or
    classes, or of unequal widths, and as `read_arrays` does.
    """
    files = _numbered_files(local_path(folder, "classifiers"))
    members = [_member(file, features, num_classes) for file in files]
    for file, member in zip(files, members, strict=True):
        if _widths(member) != _widths(members[0]):
            raise UserError(
                f"{file} has hidden widths {_widths(member)}, but {files[0].name} beside it "
                f"{_widths(members[0])}. Keep the classifiers of one training in a folder."
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *members)


def classifier_sizes(folder: str | os.PathLike) -> tuple[int, int, tuple[int, int], int]:
    """(number M, features D, hidden widths, classes K) of the classifiers of a folder.

    Raises UserError as `load_ensemble`, and for a file of another network.
    """
    files = _numbered_files(local_path(folder, "classifiers"))
    file, arrays = files[0], read_arrays(files[0])
    (a, d), (b, _), (k, _) = (_sizes(arrays, layer) for layer in LAYERS)
    if None in (a, d, b, k):
        raise UserError(
            f"{file} is no pixel classifier of DDPM-Seg: {described(arrays)}. {FOLDER_ADVICE}"
        )
    return len(files), d, (a, b), k


def _numbered_files(folder: Path) -> list[Path]:
    """model_0, model_1, ... of a folder, by number."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {found}. {FOLDER_ADVICE}")
    files = {}
    for path in sorted(folder.iterdir()):
        if not (match := re.fullmatch(r"model_(\d+)\.pth?", path.name)):
            continue
        other = files.setdefault(int(match[1]), path)
        if other != path:
            raise UserError(f"{folder} has both {other.name} and {path.name}. Remove one.")
    if not files:
        raise UserError(f"{folder} holds no classifier. {FOLDER_ADVICE}")
    if missing := max(files) + 1 - len(files):
        first = next(number for number in itertools.count() if number not in files)
        raise UserError(
            f"{folder} has {files[max(files)].name} but no model_{first}.pth ({missing} missing in "
            "all). Copy the missing ones, or number the files from 0 without a gap."
        )
    return [files[number] for number in range(len(files))]


def _member(file: Path, features: int, num_classes: int) -> dict:
    arrays = read_arrays(file)
    (a, d), (b, _), (k, _) = (_sizes(arrays, layer) for layer in LAYERS)
    if d not in (features, None):
        raise UserError(
            f"{file} is for other taps: it reads {d} features a pixel, these taps give {features}. "
            "Set the steps and blocks that it was trained with, which the folder's name may tell, "
            "such as 50_150_250_5_6_7_8_12: steps, then blocks."
        )
    if k not in (num_classes, None):
        raise UserError(
            f"{file} tells {k} classes apart, but the data has {num_classes}. Give classifiers "
            "that were trained for this data."
        )
    shapes = {
        "params": {
            "linear1": {"kernel": (features, a), "bias": (a,)},
            "norm1": {"scale": (a,), "bias": (a,)},
            "linear2": {"kernel": (a, b), "bias": (b,)},
            "norm2": {"scale": (b,), "bias": (b,)},
            "linear3": {"kernel": (b, num_classes), "bias": (num_classes,)},
        },
        "stats": {"norm1": {"mean": (a,), "var": (a,)}, "norm2": {"mean": (b,), "var": (b,)}},
    }
    return convert(arrays, TABLE, shapes, ignore=CLASSIFIER_UNUSED, source=str(file))


def _sizes(arrays: Mapping, layer: int) -> tuple[int | None, int | None]:
    """(out, in) of a linear layer; None if the file has none, for which `convert` raises."""
    weight = arrays.get(f"layers.{layer}.weight")
    return (None, None) if weight is None or weight.ndim != 2 else weight.shape


def _widths(member: dict) -> tuple[int, int]:
    return tuple(len(member["params"][name]["bias"]) for name in ("linear1", "linear2"))
