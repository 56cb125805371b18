"""A trained model -> a folder that answers pictures of one size without this package."""

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
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.views import Protocol, View, predict_whole
from diffseg_jax.storage.paths import make_folder, write_atomically
from diffseg_jax.systems.system import Task

MODEL, NOTES = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
LOAD = (
    "from jax import export, jit",
    f'model = jit(export.deserialize(bytearray(open("{MODEL}", "rb").read())).call)',
    "answer = model(images)  # uint8[b, {0}, {1}, 3] -> labels, probs, uncertainty",
)


def export(
    segmenter: Segmenter, output: str | os.PathLike, *, size: tuple[int, int],
    steps: int | None = None, samples: int | None = None, seed: int | None = None,
    platforms: Sequence[str] = PLATFORMS, say: Callable[[str], None] = lambda line: None,
) -> dict:  # fmt: skip
    """Writes a folder that holds the model and what model.json says, which is returned.

    segmenter  what `diffseg_jax.load` returned
    output     a new folder; it is there whole, or not at all
    size       (height, width) of the pictures that the model will take
    steps, samples, seed  as of `Segmenter.predict`
    platforms  where it will run: some of "cpu", "cuda", "tpu"
    say        is told what takes long

    The model takes uint8[b, height, width, 3], any b, and answers {"labels" int32[b,H,W], "probs"
    float32[b,H,W,K], "uncertainty" float32[b,H,W]} as `predict` does of whole pictures at their own
    size, up to rounding: 1e-5 in float32, some thousandths in bfloat16. Warns where evaluation
    averages over windows, scales or mirror images, as the model does not. Raises UserError for a
    size that evaluation would change first, platforms that there are not, an output that is there
    already, a network that does not segment and one of over 2 GB.
    """
    output, size = check_request(output, size, platforms)
    check_protocol(segmenter.protocol, size)
    task = segmenter.task_for(steps, samples)
    require_classes(segmenter, task)
    say(f"{segmenter.directory}: traces step {segmenter.step} for {', '.join(platforms)}")
    seed = int(segmenter.seed_for(seed))
    function = answer_of(task, segmenter.network, size, seed)
    (b,) = stablehlo.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A large amount of constants")  # the weights
        exported = stablehlo.export(jax.jit(function), platforms=tuple(platforms))(images)
    facts = describe(segmenter, task, exported, seed)
    write_folder(output, {
        MODEL: serialized(exported),
        NOTES: (json.dumps(facts, indent=2) + "\n").encode(),
    })  # fmt: skip
    return facts


def answer_of(task: Task, network: dict, size: tuple[int, int], seed: int) -> Callable:
    """u8[b,H,W,3] -> {"labels", "probs", "uncertainty"} of whole pictures, b being symbolic.

    Each picture is answered as a batch of one: together, but for features of an ensemble, which
    take much memory and so come one picture after another.
    """
    network = jax.tree.map(np.asarray, network)  # whole, wherever it lives
    valid = np.array([size], np.int32)

    def of_one(picture):
        values = jax.tree.map(jnp.asarray, network)
        found = predict_whole(task.predict(values, picture[None], valid, seed=seed), jnp)
        return {
            "labels": found.labels[0].astype(jnp.int32),
            "probs": found.probs[0].astype(jnp.float32),
            "uncertainty": found.uncertainty[0].astype(jnp.float32),
        }

    if task.fit:
        return lambda images: jax.lax.map(of_one, images)
    return jax.vmap(of_one)


def serialized(exported: stablehlo.Exported) -> bytes:
    """The bytes of model.stablehlo; UserError where they are more than such a file can hold."""
    from flatbuffers.builder import BuilderSizeError

    try:
        return bytes(exported.serialize())
    except BuilderSizeError:
        raise UserError(
            "the network is larger than 2 GB, which no file of jax.export can hold. Use it by "
            "diffseg_jax.load, or export a smaller one."
        ) from None


def describe(segmenter: Segmenter, task: Task, exported, seed: int) -> dict:
    """What model.json says."""
    _, height, width, _ = exported.in_avals[0].shape
    meanings = {
        "labels": "the class of every pixel, its place in classes",
        "probs": "of every class, summing to 1",
        "uncertainty": "0 sure, 1 unsure",
    }
    shapes = {name: [*map(_plain, aval.shape)] for name, aval in _outputs(exported).items()}
    types = {name: aval.dtype.name for name, aval in _outputs(exported).items()}
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
            "meaning": "b pictures, red green blue, as a file of pictures holds them",
        },
        "outputs": {
            name: {"dtype": types[name], "shape": shapes[name], "meaning": meanings[name]}
            for name in meanings
        },
        "options": {
            "steps": sampling.get("steps"), "samples": sampling.get("draws"), "seed": seed,
        },
        "platforms": list(exported.platforms),
        "needs": "pip install jax flatbuffers",
        "load": [line.format(height, width) for line in LOAD],
    }  # fmt: skip


def _outputs(exported):
    return jax.tree.unflatten(exported.out_tree, exported.out_avals)


def _plain(side):
    return side if isinstance(side, int) else str(side)


# ---- what can be wrong -------------------------------------------------------------------------


def check_request(output, size, platforms) -> tuple[Path, tuple[int, int]]:
    """The output and the size; UserError for what no checkpoint can be exported with."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(
            "jax writes exported models by flatbuffers, which is not there: "
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
        raise UserError(f"{output} is there already. Give another --output.")
    return Path(os.path.abspath(output)), tuple(map(int, size))


def check_protocol(protocol: Protocol, size: tuple[int, int]):
    """Raises UserError where evaluation would resize such pictures, warns where it sees more."""
    height, width = size
    shown = dataclasses.replace(protocol, scales=(1.0,)).sizes(size)[0]
    if shown != size:
        wanted = "{},{}".format(*shown)
        raise UserError(
            f"evaluation of this checkpoint first brings pictures of {height} x {width} to "
            f"{shown[0]} x {shown[1]}, which an exported model does not. Try --size={wanted}, and "
            "give it pictures of that size."
        )
    more = []
    if protocol.view is View.SLIDE and protocol.window != size:
        more.append("windows of {} x {}".format(*protocol.window))
    if protocol.view is View.HALVES:
        more.append("a left and a right half")
    if protocol.scales != (1.0,):
        more.append(f"the scales {', '.join(map(str, protocol.scales))}")
    if protocol.flip:
        more.append("the mirror image")
    if more:
        warnings.warn(
            f"evaluation of this checkpoint goes through {' and '.join(more)}; the exported model "
            f"answers whole pictures of {height} x {width} as they are, so its answers differ",
            stacklevel=3,
        )


def require_classes(segmenter: Segmenter, task: Task):
    """Raises UserError for a stage that does not segment."""
    if task.predict is None:
        raise UserError(
            f"{segmenter.directory} was trained without labels, so it cannot segment and there is "
            "no answer to export. Give the stage that was trained with labels."
        )


def write_folder(output: Path, files: dict[str, bytes]):
    """Writes a folder that is either whole or not there."""
    make_folder(output.parent)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        for name, content in files.items():
            write_atomically(partial / name, content)
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
