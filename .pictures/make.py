"""The images of the documentation.

python .pictures/make.py

draws front.png: street scenes that the packaged network never saw, and its predictions. The
others are images that runs write into their workdirs, with fewer colours to make them smaller:

scenes.png, after the example of the README:
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

strokes.png, which the benchmark draws:
    python tests/benchmarks/strokes.py --data=camvid --output=runs/strokes

ddpm_seg_camvid.png:
    python -m diffseg_jax.main --config=configs/ddpm_seg_camvid.py --workdir=runs/a0 \
        --config.data.path=camvid --config.unlabelled.path=camvid --config.run="('fit',)" \
        --config.stages.fit.start=runs/ddpm_camvid/checkpoints/pretrain
    python .pictures/make.py --sheet=runs/a0/pictures/fit_result.png --half \
        --output=ddpm_seg_camvid.png

corruptions.png: pictures/corruptions.png of the commands in .docs/corruptions.md.
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
SEED, SCENES = 2026, (5, 34, 8)  # no run trains on scenes of this seed
SIZE = 192, 256  # height and width of the scenes
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
    columns = images, truths, prediction.labels, prediction.uncertainty
    return sheets.prediction_sheet(*columns, segmenter.labels, steps, prediction.calibrated)


def trace(segmenter, images: np.ndarray) -> list[np.ndarray]:
    """The labels of every image after every reverse step, i32[T, H, W] each."""
    (size,) = segmenter.protocol.sizes(SIZE)  # the network takes smaller images
    shown = np.stack([resize_image(image, size) for image in images])
    valid = np.array([size] * len(images), np.int32)
    steps = np.asarray(jax.jit(segmenter.task.trace)(segmenter.network, shown, valid))
    return [np.stack([resize_mask(mask, SIZE) for mask in masks]) for masks in steps]


def save(pixels: np.ndarray, path: Path, half: bool):
    """Writes a PNG, with 256 colours if it exceeds LIMIT; UserError if it is still too large."""
    image = Image.fromarray(pixels)
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
    add("--checkpoint", default="scenes", help="the network whose predictions front.png shows")
    add("--sheet", default="", help="image of a run that replaces front.png")
    add("--half", action="store_true", help="halves the sides of the image")
    add("--output", default="front.png", help="file name beside this program, or a path")
    options = parser.parse_args()
    with user_errors():
        if options.sheet and not Path(options.sheet).is_file():
            raise UserError(
                f"there is no {options.sheet}. The commands at the top of this file make it."
            )
        if options.sheet:
            pixels = np.asarray(Image.open(options.sheet).convert("RGB"))
        else:
            pixels = front(options.checkpoint)
        save(pixels, HERE / options.output, options.half)


if __name__ == "__main__":
    main()
