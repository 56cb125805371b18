"""Drawn scenes as a source."""

from dataclasses import dataclass

from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError, choose

# First index of a split: pictures are functions of (seed, index), so the splits never share one.
SCENE_SPLITS = {"train": 0, "val": 10_000_000, "test": 20_000_000}


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
        from diffseg_jax.data.scenes import draw_scene

        place = range(len(self))[index]  # also negative; IndexError beyond
        scene = draw_scene(self.seed, self.first + place, self.height, self.width)
        return scene | {"name": self.names[place]}


def open_scenes(split, *, images=0, size=(0, 0), seed=0):
    from diffseg_jax.data.scenes import NAMES, PALETTE

    first = choose(SCENE_SPLITS, split, "split of scenes")
    if not 0 < images <= SCENE_SPLITS["val"]:
        raise UserError(
            f"images is {images}, but scenes draws 1 to {SCENE_SPLITS['val']} of them. Try "
            "images=1000."
        )
    if len(size) != 2 or min(size) < 1:
        raise UserError(
            f"size is {size}, but scenes needs (height, width) in pixels. Try size=(96, 128)."
        )
    names = tuple(f"{split}_{i:06d}" for i in range(images))
    labels = Labels(tuple(NAMES), tuple(tuple(int(part) for part in colour) for colour in PALETTE))
    return SceneSource(int(seed), first, *size, names, labels)
