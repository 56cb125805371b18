"""Writes the features of images to files, one .npz of maps per image."""

import io
import os
import re
from collections.abc import Sequence

import jax
import numpy as np

from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, visible
from diffseg_jax.inference.batch import announce_sizes, require_apart
from diffseg_jax.inference.frames import frames_note, read_each
from diffseg_jax.inference.images import find_images, matching
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.summary import Summary
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.sources.feature_source import FeatureSource, joined
from diffseg_jax.sources.from_files import DESCRIPTION_FILE
from diffseg_jax.sources.own_run import run_source
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.paths import make_folder, open_path, write_atomically
from diffseg_jax.systems.clean_config import unets_in
from diffseg_jax.systems.feature_sources import RUNS, TRAINED, chosen_sources, trained_source
from diffseg_jax.systems.source_files import arrays_in, with_mae_of_stage


@own_settings()
def source_of(segmenter: Segmenter, taps: Sequence[str] = ()) -> FeatureSource:
    """The features of a network as a source; () = the default taps.

    Raises UserError for unknown taps, and for a network that reads maps from files.
    """
    task = segmenter.meta["task"]
    if segmenter.system in RUNS:
        task, normalisation = segmenter.task, segmenter.task.meta["normalisation"]
        return run_source(
            segmenter.system, task.init, task.features, normalisation, taps, (1.0,), "float32"
        )
    size = tuple(task.get("size", (64, 64)))
    if task["kind"] in TRAINED:
        default = [tap for tap in segmenter.taps if tap.startswith("output")]
        default.sort(key=lambda tap: [int(part) for part in re.findall(r"\d+", tap)][::-1])
        return trained_source(segmenter.config, task["kind"], size, taps or default)
    config = segmenter.config
    config = with_mae_of_stage(config, task) if task["kind"] == "mae" else config
    source = joined(chosen_sources(config, size, taps, "--taps"))
    if source.files:
        raise UserError(
            f"{segmenter.directory} reads maps from files in {source.files.folder}, which are "
            "features already. Give --checkpoint of the network that wrote them, or of another one."
        )
    return source


@own_settings()
def write_features(
    segmenter: Segmenter, images: Sequence[str], output: str, taps: Sequence[str] = (),
    keep_masks: bool = False, every: int = 1, display: Display | None = None,
) -> int:  # fmt: skip
    """Writes <name>.npz for every image; returns their number.

    every    one in so many frames of a video, or pages of a file, is taken
    display  of the command; None: one of its own

    Finished images are skipped unless they have changed since.

    A file holds map_00, map_01, ... f32[h,w,C] in the order of the channels, and `covered`
    f64[maps, 2], the fractions of a map's height and width that the image fills. features.json
    describes all, and holds the size and time of every finished image. Raises UserError if there is
    no image, and for a folder with other features.
    """
    images, display = matching(images, output=output), display or Display()
    require_apart(images, output)
    folder, source = open_path(output), source_of(segmenter, taps)
    found, notes = find_images(images, keep_masks, every)
    for note in (*notes, *frames_note(found, every)):
        display.say(f"note: {visible(note)}")
    network = segmenter.network
    if segmenter.system in RUNS:
        network = {part: {segmenter.system: network[part]} for part in network}
    elif (kind := segmenter.meta["task"]["kind"]) in TRAINED:
        unets = unets_in(network["params"], kind)
        network = {"params": unets, "stats": {"noise": np.zeros(())}}  # drawn for each image
    elif kind == "mae":
        network = arrays_in("mae", network, segmenter.meta["task"])
    extract = jax.jit(source.extract)
    make_folder(folder)
    with locked(folder, "features", "--output"):
        summary = Summary(
            folder, _description(segmenter, source, taps), DESCRIPTION_FILE, "features",
            lambda name: [folder / f"{name}.npz"],
        )  # fmt: skip
        remaining = summary.remaining(found)
        if remaining:
            network = jax.device_put(network, segmenter.mesh.devices.flat[0])
        with display.progress("images", len(remaining), unit="images") as progress:
            try:
                for (name, source), image in announce_sizes(_readable(remaining), progress):
                    made = _npz(_features(extract, network, image))
                    write_atomically(folder / f"{name}.npz", made)
                    summary.add(name, source, {})
                    progress.add()
            finally:
                summary.save()
    return len(found)


def _readable(remaining):
    """((name, source), image) of each; raises UserError for the first one that cannot be read."""
    for name, source, image in read_each(remaining):
        if isinstance(image, UserError):
            raise image
        yield (name, source), image


def _features(extract, network, image) -> PixelFeatures:
    valid = np.array([image.shape[:2]], np.int32)
    return extract(network, image[None], valid)


def _npz(features: PixelFeatures) -> bytes:
    maps = {f"map_{i:02}": np.asarray(values[0]) for i, values in enumerate(features.maps)}
    file = io.BytesIO()
    np.savez(file, covered=np.array(features.covered), **maps)
    return file.getvalue()


def _description(segmenter, source, taps) -> dict:
    """The entries of features.json about the network and its maps; JSON values."""
    return {
        "source": source.name, "checkpoint": os.fspath(segmenter.directory),
        "weights": segmenter.fingerprint, "dtype": segmenter.config.dtype, "taps": list(taps),
        "normalisation": source.normalisation, "stride": source.stride,
    }  # fmt: skip
