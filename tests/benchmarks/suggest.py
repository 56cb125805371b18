"""Are suggested images worth more than random ones? On CamVid, from 5 to 20 labelled images.

python tests/benchmarks/suggest.py --data=camvid --output=runs/suggest [--draws 0,1,2,3,4]
    [--rows random,suggested,rounds,diverse] [--show]

All rows but the last begin with the same 5 images, drawn with the draw as seed, and are fits of
configs/ddpm_seg_camvid.py:pretrained with the draw as seed:

random     20 images, of which the 5 are a part
suggested  the 5, and 15 that `python -m diffseg_jax.suggest` names for the fit to the 5
rounds     the 5, and three times 5, each named for the fit to all before
diverse    20 images that the command names without any fit: the same ones for all draws

Two numbers are shown, mIoU in percent: on all training images that are left, among which images
are suggested, and on all validation images, which come from one of the three drives alone. Of each
draw, mean and standard deviation (n - 1), and worst. Fits and suggestions stand in OUTPUT; the same
command goes on where it stopped, --show runs nothing. Needs the extra `pretrained`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from few_labels import LABELS, LITE, ROOT, Bench, Run

FIRST, ALL = 5, 20  # labelled images
DRAWN = Run("", LITE, LABELS)
LISTED = Run("", LITE, (
    "--config.data.path={data}", "--config.data.count=0", "--config.data.list_path={list}",
    "--config.seed={draw}",
))  # fmt: skip
ROUNDS = {"suggested": 1, "rounds": 3}
ROWS = ("random", *ROUNDS, "diverse")


def suggested(bench: Bench, name: str, count: int, checkpoint: str = "") -> list[str]:
    """The images that the command names, for the run of that name or without one."""
    output = bench.output / f"next_{name}"
    if not (output / "suggestions.txt").exists():
        given = [f"--checkpoint={bench.output / checkpoint}"] if checkpoint else []
        flags = [f"--images={bench.data / 'images' / 'train'}", f"--count={count}", *given]
        subprocess.run(
            [sys.executable, "-m", "diffseg_jax.suggest", f"--output={output}", *flags],
            cwd=ROOT, check=True,
        )  # fmt: skip
    return (output / "suggestions.txt").read_text().splitlines()


def labelled_in(bench: Bench, name: str) -> list[str]:
    """The images to which a run was fitted."""
    return json.loads((bench.output / name / "labelled.json").read_text())["names"]


def fit(bench: Bench, name: str, draw: int, images: list[str]):
    """Fits to a list of images."""
    listed = bench.output / f"{name}.txt"
    listed.write_text("".join(f"{image}\n" for image in images))
    bench.finish(name, LISTED, draw=draw, list=listed)


def run_cell(bench: Bench, row: str, draw: int):
    """Runs what is missing of a row's draw."""
    name, start = f"{row}_{draw}", f"start_{draw}"
    if row == "random":
        bench.finish(name, DRAWN, draw=draw, labels=ALL)
    elif row == "diverse":
        fit(bench, name, draw, suggested(bench, row, ALL))
    else:
        bench.finish(start, DRAWN, draw=draw, labels=FIRST)
        count = (ALL - FIRST) // ROUNDS[row]
        for number in range(1, ROUNDS[row] + 1):
            new = suggested(bench, f"{row}{number}_{draw}", count, start)
            images = labelled_in(bench, start) + new
            start = name if number == ROUNDS[row] else f"{row}{number}_{draw}"
            fit(bench, start, draw, images)


def measure_pool(bench: Bench, name: str):
    """Adds the mIoU of a run on the training images to which it was not fitted."""
    if "pool" in bench.times(name):
        return
    import diffseg_jax
    from diffseg_jax.data.sources import open_source
    from diffseg_jax.metrics.segmentation import confusion, scores

    source = open_source("camvid", "train", path=bench.data)
    segmenter, seen = diffseg_jax.load(bench.output / name), set(labelled_in(bench, name))
    counts, num_classes = 0, len(source.labels.names)
    for index in range(len(source)):
        if source.names[index] not in seen:
            example = source[index]
            labels = segmenter.predict(example["image"]).labels[0]
            counts += confusion(example["mask"], labels, num_classes)
    pool = 100 * scores(counts, absent="skip")["mIoU"]
    bench.write_times(name, {**bench.times(name), "pool": pool})


def show(bench: Bench, rows: list[str], draws: list[int]):
    """Prints the tables, of all cells that are done."""
    for where, number in (("training images left", of_pool), ("validation", of_validation)):
        print(f"| {where} | each draw | mean ± standard deviation | worst |\n|---|---|---|---|")
        for row in ("start", *rows):
            names = [f"{row}_{draw}" for draw in draws if bench.is_done(f"{row}_{draw}")]
            if found := [value for name in names if (value := number(bench, name)) is not None]:
                deviation = statistics.stdev(found) if len(found) > 1 else 0.0
                each = " ".join(f"{value:.1f}" for value in found)
                mean = f"{statistics.mean(found):.1f} ± {deviation:.1f}"
                print(f"| {row} | {each} | {mean} | {min(found):.1f} |", flush=True)


def of_pool(bench: Bench, name: str) -> float | None:
    return bench.times(name).get("pool")


def of_validation(bench: Bench, name: str) -> float:
    return 100 * json.loads((bench.output / name / "results.json").read_text())["fit"]["mIoU"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of CamVid")
    parser.add_argument("--output", required=True, type=Path, help="folder of all runs")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"default: {','.join(ROWS)}")
    parser.add_argument("--draws", default="0,1,2,3,4", help="such as 0,1")
    parser.add_argument("--show", action="store_true", help="print what is done and run nothing")
    args = parser.parse_args()
    rows, draws = args.rows.split(","), [int(draw) for draw in args.draws.split(",")]
    if unknown := set(rows) - set(ROWS):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    bench = Bench(args.data.resolve(), args.output.resolve())
    bench.output.mkdir(parents=True, exist_ok=True)
    for row in () if args.show else rows:
        for draw in draws:
            run_cell(bench, row, draw)
            measure_pool(bench, f"{row}_{draw}")
    show(bench, rows, draws)


if __name__ == "__main__":
    main()
