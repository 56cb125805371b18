"""What one stage of a segmentation method does, as a plain value."""

import dataclasses
from collections.abc import Callable

from diffseg_jax.sources.map_files import MapFiles
from diffseg_jax.systems.pixel_fit import PixelFit


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of a method, as pure functions of {"params", "stats"} (nested dicts).

    init       key -> network, random and jit-able
    trainable  path of a parameter -> whether the stage trains it
    meta       JSON values that `System.adopt` and a reader of the checkpoint need

    one of these, by which a stage learns:

    loss       (params, stats, batch, key) -> summed loss, (weight, stats, summed metrics)
    balanced   weights of classes -> `loss` with them, where they follow from the labels; else None
    fit        an ensemble of pixel classifiers is fitted to features; `init` is then the network
               that computes the features, and `trainable` is unused

    and some of these, by which a stage is monitored:

    predict    (network, images u8[B,h,w,3], valid i32[B,2], seed=) -> class probabilities
               f32[B,h,w,K], or a dict of maps, see `inference.views.predict`; seed i32[] is that of
               the noise, if there is any, by default the config's
    measured   as `predict`, with further maps for the final numbers, as "baseline"; None: the same
    traced     as `predict`: (its result, cells after every reverse step), from one program; None
               where a prediction has no reverse steps
    trace      (those cells, images) -> labels after every reverse step, i32[B,T,h,w]
    denoise    (network, images, valid, key) -> clean, noisy, denoised f32[B,h,w,3] in [-1, 1],
               mean squared error f32[]
    sample     (network, seed, progress=) -> generated images u8[n,h,w,3]; not jit-able; `progress`
               wraps the iterable of its reverse steps; passes: images that it shows the network
    features   (network, images, valid, taps, seed=) -> {name: f32[B,h,w,C]} of those taps, of all
               taps for None; padding is not cropped

    stride     images may be padded to multiples of it without a change of the prediction
    short      pixels: the network resizes every image to this shorter side, so that other scales
               have no effect; 0 where it takes images at their size
    recorded   options of the prediction that stand beside its results, JSON values
    """

    init: Callable
    meta: dict
    trainable: Callable[[tuple[str, ...]], bool] = lambda path: True
    loss: Callable | None = None
    balanced: Callable[[tuple[float, ...]], Callable] | None = None
    fit: PixelFit | None = None
    predict: Callable | None = None
    measured: Callable | None = None
    traced: Callable | None = None
    trace: Callable | None = None
    denoise: Callable | None = None
    sample: Callable | None = None
    passes: int = 0
    features: Callable | None = None
    stride: int = 1
    short: int = 0
    recorded: dict = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> MapFiles | None:
        """The files whose maps `predict` takes after `valid`; None where there are none."""
        return self.fit.files if self.fit else None
