"""The pictures of the documentation.

python .pictures/make.py

draws front.png: street scenes that the packaged network never saw, and what it makes of them. The
others are pictures that runs leave in their workdirs, with fewer colours so that they stay small:

scenes.png, after the quick start of the README:
    python -m diffseg_jax.main --config=configs/ddep_scenes.py --workdir=runs/scenes
    python .pictures/make.py --sheet=runs/scenes/pictures/finetune_result.png --output=scenes.png

ddp_scenes.png:
    python -m diffseg_jax.main --config=configs/ddp_scenes.py --workdir=runs/ddp_scenes
    python .pictures/make.py --sheet=runs/ddp_scenes/pictures/align_result.png \
        --output=ddp_scenes.png

ddpm_camvid.png, samples of the diffusion model that ddpm_seg_camvid.png starts from:
    python -m diffseg_jax.main --config=configs/ddpm_camvid.py --workdir=runs/ddpm_camvid \
        --config.unlabelled.path=camvid
    python -m diffseg_jax.sample --checkpoint=runs/ddpm_camvid/checkpoints/pretrain \
        --output=streets --images=8 --batch_size=8 --steps=250 --ema=off
    python .pictures/make.py --sheet=streets/grid.png --output=ddpm_camvid.png

ddpm_seg_camvid.png:
    python -m diffseg_jax.main --config=configs/ddpm_seg_camvid.py --workdir=runs/a0 \
        --config.data.path=camvid --config.unlabelled.path=camvid --config.run="('fit',)" \
        --config.stages.fit.start=runs/ddpm_camvid/checkpoints/pretrain
    python .pictures/make.py --sheet=runs/a0/pictures/fit_result.png --half \
        --output=ddpm_seg_camvid.png
"""

import argparse
import io
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import diffseg_jax
from diffseg_jax.cli import user_errors
from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.data.transforms import resize_image, resize_mask
from diffseg_jax.errors import UserError
from diffseg_jax.figures import sheets
from diffseg_jax.storage.paths import write_atomically

HERE = Path(__file__).parent
SEED, SCENES = 2026, (5, 34, 8)  # no run draws scenes of this seed
SIZE = 192, 256  # height and width of what is drawn
LIMIT = 400_000  # bytes


def front(checkpoint: str) -> np.ndarray:
    """A row per scene: image, truth, labels after every step, prediction, uncertainty, error."""
    segmenter = diffseg_jax.load(checkpoint)
    if segmenter.meta["config"]["data"]["options"]["seed"] == SEED:
        raise UserError(f"{checkpoint} was trained on scenes of the seed {SEED}. Change SEED.")
    scenes = [draw_scene(SEED, index, *SIZE) for index in SCENES]
    images, truths = (np.stack([scene[key] for scene in scenes]) for key in ("image", "mask"))
    prediction = segmenter.predict(images)
    steps = trace(segmenter, images) if segmenter.task.trace else None
    print(f"{np.mean(prediction.labels == truths):.1%} of the pixels are right")
    return sheets.prediction_sheet(
        images, truths, prediction.labels, prediction.uncertainty, segmenter.labels, steps
    )


def trace(segmenter, images: np.ndarray) -> list[np.ndarray]:
    """The labels of every picture after every reverse step, i32[T, H, W] each."""
    (size,) = segmenter.protocol.sizes(SIZE)  # the network asks for smaller ones
    shown = np.stack([resize_image(image, size) for image in images])
    valid = np.array([size] * len(images), np.int32)
    steps = np.asarray(jax.jit(segmenter.task.trace)(segmenter.network, shown, valid))
    return [np.stack([resize_mask(mask, SIZE) for mask in picture]) for picture in steps]


def save(picture: np.ndarray, path: Path, half: bool):
    """Writes a PNG, of 256 colours if it takes more than LIMIT; UserError if it does still."""
    image = Image.fromarray(picture)
    image = image.reduce(2) if half else image
    content = as_png(image)
    if len(content) > LIMIT:
        content = as_png(image.quantize(256, dither=Image.Dither.NONE))
    if len(content) > LIMIT:
        size = len(content)
        raise UserError(f"{path} would take {size} bytes, more than {LIMIT}. Draw fewer scenes.")
    write_atomically(path, content)
    print(f"{path}: {image.width} x {image.height}, {len(content) / 1000:.0f} kB")


def as_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="scenes", help="what draws front.png")
    add("--sheet", default="", help="a picture of a run, to be taken in its place")
    add("--half", action="store_true", help="halves the sides of the picture")
    add("--output", default="front.png", help="name of the picture beside this file, or a path")
    options = parser.parse_args()
    with user_errors():
        if options.sheet and not Path(options.sheet).is_file():
            raise UserError(
                f"there is no {options.sheet}. The commands at the top of this file make it."
            )
        if options.sheet:
            picture = np.asarray(Image.open(options.sheet).convert("RGB"))
        else:
            picture = front(options.checkpoint)
        save(picture, HERE / options.output, options.half)


if __name__ == "__main__":
    main()
