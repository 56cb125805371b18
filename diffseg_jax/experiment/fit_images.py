"""The labelled images of a fit: at the stage's size, with changed copies, and their masks."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import drop_small_objects
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.augmentation import augmentation
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.inference.views import Protocol


@dataclasses.dataclass(frozen=True)
class LabelledMasks:
    """The images of a fit that have a label, with their changed copies.

    masks    u8[N,H,W] after the rules
    shown    i64[N,2], pairs as of `examples`
    digests  of the N images as they are shown
    empty    a sentence that names images without a label, or ""
    """

    masks: np.ndarray
    shown: np.ndarray
    digests: tuple[bytes, ...]
    empty: str = ""

    def of(self, rows: np.ndarray) -> "LabelledMasks":
        """Some of them."""
        digests = tuple(self.digests[row] for row in rows)
        return LabelledMasks(self.masks[rows], self.shown[rows], digests, self.empty)


def examples(plan: StagePlan, shown) -> Iterator[dict]:
    """Labelled images of the training split at the stage's size: image, mask, valid, name.

    shown  pairs (index, number of the copy); copy 0 is the image itself, others are changed as the
           stage's augment says
    """
    options = plan.options.augment
    alike = {key: options[key] for key in ("limit", "short", "crop")}
    still, change = (augmentation(each, labelled=True) for each in (alike, options))
    for index, copy in shown:
        example = plan.source[int(index)]
        number = plan.numbers.get(int(index), int(index))
        rng = np.random.default_rng([plan.seed, number, int(copy)])
        made = (change if copy else still)(example["image"], example["mask"], rng)
        yield {**made, "name": example["name"]}


def sizes_before_crop(
    source: Sequence, indices: Sequence[int], augment: Mapping
) -> list[tuple[int, int]]:
    """The sizes (height, width), ascending, to which a stage fits images before its crop."""
    fitted = Protocol(limit=tuple(augment["limit"]), short=augment["short"])
    shapes = (source[int(index)]["image"].shape[:2] for index in indices)
    return sorted({tuple(map(int, fitted.sizes(shape)[0])) for shape in shapes})


def largest_sides(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest (height, width) into which all sizes fit."""
    height, width = map(max, zip(*sizes))
    return height, width


def check_sizes(plan: StagePlan):
    """Raises UserError for labelled images that do not fit into the crop of a stage.

    They must also fill it where the network resizes them (`Task.short`), as a network should see no
    padding that evaluation does not show it, and where files hold their maps, which have none.
    """
    options, short, files = plan.options.augment, plan.task.short, plan.task.files
    sizes, crop = sizes_before_crop(plan.source, plan.indices, options), tuple(options.crop)
    largest = largest_sides(sizes)
    fills = sizes == [crop] or not (short or files)
    if fills and all(side <= limit for side, limit in zip(largest, crop)):
        return
    advice = f'Try --config.stages.{plan.name}.augment.crop="{largest}"'
    if fills or len(sizes) == 1:
        raise UserError(
            f"stage {plan.name}: labelled images are up to {largest} (height, width) before the "
            f"crop {crop}, but they must {'fit into' if fills else 'fill'} it. {advice}."
        )
    several = (
        f"stage {plan.name}: labelled images are of {len(sizes)} sizes before the crop, {sizes[0]} "
        f"(height, width) to {sizes[-1]}, but "
    )
    if files:
        raise UserError(
            f"{several}maps in files need images of one. Resize the images to one size, and "
            "compute their maps again."
        )
    raise UserError(
        f"{several}with features.short they must be of one. {advice} "
        "--config.features.short=0, or bring them to one aspect ratio."
    )


def read_masks(plan: StagePlan, small_objects: int, copies: int = 0) -> LabelledMasks:
    """The masks of a stage, of the images that still have a label.

    small_objects  pixels; a class that covers less of an image is ignored there; 0 = off
    copies         changed copies of every image

    Raises UserError when no image has one.
    """
    check_sizes(plan)
    masks, kept, digests, empty = [], [], [], []
    shown = [(index, copy) for index in plan.indices for copy in range(copies + 1)]
    with plan.log.progress(f"{plan.name}: reads masks", len(shown), unit="images") as progress:
        read = zip(shown, examples(plan, shown), strict=True)
        for pair, example in progress.each_of(read):
            mask = drop_small_objects(example["mask"], small_objects)
            if (mask != IGNORE).any():
                masks.append(mask.astype(np.uint8))
                kept.append(pair)
                digests.append(digest_of_image(example))
            elif not pair[1]:
                small = (example["mask"] != IGNORE).any()
                less = f"no class covers {small_objects} pixels"
                rule = less if small else "all pixels are ignored"
                empty.append(f"{example['name']} ({rule})")
    if not kept:
        raise UserError(
            f"stage {plan.name}: no labelled pixel is left in {len(empty)} images, such as "
            f"{empty[0]}. Look at them with --mode=check, or lower --config.ensemble.small_objects."
        )
    empty = f"{plan.name}: no labelled pixel is left in {', '.join(empty)}" if empty else ""
    return LabelledMasks(np.stack(masks), np.asarray(kept), tuple(digests), empty)


def digest_of_image(example: dict) -> bytes:
    """Of the image of an example as of `examples`, and of the part of it that is no padding."""
    shape, valid = (np.asarray(v, np.int64) for v in (example["image"].shape, example["valid"]))
    return hashlib.sha256(b"".join(v.tobytes() for v in (shape, valid, example["image"]))).digest()


def seeds_of_copies(seed: int, group: np.ndarray, size: int) -> np.ndarray:
    """Seeds i32[size] of the noise of some images, pairs as of `examples`: one for each copy.

    That of predictions, `seed` itself, is none of them.
    """
    copies = np.resize(group, (size, 2))[:, 1]
    return ((seed + 1 + copies) % np.iinfo(np.int32).max).astype(np.int32)
