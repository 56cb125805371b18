"""Plain PyTorch input for CamVid, timed: the Dataset and DataLoader a user would otherwise write.

python torch_input.py --data=camvid [--workers=2]

`--data` holds `images/train/*.jpg` and `masks/train/*.png`; seconds are those of an image. The
benchmark runs this and our pipeline in the same minutes, over the same files and with the same
transforms, and reports the quotient of the two. It needs torch, numpy and Pillow, nothing of this
package; each step takes the quickest of them that a user would think of (Pillow resizes and
converts colours, numpy does arithmetic), so that the comparison is fair.

Per image: decode, scale by U[0.5, 2), crop 256 x 256 such that no class fills 75 % of it, flip,
photometric distortion, pad, normalise to [-1, 1].
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import torch_program
from torch.utils.data import DataLoader, Dataset

CROP = 256  # height and width
IGNORED = 255  # label of pixels that belong to no class
MOST = 0.75  # share of a crop that one class may fill
BATCH, BATCHES = 8, 10  # images; batches of one call


def resize(image, mask, scale):
    """Both PIL images, `scale` times as large: bilinear for colours, nearest for labels."""
    size = tuple(round(n * scale) for n in image.size)
    return image.resize(size, Image.BILINEAR), mask.resize(size, Image.NEAREST)


def one_class_dominates(mask):
    """Whether a single class fills at least MOST of the labelled pixels of u8[h, w]."""
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORED]
    return counts.max() >= MOST * counts.sum()


def random_crop(image, mask):
    """u8[H, W, 3], u8[H, W] -> at most CROP x CROP of both; up to 10 further tries for variety."""
    for _ in range(11):
        top = random.randint(0, max(mask.shape[0] - CROP, 0))
        left = random.randint(0, max(mask.shape[1] - CROP, 0))
        window = slice(top, top + CROP), slice(left, left + CROP)
        if not one_class_dominates(mask[window]):
            break
    return image[window], mask[window]


def clipped(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def contrast(image):
    return clipped(image * np.float32(random.uniform(0.5, 1.5)))


def photometric(image):
    """Brightness, contrast, saturation, hue of u8[h, w, 3] RGB, each changed with probability 1/2.

    Contrast comes before or after the colour steps, by a fair coin. Pillow's hue has 256 steps per
    turn, so that the usual 18 of OpenCV's 180 steps are 26 here.
    """
    if coin():
        image = clipped(image + np.float32(random.uniform(-32, 32)))
    contrast_first = coin()
    if contrast_first and coin():
        image = contrast(image)
    change_saturation, change_hue = coin(), coin()
    if change_saturation or change_hue:
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        if change_saturation:
            hsv[..., 1] = clipped(hsv[..., 1] * np.float32(random.uniform(0.5, 1.5)))
        if change_hue:
            hsv[..., 0] += np.uint8(random.randint(-26, 26) % 256)  # wraps around, as hue does
        image = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if not contrast_first and coin():
        image = contrast(image)
    return image


def coin():
    return random.random() < 0.5


def to_tensors(image, mask):
    """-> f32[3, CROP, CROP] in [-1, 1] and i64[CROP, CROP], padded below and right by 0 and 255."""
    height, width = mask.shape
    pixels, labels = torch.zeros(3, CROP, CROP), torch.full((CROP, CROP), IGNORED)
    image = torch.from_numpy(image.copy()).permute(2, 0, 1)
    pixels[:, :height, :width] = image.float().sub_(127.5).div_(127.5)
    labels[:height, :width] = torch.from_numpy(mask.copy())  # copies: a flipped view has no tensor
    return pixels, labels


class CamVid(Dataset):
    """Training images of a CamVid folder with their label maps, changed anew at every access."""

    def __init__(self, folder):
        self.images = sorted(Path(folder, "images", "train").glob("*.jpg"))
        self.masks = [Path(folder, "masks", "train", f"{path.stem}.png") for path in self.images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, mask = Image.open(self.images[index]).convert("RGB"), Image.open(self.masks[index])
        image, mask = map(np.asarray, resize(image, mask, random.uniform(0.5, 2.0)))
        image, mask = random_crop(image, mask)
        if coin():
            image, mask = image[:, ::-1], mask[:, ::-1]
        return to_tensors(photometric(image), mask)


def endless(loader):
    """The batches of epoch after epoch."""
    while True:
        yield from loader


def make_step(args):
    """A call that makes BATCHES batches, whose seconds are given by image; waits for the start."""
    random.seed(0)
    workers = args.workers
    loader = DataLoader(
        CamVid(args.data), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    stream = endless(loader)

    def batches():
        for _ in range(BATCHES):
            next(stream)

    batches()
    return batches, 1 / (BATCHES * BATCH)


if __name__ == "__main__":
    torch_program(__doc__, ("input",), make_step, data="camvid", workers=2)
