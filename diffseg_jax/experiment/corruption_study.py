"""Robustness: a finished run on validation images that are corrupted, by type and severity."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffseg_jax.config.schema import differing_lines, lacking
from diffseg_jax.data.corruption_frost import read_frost
from diffseg_jax.data.corruptions import (
    TYPES,
    corrupt,
    corrupt_mask,
    default_types,
    require_large_enough,
)
from diffseg_jax.data.fingerprint import digest_of_data, fingerprint
from diffseg_jax.devices import processes
from diffseg_jax.devices.first import first_does
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES, Progress
from diffseg_jax.errors import UserError, choose, counted, require_known
from diffseg_jax.experiment.corruption_report import (
    CLEAN,
    OF_CORRUPTIONS,
    cell_line,
    counts_file,
    markdown,
    robustness_curves,
    short_table,
    to_csv,
)
from diffseg_jax.experiment.evaluate import (
    UNCERTAIN,
    DrawnPixels,
    draw_none,
    evaluate,
    spread,
    sum_of_counts,
)
from diffseg_jax.experiment.fold_files import folds_measured, held_out_in, network_of_fold
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.results import scores_of
from diffseg_jax.experiment.stages import evaluations_of_run
from diffseg_jax.experiment.step_folds import counts_of_images
from diffseg_jax.figures import layout
from diffseg_jax.figures.robustness import robustness_plot
from diffseg_jax.inference.calibrators import identity_of, read_calibrator
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.known_images import read_known_images
from diffseg_jax.inference.locate import best_stage
from diffseg_jax.inference.outputs import require_segmentation
from diffseg_jax.metrics import segmentation
from diffseg_jax.metrics.calibration import chance_counts, scores_by_class
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.familiarity import KnownImages
from diffseg_jax.metrics.uncertainty import SIGNALS
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.json_files import read_json_object
from diffseg_jax.storage.lock import locked_in_all
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.paths import write_atomically, write_json
from diffseg_jax.storage.workdir import as_json, stage_directory

JSON_FILE = "corruptions.json"
EXAMPLE_SIDE = 160  # pixels, about the shorter side of an example


@dataclasses.dataclass(frozen=True)
class CorruptedImages:
    """A labelled source whose images are corrupted as they are read.

    What is drawn for an image follows from the seed and its name, not from when it is read. A mask
    is changed only where the corruption moves things, and then with them.
    """

    source: Sequence
    name: str
    severity: int
    seed: int
    constants: str
    frost_images: tuple[np.ndarray, ...] = ()

    @property
    def names(self):
        """Those of the images."""
        return self.source.names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        require_large_enough(example["image"], example["name"])
        how = dict(key=example["name"], seed=self.seed, constants=self.constants)
        what = self.name, self.severity
        image = corrupt(example["image"], *what, **how, frost=self.frost_images)
        return {**example, "image": image, "mask": corrupt_mask(example["mask"], *what, **how)}


@dataclasses.dataclass(frozen=True)
class CorruptionStudy:
    """What is measured, and how.

    networks    (indices, forward): the images that each network has not learned from
    cells       (type, severity) in their order; the first is clean, severity 0
    calibrator  of the uncertainty; None: it is 1 - the highest probability
    known       images by which others are judged; None: none are
    of          JSON values: what else than the cell its numbers depend on
    """

    evaluation: Evaluation
    indices: np.ndarray
    networks: Sequence[tuple[np.ndarray, Callable]]
    cells: Sequence[tuple[str, int]]
    seed: int
    constants: str
    frost_images: tuple[np.ndarray, ...]
    calibrator: Calibrator | None
    known: KnownImages | None
    of: dict


@own_settings()
def measure_corruptions(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Measures a run under `evaluate.corruptions`: corruptions.json, .csv and .md, and pictures.

    The network is that of the stage that `load` opens, if no stage is given. Cells of type and
    severity that corruptions.json holds are not measured again, if they are of the same
    checkpoint, images and options. Raises UserError as `evaluate_only`, for unknown types, and
    for a run that reads its features from files.
    """
    require_segmentation(config, "--mode=corruptions", workdir)
    found = evaluations_of_run(config, workdir, "corruptions", display)
    evaluations = {e.stage: e for e in found}
    given = {**lacking(OF_CORRUPTIONS), **config.evaluate.get("corruptions", {})}
    frost_images = read_frost(given["frost"]) if given["frost"] else ()
    directories = {name: stage_directory(workdir, name) for name in evaluations}
    stage = given["stage"] or best_stage(workdir, directories)
    evaluation = choose(evaluations, stage, "stage that can segment and has a checkpoint")
    types = given["types"] or default_types(bool(frost_images))
    for name in types:
        require_known(name, TYPES, "corruption")
    if "frost" in types and not frost_images:
        raise UserError(
            "evaluate.corruptions.types holds frost, which lays photographs of frost over the "
            "images, but no folder of them is given. Try --config.evaluate.corruptions.frost="
            "FOLDER, or frost_procedural in its place, for which they are drawn."
        )
    if evaluation.task.files:
        raise UserError(
            "the features of this run are read from files, which hold none of corrupted images. "
            "Take a run whose features a network computes, as that of "
            "configs/ddpm_seg_folder.py."
        )
    severities = sorted(set(given["severities"] or lacking(OF_CORRUPTIONS)["severities"]))
    cells = [(CLEAN, 0), *((name, s) for name in dict.fromkeys(types) for s in severities)]
    with locked_in_all(workdir, "corruptions", "--workdir"):
        study = _opened_study(config.seed, evaluation, cells, given, frost_images)
        report(study, measure_cells(study))


def _opened_study(seed, evaluation, cells, given, frost_images) -> CorruptionStudy:
    """The study with its networks, read from the checkpoint."""
    directory = stage_directory(evaluation.workdir, evaluation.stage)
    with StageCheckpoints(directory, read_only=True) as checkpoints:
        step = checkpoints.chosen(evaluation.keep_best)
    network, meta = open_network(directory, step)
    indices = np.asarray(spread(evaluation.indices, given["images"] or len(evaluation.indices)))
    evaluation = dataclasses.replace(evaluation, indices=indices)
    first = evaluation.first_example
    require_large_enough(first["image"], first["name"])  # before all are measured without
    parts = [(indices, network)]
    if evaluation.folds:
        parts = [
            (held_out_in(evaluation, fold), network_of_fold(evaluation, fold, network, meta))
            for fold in folds_measured(evaluation)
        ]
    task = evaluation.task
    forwards = [
        (
            held_out,
            make_forward(task.predict, part, evaluation.mesh, evaluation.batch_size, task.stride),
        )
        for held_out, part in parts
    ]
    beside = directory, meta["step"], meta
    study = CorruptionStudy(
        evaluation, indices, forwards, cells, seed, given["constants"], frost_images,
        read_calibrator(*beside), read_known_images(*beside), of={},
    )  # fmt: skip
    return dataclasses.replace(study, of=_dependencies(study, meta))


def _dependencies(study, meta) -> dict:
    """`CorruptionStudy.of`, with digests of what is large; meta: that of the checkpoint."""
    evaluation, calibrator, known = study.evaluation, study.calibrator, study.known
    judges = json.dumps(calibrator.to_json()).encode() if calibrator else b""
    judges += known.descriptors.tobytes() if known else b""
    names = "\0".join(evaluation.source.names[index] for index in study.indices).encode()
    data = digest_of_data(fingerprint(evaluation.source, study.indices))
    frost = b"".join(image.tobytes() for image in study.frost_images)
    return as_json({
        "stage": evaluation.stage, "step": meta["step"], "network": identity_of(meta),
        "images": len(study.indices), "names": _digest(names), "data": _digest(data),
        "judges": _digest(judges), "seed": study.seed, "constants": study.constants,
        "frost": _digest(frost) if frost else "",
        **evaluation.recorded,
    })  # fmt: skip


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def measure_cells(study: CorruptionStudy) -> list[dict]:
    """The numbers of all cells, also of earlier ones; each is saved as soon as it is measured.

    The first process has all of them, others only those that are new.
    """
    file, log = study.evaluation.workdir / JSON_FILE, study.evaluation.log
    rows = []
    read = lambda: rows.extend(_rows_so_far(file, study))
    first_does(read, f"{file} cannot be read, as process 0 says.")
    measured = {(row["type"], row["severity"]) for row in rows}
    known = processes.sum_over(np.array([cell in measured for cell in study.cells], np.uint32))
    waiting = [cell for cell, is_known in zip(study.cells, known, strict=True) if not is_known]
    log.say(
        f"{study.evaluation.stage}, step {study.of['step']}: {counted(len(waiting), 'cell')} of "
        f"{len(study.cells)} to measure, on {counted(len(study.indices), 'image')} each"
    )
    share = np.s_[jax.process_index() :: jax.process_count()]
    mine = sum(len(indices[share]) for indices, _ in study.networks)
    shown = log.progress(
        "corrupted images", mine * len(waiting), unit="images", first=COMPILES
    )  # fmt: skip
    with shown as progress:
        for number, cell in enumerate(waiting, 1):
            progress.show(cell=f"{number} of {len(waiting)}, {cell[0]} {cell[1] or ''}".rstrip())
            rows.append(measure_cell(study, *cell, progress))
            clean = next((row for row in rows if row["type"] == CLEAN), None)
            log.say(cell_line(rows[-1], clean))
            if processes.is_first():
                write_json(file, {"of": study.of, "cells": rows})
    return rows


def _rows_so_far(file, study) -> list[dict]:
    """The cells in the file, [] if they are those of other images, options or another network."""
    if not file.exists():
        return []
    found = read_json_object(file, ". Remove it: its cells are then measured again.")
    lines = differing_lines(found.get("of", {}), study.of)
    if lines:
        study.evaluation.log.say(
            f"{file} holds cells of another study, which are measured again ({'; '.join(lines)})"
        )
        return []
    return found.get("cells", [])


def measure_cell(study: CorruptionStudy, name: str, severity: int, progress: Progress) -> dict:
    """The numbers of one type and severity, JSON values; see `corruption_report`."""
    evaluation, source = study.evaluation, study.evaluation.source
    if name != CLEAN:
        how = study.seed, study.constants, study.frost_images
        source = CorruptedImages(source, name, severity, *how)
    names = evaluation.source.labels.names
    drawn, parts, described, by_image = draw_none(study.indices), [], {}, {}
    for indices, forward in study.networks:
        own = set(map(int, indices))
        rows = {index: row for index, row in drawn.rows.items() if index in own}
        pixels = DrawnPixels(np.zeros_like(drawn.table), rows)
        descriptors = dict.fromkeys(own) if study.known else {}
        counts, _ = evaluate(
            forward, source, indices, len(names), evaluation.protocol, evaluation.batch_size,
            pixels=pixels, descriptors=descriptors, progress=progress, by_image=by_image,
        )  # fmt: skip
        drawn.table += pixels.table
        described |= descriptors
        parts.append(counts)
    counts = sum_of_counts(parts)
    scores = segmentation.to_json(scores_of(evaluation, counts), names)
    if processes.is_first():
        of_images = dataclasses.replace(evaluation, image_counts=by_image)
        file = counts_file(evaluation.workdir, name, severity)
        counts_of_images(of_images, study.indices).save(file)
    return {
        "type": name,
        "severity": severity,
        **scores,
        **trust_of(drawn.table, study.calibrator, len(names)),
        "image_uncertainty": counts.uncertain / UNCERTAIN / counts.images,
        "foreign": _foreign(study.known, described),
    }


def trust_of(table: np.ndarray, calibrator: Calibrator | None, num_classes: int) -> dict:
    """How the uncertainty does on drawn pixels f32[images, pixels, 3 + signals].

    wrong, expected    the share of wrong pixels, and the mean of their estimated chance
    AUROC, ECE, Brier  see `chance_scores`;  calibration  the same three before calibration
    """
    pixels = table[table[:, :, 0] > 0]
    labels, wrong = pixels[:, 1].astype(np.int32), pixels[:, 2] > 0
    signals = dict(zip(SIGNALS, pixels[:, 3:].T, strict=True))
    chance = calibrator.chance(signals, labels) if calibrator else signals["least_confidence"]
    truth = np.where(wrong, (labels + 1) % num_classes, labels)

    def scores(chance):
        found = scores_by_class(chance_counts(chance, truth, labels, num_classes), ())
        return {key: found[key] for key in ("AUROC", "ECE", "Brier")}

    return {
        "wrong": segmentation.to_number(wrong.mean()),
        "expected": segmentation.to_number(chance.mean(dtype=np.float64)),
        "calibrated": calibrator is not None,
        **scores(chance),
        "calibration": scores(signals["least_confidence"]),
    }


def _foreign(known, described):
    """The share of images that are unlike all known ones; None where none are judged."""
    found = list(described.values())
    if known is None or not found or found[0] is None:
        return None
    if found[0].shape[-1] != known.descriptors.shape[1]:
        return None
    return float(np.mean(known.judge(np.stack(found))[1]))


def report(study: CorruptionStudy, rows: Sequence[dict]):
    """Writes the table as .csv and .md, draws the plot and examples, and shows the table."""
    evaluation, workdir = study.evaluation, study.evaluation.workdir
    pictures = workdir / "pictures"
    if processes.is_first():
        found = {(row["type"], row["severity"]): row for row in rows}
        rows = [found[cell] for cell in study.cells]
        table = markdown(rows, study.of)
        write_atomically(workdir / "corruptions.csv", to_csv(rows).encode())
        write_atomically(workdir / "corruptions.md", table.encode())
        with evaluation.log.progress("draws"):
            plot = robustness_plot(*robustness_curves(rows))
            layout.save_png(pictures / "corruptions.png", plot)
            if evaluation.examples:
                layout.save_png(pictures / "corruptions_images.png", examples_of(study))
        evaluation.log.say(short_table(rows))
    evaluation.log.say(
        f"finished; numbers in {workdir / 'corruptions.csv'} and .md, a plot in {pictures}"
    )
    evaluation.log.close()


def examples_of(study: CorruptionStudy) -> np.ndarray:
    """The first image under every type, weakest to strongest, two types in a row: u8[h, w, 3]."""
    source, index = study.evaluation.source, int(study.indices[0])
    how = study.seed, study.constants, study.frost_images
    titled = [
        (f"{name} {severity}", CorruptedImages(source, name, severity, *how)[index]["image"])
        for name, severity in study.cells[1:]
    ]
    factor = max(1, round(min(titled[0][1].shape[:2]) / EXAMPLE_SIDE))
    shown = [(title, np.asarray(Image.fromarray(image).reduce(factor))) for title, image in titled]
    wide = 2 * len({severity for _, severity in study.cells[1:]})
    return layout.rows(
        [layout.panel(shown[start : start + wide]) for start in range(0, len(shown), wide)]
    )
