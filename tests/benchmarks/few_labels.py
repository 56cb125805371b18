"""The table of methods for few labels on CamVid: mIoU, boundaries, trust, seconds.

python tests/benchmarks/few_labels.py --data=camvid --output=runs/few_labels
    [--rows default,linear] [--labels 20] [--draws 0,1,2,3,4] [--show]

Every cell is one run of the product's command, in the workdir OUTPUT/ROW_LABELS_DRAW; DRAW is its
seed and that of the choice of its labelled images. Rows "adm", "clean" and "both" start from a
diffusion model of the unlabelled images and "mae" from an MAE of them, which are trained once, in
OUTPUT too (an hour and more on two cores). The forests are those of bench_forest.py. The same
command goes on where it stopped, and cells that are done are read; --show runs nothing.

Numbers are those of results.json, on all validation images: mean and standard deviation (n - 1)
over draws, and the worst draw. AUROC is that of the uncertainty that each method gives, as a
detector of wrong pixels. "Fitted" is the time from the start of the process to the last checkpoint,
with nothing compiled before, and "an image" that of one prediction after the first; both of the
first draw, and of a quiet machine only if nothing else runs (OUTPUT/ROW_LABELS_DRAW.json has the
load). What is trained without labels is part of the first. Of forests they are CPU seconds of
one thread, and the first number leaves out the start of Python. Needs the extras `bench`,
`pretrained`.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IMAGES = 9  # whose prediction is timed; the first one compiles
FILES = ("--config.data.path={data}", "--config.unlabelled.path={data}")
LABELS = (
    "--config.data.path={data}", "--config.data.count={labels}",
    "--config.data.subset_seed={draw}", "--config.seed={draw}",
)  # fmt: skip
ONLY_FIT = "--config.run=('fit',)"
FROM_RUN = "--config.stages.fit.start={start}"


@dataclasses.dataclass(frozen=True)
class Run:
    """What is typed after `python -m diffseg_jax.main`, with {data}, {labels}, {draw}, {start}.

    title    of the row
    stage    whose numbers count, and from which others start
    start    the run in UNLABELLED whose checkpoint is {start}
    """

    title: str
    config: str
    options: tuple[str, ...] = ()
    stage: str = "fit"
    start: str = ""


UNLABELLED = {  # runs that read no labels
    "camvid_adm": Run("", "configs/ddpm_camvid.py", FILES[1:], "pretrain"),
    "camvid_clean": Run(
        "", "configs/ddpm_seg_camvid.py:clean",
        (*FILES, "--config.run=('clean',)", "--config.stages.clean.start={start}"),
        "clean", "camvid_adm",
    ),
    "camvid_mae": Run("", "configs/mae_camvid.py", (*FILES, "--config.run=('mae',)"), "mae"),
}  # fmt: skip
LITE = "configs/ddpm_seg_camvid.py:pretrained"
ADM = "configs/ddpm_seg_camvid.py"
FORESTS = {  # row -> title, levels of a tree; a program of its own
    "forest": ("random forest, settings of scikit-image's example", 10),
    "deep_forest": ("random forest, trees without a limit", 0),
}
ROWS = {  # the cheapest first
    "colour": Run(
        "colour and position", ADM,
        (
            ONLY_FIT, "--config.features.sources=colour", "--config.stages.fit.start=random",
        ),
    ),
    "linear": Run(
        "EfficientNet-Lite0, one linear layer", LITE,
        (
            "--config.ensemble.recipe=linear", "--config.ensemble.members=1",
            "--config.features.taps=()", "--config.features.scales=1.0",
            "--config.stages.fit.augment.variants=0",
        ),
    ),
    "default": Run("EfficientNet-Lite0, the default", LITE),
    "random_adm": Run(
        "diffusion model, random weights", ADM, (ONLY_FIT, "--config.stages.fit.start=random")
    ),
    "transunet": Run("TransUNet from scratch", "configs/ddep_camvid.py:none", stage="finetune"),
    "mae": Run("MAE of own images", "configs/mae_camvid.py", (ONLY_FIT, FROM_RUN),
               start="camvid_mae"),
    "adm": Run("diffusion model of own images", ADM, (ONLY_FIT, FROM_RUN), start="camvid_adm"),
    "clean": Run("the same, `clean`", f"{ADM}:clean", (ONLY_FIT, FROM_RUN), start="camvid_clean"),
    "both": Run(
        "EfficientNet-Lite0 and diffusion model", "tests/benchmarks/both_camvid.py", (FROM_RUN,),
        start="camvid_adm",
    ),
}  # fmt: skip
HEADER = """\
| {labels} labels | draws | mIoU | worst draw | boundary mIoU | AUROC | ECE | fitted | an image |
|---|---|---|---|---|---|---|---|---|"""


# ---- running -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bench:
    """The folders of the data and of the runs."""

    data: Path
    output: Path

    def finish(self, name: str, run: Run, **values):
        """Runs a command to its end, unless it is there, and keeps its seconds."""
        if self.is_done(name):
            return
        if run.start:
            self.finish(run.start, UNLABELLED[run.start])
            values["start"] = self.checkpoints(run.start, UNLABELLED[run.start])
        options = [text.format(data=self.data, **values) for text in run.options]
        workdir, cache = self.output / name, self.output / "compiled" / name.rpartition("_")[0]
        begun_here, cold, begun = not workdir.exists(), not cache.exists(), time.time()
        print(f"runs {name}", file=sys.stderr, flush=True)
        with open(f"{workdir}.log", "a") as log:
            done = subprocess.run(
                [sys.executable, "-m", "diffseg_jax.main", f"--config={run.config}",
                 f"--workdir={workdir}", f"--compilation_cache={cache}", *options],
                cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name} ended with exit code {done.returncode}; see {workdir}.log")
        times = {"load": os.getloadavg()[0], "cold": cold}
        if begun_here:  # a run that was resumed has no such time
            times["fitted"] = self.last_checkpoint(name, run).stat().st_mtime - begun
        self.write_times(name, times)

    def is_done(self, name: str) -> bool:
        """Whether a run came to its end."""
        return (self.output / f"{name}.json").exists()

    def checkpoints(self, name: str, run: Run) -> Path:
        return self.output / name / "checkpoints" / run.stage

    def last_checkpoint(self, name: str, run: Run) -> Path:
        steps = (path for path in self.checkpoints(name, run).iterdir() if path.name.isdecimal())
        return max(steps, key=lambda path: int(path.name))

    def times(self, name: str) -> dict:
        file = self.output / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write_times(self, name: str, times: dict):
        (self.output / f"{name}.json").write_text(json.dumps(times))

    def time_prediction(self, name: str):
        """Adds the median seconds of the prediction of one image to the times of a run."""
        if "image" in self.times(name):
            return
        import diffseg_jax
        from diffseg_jax.data.sources import open_source

        source = open_source("camvid", "val", path=self.data)
        segmenter, seconds = diffseg_jax.load(self.output / name), []
        for index in range(IMAGES):
            image, begun = source[index]["image"], time.perf_counter()
            segmenter.predict(image)
            seconds.append(time.perf_counter() - begun)
        self.write_times(name, {**self.times(name), "image": statistics.median(seconds[1:])})

    def run_forest(self, depth: int, labels: int, draws: list[int]):
        """Fits the forests that are missing."""
        draws = ",".join(map(str, draws))
        subprocess.run(
            [sys.executable, HERE / "bench_forest.py", f"--data={self.data}", f"--draws={draws}",
             f"--labels={labels}", f"--depth={depth}",
             f"--output={self.output / 'forest.json'}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip


def run_row(bench: Bench, row: str, labels: int, draws: list[int]):
    """Runs what is missing of a row."""
    if row in FORESTS:
        bench.run_forest(FORESTS[row][1], labels, draws)
        return
    for draw in draws:
        run = dataclasses.replace(ROWS[row], options=(*LABELS, *ROWS[row].options))
        bench.finish(f"{row}_{labels}_{draw}", run, labels=labels, draw=draw)
    bench.time_prediction(f"{row}_{labels}_{draws[0]}")


# ---- reading -------------------------------------------------------------------------------------


def cells_of(bench: Bench, row: str, labels: int, draws: list[int]) -> list[dict]:
    """The numbers of a row's draws that are there."""
    if row in FORESTS:
        return forests_of(bench, FORESTS[row][1], labels, draws)
    names = [f"{row}_{labels}_{draw}" for draw in draws]
    return [cell_of(bench, name, ROWS[row]) for name in names if bench.is_done(name)]


def forests_of(bench: Bench, depth: int, labels: int, draws: list[int]) -> list[dict]:
    """The same of forests whose trees have at most `depth` levels."""
    file = bench.output / "forest.json"
    cells = json.loads(file.read_text())["rows"] if file.exists() else []
    return [
        {**cell, "fitted": cell["fit_seconds"], "image": cell["image_seconds"]}
        for cell in cells
        if (cell["depth"], cell["labels"]) == (depth, labels) and cell["draw"] in draws
    ]


def cell_of(bench: Bench, name: str, run: Run) -> dict:
    """The numbers of one run; "fitted" and "image" where they were measured."""
    found = json.loads((bench.output / name / "results.json").read_text())[run.stage]
    times = bench.times(name)
    cell = {
        "mIoU": found["mIoU"], "AUROC": found["AUROC"], "ECE": found["calibration"]["ECE"],
        "boundary_mIoU": found["boundary"]["mIoU"], "image": times.get("image"),
    }  # fmt: skip
    before = [bench.times(name).get("fitted") for name in runs_before(run)]
    seconds = [times.get("fitted"), *before]
    return {**cell, "fitted": None if None in seconds or not times["cold"] else sum(seconds)}


def runs_before(run: Run) -> list[str]:
    """The names of the runs without labels from which a run starts."""
    return [run.start, *runs_before(UNLABELLED[run.start])] if run.start else []


def table_row(title: str, cells: list[dict]) -> str:
    """One row of the table in Markdown."""
    of = lambda key: [cell[key] for cell in cells]
    deviation = lambda values: statistics.stdev(values) if len(values) > 1 else 0.0
    spread = lambda key: f"{100 * statistics.mean(of(key)):.1f} ± {100 * deviation(of(key)):.1f}"
    first = lambda key, digits: next(
        (f"{value:.{digits}f} s" for value in of(key) if value is not None), "-"
    )
    columns = [
        title, len(cells), spread("mIoU"), f"{100 * min(of('mIoU')):.1f}", spread("boundary_mIoU"),
        f"{statistics.mean(of('AUROC')):.3f}", f"{statistics.mean(of('ECE')):.3f}",
        first("fitted", 0), first("image", 2),
    ]  # fmt: skip
    return f"| {' | '.join(map(str, columns))} |"


def show(bench: Bench, rows: list[str], labels: int, draws: list[int]):
    """Prints the table of one number of labels, of all rows of which a cell is there."""
    print(HEADER.format(labels=labels))
    for row in rows:
        title = FORESTS[row][0] if row in FORESTS else ROWS[row].title
        if cells := cells_of(bench, row, labels, draws):
            print(table_row(title, cells))
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known, integers = [*FORESTS, *ROWS], lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--data", required=True, type=Path, help="folder of CamVid")
    parser.add_argument("--output", required=True, type=Path, help="folder of all runs")
    parser.add_argument("--rows", default=",".join(known), help=f"default: {','.join(known)}")
    parser.add_argument("--labels", type=integers, default=[20], help="such as 5,10,40")
    parser.add_argument("--draws", type=integers, default=[0, 1, 2, 3, 4])
    parser.add_argument("--show", action="store_true", help="print what is done and run nothing")
    args = parser.parse_args()
    rows = args.rows.split(",")
    if unknown := set(rows) - set(known):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    bench = Bench(args.data.resolve(), args.output.resolve())
    bench.output.mkdir(parents=True, exist_ok=True)
    for labels in args.labels:
        for row in () if args.show else rows:
            run_row(bench, row, labels, args.draws)
        show(bench, rows, labels, args.draws)


if __name__ == "__main__":
    main()
