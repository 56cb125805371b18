"""Small BEV networks, cameras around the origin, and recorded cases of the original program."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import numpy as np

from conftest import ROOT, filled
from diffseg_jax.config.files import read_config
from diffseg_jax.data.bev_transforms import affine_maps
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.models.bev_network import BEVNetwork, BEVSettings
from diffseg_jax.models.network import Network
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.weights.ddp_bev import bev_settings_of, load_bev
from diffseg_jax.weights.formats import read_arrays

TINY = BEVSettings(
    num_classes=3, channels=(4, 8, 16, 32), depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=2,
    neck=8, lifted=6, x=(-12.8, 12.8, 1.6), y=(-12.8, 12.8, 1.6), depth=(1.0, 13.0, 1.0),
    stages=((1, 8, 2), (1, 8, 2), (1, 12, 1)), features=8, output=(-12.0, 12.0, 2.0),
    width=8, layers=1, decoder_heads=2, points=2, mlp=16,
)  # fmt: skip
CLASSES = tuple(f"class {number}" for number in range(6))
MATRICES = ("camera_intrinsics", "camera2lidar", "img_aug_matrix", "lidar_aug_matrix")
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bev_network(settings=TINY):
    return Network(lambda rngs: BEVNetwork(settings, rngs=rngs))


@functools.cache
def recorded_case(path):
    """(config and losses of the JSON, arrays, settings, network, values, affine maps)."""
    told, arrays = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
    released = read_arrays(path.with_suffix(".pth"))
    config = told["config"]
    settings = bev_settings_of(released, path.name)
    assert config["out_scope"][0] == config["out_scope"][1]
    settings = dataclasses.replace(
        settings, output=tuple(config["out_scope"][0]), code_scale=config["bit_scale"]
    )
    values = load_bev(released, settings, path.name)
    cameras = affine_maps(*(arrays[name] for name in MATRICES))
    return told, arrays, settings, bev_network(settings), values, cameras


def bev_segmenter(preset, **changes):
    """A Segmenter of random parameters, for maps of six classes."""
    config = read_config(str(ROOT / f"configs/ddp_nuscenes.py:{preset}"))
    with config.unlocked():
        config.model.update(changes)
    stage = config.stages.train
    task = SYSTEMS["ddp"].make_task(config, "train", tuple(stage.augment.crop), len(CLASSES))
    network = filled(jax.eval_shape(task.init, jax.random.key(0)))
    meta = {
        "version": "0.1.0", "config": as_json(config.to_dict()), "task": as_json(task.meta),
        "stage": "train", "step": 7, "start": "random", "ema": [], "classes": list(CLASSES),
    }  # fmt: skip
    return Segmenter(Path("runs/a/checkpoints/x"), network, meta)


def rig(number=3, image=(32, 48)):
    """Matrices of cameras at 0.4 m that look outwards at even angles: those of `affine_maps`."""
    focal, (height, width) = 0.8 * image[1], image
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    to_world = []
    for turn in 2 * math.pi * np.arange(number) / number:
        right, ahead = (math.sin(turn), -math.cos(turn), 0), (math.cos(turn), math.sin(turn), 0)
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([right, (0, 0, -1), ahead], -1)
        matrix[:3, 3] = (0.1 * ahead[0], 0.1 * ahead[1], 0.4)
        to_world.append(matrix)
    image = np.stack([np.eye(4)] * number)
    return np.stack([intrinsics] * number), np.stack(to_world), image, np.eye(4)


def street(name, cameras, shape):
    """A rig whose photographs have one colour each, as resizing rounds others differently."""
    colours = np.random.default_rng(cameras).integers(0, 256, (cameras, 1, 1, 3), np.uint8)
    intrinsics, to_world, *_ = rig(cameras, shape)
    images = np.broadcast_to(colours, (cameras, *shape, 3))
    return dict(name=name, images=images, intrinsics=intrinsics, camera_to_world=to_world)


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    return np.max(np.abs(actual.astype(np.float64) - expected)) / np.max(np.abs(expected))
