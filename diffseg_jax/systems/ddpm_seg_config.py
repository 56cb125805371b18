"""DDPM-Seg in a config: where a stage starts, foreign weights, and options but for the features."""

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
from diffseg_jax.models.mae import MAESettings
from diffseg_jax.sources.diffusion import make_settings
from diffseg_jax.systems.clean import clean_blocks, clean_task
from diffseg_jax.systems.clean_config import (
    CLEAN_OPTIONS,
    check_clean_options,
    check_clean_starts,
    require_unet,
    student_and_teacher,
    unets_in,
)
from diffseg_jax.systems.ddpm_sampling import SAMPLERS
from diffseg_jax.systems.ddpm_seg import pretrain_task
from diffseg_jax.systems.feature_sources import (
    FROM_FILES,
    FROM_STAGES,
    MAE_OF_START,
    from_start,
    source_entries,
    source_names,
)
from diffseg_jax.systems.few_labels import features_task, fit_task
from diffseg_jax.systems.few_labels_config import FIT_OPTIONS, check_features, check_numbers
from diffseg_jax.systems.mae import mae_task
from diffseg_jax.systems.mae_config import (
    MAE_EXAMPLE,
    MAE_OPTIONS,
    adopt_mae,
    check_mae_stage,
    check_mae_starts,
    mae_weights,
    start_sizes,
)
from diffseg_jax.systems.source_files import (
    RANDOM,
    file_of_source,
    load_source,
    source_sizes,
    table_note,
)
from diffseg_jax.systems.system import (
    System,
    TapGrid,
    enlarging,
    require_same_network,
    weights_of,
)
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.adm import ORDERS, load_adm
from diffseg_jax.weights.formats import read_arrays

TASKS = {
    "pretrain": pretrain_task, "clean": clean_task, "mae": mae_task, FIT: fit_task,
    "features": features_task,
}  # fmt: skip


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of a stage.

    config       reads dtype, remat, and model, diffusion, samples, or features and ensemble; sizes
                 of networks that files give must be in it (`complete`)
    kind         a key of TASKS; "features" is that of a converted network, and no stage
    crop         (height, width) of training images and of samples
    num_classes  of the images, 0 if they have none; of their pixels for a fit
    """
    return TASKS[kind](config, kind, crop, num_classes)


# ---- where a stage starts ----------------------------------------------------------------------


def complete(config, kept):
    """The config with the sizes of networks that files give, in features.networks.

    kept  stage -> `Task.meta` of its checkpoint, {} without one; its sizes need no file
    Raises UserError for files that are missing or hold another network.
    """
    fits = [name for name in config.run if config.stages[name].kind == FIT]
    frozen = [e for e in source_entries(config.features) if e.name in FROM_FILES] if fits else []
    if not frozen:
        return config
    known = kept(fits[0]).get("features", {}).get("networks", {})

    def sizes(entry):
        if entry.name in known:
            return known[entry.name]
        return start_sizes(config, fits[0], kept) if from_start(entry) else source_sizes(entry)

    networks = {entry.name: sizes(entry) for entry in frozen}
    completed = config.copy_and_resolve_references()
    with completed.unlocked():
        completed.features.networks = networks
    return completed


def files(config, kind: str, start: str) -> list:
    """As of `System.files`: of a stage's network and, of a fit, of its feature sources."""
    if kind != FIT:
        return weights_of(config, start)
    entries = source_entries(config.features)
    given = [entry for entry in entries if entry.name in FROM_FILES and not from_start(entry)]
    found = [file_of_source(entry) for entry in given if entry.file != RANDOM]
    return found + (weights_of(config, start) if any(map(from_start, entries)) else [])


def given_arrays(config, kind: str, abstract: dict) -> dict:
    """What files give a fit: the networks of its sources, and the noise if the config names one."""
    if kind != FIT:
        return {}
    features, arrays = config.features, {"params": {}, "stats": {}}
    for entry in source_entries(features):
        if entry.name in FROM_FILES and not from_start(entry):
            found = load_source(entry, features.networks[entry.name].to_dict())
            for part in found:
                arrays[part] |= found[part]
    if features.get("noise_file"):
        shape = abstract["stats"]["noise"].shape
        arrays["stats"]["noise"] = read_noise(features.noise_file, shape)
    return arrays


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
    """The arrays that a stage takes over from another one: the parameters of its networks.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`
    Raises UserError when the networks differ; but for pretraining, also when settings or noise
    levels differ that do not show in the arrays.
    """
    here = task.meta
    sources = source_entries(here["features"]) if task.fit else []
    if here["kind"] == "mae" or MAE_OF_START in sources:
        return adopt_mae(abstract, task, previous, meta)
    if "model" not in here:
        raise UserError(
            f"features.sources is {here['features']['sources']}, none of which starts from a "
            "stage. Try --config.stages.fit.start=weights."
        )
    if "model" not in meta or "diffusion" not in meta:
        raise UserError(
            "the stage to start from holds no diffusion model. Give one whose kind is pretrain."
        )
    for part, keys in (("model", sorted(here["model"])), ("diffusion", PROCESS_KEYS)):
        for key in keys:
            mine, theirs = here[part][key], meta[part][key]
            other = key != "dropout" and _listed(mine) != _listed(theirs)
            if here["kind"] != "pretrain" and other:
                raise UserError(
                    f"{part}.{key} is {mine}, but the network to start from was trained with "
                    f"{theirs}. Try --config.{part}.{key}={theirs}."
                )
    found = unets_in(previous["params"], meta["kind"])
    wanted = [name for name in ("unet", "clean") if name in abstract["params"]] or ["unet"]
    for name in wanted:
        require_unet(name, found, here, meta)
    taken = {name: found[name] for name in wanted} if task.fit else _placed(found["unet"], here)
    parts = abstract["params"] if here["kind"] == "pretrain" else taken
    expected = {name: abstract["params"][name] for name in parts}
    require_same_network({"params": expected}, {"params": taken})
    return {"params": taken}


def _placed(unet, here):
    """Where a stage that is no fit, with `Task.meta` here, has the parameters of a network."""
    return student_and_teacher(unet) if here["kind"] == "clean" else unet


PROCESS_KEYS = ("schedule", "steps", "rescale_timesteps")  # features depend on these


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def load_weights(config, abstract: dict, task: Task) -> dict:
    """All parameters, from the official checkpoint config.weights: of guided diffusion, or MAE.

    A fit without the source "adm" has none from there. Raises UserError for arrays that are
    missing, extra or of another shape.
    """
    if task.meta["kind"] == "mae":
        return mae_weights(config, MAESettings(**task.meta["model"]))
    if "model" not in task.meta:
        return {}
    arrays = read_arrays(config.weights, config.get("weights_part", ""))
    settings = make_settings(task.meta["model"])
    unet = load_adm(arrays, settings, config.weights_order, config.weights)
    return {"params": {"unet": unet} if task.fit else _placed(unet, task.meta)}


# ---- choosing features -------------------------------------------------------------------------


SHARES = (0.0, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6)  # of the diffusion's steps


def tap_grid(config) -> TapGrid | None:
    """All blocks, at the steps of the config and at those of SHARES; None for other sources."""
    if source_names(config.features) != ["adm"]:
        return None
    settings = make_settings(config.model)
    steps = {int(share * config.diffusion.steps) for share in SHARES}
    changed = config.copy_and_resolve_references()
    changed.features.steps = (0,)  # one step at a time takes less memory
    changed.features.blocks = tuple(range(len(settings.output_widths)))
    steps |= set(config.features.steps)
    return TapGrid(tuple(sorted(steps)), settings.output_widths, changed)


# ---- options and checks ------------------------------------------------------------------------


OPTIONS = {
    "weights": Optional(Text()),
    "weights_part": Optional(Text()),
    "weights_order": Optional(Text(ORDERS)),
    "model": Optional({
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
    }),
    "diffusion": Optional({
        "schedule": Text(tuple(BETAS)),
        "steps": Number(int, 1, 100_000),
        "rescale_timesteps": Flag(),
        "target": Text(TARGETS),
        "variance": Text(VARIANCES),
        "loss": Text(LOSSES),
        "timesteps": Text(timesteps.TIMESTEP_SAMPLERS),
    }),
}  # fmt: skip
STAGE_OPTIONS = {  # kind of stage -> further options of a config with such a stage
    "pretrain": {
        "samples": {
            "images": Number(int, 1, 64),
            "sampler": Text(SAMPLERS),
            "steps": Text(),
            "eta": Number(float, 0, 1),
        },
    },
    "clean": CLEAN_OPTIONS,
    "mae": MAE_OPTIONS,
    FIT: FIT_OPTIONS,
}


def check(config):
    """Raises UserError for option values that do not go together."""
    kinds = {config.stages[name].kind for name in config.run}
    names = source_names(config.features) if "features" in config else []
    reads_model = bool(set(names) & set(FROM_STAGES)) and FIT in kinds
    settings = None
    if "model" in config and "diffusion" in config:
        settings = make_settings(config.model)
        check_diffusion(config, settings)
    elif kinds & {"pretrain", "clean"} or reads_model:
        raise UserError(
            "the config has no model and diffusion, which its stages need. Copy them from "
            "configs/ddpm_seg_camvid.py, or take features of another source, such as "
            "--config.features.sources=efficientnet_lite0."
        )
    if "features" in config:
        check_features(config, settings)
    check_clean_starts(config, names)
    check_mae_starts(config)
    if "clean" in kinds:
        check_clean_options(config, settings)
        check_numbers("clean.blocks", clean_blocks(config), settings.output_blocks)
    for name in config.run:
        stage = config.stages[name]
        if stage.kind == FIT and not reads_model:
            continue
        if stage.start == "weights" and not config.get("weights"):
            example = MAE_EXAMPLE if stage.kind == "mae" else "lsun_bedroom.pt"
            raise UserError(
                f"stages.{name}.start is weights, but no file is given. "
                f"Try --config.weights={example}."
            )
        if stage.kind == FIT:
            continue
        square = config.unlabelled.options.get("square", 0)
        crop, option = tuple(stage.augment.crop), f"stages.{name}.augment.crop"
        if stage.kind == "mae":
            check_mae_stage(config, name)
        else:
            enlarged = enlarging(name, stage.augment, max(*crop, settings.stride))
            advice = f'--config.{option}="({{}}, {{}})", and for smaller images also {enlarged}'
            check_size(crop, settings, option, advice)
        if square and max(stage.augment.crop) > square:
            raise UserError(
                f"stages.{name}.augment.crop is {tuple(stage.augment.crop)}, but the images are "
                f"squares of {square}; the difference would be padding. "
                f"Try --config.unlabelled.options.square={max(stage.augment.crop)}."
            )


def check_diffusion(config, settings: ADMSettings):
    """Raises UserError for options of the network and its diffusion that do not go together."""
    diffusion = config.diffusion
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


def check_size(size: tuple[int, int], settings: ADMSettings, what: str, advice: str):
    """Raises UserError unless height and width are multiples of the network's stride.

    advice  what to type, with {} in place of another height and of another width
    """
    stride = settings.stride
    if len(size) != 2:
        raise UserError(
            f"{what} is {tuple(size)}, but it is a height and a width. Try {advice.format(64, 64)}."
        )
    if any(side < 1 or side % stride for side in size):
        near = tuple(max(stride, side // stride * stride) for side in size)
        raise UserError(
            f"{what} is {tuple(size)}, but a network of {settings.levels} levels makes images "
            f"whose sides are multiples of {stride}. Try {advice.format(*near)}."
        )


def note(config, kind: str, start: str) -> str:
    """A sentence for the user before a stage with that `start` runs, or an empty string."""
    published = kind == FIT and config.ensemble.classifiers
    reads_noise = published and "adm" in source_names(config.features)
    if reads_noise and not config.features.get("noise_file"):
        return (
            "without --config.features.noise_file the noise is drawn here and differs from the one "
            "that the published classifiers were trained with"
        )
    networks = config.features.get("networks", {}) if kind == FIT else {}
    notes = {name: table_note(sizes) for name, sizes in networks.items()}
    return "; ".join(f"{name}: {note}" for name, note in notes.items() if note)


DDPM_SEG = System(
    stages={
        "pretrain": "unlabelled",
        "clean": "unlabelled",
        "mae": "unlabelled",
        FIT: "labelled",
    },
    make_task=make_task,
    adopt=adopt,
    load_weights=load_weights,
    given_arrays=given_arrays,
    files=files,
    options=OPTIONS,
    origin=(
        "an ensemble of small classifiers of pixels on frozen features (DDPM-Seg)",
        "Label-Efficient Semantic Segmentation with Diffusion Models",
        "https://arxiv.org/abs/2112.03126",
    ),
    stage_options=STAGE_OPTIONS,
    check=check,
    complete=complete,
    note=note,
    tap_grid=tap_grid,
    convention="ddpm_seg",
)
