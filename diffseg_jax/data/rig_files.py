"""Photographs of a car's cameras with their calibration, as files: what a prediction reads.

NAME.json beside its photographs:

    {"cameras": [{"image": "front.jpg",
                  "intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
                  "camera_to_world": [[...4 numbers], ... 4 rows]}, ...]}

Pixels (u, v) are counted from 0 at the centre of the first one. Cameras look along their third
axis, to the right along the first; the world has x ahead of the car, y left, z up, in metres.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.data.bev_transforms import REQUIRED, cameras_of
from diffseg_jax.data.images import read_image
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import open_path

SHAPES = {"intrinsics": (3, 3), "camera_to_world": (4, 4)}
RIG_EXAMPLE = 'Write {"cameras": [{"image": ..., "intrinsics": ..., "camera_to_world": ...}, ...]}.'


def read_rig(file) -> dict:
    """{"images" u8[N,H,W,3], "intrinsics", "camera_to_world", "name"} of a NAME.json.

    Raises UserError for files that are no such list, cameras without usable calibration, and
    photographs that are missing or of different sizes. Photographs are taken as they are stored,
    whatever their EXIF orientation says, since the intrinsics are of the stored pixels.
    """
    file = open_path(file)
    try:
        cameras = _cameras_in(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as cameras: {error}. {RIG_EXAMPLE}") from error
    if not cameras:
        raise UserError(f"{file} holds no list of cameras. {RIG_EXAMPLE}")
    found = {key: [] for key in ("images", *REQUIRED)}
    for number, camera in enumerate(cameras):
        what = f"camera {number} of {file}"
        if not isinstance(camera, dict) or "image" not in camera:
            raise UserError(f"{what} has no image. {RIG_EXAMPLE}")
        found["images"].append(read_image(file.parent / str(camera["image"]), as_stored=True))
        for key in REQUIRED:
            found[key].append(_calibration(camera, key, what))
    sizes = {image.shape for image in found["images"]}
    if len(sizes) > 1:
        listed = ", ".join(f"{w}x{h}" for h, w, _ in sorted(sizes))
        raise UserError(f"the photographs of {file} have sizes {listed}; they must have one.")
    rig = {key: np.stack(values) for key, values in found.items()} | {"name": file.stem}
    cameras_of(rig, np.stack([np.eye(4)] * len(cameras)), np.eye(4))  # raises for singular matrices
    return rig


def count_cameras(file) -> int | None:
    """The number of cameras that a JSON file lists, whose photographs are not read.

    None: it holds no such list; 0: reading it says what is wrong.
    """
    try:
        cameras = _cameras_in(open_path(file))
    except (OSError, ValueError, RecursionError):
        return 0
    return None if cameras is None else len(cameras)


def photographs_of(file) -> list[Path]:
    """The paths of the photographs that a JSON file lists; [] if it cannot be read."""
    file = open_path(file)
    try:
        cameras = _cameras_in(file) or []
    except (OSError, ValueError, RecursionError):
        return []
    listed = [each for each in cameras if isinstance(each, dict) and "image" in each]
    return [file.parent / str(camera["image"]) for camera in listed]


def _cameras_in(file):
    """The list under "cameras" in a JSON file, or None."""
    content = json.loads(file.read_text())
    cameras = content.get("cameras") if isinstance(content, dict) else None
    return cameras if isinstance(cameras, list) else None


def _calibration(camera, key, what):
    if key not in camera:
        raise UserError(
            f"{what} comes without {key}, but a map seen from above needs the calibration of every "
            f"camera. {RIG_EXAMPLE}"
        )
    try:
        array = np.asarray(camera[key], np.float32)
    except (TypeError, ValueError):
        array = np.zeros(0, np.float32)
    if array.shape != SHAPES[key]:
        raise UserError(f"{what}: {key} has shape {array.shape}, not {SHAPES[key]}. {RIG_EXAMPLE}")
    return array


def write_rig(example: dict, folder) -> Path:
    """Writes an example of a source as NAME.json and photographs in PNG; the path of the former."""
    folder, name = Path(folder), str(example["name"])
    folder.mkdir(parents=True, exist_ok=True)
    cameras = []
    for n, image in enumerate(example["images"]):
        photograph = f"{name}_{n}.png"
        Image.fromarray(image).save(folder / photograph)
        matrices = {key: np.asarray(example[key][n]).tolist() for key in REQUIRED}
        cameras.append({"image": photograph, **matrices})
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"cameras": cameras}, indent=1))
    return file
