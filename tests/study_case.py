"""A small study, and stand-ins of its runs."""

import json
import re
import types
from pathlib import Path

import numpy as np

from diffseg_jax.metrics.image_counts import ImageCounts, mean_iou

ROOT = Path(__file__).parents[1]
FIELDS = dict(
    base=str(ROOT / "tests/configs/tiny_ddep.py"),
    axes={
        "pretraining": {"none": {"run": ("scratch",)}, "DeP": {"run": ("pretrain", "finetune")}},
        "data.count": (2, 4),
    },
    seeds={"seed": (0, 1), "data.subset_seed": (0, 1)},
    shared={"pretrain": ("data", "evaluate", "seed")},
)
ONE = dict(seeds={"seed": (0,)}, axes={"run": {"scratch": {"run": ("scratch",)}}})
IMAGES, CLASSES = 40, 3


def counts_of(right, seed):
    """Counts of images of which a share of the pixels is right, which differs by image."""
    rng = np.random.default_rng(seed)
    labelled = rng.integers(20, 60, (IMAGES, CLASSES))
    hits = (labelled * np.clip(right + rng.normal(0, 0.1, labelled.shape), 0, 1)).astype(int)
    zeros = np.zeros_like(hits)
    counts = np.stack([hits, labelled, hits, zeros], 1)
    names = tuple(f"image{i}" for i in range(IMAGES))
    return ImageCounts(names, tuple("abc"), counts, "skip")


class Runs:
    """Stands in for `diffseg_jax.main`: leaves the results of a run, some of which fail."""

    def __init__(self, fails=(), stops_at=None):
        self.fails, self.stops_at, self.commands = fails, stops_at, []

    def __call__(self, command, log, say):
        if len(self.commands) == self.stops_at:
            raise KeyboardInterrupt
        self.commands.append(command)
        options = dict(re.findall(r"--([\w.]+)=(.*)", "\n".join(command)))
        workdir = Path(options["workdir"])
        usage = types.SimpleNamespace(ru_utime=2.0, ru_stime=1.0, ru_maxrss=10**6)
        if workdir.name in self.fails:
            return 2, usage, "error: the masks are wrong. Look at them."
        stage = re.findall(r"\w+", options["config.run"])[-1]
        workdir.mkdir(parents=True, exist_ok=True)
        if options.get("mode") == "features":
            kept = {"passes": 27, "options": {"steps": [1, 3, 5]}}
            (workdir / "features").mkdir(exist_ok=True)
            (workdir / "features" / "features.json").write_text(json.dumps(kept))
            return 0, usage, "finished"
        suffix = "" if "mode" not in options else "_eval"
        seed, start = int(options.get("config.seed", 0)), f"config.stages.{stage}.start"
        right = 0.5 + 0.2 * (start in options) + 0.01 * int(options.get("config.data.count", 0))
        right += 0.01 * len(options.get("config.evaluate.scales", ""))
        counts = counts_of(right, seed)
        counts.save(workdir / f"image_counts_{stage}{suffix}.npz")
        score = float(mean_iou(counts.counts.sum(0), "skip"))
        result = {"mIoU": score, "calibration": {"ECE": 0.1}}
        (workdir / f"results{suffix}.json").write_text(json.dumps({stage: result}))
        return 0, usage, "finished"
