"""The table of a study: means over seeds, and differences along its axes with intervals."""

import collections
import csv
import dataclasses
import io
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from diffseg_jax.data.corruptions import DRAWN_FROST
from diffseg_jax.errors import counted
from diffseg_jax.experiment.kept_features import KEPT
from diffseg_jax.experiment.prediction_cost import gflop_of
from diffseg_jax.experiment.steps_study import TIMED
from diffseg_jax.experiment.study_cells import (
    StudyCell,
    corruptions_of,
    folder_of_run,
    name_of_labels,
    runs_of,
)
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_progress import costs_of_study, record_of_cell
from diffseg_jax.experiment.study_scores import (
    averaged_corruptions,
    class_sizes,
    described_sizes,
    has_counts,
    resampled_scores,
)
from diffseg_jax.figures import layout, study_plots
from diffseg_jax.metrics.image_counts import read_image_counts
from diffseg_jax.sources.from_files import DESCRIPTION_FILE
from diffseg_jax.storage.paths import read_object, write_atomically

DRAWS = 2000  # resamples of the images, for an interval
COVERED = 95  # percent that an interval is to hold
IN_PERCENT = ("mIoU", "mAcc", "aAcc")  # numbers that are shown in percent
COST_COLUMNS = "parameters", "GFLOP", "ms", "images/s"


@dataclasses.dataclass(frozen=True)
class Group:
    """The cells of all seeds at one point of the axes, and what is known of them.

    labels   of the point
    records  seed -> record of its cell, where it has numbers; they stay if it failed later
    """

    labels: tuple[str, ...]
    records: Mapping[str, Mapping]

    def values(self, path: str) -> dict[str, float]:
        """Seed -> a collected number, where there is one."""
        found = {seed: record["numbers"].get(path) for seed, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much higher a number is than at the first point of an axis.

    mean       over the seeds that both have
    low, high  ends of its interval; None for one seed whose images cannot be resampled
    seeds, images  that the interval covers; images 0: it covers the seeds only
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


def draw_study(study: Study, cells: Sequence[StudyCell], workdir: Path) -> list[Path]:
    """plot.png of the first number that is collected, and plot_<name>.png of each other one.

    Returns the files that it wrote, and removes those of other numbers. There is none of a number
    that no cell has.
    """
    groups, drawn = study_groups(cells, workdir), []
    titles = [study.title(axis.name) for axis in study.axes]
    labels = [list(axis.points) for axis in study.axes]
    for path in study.collect:
        unit = 100 if is_ratio(path) else 1
        values = {g.labels: [unit * v for v in g.values(path).values()] for g in groups}
        end = "" if path == study.collect[0] else f"_{path.replace('.', '_')}"
        file = workdir / f"plot{end}.png"
        if not any(values.values()):
            continue
        title = study.title(path) + (" (%)" if is_ratio(path) else "")
        layout.save_png(file, study_plots.DRAWN[study.plot](values, titles, labels, title))
        drawn.append(file)
    for file in {workdir / "plot.png", *workdir.glob("plot_*.png")} - {*drawn}:
        file.unlink(missing_ok=True)
    return drawn


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
    """The table of every number, the differences in the first one, and what is missing.

    known  as of `report_study`
    """
    by_labels = {group.labels: group for group in groups}
    parts = [f"# {study.name}", *([study.about] if study.about else [])]
    parts.append(
        f"Base: `{study.base}`. Mean ± standard deviation over seeds (number of seeds). "
        "The commands are in commands.sh, the numbers of all cells in table.csv."
    )
    parts += [*_of_learned_images(by_labels), *described_corruptions(study, cells)]
    parts += _once_for_all_seeds(cells)
    for path in study.collect:
        heading = f"## {study.title(path)}{', %' if is_ratio(path) else ''}"
        shown = {labels: _mean(group, path) for labels, group in by_labels.items()}
        parts += [heading, _table(study, shown)]
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


def _of_learned_images(groups) -> list[str]:
    """A sentence that names the cells measured on images of their own training; [] without any."""
    names = [
        name_of_labels((*group.labels, f"seed{seed}"))
        for group in groups.values()
        for seed, record in group.records.items()
        if record.get("held_out") is False
    ]
    if not names:
        return []
    return [
        "Measured on the images that they learned from, so their numbers do not tell how well they "
        f"do on new images: {', '.join(names)}."
    ]


def described_corruptions(study: Study, cells: Sequence[StudyCell]) -> list[str]:
    """The types that numbers of corrupted images are means of, a paragraph for each choice."""
    found = {}
    for cell in cells:
        if cell.mode == "corruptions" and not cell.is_clean:
            measured = corruptions_of(study, cell)
            types = tuple(dict.fromkeys(name for name, _ in averaged_corruptions(measured)))
            drawn = DRAWN_FROST in dict(measured)
            pairs = zip(study.axes, cell.labels, strict=True)
            point = " / ".join(label for axis, label in pairs if axis.name in study.evaluated)
            found.setdefault((types, drawn), {})[point] = None
    paragraphs = []
    for (types, drawn), points in found.items():
        where = f" at {', '.join(points)}" if len(found) > 1 else ""
        paragraphs.append(
            f"Numbers of corrupted images{where} are means over {counted(len(types), 'type')}: "
            f"{', '.join(types)}. {_of_frost(types, drawn)}"
        )
    return paragraphs


def _of_frost(types, drawn):
    if DRAWN_FROST in types:
        return "Its frost is drawn, not of photographs."
    if drawn:
        return f"{DRAWN_FROST}, which is drawn, not of photographs, is not part of the mean."
    return "Its frost is of photographs." if "frost" in types else "Frost is not among them."


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
        "Run once and shared by all seeds; its variance is not included in the deviations and "
        f"intervals below: {', '.join(shared)}."
    ]


def kept_features_of(cells: Sequence[StudyCell], workdir: Path) -> list[str]:
    """A sentence for each folder of features: how often a network ran, and who reads them.

    There is none of a folder without a description: not computed yet, or removed.
    """
    readers = collections.Counter(
        folder_of_run(workdir, run.before)
        for run in runs_of(cells)
        if run.before and run.before.mode == "features"
    )
    lines = []
    for folder, number in readers.items():
        kept = read_object(folder / KEPT / DESCRIPTION_FILE)
        if "passes" not in kept:
            continue
        options = {"steps": (), "draws": 1, **kept.get("options", {})}
        each = len(options["steps"]) * options["draws"]
        lines.append(
            f"{folder.name}: {counted(kept['passes'], 'pass')} of the network, {each} for each "
            f"image, are read by {counted(number, 'run')}."
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
    """A table, whose first line is its head.

    Only "|" is escaped, and nothing else of Markdown, as the table is read on a terminal as well.
    """
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _table(study, shown: Mapping, skip: int | None = None) -> str:
    """Rows are the points of all axes but the first, columns those of the first.

    shown  labels -> text
    skip   index of an axis whose first point is omitted
    """
    columns, *rows = (list(axis.points)[index == skip :] for index, axis in enumerate(study.axes))
    heads = [study.title(axis.name) for axis in study.axes[1:]]
    lines = [[*heads, *(f"{study.title(study.axes[0].name)}: {label}" for label in columns)]]
    for row in itertools.product(*rows):
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
    """A section for each axis of several points, as paragraphs; `known` as of `report_study`."""
    path, cache, sections, found = study.collect[0], {}, [], []
    for index, axis in enumerate(study.axes):
        first, shown = next(iter(axis.points)), {}
        for labels, group in by_labels.items():
            pair = group, by_labels[(*labels[:index], first, *labels[index + 1 :])]
            if labels[index] == first:
                continue
            key = *(each.labels for each in pair), path, repr([each.records for each in pair])
            if key not in known:
                known[key] = difference(*pair, path, workdir, cache)
            shown[labels] = _signed(path, known[key])
            found += [known[key]] if known[key] else []
        if shown:
            heading = f"## Difference from {study.title(axis.name)}: {first}"
            sections += [heading, _table(study, shown, skip=index)]
    note = [_note(study.title(path), found)] if found else []
    return [*sections[:1], *note, *sections[1:]]


def _note(title, found):
    """What the differences and their intervals are; found: every `Difference` of the table."""
    of_images = any(each.images for each in found)
    why = (
        "counts of images are not kept for this number, or the images are not the same for all "
        "seeds and both cells."
    )
    of_seeds = "Student's t over the paired differences"
    parts = [
        f"Mean over seeds of the paired differences in {title} and, in brackets, their {COVERED} % "
        f"interval; in parentheses are the numbers of seeds{' and of images' * of_images}."
    ]
    if of_images:
        parts.append(
            "The interval combines, as the root of the sum of squares, the uncertainty from the "
            f"choice of validation images ({DRAWS:,} bootstrap resamples, the same for all seeds "
            f"and both cells) and, with several seeds, that from the seeds ({of_seeds})."
        )
        if not all(each.images for each in found):
            parts.append(
                "Where only one number is in parentheses, the interval covers the seeds only: "
                f"{why}"
            )
    else:
        parts.append(
            f"The interval covers the seeds only ({of_seeds}), so with one seed there is none: "
            f"{why}"
        )
    parts.append(
        "An interval without 0 is a difference that is larger than chance among these seeds"
        f"{' and images' * of_images}; with one seed it says nothing about other seeds."
    )
    if of_images:
        parts.append("Frames of one video are not independent: for them it is too narrow.")
    return " ".join(parts)


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

    The interval joins, as root of the sum of squares, how far two others reach: the percentiles of
    the mean over the seeds on resamples of the images, and Student's t over the seeds, if there are
    several: resamples of two or three seeds would all lie close together.
    """
    ours, theirs = group.values(path), first.values(path)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    each = [ours[seed] - theirs[seed] for seed in seeds]
    mean, count = statistics.mean(each), len(seeds)
    pairs = [(group.records[seed], first.records[seed]) for seed in seeds]
    images, drawn = _on_resamples(pairs, path, workdir, {} if cache is None else cache)
    if not images and count < 2:
        return Difference(mean, None, None, count, images)
    reach, outside = np.zeros(2), (1 - COVERED / 100) / 2
    if images:
        low, high = np.quantile(drawn, (outside, 1 - outside))
        reach = np.maximum((mean - low, high - mean), 0)
    if count > 1:
        of_seeds = stdtrit(count - 1, 1 - outside) * statistics.stdev(each) / count**0.5
        reach = np.hypot(reach, of_seeds)
    return Difference(mean, float(mean - reach[0]), float(mean + reach[1]), count, images)


def _on_resamples(pairs, path, workdir, cache) -> tuple[int, np.ndarray]:
    """The number of images, and the mean difference on those resamples of them that define it.

    (0, []) where none does, and unless the counts of all pairs are of the same images.
    """
    files = [tuple(_files_of(each) for each in pair) for pair in pairs]
    used = [file for pair in files for each in pair for file in each or ("",)]
    if not has_counts(path):
        return 0, np.zeros(0)
    for file in used:
        if (path, file) not in cache:
            if not file or not (workdir / file).exists():
                return 0, np.zeros(0)
            counts, sizes = read_image_counts(workdir / file), class_sizes(workdir)
            cache[path, file] = counts.names, resampled_scores(path, counts, DRAWS, sizes)
    names = cache[path, used[0]][0]
    if not all(cache[path, file][0] == names for file in used):
        return 0, np.zeros(0)
    score = lambda each: np.mean([cache[path, file][1] for file in each], 0)
    drawn = np.mean([score(ours) - score(theirs) for ours, theirs in files], 0)
    drawn = drawn[~np.isnan(drawn)]
    return len(names) if len(drawn) else 0, drawn


def _files_of(record) -> list[str]:
    """Those of the counts of a cell's images; several where its number is a mean."""
    files = record.get("image_counts", [])
    return [files] if isinstance(files, str) else files
