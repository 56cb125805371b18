"""The feature sources that a config names."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from diffseg_jax.config.schema import as_tuples
from diffseg_jax.errors import UserError
from diffseg_jax.models.dino import (
    SATELLITE_MEAN,
    SATELLITE_STD,
    Dino,
    DinoSettings,
    dino_default_taps,
    dino_taps,
)
from diffseg_jax.models.efficientnet_lite import (
    EFFICIENTNET_MEAN,
    EFFICIENTNET_STD,
    EfficientNetLite,
    EfficientNetSettings,
    efficientnet_default_taps,
    efficientnet_taps,
)
from diffseg_jax.models.encoder_maps import (
    BackboneMaps,
    ConvNeXtSettings,
    HybridMaps,
    HybridSettings,
    SwinSettings,
    backbone_default_taps,
    backbone_taps,
    hybrid_default_taps,
    hybrid_taps,
)
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from diffseg_jax.models.mae import MAE, MAESettings, encoder_alone, mae_default_taps, mae_taps
from diffseg_jax.models.network import COMPUTED, Network
from diffseg_jax.models.resnet import (
    ResNet,
    ResNetSettings,
    resnet_default_taps,
    resnet_taps,
    swav_default_taps,
)
from diffseg_jax.models.taps import stack
from diffseg_jax.sources.clean import clean_source, output_names
from diffseg_jax.sources.colour import COLOUR
from diffseg_jax.sources.diffusion import (
    adm_source,
    block_and_step,
    make_settings,
    maps_of_diffusion,
    options_of_maps,
)
from diffseg_jax.sources.feature_source import FeatureSource
from diffseg_jax.sources.from_files import files_source
from diffseg_jax.sources.frozen import frozen_source
from diffseg_jax.sources.own_run import run_source
from diffseg_jax.systems import ddep, ddp_config

OLD_NAMES = {"network": "adm"}  # of `features.source` in version 0.1.0


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A kind of network that is read from a file and not trained.

    published  a dataclass of the sizes of a published network, which JSON can hold
    module     (settings, dtype=, rngs=) -> module from (images, taps) to {tap: map}
    taps       settings -> the names of all its maps
    default    settings -> those that are read by default
    mean, deviation  by which pixels in 0..255 are scaled
    """

    published: Any
    module: Callable[..., nnx.Module]
    taps: Callable[..., Sequence[str]]
    default: Callable[..., Sequence[str]]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    deviation: tuple[float, float, float] = IMAGENET_STD

    def settings(self, sizes: Mapping):
        """The dataclass of the sizes in a mapping, in which JSON made lists of tuples."""
        return type(self.published)(**as_tuples(dict(sizes)))


DINOV3 = DinoSettings(patch=16, registers=4, rotary=True, grid=0, epsilon=1e-5)  # ViT-S/16
RESNET50_W2 = ResNetSettings(  # of twice the width, as SwAVw2
    stem=128, inner=(128, 256, 512, 1024), channels=(512, 1024, 2048, 4096)
)
FROZEN = {
    "efficientnet_lite0": FrozenNetwork(
        EfficientNetSettings(), EfficientNetLite, efficientnet_taps, efficientnet_default_taps,
        EFFICIENTNET_MEAN, EFFICIENTNET_STD,
    ),
    "dinov2": FrozenNetwork(DinoSettings(), Dino, dino_taps, dino_default_taps),
    "dinov3": FrozenNetwork(DINOV3, Dino, dino_taps, dino_default_taps),
    "dinov3_satellite": FrozenNetwork(
        DINOV3, Dino, dino_taps, dino_default_taps, SATELLITE_MEAN, SATELLITE_STD
    ),
    "mae": FrozenNetwork(encoder_alone(MAESettings()), MAE, mae_taps, mae_default_taps),
    "resnet50": FrozenNetwork(ResNetSettings(), ResNet, resnet_taps, resnet_default_taps),
    "swav": FrozenNetwork(ResNetSettings(), ResNet, resnet_taps, swav_default_taps),
    "swav_w2": FrozenNetwork(RESNET50_W2, ResNet, resnet_taps, swav_default_taps),
    "swin": FrozenNetwork(SwinSettings(), BackboneMaps, backbone_taps, backbone_default_taps),
    "convnext": FrozenNetwork(
        ConvNeXtSettings(), BackboneMaps, backbone_taps, backbone_default_taps
    ),
    "vit": FrozenNetwork(
        HybridSettings(), HybridMaps, hybrid_taps, hybrid_default_taps, (127.5,) * 3, (127.5,) * 3
    ),
}  # fmt: skip
RUNS = {"ddp": ddp_config.make_task, "ddep": ddep.make_task}  # systems whose encoders can be read
FROM_FILES = ("files", *RUNS, *FROZEN)  # each entry names a file or a directory
FROM_STAGES = ("adm", "clean")  # their networks come from the start of the stage
TRAINED = ("pretrain", "clean")  # kinds of stages that train such networks
SOURCE_NAMES = (*FROM_STAGES, "colour", *FROM_FILES)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of config.features.sources: "name", or "name=file" with the weights of a network."""

    name: str
    file: str = ""


def source_entries(features: Mapping) -> list[Entry]:
    """The entries of config.features, which names several `sources`; in version 0.1.0 a `source`.

    Names are not checked here.
    """
    given = features.get("sources") or (features.get("source", ""),)
    parts = (text.partition("=") for text in given)
    return [Entry(OLD_NAMES.get(name, name), file) for name, _, file in parts]


MAE_OF_START = Entry("mae")  # without a file, its network is that of the stage to start from


def from_start(entry: Entry) -> bool:
    """Whether the network of an entry comes from the start of the stage."""
    return entry.name in FROM_STAGES or entry == MAE_OF_START


def source_names(features: Mapping) -> list[str]:
    """The names of the sources of config.features, in the order of their channels."""
    return [entry.name for entry in source_entries(features)]


def chosen_sources(
    config, crop: tuple[int, int], taps: Sequence[str] = (), option: str = "features.taps"
) -> list[FeatureSource]:  # fmt: skip
    """The sources of config.features, whose `networks` hold the sizes of networks from files.

    crop  (height, width) of the images of the fit
    taps  () = those of config.features;  option  that gave them, "features.taps" or "--taps"
    Raises UserError for unknown taps.
    """
    features, names = config.features, source_names(config.features)
    option = option if taps else "features.taps"
    taps = taps or features.get("taps", ())
    _require_taken(taps, names, option)
    own = [_own_taps(taps, name, len(names)) for name in names]
    return [_source(config, name, crop, each) for name, each in zip(names, own, strict=True)]


def trained_source(config, kind: str, crop: tuple[int, int], taps: Sequence[str]) -> FeatureSource:
    """The taps of the network that a stage of a kind in TRAINED trained, at the images' size."""
    if kind == "clean":
        return clean_source(config, 0, taps, "float32")
    known = make_settings(config.model).blocks
    for tap in taps:
        block_and_step(tap, known, config.diffusion.steps)
    changed = config.copy_and_resolve_references()
    changed.features = dict(steps=(), blocks=(), share_noise=False, draws=1, dtype="float32")
    source = adm_source(changed, crop, 0)

    def extract(network, images, valid, other_seed=None):
        seed = {} if other_seed is None else {"seed": other_seed}
        found = source.named(network, images, valid, taps, **seed)
        stride, seen = source.stride, images.shape[1:3]
        covered = tuple(side / (side + -side % stride) for side in seen)
        return stack([found[tap] for tap in taps], seen, covered)

    return dataclasses.replace(source, extract=extract)


def _require_taken(taps, names, option):
    """Raises UserError for a tap that no source reads; those of sources not named here may stay."""
    flag, none = "--taps={}", "Leave --taps out, which writes them all"
    if option == "features.taps":
        flag, none = '--config.features.taps="{}"', 'Try --config.features.taps="()"'
    with_taps = [name for name in names if name not in ("adm", "colour", "files")]
    for tap in taps:
        prefix = tap.partition("/")[0] if "/" in tap else ""
        if prefix in with_taps or prefix in SOURCE_NAMES and prefix not in names:
            continue
        if not prefix and len(names) == 1 and with_taps:
            continue
        if prefix in names or not with_taps:
            raise UserError(
                f"{option} holds {tap}, but {prefix or names[0]} has no taps to choose: adm "
                f"reads features.blocks and features.steps, colour and files read all. {none}."
            )
        raise UserError(
            f"{option} holds {tap}, which does not say whose it is. Try "
            f"{flag.format(f'{with_taps[0]}/{tap}')}."
        )


def _own_taps(taps, name, count):
    """Those of the taps that belong to a source: all of a lone one, else those named after it."""
    prefix = f"{name}/"
    own = [tap for tap in taps if tap.startswith(prefix) or count == 1 and "/" not in tap]
    return tuple(tap.removeprefix(prefix) for tap in own)


def kept_maps(sizes: Mapping, features: Mapping) -> list[int] | None:
    """The numbers of the maps of `steps` and `blocks` in files of --mode=features; None: all.

    sizes  as of `folder_sizes`. Raises UserError for steps and blocks that the files lack, and for
           other options than those with which they were computed.
    """
    names = list(sizes.get("maps", ()))
    if not names or "steps" not in features or "blocks" not in features:
        return None
    wanted = maps_of_diffusion(features)
    if lacking := [name for name in wanted if name not in names]:
        raise UserError(
            f"features in {sizes['folder']} hold no {lacking[0]}; they hold {', '.join(names)}. "
            "Choose others with --config.features.steps and --config.features.blocks, or compute "
            "more with --mode=features in another workdir."
        )
    options = options_of_maps(features)
    for key, stored in sizes.get("options", {}).items():
        if options.get(key, stored) != stored:
            old = key == "noise" and not features.get("share_noise", True)
            own = " --config.features.share_noise=True" if old else ""
            raise UserError(
                f"features in {sizes['folder']} were computed with features.{key}={stored}, but "
                f"the config says {options[key]}. Try --config.features.{key}={stored}{own}, or "
                "compute others with --mode=features in another workdir."
            )
    return [names.index(name) for name in wanted]


def _source(config, name, crop, taps) -> FeatureSource:
    if name == "adm":
        return adm_source(config, crop, config.features.short)
    if name == "clean":
        taps = taps or output_names(config.features.blocks)
        return clean_source(config, config.features.short, taps, config.features.dtype)
    if name == "colour":
        return COLOUR
    sizes, scales = config.features.networks[name], config.features.get("scales", (1.0,))
    if name == "files":
        return files_source(sizes, config.features.dtype, kept_maps(sizes, config.features))
    if name in RUNS:
        given = sizes["config"], sizes["kind"], tuple(sizes["crop"]), sizes["num_classes"]
        task = RUNS[name](*given)
        normalisation = task.meta["normalisation"]
        return run_source(
            name, task.init, task.features, normalisation, taps, scales, config.features.dtype
        )
    kind = FROZEN[name]
    settings = kind.settings(sizes)
    dtype = COMPUTED[config.dtype]
    network = Network(lambda rngs: kind.module(settings, dtype=dtype, rngs=rngs))
    return frozen_source(
        name, network, kind.taps(settings), taps or tuple(kind.default(settings)), settings.stride,
        kind.mean, kind.deviation, scales, config.features.dtype,
    )  # fmt: skip
