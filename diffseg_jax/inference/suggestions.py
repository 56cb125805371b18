"""Suggests which images, and which regions of them, to label next.

Each image is measured once: its descriptor, and with a network that predicts, its uncertainty. The
measurements stay in the output, so that a stopped command resumes and another count is chosen at
once. Which images are chosen is the subject of `metrics.choice`.
"""

import hashlib
import io
import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

import diffseg_jax
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError, counted, visible
from diffseg_jax.figures.layout import png_of, save_png
from diffseg_jax.figures.sheets import suggestion_sheet
from diffseg_jax.inference.batch import require_apart
from diffseg_jax.inference.frames import Frame, frames_note, read_each
from diffseg_jax.inference.image_descriptors import open_describer
from diffseg_jax.inference.images import find_images, matching
from diffseg_jax.inference.options import PredictOptions, require_integer
from diffseg_jax.inference.outputs import require_segmentation
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.summary import Summary, fingerprint_of
from diffseg_jax.metrics.choice import choose_images, uncertain_boxes
from diffseg_jax.metrics.familiarity import KnownImages
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.paths import (
    make_folder,
    open_path,
    read_bytes,
    read_object,
    write_atomically,
    write_json,
)
from diffseg_jax.storage.workdir import LISTED_IN

SUGGESTIONS, LISTED, SHEET = "suggestions.json", "suggestions.txt", "sheet.png"
MEASURED, COPIES = "measured", "images"  # folders in the output
WEIGHT = "image_uncertainty"  # of an image in the choice: the mean of its most uncertain tenth
DIGITS = 16  # of the digest of a file
MAX_DRAWN = 24  # images in the sheet
MAP_SIDE = 96  # pixels, the longer side of the maps of uncertainty that are kept for the sheet


def suggest_images(
    images: Sequence[str], output: str, count: int = 5, segmenter: Segmenter | None = None,
    labelled: Sequence[str] = (), features: str = "", copy: bool = False, keep_masks: bool = False,
    every: int = 1, display: Display | None = None,
) -> dict:  # fmt: skip
    """Writes which `count` images to label next; returns what suggestions.json holds.

    images      files, videos, folders and patterns
    segmenter   a trained network, which says where it is uncertain; None: images that differ
    labelled    files and folders of labelled images, of which none is suggested, nor what looks
                like them; those of which the network has learned are known
    features    by which images are compared, one of DESCRIBED_BY; "" = those of the segmenter, or
                as of `open_describer`
    copy        whether the images are copied to <output>/images, frames as PNG
    keep_masks  whether files that look like masks are images, too
    every       one in so many frames of a video, or pages of a file, is taken
    display     of the command; None: one of its own

    Raises UserError if fewer images are without labels, and for paths and folders.
    """
    if segmenter:
        require_segmentation(segmenter.config, "suggest", segmenter.directory)
    images, labelled = (matching(paths, output=output) for paths in (images, labelled))
    display = display or Display()
    require_apart([*images, *labelled], output)
    require_integer("count", count, 1, 10**6)
    found, notes = find_images(images, keep_masks, every)
    for note in (*notes, *frames_note(found, every)):
        display.say(f"note: {visible(note)}")
    if count > len(found):  # before minutes of work
        raise UserError(
            f"count is {count}, but --images holds {counted(len(found), 'image')}. Give a smaller "
            "--count, or more images."
        )
    known = find_images(labelled)[0] if labelled else []
    if not known and lists_parts(segmenter):
        display.say(
            "note: the run lists its training images by parts of their content or by files of many "
            "images, so some are not recognised and may be suggested; give them as --labelled"
        )
    look, identity = open_look(segmenter, features, display)
    folder = open_path(output)
    make_folder(folder)
    with locked(folder, "suggest", "--output"):
        summary = Summary(
            folder, identity, f"{MEASURED}.json", "measurements",
            lambda key: [measured_file(folder, key)], ("digest",),
        )  # fmt: skip
        sources = {str(source): (name, source) for name, source in [*known, *found]}
        measure_images(look, sources, summary, display)
        pool = Pool(folder, summary.content["pictures"], found, known, learned_from(segmenter))
        for line in pool.described():
            display.say(line)
        pool.require(count, summary.content["unreadable"])
        near = segmenter.known if segmenter and not features else None
        content = {
            "version": diffseg_jax.__version__, **identity, "images": len(found),
            "labelled_images": len(pool.covered), "suggestions": pool.suggest(count, near),
            "unreadable": summary.content["unreadable"],
        }  # fmt: skip
        chosen = [sources[each["path"]] for each in content["suggestions"]]
        write_suggestions(folder, content, chosen, segmenter)
        if copy:
            copy_images(folder / COPIES, chosen)
    return content


class Pool:
    """The measured images: those with labels, and those of which some are suggested.

    left     keys of the images without labels, in an order that does not depend on their names
    covered  keys of images with labels

    A key is the path of an image, or what names a frame.
    """

    def __init__(
        self, folder: Path, entries: dict, found: Sequence, known: Sequence, learned: Collection
    ):  # fmt: skip
        """found, known: (name, source) of images, of labelled ones; learned: digests of those."""
        self.folder, self.entries = folder, entries
        found, known = (
            {str(source): PurePath(name).name for name, source in part if str(source) in entries}
            for part in (found, known)
        )
        digests = {entries[key]["digest"] for key in known} | set(learned)
        self.labelled = {
            key for key, name in found.items()
            if name in known.values() or entries[key]["digest"] in digests
        }  # fmt: skip
        left = found.keys() - self.labelled
        self.left = sorted(left, key=lambda key: (entries[key]["digest"], key))
        self.covered = sorted(self.labelled | known.keys())

    def described(self) -> list[str]:
        """Lines about it, for people."""
        have = "has" if len(self.labelled) == 1 else "have"
        lines = [f"{counted(len(self.labelled), 'image')} {have} labels already"]
        return lines if self.labelled else []

    def require(self, count: int, unreadable: dict):
        """Raises UserError unless `count` images are left."""
        if not self.left and not self.labelled and unreadable:
            first = next(iter(unreadable.values()))
            raise UserError(f"none of the images can be read. The first: {first}")
        if not self.left:
            raise UserError("all images have labels already. Give --images with others.")
        if count > len(self.left):
            left = counted(len(self.left), "image")
            raise UserError(
                f"count is {count}, but {left} without labels can be read. Give "
                f"--count={len(self.left)} or less."
            )

    def suggest(self, count: int, known: KnownImages | None) -> list[dict]:
        """The entries of the images to label next, best first; JSON values.

        known  images that the network knows, by the same descriptors, in place of labelled ones
        """
        descriptors, covered = (
            np.array([read_measured(self.folder, key, "descriptor") for key in keys])
            for keys in (self.left, self.covered)
        )
        if not len(covered) and known and known.descriptors.shape[1] == descriptors.shape[1]:
            covered = known.descriptors.astype(np.float32)
        weights = np.array([self.entries[key].get(WEIGHT, 1) for key in self.left])
        chosen = choose_images(descriptors, weights, covered, count)
        return [self._entry(order, each) for order, each in enumerate(chosen, 1)]

    def _entry(self, order, chosen):
        measured = self.entries[key := self.left[chosen.index]]
        entry = {"order": order, "path": key, "score": round(chosen.score, 6)}
        distance = None if chosen.distance is None else round(chosen.distance, 6)
        kept = ("uncertainty", "image_uncertainty", "boxes", "size")
        return entry | {"distance": distance} | {k: measured[k] for k in kept if k in measured}


def learned_from(segmenter: Segmenter | None) -> set[str]:
    """Digests of the labelled images with which the run of a network learned, as it lists them."""
    listed = _listed_by_run(segmenter)
    try:
        return {
            digests[:DIGITS] for found in listed.values() if found["whole"]
            for digests in found["files"].values() if len(digests) > DIGITS  # of image and mask
        }  # fmt: skip
    except (LookupError, TypeError, AttributeError):
        return set()


def lists_parts(segmenter: Segmenter | None) -> bool:
    """Whether labelled images of the run of a network are missing in `learned_from`.

    Of large sets and in buckets it did not read whole files, and TFDS keeps many images in one.
    """
    listed = _listed_by_run(segmenter)
    try:
        return any(
            not found["whole"] or any(len(digests) <= DIGITS for digests in found["files"].values())
            for found in listed.values() if found["ids"] and found["files"]  # has masks, and files
        )  # fmt: skip
    except (LookupError, TypeError, AttributeError):
        return False


def _listed_by_run(segmenter):
    """The fingerprints of the data of a run; {} without a run."""
    if segmenter is None:
        return {}
    return read_object(segmenter.directory.parent.parent / LISTED_IN)


# ---- writing -------------------------------------------------------------------------------------


def write_suggestions(
    folder: Path, content: dict, sources: Sequence[tuple], segmenter: Segmenter | None
):  # fmt: skip
    """Writes suggestions.json, suggestions.txt and sheet.png; sources: (name, source) of each."""
    chosen = content["suggestions"]
    shown = chosen[:MAX_DRAWN]
    images = list(images_of(sources[:MAX_DRAWN]).values())
    titles = [f"{each['order']}  {PurePath(each['path']).name}{_percent(each)}" for each in shown]
    boxes = [[box["box"] for box in each.get("boxes", ())] for each in shown]
    maps = segmenter and [
        read_measured(folder, each["path"], "uncertainty") / np.float32(255) for each in shown
    ]
    calibrated = segmenter is not None and segmenter.calibrator is not None
    save_png(folder / SHEET, suggestion_sheet(images, titles, boxes, maps, calibrated))
    paths = "".join(f"{each['path']}\n" for each in chosen)
    write_atomically(folder / LISTED, paths.encode(errors="surrogateescape"))
    write_json(folder / SUGGESTIONS, content)


def _percent(entry):
    return f"  {100 * entry['uncertainty']:.1f} %" if "uncertainty" in entry else ""


def images_of(sources: Sequence[tuple[str, str | Frame]]) -> dict[str, np.ndarray]:
    """key -> image u8[H,W,3] of sources with names, in their order; UserError if one is gone."""
    found = {str(source): image for _, source, image in read_each(sources)}
    for image in found.values():
        if isinstance(image, UserError):
            raise image
    return {str(source): found[str(source)] for _, source in sources}


def copy_images(folder: Path, sources: Sequence[tuple[str, str | Frame]]):
    """Copies files, and frames as PNG; a file of that name stays, and the copy gets a number."""
    for name, source in sources:
        if isinstance(source, Frame):
            (image,) = images_of([(name, source)]).values()
            content = png_of(Image.fromarray(image))
            name = PurePath(f"{PurePath(name).name}.png")
        else:
            content, name = read_bytes(source), PurePath(source)
        for number in itertools.count(1):
            copy = folder / (name.name if number == 1 else f"{name.stem}_{number}{name.suffix}")
            if not copy.exists():
                write_atomically(copy, content)
                break
            if copy.read_bytes() == content:
                break


# ---- measuring -----------------------------------------------------------------------------------


def open_look(
    segmenter: Segmenter | None, features: str, display: Display
) -> tuple[Callable, dict]:
    """How images are measured, and what the measurements depend on, JSON values.

    Images with names -> for each (image, uncertainty f32[H,W] or None, descriptor f32[C]). Says
    by what images are compared. Raises UserError for a network that cannot segment.
    """
    identity = {"checkpoint": None, "step": None, "weights": None, "calibrator": None}
    describe, compared, why = None, "network", ""
    if segmenter is None or features:
        describe, compared, why = open_describer(features)
    if segmenter is not None:
        segmenter.predict_named(iter(()), PredictOptions())  # raises where it cannot segment
        calibrator = segmenter.calibrator
        identity = {
            "checkpoint": str(segmenter.directory), "step": segmenter.step,
            "weights": segmenter.fingerprint,
            "calibrator": calibrator and fingerprint_of(calibrator),
        }  # fmt: skip
    what = {
        "network": "features of the network of the checkpoint",
        "colour": "mean colours and their deviation in 16 cells",
    }.get(compared, f"features of {compared}")
    display.say(f"compares images by {what}{f', as {why}' if why else ''}")

    def look(named):
        if segmenter is None:
            return ((image, None, describe(image)) for _, image in named)
        predictions = segmenter.predict_named(named, PredictOptions())
        return (
            (p.images[0], p.uncertainty[0], describe(p.images[0]) if describe else p.descriptors[0])
            for p in predictions
        )

    return look, {**identity, "compared_by": compared}


def measure_images(
    look: Callable, sources: dict[str, tuple[str, str | Frame]], summary: Summary, display: Display
):
    """Measures those images that are not measured yet; sources: key -> (name, source).

    A file for each holds its descriptor, and a small map of its uncertainty.
    """
    remaining = [each for key, each in sources.items() if not summary.is_done(key, each[1])]
    if len(remaining) < len(sources):
        done = len(sources) - len(remaining)
        display.say(f"{done} of {len(sources)} images are measured already")
    waiting = deque()
    shown = display.progress("measures images", len(remaining), unit="images", first=COMPILES)

    def readable():
        for name, source, image in read_each(remaining):
            if isinstance(image, UserError):
                summary.content["unreadable"][str(source)] = str(image)
                progress.add()
            else:
                waiting.append((source, source_digest(source, image)))
                yield name, image

    with shown as progress:
        try:
            for image, uncertainty, descriptor in look(readable()):
                source, digest = waiting.popleft()
                save_measured(measured_file(summary.folder, str(source)), descriptor, uncertainty)
                entry = {"digest": digest, "size": list(image.shape[:2])}
                summary.add(str(source), source, entry | of_uncertainty(uncertainty))
                progress.add()
        finally:
            summary.save()


def source_digest(source: str | Frame, image: np.ndarray) -> str:
    """Sixteen hexadecimal digits of a file, those of LISTED_IN, or of the pixels of a frame."""
    content = image.tobytes() if isinstance(source, Frame) else read_bytes(source)
    return hashlib.blake2b(str(len(content)).encode() + content, digest_size=8).hexdigest()


def of_uncertainty(uncertainty: np.ndarray | None) -> dict:
    """The numbers that are kept of a map of uncertainty; JSON values."""
    if uncertainty is None:
        return {}
    boxes = [
        {"box": box, "uncertainty": round(mean, 6)} for box, mean in uncertain_boxes(uncertainty)
    ]
    return {
        "uncertainty": round(float(uncertainty.mean(dtype=np.float64)), 6),
        "image_uncertainty": round(image_uncertainty(uncertainty), 6),
        "boxes": boxes,
    }


def measured_file(folder: Path, key: str) -> Path:
    """The file with the measurements of an image."""
    name = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return folder / MEASURED / f"{name}.npz"


def save_measured(file: Path, descriptor: np.ndarray, uncertainty: np.ndarray | None):
    """Writes a descriptor, and a small map of the uncertainty if there is one."""
    arrays, content = {"descriptor": descriptor.astype(np.float32)}, io.BytesIO()
    if uncertainty is not None:
        small = Image.fromarray(uncertainty.astype(np.float32))
        small.thumbnail((MAP_SIDE, MAP_SIDE), Image.Resampling.BOX)
        arrays["uncertainty"] = np.rint(255 * np.asarray(small)).astype(np.uint8)
    np.savez_compressed(content, **arrays)
    write_atomically(file, content.getvalue())


def read_measured(folder: Path, key: str, name: str) -> np.ndarray:
    """The array "descriptor" or "uncertainty" that was kept of an image."""
    content = measured_file(folder, key).read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays[name]
