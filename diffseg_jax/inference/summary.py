"""summary.json: how files were written for images, which are finished, and what was found."""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

import diffseg_jax
from diffseg_jax.config.schema import differing_lines
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.errors import UserError
from diffseg_jax.figures.layout import save_png
from diffseg_jax.inference.frames import Frame, container_of
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.saved import FILES, SaveOptions, path_of
from diffseg_jax.inference.views import Maps
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.review import expected_accuracy, pixels_to_review
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.storage.paths import in_bucket, open_path, write_json

SAVE_EVERY = 2  # seconds between two versions of the summary
SUMMARY = "summary.json"
BY_COMMAND = "checkpoint"  # an entry of the summary of the command, and not of `Prediction.save`
OF_THE_NETWORK = ("step:", "weights:", "calibrator:")  # differ once it was trained further


class Summary:
    """How files were written for images, and which are finished or could not be read.

    file      its name
    what      the folder holds, for people
    outputs   name of an image -> the paths of its files; None = those of a prediction
    required  keys of the entry of an image, without which it is not finished
    overview  entries of all images -> more entries of the file
    added     keys of `metadata` that files of earlier versions may lack
    stamped   source of an image -> numbers that differ if its content does
    Raises UserError if the folder holds those of another network or with other options.
    """

    def __init__(
        self, folder: Path, metadata: dict, file: str = SUMMARY, what: str = "predictions",
        outputs: Callable[[str], list] | None = None, required: Collection[str] = (),
        overview: Callable[[dict], dict] = lambda entries: {}, added: Collection[str] = (),
        stamped: Callable[[str | Frame], list] | None = None,
    ):  # fmt: skip
        self.folder, self.file, self.what = folder, folder / file, what
        self.outputs = outputs or (lambda name: [path_of(folder, name, each) for each in FILES])
        self.required = {"file", "stamp", *required}
        self.overview, self.stamped = overview, stamped or stamp
        self.content = {**metadata, "pictures": {}, "unreadable": {}}
        self.saved = 0.0
        if self.file.exists():
            self._take_over(metadata, added)

    def _take_over(self, metadata, added):
        """Continues the summary of the same command."""
        try:
            old = {key: metadata[key] for key in added} | json.loads(self.file.read_text())
            old_metadata = {key: old[key] for key in metadata}
            finished = dict(old["pictures"])
            self.content["pictures"] = {
                name: entry for name, entry in finished.items() if self.required <= entry.keys()
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"{self.file} was not written by this command. Give another --output."
            ) from None
        lines = differing_lines(old_metadata, metadata)
        if lines and all(line.startswith(OF_THE_NETWORK) for line in lines):
            raise UserError(
                f"{self.folder} holds {self.what} of other weights, as the checkpoint has been "
                f"trained further or calibrated since. Give another --output, such as "
                f"--output={self.folder}_2."
            )
        if lines:
            raise UserError(
                f"{self.folder} holds {self.what} of another command; give another --output, or "
                "undo:\n  " + "\n  ".join(lines)
            )

    def remaining(
        self, found: Iterable[tuple[str, str | Frame]]
    ) -> list[tuple[str, str | Frame]]:  # fmt: skip
        """Those of all images of a command, each a name and a source, that are not finished.

        Raises UserError as `is_done`.
        """
        found = list(found)
        sources = {real_path(str(source)) for _, source in found}
        return [(name, source) for name, source in found if not self.is_done(name, source, sources)]

    def is_done(
        self, name: str, source: str | Frame, sources: Collection[str] = ()
    ) -> bool:  # fmt: skip
        """Whether all files of an image are there, and the image has not changed since.

        sources  `real_path` of all that the same command reads

        Raises UserError where the files of another image would be replaced that exists and, as it
        is not among the sources, gets no files under another name.
        """
        entry = self.content["pictures"].get(name)
        if entry is None:
            return False
        before = str(entry["file"])
        if before != str(source) and (real := real_path(before)) != real_path(str(source)):
            if real in sources or not is_there(before):
                return False
            raise UserError(
                f"{self.folder} holds {self.what} of {before} as {name}, which those of {source} "
                f"would replace. Give another --output, such as --output={self.folder}_2."
            )
        if entry["stamp"] != self.stamped(source):
            return False
        return all(open_path(path).exists() for path in self.outputs(name))

    def add(self, name: str, source: str | Frame, described: Mapping):
        """Notes that an image is finished, and writes the file if it is SAVE_EVERY old."""
        where = {"file": str(source), "stamp": self.stamped(source)}
        self.content["pictures"][name] = where | described
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self):
        """Writes the file atomically, images in the order of their names."""
        self.content["pictures"] = dict(sorted(self.content["pictures"].items()))
        self.content |= self.overview(self.content["pictures"])
        write_json(self.file, self.content)
        self.saved = time.monotonic()


def metadata_of(
    segmenter, labels: Labels, options: PredictOptions, saved: SaveOptions
) -> dict:
    """The entries of the summary about the network and the options; JSON values."""
    return {
        "version": diffseg_jax.__version__,
        "checkpoint": str(segmenter.directory),
        "step": segmenter.step,
        "weights": segmenter.fingerprint,
        "calibrator": segmenter.calibrator and fingerprint_of(segmenter.calibrator),
        "system": segmenter.system,
        "dtype": segmenter.config.dtype,
        "classes": described_classes(labels),
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in (dataclasses.asdict(options) | saved.changed()).items()
        },
    }


def fingerprint_of(calibrator: Calibrator) -> str:
    """Twelve hexadecimal digits of a hash of its numbers."""
    return hashlib.sha256(json.dumps(calibrator.to_json()).encode()).hexdigest()[:12]


def add_all(
    summary: Summary, written: Iterable[tuple[str, Mapping]], sources: Mapping[str, str | Frame],
    advance: Callable[[], None], legend: Callable[[], np.ndarray],
):  # fmt: skip
    """Notes every finished image, and saves the summary and legend.png whatever happens.

    written  (name, entry), as the files of an image are written;  sources  where each came from
    legend   () -> the image that explains the colours
    """
    try:
        for name, entry in written:
            summary.add(name, sources[name], entry)
            advance()
    finally:
        if summary.content["pictures"]:  # else other options may follow in the same folder
            summary.save()
            save_png(summary.folder / "legend.png", legend())


def require_one_read(summary: Summary, found: Collection, what: str):
    """Raises UserError if nothing of what was found could be read; what: the plural of it."""
    if not summary.content["pictures"] and summary.content["unreadable"]:
        first = next(iter(summary.content["unreadable"].values()))
        raise UserError(f"none of {len(found)} {what} can be read. The first: {first}")


def stamp(source: str | Frame) -> list[int]:
    """Size in bytes and time of the last change of a file: if they differ, it has other images."""
    path = container_of(source)
    status = open_path(path).stat()
    if in_bucket(path):
        return [int(status.length), int(status.mtime)]
    return [status.st_size, status.st_mtime_ns]


def real_path(source: str) -> str:
    """A path, or what names a frame, without links; two that lead to the same file are equal."""
    return source if in_bucket(source) else os.path.realpath(open_path(source))


def is_there(source: str) -> bool:
    """Whether the file of an image exists; source: its path, or what names a frame."""
    return any(open_path(path).exists() for path in {source, source.rpartition("#")[0] or source})


def entries_in(folder: Path, metadata: Mapping) -> dict[str, dict]:
    """The entries of images that `Prediction.save` left in a folder, if it had this metadata.

    Raises UserError for the folder of a command, which could not be resumed any more.
    """
    file = folder / SUMMARY
    try:
        old = json.loads(file.read_text())
        entries, of_command = dict(old["pictures"]), BY_COMMAND in old
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{file} is no summary of predictions. Give another folder.") from None
    if of_command:
        raise UserError(
            f"{folder} holds predictions of the command, which resumes by {SUMMARY} there. Give "
            "another folder."
        )
    return entries if all(old.get(key) == value for key, value in metadata.items()) else {}


def described_classes(labels: Labels) -> list[dict]:
    """The entry of the classes in the summary; JSON values."""
    classes = zip(labels.names, labels.palette, strict=True)
    return [{"name": name, "color": list(colour)} for name, colour in classes]


def statistics_of(maps: Maps, classes: Collection[str], options: SaveOptions) -> dict:
    """The entry of one image in the summary; JSON values.

    maps   its maps, in which rejected labels are 255
    """
    labels, uncertainty = maps.labels, maps.uncertainty
    accuracy, of_class = expected_accuracy(labels, uncertainty, len(classes))
    shares = np.bincount(labels.ravel(), minlength=IGNORE + 1) / labels.size
    entry = {
        "size": list(labels.shape),
        "shares": {name: round(part, 6) for name, part in zip(classes, shares.tolist()) if part},
        "uncertainty": round(float(uncertainty.mean()), 6),
        "calibrated": maps.calibrated,
        "familiarity": None if maps.familiarity is None else round(float(maps.familiarity), 6),
        "foreign": None if maps.foreign is None else bool(maps.foreign),
        "image_uncertainty": round(float(image_uncertainty(uncertainty)), 6),
        "expected_errors": round(float(uncertainty.sum(dtype=np.float64)), 1),
        "expected_accuracy": _number(accuracy),
        "expected_class_accuracy": {
            name: _number(part) for name, part in zip(classes, of_class) if not math.isnan(part)
        },
    }
    if options.review is not None:
        chosen = pixels_to_review(uncertainty, options.review)
        entry["to_review"] = round(float(chosen.mean()), 6)
    if options.reject is not None:
        entry["rejected"] = round(float(shares[IGNORE]), 6)
    return entry


def overview_of(entries: Mapping[str, dict], classes: Collection[str]) -> dict:
    """What the summary says of all images: expected accuracies, and which image to look at first.

    entries  name of an image -> `statistics_of` it;  classes  K names
    """
    errors, pixels = {}, {}
    for entry in entries.values():
        for name, accuracy in entry["expected_class_accuracy"].items():
            count = max(1, entry["shares"][name] * math.prod(entry["size"]))  # shares are rounded
            pixels[name] = pixels.get(name, 0) + count
            errors[name] = errors.get(name, 0) + count * (1 - accuracy)
    whole = 1 - sum(errors.values()) / sum(pixels.values()) if pixels else math.nan
    return {
        "calibrated": all(entry["calibrated"] for entry in entries.values()),
        "expected_accuracy": _number(whole),
        "expected_class_accuracy": {
            name: _number(1 - errors[name] / pixels[name]) for name in classes if name in pixels
        },
        "by_need": sorted(
            entries, key=lambda n: (not entries[n]["foreign"], -entries[n]["uncertainty"])
        ),
    }


def _number(value):
    """A JSON number of six digits; None for NaN."""
    return None if math.isnan(value) else round(float(value), 6)
