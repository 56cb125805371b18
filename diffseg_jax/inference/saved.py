"""The files that are written for one image of a prediction, and the options that choose them."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.figures import label_images, layout, sheets
from diffseg_jax.inference import contours
from diffseg_jax.inference.georeference import Georeference
from diffseg_jax.inference.views import Maps
from diffseg_jax.metrics.review import pixels_to_review
from diffseg_jax.metrics.uncertainty import SIGNALS
from diffseg_jax.storage.paths import open_path, read_bytes, write_atomically

FILES = ("color.png", "overlay.png", "uncertainty.png", "labels.png")  # the last is written last
ON_MAP = ("uncertainty.tif", "labels.tif")  # of georeferenced images, besides
EXTRA = ("probs", "depth", "uncertainty", *SIGNALS)
ENDINGS = {"png16": "16.png", "npy": ".npy", "npz": ".npz"}  # of an extra map, by its format
CONTOUR_ENDINGS = {"geojson": "contours.geojson", "coco": "contours.json"}
COCO = "coco.json"  # the contours of all images
OVERLAYS = {  # how classes are painted over the image, and the text about it
    "fill": (label_images.overlay, "the colours over the image"),
    "contours": (label_images.outlined, "lines along the borders of the classes, over the image"),
}
REVIEW, REJECT = 0.2, 0.05  # values of these options, for advice
TOP = 65535  # that a 16-bit PNG holds for 1
UNUSED_COLOUR = (255, 0, 255)  # of ids that are no class; not grey, or the palette could be ids


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """What is written for each image; `Prediction.save` describes it. UserError for wrong options.

    extra     names of EXTRA;  format  of their files, one of ENDINGS
    contours  None or one of CONTOURS
    review    None, or the share of the expected errors outside the pixels to review
    reject    None, or the chance of an error above which labels become 255
    overlay   one of OVERLAYS
    """

    extra: Sequence[str] = ()
    format: str = "png16"
    contours: str | None = None
    review: float | None = None
    reject: float | None = None
    overlay: str = "fill"

    def __post_init__(self):
        extra = (self.extra,) if isinstance(self.extra, str) else tuple(self.extra)
        for name in extra:
            require_known(name, EXTRA, "map to save")
        require_known(self.format, ENDINGS, "format of saved maps")
        if self.format != SaveOptions.format and not extra:
            raise UserError(
                f"format is {self.format}, but no maps are to be saved in it. Name them: "
                f'--save=uncertainty --format={self.format}, or extra="uncertainty" in Python.'
            )
        require_known(self.overlay, OVERLAYS, "overlay")
        if self.contours is not None:
            require_known(self.contours, contours.CONTOURS, "format of contours")
        if self.review is not None:
            require_share("review", self.review, REVIEW)
        if self.reject is not None:
            require_share("reject", self.reject, REJECT)
        object.__setattr__(self, "extra", tuple(name for name in EXTRA if name in extra))

    def endings(self, georeferenced: bool = False) -> list[str]:
        """The ends of the names of the files of an image, after its name and "_"."""
        endings = [self.extra_ending(name) for name in self.extra]
        endings += [CONTOUR_ENDINGS[self.contours]] if self.contours else []
        endings += ["review.png"] if self.review is not None else []
        return [*endings, *(ON_MAP if georeferenced else ()), *FILES]

    def changed(self) -> dict:
        """The options that differ from their defaults, as JSON values; `extra` as --save."""
        default = vars(SaveOptions())
        values = {name: value for name, value in vars(self).items() if value != default[name]}
        return {"save": list(values.pop("extra"))} | values if self.extra else values

    def described(self, georeferenced: bool = False) -> dict[str, str]:
        """What each file of an image holds, by the end of its name."""
        labels = "class ids 0 to K-1"
        if self.reject is not None:
            labels += f", 255 where the chance of an error is above {self.reject:g}"
        texts = {
            "labels.png": f"{labels}; the palette has the colours of the classes",
            "color.png": "the classes in their colours",
            "overlay.png": OVERLAYS[self.overlay][1],
            "uncertainty.png": "the chance that a label is wrong, on the scale of legend.png",
        }
        for name in self.extra:
            ending = self.extra_ending(name)
            texts[ending] = f"{name}, float32"
            if name == "probs":
                texts[ending] = "the probability of each class, float16[height, width, K]"
            elif ending.endswith("png"):
                texts[ending] = f"{name}, 16 bits: {TOP} is 1"
        if self.contours:
            texts[CONTOUR_ENDINGS[self.contours]] = f"connected regions; {contours.UNITS}"
        if georeferenced:
            texts["labels.tif"] = "as labels.png, with the georeference of the image"
            texts["uncertainty.tif"] = "the chance that a label is wrong, float32, so too"
        if self.review is not None:
            share = f"{100 * (1 - self.review):g} %"
            texts["review.png"] = f"255: the fewest pixels that hold {share} of the expected errors"
        return texts

    def extra_ending(self, name: str) -> str:
        """The end of the name of the file of an extra map."""
        png_of_probs = name == "probs" and self.format == "png16"  # of K channels
        return name + ENDINGS["npz" if png_of_probs else self.format]


def require_share(name: str, value, example: float) -> float:
    """The value of an option; UserError unless it lies between 0 and 1. example: for advice."""
    if isinstance(value, Real) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    near = value / 100 if isinstance(value, Real) and 1 < value < 100 else example
    raise UserError(
        f"{name} is {value}, but must lie between 0 and 1, both excluded. Try {near:g}."
    )


def path_of(folder, name: str, ending: str) -> str:
    """Where a file of an image is saved; ending: one of `SaveOptions.endings`."""
    return f"{folder}/{name}_{ending}"


def write_image(
    folder, name: str, image: np.ndarray, maps: Maps, labels: Labels, options: SaveOptions,
    place: Georeference | None = None, contents: Callable | None = None,
):  # fmt: skip
    """Writes the files of a prediction for one image, each complete or not at all.

    image     u8[H,W,3];  maps  of this image, without B; labels of 255 are shown as ignored
    place     of the image on a map
    contents  as of `OutputKind`; None: those of label maps

    The label map is written last, so if it exists, the others do too.
    """
    contents = contents or label_contents
    for ending, content in contents(name, image, maps, labels, options, place):
        write_atomically(open_path(path_of(folder, name, ending)), content)


def label_contents(name, image, maps, labels, options, place):
    """The end of the name of each file, and its bytes, in the order of `endings`."""
    known = {"probs": maps.probs, "uncertainty": maps.uncertainty, **maps.signals}
    for extra, values in named_maps_of(known, options).items():
        yield options.extra_ending(extra), write_map_file(extra, values, options)
    if options.contours:
        regions = list(contours.regions_of(maps.labels, maps.uncertainty))
        describe = contours.CONTOURS[options.contours]
        content = describe(name, regions, maps.labels.shape, labels.names, place)
        yield CONTOUR_ENDINGS[options.contours], json.dumps(content).encode()
    if options.review is not None:
        chosen = pixels_to_review(maps.uncertainty, options.review)
        yield "review.png", layout.png_of(Image.fromarray(255 * chosen.astype(np.uint8)))
    if place is not None:
        uncertainty = Image.fromarray(maps.uncertainty.astype(np.float32))
        yield "uncertainty.tif", place.write_tiff(uncertainty)
        yield "labels.tif", place.write_tiff(label_image(maps.labels, labels.palette))
    paint, _ = OVERLAYS[options.overlay]
    painted = paint(image, maps.labels, labels.palette)
    drawn = {
        "color.png": label_images.colour_labels(maps.labels, labels.palette),
        "overlay.png": label_images.with_numbers(painted, maps.labels, labels.palette),
        "uncertainty.png": label_images.heat(maps.uncertainty),
    }
    for ending, colours in drawn.items():
        yield ending, layout.png_of(Image.fromarray(colours))
    yield "labels.png", layout.png_of(label_image(maps.labels, labels.palette))


def label_legend(labels: Labels, calibrated: bool, options: SaveOptions) -> np.ndarray:
    """What the colours mean, as an image; calibrated: whether the uncertainty is."""
    return sheets.prediction_legend(labels, calibrated, ignored=options.reject is not None)


def write_coco(folder: Path, files: Mapping[str, str]):
    """Writes coco.json with the contours of images, of those that have such a file.

    files  name of an image -> file name in coco.json
    """
    paths = {file: path_of(folder, name, CONTOUR_ENDINGS["coco"]) for name, file in files.items()}
    parts = {
        file: json.loads(read_bytes(path)) for file, path in paths.items()
        if open_path(path).exists()
    }  # fmt: skip
    if parts:
        write_atomically(folder / COCO, json.dumps(contours.merged_coco(parts)).encode())


def label_image(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """An image of ids int[H,W], 8 bits each, in which viewers show the colours of the classes.

    255 is black; or where a class has that colour, white or a magenta.
    """
    colours = [tuple(colour) for colour in palette]
    free = [(0, 0, 0), (255, 255, 255), *((red, 0, 255) for red in range(256))]
    ignored = next(colour for colour in free if colour not in colours)
    entries = [*colours, *[UNUSED_COLOUR] * (IGNORE - len(colours)), ignored]
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(np.array(entries, np.uint8).tobytes())
    return image


def named_maps_of(known: Mapping, options: SaveOptions) -> dict[str, np.ndarray]:
    """The extra maps by name; UserError for one that the network does not have."""
    for name in options.extra:
        if name not in known:
            raise UserError(
                f"this network has no map {name}, which is to be saved. Save some of "
                f"{', '.join(known)}."
            )
    return {name: known[name] for name in options.extra}


def write_map_file(name: str, values: np.ndarray, options: SaveOptions) -> bytes:
    """An extra map as a file: probabilities of 16 bits, other numbers of 32, or a 16-bit PNG."""
    values = values.astype(np.float16 if name == "probs" else np.float32)
    ending, content = options.extra_ending(name), io.BytesIO()
    if ending.endswith("npz"):
        np.savez_compressed(content, **{name: values})
    elif ending.endswith("npy"):
        np.save(content, values)
    else:
        levels = np.rint(TOP * values.astype(np.float64)).astype(np.uint16)
        return layout.png_of(Image.fromarray(levels))
    return content.getvalue()
