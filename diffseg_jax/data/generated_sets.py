"""Generated images with their labels, as DatasetDDPM and DatasetGAN publish and write them.

One of two layouts, at `path`:

    samples_256x256x3.npz, alone in the folder or named itself, with arr_0 uint8[N,H,W,3] images,
    arr_1 uint8[N,H,W] labels, and the uncertainty float[N] of each image as the last array;
    DatasetGAN's has the latents before it (Baranchuk et al., ICLR 2022)

    0.png, label_0.png, 0.npy, 1.png, ...: images, labels, and the divergence of the classifiers at
    every pixel, as the program of Zhang et al., "DatasetGAN" (CVPR 2021), writes them
"""

import contextlib
import hashlib
import json
import math
import os
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS
from diffseg_jax.data.images import read_image, require_same_size
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.masks import read_ids
from diffseg_jax.data.npy import read_npy
from diffseg_jax.data.palette import numbered_labels
from diffseg_jax.errors import UserError, choose, counted
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.storage.paths import in_bucket, open_path, read_object, write_json

KEPT_FILE = "uncertainty.json"  # beside the images of a folder, whose divergences are large
CERTAIN = 30  # images that the filter of DatasetGAN drops because they are too certain
GENERATED_LAYOUT = (
    "one file samples_*.npz of images, labels and uncertainty, or images 0.png, 1.png, ... with "
    "label_0.png, label_1.png, ..."
)


def kept_by_uncertainty(
    uncertainty: np.ndarray, portion: float, certain: int, images: int = 0,
    flag: str = "--config.data.options.{}={}",
) -> np.ndarray:  # fmt: skip
    """Indices i64[n - q] of the images that are kept, by rising uncertainty.

    uncertainty  float[N] of each image
    portion      of the n images that is dropped, q = floor(n portion); 0 keeps all in their order
    certain      how many of the q are the most certain ones; the others are the least certain
    images       only the first n count; 0: all N
    flag         how a user types one of these options, with its name and value, for errors

    The rule is DatasetGAN's (with 30 certain ones), which DatasetDDPM took over. Raises UserError
    where nothing would be kept by that rule, as for q <= `certain`.
    """
    uncertainty = np.asarray(uncertainty)[: images or None]
    count, dropped = len(uncertainty), int(len(uncertainty) * portion)
    if count and not portion:
        return np.arange(count)
    if count - dropped < 1 or (certain and dropped <= certain):
        raise UserError(
            f"the filter leaves nothing of {counted(count, 'generated image')}: a portion of "
            f"{portion:g} drops {dropped}, {certain} of them as the most certain, which must be "
            f"fewer. Try {flag.format('certain', 0)} to drop the {dropped} least certain ones "
            f"alone, {flag.format('portion', 0)} to keep all, or take "
            f"{_enough(portion, certain)} images or more."
        )
    order = np.argsort(uncertainty, kind="stable")
    return order[certain : count - dropped + certain]


def _enough(portion, certain):
    """The smallest number of images of which more than the certain ones are dropped."""
    count = math.ceil((certain + 1) / portion) if portion else 1
    return count + (portion > 0 and int(count * portion) <= certain)


@dataclass(frozen=True)
class StoredArray:
    """An uncompressed array in a .npz, whose rows are read from the file when needed."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, row: int) -> np.ndarray:
        count = int(np.prod(self.shape[1:], dtype=int))
        start = self.offset + row * count * self.dtype.itemsize
        found = np.fromfile(self.file, self.dtype, count, offset=start)
        return found.reshape(self.shape[1:])

    def read(self) -> np.ndarray:
        """All of it."""
        count = int(np.prod(self.shape, dtype=int))
        return np.fromfile(self.file, self.dtype, count, offset=self.offset).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class GeneratedSource:
    """Generated images and labels as a random-access sequence without open files.

    source[i] is {"image": uint8[H,W,3], "mask": int32[H,W], "name": str}

    read     number of an image -> (image, stored ids, path for errors)
    kept     numbers of the images that the filter keeps, in its order
    paths    files of an image, or that of all
    Other attributes as of `FolderSource`.
    """

    read: object = field(repr=False)
    kept: np.ndarray = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    paths: tuple[tuple[str, ...], ...] = field(repr=False)
    labels: Labels
    rules: MaskRules = field(repr=False)
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        image, ids, path = self.read(int(self.kept[index]))
        mask = self.rules.to_classes(ids, path).astype(np.int32)
        return {"image": image, "mask": mask, "name": self.names[index]}


def open_generated(
    split, *, path="", classes="", num_classes=0, images=0, portion=0.0, certain=0
) -> GeneratedSource:  # fmt: skip
    """Generated images with labels; there is one split, and its name is not read.

    path         the file or folder, in one of the layouts above
    classes      a published few-label set whose classes the labels have, such as "ffhq_34"
    num_classes  the number of classes of other labels
    images, portion, certain  as of `kept_by_uncertainty`

    Raises UserError for another layout, for arrays that do not belong together, for labels that are
    no class, and where the filter leaves nothing.
    """
    if in_bucket(path):
        raise UserError(f"{path} is in a bucket, but generated images are read from this machine.")
    labels = _labels(classes, num_classes)
    rules = MaskRules(id_table(len(labels.names)), "Check the classes of the set.")
    found = _npz(path)
    opened = _Archive.of(found) if found else _Folder.of(open_path(path))
    score = opened.uncertainty if portion else np.zeros(opened.count)
    kept = kept_by_uncertainty(score, portion, certain, images)
    names = tuple(f"{opened.name(int(i))}" for i in kept)
    return GeneratedSource(
        read=opened, kept=kept, names=names, paths=tuple(opened.files(int(i)) for i in kept),
        labels=labels, rules=rules, report=opened.note(len(kept)),
    )  # fmt: skip


def _labels(classes, num_classes) -> Labels:
    if not classes and num_classes < 1:
        raise UserError(
            "the names of the classes of generated images are unknown. Give a published set as "
            f"options.classes ({', '.join(FEW_LABEL_SETS)}), or options.num_classes=N."
        )
    if not classes:
        return numbered_labels(num_classes)
    published = choose(FEW_LABEL_SETS, classes, "set of classes").labels()
    # Bedroom-28 does not score class 0, but a network learns it from generated labels.
    return Labels(published.names, published.palette)


def _npz(path) -> Path | None:
    """The .npz at a path; None for a folder without one."""
    path = open_path(path)
    if not str(path) or str(path) == "." or not path.exists():
        raise UserError(
            f"there is no {path if str(path) != '.' else 'path'} with generated images: "
            f"{GENERATED_LAYOUT}. Give the file or folder as path."
        )
    if path.is_file():
        return path
    files = sorted(path.glob("*.npz"))
    if len(files) > 1:
        raise UserError(
            f"{path} holds {len(files)} .npz files, such as {files[0].name} and {files[1].name}. "
            "Give the path of one of them."
        )
    return files[0] if files else None


@dataclass(frozen=True)
class _Archive:
    """A .npz of images, labels and uncertainty."""

    file: str
    arrays: tuple[StoredArray, ...] = field(repr=False)

    @classmethod
    def of(cls, file: Path) -> "_Archive":
        arrays = tuple(stored_arrays(file))
        shapes = [array.shape for array in arrays]
        described = "; ".join(f"{array.dtype} {list(array.shape)}" for array in arrays)
        fits = (
            len(arrays) in (3, 4)
            and len(shapes[0]) == 4 and shapes[0][3] == 3
            and shapes[1] == shapes[0][:3]
            and shapes[-1] == shapes[0][:1]
            and arrays[0].dtype == np.uint8 and arrays[1].dtype.kind in "ui"
            and arrays[-1].dtype.kind == "f"
        )  # fmt: skip
        if not fits:
            raise UserError(
                f"{file} holds {described or 'nothing'}, but generated images are uint8 "
                "[N, H, W, 3], labels uint8 [N, H, W], then perhaps latents, and uncertainty "
                "float32 [N]. Write them in this order with numpy.savez."
            )
        return cls(str(file), arrays)

    @property
    def count(self):
        return self.arrays[0].shape[0]

    @property
    def uncertainty(self):
        return self.arrays[-1].read()

    def name(self, index):
        return f"{index:06d}"

    def files(self, index):
        return (self.file,)

    def note(self, kept):
        return (f"{self.file}: {kept} of {counted(self.count, 'generated image')}",)

    def __call__(self, index):
        ids = self.arrays[1][index].astype(np.int64)
        return self.arrays[0][index], ids, f"{index} of {self.file}"


def stored_arrays(file: Path):
    """The arrays of a .npz, in their order; UserError for compressed and damaged ones."""
    try:
        with zipfile.ZipFile(file) as archive:
            for part in archive.infolist():
                if part.compress_type != zipfile.ZIP_STORED:
                    raise UserError(
                        f"{file} is compressed, so images cannot be read from it one at a time. "
                        "Write it again with numpy.savez, not savez_compressed."
                    )
                yield _stored_array(file, archive, part)
    except (OSError, ValueError, zipfile.BadZipFile, SyntaxError) as error:
        raise UserError(
            f"{file} is no .npz of generated images ({error}). Copy it again."
        ) from None


def _stored_array(file, archive, part):
    with archive.open(part) as content:
        version = np.lib.format.read_magic(content)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if header is None:
            raise ValueError(f"version {version} of the format of {part.filename}")
        shape, fortran, dtype = header(content)
        within = content.tell()
    if dtype.hasobject or fortran and len(shape) > 1:
        raise ValueError(f"{part.filename} is {dtype}, or in the order of Fortran")
    with open(file, "rb") as raw:
        raw.seek(part.header_offset + 26)  # the lengths of the name and the extra field
        name, extra = np.frombuffer(raw.read(4), "<u2")
    offset = part.header_offset + 30 + int(name) + int(extra) + within
    return StoredArray(str(file), offset, shape, dtype)


@dataclass(frozen=True)
class _Folder:
    """Images N.png with label_N.png, and N.npy."""

    folder: str
    numbers: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, folder: Path) -> "_Folder":
        stems = {file.stem for file in folder.glob("*.png")}
        numbers = sorted(int(stem) for stem in stems if stem.isdecimal())
        if not numbers:
            raise UserError(f"{folder} holds no generated images: {GENERATED_LAYOUT}.")
        for number in numbers:
            if f"label_{number}" not in stems:
                raise UserError(
                    f"{folder}/{number}.png has no label_{number}.png. Copy the folder again, or "
                    "move the image away."
                )
        return cls(str(folder), tuple(numbers))

    @property
    def count(self):
        return len(self.numbers)

    @cached_property
    def uncertainty(self):
        """The mean of the most uncertain tenth of each image's pixels; read once, then kept."""
        files, kept = self._described(), Path(self.folder) / KEPT_FILE
        content = read_object(kept)
        if content.get("files") == files:
            return np.array(content["uncertainty"])
        found = [float(image_uncertainty(self._divergence(n))) for n in self.numbers]
        with contextlib.suppress(OSError):  # a folder that cannot be written
            write_json(kept, {"files": files, "uncertainty": found})
        return np.array(found)

    def _described(self) -> str:
        """What changes with the files of the divergences: their numbers, sizes and times."""
        rows = []
        for number in self.numbers:
            with contextlib.suppress(OSError):  # which `_divergence` reports
                status = os.stat(f"{self.folder}/{number}.npy")
                rows.append((number, status.st_size, status.st_mtime_ns))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _divergence(self, number):
        file = Path(self.folder) / f"{number}.npy"
        if not file.exists():
            raise UserError(
                f"{file} is missing, by which images are dropped as uncertain. Copy the folder "
                "again, or set portion to 0."
            )
        return read_npy(file, "the divergence of labels")

    def name(self, index):
        return str(self.numbers[index])

    def files(self, index):
        return tuple(f"{self.folder}/{part}{self.name(index)}.png" for part in ("", "label_"))

    def note(self, kept):
        return (f"{self.folder}: {kept} of {counted(self.count, 'generated image')}",)

    def __call__(self, index):
        image, mask = self.files(index)
        found, ids = read_image(image), read_ids(mask)
        require_same_size(found, ids, image, mask)
        return found, ids, mask
