"""Predicts images of files and folders, and writes label maps, uncertainty and a summary."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.data.images import read_image
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES, Progress
from diffseg_jax.errors import UserError, visible
from diffseg_jax.inference.frames import Frame, container_of, frames_note, is_video, read_each
from diffseg_jax.inference.georeference import georeference_of
from diffseg_jax.inference.images import find_images, matching
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.saved import EXTRA, SaveOptions, named_maps_of, path_of, write_coco
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.summary import Summary, add_all, metadata_of, require_one_read
from diffseg_jax.inference.videos import count_frames, frame_rate, write_video
from diffseg_jax.inference.views import predict_whole
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.outputs import require_outside
from diffseg_jax.storage.paths import in_bucket, make_folder, open_path

MANY_SIZES = 5  # image sizes, each of which compiles, after which a hint is printed
PALETTES = ("own", "readable")
OVERLAY = "overlay.mp4"  # the end of the name of a video of overlays


def predict_files(
    segmenter: Segmenter, images: Sequence[str], output: str, options: PredictOptions,
    palette: str = "own", keep_masks: bool = False, saved: SaveOptions | None = None,
    every: int = 1, video: bool = False, display: Display | None = None,
) -> dict:  # fmt: skip
    """Writes the predictions for images, and for all images in folders; returns the summary.

    palette     one of PALETTES
    saved       what is written for each image; None = the usual files
    keep_masks  whether files in folders that look like masks are predicted too
    every       one in so many frames of a video, or pages of a file, is predicted
    video       whether a video of the overlays is written for every video
    display     of the command; None: one of its own

    Finished images are skipped, unreadable ones are listed. Raises UserError if there is no image
    or none can be read, and as `Summary`.
    """
    saved, display = saved or SaveOptions(), display or Display()
    if segmenter.output.of_files:
        others = {"keep_masks": keep_masks, "every": every != 1 and every, "video": video}
        return segmenter.output.of_files(
            segmenter, images, output, options, saved, others, palette, display
        )
    images = matching(images, output=output)
    require_apart(images, output)
    folder = open_path(output)
    found, notes = find_images(images, keep_masks, every)
    for note in (*notes, *frames_note(found, every)):
        display.say(f"note: {visible(note)}")
    clips = clips_in(found, folder) if video else {}
    places = {name: georeference_of(source) for name, source in found if isinstance(source, str)}
    places = {name: place for name, place in places.items() if place}
    output_kind = segmenter.output
    output_kind.check(saved)
    require_maps(segmenter, options, saved)
    colours = segmenter.palette
    if palette == "readable" and segmenter.names:
        colours = distinct_colours(len(segmenter.names))
    labels = Labels(segmenter.names, colours)
    summary = Summary(
        folder, metadata_of(segmenter, labels, options, saved),
        outputs=lambda name: [
            path_of(folder, name, each) for each in output_kind.endings(saved, name in places)
        ],
        required=output_kind.required,
        overview=lambda entries: output_kind.overview(entries, labels.names),
        added=("calibrator",),
    )  # fmt: skip
    summary.content["files"] = output_kind.described(saved, bool(places))
    remaining = dict(summary.remaining(found))
    progress = display.progress("images", len(remaining), unit="images")
    named = readable(remaining, summary, progress.add)
    named = announce_sizes(named, progress, None if options.round_to else display.say)
    predictions = segmenter.predict_named(named, options, keep=saved.extra)
    make_folder(folder)
    with locked(folder, "predict", "--output"):
        if len(remaining) < len(found):
            done = len(found) - len(remaining)
            display.say(f"{done} of {len(found)} images are done already")
        written = (
            entry
            for prediction in predictions
            for entry in prediction.recoloured(colours).write(folder, saved, places).items()
        )
        legend = lambda: output_kind.legend(labels, summary.content["calibrated"], saved)
        with progress:
            add_all(summary, written, remaining, progress.add, legend)
        finished = summary.content["pictures"]
        if saved.contours == "coco":
            write_coco(folder, {name: entry["file"] for name, entry in finished.items()})
        write_videos(
            folder, clips, remaining, finished, every, display, output_kind.shown
        )  # fmt: skip
    require_one_read(summary, found, "images")
    return summary.content


def require_maps(segmenter: Segmenter, options: PredictOptions, saved: SaveOptions):
    """Raises UserError for a map to save that the network does not have; it is traced only."""
    if set(saved.extra) <= {"uncertainty"} or segmenter.task.files:
        return
    segmenter.require_predictions()
    _, task = segmenter.compiled(options.steps, options.samples)

    def maps_of(*given):
        maps = predict_whole(task.predict(*given), jnp, decision=segmenter.output.decision)
        return {name: values for name, values in {**vars(maps), **maps.signals}.items()
                if name in EXTRA}  # fmt: skip

    image = jax.ShapeDtypeStruct((1, *segmenter.crop, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    named_maps_of(jax.eval_shape(maps_of, segmenter.network, image, valid), saved)


def readable(
    remaining: dict[str, str | Frame], summary: Summary, advance: Callable[[], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and image of each source that can be read; the others go into the summary."""
    for name, source, image in read_each(remaining.items()):
        if isinstance(image, UserError):
            summary.content["unreadable"][container_of(source)] = str(image)
            advance()
        else:
            yield name, image


def clips_in(
    found: Sequence[tuple[str, str | Frame]], folder: Path
) -> dict[str, dict[str, Frame]]:  # fmt: skip
    """Name of each video -> its frames by name.

    Raises UserError if there is no video, and if the folder of the output is in a bucket.
    """
    if in_bucket(folder):
        raise UserError(
            f"--video=True writes videos to this machine only, but --output is {folder}. Give "
            "another --output, or leave --video out."
        )
    clips = {}
    for name, source in found:
        if is_video(container_of(source)):
            clip = name.rpartition(f"_{source.number:06d}")[0]  # a number may follow
            clips.setdefault(clip, {})[name] = source
    if not clips:
        raise UserError("--video=True, but there is no video among the images. Leave it out.")
    return clips


def write_videos(
    folder: Path, clips: dict, remaining: Collection, finished: Collection, every: int,
    display: Display, shown: str = "overlay.png",
):  # fmt: skip
    """Writes <video>_overlay.mp4 of the overlays of its finished frames, unless it is up to date.

    clips  as of `clips_in`;  remaining, finished  names of images;  shown  as of `OutputKind`
    """
    for clip, frames in clips.items():
        names, target = [name for name in frames if name in finished], folder / f"{clip}_{OVERLAY}"
        if not names or (not frames.keys() & remaining and _holds(target, len(names))):
            continue
        display.say(f"writes {target}")
        overlays = (read_image(path_of(folder, name, shown)) for name in names)
        with display.progress(target.name, len(names), unit="frames") as progress:
            rate = frame_rate(frames[names[0]].path) / every
            write_video(target, progress.each_of(overlays), rate)


def _holds(video, count):
    """Whether a video has so many frames: with another `every`, it is written again."""
    try:
        return video.exists() and count_frames(str(video)) == count
    except UserError:
        return False


def announce_sizes(
    named: Iterator[tuple[str, np.ndarray]], progress: Progress,
    say: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:  # fmt: skip
    """The images with names; shows that new sizes compile.

    say  takes a hint after MANY_SIZES; None: there is none
    """
    sizes = set()
    for name, image in named:
        height, width = size = image.shape[:2]
        if size not in sizes:
            sizes.add(size)
            progress.begins(f"{height} x {width}, {COMPILES}")
            if len(sizes) == MANY_SIZES and say:
                say(
                    f"{MANY_SIZES} sizes so far, each of which may compile for some seconds; "
                    "--round_to=64 lets many share programs, by resizing them a little"
                )
        yield name, image


def require_apart(images: Sequence[str], output: str):
    """Raises UserError if predictions would be written into a folder of images."""
    folders = [Path(path) for path in images if not in_bucket(path) and os.path.isdir(path)]
    for folder in [] if in_bucket(output) else folders:
        require_outside(Path(output), folder, "images", "predictions for images")
