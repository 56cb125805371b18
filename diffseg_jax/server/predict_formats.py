"""A prediction as the body of a response: PNG of class ids, JSON, or arrays of NumPy."""

import base64
import io
import json

import numpy as np
from PIL import Image

from diffseg_jax.figures import layout
from diffseg_jax.inference.prediction import Prediction

CONTENT_TYPES = {"png": "image/png", "json": "application/json", "probs": "application/x-npz"}
MAPS_OF_FORMAT = {
    "png": (),
    "json": (),
    "probs": ("probs",),
}  # maps that a format needs besides labels


def encoded(
    prediction: Prediction, format: str, with_uncertainty: bool = False
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of the prediction for one image.

    format            one of CONTENT_TYPES
    with_uncertainty  whether JSON holds the map of the uncertainty, as a PNG
    """
    write = {"png": png_of_ids, "probs": npz_of}.get(format)
    body = write(prediction) if write else json_of(prediction, with_uncertainty)
    height, width = prediction.labels[0].shape
    headers = {
        "content-type": CONTENT_TYPES[format],
        "x-size": f"{height}x{width}",
        "x-uncertainty": f"{prediction.uncertainty[0].mean(dtype=np.float64):.6f}",
        "x-calibrated": "true" if prediction.calibrated else "false",
    }
    if prediction.foreign is not None:
        headers["x-foreign"] = "true" if prediction.foreign[0] else "false"
    return body, headers


def png_of_ids(prediction: Prediction) -> bytes:
    """A grey PNG of the class ids; of 16 bits if there are more than 256 classes."""
    return layout.png_of(Image.fromarray(compact(prediction.labels[0], prediction)))


def npz_of(prediction: Prediction) -> bytes:
    """labels u8 or u16[H,W], uncertainty f16[H,W] and probs f16[H,W,K] in a file of NumPy."""
    content = io.BytesIO()
    np.savez(
        content,
        labels=compact(prediction.labels[0], prediction),
        uncertainty=prediction.uncertainty[0].astype(np.float16),
        probs=prediction.probs[0].astype(np.float16),
    )
    return content.getvalue()


def compact(labels: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The labels i32[H,W] as bytes, or as u16 where the ids need it."""
    largest = max(len(prediction.classes) - 1, int(labels.max()))
    return labels.astype(np.uint8 if largest < 256 else np.uint16)


def json_of(prediction: Prediction, with_uncertainty: bool = False) -> bytes:
    """Classes with their pixels, label map and uncertainty as JSON in ASCII."""
    labels, uncertainty = prediction.labels[0], prediction.uncertainty[0]
    pixels = np.bincount(labels.ravel(), minlength=len(prediction.classes))
    found = np.flatnonzero(pixels)
    classes = [
        {
            "id": int(each), "name": name_of(prediction, each), "pixels": int(pixels[each]),
            "share": pixels[each] / labels.size,
        }
        for each in found
    ]  # fmt: skip
    described = {
        "mean": float(uncertainty.mean(dtype=np.float64)),
        "calibrated": prediction.calibrated,
    }
    if with_uncertainty:
        values = np.rint(255 * uncertainty).astype(np.uint8)
        described["png"] = base64.b64encode(layout.png_of(Image.fromarray(values))).decode()
    content = {
        "size": list(labels.shape), "classes": classes, "labels": class_run_lengths(labels),
        "uncertainty": described,
    }  # fmt: skip
    if prediction.foreign is not None:
        content["familiarity"] = float(prediction.familiarity[0])
        content["foreign"] = bool(prediction.foreign[0])
    return json.dumps(content).encode()


def name_of(prediction: Prediction, number: int) -> str:
    """The name of a class; those of some converted networks have none."""
    named = number < len(prediction.classes)
    return prediction.classes[number] if named else f"class {number}"


def class_run_lengths(labels: np.ndarray) -> list[dict]:
    """[{"id", "size": [H, W], "counts"}] of the classes of labels[H,W], in the order of their ids.

    Counts are an uncompressed run-length encoding of COCO: columns first, in turn pixels outside
    and inside the class, beginning with those outside, of which there may be 0.
    """
    columns = labels.ravel(order="F")
    starts = np.flatnonzero(np.diff(columns, prepend=columns[0] - 1))
    ends, ids = np.append(starts[1:], columns.size), columns[starts]
    found = []
    for each in np.unique(ids):
        inside = ids == each
        borders = np.stack([starts[inside], ends[inside]], axis=1).ravel()
        counts = np.diff(borders, prepend=0, append=columns.size)
        counts = counts[: len(counts) - (counts[-1] == 0)].tolist()
        found.append({"id": int(each), "size": list(labels.shape), "counts": counts})
    return found
