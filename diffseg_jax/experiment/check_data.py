"""`--mode=check`: opens the configured data, reads all of it and reports what it holds."""

import collections
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.devices.processes import require_one
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.data_notes import notes_of, turned_both_ways
from diffseg_jax.experiment.plan import check_config, open_data
from diffseg_jax.figures import sheets
from diffseg_jax.storage.workdir import make_workdir

SHEET_IMAGES = 12  # on a contact sheet
MAX_LISTED = 10  # bad files that are named; the others are counted


def check_data(config: ConfigDict, workdir: Path):
    """Prints counts, sizes, class shares and bad files; writes <workdir>/check_*.png.

    Every part is checked, whatever is wrong with the others. Raises UserError at the end if a part
    cannot be opened or a file cannot be used.
    """
    require_one("--mode=check")
    check_config(config)
    parts = []
    if "data" in config:
        parts += [("train", "data", config.data.train), ("val", "data", config.data.val)]
    if "unlabelled" in config and config.unlabelled.source:
        parts.append(("unlabelled", "unlabelled", config.unlabelled.split))
    unopened, problems = [], []
    for name, part, split in parts:
        try:
            source = open_data(config, part, split)
        except UserError as error:
            unopened.append(f"{name}: {error}")
            continue
        make_workdir(workdir)
        print(
            f"{name}: {counted(len(source), 'image')} of {config[part].source}"
            + (f", split {split}" if split else ""),
            flush=True,
        )
        bad = report_source(source, name == "unlabelled", config[part].threads)
        problems += bad
        file = workdir / f"check_{name}.png"
        if len(bad) < len(source):
            sheets.save_png(file, source_sheet(source, name == "unlabelled"))
            print(f"  contact sheet: {file}")
    if unopened:
        raise UserError("\n  ".join(unopened))
    if problems:
        examples = counted(len(problems), "example")
        raise UserError(f"{examples} cannot be used, as listed above. Repair or remove the files.")


def report_source(source: Sequence, unlabelled: bool, threads: int) -> list[str]:
    """Prints notes, sizes, class shares and bad files; returns one sentence per bad file."""
    for sentence in notes_of(source):
        print(f"  note: {sentence}")
    sizes, problems = collections.Counter(), []
    pixels, images = collections.Counter(), collections.Counter()
    with ThreadPoolExecutor(threads) as pool:
        for measured in pool.map(lambda index: _measure(source, index), range(len(source))):
            if isinstance(measured, str):
                problems.append(measured)
                continue
            size, counts = measured
            sizes[size] += 1
            pixels.update(counts)
            images.update(dict.fromkeys(counts, 1))
    common = ", ".join(f"{h} x {w} ({n})" for (h, w), n in sizes.most_common(4))
    if sizes:
        print(f"  sizes (height x width): {common}{' and others' if len(sizes) > 4 else ''}")
    if pixels and source.labels and not unlabelled:
        _print_shares(source.labels.names, pixels, images)
    for problem in problems[:MAX_LISTED]:
        print(f"  bad: {problem}")
    if len(problems) > MAX_LISTED:
        print(f"  bad: and {len(problems) - MAX_LISTED} more")
    return problems


def _measure(source, index):
    """(size, {label: pixels}) of an example, or a sentence about what is wrong with it."""
    try:
        example = source[index]
    except UserError as error:
        return str(error)
    mask = example.get("mask")
    counts = {} if mask is None else dict(zip(*np.unique(mask, return_counts=True)))
    return example["image"].shape[:2], {int(c): int(n) for c, n in counts.items()}


def _print_shares(names, pixels, images):
    total = sum(pixels.values())
    width = max(len(name) for name in names)
    print(f"  {'class':<{width + 4}} {'pixels':>8} {'images':>8}")
    for label, name in [*enumerate(names), (IGNORE, "ignored")]:
        share = pixels[label] / total
        print(f"  {label:>3} {name:<{width}} {share:>8.2%} {images[label]:>8}")


def source_sheet(source: Sequence, unlabelled: bool) -> np.ndarray:
    """A sheet of examples spread evenly over the source; unreadable ones are skipped.

    If masks fit turned images both ways, the first of these is among the examples.
    """
    examples, spread = [], np.linspace(0, len(source) - 1, SHEET_IMAGES).astype(int)
    for index in sorted({*spread.tolist(), *turned_both_ways(source)[:1]}):
        try:
            examples.append(source[int(index)])
        except UserError:
            continue
    masks = None if unlabelled else [example.get("mask") for example in examples]
    if masks and any(mask is None for mask in masks):
        masks = None
    titles = [Path(example["name"]).name for example in examples]
    return sheets.contact_sheet([e["image"] for e in examples], masks, source.labels, titles)
