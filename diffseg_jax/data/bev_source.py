"""Data for maps seen from above: drawn streets with several cameras."""

import dataclasses

import numpy as np

from diffseg_jax.data.labels import Labels
from diffseg_jax.data.scene_rig import COLOURS_ABOVE, LAYERS_ABOVE, draw_rig
from diffseg_jax.data.scene_source import FIRST_SCENE
from diffseg_jax.errors import UserError, choose


@dataclasses.dataclass(frozen=True)
class RigSource:
    """Drawn streets around a car, random access; item i is a pure function of (seed, first + i).

    source[i] is {"images": u8[N,H,W,3], "intrinsics": f32[N,3,3], "camera_to_world": f32[N,4,4],
    "bev": u8[K,n,n], "ground", "name"}; ground.raster(world) is "bev" after a change f[4,4] of the
    car's axes.
    """

    seed: int
    first: int
    size: tuple[int, int]
    cameras: int
    output: tuple[float, float, float]
    names: tuple[str, ...]
    labels: Labels
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        index = range(len(self))[index]  # allows negative ones; IndexError beyond the end
        example = draw_rig(self.seed, self.first + index, self.cameras, *self.size, self.output)
        return example | {"bev": example["ground"].raster(np.eye(4)), "name": self.names[index]}


def open_bev_scenes(split, *, images=0, size=(64, 96), seed=0, output=(-24.0, 24.0, 1.0)):
    """RigSource of `images` streets with six cameras of `size` (height, width).

    output  (lower, upper, size of a cell) of both axes of the map, in metres

    Raises UserError for no images, and sizes and bounds that make no map.
    """
    first = choose(FIRST_SCENE, split, "split of bev_scenes")
    if not 0 < images <= FIRST_SCENE["val"]:
        raise UserError(
            f"images is {images}, but bev_scenes draws 1 to {FIRST_SCENE['val']} of them. Try "
            "images=300."
        )
    if len(size) != 2 or min(size) < 8:
        raise UserError(
            f"size is {tuple(size)}, but bev_scenes needs (height, width) of at least 8 pixels. "
            "Try size=(64, 96)."
        )
    check_map_bound(output)
    names = tuple(f"{split}_{i:06d}" for i in range(images))
    labels = Labels(LAYERS_ABOVE, COLOURS_ABOVE)
    return RigSource(int(seed), first, tuple(size), 6, tuple(output), names, labels)


def check_map_bound(output):
    """Raises UserError unless (lower, upper, size) is the bound of a map."""
    lower, upper, size = output
    cells = (upper - lower) / size if size > 0 else 0
    if not 2 <= cells <= 1000 or abs(cells - round(cells)) > 1e-3:
        raise UserError(
            f"output is {tuple(output)}, but a map has 2 to 1000 whole cells along each axis: give "
            "(lower end, upper end, size of a cell) in metres, such as (-50.0, 50.0, 0.5)."
        )
