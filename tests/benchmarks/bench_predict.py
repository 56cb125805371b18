"""Predicting with a trained network: loading time, agreement with the evaluation, speed, tiles.

python tests/benchmarks/bench_predict.py runs/scenes runs/ddp_scenes runs/ddpm_seg_scenes

Every checkpoint is measured in a separate process: the seconds of `load` after imports; for images
of odd sizes the seconds of a first and of a second prediction, and the difference of probabilities
and uncertainty from those of the evaluation (1024 x 2048 through tiles); the seconds for an image
of 512 x 512, in turn with the evaluation loop; and the change of its prediction by tiles. The
images are drawn scenes.
"""

import argparse
import os
import subprocess
import sys
import time

import jax
import numpy as np

from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.experiment.evaluate import evaluate
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.segmenter import Segmenter, load
from diffseg_jax.inference.views import predict

SIZES = ((1, 1), (33, 47), (360, 480), (480, 360), (1024, 2048))
TILED, TILE = (1024, 2048), (256, 512)
SPEED, COUNT, ROUNDS = (512, 512), 4, 3


class Scenes:
    """Some drawn scenes with their labels, as a source of data."""

    def __init__(self, count: int, size: tuple[int, int]):
        scenes = [draw_scene(5, number, *size) for number in range(count)]
        self.names = tuple(map(str, range(count)))
        self.examples = [
            {"image": scene["image"], "mask": scene["mask"], "name": name}
            for scene, name in zip(scenes, self.names, strict=True)
        ]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def draw(size: tuple[int, int]) -> np.ndarray:
    """A drawn scene of any size, u8[H,W,3]; of fewer than 8 pixels a side, its corner."""
    drawn = tuple(max(side, 8) for side in size)
    return draw_scene(5, 0, *drawn)["image"][: size[0], : size[1]]


def seconds(function, *arguments, **options):
    """(seconds, result) of a call."""
    begun = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - begun, result


def compare_sizes(segmenter: Segmenter):
    """Prints a line for every size: first and second prediction, difference from the evaluation."""
    for size in SIZES:
        image, options = draw(size), {}
        if size == TILED:
            options = {"tile": TILE}
        first, _ = seconds(segmenter.predict, image, **options)
        second, found = seconds(segmenter.predict, image, **options)
        program = jax.jit(segmenter.task.predict)
        forward = make_forward(program, segmenter.network, segmenter.mesh, 1)
        expected = predict(forward, image[None], segmenter.protocol_for(PredictOptions(**options)))
        gap = np.abs(found.probs - expected.probs).max()
        gap = max(gap, np.abs(found.uncertainty - expected.uncertainty).max())
        labels = np.mean(found.labels != expected.labels)
        shown = f"{size[0]} x {size[1]}" + (" tiled" if options else "")
        print(
            f"  {shown:17} first {first:6.2f} s, second {second:6.3f} s, differs from the "
            f"evaluation by {gap:.1e}, {100 * labels:.4f} % of labels",
            flush=True,
        )


def compare_speed(segmenter: Segmenter):
    """Prints the seconds per image of the evaluation loop and of `predict`, best of ROUNDS."""
    source = Scenes(COUNT, SPEED)
    images = [example["image"] for example in source.examples]
    program = jax.jit(segmenter.task.predict)
    forward = make_forward(
        program, segmenter._placed, segmenter.mesh, 1, segmenter.task.stride
    )  # fmt: skip
    indices, classes = np.arange(COUNT), len(segmenter.names)
    loop = lambda: evaluate(forward, source, indices, classes, segmenter.protocol, 1)
    ask = lambda: [one.labels for one in segmenter.predict_each(images, batch_size=1)]
    loop(), ask()
    turns = [(seconds(loop)[0], seconds(ask)[0]) for _ in range(ROUNDS)]
    looped, asked = (min(turn) / COUNT for turn in zip(*turns, strict=True))
    print(
        f"  {SPEED[0]} x {SPEED[1]}: evaluation loop {1000 * looped:.0f} ms an image, predict "
        f"{1000 * asked:.0f} ms ({asked / looped:.2f} of it)",
        flush=True,
    )


def compare_tiles(segmenter: Segmenter):
    """Prints how much tiles change the prediction."""
    image = draw(SPEED)
    tiled = segmenter.predict(image, tile=256, stride=128)
    untiled = segmenter.predict(image, tile=0)
    gap = np.abs(tiled.probs - untiled.probs)
    same = np.mean(tiled.labels == untiled.labels)
    print(
        f"  tiles of 256, half overlapping: {100 * same:.1f} % of labels as without tiles, "
        f"probabilities differ by {gap.mean():.4f} on average"
    )


def measure(path: str):
    """Everything about one checkpoint."""
    taken, segmenter = seconds(load, path)
    print(f"{segmenter}\n  loaded in {taken:.2f} s", flush=True)
    compare_sizes(segmenter)
    compare_speed(segmenter)
    compare_tiles(segmenter)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", help="as of diffseg_jax.load")
    given = parser.parse_args()
    if len(given.checkpoints) == 1:
        measure(given.checkpoints[0])
        return
    for path in given.checkpoints:
        subprocess.run([sys.executable, os.path.abspath(__file__), path], check=True)


if __name__ == "__main__":
    main()
