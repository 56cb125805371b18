"""Exports a trained model as a folder that predicts images without this package."""

import dataclasses
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as stablehlo

import diffseg_jax
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError, choose, require_known
from diffseg_jax.inference.exported_images import dtype_of
from diffseg_jax.inference.output import Exportable
from diffseg_jax.inference.segmenter import TRACED_SIZE, Segmenter
from diffseg_jax.inference.views import View
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.uncertainty import OF_PROBABILITIES
from diffseg_jax.storage.paths import make_folder, write_atomically
from diffseg_jax.systems.task import Task

MODEL, DESCRIPTION = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class ExportFormat:
    """A kind of file that holds a network.

    file       its name
    package    with which it is written;  extra  of this package, which installs that
    needs      what a program that loads it installs
    load       lines of Python that load and call it, with places for inputs and outputs
    sizes      letters of `FileForm` -> names of sizes that may differ; the others are fixed
    platforms  among which one may choose
    dtypes     of the computation
    write      Exportable -> {name of a file: its bytes}
    """

    file: str
    package: str
    extra: str
    needs: str
    load: tuple[str, ...]
    sizes: Mapping[str, str]
    platforms: tuple[str, ...]
    dtypes: tuple[str, ...]
    write: Callable[[Exportable], dict[str, bytes]]


@own_settings()
def export(
    segmenter: Segmenter, output: str | os.PathLike, *, size: tuple[int, int] | None = None,
    format: str = "stablehlo", steps: int | None = None, samples: int | None = None,
    seed: int | None = None, platforms: Sequence[str] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict:  # fmt: skip
    """Writes a folder with the model and model.json, whose content is returned.

    segmenter  what `diffseg_jax.load` returned
    output     a new folder; it is complete, or not there at all
    size       (height, width) of the images that the network will see; None: as `usual_size`
    format     "stablehlo", which jax loads, or "onnx", which onnxruntime and others load
    steps, samples, seed  as of `Segmenter.predict`
    platforms  where it will run: some of "cpu", "cuda", "tpu"; None: all. ONNX has no such choice
    log        is called with a line before a slow step

    The model takes uint8[b, height, width, 3] for any b, and returns {"labels" int32[b,H,W],
    "probs" float32[b,H,W,K], "uncertainty" float32[b,H,W]}, or "depth" float32[b,H,W] in place of
    the first two for a depth network: what `predict` returns for whole images that are not
    resized, up to rounding (1e-5 in float32, some thousandths in bfloat16). A model in ONNX takes
    images of other sizes too: it resizes them to `size`, and its maps back. Networks that read
    rigs take images uint8[b,n,height,width,3] of n cameras, and "intrinsics" float32[b,n,3,3] and
    "camera_to_world" float32[b,n,4,4] for any n; they return {"probs" float32[b,K,X,Y],
    "uncertainty" float32[b,X,Y]} as `predict_rigs` does.

    Warns if the evaluation averages over windows, scales or mirror images, which the model does
    not. Raises UserError for a size that the evaluation would change first, unknown formats and
    platforms, an output that exists, a network without predictions, one of over 2 GB in
    StableHLO, and one that computes in bfloat16 or has operations that are not known in ONNX.
    """
    output, size, platforms = check_request(output, size, platforms, format)
    size = size or usual_size(segmenter)
    segmenter.output.form.check(segmenter, size)
    task, kind = segmenter.task_for(steps, samples), EXPORT_FORMATS[format]
    if task.files:
        raise UserError(
            f"this model reads features from {task.files.folder}, so it cannot be exported alone. "
            "Export one whose features a network computes."
        )
    if (dtype := segmenter.config.dtype) not in kind.dtypes:
        raise UserError(
            f"this network computes in {dtype}, which {format} files of this package do not. "
            f"Try --dtype={kind.dtypes[0]}."
        )
    log(f"{segmenter.directory}: traces step {segmenter.step} as {format}")
    seed = int(segmenter.seed_for(seed))
    calibrator = usable_calibrator(segmenter, task, size)
    description = model_json(segmenter, task, kind, size, seed, calibrator is not None, platforms)
    whole = Exportable(
        task, segmenter.output, segmenter.network, size, seed, calibrator, platforms, description
    )
    content = (json.dumps(description, indent=2) + "\n").encode()
    write_folder(output, {**kind.write(whole), DESCRIPTION: content})
    return description


def usual_size(segmenter: Segmenter) -> tuple[int, int]:
    """The (height, width) at which the evaluation of a checkpoint sees images of its run.

    Of older and converted checkpoints, that of its windows, or of the images it was trained on;
    UserError where that is not known, or would be resized first.
    """
    meta, protocol = segmenter.meta, dataclasses.replace(segmenter.protocol, scales=(1.0,))
    if size := segmenter.output.form.only_size(meta["task"]):
        return size
    if size := meta.get("image_size"):
        return tuple(map(int, protocol.sizes(tuple(size))[0]))
    if protocol.view is View.SLIDE:
        return protocol.window
    crop = segmenter.crop  # of a fit a frame, which images need not fill
    is_frame = segmenter.task.fit and not segmenter.task.short
    if is_frame or crop == TRACED_SIZE or protocol.sizes(crop)[0] != crop:
        raise UserError(
            f"{segmenter.directory} does not say of which size its images are. Give the height and "
            "the width at which they are evaluated, such as --size=360,480."
        )
    return crop


def usable_calibrator(segmenter: Segmenter, task: Task, size: tuple[int, int]) -> Calibrator | None:
    """The calibrator of a network of images.

    None where there is none, and where predictions of the task lack one of its signals.
    """
    if not segmenter.calibrator:
        return None
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    found = jax.eval_shape(task.predict, segmenter.network, image, valid)
    given = {*OF_PROBABILITIES, *(found if isinstance(found, dict) else ())}
    calibrator = segmenter.calibrator
    return calibrator if given >= set(calibrator.signals) else None


def stablehlo_files(given: Exportable) -> dict[str, bytes]:
    """The bytes of model.stablehlo by its name; UserError for a network of over 2 GB."""
    form = given.output.form
    b, n = stablehlo.symbolic_shape("b, n")
    sizes = {"b": b, "n": n, **fixed_sizes(given.size)}
    inputs = [
        jax.ShapeDtypeStruct([sizes.get(side, side) for side in shape], dtype)
        for dtype, shape, _ in form.takes(given.task.meta).values()
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A large amount of constants")  # the weights
        function = jax.jit(form.function(given))
        exported = stablehlo.export(function, platforms=given.platforms)(*inputs)
    return {MODEL: serialized(exported)}


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


def onnx_files(given: Exportable) -> dict[str, bytes]:
    """The bytes of model.onnx by its name, with the description as its metadata."""
    from diffseg_jax.inference.exported_onnx import onnx_model

    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.description.items()
    }
    return onnx_model(given, texts, ONNX.file, ONNX.sizes)


STABLEHLO = ExportFormat(
    file=MODEL, package="flatbuffers", extra="export", needs="pip install jax flatbuffers",
    load=(
        "from jax import export, jit",
        f'model = jit(export.deserialize(bytearray(open("{MODEL}", "rb").read())).call)',
        "outputs = model({inputs})  # {shapes} -> {outputs}",
    ),
    sizes={"b": "b", "n": "n"}, platforms=PLATFORMS, dtypes=("float32", "bfloat16"),
    write=stablehlo_files,
)  # fmt: skip
ONNX = ExportFormat(
    file="model.onnx", package="onnx", extra="onnx", needs="pip install onnxruntime numpy",
    load=(
        "import onnxruntime",
        'model = onnxruntime.InferenceSession("model.onnx")',
        "{outputs} = model.run(None, {feed})  # {shapes}",
    ),
    sizes={"b": "batch", "n": "cameras", "h": "height", "w": "width"}, platforms=(),
    dtypes=("float32",), write=onnx_files,
)  # fmt: skip
EXPORT_FORMATS = {"stablehlo": STABLEHLO, "onnx": ONNX}


def fixed_sizes(size: tuple[int, int]) -> dict[str, int]:
    """The letters of `FileForm` for the (height, width) that a network sees."""
    return dict(zip("hw", size))


def normalisation(meta: dict) -> str:
    """How the model scales pixels in 0..255 itself, for people."""
    numbers = [f"{name} {meta[name]}" for name in ("mean", "std") if name in meta]
    return "inside the model: " + ", ".join([meta.get("normalisation", ""), *numbers])


def model_json(
    segmenter: Segmenter, task: Task, kind: ExportFormat, size: tuple[int, int], seed: int,
    calibrated: bool, platforms: tuple[str, ...],
) -> dict:  # fmt: skip
    """The content of model.json; calibrated: whether the uncertainty is."""
    form, meanings = segmenter.output.form, segmenter.output.meanings(calibrated)
    names = {**fixed_sizes(size), **kind.sizes}
    named = lambda shape: [names.get(side, side) for side in shape]
    takes = {
        name: {"dtype": dtype, "shape": named(shape), "meaning": meaning}
        for name, (dtype, shape, meaning) in form.takes(task.meta).items()
    }
    shapes = (f"{each['dtype']}[{', '.join(map(str, each['shape']))}]" for each in takes.values())
    places = {
        "inputs": ", ".join(takes), "outputs": ", ".join(meanings), "shapes": ", ".join(shapes),
        "feed": "{" + ", ".join(f'"{name}": {name}' for name in takes) + "}",
    }  # fmt: skip
    images = takes.pop("images")
    images["meaning"] += form.seen(task.meta, size, "h" in kind.sizes)
    sampling = task.meta.get("sampling", {})
    return {
        "library": f"diffseg_jax {diffseg_jax.__version__}",
        "jax": jax.__version__,
        "checkpoint": str(segmenter.directory),
        "step": segmenter.step,
        "system": segmenter.system,
        "classes": list(segmenter.names),
        "palette": [[int(part) for part in colour] for colour in segmenter.palette],
        "normalisation": normalisation(task.meta),
        "input": {**images, "size": list(size), "range": [0, 255]},
        **({"calibration": takes} if takes else {}),
        "outputs": {
            name: {
                "dtype": dtype_of(name),
                "shape": named(form.returns(name, task.meta, len(segmenter.names))),
                "meaning": meaning,
            }
            for name, meaning in meanings.items()
        },
        **form.added(task.meta),
        "options": {
            "steps": sampling.get("steps"), "samples": sampling.get("draws"), "seed": seed,
        },
        "platforms": list(platforms),
        "needs": kind.needs,
        "load": [line.format(**places) for line in kind.load],
    }  # fmt: skip


# ---- what can be wrong -------------------------------------------------------------------------


def check_request(
    output, size, platforms=None, format: str = "stablehlo"
) -> tuple[Path, tuple[int, int] | None, tuple[str, ...]]:
    """The output, size and platforms; UserError if no checkpoint can be exported with them."""
    kind = choose(EXPORT_FORMATS, format, "format")
    if importlib.util.find_spec(kind.package) is None:
        raise UserError(
            f"{kind.file} is written with {kind.package}, which is not installed: "
            f'pip install "diffseg_jax[{kind.extra}]".'
        )
    if size is not None and (len(size) != 2 or any(side != int(side) or side < 1 for side in size)):
        raise UserError(
            f"size is {','.join(map(str, size)) or 'empty'}, but it is a height and a width in "
            "pixels. Try --size=96,128."
        )
    if platforms is not None and not kind.platforms:
        raise UserError(
            f"platforms is {','.join(platforms)}, but a file of the format {format} runs wherever "
            "its runtime does. Leave platforms out."
        )
    platforms = kind.platforms if platforms is None else tuple(platforms)
    if kind.platforms and not platforms:
        raise UserError(f"no platform is given. Known: {', '.join(kind.platforms)}.")
    for platform in platforms:
        require_known(platform, kind.platforms, "platform")
    if "://" in str(output):
        raise UserError(f"{output} is an address. Give an --output on this machine.")
    if os.path.lexists(output):
        raise UserError(f"{output} exists already. Give another --output.")
    return Path(os.path.abspath(output)), size and tuple(map(int, size)), platforms


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
