"""What is painted, on disk: classes, strokes, predictions and the list of images of one project.

    classes.json                    names and palette
    project.json                    images with what is known of their files, accepted ones, fits
    strokes/<name>.png              ids of the upright image, 255 = not painted
    predictions/<name>.png          ids;  uncertainty/<name>.png  grey, 255 = certainly wrong

Every file is replaced atomically. A PNG of strokes holds its own revision and counts, and one of a
prediction its fit and score, as text beside the pixels: after a kill both belong together.
"""

import contextlib
import io
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffseg_jax.data.images import decode
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError, visible
from diffseg_jax.server.map_png import BandedPng
from diffseg_jax.server.page_classes import CLASSES_FILE, require_names
from diffseg_jax.server.page_images import PageImage
from diffseg_jax.server.replaced_images import settle_images
from diffseg_jax.server.security import storing
from diffseg_jax.storage.paths import write_atomically, write_json

KEEP = 254  # in a patch: the pixel stays as it is
PROJECT_FORMAT = 1  # of project.json
RECORDED = {"height": int, "width": int, "sha256": str, "stamp": str, "accepted": bool}
MAPS_KEPT = 256 * 2**20  # bytes of label maps that stay in memory
PROJECT_FILE = "project.json"
HALF_WRITTEN = re.compile(r"\..+\.(png|json|html)\.\d+")  # names of files that are being written
MAPS_OF_IMAGES = STROKES, PREDICTIONS, UNCERTAINTY = "strokes", "predictions", "uncertainty"


class Outdated(Exception):
    """A patch that was made for another revision than the present one, which it holds."""

    def __init__(self, revision: int):
        super().__init__(f"the labels have revision {revision}")
        self.revision = revision


class OtherFit(Exception):
    """A prediction was to be accepted, but the present one is of another fit."""


class LabelStore:
    """The project in a folder. All methods may be called from several threads.

    A method that writes raises NotStored where that fails, and then nothing has changed.

    images   in the order of their indices
    classes  Labels: names and colours
    fits     what FIT of the page holds, oldest first
    notes    sentences about labels that were set aside, as their images were replaced
    """

    def __init__(self, folder: Path, images: Sequence[PageImage], classes: Labels):
        """Reads what the folder holds; UserError for damaged files, and for those of others."""
        self.folder, self.images, self.classes = folder, list(images), classes
        self._lock, self._maps = threading.RLock(), OrderedDict()
        content = read_project(folder)
        self.fits, self._entries = content["fits"], []
        _remove_partial(folder)
        settled = settle_images(folder, MAPS_OF_IMAGES, self.images, content["images"], self._write)
        self._others, self.notes = settled
        for image in self.images:
            record = self._others.pop(image.name, {})
            strokes = self._file(STROKES, image)
            entry = _Entry(strokes, image, record, self._pair(image))
            if any(entry.counts[len(classes.names) :]):
                raise UserError(
                    f"{strokes} holds ids above {len(classes.names) - 1}, but there are "
                    f"{len(classes.names)} classes. Remove it, or complete {CLASSES_FILE} there."
                )
            self._entries.append(entry)
        self.save()

    def _file(self, part, image):
        return self.folder / part / f"{image.name}.png"

    def _pair(self, image):
        return self._file(PREDICTIONS, image), self._file(UNCERTAINTY, image)

    def save(self):
        """Writes project.json and classes.json."""
        with self._lock:
            self._save_project(self.fits, {})
            self._save_classes(self.classes)

    def _save_project(self, fits, accepted):
        """Writes project.json with fits, and with {index: accepted} that are not assigned yet."""
        with self._lock:
            records = {
                image.name: {
                    **{key: vars(image)[key] for key in RECORDED if key != "accepted"},
                    "accepted": accepted.get(index, entry.accepted),
                }
                for index, (image, entry) in enumerate(zip(self.images, self._entries))
            }
            self._write(self._others | records, fits)

    def _write(self, records, fits=None):
        """Writes project.json with {name: record}, and with other fits than those of before."""
        fits = self.fits if fits is None else fits
        content = {"format": PROJECT_FORMAT, "images": records, "fits": fits}
        with storing(file := self.folder / PROJECT_FILE):
            write_json(file, content)

    def _save_classes(self, classes):
        content = {"names": list(classes.names), "palette": [*map(list, classes.palette)]}
        with storing(file := self.folder / CLASSES_FILE):
            write_json(file, content)

    def described(self, index: int) -> dict:
        """IMAGE of the page."""
        image, entry = self.images[index], self._entries[index]
        counts = [*entry.counts, *[0] * (len(self.classes.names) - len(entry.counts))]
        return {
            "index": index, "key": image.key, "name": visible(image.name), "width": image.width,
            "height": image.height, "revision": entry.revision, "counts": counts,
            "accepted": entry.accepted, "score": entry.score, "fit": entry.fit,
        }  # fmt: skip

    # ---- labels ----------------------------------------------------------------------------------

    def labels(self, index: int) -> tuple[np.ndarray, int]:
        """(ids u8[H,W], read-only; their revision); UserError for a damaged file."""
        with self._entries[index].lock:
            return self._labels(index), self._entries[index].revision

    def _labels(self, index):
        return self._painting(index)[0]

    def _painting(self, index):
        """(ids, their BandedPng), both kept in memory for the images that were used last."""
        with self._lock:
            if index in self._maps:
                self._maps.move_to_end(index)
                return self._maps[index]
        image, entry = self.images[index], self._entries[index]
        if not entry.revision:
            ids = np.full((image.height, image.width), IGNORE, np.uint8)
        else:
            ids = read_map(self._file(STROKES, image), image)
        return self._kept(index, ids, BandedPng(ids))

    def _kept(self, index, ids, png):
        ids.flags.writeable = False
        with self._lock:
            self._maps[index] = ids, png
            self._maps.move_to_end(index)
            while len(self._maps) > 1 and sum(m.nbytes for m, _ in self._maps.values()) > MAPS_KEPT:
                self._maps.popitem(last=False)
        return ids, png

    def labels_png(self, index: int) -> tuple[bytes, int]:
        """(the PNG of the ids, their revision)."""
        entry = self._entries[index]
        with entry.lock:
            return self._painting(index)[1].content({}), entry.revision

    def patch(
        self, index: int, box: tuple[int, int, int, int], values: np.ndarray, revision: int
    ) -> dict:  # fmt: skip
        """Writes ids into a box (x, y, width, height) that lies in the image; on disk on return.

        values    u8[height, width]: ids of classes, KEEP or 255
        revision  of the labels for which the patch was made
        out       {"revision", "counts"}
        Raises Outdated if the labels have another revision, UserError for an unknown id.
        """
        x, y, width, height = box
        if (bad := values[(values < KEEP) & (values >= len(self.classes.names))]).size:
            raise UserError(
                f"the patch holds id {bad[0]}, but ids are 0 to {len(self.classes.names) - 1}, "
                f"{KEEP} to keep a pixel, or {IGNORE} for none."
            )
        entry = self._entries[index]
        with entry.lock:
            if revision != entry.revision:
                raise Outdated(entry.revision)
            before, png = self._painting(index)
            ids, inside = before.copy(), before[y : y + height, x : x + width]
            ids[y : y + height, x : x + width] = new = np.where(values == KEEP, inside, values)
            counts = np.array([*entry.counts, *[0] * (IGNORE - len(entry.counts))])
            counts += _counts(new) - _counts(np.ascontiguousarray(inside))
            counts = counts[: len(self.classes.names)].tolist()
            png = png.changed(ids, y, y + height)
            content = png.content({"revision": str(revision + 1), "counts": json.dumps(counts)})
            with storing(file := self._file(STROKES, self.images[index])):
                write_atomically(file, content)
            entry.revision, entry.counts = revision + 1, counts
            self._kept(index, ids, png)
            return {"revision": entry.revision, "counts": counts}

    def painted(self) -> list[int]:
        """Indices of images with strokes."""
        return [index for index, entry in enumerate(self._entries) if sum(entry.counts)]

    def painted_classes(self) -> list[str]:
        """Names of the classes of which any pixel is painted."""
        counts = (entry.counts for entry in self._entries)
        totals = map(sum, zip_longest(*counts, fillvalue=0))
        return [name for name, total in zip(self.classes.names, totals) if total]

    # ---- predictions -----------------------------------------------------------------------------

    def add_prediction(self, index: int, fit: int, ids: np.ndarray, uncertainty: np.ndarray):
        """Writes the prediction of a fit: ids u8[H,W], uncertainty f32[H,W] in [0, 1].

        An accepted image keeps the prediction that was accepted.
        """
        grey = np.rint(np.clip(uncertainty, 0, 1) * 255).astype(np.uint8)
        score, entry = float(np.mean(uncertainty, dtype=np.float64)), self._entries[index]
        predicted, uncertain = self._pair(self.images[index])
        with entry.lock, storing(predicted):
            if entry.accepted:
                return
            write_atomically(uncertain, png_of_map(grey, fit=fit))
            write_atomically(predicted, png_of_map(ids.astype(np.uint8), fit=fit, score=score))
            entry.fit, entry.score = fit, score

    def prediction_png(self, index: int, part: str) -> tuple[bytes, int]:
        """(the PNG of PREDICTIONS or UNCERTAINTY, its fit); LookupError if there is none."""
        entry, image = self._entries[index], self.images[index]
        with entry.lock:
            if not entry.fit:
                raise LookupError(part)
            return self._file(part, image).read_bytes(), entry.fit

    def predicted(self, index: int, part: str) -> np.ndarray:
        """The map of PREDICTIONS or UNCERTAINTY, u8[H,W]; LookupError if there is none."""
        with self._entries[index].lock:
            if not self._entries[index].fit:
                raise LookupError(part)
            return read_map(self._file(part, self.images[index]), self.images[index])

    # ---- the project -----------------------------------------------------------------------------

    def accept(self, index: int, fit: int) -> dict:
        """Marks an image as right, with the prediction of a fit, 0 = without; returns IMAGE.

        From then on that prediction stays. Raises OtherFit if the present one is of another fit.
        """
        with self._entries[index].lock:
            if self._entries[index].fit != fit:
                raise OtherFit
            return self._set_accepted(index, True)

    def reopen(self, index: int) -> dict:
        """Marks an image as not accepted; returns IMAGE."""
        with self._entries[index].lock:
            return self._set_accepted(index, False)

    def _set_accepted(self, index, accepted):
        with self._lock:
            self._save_project(self.fits, {index: accepted})
            self._entries[index].accepted = accepted
            return self.described(index)

    def add_fit(self, fit: dict):
        """Adds a FIT to the history."""
        with self._lock:
            self._save_project(fits := [*self.fits, fit], {})
            self.fits = fits

    def add_class(self, name: str):
        """Appends a class; UserError for a name that is taken or no name, and beyond 253."""
        with self._lock:
            names = require_names([*self.classes.names, name])
            unused = (c for c in distinct_colours(IGNORE) if c not in self.classes.palette)
            classes = Labels(names, (*self.classes.palette, next(unused)))
            self._save_classes(classes)
            self.classes = classes


class _Entry:
    """What is known of the labels and the prediction of one image."""

    def __init__(self, strokes, image, record, pair):
        self.lock = threading.RLock()
        self.accepted = record.get("accepted", False)
        self.revision, self.counts = 0, []
        if strokes.exists():
            text = _text_of(strokes, image)
            self.revision, self.counts = _revision_in(text), _counts_in(text)
            if self.revision == 0:  # a map that another program wrote
                self.revision = 1
                self.counts = _counts(read_map(strokes, image)).tolist()
        self.fit, self.score = 0, None
        with contextlib.suppress(OSError, ValueError, KeyError, UserError):
            predicted, uncertain = (_text_of(file, image) for file in pair)
            if predicted["fit"] == uncertain["fit"]:
                self.fit, self.score = int(predicted["fit"]), float(predicted["score"])


# ---- files ---------------------------------------------------------------------------------------


def _remove_partial(folder):
    """Removes what a process that was killed had begun to write, see `write_atomically`."""
    for part in (folder, *(folder / name for name in (STROKES, PREDICTIONS, UNCERTAINTY))):
        for file in part.glob("**/.*" if part != folder else ".*"):
            if HALF_WRITTEN.fullmatch(file.name):
                file.unlink(missing_ok=True)


def png_of_map(ids: np.ndarray, **text) -> bytes:
    """An 8-bit grey PNG of a map u8[H,W], with numbers and lists as text beside the pixels."""
    info, file = PngInfo(), io.BytesIO()
    for key, value in text.items():
        info.add_text(key, json.dumps(value))
    Image.fromarray(ids).save(file, "PNG", compress_level=1, pnginfo=info)
    return file.getvalue()


def read_map(file: Path, image: PageImage) -> np.ndarray:
    """The map u8[H,W] in a PNG, read-only; UserError unless it has the size of the image."""
    opened = decode(str(file))
    _require_map(opened, file, image)
    return np.asarray(opened)


def _text_of(file, image):
    """{key: text} of a PNG, of which only the header is read."""
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            _require_map(opened, file, image)
            return dict(opened.info)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many types on damaged files
        raise UserError(f"cannot read {file}: {error}. Remove it.") from None


def _require_map(opened, file, image):
    if opened.mode != "L" or opened.size != (image.width, image.height):
        raise UserError(
            f"{file} has the mode {opened.mode} and {opened.width}x{opened.height} pixels, but a "
            f"map of {visible(str(image.source))} has mode L and {image.width}x{image.height}. "
            "Remove it, or give another --output."
        )


def _counts(ids):
    """The number of pixels of each id in 0..254; four times as fast as np.bincount."""
    return np.array(Image.fromarray(ids).histogram()[:IGNORE])


def _revision_in(text):
    revision = text.get("revision", "")
    return int(revision) if revision.isdecimal() and len(revision) < 16 else 0


def _counts_in(text):
    try:
        counts = json.loads(text.get("counts", ""))
    except (ValueError, RecursionError):
        return []
    return counts if isinstance(counts, list) and all(type(n) is int for n in counts) else []


def read_project(folder: Path) -> dict:
    """The content of project.json, an empty one if there is none; UserError for a damaged file."""
    file = folder / PROJECT_FILE
    if not file.exists():
        return {"format": PROJECT_FORMAT, "images": {}, "fits": []}
    try:
        content = json.loads(file.read_bytes())
        records, fits = content["images"], content["fits"]
        are_records = content["format"] == PROJECT_FORMAT and all(
            type(record[key]) is kind
            for record in records.values()
            for key, kind in RECORDED.items()
        )
        is_project = are_records and all(type(fit["number"]) is int for fit in fits)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_project = False
    if not is_project:
        raise UserError(
            f"{file} is damaged, or belongs to another program or version. Give another --output, "
            f"or remove the file: labels stay, and only accepted images are no longer marked."
        )
    return content
