"""A small folder of nuScenes as BEVFusion prepares it: photographs, poses and maps."""

import json
import pickle

import numpy as np
from PIL import Image

from bev_case import rig
from diffseg_jax.data.nuscenes_source import CAMERAS

CITY = "singapore-onenorth"
HALF = 6.0  # metres: half the width of a road along x of the city, at y = 100


def quaternion(yaw):
    """(w, x, y, z) of a turn around z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def city_tables():
    """A road along x, a crossing over it, a walkway north of it, a divider in its middle."""
    nodes, polygons, lines = [], [], []

    def node(x, y):
        nodes.append({"token": f"n{len(nodes)}", "x": float(x), "y": float(y)})
        return nodes[-1]["token"]

    def box(x0, y0, x1, y1, holes=()):
        corners = [node(*at) for at in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        holes = [{"node_tokens": [node(*at) for at in hole]} for hole in holes]
        polygons.append({"token": f"p{len(polygons)}", "exterior_node_tokens": corners,
                         "holes": holes})  # fmt: skip
        return polygons[-1]["token"]

    island = ((220, 97), (230, 97), (230, 103), (220, 103))
    road = box(100, 100 - HALF, 300, 100 + HALF, [island])
    crossing, walkway = box(205, 94, 209, 106), box(100, 106, 300, 109)
    lines.append({"token": "l0", "node_tokens": [node(100, 100), node(300, 100)]})
    return {
        "node": nodes, "line": lines, "polygon": polygons,
        "drivable_area": [{"token": "d0", "polygon_tokens": [road]}],
        "ped_crossing": [{"token": "c0", "polygon_token": crossing}],
        "walkway": [{"token": "w0", "polygon_token": walkway}],
        "stop_line": [], "carpark_area": [],
        "road_divider": [{"token": "r0", "line_token": "l0"}], "lane_divider": [],
    }  # fmt: skip


def sample_info(number, yaw=0.0, size=(90, 160)):
    """An entry of the list of samples: a car at (200, 100) of the city that looks along `yaw`."""
    intrinsics, to_world, _, _ = rig(number=6, image=size)
    names = [f"samples/{camera}/{number}_{camera}.jpg" for camera in CAMERAS]
    cams = {
        camera: {
            "data_path": f"./data/nuscenes/{name}", "type": camera,
            "sensor2lidar_rotation": to_world[n, :3, :3],
            "sensor2lidar_translation": to_world[n, :3, 3],
            "sensor2ego_translation": [0.0, 0.0, 1.5], "sensor2ego_rotation": quaternion(0.0),
            "camera_intrinsics": intrinsics[n],
        }
        for n, (camera, name) in enumerate(zip(CAMERAS, names))
    }  # fmt: skip
    return {
        "token": f"sample{number}", "timestamp": 1000 - number, "location": CITY, "cams": cams,
        "lidar2ego_rotation": quaternion(0.0), "lidar2ego_translation": [1.0, 0.0, 1.8],
        "ego2global_rotation": quaternion(yaw), "ego2global_translation": [199.0, 100.0, 0.0],
        "gt_boxes": np.zeros((2, 7)), "gt_names": np.array(["car", "truck"]),
        "valid_flag": np.array([True, False]), "sweeps": [],
    }  # fmt: skip


def make_tree(folder, counts=(3, 2), size=(90, 160), protocol=2):
    """Writes the folder: samples of train and val that look in different directions."""
    rng = np.random.default_rng(0)
    number = 0
    for split, count in zip(("train", "val"), counts):
        infos = [sample_info(number + n, yaw=0.4 * (number + n), size=size) for n in range(count)]
        number += count
        content = {"infos": infos, "metadata": {"version": "v1.0-mini"}}
        folder.mkdir(exist_ok=True)
        (folder / f"nuscenes_infos_{split}.pkl").write_bytes(pickle.dumps(content, protocol))
        for info in infos:
            for cam in info["cams"].values():
                file = folder / cam["data_path"].removeprefix("./data/nuscenes/")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(file)
    (folder / "maps/expansion").mkdir(parents=True)
    (folder / "maps/expansion" / f"{CITY}.json").write_text(json.dumps(city_tables()))
    return folder
