"""Few labels in a config: the options of features and ensemble, and their checks."""

from diffseg_jax.config.options import FIT
from diffseg_jax.config.schema import Flag, Number, Optional, Several, Some, Text
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.models.adm_unet import ADMSettings
from diffseg_jax.sources.diffusion import NOISES, noise_setting
from diffseg_jax.systems.feature_sources import (
    FROM_FILES,
    SOURCE_NAMES,
    from_start,
    source_entries,
)
from diffseg_jax.systems.few_labels import draws_fresh_noise
from diffseg_jax.systems.recipes import RECIPES

FIT_OPTIONS = {  # of a config with a stage of kind FIT
    "features": {
        "source": Optional(Text(("network", "colour"))),  # of version 0.1.0
        "sources": Optional(Several(Text(), minimum=1)),
        "taps": Optional(Several(Text())),
        "scales": Optional(Several(Number(float, 0.1, 8), minimum=1)),  # but for "adm"
        "steps": Optional(Several(Number(int, 0), minimum=1)),  # from here on: of "adm"
        "blocks": Optional(Several(Number(int, 0), minimum=1)),
        "short": Optional(Number(int, 0, 16384)),
        "share_noise": Optional(Flag()),  # False: the noise is per_image
        "noise": Optional(Text(NOISES)),
        "noise_file": Optional(Text()),
        "draws": Optional(Number(int, 1, 256)),
        "dtype": Text(("float16", "float32")),
        "place": Text(("device", "host")),
    },
    "clusters": Optional(Some({  # of --mode=clusters; see experiment.cluster_maps
        "k": Number(int, 2, 255),
        "images": Number(int, 1, 64),
        "restarts": Number(int, 1, 1000),
        "per_image": Flag(),
    })),
    "ensemble": {
        "recipe": Text(tuple(RECIPES)),
        "members": Number(int, 1, 1000),
        "widths": Several(Number(int, 1, 16384)),  # none, or one for each hidden layer
        "small_objects": Number(int, 0),
        "classifiers": Text(),
        "probe": Optional(Flag()),  # True where a config has none
    },
}
LAYERS = ("no hidden layer", "one hidden layer", "two hidden layers")  # of a classifier
SCALED = {*FROM_FILES} - {"files"}  # sources that read features.scales
STAGE_KEYS = {
    "adm": ("steps", "blocks", "short", "draws"), "clean": ("blocks", "short"),
}  # fmt: skip


def check_features(config, settings: ADMSettings | None):
    """Raises UserError for features that no source has, and options that conflict.

    settings  of the diffusion model; None where the config has none
    """
    features, ensemble = config.features, config.ensemble
    names, layers = check_sources(features), RECIPES[ensemble.recipe].layers
    check_once(features, names)
    fits = [name for name in config.run if config.stages[name].kind == FIT]
    expected = "weights" if set(names) & set(FROM_FILES) else "random"
    others = [name for name in fits if config.stages[name].start != expected]
    starting = " ".join(f"--config.stages.{name}.start={expected}" for name in others)
    rules = (
        (
            ensemble.classifiers and layers != 2,
            "ensemble.classifiers names published classifiers, which have two hidden layers and "
            f"vote, but those of recipe {ensemble.recipe} have {LAYERS[layers]}. Try "
            "--config.ensemble.recipe=paper.",
        ),
        (
            len(ensemble.widths) not in (0, layers),
            f"ensemble.widths is {tuple(ensemble.widths)}, but a classifier of recipe "
            f"{ensemble.recipe} has {LAYERS[layers]}. Try --config.ensemble.widths="
            f'"{((), (64,), (128, 32))[layers]}", or "()" for the usual ones.',
        ),
        (
            features.get("noise_file") and "adm" not in names,
            "features.noise_file is given, which only the source adm reads. Try "
            '--config.features.noise_file="".',
        ),
        (
            features.get("noise_file") and noise_setting(features) in ("per_image", "fresh"),
            f"features.noise_file is given, but noise that is {noise_setting(features)} reads no "
            "file. Try --config.features.share_noise=True --config.features.noise=shared.",
        ),
        (
            not features.get("share_noise", True) and features.get("noise", "per_image") != (
                "per_image"
            ),
            f"features.noise is {features.get('noise')}, but features.share_noise=False means "
            "per_image. Try --config.features.share_noise=True.",
        ),
        (
            others and not any(map(from_start, source_entries(features))),
            f"features.sources is {', '.join(names)}, which has no network to start from in a "
            f"stage or in config.weights. Try {starting}.",
        ),
        (
            settings and settings.num_classes,
            "model.num_classes is not 0, but features are read from networks "
            "without classes, such as lsun_bedroom.",
        ),
    )
    for wrong, sentence in (*rules, *view_rules(config, names)):
        if wrong:
            raise UserError(sentence)
    if "adm" in names:
        check_taps(features, settings, config.diffusion.steps)
    elif "clean" in names:
        check_numbers("features.blocks", features.blocks, settings.output_blocks)


def view_rules(config, names: list[str]) -> tuple[tuple[bool, str], ...]:
    """(whether it is broken, sentence) of the rules on how sources see images."""
    features, evaluate = config.features, config.evaluate
    fits = [name for name in config.run if config.stages[name].kind == FIT]
    varied = [name for name in fits if config.stages[name].augment.get("variants", 0)]
    still = " ".join(f"--config.stages.{name}.augment.variants=0" for name in varied)
    widened = [scale for scale in evaluate.scales if scale != 1] or evaluate.view != "whole"
    return (
        (
            STAGE_KEYS.keys() & set(names) and features.short and widened,
            f"features.short is {features.get('short')}, to which every window and scale would be "
            'brought back. Use evaluate.view="whole" and scales=(1.0,), or features.short=0.',
        ),
        (
            tuple(features.get("scales", (1.0,))) != (1.0,) and not set(names) & SCALED,
            f"features.scales is {tuple(features.get('scales', ()))}, but images are not enlarged "
            f"for {', '.join(names)}. Try --config.features.scales=1.0.",
        ),
        (
            draws_fresh_noise(features) and len(varied) < len(fits),
            "features.noise is fresh, but with augment.variants=0 a labelled image is read with "
            "one noise only. Try "
            + " ".join(f"--config.stages.{name}.augment.variants=7" for name in fits) + ".",
        ),
        (
            "files" in names and varied,
            "the source files has maps of images as they are, none of changed copies. "
            f"Try {still}.",
        ),
        (
            "files" in names and (widened or evaluate.flip),
            "the source files has maps of whole images only. Use "
            'evaluate.view="whole", scales=(1.0,) and flip=False.',
        ),
    )


def check_sources(features) -> list[str]:
    """The names of the sources; UserError for unknown ones, and for options that lack one."""
    entries = source_entries(features)
    names = [entry.name for entry in entries]
    for index, entry in enumerate(entries):
        require_known(entry.name, SOURCE_NAMES, "feature source")
        if entry.name in names[:index]:
            raise UserError(f"features.sources names {entry.name} twice. Give each source once.")
        if entry.file and entry.name not in FROM_FILES:
            raise UserError(
                f"features.sources gives {entry.name} the file {entry.file}, but its network comes "
                "from stages.fit.start and config.weights. Leave the file out."
            )
    for name in set(names) & STAGE_KEYS.keys():
        if missing := [key for key in STAGE_KEYS[name] if key not in features]:
            raise UserError(
                f"features has no {missing[0]}, which the source {name} reads. Write it into the "
                "config, as configs/ddpm_seg_camvid.py does."
            )
    return names


def check_once(features, names: list[str]):
    """Raises UserError for scales and taps that are given twice, whose channels would be double."""
    scales, taps = (list(features.get(key, ())) for key in ("scales", "taps"))
    whole = [tap if "/" in tap else f"{names[0]}/{tap}" for tap in taps]
    twice = {"scales": [scale for scale in scales if scales.count(scale) > 1]}
    twice["taps"] = [
        tap
        for tap, full in zip(taps, whole, strict=True)
        if whole.count(full) > 1 or "@" in full and full.partition("@")[0] in whole
    ]
    for key, values in twice.items():
        if values:
            given = f"features.{key} holds {values[-1]}"
            if "@" in str(values[-1]) and taps.count(values[-1]) == 1:
                tap = values[-1].partition("@")[0]
                raise UserError(f"{given} and {tap}, which is read at every scale. Leave one out.")
            raise UserError(f"{given} twice. Give each once.")


def check_taps(features, settings: ADMSettings, steps: int):
    """Raises UserError for blocks and steps that the network and its diffusion do not have."""
    check_numbers("features.blocks", features.blocks, settings.output_blocks)
    check_numbers("features.steps", features.steps, steps)


def check_numbers(option: str, values, count: int):
    """Raises UserError unless the values of an option, such as "features.steps", are in 0..count-1.

    None may be there twice.
    """
    what = option.rpartition(".")[2]
    for index, value in enumerate(values):
        if value >= count:
            raise UserError(
                f"{option} holds {value}, but this network has the {what} 0 to {count - 1}. "
                "Rank them with --mode=taps --config.features.sources=adm."
            )
        if value in values[:index]:
            raise UserError(f"{option} holds {value} twice. Give each {what[:-1]} once.")
