"""What do strokes bring, and does it pay to paint where the fit is uncertain? On CamVid.

python tests/benchmarks/strokes.py --data=camvid --output=runs/strokes [--seeds 0,1,2] [--show]

A seed draws 20 training images. A simulated painter, who knows their masks, paints one stroke of
every class in every image; then, in five rounds, one more stroke in every image, whose class is
that of the pixel where it begins:

uncertain  where the uncertainty of the last fit is highest in its most uncertain region
random     at a random pixel
whole      no strokes: all pixels of the masks are labelled, which is what strokes could reach

A stroke is at most 60 pixels long and 7 wide, straight, in a random direction, and ends at the
border of its object. Numbers are those of `experiment.stroke_fit.StrokeFit` with its defaults on
500 labelled pixels of each of the 101 validation images: mIoU in percent; "held out" is what the
fit itself says of its strokes; ECE and AUROC are those of its uncertainty. Means over seeds, and
standard deviations (n - 1).

Features of all images are computed once, and finished fits stand in OUTPUT: the same command goes
on where it stopped; --show runs nothing, and shows those of --seeds. Three CPU minutes a seed.
Needs the extra `pretrained`.
"""

import argparse
import json
import statistics
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage

from diffseg_jax.data.named_sets import open_camvid
from diffseg_jax.experiment.stroke_fit import StrokeFit
from diffseg_jax.metrics.calibration import chance_counts, scores_by_class
from diffseg_jax.metrics.choice import unpainted_regions
from diffseg_jax.metrics.divergence import entropy, normalised
from diffseg_jax.metrics.segmentation import confusion, scores
from diffseg_jax.systems.pixel_ensemble import agree

IMAGES, ROUNDS, PIXELS = 20, 5, 500
LENGTH, RADIUS = 60, 3  # pixels
FEWEST = 150  # pixels; a class with fewer in an image is not painted at first
WAYS = ("uncertain", "random", "whole")
IMAGE_PIXELS = 360 * 480
SMOOTH = 9  # pixels over which the uncertainty is averaged before a stroke begins


def stroke(mask, start, rng):
    """The pixels bool[H,W] of a stroke that begins at (row, column) and stays in its object."""
    region = mask == mask[start]
    inside = ndimage.distance_transform_edt(region)
    painted, angle = np.zeros(mask.shape, bool), rng.uniform(0, 2 * np.pi)
    place = np.array(start, float)
    for step in range(LENGTH):
        row, column = (int(round(value)) for value in place)
        within = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        if not within or (step and inside[row, column] < 1.5):
            break
        rows, columns = (slice(max(v - RADIUS, 0), v + RADIUS + 1) for v in (row, column))
        painted[rows, columns] = True
        place += np.sin(angle), np.cos(angle)
    return painted & region


def paint(ids, mask, start, rng):
    """Adds a stroke to ids u8[H,W]."""
    ids[stroke(mask, start, rng)] = mask[start]


def first_strokes(mask, rng):
    """One stroke of every class that covers some of the image, from well inside an object."""
    ids = np.full(mask.shape, 255, np.uint8)
    for label in np.unique(mask[mask != 255]):
        region = mask == label
        if region.sum() >= FEWEST:
            inside = ndimage.distance_transform_edt(region)
            starts = np.argwhere(inside >= min(RADIUS, 0.6 * inside.max()))
            paint(ids, mask, tuple(starts[rng.integers(len(starts))]), rng)
    return ids


def next_start(way, ids, mask, uncertainty, rng):
    """Where the next stroke begins: a labelled pixel that is not painted yet."""
    free = (mask != 255) & (ids == 255)
    if way == "random":
        starts = np.argwhere(free)
        return tuple(starts[rng.integers(len(starts))])
    blurred = np.where(free, ndimage.uniform_filter(uncertainty, SMOOTH), -1)
    for box in unpainted_regions(uncertainty, np.where(free, 255, 0)):
        rows = slice(box["y"], box["y"] + box["height"])
        columns = slice(box["x"], box["x"] + box["width"])
        row, column = np.unravel_index(blurred[rows, columns].argmax(), (rows.stop - rows.start,
                                       columns.stop - columns.start))  # fmt: skip
        if blurred[rows, columns].max() >= 0:
            return row + rows.start, column + columns.start
    return np.unravel_index(blurred.argmax(), mask.shape)


class Bench:
    """The images, and an engine whose features are kept."""

    def __init__(self, data, output):
        self.output = output
        self.train, self.val = (open_camvid(split, path=data) for split in ("train", "val"))
        self.names = self.train.labels.names
        self.engine = StrokeFit("", self.train.labels, output / "features")
        self.x, self.y = self.validation()

    def validation(self):
        """Features f32[n,D] and labels i32[n] of drawn pixels of the validation images."""
        file = self.output / "validation.npz"
        if not file.exists():
            x, y = [], []
            for index in range(len(self.val)):
                example = self.val[index]
                features = self.engine.features("validation", example["image"])
                labelled = np.flatnonzero(example["mask"] != 255)
                drawn = np.random.default_rng(index).choice(labelled, PIXELS, replace=False)
                places = np.divmod(drawn, example["mask"].shape[1])
                x.append(features.gather(np.zeros(PIXELS, int), *places).astype(np.float16))
                y.append(example["mask"].ravel()[drawn])
                print(f"validation image {index + 1} of {len(self.val)}", flush=True)
            np.savez(file, x=np.concatenate(x), y=np.concatenate(y))
        with np.load(file) as arrays:
            return arrays["x"], arrays["y"].astype(np.int32)

    def numbers(self, result):
        """What the last fit does on the validation pixels; JSON values."""
        member, ensemble = self.engine.learner.member, self.engine.ensemble

        def logits(params, stats, x):
            model = member.bind_eval(params, stats)
            kernel, bias = model.first_layer()
            return model.after_first(x @ kernel + bias)

        said = jax.jit(lambda x: agree(jax.vmap(logits, (0, 0, None))(*ensemble.values(), x)))
        parts = [jax.tree.map(np.asarray, said(part.astype(np.float32)))
                 for part in np.split(self.x, len(self.val))]  # fmt: skip
        probs, divergence = (np.concatenate([p[k] for p in parts]) for k in ("probs", "divergence"))
        labels, classes = probs.argmax(-1).astype(np.int32), len(self.names)
        signals = {
            "least_confidence": 1 - probs.max(-1), "divergence": divergence,
            "entropy": normalised(entropy(probs, np), classes, np).astype(np.float32),
        }  # fmt: skip
        calibrator = self.engine.calibrator
        chance = calibrator.chance(signals, labels) if calibrator else signals["least_confidence"]
        trust = scores_by_class(chance_counts(np.clip(chance, 0, 1), self.y, labels, classes), ())
        return {
            "mIoU": 100 * scores(confusion(self.y, labels, classes), absent="skip")["mIoU"],
            "held_out": 100 * result.miou, "pixels": result.pixels, "strokes": result.strokes,
            "ECE": trust["ECE"], "AUROC": trust["AUROC"], "seconds": result.seconds,
            "calibrated": result.calibrated,
        }  # fmt: skip


def run(bench, seed, way):
    """The numbers of a row: of the first strokes, and after every round."""
    rng = np.random.default_rng([seed, 0])
    drawn = sorted(rng.permutation(len(bench.train))[:IMAGES].tolist())
    examples = {bench.train.names[index]: bench.train[index] for index in drawn}
    masks = {name: np.asarray(each["mask"]) for name, each in examples.items()}
    for name, example in examples.items():
        bench.engine.features(name, example["image"])
    if way == "whole":
        whole = {name: mask.astype(np.uint8) for name, mask in masks.items()}
        return [bench.numbers(bench.engine.fit(whole))]
    ids = {name: first_strokes(mask, rng) for name, mask in masks.items()}
    rng, found = np.random.default_rng([seed, 1]), [bench.numbers(bench.engine.fit(ids))]
    for number in range(ROUNDS):
        for name, mask in masks.items():
            uncertainty = bench.engine.predict(name)[1] if way == "uncertain" else None
            paint(ids[name], mask, next_start(way, ids[name], mask, uncertainty, rng), rng)
        found.append(bench.numbers(bench.engine.fit(ids)))
        print(f"seed {seed} {way} round {number + 1}: {found[-1]['mIoU']:.1f}", flush=True)
    return found


def file_of(output, seed, way):
    return output / f"{way}_{seed}.json"


def show(output, seeds):
    """Prints the table of the seeds that are finished, and draws the plot."""
    has = lambda seed, *ways: all(file_of(output, seed, way).exists() for way in ways)
    paired = [seed for seed in seeds if has(seed, *WAYS[:2])]
    if not paired:
        return print(f"{output} holds no finished fits of these seeds.")
    chosen = {way: paired for way in WAYS[:2]} | {"whole": [s for s in seeds if has(s, "whole")]}
    rows = {
        way: [json.loads(file_of(output, seed, way).read_text()) for seed in each]
        for way, each in chosen.items()
    }
    deviation = lambda values: statistics.stdev(values) if len(values) > 1 else 0.0
    text = lambda values: f"{statistics.mean(values):.1f} ± {deviation(values):.1f}"
    print("| strokes | pixels, % | where uncertain | at random | held out | ECE | AUROC |")
    print("|---|---|---|---|---|---|---|")
    for number in range(ROUNDS + 1):
        first, second = ([run[number] for run in rows[way]] for way in WAYS[:2])
        mean = {key: statistics.mean(each[key] for each in first) for key in first[0]}
        print(
            f"| {mean['strokes']:.0f} | {100 * mean['pixels'] / IMAGES / IMAGE_PIXELS:.2f} "
            f"| {text([e['mIoU'] for e in first])} | {text([e['mIoU'] for e in second])} "
            f"| {mean['held_out']:.1f} | {mean['ECE']:.3f} | {mean['AUROC']:.3f} |"
        )
    whole = [run[0] for run in rows["whole"]]
    if whole:
        print(f"whole masks: {text([each['mIoU'] for each in whole])}")
    draw_plot(rows, output / "strokes.png")


def draw_plot(rows, file):
    """Mean mIoU by the number of rounds, with the range of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for way, colour in (("uncertain", "#0072b2"), ("random", "#d55e00")):
        values = np.array([[each["mIoU"] for each in run] for run in rows[way]])
        numbers = np.arange(values.shape[1])
        label = {"uncertain": "where uncertain", "random": "at random"}[way]
        axes.plot(numbers, values.mean(0), "o-", color=colour, label=label)
        axes.fill_between(numbers, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    if rows["whole"]:
        mean = np.mean([run[0]["mIoU"] for run in rows["whole"]])
        axes.axhline(mean, color="0.4", ls="--", label="whole masks")
    axes.set(xlabel="rounds of one more stroke an image", ylabel="mIoU, %")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--show", action="store_true")
    flags = parser.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    cells = [(seed, way) for seed in seeds for way in WAYS]
    missing = [cell for cell in cells if not file_of(flags.output, *cell).exists()]
    if missing and not flags.show:
        bench = Bench(flags.data, flags.output)
        for seed, way in missing:
            found = json.dumps(run(bench, seed, way), indent=1)
            file_of(flags.output, seed, way).write_text(found)
    show(flags.output, seeds)


if __name__ == "__main__":
    main()
