"""What a segmentation method provides, and what one of its stages does; both are plain values."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict as flatten

from diffseg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of a method, as pure functions of {"params", "stats"} (nested dicts).

    init       key -> network, random and jit-able
    trainable  path of a parameter -> whether the stage trains it
    meta       JSON values that `System.adopt` and a reader of the checkpoint need

    one of these, by which a stage learns:

    loss       (params, stats, batch, key) -> summed loss, (weight, stats, summed metrics)
    fit        a `pixel_ensemble.PixelFit`: an ensemble of pixel classifiers is fitted to features;
               `init` is then the network that computes the features, and `trainable` is unused

    and some of these, by which a stage is monitored:

    predict    (network, images u8[B,h,w,3], valid i32[B,2], seed=) -> class probabilities
               f32[B,h,w,K], or a dict of maps, see `inference.views.predict`; seed i32[] is that of
               the noise, if there is any, by default the config's
    trace      (network, images, valid) -> labels after every reverse step, i32[B,T,h,w]; None where
               a prediction has no reverse steps
    denoise    (network, images, valid, key) -> clean, noisy, denoised f32[B,h,w,3] in [-1, 1],
               mean squared error f32[]
    sample     (network, seed, count) -> generated images u8[count,h,w,3]; not jit-able
    features   (network, images, valid, taps, seed=) -> {name: f32[B,h,w,C]} of those taps, of all
               taps for None; padding is not cropped

    stride     images may be padded to multiples of it without a change of the prediction
    short      pixels: the network resizes every image to this shorter side, so that other scales
               have no effect; 0 where it takes images at their size
    """

    init: Callable
    meta: dict
    trainable: Callable[[tuple[str, ...]], bool] = lambda path: True
    loss: Callable | None = None
    fit: Any = None
    predict: Callable | None = None
    trace: Callable | None = None
    denoise: Callable | None = None
    sample: Callable | None = None
    features: Callable | None = None
    stride: int = 1
    short: int = 0


@dataclasses.dataclass(frozen=True)
class System:
    """A segmentation method; the defaults are what most methods need.

    stages         kind of stage -> "labelled" or "unlabelled", the data that it learns from
    make_task      (config, kind, crop (height, width), number of classes) -> Task
    adopt          (abstract, task, previous, meta) -> the arrays that a stage takes over from
                   another stage's network `previous`, whose `Task.meta` is `meta`; raises UserError
                   when the networks differ
    load_weights   (config, abstract, task) -> the arrays that the file config.weights gives a stage
    given_arrays   (config, kind, abstract) -> arrays from other files that replace random ones of a
                   fresh stage
    options        the options that its configs hold besides `config.options.COMMON`
    stage_options  kind of stage -> further options that a config with such a stage holds
    check          raises UserError for option values that do not go together
    start_of       (config, kind, start) -> "random", "weights", a stage's name or a directory
    skips          (config, kind) -> whether the config leaves out stages of this kind
    note           (config, kind, start) -> a sentence for the user before the stage runs, or ""
    with_steps     (config, reverse steps, draws of noise) -> a changed copy of the config; None
                   where predictions have no reverse steps
    convention     of the paper's numbers, see `metrics.segmentation.CONVENTIONS`
    """

    stages: Mapping[str, str]
    make_task: Callable[..., Task]
    adopt: Callable[..., dict]
    load_weights: Callable[..., dict]
    options: Mapping
    given_arrays: Callable[..., dict] = lambda config, kind, abstract: {}
    stage_options: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    check: Callable = lambda config: None
    start_of: Callable[..., str] = lambda config, kind, start: start
    skips: Callable[..., bool] = lambda config, kind: False
    note: Callable[..., str] = lambda config, kind, start: ""
    with_steps: Callable | None = None
    convention: str = "default"


def require_same_network(abstract: dict, taken: dict, may_lack: str = ""):
    """Raises UserError unless `taken` has the paths and shapes of `abstract`.

    may_lack  name below "params" that may be absent from what is taken
    """
    advice = 'Use the same model settings in both, or start from "random".'
    flat, expected = flatten(taken), flatten(abstract)
    extra = [path for path in flat if path not in expected]
    if extra:
        raise UserError(
            f"the stage to start from has another network: this stage has no {'.'.join(extra[0])} "
            f"({len(extra)} such arrays). {advice}"
        )
    for path, leaf in expected.items():
        if path[1] == may_lack and path not in flat:
            continue
        if path not in flat or flat[path].shape != leaf.shape:
            found = flat[path].shape if path in flat else "missing"
            raise UserError(
                f"the stage to start from has another network: {'.'.join(path)} is {found} "
                f"there and {leaf.shape} here. {advice}"
            )
