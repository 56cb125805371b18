"""Depth maps as predictions: their files, pictures and words."""

import io
from collections.abc import Mapping
from functools import partial

import numpy as np
from PIL import Image

from diffseg_jax.errors import UserError
from diffseg_jax.figures import label_images, layout, sheets
from diffseg_jax.figures.depth import colour_depth, depth_scale, depth_sheet
from diffseg_jax.inference.depth_maps import DEPTHS, DepthMaps
from diffseg_jax.inference.exported_images import IMAGE_FORM
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.saved import SaveOptions, named_maps_of, write_map_file

DEPTH_FILES = ("color.png", "uncertainty.png", "depth.png")  # the last is written last
DEPTH_ON_MAP = ("uncertainty.tif", "depth.tif")  # of georeferenced images, besides
PNG_LEVELS = 65535  # of a 16-bit PNG
PER_METRE = 256  # levels of depth.png, as in KITTI, where they suffice
COLOUR_RANGE = 80  # the least depth that has a colour of its own is that share of the largest


def depth_output(low: float, high: float) -> OutputKind:
    """The output of networks whose depths range from `low` to `high` metres.

    Colours end at `high` and at a COLOUR_RANGE-th of it, so that those of all images are the same.
    """
    shown = max(low, high / COLOUR_RANGE), high
    scale = PER_METRE if high * PER_METRE <= PNG_LEVELS else PNG_LEVELS / high
    return OutputKind(
        name="depth",
        decision=DEPTHS,
        colour=lambda maps, labels: colour_depth(maps.depth, *shown),
        overlay=partial(_overlay, shown),
        sheet=partial(_sheet, shown),
        check=check_depth_options,
        endings=depth_endings,
        described=partial(describe_depth_files, scale),
        contents=partial(depth_contents, shown, scale),
        legend=partial(depth_legend, shown),
        statistics=depth_statistics,
        overview=depth_overview,
        shown="color.png",
        beside=(("depth", "color.png"), ("uncertainty", "uncertainty.png")),
        need="how far the depth moves between steps, a share of it, not the size of its error",
        required=("median_depth",),
        text=text_of_depths,
        exported=lambda maps: {"depth": maps.depth, "uncertainty": maps.uncertainty},
        meanings=lambda calibrated: {
            "depth": "metres along the viewing direction",
            "uncertainty": "how far the depth moves between steps and draws, as a share of it",
        },
        form=IMAGE_FORM,
    )


# ---- pictures ----------------------------------------------------------------------------------


def _overlay(shown, image, maps, labels, alpha, contours):
    if contours:
        raise UserError("contours are of label maps, but this network predicts depth.")
    return np.rint((1 - alpha) * image + alpha * colour_depth(maps.depth, *shown)).astype(np.uint8)


def _sheet(shown, images, maps, labels):
    depths, uncertain = [each.depth for each in maps], [each.uncertainty for each in maps]
    return depth_sheet(images, None, depths, uncertain if maps[0].signals else None, shown=shown)


def depth_legend(shown, labels, calibrated: bool, options: SaveOptions) -> np.ndarray:
    """The scale of the depths in metres, and that of the uncertainty."""
    return layout.rows([
        depth_scale(*shown), sheets.heat_scale("uncertainty, relative to the depth"),
    ])  # fmt: skip


# ---- files -------------------------------------------------------------------------------------


def check_depth_options(options: SaveOptions):
    """UserError for options of saved files that only label maps have."""
    given = {
        "contours": options.contours, "review": options.review, "reject": options.reject,
        "overlay": None if options.overlay == SaveOptions.overlay else options.overlay,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"{name}={value} is for networks that predict labels, but this one predicts depth. "
                f"Leave {name} out."
            )
    if "depth" in options.extra and options.format == "png16":
        raise UserError(
            "depth.png is written for every image and holds the depth in 16 bits. To save it in "
            "float32 too, add --format=npy or npz."
        )


def depth_endings(options: SaveOptions, georeferenced: bool = False) -> list[str]:
    """The ends of the names of the files of an image, after its name and "_"."""
    extra = [options.extra_ending(name) for name in options.extra]
    return [*extra, *(DEPTH_ON_MAP if georeferenced else ()), *DEPTH_FILES]


def describe_depth_files(scale, options: SaveOptions, georeferenced: bool = False) -> dict:
    """What each file of an image holds, by the end of its name."""
    texts = {
        "depth.png": f"metres times {scale:g}, 16 bits; 0 occurs nowhere",
        "color.png": "the depth in the colours of legend.png",
        "uncertainty.png": "how far the depth moves between steps and draws, as a share of it; its "
        "scale is in legend.png",
    }
    for name in options.extra:
        texts[options.extra_ending(name)] = f"{name}, float32"
    if georeferenced:
        texts["depth.tif"] = "metres, float32, with the georeference of the image"
        texts["uncertainty.tif"] = "the uncertainty, float32, so too"
    return texts


def depth_contents(shown, scale, name, image, maps, labels, options, place):
    """The end of the name of each file, and its bytes, in the order of `depth_endings`."""
    known = {"depth": maps.depth, "uncertainty": maps.uncertainty, **maps.signals}
    for extra, values in named_maps_of(known, options).items():
        yield options.extra_ending(extra), write_map_file(extra, values, options)
    if place is not None:
        for values, ending in ((maps.uncertainty, "uncertainty.tif"), (maps.depth, "depth.tif")):
            yield ending, place.write_tiff(Image.fromarray(values.astype(np.float32)))
    yield "color.png", layout.png_of(Image.fromarray(colour_depth(maps.depth, *shown)))
    yield "uncertainty.png", layout.png_of(Image.fromarray(label_images.heat(maps.uncertainty)))
    levels = np.clip(np.rint(scale * maps.depth.astype(np.float64)), 1, PNG_LEVELS)
    content = io.BytesIO()
    Image.fromarray(levels.astype(np.uint16)).save(content, format="PNG")
    yield "depth.png", content.getvalue()


# ---- words -------------------------------------------------------------------------------------


def depth_statistics(maps: DepthMaps, classes, options: SaveOptions) -> dict:
    """The entry of one image in the summary; JSON values. Depths are in metres."""
    near, median, far = (float(value) for value in np.quantile(maps.depth, (0.01, 0.5, 0.99)))
    return {
        "size": list(maps.depth.shape),
        "near_depth": round(near, 4),
        "median_depth": round(median, 4),
        "far_depth": round(far, 4),
        "uncertainty": round(float(maps.uncertainty.mean()), 6),
        "calibrated": False,
    }


def depth_overview(entries: Mapping[str, dict], classes) -> dict:
    """What the summary says of all images, and which of them to look at first."""
    medians = [entry["median_depth"] for entry in entries.values()]
    return {
        "calibrated": False,
        "median_depth": round(float(np.median(medians)), 4) if medians else None,
        "by_need": sorted(entries, key=lambda name: -entries[name]["uncertainty"]),
    }


def text_of_depths(maps, classes) -> str:
    """Such as "depth 1.2 to 35 m"."""
    near = min(float(np.quantile(each.depth, 0.01)) for each in maps)
    far = max(float(np.quantile(each.depth, 0.99)) for each in maps)
    return f"depth {near:.3g} to {far:.3g} m"
