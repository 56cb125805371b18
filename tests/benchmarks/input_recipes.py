"""How many images a second one core prepares for the recipes of the papers.

python tests/benchmarks/input_recipes.py

Drawn street scenes with noise, of the sizes and formats of the data sets, are written to a
temporary folder, read, and changed as the recipe says. The time is the CPU time of this process,
which other programs on the machine change little. Real photographs compress differently.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.config.files import read_config
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.data.sources import open_source
from diffseg_jax.experiment.gradient_stage import reading_of
from diffseg_jax.experiment.label_target import LABEL_TARGET

RECIPES = (  # config, stage, (height, width) of the files, their format, whether they have masks
    ("ddp_cityscapes.py", "train", (1024, 2048), ".png", True),
    ("ddep_cityscapes.py", "finetune", (1024, 2048), ".png", True),
    ("ddp_ade20k.py", "train", (512, 683), ".jpg", True),
    ("ddpm_published.py", "pretrain", (256, 341), ".jpg", False),
    ("ddep_cityscapes.py", "pretrain", (375, 500), ".jpg", False),
)
FILES, READS = 4, 24


def write_files(folder: Path, size: tuple[int, int], ending: str):
    """Images and masks of a folder set."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part / "train").mkdir(parents=True)
    for number in range(FILES):
        scene = draw_scene(0, number, size[0] // 4, size[1] // 4)
        image = Image.fromarray(scene["image"]).resize(size[::-1], Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + rng.normal(0, 3, (*size, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        image.save(folder / "images/train" / f"{number}{ending}")
        mask = Image.fromarray(scene["mask"].astype(np.uint8)).resize(size[::-1], 0)
        mask.save(folder / "masks/train" / f"{number}.png")


def rate(config: str, stage: str, size, ending: str, labelled: bool) -> float:
    """Images a second of CPU time."""
    options = read_config(f"configs/{config}", []).stages[stage]
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), size, ending)
        if labelled:
            source = open_source("folder", "train", path=name, num_classes=9)
        else:
            source = open_source("unlabelled", "", path=f"{name}/images/train")
        change, parts = reading_of(options, LABEL_TARGET if labelled else None)
        rng, seconds = np.random.default_rng(0), 0.0
        for number in range(-FILES, READS):  # the first ones warm up
            begun = time.process_time()
            change(*parts(source[number % FILES]), rng)
            seconds += (time.process_time() - begun) * (number >= 0)
    return READS / seconds


def main():
    """Prints a row for every recipe."""
    for config, stage, size, ending, labelled in RECIPES:
        images = rate(config, stage, size, ending, labelled)
        print(f"{config:<20}{stage:<10}{size[0]} x {size[1]} {ending}: {images:6.1f} images/s")


if __name__ == "__main__":
    main()
