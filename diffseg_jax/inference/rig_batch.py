"""Predicts maps of rigs of cameras: of arrays, and of files and folders with a summary."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

import numpy as np

from diffseg_jax.data.bev_transforms import RigView, network_input, require_lidar
from diffseg_jax.data.files import split_files
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.data.rig_files import RIG_EXAMPLE, count_cameras, photographs_of, read_rig
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError, counted, visible
from diffseg_jax.figures.layout import legend
from diffseg_jax.inference.bev_maps import BEVMaps, BEVPrediction, maps_from
from diffseg_jax.inference.images import matching, named_files
from diffseg_jax.inference.options import PredictOptions, require_integer
from diffseg_jax.inference.rig_forward import make_rig_forward, view_of
from diffseg_jax.inference.saved import SaveOptions, path_of
from diffseg_jax.inference.summary import (
    Summary,
    add_all,
    metadata_of,
    require_one_read,
    stamp,
)
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.paths import make_folder, open_path
from diffseg_jax.systems.ddp_bev import BEV

FOR_RIGS = ("steps", "samples", "seed", "batch_size")  # of the options of a prediction
RIG_ENDINGS = (".json",)
RIG_FILES = {  # end of a file's name -> what it holds, as in summary.json
    "map.png": "the classes above one half in their colours; ahead is the top",
    "sheet.png": "the images of the cameras, the map and its uncertainty",
    "probs.npy": "the probability of each class, float32[K, X, Y]",
}


def needs_rigs(segmenter) -> UserError:
    """That a network reads no single images, and what it reads."""
    return UserError(
        f"{segmenter.directory} predicts maps seen from above, from the images of several cameras "
        f"with their calibration ({counted(len(segmenter.names), 'class')}). Give a folder of "
        "NAME.json files, which list photographs with intrinsics and camera_to_world, as --images, "
        "or call diffseg_jax.inference.bev_output.predict_rigs."
    )


def rig_maps(segmenter, rigs: Iterable[Mapping], options: PredictOptions) -> Iterator[BEVMaps]:
    """The maps of rigs, in order; one program serves all rigs with the same number of cameras.

    rigs  as of `predict_rigs`, those with the same number of cameras one after the other

    The last of several batches is padded to share the program of the others.
    """
    size = segmenter.batch_size if options.batch_size is None else options.batch_size
    require_integer("batch_size", size, 1, 2**16)
    program, task = segmenter.compiled(options.steps, options.samples)
    program = functools.partial(program, seed=segmenter.seed_for(options.seed))
    view, settings = view_of(task.meta), BEV.settings_of(task.meta)
    features = *settings.noisy, settings.lidar
    for _, group in itertools.groupby(rigs, key=lambda rig: len(rig["images"])):
        first = True
        while batch := list(itertools.islice(group, size)):
            rows = 1 if first and len(batch) == 1 else size
            first = False
            for rig in batch:
                require_lidar(rig, features, "Give it in Python, to predict_rigs.", "Leave it out.")
            forward = make_rig_forward(program, segmenter.placed, segmenter.mesh, rows, view)
            maps = maps_from(forward(batch))
            yield from (maps[row] for row in range(len(batch)))


# ---- files -------------------------------------------------------------------------------------


def predict_rig_files(
    segmenter, images: Sequence[str], output: str, options: PredictOptions, saved: SaveOptions,
    others: Mapping, palette: str, display: Display,
) -> dict:  # fmt: skip
    """Writes the maps of all NAME.json among files, patterns and folders; returns the summary.

    others   options of `predict_files` that only images have, and their values
    palette  one of PALETTES

    Finished rigs are skipped, unreadable ones are listed. Raises UserError for options that only
    images have, where there is no rig or none can be read, and as `Summary`.
    """
    require_options_of_rigs({**vars(options), **saved.changed(), **others})
    found, notes = find_rigs(segmenter, images, output)
    for note in notes:
        display.say(f"note: {visible(note)}")
    folder = open_path(output)
    colours = distinct_colours(len(segmenter.names)) if palette == "readable" else segmenter.palette
    labels = Labels(segmenter.names, colours)
    bound = tuple(segmenter.meta["task"]["model"]["output"])
    summary = Summary(
        folder, metadata_of(segmenter, labels, options, saved) | {"output": list(bound)},
        outputs=lambda name: [path_of(folder, name, end) for end in RIG_FILES],
        required=("shares", "uncertainty"), overview=overview_of_rigs, added=("calibrator",),
        stamped=stamp_of_rig,
    )  # fmt: skip
    summary.content["files"] = RIG_FILES
    remaining = dict(summary.remaining(found))
    make_folder(folder)
    with locked(folder, "predict", "--output"):
        if len(remaining) < len(found):
            display.say(f"{len(found) - len(remaining)} of {len(found)} rigs are done already")
        progress = display.progress("rigs", len(remaining), unit="rigs", first=COMPILES)
        with progress:
            view = view_of(segmenter.meta["task"])
            rigs = readable_rigs(remaining, view, summary, progress.add)
            written = write_rigs(segmenter, rigs, options, folder, labels, bound)
            add_all(
                summary, written, remaining, progress.add,
                lambda: legend(labels.names, labels.palette),
            )  # fmt: skip
    require_one_read(summary, found, "rigs")
    return summary.content


def require_options_of_rigs(given: Mapping):
    """Raises UserError for an option, with its value, that has no meaning for rigs."""
    for name, value in given.items():
        if name not in FOR_RIGS and value is not None and value is not False:
            raise UserError(
                f"{name} is {value}, which is for networks that read single images, but this one "
                f"predicts maps seen from above. Leave it out; it has {', '.join(FOR_RIGS)} and "
                "palette."
            )


def find_rigs(
    segmenter, paths: Sequence[str], output: str = ""
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(name, path) of every NAME.json, and sentences about other JSON files in folders.

    output  as of `matching`

    Rigs with the same number of cameras stand together. Raises UserError for other files.
    """
    found, others = [], []
    for path in matching(paths, RIG_ENDINGS, output):
        opened = open_path(path)
        if not opened.is_dir():
            if opened.suffix.lower() not in RIG_ENDINGS:
                raise needs_rigs(segmenter)
            found.append((PurePath(opened.name), str(path)))
            continue
        try:
            files, _ = split_files(opened, RIG_ENDINGS)
        except UserError as error:
            raise UserError(f"{error} {RIG_EXAMPLE}") from None
        for file in files:
            is_rig = count_cameras(opened / file) is not None
            found += [(PurePath(file), f"{opened}/{file}")] if is_rig else []
            others += [] if is_rig else [f"{opened}/{file}"]
    if not found:
        raise UserError(f"{others[0]} holds no list of cameras. {RIG_EXAMPLE}")
    notes = (f"{counted(len(others), 'JSON file')} without cameras skipped: {others[0]}",)
    named = sorted(named_files(found), key=lambda item: count_cameras(item[1]) or 0)
    return named, notes if others else ()


def stamp_of_rig(path: str) -> list:
    """The stamps of a NAME.json and of the photographs that it lists; None for a missing one."""
    found = [stamp(path)]
    for photograph in photographs_of(path):
        found.append(stamp(str(photograph)) if photograph.exists() else None)
    return found


def readable_rigs(
    remaining: Mapping[str, str], view: RigView, summary: Summary, advance
) -> Iterator[dict]:
    """Every rig that can be read and fills the view, by its name; others go into the summary."""
    for name, path in remaining.items():
        try:
            rig = read_rig(path) | {"name": name}
            view.require(*rig["images"].shape[1:3], name)
        except UserError as error:
            summary.content["unreadable"][path] = str(error)
            advance()
        else:
            yield rig


def write_rigs(
    segmenter, rigs: Iterable[dict], options: PredictOptions, folder, labels: Labels,
    bound: tuple[float, float, float],
) -> Iterator[tuple[str, dict]]:  # fmt: skip
    """Writes the files of every rig; yields its name and its entry in summary.json."""
    view, waiting = view_of(segmenter.meta["task"]), []

    def noted():
        for rig in rigs:
            waiting.append((rig["name"], network_input(rig, view)["images"]))
            yield rig

    for maps in rig_maps(segmenter, noted(), options):
        name, shown = waiting.pop(0)
        BEVPrediction((name,), labels.names, labels.palette, bound, (maps,), (shown,)).save(folder)
        shares = (maps.probs > 0.5).mean((1, 2))
        yield name, {
            "size": list(maps.probs.shape[1:]),
            "shares": dict(zip(labels.names, np.round(shares, 6).tolist(), strict=True)),
            "uncertainty": round(float(maps.uncertainty.mean()), 6), "calibrated": False,
            "files": [f"{name}_{end}" for end in RIG_FILES],
        }  # fmt: skip


def overview_of_rigs(entries: Mapping[str, dict]) -> dict:
    """What the summary says of all rigs: which to look at first."""
    by_need = sorted(entries, key=lambda name: -entries[name]["uncertainty"])
    return {"calibrated": False, "by_need": by_need}
