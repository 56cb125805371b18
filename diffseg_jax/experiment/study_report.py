"""The table of a study: means over seeds, and differences from the first column with intervals."""

import csv
import dataclasses
import io
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.errors import counted
from diffseg_jax.experiment.prediction_cost import gflop_of
from diffseg_jax.experiment.steps_study import TIMED
from diffseg_jax.experiment.study_cells import (
    StudyCell,
    folder_of_run,
    name_of_labels,
    runs_of,
)
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_progress import costs_of_study, record_of_cell
from diffseg_jax.experiment.study_scores import (
    class_sizes,
    described_sizes,
    has_counts,
    resampled_scores,
)
from diffseg_jax.figures import layout, study_plots
from diffseg_jax.metrics.image_counts import ImageCounts, read_image_counts, resampled
from diffseg_jax.storage.paths import read_object, write_atomically

DRAWS = 2000  # resamples of an interval
COVERED = 95  # percent of them that it holds
IN_PERCENT = ("mIoU", "mAcc", "aAcc")  # numbers that are shown in percent
COST_COLUMNS = "parameters", "GFLOP", "ms", "images/s"


@dataclasses.dataclass(frozen=True)
class Group:
    """The cells of all seeds at one point of the axes, and what is known of them.

    labels   of the point
    records  seed -> record of its cell, of those that are measured
    """

    labels: tuple[str, ...]
    records: Mapping[str, Mapping]

    def values(self, path: str) -> dict[str, float]:
        """Seed -> a collected number, where there is one."""
        found = {seed: record["numbers"].get(path) for seed, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher a number is than in the first column.

    mean       over the seeds that both have
    low, high  ends of its interval; None where nothing can be resampled
    seeds, images  that were resampled; images 0: seeds alone were
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    images: int


def study_groups(cells: Sequence[StudyCell], workdir: Path) -> list[Group]:
    """The cells by their points, in the order of the axes."""
    found = {}
    for cell in cells:
        records, record = found.setdefault(cell.labels, {}), record_of_cell(workdir, cell)
        if "numbers" in record:
            records[cell.seed] = record
    return [Group(labels, records) for labels, records in found.items()]


def report_study(
    study: Study, cells: Sequence[StudyCell], workdir: Path, known: dict | None = None
) -> str:  # fmt: skip
    """Writes table.csv and table.md from the cells that are measured; returns the latter.

    known  differences of earlier reports, which are kept in it
    """
    groups = study_groups(cells, workdir)
    write_atomically(workdir / "table.csv", study_csv(study, cells, workdir).encode())
    text = study_markdown(study, groups, cells, workdir, {} if known is None else known)
    write_atomically(workdir / "table.md", text.encode())
    return text


def draw_study(study: Study, cells: Sequence[StudyCell], workdir: Path):
    """plot.png of the first number that is collected, and plot_<name>.png of each other one."""
    groups = study_groups(cells, workdir)
    titles = [study.title(axis.name) for axis in study.axes]
    labels = [list(axis.points) for axis in study.axes]
    for path in study.collect:
        unit = 100 if is_ratio(path) else 1
        values = {g.labels: [unit * v for v in g.values(path).values()] for g in groups}
        if any(values.values()):
            title = study.title(path) + (" (%)" if is_ratio(path) else "")
            image = study_plots.DRAWN[study.plot](values, titles, labels, title)
            end = "" if path == study.collect[0] else f"_{path.replace('.', '_')}"
            layout.save_png(workdir / f"plot{end}.png", image)


def study_csv(study: Study, cells: Sequence[StudyCell], workdir: Path) -> str:
    """A line for each cell: its points, its seed, the numbers, and why it failed."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    titles = [study.title(axis.name) for axis in study.axes]
    table.writerow([*titles, "seed", *study.collect, "failed"])
    for cell in cells:
        record = record_of_cell(workdir, cell)
        numbers = [record.get("numbers", {}).get(path) for path in study.collect]
        shown = ["" if value is None else repr(value) for value in numbers]
        table.writerow([*cell.labels, cell.seed, *shown, record.get("failed", "")])
    return text.getvalue()


# ---- the table in Markdown ---------------------------------------------------------------------


def study_markdown(
    study: Study, groups: Sequence[Group], cells: Sequence[StudyCell], workdir: Path, known: dict
) -> str:
    """The table of every number, the differences of the first, and what is missing.

    known  as of `report_study`
    """
    by_labels = {group.labels: group for group in groups}
    parts = [f"# {study.name}", *([study.about] if study.about else [])]
    parts.append(
        f"Base: `{study.base}`. Mean ± standard deviation over seeds (number of seeds). "
        "The commands are in commands.sh, the numbers of all cells in table.csv."
    )
    parts += _once_for_all_seeds(cells)
    for path in study.collect:
        heading = f"## {study.title(path)}{', %' if is_ratio(path) else ''}"
        shown = {labels: _mean(group, path) for labels, group in by_labels.items()}
        parts += [heading, _table(study, shown)]
    if len(study.axes[0].points) > 1:
        parts += _differences(study, by_labels, workdir, known)
    parts += cost_section(study, by_labels, workdir)
    parts += [*described_sizes(workdir), *kept_features_of(cells, workdir)]
    failed = [(cell, record_of_cell(workdir, cell)) for cell in cells]
    lines = [f"- {cell.name}: {each['failed']}" for cell, each in failed if "failed" in each]
    if lines:
        parts += ["## Failed", "\n".join(lines)]
    missing = sum(not each for _, each in failed)
    if missing:
        parts.append(f"{counted(missing, 'cell')} of {len(cells)} not measured yet.")
    return "\n\n".join(parts) + "\n"


def _once_for_all_seeds(cells) -> list[str]:
    """A sentence that names what seeds share; [] where they share nothing."""
    seeds = {}
    for cell in cells:
        for run in cell.run.chain:
            what = run.stages if run.mode == "train" else (run.mode,)
            seeds.setdefault((run.name, what), set()).add(cell.seed)
    shared = dict.fromkeys(each for (_, what), of in seeds.items() if len(of) > 1 for each in what)
    if not shared:
        return []
    return [
        "Run once for all seeds, so that its own chance is in no deviation and no interval below: "
        f"{', '.join(shared)}."
    ]


def kept_features_of(cells: Sequence[StudyCell], workdir: Path) -> list[str]:
    """A sentence for each run that kept features: how often its network ran, and who reads them."""
    lines = []
    for run in runs_of(cells):
        if run.mode == "features":
            kept = read_object(folder_of_run(workdir, run) / "features" / "features.json")
            options = {"steps": (), "draws": 1, **kept.get("options", {})}
            each = len(options["steps"]) * options["draws"]
            readers = sum(reader.before is run for reader in runs_of(cells))
            lines.append(
                f"{run.name}: {counted(kept.get('passes', 0), 'pass')} of the network, {each} for "
                f"each image, are read by {counted(readers, 'run')}."
            )
    return lines


def cost_section(study: Study, groups: Mapping, workdir: Path) -> list[str]:
    """The section on what a prediction takes, as paragraphs; [] without costs.

    groups  labels -> `Group`
    """
    known = costs_of_study(workdir) if study.costs else {}
    costs = [(group, known.get(name_of_labels(labels))) for labels, group in groups.items()]
    measured = [cost for _, cost in costs if cost]
    if not measured:
        return []
    path = study.collect[0]
    titles = [study.title(axis.name) for axis in study.axes]
    unit = ", %" if is_ratio(path) else ""
    lines = [[*titles, f"{study.title(path)}{unit}", *COST_COLUMNS]]
    lines += [[*group.labels, _mean(group, path), *_shown_cost(cost)] for group, cost in costs]
    return ["## Cost of a prediction", _cost_note(measured), _markdown(lines)]


def _shown_cost(cost):
    if not cost:
        return ["-"] * len(COST_COLUMNS)
    numbers = gflop_of(cost), cost["ms"], cost["images_per_second"]
    return [f"{cost['parameters']:,}", *(f"{float(f'{number:.3g}'):,g}" for number in numbers)]


def _cost_note(measured):
    """What the columns are; the costs may be of other machines than this one."""
    devices = dict.fromkeys(cost["device"] for cost in measured)
    sizes = dict.fromkeys(tuple(cost["image"] or ()) for cost in measured)
    batches = dict.fromkeys(str(cost["batch"]) for cost in measured)
    images = " or ".join("×".join(map(str, size)) for size in sizes if size)
    return (
        f"Of one image{f' of {images}' * bool(images)}, as the evaluation shows it. GFLOP: matrix "
        "products and convolutions, two operations for a product and its sum. ms: an image alone; "
        f"images/s: in batches of {', '.join(batches)}; the fastest of {TIMED} after compilation, "
        f"on {', '.join(devices)}. Points of the same architecture share one measurement."
    )


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, whose first line is its head."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(study, shown: Mapping, skip: int = 0) -> str:
    """Rows are the points of all axes but the first, columns those of the first without `skip`.

    shown  labels -> text
    """
    columns = list(study.axes[0].points)[skip:]
    heads = [study.title(axis.name) for axis in study.axes[1:]]
    head = [*heads, *(f"{study.title(study.axes[0].name)}: {label}" for label in columns)]
    lines = [head]
    for row in itertools.product(*(axis.points for axis in study.axes[1:])):
        lines.append([*row, *(shown[(column, *row)] for column in columns)])
    return _markdown(lines)


def _mean(group, path):
    values = [_in_unit(path, value) for value in group.values(path).values()]
    if not values:
        return "-"
    deviation = f" ± {_rounded(path, statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{_rounded(path, statistics.mean(values))}{deviation} ({len(values)})"


def is_ratio(path: str) -> bool:
    """Whether a number is shown in percent."""
    return path.rpartition(".")[2] in IN_PERCENT


def _in_unit(path, value):
    return 100 * value if is_ratio(path) else value


def _rounded(path, value):
    return f"{value:.1f}" if is_ratio(path) else f"{value:.3f}"


def _differences(study, by_labels, workdir, known):
    """The section on differences, a list of paragraphs; those of the same records are `known`."""
    path, first, cache = study.collect[0], next(iter(study.axes[0].points)), {}
    shown = {}
    for labels, group in by_labels.items():
        pair = group, by_labels[(first, *labels[1:])]
        key = labels, path, repr([each.records for each in pair])
        if labels[0] != first and key not in known:
            known[key] = difference(*pair, path, workdir, cache)
        shown[labels] = known.get(key)
    heading = f"## Difference from {study.title(study.axes[0].name)}: {first}"
    of_images = any(found and found.images for found in shown.values())
    numbers = ", whose numbers are in parentheses"
    resampled_of = f"seeds and of validation images{numbers}" if of_images else (
        f"seeds alone{numbers}; not of validation images, as their counts are not kept for this "
        "number or they are not the same in both columns"
    )  # fmt: skip
    note = (
        f"Mean over seeds of the paired differences in {study.title(path)} and, in brackets, "
        f"their {COVERED} % interval: {DRAWS} bootstrap resamples of {resampled_of}. An interval "
        "without 0 is a difference that is larger than chance among these seeds"
        f"{' and images' * of_images}; with one seed it says nothing about other seeds."
    )
    signed = {labels: _signed(path, found) for labels, found in shown.items()}
    return [heading, note, _table(study, signed, skip=1)]


def _signed(path, found: "Difference | None") -> str:
    """A difference as text."""
    if found is None:
        return "-"
    digits = 1 if is_ratio(path) else 3
    mean, *ends = (
        None if value is None else f"{_in_unit(path, value):+.{digits}f}"
        for value in (found.mean, found.low, found.high)
    )
    interval = "" if found.low is None else f" [{', '.join(ends)}]"
    images = f", {found.images}" if found.images else ""
    return f"{mean}{interval} ({found.seeds}{images})"


# ---- paired differences ------------------------------------------------------------------------


def difference(
    group: Group, first: Group, path: str, workdir: Path, cache: dict | None = None
) -> Difference | None:
    """The paired difference of two groups; None where no seed is in both.

    cache  of files of counts, for several calls
    """
    ours, theirs = group.values(path), first.values(path)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    mean = statistics.mean(ours[seed] - theirs[seed] for seed in seeds)
    pairs = [(group.records[seed], first.records[seed]) for seed in seeds]
    counts = _counts_of(pairs, path, workdir, {} if cache is None else cache)
    rng = np.random.default_rng(0)
    if counts is None and len(seeds) < 2:
        return Difference(mean, None, None, len(seeds), 0)
    if counts is None:
        drawn = np.repeat([[ours[seed] - theirs[seed] for seed in seeds]], DRAWS, 0)
        times = resampled(1, len(seeds), DRAWS, rng)[1]
    else:
        weights, times = resampled(len(counts[0][0][0].names), len(counts), DRAWS, rng)
        sizes = class_sizes(workdir)
        here, there = (
            resampled_scores(path, each, weights, sizes) for each in zip(*counts, strict=True)
        )
        drawn = here - there
    ends = (100 - COVERED) / 2, (100 + COVERED) / 2
    resamples = (drawn * times).sum(1) / len(seeds)
    images = len(counts[0][0][0].names) if counts else 0
    if np.isnan(resamples).all():
        return Difference(mean, None, None, len(seeds), images)
    low, high = map(float, np.nanpercentile(resamples, ends))
    return Difference(mean, low, high, len(seeds), images)


def _counts_of(pairs, path, workdir, cache) -> list[tuple[list[ImageCounts], ...]] | None:
    """The counts of the images of every seed; None unless all were measured on the same images."""
    if not has_counts(path):
        return None
    files = [tuple(_files_of(each) for each in pair) for pair in pairs]
    used = [file for pair in files for each in pair for file in each or ("",)]
    if not all(file and (workdir / file).exists() for file in used):
        return None
    for file in used:
        if file not in cache:
            cache[file] = read_image_counts(workdir / file)
    same = all(cache[file].names == cache[used[0]].names for file in used)
    return [tuple([cache[f] for f in each] for each in pair) for pair in files] if same else None


def _files_of(record) -> list[str]:
    """Those of the counts of a cell's images; several where its number is a mean."""
    files = record.get("image_counts", [])
    return [files] if isinstance(files, str) else files
