"""DDPM-Seg in a config: its options and checks, where a stage starts, and foreign weights."""

import numpy as np

from diffseg_jax.config.options import FIT
from diffseg_jax.config.schema import Flag, Number, Optional, Several, Text
from diffseg_jax.data.npy import read_npy
from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.bounds import LOSSES
from diffseg_jax.diffusion.process import TARGETS, VARIANCES, make_process
from diffseg_jax.diffusion.schedules import BETAS
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import ADMSettings
from diffseg_jax.systems.ddpm_sampling import SAMPLERS
from diffseg_jax.systems.ddpm_seg import make_settings, make_task
from diffseg_jax.systems.pixel_fit import RECIPES
from diffseg_jax.systems.system import System, TapGrid, require_same_network
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.adm import ORDERS, load_adm
from diffseg_jax.weights.formats import read_arrays

# ---- where a stage starts ----------------------------------------------------------------------


def given_arrays(config, kind: str, abstract: dict) -> dict:
    """The noise of a file for a fit, if the config names one."""
    if kind != FIT or not config.features.noise_file:
        return {}
    shape = abstract["stats"]["noise"].shape
    return {"stats": {"noise": read_noise(config.features.noise_file, shape)}}


def read_noise(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The noise f32[draws, h, w, 3] of a .npy file, as PyTorch ([draws, 3, h, w]) or as here.

    The first axis may be missing for a single draw. Raises UserError for a file without such an
    array.
    """
    noise = read_npy(path, "features.noise_file")
    noise = noise[None] if noise.ndim == 3 else noise
    if noise.ndim == 4 and noise.shape[-1] != 3:
        noise = np.moveaxis(noise, 1, -1)
    if noise.shape != shape or noise.dtype.kind != "f":
        raise UserError(
            f"features.noise_file {path} holds {noise.dtype}{list(noise.shape)}, but the network "
            f"sees images with noise float32{list(shape)}. Save an array of that shape and dtype."
        )
    if not np.isfinite(noise).all():
        raise UserError(f"features.noise_file {path} holds NaN or infinity. Save it again.")
    return noise.astype(np.float32)


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """The arrays that a stage takes over from another one: the parameters.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`
    Raises UserError when the networks differ; for a fit, also when settings or noise levels differ
    that do not show in the arrays.
    """
    here = task.meta
    for part, keys in (("model", sorted(here["model"])), ("diffusion", PROCESS_KEYS)):
        for key in keys:
            mine, theirs = here[part][key], meta[part][key]
            if task.fit and key != "dropout" and _listed(mine) != _listed(theirs):
                raise UserError(
                    f"{part}.{key} is {mine}, but the network to start from was trained with "
                    f"{theirs}. Try --config.{part}.{key}={theirs}."
                )
    unet = previous["params"].get("unet", previous["params"])
    taken = {"params": {"unet": unet} if task.fit else unet}
    require_same_network({"params": abstract["params"]}, taken)
    return taken


PROCESS_KEYS = ("schedule", "steps", "rescale_timesteps")  # features depend on these


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def load_weights(config, abstract: dict, task: Task) -> dict:
    """All parameters, from the official guided-diffusion checkpoint config.weights.

    Raises UserError for arrays that are missing, extra or of another shape.
    """
    arrays = read_arrays(config.weights, config.get("weights_part", ""))
    settings = make_settings(task.meta["model"])
    unet = load_adm(arrays, settings, config.weights_order, config.weights)
    return {"params": {"unet": unet} if task.fit else unet}


# ---- choosing features -------------------------------------------------------------------------


SHARES = (0.0, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6)  # of the diffusion's steps


def tap_grid(config) -> TapGrid | None:
    """All blocks, at the steps of the config and at those of SHARES; None for colour features."""
    if config.features.source != "network":
        return None
    settings = make_settings(config.model)
    widths = [width for width in reversed(settings.widths) for _ in range(settings.res_blocks + 1)]
    steps = {int(share * config.diffusion.steps) for share in SHARES}
    changed = config.copy_and_resolve_references()
    changed.features.steps = (0,)  # one step at a time takes less memory
    changed.features.blocks = tuple(range(len(widths)))
    return TapGrid(tuple(sorted(steps | set(config.features.steps))), tuple(widths), changed)


# ---- options and checks ------------------------------------------------------------------------


OPTIONS = {
    "weights": Text(),
    "weights_part": Optional(Text()),
    "weights_order": Text(ORDERS),
    "model": {
        "channels": Number(int, 32, 8192),
        "channel_mult": Several(Number(float, 0.1, 64), minimum=1, maximum=10),
        "res_blocks": Number(int, 1, 16),
        "attention_factors": Several(Number(int, 1)),
        "heads": Number(int, 1, 1024),
        "heads_up": Number(int, -1, 1024),
        "head_channels": Number(int, -1, 16384),
        "resample_in_blocks": Flag(),
        "scale_shift": Flag(),
        "num_classes": Number(int, 0, 2**20),
        "learn_sigma": Flag(),
        "dropout": Number(float, 0, 0.99),
    },
    "diffusion": {
        "schedule": Text(tuple(BETAS)),
        "steps": Number(int, 1, 100_000),
        "rescale_timesteps": Flag(),
        "target": Text(TARGETS),
        "variance": Text(VARIANCES),
        "loss": Text(LOSSES),
        "timesteps": Text(timesteps.TIMESTEP_SAMPLERS),
    },
}
STAGE_OPTIONS = {  # kind of stage -> further options of a config with such a stage
    "pretrain": {
        "samples": {
            "images": Number(int, 1, 64),
            "sampler": Text(SAMPLERS),
            "steps": Text(),
            "eta": Number(float, 0, 1),
        },
    },
    FIT: {
        "features": {
            "source": Text(("network", "colour")),
            "steps": Several(Number(int, 0), minimum=1),
            "blocks": Several(Number(int, 0), minimum=1),
            "short": Number(int, 0, 16384),
            "share_noise": Flag(),
            "noise_file": Text(),
            "draws": Number(int, 1, 256),
            "dtype": Text(("float16", "float32")),
            "place": Text(("device", "host")),
        },
        "ensemble": {
            "recipe": Text(tuple(RECIPES)),
            "members": Number(int, 1, 1000),
            "widths": Several(Number(int, 1, 16384)),  # none, or two
            "small_objects": Number(int, 0),
            "classifiers": Text(),
        },
    },
}


def check(config):
    """Raises UserError for option values that do not go together."""
    settings, diffusion = make_settings(config.model), config.diffusion
    if problem := settings.problem():
        raise UserError(f"model: {problem}")
    if settings.learn_sigma != (diffusion.variance == "learned"):
        expected = "learned" if settings.learn_sigma else "fixed_large"
        raise UserError(
            f"model.learn_sigma is {settings.learn_sigma}, which does not go with "
            f"diffusion.variance {diffusion.variance}. Try --config.diffusion.variance={expected}."
        )
    if diffusion.loss.startswith("hybrid") and not settings.learn_sigma:
        raise UserError(
            f"diffusion.loss is {diffusion.loss}, which trains a learned variance, but "
            "model.learn_sigma is False. Try --config.diffusion.loss=simple."
        )
    if "samples" in config:
        make_process(diffusion.schedule, diffusion.steps, config.samples.steps)
    if "samples" in config and config.samples.eta and config.samples.sampler == "ddpm":
        raise UserError(
            f"samples.eta is {config.samples.eta}, which only ddim reads. "
            "Try --config.samples.sampler=ddim."
        )
    if "features" in config:
        check_features(config, settings)
    for name in config.run:
        stage = config.stages[name]
        if stage.start == "weights" and not config.weights:
            raise UserError(
                f"stages.{name}.start is weights, but no file is given. "
                "Try --config.weights=lsun_bedroom.pt."
            )
        if stage.kind == FIT:
            continue
        square = config.unlabelled.options.get("square", 0)
        check_size(tuple(stage.augment.crop), settings, f"stages.{name}.augment.crop")
        if square and max(stage.augment.crop) > square:
            raise UserError(
                f"stages.{name}.augment.crop is {tuple(stage.augment.crop)}, but the images are "
                f"squares of {square}; the difference would be padding. "
                f"Try --config.unlabelled.options.square={max(stage.augment.crop)}."
            )


def check_features(config, settings: ADMSettings):
    """Raises UserError for features that the network does not have, and options that conflict."""
    features, ensemble = config.features, config.ensemble
    starts = {config.stages[name].start for name in config.run if config.stages[name].kind == FIT}
    widened = [scale for scale in config.evaluate.scales if scale != 1]
    rules = (
        (
            len(ensemble.widths) not in (0, 2),
            f"ensemble.widths is {tuple(ensemble.widths)}, but a classifier has two hidden layers. "
            "Try (128, 32), or () for the paper's.",
        ),
        (
            features.noise_file and not features.share_noise,
            "features.noise_file is given, but features.share_noise=False reads no file. "
            "Try --config.features.share_noise=True.",
        ),
        (
            features.source == "colour" and starts - {"random"},
            "features.source is colour, which has no network to start from. "
            "Try --config.stages.fit.start=random.",
        ),
        (
            features.short and (widened or config.evaluate.view != "whole"),
            f"features.short is {features.short}, to which every window and scale would be brought "
            'back. Use evaluate.view="whole" and scales=(1.0,), or features.short=0.',
        ),
        (
            settings.num_classes,
            f"model.num_classes is {settings.num_classes}, but features are read from networks "
            "without classes, such as lsun_bedroom.",
        ),
    )
    for wrong, sentence in rules:
        if wrong:
            raise UserError(sentence)
    if features.source == "network":
        check_taps(features, settings, config.diffusion.steps)


def check_taps(features, settings: ADMSettings, steps: int):
    """Raises UserError for blocks and steps that the network and its diffusion do not have."""
    blocks = settings.levels * (settings.res_blocks + 1)
    given = ("block", features.blocks, blocks), ("step", features.steps, steps)
    for what, values, count in given:
        for index, value in enumerate(values):
            if value >= count:
                raise UserError(
                    f"features.{what}s holds {value}, but this network has the {what}s 0 to "
                    f"{count - 1}. Rank them with --mode=taps."
                )
            if value in values[:index]:
                raise UserError(f"features.{what}s holds {value} twice. Give each {what} once.")


def check_size(size: tuple[int, int], settings: ADMSettings, what: str):
    """Raises UserError unless height and width are multiples of the network's stride."""
    stride = settings.stride
    if len(size) != 2:
        raise UserError(
            f"{what} is {tuple(size)}, but it is a height and a width. Try --size=64,64."
        )
    if any(side < 1 or side % stride for side in size):
        near = tuple(max(stride, round(side / stride) * stride) for side in size)
        raise UserError(
            f"{what} is {tuple(size)}, but a network of {settings.levels} levels makes images "
            f"whose sides are multiples of {stride}. Try {near}."
        )


def note(config, kind: str, start: str) -> str:
    """A sentence for the user before a stage with that `start` runs, or an empty string."""
    published = kind == FIT and config.ensemble.classifiers
    if published and config.features.source == "network" and not config.features.noise_file:
        return (
            "without --config.features.noise_file the noise is drawn here and differs from the one "
            "that the published classifiers were trained with"
        )
    return ""


DDPM_SEG = System(
    stages={"pretrain": "unlabelled", FIT: "labelled"},
    make_task=make_task,
    adopt=adopt,
    load_weights=load_weights,
    given_arrays=given_arrays,
    options=OPTIONS,
    stage_options=STAGE_OPTIONS,
    check=check,
    note=note,
    tap_grid=tap_grid,
    convention="ddpm_seg",
)
