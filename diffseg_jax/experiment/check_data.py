"""Opens the configured data, reads all of it, and says what it found; trains nothing."""

import collections
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.devices.processes import require_one
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.plan import check_config, open_data
from diffseg_jax.figures import sheets
from diffseg_jax.storage.workdir import make_workdir

SHOWN = 12  # pictures on a contact sheet
LISTED = 10  # bad files named; the others are counted


def check_data(config: ConfigDict, workdir: Path):
    """Prints counts, sizes, class histogram and bad files; leaves <workdir>/check_*.png.

    What cannot be opened does not hide the rest. Raises UserError at the end when something cannot
    be opened or a file cannot be used.
    """
    require_one("--mode=check")
    check_config(config)
    problems, closed = [], []
    parts = []
    if "data" in config:
        parts += [("train", "data", config.data.train), ("val", "data", config.data.val)]
    if "unlabelled" in config and config.unlabelled.source:
        parts.append(("unlabelled", "unlabelled", config.unlabelled.split))
    for name, part, split in parts:
        try:
            source = open_data(config, part, split)
        except UserError as error:
            closed.append(f"{name}: {error}")
            continue
        make_workdir(workdir)
        print(
            f"{name}: {counted(len(source), 'image')} of {config[part].source}"
            + (f", split {split}" if split else ""),
            flush=True,
        )
        for sentence in source.report:
            print(f"  note: {sentence}")
        bad = describe(source, name == "unlabelled", config[part].threads)
        problems += bad
        picture = workdir / f"check_{name}.png"
        if len(bad) < len(source):
            sheets.save_png(picture, sheet(source, name == "unlabelled"))
            print(f"  contact sheet: {picture}")
    if closed:
        raise UserError("\n  ".join(closed))
    if problems:
        files = counted(len(problems), "example")
        raise UserError(f"{files} cannot be used, as listed above. Mend or remove the files.")


def describe(source: Sequence, unlabelled: bool, threads: int) -> list[str]:
    """Prints sizes, the share of each class and bad files; returns what is wrong with those."""
    sizes, problems = collections.Counter(), []
    pixels, images = collections.Counter(), collections.Counter()
    with ThreadPoolExecutor(threads) as pool:
        for facts in pool.map(lambda place: _facts(source, place), range(len(source))):
            if isinstance(facts, str):
                problems.append(facts)
                continue
            size, counts = facts
            sizes[size] += 1
            pixels.update(counts)
            images.update(dict.fromkeys(counts, 1))
    common = ", ".join(f"{h} x {w} ({n})" for (h, w), n in sizes.most_common(4))
    if sizes:
        print(f"  sizes (height x width): {common}{' and others' if len(sizes) > 4 else ''}")
    if pixels and source.labels and not unlabelled:
        _print_histogram(source.labels.names, pixels, images)
    for problem in problems[:LISTED]:
        print(f"  bad: {problem}")
    if len(problems) > LISTED:
        print(f"  bad: and {len(problems) - LISTED} more")
    return problems


def _facts(source, place):
    """The size and the pixels per class of an example, or what is wrong with it."""
    try:
        example = source[place]
    except UserError as error:
        return str(error)
    mask = example.get("mask")
    counts = {} if mask is None else dict(zip(*np.unique(mask, return_counts=True)))
    return example["image"].shape[:2], {int(c): int(n) for c, n in counts.items()}


def _print_histogram(names, pixels, images):
    total = sum(pixels.values())
    width = max(len(name) for name in names)
    print(f"  {'class':<{width + 4}} {'pixels':>8} {'images':>8}")
    for place, name in [*enumerate(names), (IGNORE, "ignored")]:
        share = pixels[place] / total
        print(f"  {place:>3} {name:<{width}} {share:>8.2%} {images[place]:>8}")


def sheet(source: Sequence, unlabelled: bool) -> np.ndarray:
    """A contact sheet of examples spread evenly over the source, as far as they can be read."""
    examples = []
    for place in np.unique(np.linspace(0, len(source) - 1, SHOWN).astype(int)):
        try:
            examples.append(source[int(place)])
        except UserError:
            continue
    masks = None if unlabelled else [example.get("mask") for example in examples]
    if masks and any(mask is None for mask in masks):
        masks = None
    titles = [Path(example["name"]).name for example in examples]
    return sheets.contact_sheet([e["image"] for e in examples], masks, source.labels, titles)
