"""Depth sets in the layouts of their publishers, made small, for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def depth_map(seed, size=(24, 40), low=2.0, high=50.0):
    """f32[H,W] in metres, a ramp with noise, a tenth of which is not measured."""
    rng = np.random.default_rng(seed)
    ramp = np.geomspace(high, low, size[0])[:, None] * np.ones(size[1])
    depth = ramp * _blocks(rng.uniform(0.95, 1.05, size), size)
    depth[_blocks(rng.random(size), size) < 0.1] = 0
    return depth.astype(np.float32)


def _blocks(values, size):
    """The first values, each repeated over 4 x 4 pixels, which is quick to compress."""
    return np.kron(values[: -(-size[0] // 4), : -(-size[1] // 4)], np.ones((4, 4)))[
        : size[0], : size[1]
    ]


def picture(seed, size=(24, 40)):
    """uint8[H,W,3] of coloured blocks."""
    rng = np.random.default_rng(seed)
    planes = [_blocks(rng.integers(0, 256, size), size) for _ in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def save(path, array):
    """As an image: uint8 RGB, or numbers as a PNG of 16 bits; .npy as it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif array.ndim == 2:
        Image.fromarray(np.rint(array).astype(np.uint16)).save(path, compress_level=1)
    else:
        Image.fromarray(array).save(path, compress_level=1)


def make_depth_folder(
    root, count=3, size=(24, 40), scale=0.001, splits=("train", "val"), ending="png"
):
    """images/<split>/, depth/<split>/ and depth.json; depth in `scale` metres per unit."""
    for number, split in enumerate(splits):
        for index in range(count):
            seed = 100 * number + index
            name = Path(split, f"photo{index}")
            save(root / "images" / name.with_suffix(".png"), picture(seed, size))
            stored = depth_map(seed, size) / scale
            save(root / "depth" / name.with_suffix(f".{ending}"), stored)
    (root / "depth.json").write_text(json.dumps({"scale": scale}))
    return root


def make_kitti(root, train=3, val=2, size=(375, 1242)):
    """input/<date>/<drive>/..., gt_depth/<drive>/... and lists, of which one line has no depth."""
    lists = {"kitti_eigen_train.txt": train, "kitti_eigen_test.txt": val}
    for number, (file, count) in enumerate(lists.items()):
        drive = f"2011_09_26_drive_{number + 1:04d}_sync"
        lines = [f"2011_09_26/{drive}/image_02/data/{9:010d}.png None 721.5377"]
        for index in reversed(range(count)):
            image = f"2011_09_26/{drive}/image_02/data/{index:010d}.png"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{index:010d}.png"
            seed = 100 * number + index
            save(root / "input" / image, picture(seed, size))
            save(root / "gt_depth" / depth, 256 * depth_map(seed, size))
            lines.append(f"{image} {depth} 721.5377")
        (root / file).write_text("\n".join(lines) + "\n")
    return root


def make_nyu(root, train=3, val=2, size=(480, 640)):
    """<scene>/rgb_*.jpg, <scene>/sync_depth_*.png and lists whose paths begin with a slash."""
    for number, (file, count) in enumerate({"nyu_train.txt": train, "nyu_test.txt": val}.items()):
        lines = []
        for index in range(count):
            seed, scene = 100 * number + index, f"kitchen_{number:04d}"
            save(root / scene / f"rgb_{index:05d}.jpg", picture(seed, size))
            depth = 1000 * depth_map(seed, size, 0.7, 9.0)
            save(root / scene / f"sync_depth_{index:05d}.png", depth)
            names = f"rgb_{index:05d}.jpg", f"sync_depth_{index:05d}.png"
            lines.append(" ".join([*(f"/{scene}/{name}" for name in names), "518.8579"]))
        (root / file).write_text("\n".join(lines) + "\n")
    return root
