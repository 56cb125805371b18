"""Opens a trained network, which predicts labels, probabilities and uncertainty of images.

import diffseg_jax
segmenter = diffseg_jax.load("runs/a")
prediction = segmenter.predict("street.png")
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.config.schema import as_tuples
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.devices.compiled import keep_compiled
from diffseg_jax.devices.mesh import find_devices, local_mesh, place_tree, state_shardings
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.inference.calibrators import read_calibrator
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.images import named_images
from diffseg_jax.inference.known_images import read_known_images
from diffseg_jax.inference.locate import find_stage, step_to_open
from diffseg_jax.inference.options import PredictOptions, require_integer
from diffseg_jax.inference.outputs import REPORTS, output_of
from diffseg_jax.inference.prediction import Prediction, concatenate
from diffseg_jax.inference.views import DEFAULT_SIDE, Protocol, View, predict, protocol_of
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.familiarity import KnownImages
from diffseg_jax.storage.integrity import Damaged, fingerprints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.task import Task

DTYPES = ("float32", "bfloat16")
MAX_SEED = 2**31 - 1
LARGE, MIN_LARGE = 16, 2**20  # times the pixels of `crop`, and pixels, above which tiles are cut
TRACED_SIZE = (64, 64)  # of the image with which the network is traced to list its features


@own_settings()
def load(
    path: str | os.PathLike, *, stage: str | None = None, step: int | None = None,
    ema: float | str | None = None, dtype: str | None = None, device: str | None = None,
    cache: bool | str | os.PathLike = False,
) -> "Segmenter":  # fmt: skip
    """Opens a trained network for use.

    path    a workdir; the directory of a stage, <workdir>/checkpoints/<stage>; one that `convert`
            wrote; gs://bucket/...; hf://user/repository[/folder][@revision]; or "scenes", a small
            model in the package
    stage   of a workdir; None = the one with the best result in results.json, or without results
            the last one that can predict
    step    of the stage; None = the last, or the best if the config says so
    ema     rate of the moving average to take, "off" for the parameters; None = the first rate
    dtype   of the computation, "float32" or "bfloat16"; None = as trained
    device  "cpu", "cuda", "gpu" or "tpu": all devices of that kind which this process sees;
            None = the choice of jax
    cache   a folder in which compiled programs are cached for the next process; True = that of the
            commands, JAX_COMPILATION_CACHE_DIR or ~/.cache/diffseg_jax; False = the setting of jax,
            which holds for all programs of the process

    Raises UserError if there is no such checkpoint, stage, step, average or device, and for
    checkpoints of newer versions.
    """
    find_devices(device)
    if cache:
        keep_compiled(None if cache is True else cache)
    directory = find_stage(path, stage)
    step = step_to_open(directory, step)
    try:
        network, meta = open_network(directory, step, ema)
    except Damaged as error:
        raise UserError(f"{error}. Copy or make it again, or give another step.") from None
    kept = directory, meta["step"], meta, ema
    calibrator, known = (
        read(*kept) if "classes" in meta else None for read in (read_calibrator, read_known_images)
    )
    return Segmenter(directory, network, meta, dtype, device, calibrator, known)


class Segmenter:
    """A trained network ready to predict; made by `load`.

    system     "ddpm_seg", "ddp", "ddep" or "deeplab"
    output     what it predicts, see `OutputKind`
    names      K class names;  palette  K colours (r, g, b) in 0..255
    meta       the metadata of the checkpoint: config, task, classes, version, ...
    directory  of the stage;  step  of the checkpoint
    network    {"params", "stats"}: nested dicts of numpy arrays
    protocol   how images are shown unless options of `predict` change it: as in the evaluation
    config     that of the run, with this dtype
    calibrator  estimates the chance of errors; None: it is 1 - the highest probability
    known      images by which others are judged; None: none are
    mesh       the devices, which share a batch
    """

    @own_settings()
    def __init__(
        self, directory, network: dict, meta: dict, dtype=None, device=None,
        calibrator: Calibrator | None = None, known: KnownImages | None = None,
    ):  # fmt: skip
        config = as_tuples(meta["config"])
        if not config.keys() & {"model", "mae", "features"}:
            raise UserError(
                f"{directory} was converted by an older version, whose description of the network "
                "is incomplete. Convert the file again."
            )
        if dtype is not None:
            require_known(dtype, DTYPES, "dtype")
            config["dtype"] = dtype
        self.config, self.meta, self.directory = ConfigDict(config), meta, directory
        self.step, self.calibrator, self.known = meta["step"], calibrator, known
        self.system = self.config.system
        self.names = tuple(meta.get("classes", ()))
        palette = meta.get("palette") or distinct_colours(len(self.names))
        self.palette = tuple(tuple(colour) for colour in palette)
        self.network = jax.tree.map(_as_float32, network)
        self.mesh = local_mesh(device)
        evaluation = self.config.get("evaluate")
        self.protocol = Protocol() if evaluation is None else protocol_of(evaluation)
        self.task, self.output = self.task_for(), output_of(config, meta["task"])
        self._programs = {}

    def __repr__(self):
        count = sum(leaf.size for leaf in jax.tree.leaves(self.network["params"]))
        what = REPORTS[self.output.name].predicted(self.names)
        return (
            f"Segmenter({self.system}, {what}, {count:,} parameters, step {self.step} of "
            f"{self.directory})"
        )

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """(height, width) of the images that the network was trained on; None: not known."""
        stage = self.config.get("stages", {}).get(self.meta["stage"])
        size = stage.augment.crop if stage else self.meta["task"].get("size")
        return size and tuple(size)

    @property
    def crop(self) -> tuple[int, int]:
        """`trained_size`, or TRACED_SIZE where that is not known."""
        return self.trained_size or TRACED_SIZE

    @property
    def batch_size(self) -> int:
        """Images that share a batch unless `predict` is told: 1 for each CPU, 4 for others."""
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return self.mesh.size * (1 if on_cpu else 4)

    @own_settings()
    def task_for(self, steps: int | None = None, samples: int | None = None) -> Task:
        """The task of the system, with these numbers of reverse steps and of draws of the noise.

        Raises UserError for steps of a system that has none, and for numbers out of range.
        """
        config, system = self.config, SYSTEMS[self.system]
        if steps is not None or samples not in (None, 1):
            key, value = ("samples", samples) if steps is None else ("steps", steps)
            if self.task.trace is None:
                raise UserError(
                    f"{key} is {value}, but the predictions of this {self.system} network have no "
                    f"reverse steps. Leave {key} out."
                )
        for key, value, maximum in (("steps", steps, 1000), ("samples", samples, 256)):
            if value is not None:
                require_integer(key, value, 1, maximum)
        if system.with_steps:
            config = system.with_steps(config, steps, samples)
        classes = len(self.names) or config.get("model", {}).get("num_classes", 0)
        kind = self.meta["task"]["kind"]
        return system.make_task(config, kind, self.crop, classes)

    def predict(
        self, images, *, steps: int | None = None, samples: int | None = None,
        tile: int | tuple[int, int] | None = None, stride: int | tuple[int, int] | None = None,
        scales: Sequence[float] | None = None, flip: bool | None = None, seed: int | None = None,
        round_to: int | None = None, batch_size: int | None = None,
    ) -> Prediction:  # fmt: skip
        """Labels, probabilities and uncertainty of images of any size.

        images      uint8[H,W,3] or uint8[B,H,W,3], a PIL image, the path of an image or of a
                    folder, a pattern such as "photos/*.jpg", bytes or a file object of an image
                    file, or an iterable of those; sizes may be mixed
        steps       reverse steps of DDP; None = as the run was evaluated, here and below
        samples     draws of the noise that DDP starts from; outputs are averaged over them
        tile        side, or (height, width), of the windows through which images are shown, which
                    bounds the memory of the device; 0 = whole images; None = as evaluated, but of
                    images of 16 times the trained pixels (1 megapixel at least), which the
                    evaluation does not resize, tiles of 512 pixels or the trained size
        stride      distance from tile to tile; None = 3/4 of the tile
        scales      factors by which images are enlarged; outputs are averaged over them
        flip        whether outputs are averaged over the image and its mirror image
        seed        of the noise, which is a function of the seed and the image
        round_to    sides are resized to multiples of it, so that many sizes share few compiled
                    programs; None = 1: the prediction is that of the evaluation
        batch_size  images of one size that share a batch; None = 1 for each CPU, 4 for each other
                    device

        Every new size compiles for some seconds; sizes that differ only by padding share a program
        if padding does not change the prediction (DDeP: to multiples of 16). If the evaluation of
        the run resizes images (`limit`, `short`), they are resized here too, before they are cut
        into tiles. Raises UserError for images and options that are not allowed.
        """
        options = PredictOptions(
            steps, samples, tile, stride, scales, flip, seed, round_to, batch_size
        )
        return concatenate(list(self.predict_named(named_images(images), options)))

    def predict_each(self, images, **options) -> Iterator[Prediction]:
        """The predictions of `predict`, one image at a time: for more images than fit in memory.

        images, options  as of `predict`
        """
        for name in options:
            require_known(name, PredictOptions.__annotations__, "option of a prediction")
        return self.predict_named(named_images(images), PredictOptions(**options))

    def require_predictions(self):
        """Raises UserError for a stage that predicts nothing of single images."""
        if self.task.predict is None:
            raise UserError(
                f"stage {self.meta['stage']} of {self.directory} knows no classes, so it cannot "
                "segment. Give the stage that was trained with labels. Its features can be read."
            )
        if self.output.refusal:
            raise self.output.refusal(self)

    @own_settings()
    def predict_named(
        self, named: Iterator[tuple[str, np.ndarray]], options: PredictOptions,
        keep: Collection[str] | None = None,
    ) -> Iterator[Prediction]:  # fmt: skip
        """The predictions for images u8[H,W,3] with names, one at a time, in order.

        keep  which of the signals and "probs" they hold, for large images; None: all

        Raises UserError for wrong options when it is called, not with the first prediction.
        """
        self.require_predictions()
        protocol_of_size = functools.partial(self.protocol_of_size, options, warn=_warn)
        protocol_of_size((1, 1))  # raises for wrong options
        batch_size = self.batch_size if options.batch_size is None else options.batch_size
        require_integer("batch_size", batch_size, 1, 2**16)
        program, task = self.compiled(options.steps, options.samples)
        program = functools.partial(program, seed=self.seed_for(options.seed))
        return self._predict_batches(
            named, program, task.stride, protocol_of_size, batch_size, keep
        )

    def _predict_batches(self, named, program, stride, protocol_of_size, batch_size, keep):
        for shape, group in itertools.groupby(named, key=lambda item: item[1].shape):
            first, protocol = True, protocol_of_size(shape[:2])
            while batch := list(itertools.islice(group, batch_size)):
                # The last of several batches is padded to share their program; a lone image is not.
                rows = 1 if first and len(batch) == 1 else batch_size
                files = self.task.files
                forward = make_forward(program, self.placed, self.mesh, rows, stride, files)
                names = [name for name, _ in batch] if files else ()
                first = False
                with _memory_errors():
                    shown = np.stack([image for _, image in batch])
                    known = self.known
                    maps = predict(
                        forward, shown, protocol, names, self.calibrator, known, keep,
                        self.output.decision,
                    )  # fmt: skip
                for row, (name, image) in enumerate(batch):
                    yield Prediction([name], [image], [maps[row]], self.labels, self.output)

    @property
    def labels(self) -> Labels:
        """The names and colours of the classes."""
        return Labels(self.names, self.palette)

    def seed_for(self, seed: int | None = None) -> np.int32:
        """The seed of the noise, None being the run's; UserError for one out of range."""
        seed = self.config.seed if seed is None else seed
        return np.int32(require_integer("seed", seed, 0, MAX_SEED))

    def protocol_for(self, options: PredictOptions) -> Protocol:
        """How images are shown with these options; UserError for wrong ones."""
        protocol = options.change(self.protocol)
        short, files = self.task.short, self.task.files
        if files and protocol != Protocol(limit=protocol.limit, short=protocol.short):
            raise UserError(
                f"this network reads features of whole images from {files.folder}. Leave tile, "
                "scales and flip out."
            )
        if short and options.scales is not None and protocol.scales != (1.0,):
            raise UserError(
                f"this network reads features of images that are resized to {short} pixels, which "
                "would undo every scale. Leave scales out; tiles show more detail."
            )
        return protocol

    def protocol_of_size(
        self, options: PredictOptions, size: tuple[int, int],
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> Protocol:  # fmt: skip
        """How images of a size (height, width) are shown with these options.

        warn  is called with a sentence where they are shown as nobody asked for

        Only sizes are changed that the evaluation does not bound, and only far above the trained
        one, where whole images would be strange to the network, and might not fit in memory.
        """
        protocol = self.protocol_for(options)
        most = max(LARGE * math.prod(self.crop), MIN_LARGE)
        shown = max(map(math.prod, protocol.sizes(size)))
        fixed = options.tile is not None or self.task.files or protocol.view is not View.WHOLE
        if fixed or any(protocol.limit) or protocol.short or shown <= most:
            return protocol
        name = f"images of {size[0]} x {size[1]}"
        if self.task.short:
            short = 4 * self.task.short
            warn(
                f"{name} are resized to a shorter side of {short}, since the network resizes "
                f"images to {self.task.short}; tile=0 leaves it to that"
            )
            return dataclasses.replace(protocol, short=short)
        tile = tuple(max(side, DEFAULT_SIDE) for side in self.crop)
        since = "since the size on which the network was trained is not known"
        if self.trained_size:
            since = f"since the network was trained on {self.crop[0]} x {self.crop[1]}"
        warn(
            f"{name} are predicted by tiles of {tile[0]} x {tile[1]}, {since}; tile=0 shows them "
            "whole"
        )
        return dataclasses.replace(options, tile=tile).change(self.protocol)

    @own_settings()
    def features(
        self, images, taps: str | Sequence[str], *, seed: int | None = None
    ) -> dict[str, np.ndarray]:
        """Features of the network for images of one size: {name: f32[B,h,w,C]}.

        images  as of `predict`
        taps    names from `taps`; of a diffusion model block@step, for any of its noise levels

        Images are padded to the stride of the network, and features are those of the padded images.
        Raises UserError for unknown names, and for images of several sizes.
        """
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        self._require_features()
        images = [image for _, image in named_images(images)]
        sizes = sorted({image.shape[:2] for image in images})
        if len(sizes) > 1:
            raise UserError(
                f"images are of {len(sizes)} sizes, {sizes[0]} and {sizes[1]} among them, but "
                "features come as one array. Ask for one size at a time."
            )
        key = "features", taps
        if key not in self._programs:
            self._programs[key] = jax.jit(functools.partial(self.task.features, taps=taps))
        valid = np.tile(np.array(sizes, np.int32), (len(images), 1))
        seed = self.seed_for(seed)
        found = self._programs[key](self.placed, np.stack(images), valid, seed=seed)
        return {name: np.asarray(found[name]) for name in taps}

    @functools.cached_property
    @own_settings()
    def taps(self) -> tuple[str, ...]:
        """Sorted names for `features`; of a diffusion model, at the steps that it uses."""
        self._require_features()
        image = jax.ShapeDtypeStruct((1, *TRACED_SIZE, 3), jnp.uint8)
        valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        return tuple(jax.eval_shape(self.task.features, self.network, image, valid))

    def _require_features(self):
        if self.task.features is None:
            raise UserError(
                f"{self.directory} has no network that computes features of single images: it is "
                "of classifiers that read colours, or reads several images at once."
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash of all parameters and statistics."""
        return hashlib.sha256(json.dumps(fingerprints(self.network)).encode()).hexdigest()[:12]

    @functools.cached_property
    @own_settings()
    def placed(self):
        """The network on the devices."""
        return place_tree(self.network, state_shardings(self.network, self.mesh))

    def compiled(self, steps: int | None = None, samples: int | None = None):
        """The compiled `Task.predict` with these numbers of steps and draws, and its task."""
        key = steps, samples
        if key not in self._programs:
            task = self.task if key == (None, None) else self.task_for(steps, samples)
            self._programs[key] = jax.jit(task.predict), task
        return self._programs[key]

    def forget_programs(self):
        """Frees the memory of all compiled programs; the next images of a size compile again."""
        for entry in self._programs.values():
            program = entry[0] if isinstance(entry, tuple) else entry
            program.clear_cache()
        self._programs.clear()


def _warn(sentence):
    warnings.warn(sentence, stacklevel=3)


def _as_float32(array):
    """An array of floating-point numbers as float32; other arrays unchanged."""
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


@contextlib.contextmanager
def _memory_errors():
    """`with _memory_errors(): ...` raises UserError when the memory of a device is full."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the memory of the device is full. Show images through tiles, such as tile=512, or use "
            "a smaller batch_size or dtype=bfloat16."
        ) from None
