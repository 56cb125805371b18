"""A random forest on classical features, for few labels: what a pretrained network must beat.

python tests/benchmarks/bench_forest.py --data=camvid [--labels 5,10,20,40] [--draws 0,1,2]
    [--pixels 20000] [--depth 10] [--output forest.json]

The settings are those of scikit-image's example "Trainable segmentation using local features and
random forests": intensities and textures at sigma 1, 2, 4, 8 and 16 of each channel, here with
edges too, 60 values for a pixel; 50 trees of at most 10 levels, each fitted to 5% of the pixels.
`--depth 0` lets the trees grow without a limit. The forest is fitted to `--pixels` labelled pixels
of each labelled image, drawn at random, or to all with 0.

The labelled images are those of a run with data.count=LABELS and data.subset_seed=DRAW, and the
numbers are counted as those of a run, on all validation images at their own size: mean IoU of the
classes that occur, the same near boundaries, AUROC of the entropy as a detector of wrong pixels,
and ECE of 1 - the highest probability. `±` is the standard deviation over draws (n - 1).

The seconds are CPU seconds of one thread, so other programs do not change them much: until the
forest is fitted, with reading the images and without starting Python, and for a validation image,
features and prediction. A forest of another number of labels or another draw that is in the output
already is not fitted again; an output of other data, settings of the forest or versions is refused.
Needs the extra `bench`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import skimage
import sklearn

from diffseg_jax.data.sources import open_source
from diffseg_jax.data.subsets import describe_subset, subset
from diffseg_jax.display.console import Display
from diffseg_jax.experiment.evaluate import no_counts
from diffseg_jax.experiment.forest import (
    FILTERS,
    TREES,
    filter_responses,
    fit_forest,
    forest_probabilities,
)
from diffseg_jax.inference.views import predict_whole
from diffseg_jax.metrics.calibration import chance_scores
from diffseg_jax.metrics.segmentation import scores, to_json
from diffseg_jax.metrics.uncertainty import auroc

HEADER = """\
| labels | draws | mIoU | worst draw | boundary mIoU | AUROC | ECE | s to a fitted model | s per image |
|---|---|---|---|---|---|---|---|---|"""  # noqa: E501


def fit(source, labels, draw, *, pixels, depth):
    """(forest, row): a forest fitted to one draw of labelled images, and what a row says of it."""
    start = time.process_time()
    indices = subset(source.names, count=labels, seed=draw)
    forest = fit_forest(
        source, indices, Display(), seed=draw, pixels=pixels, max_depth=depth or None, threads=1
    )
    images = describe_subset(source.names, indices, seed=draw)["sha256"]
    seconds = time.process_time() - start
    chosen = dict(labels=labels, draw=draw, pixels=pixels, depth=depth)
    return forest, {**chosen, "images": images, "fit_seconds": seconds}


def count(forests, source):
    """The counts of each forest over a split, and its CPU seconds for an image.

    The forests share the responses to an image, whose seconds count for each of them.
    """
    num_classes = len(source.labels.names)
    counts, seconds = [no_counts(num_classes) for _ in forests], np.zeros(len(forests))
    for index in range(len(source)):
        example, start = source[index], time.process_time()
        responses = filter_responses(example["image"])
        seconds += time.process_time() - start
        for number, forest in enumerate(forests):
            start = time.process_time()
            probs = forest_probabilities(forest, responses, num_classes)[None]
            seconds[number] += time.process_time() - start
            counts[number].add(example["mask"], predict_whole(probs), 0)
    return counts, seconds / len(source)


def numbers_of(counts, names):
    """The numbers of one forest, in JSON values."""
    scored = to_json(scores(counts.confusion[:-1], absent="skip"), names)
    return {
        "mIoU": scored["mIoU"],
        "IoU": scored["IoU"],
        "boundary_mIoU": scores(counts.boundary, absent="skip")["mIoU"],
        "AUROC": auroc(counts.signals["entropy"]),
        "ECE": chance_scores(counts.chance)["ECE"],
        "validation_images": counts.images,
    }


def measure(train, val, labels, draws, **settings):
    """The rows of some draws of `labels` images each."""
    fitted = [fit(train, labels, draw, **settings) for draw in draws]
    counts, seconds = count([forest for forest, _ in fitted], val)
    return [
        {**row, "image_seconds": s, **numbers_of(counted, val.labels.names)}
        for (_, row), counted, s in zip(fitted, counts, seconds, strict=True)
    ]


def table_row(rows):
    """One row of the table, of all draws of one number of labels."""
    of = lambda name: np.array([row[name] for row in rows])
    spread = lambda values: f"{values.mean():.1f} ± {values.std(ddof=min(1, len(values) - 1)):.1f}"
    cells = [
        rows[0]["labels"], len(rows), spread(100 * of("mIoU")), f"{100 * of('mIoU').min():.1f}",
        spread(100 * of("boundary_mIoU")), f"{of('AUROC').mean():.3f}", f"{of('ECE').mean():.3f}",
        f"{of('fit_seconds').mean():.0f}", f"{of('image_seconds').mean():.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def made_from(data):
    """What all rows of an output share, JSON values."""
    versions = {"scikit-image": skimage.__version__, "scikit-learn": sklearn.__version__}
    data = str(Path(data).resolve())
    return {"data": data, "filters": FILTERS, "forest": TREES, "versions": versions}


def read_rows(output, made):
    """The rows that are there; ends the program if they were made otherwise."""
    stored = json.loads(output.read_text()) if output.exists() else {"rows": []}
    if changed := [key for key in made if stored.get(key, made[key]) != made[key]]:
        sys.exit(
            f"error: {output} holds forests of other {', '.join(changed)}. Take another --output."
        )
    return stored["rows"]


def rows_of(rows, **settings):
    return [row for row in rows if settings.items() <= row.items()]


def write_rows(output, rows, made):
    """Replaces the file in one step."""
    new = output.with_name(output.name + ".new")
    new.write_text(json.dumps({**made, "rows": rows}, indent=1))
    new.replace(output)


def integers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of CamVid: images/, masks/")
    parser.add_argument("--labels", type=integers, default=[5, 10, 20, 40])
    parser.add_argument("--draws", type=integers, default=[0, 1, 2])
    parser.add_argument("--pixels", type=int, default=20_000, help="of an image; 0: all")
    parser.add_argument("--depth", type=int, default=10, help="of a tree; 0: no limit")
    parser.add_argument("--output", type=Path, default=Path("forest.json"))
    args = parser.parse_args()
    train, val = (open_source("camvid", split, path=args.data) for split in ("train", "val"))
    made, settings = made_from(args.data), dict(pixels=args.pixels, depth=args.depth)
    rows = read_rows(args.output, made)
    print(HEADER)
    for labels in args.labels:
        known = rows_of(rows, labels=labels, **settings)
        if missing := sorted(set(args.draws) - {row["draw"] for row in known}):
            rows += measure(train, val, labels, missing, **settings)
            write_rows(args.output, rows, made)
        known = rows_of(rows, labels=labels, **settings)
        print(table_row([row for row in known if row["draw"] in args.draws]), flush=True)


if __name__ == "__main__":
    main()
