"""Maps of nuScenes as layers of cells around a car, drawn from the polygons of its map expansion.

A cell has a class where its centre lies inside one of the polygons, or nearer to a divider than one
cell. The original program fills polygons of rounded corners with OpenCV, which differs by up to a
cell along outlines.
"""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np

from diffseg_jax.data.scene_rig import centres_before
from diffseg_jax.errors import UserError

MAP_LAYERS = {  # class -> the tables of a map that it joins
    "drivable_area": ("drivable_area",),
    "ped_crossing": ("ped_crossing",),
    "walkway": ("walkway",),
    "stop_line": ("stop_line",),
    "carpark_area": ("carpark_area",),
    "divider": ("road_divider", "lane_divider"),
}
MAP_COLOURS = (
    (166, 206, 227), (251, 154, 153), (227, 26, 28), (253, 191, 111), (255, 127, 0), (106, 61, 154),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MapGround:
    """The map around a car: `raster` gives its layers after a change of the car's axes.

    file    JSON of the map expansion of a city
    pose    rows of f64[2, 4], from (x, y, z, 1) of the car's axes to the city's x and y
    output  (lower, upper, size of a cell) of both axes, in metres
    """

    file: str
    pose: tuple[tuple[float, ...], ...]
    output: tuple[float, float, float]

    def raster(self, world: np.ndarray) -> np.ndarray:
        """u8[6, n, n], layers of MAP_LAYERS at the centres of cells, axes x and y.

        world  f[4, 4], the change of the car's axes that the map shows
        """
        x, y = centres_before(world, self.output)
        pose = np.array(self.pose)
        x, y = (row[0] * x + row[1] * y + row[3] for row in pose)
        layers = read_city(self.file)
        return np.stack([_inside(layers[name], x, y, self.output[2]) for name in MAP_LAYERS])


def _inside(layer, x, y, size):
    """u8[n, n]: whether points lie in a polygon of a layer, or near one of its lines."""
    import shapely

    tree, shapes, lines = layer
    found = np.zeros(x.size, bool)
    points = shapely.points(x.ravel(), y.ravel())
    box = shapely.box(x.min() - size, y.min() - size, x.max() + size, y.max() + size)
    for n in tree.query(box):
        if lines:
            found |= shapely.dwithin(shapes[n], points, size)
        else:
            shapely.prepare(shapes[n])
            found |= shapely.contains(shapes[n], points)
    return found.reshape(x.shape).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def read_city(file: str) -> dict:
    """Class -> (search tree, shapes, whether they are lines) of a map expansion.

    Raises UserError without the library shapely, and for a file that lacks a table.
    """
    require_shapely()
    try:
        tables = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as a map of nuScenes: {error}. Extract the map expansion of "
            "nuScenes (version 1.3) into maps/expansion."
        ) from error
    needed = ("node", "line", "polygon", *(t for names in MAP_LAYERS.values() for t in names))
    missing = [name for name in needed if name not in tables]
    if missing:
        raise UserError(
            f"{file} has no map layer {missing[0]}, but maps seen from above are learned from "
            f"{', '.join(MAP_LAYERS)}. Give the map expansion of nuScenes, version 1.3."
        )
    try:
        return _layers_of(tables)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is no whole map of nuScenes: an entry is missing or of another kind "
            f"({error!r}). Extract the map expansion again, version 1.3."
        ) from error


def _layers_of(tables):
    """Class -> (search tree, shapes, whether they are lines) of the tables of a city."""
    import shapely

    nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
    of = lambda tokens: [nodes[token] for token in tokens]
    lines = {line["token"]: of(line["node_tokens"]) for line in tables["line"]}
    polygons = {}
    for row in tables["polygon"]:
        holes = [of(hole["node_tokens"]) for hole in row["holes"] if len(hole["node_tokens"]) > 2]
        polygons[row["token"]] = (of(row["exterior_node_tokens"]), holes)
    layers = {}
    for name, sources in MAP_LAYERS.items():
        rows = [row for source in sources for row in tables[source]]
        is_line = name == "divider"
        make = _line_of(lines) if is_line else _polygons_of(polygons)
        shapes = [shape for row in rows for shape in make(row)]
        layers[name] = shapely.STRtree(shapes), shapes, is_line
    return layers


def _polygons_of(polygons):
    import shapely

    def make(row):
        tokens = row["polygon_tokens"] if "polygon_tokens" in row else [row["polygon_token"]]
        found = [polygons[token] for token in tokens if len(polygons[token][0]) > 2]
        return [shapely.make_valid(shapely.Polygon(*each)) for each in found]

    return make


def _line_of(lines):
    import shapely

    def make(row):
        points = lines[row["line_token"]]
        return [shapely.LineString(points)] if len(points) > 1 else []

    return make


def require_shapely():
    """Raises UserError where the library is missing."""
    try:
        import shapely  # noqa: F401
    except ImportError as error:
        raise UserError(
            'maps of nuScenes need the library shapely. Type: pip install "diffseg_jax[nuscenes]"'
        ) from error
