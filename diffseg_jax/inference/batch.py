"""Predicts images of files and folders, and writes label maps, uncertainty and a summary."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.progress import MofNCompleteColumn, Progress

import diffseg_jax
from diffseg_jax.config.schema import differing_lines
from diffseg_jax.data.images import read_image
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError, visible
from diffseg_jax.figures import sheets
from diffseg_jax.inference.images import find_images, matching
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.prediction import FILES, Prediction, path_of
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.paths import in_bucket, make_folder, open_path, write_json

SAVE_EVERY = 2  # seconds between two versions of the summary
MANY_SIZES = 5  # image sizes, each of which compiles, after which a hint is printed
PALETTES = ("own", "readable")


class Summary:
    """How files were written for images, and which are finished or could not be read.

    file     its name
    what     the folder holds, for people
    outputs  name of an image -> the paths of its files; None = those of a prediction
    Raises UserError if the folder holds those of another network or with other options.
    """

    def __init__(
        self, folder: Path, metadata: dict, file: str = "summary.json", what: str = "predictions",
        outputs: Callable[[str], list] | None = None,
    ):  # fmt: skip
        self.folder, self.file, self.what = folder, folder / file, what
        self.outputs = outputs or (lambda name: [path_of(folder, name, each) for each in FILES])
        self.content = {**metadata, "pictures": {}, "unreadable": {}}
        self.saved = 0.0
        if self.file.exists():
            self._take_over(metadata)

    def _take_over(self, metadata):
        """Continues the summary of the same command."""
        try:
            old = json.loads(self.file.read_text())
            old_metadata = {key: old[key] for key in metadata}
            finished = dict(old["pictures"])
            self.content["pictures"] = {
                name: entry for name, entry in finished.items() if {"file", "stamp"} <= entry.keys()
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"{self.file} was not written by this command. Give another --output."
            ) from None
        if lines := differing_lines(old_metadata, metadata):
            raise UserError(
                f"{self.folder} holds {self.what} of another command; give another --output, or "
                "undo:\n  " + "\n  ".join(lines)
            )

    def is_done(self, name: str, path: str) -> bool:
        """Whether all files of an image are there, and the image has not changed since."""
        entry = self.content["pictures"].get(name)
        if entry is None or entry["file"] != path or entry["stamp"] != stamp(path):
            return False
        return all(open_path(path).exists() for path in self.outputs(name))

    def add(self, name: str, path: str, described: Mapping):
        """Notes that an image is finished, and writes the file if it is SAVE_EVERY old."""
        self.content["pictures"][name] = {"file": path, "stamp": stamp(path), **described}
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self):
        """Writes the file atomically, images in the order of their names."""
        self.content["pictures"] = dict(sorted(self.content["pictures"].items()))
        write_json(self.file, self.content)
        self.saved = time.monotonic()


def stamp(path: str) -> list[int]:
    """Size in bytes and time of the last change: if they differ, the image is another one."""
    status = open_path(path).stat()
    if in_bucket(path):
        return [int(status.length), int(status.mtime)]
    return [status.st_size, status.st_mtime_ns]


def statistics_of(prediction: Prediction) -> dict:
    """The entry of one image in the summary; JSON values."""
    uncertainty = prediction.uncertainty[0]
    return {
        "size": list(uncertainty.shape),
        "shares": {name: round(part, 6) for name, part in prediction.class_shares().items()},
        "uncertainty": round(float(uncertainty.mean()), 6),
        "image_uncertainty": round(float(image_uncertainty(uncertainty)), 6),
    }


def metadata_of(segmenter: Segmenter, labels: Labels, options: PredictOptions) -> dict:
    """The entries of the summary about the network and the options; JSON values."""
    classes = zip(labels.names, labels.palette, strict=True)
    return {
        "version": diffseg_jax.__version__,
        "checkpoint": str(segmenter.directory),
        "step": segmenter.step,
        "weights": segmenter.fingerprint,
        "system": segmenter.system,
        "dtype": segmenter.config.dtype,
        "classes": [{"name": name, "color": list(colour)} for name, colour in classes],
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(options).items()
        },
    }


def predict_files(
    segmenter: Segmenter, images: Sequence[str], output: str, options: PredictOptions,
    palette: str = "own", keep_masks: bool = False,
) -> dict:  # fmt: skip
    """Writes the predictions for images, and for all images in folders; returns the summary.

    palette     one of PALETTES
    keep_masks  whether files in folders that look like masks are predicted too

    Finished images are skipped, unreadable ones are listed. Raises UserError if there is no image
    or none can be read, and as `Summary`.
    """
    images = matching(images)
    require_apart(images, output)
    folder = open_path(output)
    found, notes = find_images(images, keep_masks)
    for note in notes:
        print(f"note: {visible(note)}", flush=True)
    colours = distinct_colours(len(segmenter.names)) if palette == "readable" else segmenter.palette
    labels = Labels(segmenter.names, colours)
    summary = Summary(folder, metadata_of(segmenter, labels, options))
    remaining = {name: path for name, path in found if not summary.is_done(name, path)}
    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn())
    task = bar.add_task("images", total=len(remaining))
    named = readable(remaining, summary, lambda: bar.advance(task))
    named = announce_sizes(named, bar.console, options.round_to)
    predictions = segmenter.predict_named(named, options)
    make_folder(folder)
    with locked(folder, "predict", "--output"):
        sheets.save_png(folder / "legend.png", sheets.prediction_legend(labels))
        if len(remaining) < len(found):
            done = len(found) - len(remaining)
            print(f"{done} of {len(found)} images are done already", flush=True)
        with bar:
            try:
                for prediction in predictions:
                    prediction.recoloured(colours).save(output)
                    (name,) = prediction.names
                    summary.add(name, remaining[name], statistics_of(prediction))
                    bar.advance(task)
            finally:
                summary.save()
    if remaining and not summary.content["pictures"]:
        first = next(iter(summary.content["unreadable"].values()))
        raise UserError(f"none of {len(found)} images can be read. The first: {first}")
    return summary.content


def readable(
    remaining: dict[str, str], summary: Summary, advance: Callable[[], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and image of each file that can be read; the others go into the summary."""
    for name, path in remaining.items():
        try:
            yield name, read_image(path)
        except UserError as error:
            summary.content["unreadable"][path] = str(error)
            advance()


def announce_sizes(named, console, round_to) -> Iterator[tuple[str, np.ndarray]]:
    """The images with names; prints which sizes are new, and a hint after MANY_SIZES of them."""
    sizes = set()
    for name, image in named:
        height, width = size = image.shape[:2]
        if size not in sizes:
            sizes.add(size)
            console.print(f"{height} x {width}: compiles if this size is new", highlight=False)
            if len(sizes) == MANY_SIZES and not round_to:
                console.print(
                    f"{MANY_SIZES} sizes so far, each of which may compile for some seconds; "
                    "--round_to=64 lets many share programs, by resizing them a little",
                    highlight=False,
                )
        yield name, image


def require_apart(images: Sequence[str], output: str):
    """Raises UserError if predictions would be written into a folder of images."""
    folders = [Path(path) for path in images if not in_bucket(path) and os.path.isdir(path)]
    for folder in [] if in_bucket(output) else folders:
        if Path(output).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--output={output} lies in --images={folder}, so the next command would take "
                "predictions for images. Give another folder."
            )
