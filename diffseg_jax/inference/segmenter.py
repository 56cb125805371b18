"""A trained network, opened for use: pictures in; labels, probabilities and uncertainty out.

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
import os
from collections.abc import Iterator, Sequence
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.devices.mesh import find_devices, local_mesh, place_tree, state_shardings
from diffseg_jax.errors import UserError, choose
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.images import named_pictures
from diffseg_jax.inference.locate import chosen_step, find
from diffseg_jax.inference.prediction import Answer, Prediction
from diffseg_jax.inference.views import Protocol, View, predict, protocol_of
from diffseg_jax.storage.checkpoints import Damaged, fingerprints, open_network
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.system import Task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SMALLEST_TILE = 32  # pixels; the largest stride of an encoder
OVERLAP = 0.25  # of a tile with its neighbours, where no stride is given
SEEDS = 2**31 - 1  # the largest
SEEN = (64, 64)  # size of the pictures by which features are listed


def load(
    path: str | os.PathLike, *, stage: str | None = None, step: int | None = None,
    ema: float | str | None = None, dtype: str | None = None, device: str | None = None,
) -> "Segmenter":  # fmt: skip
    """Opens a trained network for use.

    path    a workdir; the directory of a stage, <workdir>/checkpoints/<stage>; one that `convert`
            wrote; gs://bucket/...; hf://user/repository[/folder][@revision]; or "scenes", a small
            model in the package
    stage   of a workdir; None = the one with the best mIoU in results.json, or without results the
            last one that can segment
    step    of the stage; None = the last, or the best where the config says so
    ema     rate of the moving average to take, "off" for the parameters; None = the first kept
    dtype   of the computation, "float32" or "bfloat16"; None = as trained
    device  "cpu", "cuda", "gpu" or "tpu", all of them that this process sees; None = jax's choice

    Raises UserError when nothing is there, for what is not, and for checkpoints of newer versions.
    """
    find_devices(device)
    directory = find(path, stage)
    step = chosen_step(directory, step)
    try:
        network, meta = open_network(directory, step, ema)
    except Damaged as error:
        raise UserError(f"{error}. Copy or make it again, or give another step.") from None
    return Segmenter(directory, network, meta, dtype, device)


class Segmenter:
    """A trained network ready to answer; made by `load`.

    system     "ddpm_seg", "ddp" or "ddep"
    names      K class names;  palette  K colours (r, g, b) in 0..255
    meta       what stands beside the checkpoint: config, task, classes, version, ...
    directory  of the stage;  step  of the checkpoint
    network    {"params", "stats"}: nested dicts of numpy arrays
    protocol   how pictures are shown where `predict` is not told: as the run evaluated
    config     that of the run, with this dtype
    mesh       the devices, which share a batch
    """

    def __init__(self, directory, network: dict, meta: dict, dtype=None, device=None):
        config = _with_tuples(meta["config"])
        if "model" not in config:
            raise UserError(
                f"{directory} was converted by an older version, which did not say enough of the "
                "network. Convert the file again."
            )
        if dtype is not None:
            choose(DTYPES, dtype, "dtype")
            config["dtype"] = dtype
        self.config, self.meta, self.directory = ConfigDict(config), meta, directory
        self.step = meta["step"]
        self.system = self.config.system
        self.names = tuple(meta.get("classes", ()))
        given = meta.get("palette") or distinct_colours(len(self.names))
        self.palette = tuple(tuple(colour) for colour in given)
        self.network = jax.tree.map(_as_float32, network)
        self.mesh = local_mesh(device)
        asked = self.config.get("evaluate")
        self.protocol = Protocol() if asked is None else protocol_of(asked)
        self.task = self.task_for()
        self._programs = {}

    def __repr__(self):
        count = sum(leaf.size for leaf in jax.tree.leaves(self.network["params"]))
        return (
            f"Segmenter({self.system}, {len(self.names)} classes, {count:,} parameters, step "
            f"{self.step} of {self.directory})"
        )

    def task_for(self, steps: int | None = None, samples: int | None = None) -> Task:
        """The system's task, with so many reverse steps and draws of noise in place of the run's.

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
                require_whole(key, value, 1, maximum)
        if system.with_steps:
            config = system.with_steps(config, steps, samples)
        stage = config.get("stages", {}).get(self.meta["stage"])
        crop = stage.augment.crop if stage else self.meta["task"].get("size", SEEN)
        classes = len(self.names) or config.model.get("num_classes", 0)
        kind = self.meta["task"]["kind"]
        return system.make_task(config, kind, tuple(crop), classes)

    def predict(
        self, images, *, steps: int | None = None, samples: int | None = None,
        tile: int | tuple[int, int] | None = None, stride: int | tuple[int, int] | None = None,
        scales: Sequence[float] | None = None, flip: bool | None = None, seed: int | None = None,
        round_to: int | None = None, batch_size: int | None = None,
    ) -> Prediction:  # fmt: skip
        """Labels, probabilities and uncertainty of pictures of any size.

        images      uint8[H,W,3] or uint8[B,H,W,3], a PIL image, a path of a picture or of a folder,
                    or a sequence of those, sizes mixed
        steps       reverse steps of DDP; None = as the run was evaluated, as for all that follow
        samples     of the noise that DDP starts from, averaged
        tile        side, or (height, width), of the windows through which pictures are shown, which
                    bounds the memory of the device; 0 = whole pictures
        stride      from tile to tile; None = 3/4 of the tile
        scales      factors by which pictures are shown larger or smaller, averaged
        flip        whether the mirror image is shown too
        seed        of the noise, which is a function of it and of the picture
        round_to    sides are brought to multiples of it by resizing, so that many sizes share few
                    compiled programs; None = 1: answers are those of the evaluation
        batch_size  pictures of one size that are shown together; None = 1 for each CPU, 4 for each
                    other device

        Every new size of pictures compiles for some seconds; up to padding where that changes no
        answer (DDeP: to multiples of 16). Where the run's evaluation brought pictures to a size of
        its own (`limit`, `short`), so it is here, before they are cut into tiles. Raises UserError
        for pictures and options that cannot be.
        """
        answers = self.answers(
            named_pictures(images), steps=steps, samples=samples, tile=tile, stride=stride,
            scales=scales, flip=flip, seed=seed, round_to=round_to, batch_size=batch_size,
        )  # fmt: skip
        return Prediction(list(answers), self.labels)

    def predict_each(self, images, **options) -> Iterator[Prediction]:
        """The same one picture at a time, in order: for more than the memory holds.

        images, options  as of `predict`
        """
        answers = self.answers(named_pictures(images), **options)
        return (Prediction([answer], self.labels) for answer in answers)

    @property
    def labels(self) -> Labels:
        """The names and colours of the classes."""
        return Labels(self.names, self.palette)

    def answers(
        self, pictures: Iterator[tuple[str, np.ndarray]], *, steps: int | None = None,
        samples: int | None = None, tile: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None, scales: Sequence[float] | None = None,
        flip: bool | None = None, seed: int | None = None, round_to: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Answer]:  # fmt: skip
        """The answers for named pictures u8[H,W,3], in their order; options of `predict`."""
        if self.task.predict is None:
            raise UserError(
                f"stage {self.meta['stage']} of {self.directory} knows no classes, so it cannot "
                "segment. Give the stage that was trained with labels. Its features can be read."
            )
        protocol = self.protocol_for(tile, stride, scales, flip, round_to)
        if batch_size is None:
            on_cpu = self.mesh.devices.flat[0].platform == "cpu"
            batch_size = self.mesh.size * (1 if on_cpu else 4)
        require_whole("batch_size", batch_size, 1, 2**16)
        program, task = self._program(steps, samples)
        program = functools.partial(program, seed=self.seed_for(seed))
        return self._answers(pictures, program, task.stride, protocol, batch_size)

    def _answers(self, pictures, program, stride, protocol, batch_size):
        size_of = lambda named: named[1].shape
        for _, group in itertools.groupby(pictures, key=size_of):
            first = True
            while batch := list(itertools.islice(group, batch_size)):
                # the last batch of many is filled up, so as to compile once; a lone picture is not
                filled = 1 if first and len(batch) == 1 else batch_size
                forward = make_forward(program, self._placed, self.mesh, filled, stride)
                first = False
                images = np.stack([image for _, image in batch])
                with _room_on_devices():
                    maps = predict(forward, images, protocol)
                for row, (name, image) in enumerate(batch):
                    yield Answer(
                        name, image, maps.labels[row], maps.probs[row], maps.uncertainty[row],
                        {word: values[row] for word, values in maps.uncertainties.items()},
                    )  # fmt: skip

    def seed_for(self, seed: int | None = None) -> np.int32:
        """The seed of the noise, None being the run's; UserError for what is none."""
        return np.int32(require_whole("seed", self.config.seed if seed is None else seed, 0, SEEDS))

    def protocol_for(
        self, tile=None, stride=None, scales=None, flip=None, round_to=None
    ) -> Protocol:
        """How pictures are shown with these options of `predict`; UserError for wrong ones."""
        changes = {}
        if scales is not None:
            changes["scales"] = _checked_scales(scales)
        if flip is not None:
            changes["flip"] = bool(flip)
        if round_to is not None:
            changes["multiple"] = require_whole("round_to", round_to, 1, 4096)
        if tile is not None and (np.array_equal(tile, 0) or np.array_equal(tile, (0, 0))):
            changes["view"] = View.WHOLE
        elif tile is not None:
            changes |= {"view": View.SLIDE, **_windows(tile, stride)}
        if stride is not None and "window" not in changes:
            raise UserError(f"stride is {stride}, but no tile is given. Add a tile, such as 512.")
        short = self.task.short
        if short and changes.get("scales", (1.0,)) != (1.0,):
            raise UserError(
                f"this network reads features of pictures that are brought to {short} pixels, to "
                "which every scale would be brought back. Leave scales out; tiles show more detail."
            )
        return dataclasses.replace(self.protocol, **changes)

    def features(
        self, images, taps: str | Sequence[str], *, seed: int | None = None
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """What parts of the network answer to pictures of one size: {name: f32[B,h,w,C]}.

        images  as of `predict`
        taps    names from `taps`; of a diffusion model block@step, for any of its noise levels

        Pictures come as the network takes them, filled up to its stride; that filling is not cut
        off. Raises UserError for unknown names, and for pictures of several sizes.
        """
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        self._require_features()
        pictures = [image for _, image in named_pictures(images)]
        sizes = sorted({image.shape[:2] for image in pictures})
        if len(sizes) > 1:
            raise UserError(
                f"pictures are of {len(sizes)} sizes, {sizes[0]} and {sizes[1]} among them, but "
                "features come as one array. Ask for one size at a time."
            )
        key = "features", taps
        if key not in self._programs:
            self._programs[key] = jax.jit(functools.partial(self.task.features, taps=taps))
        valid = np.tile(np.array(sizes, np.int32), (len(pictures), 1))
        seed = self.seed_for(seed)
        found = self._programs[key](self._placed, np.stack(pictures), valid, seed=seed)
        return {name: np.asarray(found[name]) for name in taps}

    @functools.cached_property
    def taps(self) -> tuple[str, ...]:
        """Sorted names that `features` knows; of a diffusion model, at the steps that it uses."""
        self._require_features()
        picture = jax.ShapeDtypeStruct((1, *SEEN, 3), jnp.uint8)
        valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        return tuple(jax.eval_shape(self.task.features, self.network, picture, valid))

    def _require_features(self):
        if self.task.features is None:
            raise UserError("these classifiers read colours, so there is no network with features.")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve digits that stand for all its parameters and statistics."""
        return hashlib.sha256(json.dumps(fingerprints(self.network)).encode()).hexdigest()[:12]

    @functools.cached_property
    def _placed(self):
        """The network on the devices."""
        return place_tree(self.network, state_shardings(self.network, self.mesh))

    def _program(self, steps, samples):
        """The compiled answer with so many steps and draws, and the task that it is of."""
        key = steps, samples
        if key not in self._programs:
            task = self.task if key == (None, None) else self.task_for(steps, samples)
            self._programs[key] = jax.jit(task.predict), task
        return self._programs[key]


def _windows(tile, stride):
    """Window and stride of a protocol for the options of a user."""
    window = _pair("tile", tile, SMALLEST_TILE)
    steps = tuple(int((1 - OVERLAP) * side) for side in window)
    steps = steps if stride is None else _pair("stride", stride, 1)
    if any(step > side for step, side in zip(steps, window, strict=True)):
        raise UserError(
            f"the tile {window} is smaller than the stride {steps}, so that tiles would leave "
            "gaps. Leave the stride out, or make it smaller than the tile."
        )
    return {"window": window, "stride": steps}


def _pair(name, value, least):
    """(height, width) of a side or of two; UserError for anything else."""
    sides = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value, value)
    if len(sides) != 2 or not all(isinstance(s, Integral) and s >= least for s in sides):
        raise UserError(
            f"{name} is {value}, but must be a side, or height and width, of {least} pixels or "
            f"more. Try {name}=512."
        )
    return tuple(map(int, sides))


def _checked_scales(scales):
    scales = tuple(scales) if isinstance(scales, Sequence | np.ndarray) else (scales,)
    if not scales or not all(isinstance(s, Real) and 0.01 <= s <= 100 for s in scales):
        raise UserError(f"scales is {scales}, but must hold factors, such as (0.75, 1.0, 1.25).")
    return scales


def require_whole(word: str, value, least: int, most: int) -> int:
    """The value of an option; UserError unless it is a whole number in that range."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        raise UserError(f"{word} is {value}, but must be a whole number from {least} to {most}.")
    return int(value)


def _with_tuples(values):
    """JSON values with tuples in place of lists, as configs have them."""
    if isinstance(values, dict):
        return {name: _with_tuples(value) for name, value in values.items()}
    return tuple(_with_tuples(value) for value in values) if isinstance(values, list) else values


def _as_float32(array):
    """Parameters that were stored in fewer bits; whole numbers stay."""
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


@contextlib.contextmanager
def _room_on_devices():
    """`with`: what a device has no memory for is a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the memory of the device is full. Show pictures through tiles, such as tile=512, or "
            "take a smaller batch_size, or dtype=bfloat16."
        ) from None
