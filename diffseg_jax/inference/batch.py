"""Pictures in files or folders -> label maps, uncertainty and a summary in files."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import MofNCompleteColumn, Progress

import diffseg_jax
from diffseg_jax.config.schema import differing_lines
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError
from diffseg_jax.figures import sheets
from diffseg_jax.inference import prediction
from diffseg_jax.inference.images import list_pictures, read_upright
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.storage.paths import in_bucket, make_folder, open_path, write_json

SAVE_EVERY = 2  # seconds between two versions of the summary
MANY_SIZES = 5  # compiled programs after which a hint is given
PALETTES = ("own", "readable")


class Summary:
    """summary.json: what was answered how, and which pictures are done or could not be read.

    Raises UserError where the folder holds answers of another network or of other options.
    """

    def __init__(self, folder: str, facts: dict):
        self.folder, self.file = folder, open_path(folder) / "summary.json"
        self.content = {**facts, "pictures": {}, "unreadable": {}}
        self.saved = 0.0
        if self.file.exists():
            self._take_over(facts)

    def _take_over(self, facts):
        try:
            old = json.loads(self.file.read_text())
            there = {word: old[word] for word in facts}
            self.content["pictures"] = dict(old["pictures"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.file} is not of this command. Give another --output.") from None
        if lines := differing_lines(there, facts):
            raise UserError(
                f"{self.folder} holds answers of another command; give another --output, or undo:"
                + "\n  "
                + "\n  ".join(lines)
            )

    def is_done(self, name: str, path: str) -> bool:
        """Whether all files of a picture are there, and the picture is what it was."""
        entry = self.content["pictures"].get(name)
        if entry is None or entry["file"] != path or entry["stamp"] != stamp(path):
            return False
        files = (prediction.path_of(self.folder, name, kind) for kind in prediction.KINDS)
        return all(open_path(file).exists() for file in files)

    def add(self, name: str, path: str, answer: prediction.Answer, classes):
        """Notes the answer for a picture, and writes the file now and then."""
        facts = prediction.facts_of(answer, classes)
        self.content["pictures"][name] = {"file": path, "stamp": stamp(path), **facts}
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self):
        """Writes the file whole, pictures in the order of their names."""
        self.content["pictures"] = dict(sorted(self.content["pictures"].items()))
        write_json(self.file, self.content)
        self.saved = time.monotonic()


def stamp(path: str) -> list[int]:
    """Bytes of a file and when it was last changed: other numbers, another picture."""
    facts = open_path(path).stat()
    if in_bucket(path):
        return [int(facts.length), int(facts.mtime)]
    return [facts.st_size, facts.st_mtime_ns]


def predict_files(
    segmenter: Segmenter, images: Sequence[str], output: str, palette: str = "own", **options
) -> dict:
    """Answers for pictures and all pictures of folders, in files; the content of summary.json.

    palette  one of PALETTES
    options  of `Segmenter.predict`

    Pictures that are done are left out, those that cannot be read are listed. Raises UserError when
    no picture is there or none can be read, and as `Summary`.
    """
    check_apart(images, output)
    found = list_pictures(images)
    colours = distinct_colours(len(segmenter.names)) if palette == "readable" else segmenter.palette
    labels = Labels(segmenter.names, colours)
    summary = Summary(output, facts_of(segmenter, labels, options))
    left = {name: path for name, path in found if not summary.is_done(name, path)}
    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn())
    task = bar.add_task("pictures", total=len(left))
    pictures = readable(left, summary, lambda: bar.advance(task))
    pictures = saying_sizes(pictures, bar.console, options.get("round_to"))
    answered = segmenter.answers(pictures, **options)
    if not in_bucket(output):
        make_folder(output)
    sheets.save_png(f"{output}/legend.png", sheets.legend_of_answers(labels))
    if len(left) < len(found):
        print(f"{len(found) - len(left)} of {len(found)} pictures are done already", flush=True)
    with bar:
        try:
            for answer in answered:
                prediction.save_answer(output, answer, labels)
                summary.add(answer.name, left[answer.name], answer, segmenter.names)
                bar.advance(task)
        finally:
            summary.save()
    if left and not summary.content["pictures"]:
        first = next(iter(summary.content["unreadable"].values()))
        raise UserError(f"none of {len(found)} pictures can be read. The first: {first}")
    return summary.content


def readable(
    left: dict[str, str], summary: Summary, passed_over: Callable[[], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of each file that can be read; the others are noted and passed over."""
    for name, path in left.items():
        try:
            yield name, read_upright(path)
        except UserError as error:
            summary.content["unreadable"][path] = str(error)
            passed_over()


def saying_sizes(pictures, console, round_to) -> Iterator[tuple[str, np.ndarray]]:
    """The pictures; says which sizes are new, and once what helps where there are many."""
    sizes = set()
    for name, image in pictures:
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


def check_apart(images: Sequence[str], output: str):
    """Raises UserError where answers would be written among the pictures."""
    folders = [Path(path) for path in images if not in_bucket(path) and os.path.isdir(path)]
    for folder in [] if in_bucket(output) else folders:
        if Path(output).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--output={output} lies in --images={folder}, so that answers would be taken for "
                "pictures the next time. Give a folder elsewhere."
            )


def facts_of(segmenter: Segmenter, labels: Labels, options: dict) -> dict:
    """What a summary says of the network and how it was asked; JSON values."""
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
            word: list(value) if isinstance(value, tuple) else value
            for word, value in options.items()
        },
    }
