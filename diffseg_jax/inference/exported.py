"""Exports a trained model as a folder that predicts images of one size without this package."""

import dataclasses
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as stablehlo

import diffseg_jax
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.views import Protocol, View, predict_whole
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.uncertainty import OF_PROBABILITIES
from diffseg_jax.storage.paths import make_folder, write_atomically
from diffseg_jax.systems.task import Task

MODEL, DESCRIPTION = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
LOAD = (
    "from jax import export, jit",
    f'model = jit(export.deserialize(bytearray(open("{MODEL}", "rb").read())).call)',
    "outputs = model(images)  # uint8[b, {0}, {1}, 3] -> labels, probs, uncertainty",
)


@own_settings()
def export(
    segmenter: Segmenter, output: str | os.PathLike, *, size: tuple[int, int],
    steps: int | None = None, samples: int | None = None, seed: int | None = None,
    platforms: Sequence[str] = PLATFORMS, log: Callable[[str], None] = lambda line: None,
) -> dict:  # fmt: skip
    """Writes a folder with the model and model.json, whose content is returned.

    segmenter  what `diffseg_jax.load` returned
    output     a new folder; it is complete, or not there at all
    size       (height, width) of the images that the model will take
    steps, samples, seed  as of `Segmenter.predict`
    platforms  where it will run: some of "cpu", "cuda", "tpu"
    log        is called with a line before a slow step

    The model takes uint8[b, height, width, 3] for any b, and returns {"labels" int32[b,H,W],
    "probs" float32[b,H,W,K], "uncertainty" float32[b,H,W]}: what `predict` returns for whole images
    that are not resized, up to rounding (1e-5 in float32, some thousandths in bfloat16). Warns if
    the evaluation averages over windows, scales or mirror images, which the model does not. Raises
    UserError for a size that the evaluation would change first, unknown platforms, an output that
    exists, a network that does not segment, and a network of over 2 GB.
    """
    output, size = check_request(output, size, platforms)
    check_protocol(segmenter.protocol, size)
    task = segmenter.task_for(steps, samples)
    require_classes(segmenter, task)
    if task.files:
        raise UserError(
            f"this model reads features from {task.files.folder}, so it cannot be exported alone. "
            "Export one whose features a network computes."
        )
    log(f"{segmenter.directory}: traces step {segmenter.step} for {', '.join(platforms)}")
    seed = int(segmenter.seed_for(seed))
    calibrator = usable_calibrator(segmenter, task, size)
    function = prediction_function(task, segmenter.network, size, seed, calibrator)
    (b,) = stablehlo.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A large amount of constants")  # the weights
        exported = stablehlo.export(jax.jit(function), platforms=tuple(platforms))(images)
    description = model_json(segmenter, task, exported, seed, calibrator is not None)
    write_folder(output, {
        MODEL: serialized(exported),
        DESCRIPTION: (json.dumps(description, indent=2) + "\n").encode(),
    })  # fmt: skip
    return description


def usable_calibrator(
    segmenter: Segmenter, task: Task, size: tuple[int, int]
) -> Calibrator | None:
    """The calibrator of a network; None where predictions of the task lack one of its signals."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    found = jax.eval_shape(task.predict, segmenter.network, image, valid)
    given = {*OF_PROBABILITIES, *(found if isinstance(found, dict) else ())}
    calibrator = segmenter.calibrator
    return calibrator if calibrator and given >= set(calibrator.signals) else None


def prediction_function(
    task: Task, network: dict, size: tuple[int, int], seed: int,
    calibrator: Calibrator | None = None,
) -> Callable[[jax.Array], dict]:  # fmt: skip
    """u8[b,H,W,3] -> {"labels", "probs", "uncertainty"} of whole images, b being symbolic.

    Each image is predicted as a batch of one, all of them at the same time; but one after another
    with an ensemble, whose features take much memory.
    """
    network = jax.tree.map(np.asarray, network)
    valid = np.array([size], np.int32)

    def predict_one(image):
        values = jax.tree.map(jnp.asarray, network)
        found = task.predict(values, image[None], valid, seed=seed)
        maps = predict_whole(found, jnp, calibrator)[0]
        return {
            "labels": maps.labels.astype(jnp.int32),
            "probs": maps.probs.astype(jnp.float32),
            "uncertainty": maps.uncertainty.astype(jnp.float32),
        }

    if task.fit:
        return lambda images: jax.lax.map(predict_one, images)
    return jax.vmap(predict_one)


def serialized(exported: stablehlo.Exported) -> bytes:
    """The bytes of model.stablehlo; UserError if they are more than such a file can hold."""
    from flatbuffers.builder import BuilderSizeError

    try:
        return bytes(exported.serialize())
    except BuilderSizeError:
        raise UserError(
            "the network is larger than 2 GB, the limit of a file of jax.export. Use it by "
            "diffseg_jax.load, or export a smaller one."
        ) from None


def model_json(
    segmenter: Segmenter, task: Task, exported, seed: int, calibrated: bool
) -> dict:  # fmt: skip
    """The content of model.json; calibrated: whether the uncertainty is."""
    _, height, width, _ = exported.in_avals[0].shape
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    meanings = {
        "labels": "the class of every pixel, an index into classes",
        "probs": "of every class, summing to 1",
        "uncertainty": "the estimated chance that the label is wrong"
        + ("" if calibrated else ", uncalibrated: 1 - the highest probability"),
    }
    sampling = task.meta.get("sampling", {})
    return {
        "library": f"diffseg_jax {diffseg_jax.__version__}",
        "jax": jax.__version__,
        "checkpoint": str(segmenter.directory),
        "step": segmenter.step,
        "system": segmenter.system,
        "classes": list(segmenter.names),
        "palette": [[int(part) for part in colour] for colour in segmenter.palette],
        "input": {
            "dtype": "uint8",
            "shape": ["b", height, width, 3],
            "range": [0, 255],
            "meaning": "b images, red green blue, as in an image file",
        },
        "outputs": {
            name: {
                "dtype": outputs[name].dtype.name,
                "shape": [s if isinstance(s, int) else str(s) for s in outputs[name].shape],
                "meaning": meaning,
            }
            for name, meaning in meanings.items()
        },
        "options": {
            "steps": sampling.get("steps"), "samples": sampling.get("draws"), "seed": seed,
        },
        "platforms": list(exported.platforms),
        "needs": "pip install jax flatbuffers",
        "load": [line.format(height, width) for line in LOAD],
    }  # fmt: skip


# ---- what can be wrong -------------------------------------------------------------------------


def check_request(output, size, platforms) -> tuple[Path, tuple[int, int]]:
    """The output and the size; UserError if no checkpoint can be exported with them."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "jax writes exported models with flatbuffers, which is not installed: "
            'pip install "diffseg_jax[export]".'
        )
    if len(size) != 2 or any(side != int(side) or side < 1 for side in size):
        raise UserError(
            f"size is {','.join(map(str, size)) or 'empty'}, but it is a height and a width in "
            "pixels. Try --size=96,128."
        )
    if not platforms:
        raise UserError(f"no platform is given. Known: {', '.join(PLATFORMS)}.")
    for platform in platforms:
        require_known(platform, PLATFORMS, "platform")
    if "://" in str(output):
        raise UserError(f"{output} is an address. Give an --output on this machine.")
    if os.path.lexists(output):
        raise UserError(f"{output} exists already. Give another --output.")
    return Path(os.path.abspath(output)), tuple(map(int, size))


def check_protocol(protocol: Protocol, size: tuple[int, int]):
    """Raises UserError if evaluation would resize such images, warns if it averages over views."""
    height, width = size
    resized = dataclasses.replace(protocol, scales=(1.0,)).sizes(size)[0]
    if resized != size:
        wanted = "{},{}".format(*resized)
        raise UserError(
            f"evaluation of this checkpoint first resizes images of {height} x {width} to "
            f"{resized[0]} x {resized[1]}, which an exported model does not. Try --size={wanted}, "
            "and give it images of that size."
        )
    views = []
    if protocol.view is View.SLIDE and protocol.window != size:
        views.append("windows of {} x {}".format(*protocol.window))
    if protocol.view is View.HALVES:
        views.append("a left and a right half")
    if protocol.scales != (1.0,):
        views.append(f"the scales {', '.join(map(str, protocol.scales))}")
    if protocol.flip:
        views.append("the mirror image")
    if views:
        warnings.warn(
            f"evaluation of this checkpoint averages over {' and '.join(views)}; the exported "
            f"model takes images of {height} x {width} as they are, so its predictions differ",
            stacklevel=3,
        )


def require_classes(segmenter: Segmenter, task: Task):
    """Raises UserError for a stage that does not segment."""
    if task.predict is None:
        raise UserError(
            f"{segmenter.directory} was trained without labels, so it cannot segment and there is "
            "no prediction to export. Give the stage that was trained with labels."
        )


def write_folder(output: Path, files: dict[str, bytes]):
    """Writes a folder that is either complete or not there."""
    make_folder(output.parent)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        for name, content in files.items():
            write_atomically(partial / name, content)
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
