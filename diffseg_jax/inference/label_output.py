"""Label maps as predictions: their files, pictures and words."""

import functools

import numpy as np

from diffseg_jax.figures import label_images, sheets
from diffseg_jax.inference.exported_images import IMAGE_FORM
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.saved import SaveOptions, label_contents, label_legend
from diffseg_jax.inference.summary import overview_of, statistics_of
from diffseg_jax.inference.views import LABELS

MAX_NAMED = 6  # classes in the text of a prediction


def _overlay(image, maps, labels, alpha, contours):
    overlay = functools.partial(label_images.overlay, alpha=alpha)
    paint = label_images.outlined if contours else overlay
    return paint(image, maps.labels, labels.palette)


def _sheet(images, maps, labels):
    return sheets.prediction_sheet(
        images, None, [each.labels for each in maps], [each.uncertainty for each in maps], labels,
        calibrated=all(each.calibrated for each in maps),
    )  # fmt: skip


def shares_of_classes(maps, classes) -> dict[str, float]:
    """The share of pixels of each class that occurs, the mean over images; in class order."""
    num_classes = len(classes)
    shares = np.mean([
        np.bincount(each.labels.ravel(), minlength=num_classes) / each.labels.size for each in maps
    ], axis=0)  # fmt: skip
    return {name: share for name, share in zip(classes, shares, strict=True) if share}


def text_of_labels(maps, classes) -> str:
    """Such as "3 classes: road 60 %, car 30 %, tree 10 %"."""
    shares = shares_of_classes(maps, classes)
    ordered = sorted(shares, key=shares.get, reverse=True)
    named = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in ordered[:MAX_NAMED])
    return f"{len(classes)} classes: {named}{', ...' if len(ordered) > MAX_NAMED else ''}"


LABEL_OUTPUT = OutputKind(
    name="segmentation",
    decision=LABELS,
    colour=lambda maps, labels: label_images.colour_labels(maps.labels, labels.palette),
    overlay=_overlay,
    sheet=_sheet,
    check=lambda options: None,
    endings=SaveOptions.endings,
    described=SaveOptions.described,
    contents=label_contents,
    legend=label_legend,
    statistics=statistics_of,
    overview=overview_of,
    shown="overlay.png",
    need="expected share of wrong pixels",
    required=("expected_accuracy",),
    text=text_of_labels,
    exported=lambda maps: {
        "labels": maps.labels, "probs": maps.probs, "uncertainty": maps.uncertainty,
    },
    meanings=lambda calibrated: {
        "labels": "the class of every pixel, an index into classes",
        "probs": "of every class, summing to 1",
        "uncertainty": "the estimated chance that the label is wrong"
        + ("" if calibrated else ", uncalibrated: 1 - the highest probability"),
    },
    form=IMAGE_FORM,
)  # fmt: skip
