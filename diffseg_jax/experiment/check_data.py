"""`--mode=check`: opens the configured data, reads all of it and reports what it holds."""

import collections
import re
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.annotations.advice import conversion_advice
from diffseg_jax.config.options import FIT
from diffseg_jax.data.depth_source import DepthSource
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.label_checks import SeenLabels, errors_of, warnings_of
from diffseg_jax.data.pipeline import Cached, image_alone
from diffseg_jax.data.subsets import used_images
from diffseg_jax.devices.processes import require_one
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.augmentation import augmentation
from diffseg_jax.experiment.data_notes import notes_of, turned_both_ways
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.labelled_images import (
    cut_images,
    kept_folds,
    labels_path,
    open_data,
    open_validation,
    other_validation,
    validation_split,
)
from diffseg_jax.experiment.plan import check_config, labelled_stages
from diffseg_jax.experiment.stages import require_startable
from diffseg_jax.experiment.target import Target
from diffseg_jax.experiment.targets import target_of
from diffseg_jax.figures import layout, sheets
from diffseg_jax.storage.workdir import make_workdir
from diffseg_jax.systems.methods import SYSTEMS

SHEET_IMAGES = 12  # on a contact sheet
TINY = 8  # times shorter than usual is the side of an image that is pointed out
MAX_LISTED = 10  # bad files that are named; the others are counted


def check_data(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Prints counts, sizes, what the truths hold and bad files; writes <workdir>/check_*.png.

    Every part is checked, whatever is wrong with the others. Raises UserError at the end if a part
    cannot be opened, a file cannot be used, the labels are certainly wrong, or training would not
    start for another reason.
    """
    require_one("--mode=check")
    check_config(config)
    display = display or Display()
    parts = []
    if "data" in config:
        parts.append(("train", "data", config.data.train))
        held_out = not validation_split(config)
        parts += [] if held_out else [("val", "data", config.data.val)]
    if "unlabelled" in config and config.unlabelled.source:
        parts.append(("unlabelled", "unlabelled", config.unlabelled.split))
    wrong, problems, seen, sources = [], [], {}, {}
    target = target_of(config)
    for name, part, split in parts:
        try:
            source = open_validation(config) if name == "val" else open_data(config, part, split)
        except UserError as error:
            wrong.append(f"{name}: {error}")
            continue
        make_workdir(workdir)
        print(
            f"{name}: {counted(len(source), 'image')} of {_source_of(config, name, part)}"
            + (f", split {split}" if split else ""),
            flush=True,
        )
        sources[name] = source
        shown = target if part == "data" else None
        bad, counts = report_source(source, shown, config[part].threads, display)
        problems += bad
        file = workdir / f"check_{name}.png"
        if len(bad) < len(source):
            with display.progress("  draws a contact sheet"):
                layout.save_png(file, source_sheet(source, shown))
            print(f"  contact sheet: {file}")
        if part == "data":
            try:
                if source.labels:
                    seen[name] = seen_labels(config, name, source, counts)
                if held_out:
                    print_folds(config, source, workdir)
            except UserError as error:
                wrong.append(f"{name}: {error}")
    if len(seen) == 2:
        wrong += errors_of(**seen)
        for sentence in [] if wrong else warnings_of(**seen):
            print(f"warning: {sentence}")
    if problems:
        examples = counted(len(problems), "example")
        more = " The lines above name the others." if len(problems) > 1 else ""
        wrong.append(f"{examples} cannot be used: {problems[0]}{more}")
    advice = conversion_advice(labels_path(config)) if wrong else ""
    wrong = [_without(advice, sentence) for sentence in wrong]
    try:
        notes, warnings = require_startable(config, workdir, display)
        if not wrong:
            draw_changes(config, sources, workdir, display)
        for sentence in notes:
            print(f"note: {sentence}")
        for sentence in [] if seen else warnings:  # of labels: said above, of all of them
            print(f"warning: {sentence}")
    except UserError as error:
        reported = "\n".join([*wrong, *problems])
        if (sentence := _without(advice, str(error))) not in reported:
            wrong.append(sentence)
    if wrong:
        raise UserError("\n  ".join([*wrong, *filter(None, [advice])]))
    print("finished; training can start with these data and options")


def _source_of(config, name, part):
    """The name of the data set of a part."""
    other = config.data.validation if name == "val" and other_validation(config) else {}
    return other.get("source") or config[part].source


def _without(advice, sentence):
    """A sentence without the advice at its end, which is said once, after all sentences."""
    return sentence.replace(f" {advice}", "") if advice else sentence


def seen_labels(config: ConfigDict, split: str, source: Sequence, counts: dict) -> SeenLabels:
    """The labels of a split, in training of those images whose labels the config uses.

    counts  {index: {label: pixels}} of the examples that could be read
    """
    indices = range(len(source))
    if split == "train":
        indices = used_images(config.data, source.names)
    pixels = collections.Counter()
    read = [int(index) for index in indices if int(index) in counts]
    for index in read:
        pixels.update(counts[index])
    return SeenLabels(split, source, indices, pixels, len(read))


def print_folds(config: ConfigDict, source: Sequence, workdir: Path):
    """Prints which images are held out together where there is no split of validation images."""
    chosen = used_images(config.data, source.names)
    of, count = cut_images(config, source.names, chosen, kept_folds(workdir))
    for fold in range(count) if len(chosen) > 1 else ():
        names = [source.names[index] for index in chosen[of == fold]]
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        shown = ", ".join(names[:MAX_LISTED])
        print(f"  fold {fold} of {count}, {counted(len(names), 'image')}: {shown}{more}")


def report_source(
    source: Sequence, target: Target | None, threads: int, display: Display
) -> tuple[list[str], dict[int, dict]]:
    """Prints notes, sizes, what the truths hold, and bad files; target: None without truths.

    Returns one sentence per bad file, and `Target.count` of the others by their index.
    """
    for sentence in notes_of(source):
        print(f"  note: {sentence}")
    shapes, problems, counts = {}, [], {}
    shown = display.progress("  reads", len(source), unit="images")
    with ThreadPoolExecutor(threads) as pool, shown as progress:
        measured = pool.map(lambda index: _measure(source, index, target), range(len(source)))
        for index, found in enumerate(progress.each_of(measured)):
            if isinstance(found, str):
                problems.append((index, found))
            else:
                shapes[index], counts[index] = found
    sizes = collections.Counter(shapes.values())
    common = ", ".join(f"{h} x {w} ({n})" for (h, w), n in sizes.most_common(4))
    if sizes:
        print(f"  sizes (height x width): {common}{' and others' if len(sizes) > 4 else ''}")
        typical = statistics.median(map(min, shapes.values()))
        tiny = [source.names[i] for i, size in shapes.items() if min(size) < typical / TINY]
        if tiny:
            few = ", ".join(tiny[:MAX_LISTED])
            print(f"  note: {counted(len(tiny), 'image')} much smaller than most: {few}")
    for line in target.summary(source, counts) if target and any(counts.values()) else ():
        print(f"  {line}")
    _print_bad(source, problems)
    return [sentence for _, sentence in problems], counts


def _print_bad(source, problems):
    """A line for each kind of problem, and the other files that have it."""
    alike = collections.defaultdict(list)
    for index, sentence in problems:
        alike[_kind(source, index, sentence)].append((index, sentence))
    for (_, sentence), *others in list(alike.values())[:MAX_LISTED]:
        print(f"  bad: {sentence}")
        if others:
            names = [source.names[index] for index, _ in others[:MAX_LISTED]]
            more = ", ..." if len(others) > MAX_LISTED else ""
            print(f"       and {counted(len(others), 'other')} like it: {', '.join(names)}{more}")
    if len(alike) > MAX_LISTED:
        print(f"  bad: and {counted(len(problems), 'file')} in all")


def _kind(source, index, sentence):
    """The letters of a sentence about an example, without its paths and numbers."""
    source = source.source if isinstance(source, Cached) else source
    paths = [source.names[index]]
    if isinstance(source, FolderSource):
        paths = [source.images[index], *source.masks[index : index + 1]]
    if isinstance(source, DepthSource):
        paths = [source.images[index], source.depths[index]]
    for path in paths:
        sentence = sentence.replace(path, "")
    return re.sub(r"[\W\d]+", " ", sentence)


def _measure(source, index, target):
    """(size, `Target.count`) of an example, or a sentence about what is wrong with it."""
    try:
        example = source[index]
    except UserError as error:
        return str(error)
    image = example["image"] if "image" in example else example["images"][0]
    return image.shape[:2], target.count(example) if target else {}


def draw_changes(
    config: ConfigDict, sources: dict[str, Sequence], workdir: Path, display: Display
):  # fmt: skip
    """Writes check_*_changed.png: training images as the first stage that reads them changes them.

    sources  by part: "train" or "unlabelled"; others are not drawn
    """
    learned = labelled_stages(config)
    readers = {"train": learned, "unlabelled": [name for name in config.run if name not in learned]}
    for part, names in readers.items():
        kinds = {name: config.stages[name].kind for name in names}
        names = [n for n in names if not SYSTEMS[config.system].skips(config, kinds[n])]
        options = config.stages[names[0]].augment if names and part in sources else None
        if options is None or kinds[names[0]] == FIT and not options.get("variants", 0):
            continue
        file = workdir / f"check_{part}_changed.png"
        target = target_of(config) if part == "train" else None
        with display.progress(f"{part}: draws images as stage {names[0]} changes them"):
            layout.save_png(file, changed_sheet(sources[part], options, target, config.seed))
        print(f"{part}, as stage {names[0]} changes its images: {file}")


def changed_sheet(
    source: Sequence, options: Mapping, target: Target | None, seed: int
) -> np.ndarray:
    """A sheet of examples spread evenly over the source, changed as a stage with these options.

    target  what the stage learns from labels; None: it learns without
    """
    change, parts = augmentation(options, labelled=False), image_alone
    if target:
        change, parts = target.change(options), target.parts
    crops, titles = [], []
    for index in spread(range(len(source)), SHEET_IMAGES):
        example = source[int(index)]
        rng = np.random.default_rng([seed, int(index)])
        crops.append(change(*parts(example), rng))
        titles.append(Path(example["name"]).name)
    return _drawn(crops, source.labels, titles, target)


def source_sheet(source: Sequence, target: Target | None) -> np.ndarray:
    """A sheet of examples spread evenly over the source; unreadable ones are skipped.

    If masks fit turned images both ways, the first of these is among the examples.

    target  whose truth is drawn beside the images; None for none
    """
    examples, shown = [], spread(range(len(source)), SHEET_IMAGES)
    for index in sorted({*map(int, shown), *turned_both_ways(source)[:1]}):
        try:
            examples.append(source[int(index)])
        except UserError:
            continue
    titles = [Path(example["name"]).name for example in examples]
    return _drawn(examples, source.labels, titles, target)


def _drawn(rows, labels, titles, target):
    """A contact sheet of images, with their truths unless there is no target."""
    if target:
        return target.contact(rows, labels, titles)
    return sheets.contact_sheet([row["image"] for row in rows], None, labels, titles)
