"""Drawn street scenes as a data set."""

from dataclasses import dataclass

from diffseg_jax.data.labels import Labels
from diffseg_jax.data.scenes import NAMES, PALETTE, draw_scene
from diffseg_jax.errors import UserError, choose

FIRST_SCENE = {"train": 0, "val": 10_000_000, "test": 20_000_000}  # so that no split shares one


@dataclass(frozen=True)
class SceneSource:
    """Drawn street scenes, random access; item i is a pure function of (seed, first + i)."""

    seed: int
    first: int
    height: int
    width: int
    names: tuple[str, ...]
    labels: Labels
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        index = range(len(self))[index]  # allows negative ones; IndexError beyond the end
        scene = draw_scene(self.seed, self.first + index, self.height, self.width)
        return scene | {"name": self.names[index]}


def open_scenes(split, *, images=0, size=(0, 0), seed=0):
    """SceneSource of `images` scenes of `size` (height, width); UserError without either."""
    first = choose(FIRST_SCENE, split, "split of scenes")
    if not 0 < images <= FIRST_SCENE["val"]:
        raise UserError(
            f"images is {images}, but scenes draws 1 to {FIRST_SCENE['val']} of them. Try "
            "images=1000."
        )
    if len(size) != 2 or min(size) < 1:
        raise UserError(
            f"size is {size}, but scenes needs (height, width) in pixels. Try size=(96, 128)."
        )
    names = tuple(f"{split}_{i:06d}" for i in range(images))
    labels = Labels(tuple(NAMES), tuple(tuple(map(int, colour)) for colour in PALETTE))
    return SceneSource(int(seed), first, *size, names, labels)
