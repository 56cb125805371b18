"""The input pipeline of training, timed; torch_input.py is a PyTorch DataLoader of the same.

python tests/benchmarks/bench_input.py --data=camvid [--scratch=FOLDER]

Decodes pairs of JPEG and PNG, jitters the scale by 0.5 to 2, crops 256 x 256 so that no class fills
more than 75 %, flips, distorts the colours and makes batches of 8, which end as arrays in [-1, 1]
on the device; seconds are those of an image. `--data` is CamVid as the package reads it; below the
folder --scratch, it is made of drawn scenes of 360 x 480 where nothing is there.
"""

import functools
from pathlib import Path

from timing import jax_program

BATCH, BATCHES, CROP, IMAGES = 8, 10, (256, 256), 64


def draw_set(folder):
    """Scenes as the training files of CamVid."""
    import numpy as np
    from PIL import Image

    from diffseg_jax.data.scenes import draw_scene

    for part in ("images", "masks"):
        (folder / part / "train").mkdir(parents=True)
    for index in range(IMAGES):
        scene = draw_scene(0, index, 360, 480)
        Image.fromarray(scene["image"]).save(folder / f"images/train/{index:03}.jpg", quality=95)
        mask = scene["mask"].astype(np.uint8)
        Image.fromarray(mask).save(folder / f"masks/train/{index:03}.png")


def make_step(args):
    """A call that makes BATCHES batches and scales them on the device."""
    import jax
    import numpy as np

    from diffseg_jax.data.pipeline import training_batches
    from diffseg_jax.data.sources import open_source
    from diffseg_jax.data.transforms import augment
    from diffseg_jax.models.inputs import scale_images

    folder = Path(args.data)
    if args.scratch and folder.is_relative_to(args.scratch) and not folder.exists():
        draw_set(folder)
    source = open_source("camvid", "train", path=args.data)
    change = functools.partial(augment, scale=(0.5, 2.0), crop=CROP, photometric=True)
    stream = iter(training_batches(
        source, np.arange(len(source)), change, seed=0, batch_size=BATCH, start=0, steps=10**6,
        threads=args.workers,
    ))  # fmt: skip
    scale = jax.jit(scale_images)

    def batches():
        for _ in range(BATCHES):
            batch = next(stream)
            out = jax.block_until_ready(scale(batch["image"], batch["valid"]))
        return out

    batches()
    return batches, 1 / (BATCHES * BATCH)


if __name__ == "__main__":
    jax_program(__doc__, ("input",), make_step, data="camvid", scratch="", workers=2)
