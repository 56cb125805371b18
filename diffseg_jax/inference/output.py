"""What predictions of a task are, as a plain value: decided, drawn, written and described."""

import dataclasses
from collections.abc import Callable

from diffseg_jax.inference.views import Decision
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.systems.task import Task


@dataclasses.dataclass(frozen=True)
class FileForm:
    """What an exported model takes and returns, such as images, or rigs; and how it is made.

    Sizes in a shape are numbers, or letters: b images or rigs of n cameras, h rows, w columns.

    takes      `Task.meta` -> {name of an input: (dtype, shape, what it is)}
    returns    (name of an output, `Task.meta`, number of classes) -> shape
    added      `Task.meta` -> further entries of model.json
    only_size  `Task.meta` -> the one (height, width) that the network sees; None: any
    seen       (`Task.meta`, size, inside) -> what becomes of images before the network sees them,
               inside the file or before; for people
    check      (segmenter, size) -> None; UserError for a network that predicts nothing, or sees
               images of another size, and for a calibrator that a file does not hold
    function   `Exportable` -> a function of the arrays that it takes, as the network sees them, to
               {name of an output: array}; b and n may be symbolic
    written    (graph, values that it takes, `Exportable`) -> {name of an output: value}, as nodes
               of a graph of `onnx_writer`, for images of any size; imports that package when called
    """

    takes: Callable
    returns: Callable
    added: Callable
    only_size: Callable
    seen: Callable
    check: Callable
    function: Callable
    written: Callable


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """Functions of the maps of one image, without B, as `decision` makes them.

    `labels` are the names and colours of classes, none for tasks without them; `options` are a
    `SaveOptions`.

    name        of the task, as in config.task
    decision    what becomes of the maps of a network
    colour      (maps, labels) -> u8[H,W,3]
    overlay     (image, maps, labels, alpha, contours) -> u8[H,W,3]
    sheet       (images, maps of each, labels) -> one image
    check       options -> None; UserError for those that the task does not have
    endings     (options, georeferenced) -> ends of the names of the files of an image
    described   (options, georeferenced) -> {end: what it holds}
    contents    (name, image, maps, labels, options, place) -> (end, bytes) of each, in their order
    legend      (labels, calibrated, options) -> an image that explains the colours
    statistics  (maps, names of classes, options) -> the entry of an image in summary.json
    overview    (entries, names of classes) -> what summary.json says of all images
    shown       end of the name of the picture that videos and contact sheets show
    beside      (title, end of the name) of what the sheet of `predict` shows beside a photograph;
                none: it shows `shown` alone
    need        what the uncertainty of an image is, for people
    required    keys of an entry without which an image is not finished
    text        (maps of each image, names of classes) -> what they show, for people
    exported    maps -> {name: array} that an exported model returns
    meanings    calibrated -> {name: what it is}
    form        of such a model
    of_files    writes the predictions of files that are no images, as `rig_batch.predict_rig_files`
                does, in place of `batch.predict_files`; None for images
    refusal     segmenter -> UserError for images, where the network reads something else
    call, inputs  lines of Python that predict with a `segmenter`, and a folder of what it reads
    """

    name: str
    decision: Decision
    colour: Callable
    overlay: Callable
    sheet: Callable
    check: Callable
    endings: Callable
    described: Callable
    contents: Callable
    legend: Callable
    statistics: Callable
    overview: Callable
    shown: str
    need: str
    required: tuple[str, ...]
    text: Callable
    exported: Callable
    meanings: Callable
    form: FileForm
    beside: tuple[tuple[str, str], ...] = ()
    of_files: Callable | None = None
    refusal: Callable | None = None
    call: tuple[str, ...] = ('prediction = segmenter.predict("image.png")',)
    inputs: str = "photos"


@dataclasses.dataclass(frozen=True)
class Exportable:
    """What a file is made of: `network` is that of `task`, and images are seen at `size`.

    seed         of the noise
    platforms    where it will run
    description  the content of model.json
    """

    task: Task
    output: OutputKind
    network: dict
    size: tuple[int, int]
    seed: int
    calibrator: Calibrator | None = None
    platforms: tuple[str, ...] = ()
    description: dict = dataclasses.field(default_factory=dict)
