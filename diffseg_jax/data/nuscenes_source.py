"""nuScenes for maps seen from above, in the files that BEVFusion prepares.

<path>/nuscenes_infos_train.pkl, nuscenes_infos_val.pkl   samples with calibration and poses
<path>/samples/CAM_*/*.jpg                                photographs
<path>/maps/expansion/*.json                              the map expansion, version 1.3
<path>/lidar_bev/<token>.npy                              features of LiDAR, for fusion only
"""

import dataclasses
from numbers import Real
from pathlib import Path

import numpy as np

from diffseg_jax.data.bev_source import check_map_bound
from diffseg_jax.data.images import read_image
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.npy import read_npy
from diffseg_jax.data.nuscenes_maps import MAP_COLOURS, MAP_LAYERS, MapGround, require_shapely
from diffseg_jax.errors import UserError
from diffseg_jax.weights.array_pickles import unpickle_arrays
from diffseg_jax.weights.pickles import Refused

CAMERAS = (  # which turn to the left one by one; their order changes no map
    "CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT",
    "CAM_FRONT_RIGHT",
)  # fmt: skip
INTRINSICS = ("camera_intrinsics", "cam_intrinsic")  # BEVFusion's name, and that of DDP's own tool
PREPARE = "Prepare the files with BEVFusion's tools/create_data.py nuscenes."


@dataclasses.dataclass(frozen=True)
class Sample:
    """One moment: photographs with their calibration, and where the car is."""

    token: str
    images: tuple[str, ...]
    intrinsics: np.ndarray  # f64[N, 3, 3]
    camera_to_world: np.ndarray  # f64[N, 4, 4], to the axes of the LiDAR
    pose: tuple[tuple[float, ...], ...]  # see `MapGround`
    city: str


@dataclasses.dataclass(frozen=True)
class NuScenesSource:
    """Samples of nuScenes, as `RigSource` has them; with `lidar` also features of the LiDAR.

    "lidar_bev" f32[X, Y, C] are those that another program computed, see the file's docstring.
    """

    path: str
    samples: tuple[Sample, ...]
    output: tuple[float, float, float]
    lidar: bool
    names: tuple[str, ...]
    labels: Labels
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        file = str(Path(self.path) / "maps/expansion" / f"{sample.city}.json")
        ground = MapGround(file, sample.pose, self.output)
        images = [read_image(Path(self.path) / name, as_stored=True) for name in sample.images]
        if len({image.shape for image in images}) > 1:
            listed = ", ".join(sorted({f"{image.shape[1]}x{image.shape[0]}" for image in images}))
            raise UserError(
                f"the photographs of sample {sample.token} have sizes {listed}; they must have one."
            )
        example = {
            "images": np.stack(images),
            "intrinsics": sample.intrinsics.astype(np.float32),
            "camera_to_world": sample.camera_to_world.astype(np.float32),
            "bev": ground.raster(np.eye(4)),
            "ground": ground,
            "name": self.names[index],
        }
        if self.lidar:
            example["lidar_bev"] = _lidar_features(Path(self.path), sample.token)
        return example


def open_nuscenes(split, *, path="", output=(-50.0, 50.0, 0.5), lidar=False):
    """NuScenesSource of the split "train" or "val" in a folder of the layout above.

    output  (lower, upper, size of a cell) of both axes of the map, in metres
    lidar   whether examples hold features from lidar_bev/

    Raises UserError for missing files, samples without calibration, and maps without layers.
    """
    require_shapely()
    check_map_bound(output)
    if split not in ("train", "val"):
        raise UserError(f"nuscenes has no split {split}. Known: train, val.")
    file = Path(path) / f"nuscenes_infos_{split}.pkl"
    infos = _read_infos(file)
    samples = tuple(_sample(info, n, file) for n, info in enumerate(infos))
    for city in {sample.city for sample in samples}:
        expansion = Path(path) / "maps/expansion" / f"{city}.json"
        if not expansion.exists():
            raise UserError(
                f"{file} has samples in {city}, but there is no {expansion}. Extract the map "
                "expansion of nuScenes (version 1.3) into maps/expansion."
            )
    labels = Labels(tuple(MAP_LAYERS), MAP_COLOURS)
    names = tuple(sample.token for sample in samples)
    return NuScenesSource(str(path), samples, tuple(output), bool(lidar), names, labels)


def _read_infos(file):
    """The samples of a file, in the order of time."""
    try:
        with open(file, "rb") as opened:
            read = unpickle_arrays(opened)
    except FileNotFoundError as error:
        raise UserError(f"there is no {file}. {PREPARE}") from error
    except Refused as error:
        raise UserError(
            f"{file} is no list of samples: it asks for {error}, which is not run. {PREPARE}"
        ) from error
    except Exception as error:  # whatever wrong bytes lead to
        raise UserError(f"{file} is damaged: {error}. {PREPARE}") from error
    infos = read.get("infos") if isinstance(read, dict) else None
    is_list = isinstance(infos, list) and infos
    if not is_list or not all(isinstance(info, dict) for info in infos):
        raise UserError(f"{file} holds no list of samples under infos. {PREPARE}")
    times = [info.get("timestamp", 0) for info in infos]
    if wrong := [time for time in times if not isinstance(time, Real)]:
        raise UserError(f"{file} has the timestamp {wrong[0]!r}, which is no number. {PREPARE}")
    return [infos[n] for n in sorted(range(len(infos)), key=times.__getitem__)]


def _sample(info, number, file):
    """What an entry of the list says, as a `Sample`."""
    what = f"sample {info.get('token', number)} of {file}"
    cams = _entry(info, "cams", what)
    missing = [camera for camera in CAMERAS if camera not in cams]
    if missing:
        raise UserError(f"{what} has no camera {missing[0]}. {PREPARE}")
    seen = [cams[camera] for camera in CAMERAS]
    matrix = lambda cam, key, *shape: _matrix(cam, key, f"a camera of {what}", shape)
    turns = [matrix(cam, "sensor2lidar_rotation", 3, 3) for cam in seen]
    places = [matrix(cam, "sensor2lidar_translation", 3) for cam in seen]
    lidar, ego = (
        _rigid(_rotation(_matrix(info, f"{name}_rotation", what, (4,))),
               _matrix(info, f"{name}_translation", what, (3,)))
        for name in ("lidar2ego", "ego2global")
    )  # fmt: skip
    pose = (ego @ lidar)[:2]
    return Sample(
        token=str(_entry(info, "token", what)),
        images=tuple(_below_samples(_entry(cam, "data_path", what)) for cam in seen),
        intrinsics=np.stack([matrix(cam, _intrinsics_of(cam), 3, 3) for cam in seen]),
        camera_to_world=np.stack([_rigid(*each) for each in zip(turns, places)]),
        pose=tuple(map(tuple, pose.tolist())),
        city=str(_entry(info, "location", what)),
    )


def _intrinsics_of(cam):
    """The key of a camera's intrinsics; the first of INTRINSICS where there is none."""
    return next((key for key in INTRINSICS if isinstance(cam, dict) and key in cam), INTRINSICS[0])


def _entry(info, key, what):
    if not isinstance(info, dict) or key not in info:
        raise UserError(f"{what} has no entry {key}, which the map or a camera needs. {PREPARE}")
    return info[key]


def _matrix(info, key, what, shape):
    entry = _entry(info, key, what)
    try:
        array = np.asarray(entry, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what}: {key} is no array of numbers {shape}. {PREPARE}") from None
    if array.shape != shape:
        raise UserError(f"{what}: {key} has shape {array.shape}, not {shape}. {PREPARE}")
    if not np.isfinite(array).all() or shape == (4,) and not array.any():
        raise UserError(f"{what}: {key} is {array.tolist()}, which places nothing. {PREPARE}")
    return array


def _rigid(rotation, translation):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def _rotation(quaternion):
    """f64[3, 3] of a quaternion (w, x, y, z), which need not be of length 1."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def _below_samples(path):
    """The part of a path from samples/ on: files name the folder in which they were prepared."""
    parts = Path(str(path)).parts
    start = parts.index("samples") if "samples" in parts else -1
    return str(Path(*parts[start:]))


def _lidar_features(path, token):
    """f32[X, Y, C] of a file f[C, X, Y]; UserError for another number of axes."""
    file = path / "lidar_bev" / f"{token}.npy"
    if not file.exists():
        raise UserError(
            f"there is no {file}, but fusion reads features of the LiDAR that another program "
            "computed. Save them as f32[C, X, Y], or train on cameras alone."
        )
    array = np.asarray(read_npy(file, "features"), np.float32)
    if array.ndim != 3:
        raise UserError(f"{file} has shape {array.shape}, but it should be [C, X, Y].")
    return np.moveaxis(array, 0, -1)
