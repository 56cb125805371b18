"""What maps of a task are to DDP, as a plain value: how they are coded, learned and followed."""

import dataclasses
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class DenseTask:
    """A task of dense prediction, as the functions that DDP's losses and sampler are handed.

    Shapes: B images, R draws of noise, T steps, h, w cells of a map, n channels of its codes, E of
    features. `model` is the module that `network` makes, a `models.dense_network.DenseNetwork`;
    `images` are what its encoder takes, for most tasks u8[B,H,W,3]; `output` is what `model.decode`
    returns, f32[...,h,w,C].

    the network:

    described      what it is, for people
    settings       (config, number of classes) -> its settings, with `problem()`
    settings_of    `Task.meta` -> the same settings
    network        (settings, kind of stage, dtype, remat) -> Network
    meta           (config, kind, settings, crop) -> entries of `Task.meta` that only this task has
    options        a setting that a checkpoint to start from must share -> its option in a config
    adjustable     names in `options` that a stage of kind train may change

    images and noise:

    images_of      batch -> (images, valid)
    encode         (model, images, valid, keys or None) -> features f[B,h,w,E], named features
    named          whether single images have features that can be asked for by name
    padded         images -> the same, at least as large as the encoder needs
    keys           (images, seed) -> a key per image, for noise that is a function of the image
    level          (name of a schedule, t, xp) -> the noise level of times f32[...], arrays
    weights        level -> alpha, sigma: a noisy map is alpha * code + sigma * noise
    announced      (t, level) -> f32[...], what the network is told of the level

    learning:

    code_of_truth  (model, batch, size (h, w)) -> codes f32[B,h,w,n], to which noise is added
    code_of_output (model, output f32[B,h,w,C]) -> codes f32[B,h,w,n]
    loss           (model, features, output, batch, keys of dropout, config.diffusion, **kw) ->
                   summed loss, weight, summed metrics; kw: what `losses` binds
    losses         (config, number of classes, loss) -> the fields "loss" and "balanced" of a Task
    plain          (network, config, number of classes, meta) -> the Task of `ddp.UNNOISED` stages;
                   None where there are none

    predicting:

    projected      model -> (output f32[B,R,h,w,C] -> (decided, projected codes f32[B,R,h,w,E]))
    start          (model, (B, R, h, w)) -> what is followed over the steps, before the first
    follow         (followed, output, decided, number of the step, config.sampling) -> (followed,
                   what is shown of the step, of the first draw)
    finish         (model, followed, shown [T,B,...], config.sampling) -> dict of maps of cells, and
                   "shown"
    describe       (features, images, valid) -> further maps, such as "descriptor"
    maps           (dict of maps of cells, padded images, images, config.sampling) -> maps of images
    trace          (shown [B,T,h,w], padded images, images) -> maps of images [B,T,H,W]
    """

    name: str
    described: str
    settings: Callable
    settings_of: Callable
    network: Callable
    meta: Callable
    options: Mapping[str, str]
    images_of: Callable
    encode: Callable
    padded: Callable
    keys: Callable
    level: Callable
    weights: Callable
    announced: Callable
    code_of_truth: Callable
    code_of_output: Callable
    loss: Callable
    losses: Callable
    projected: Callable
    start: Callable
    follow: Callable
    finish: Callable
    describe: Callable
    maps: Callable
    trace: Callable
    adjustable: tuple[str, ...] = ()
    plain: Callable | None = None
    named: bool = True


def settings_of_meta(kind: type, meta: dict):
    """The settings of a network, a dataclass of that kind, in the metadata of a checkpoint."""
    as_tuple = lambda x: tuple(map(as_tuple, x)) if isinstance(x, list | tuple) else x  # of JSON
    return kind(**{name: as_tuple(value) for name, value in meta["model"].items()})
