"""Reads the networks of feature sources: the sizes in a file, and its arrays."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from diffseg_jax.config.schema import as_tuples
from diffseg_jax.errors import UserError
from diffseg_jax.models.dino import DinoSettings
from diffseg_jax.models.encoder_maps import ConvNeXtSettings, SwinSettings
from diffseg_jax.models.mae import MAESettings, encoder_alone
from diffseg_jax.models.resnet import ResNetSettings
from diffseg_jax.sources.from_files import folder_sizes
from diffseg_jax.storage.checkpoints import has_checkpoint
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.storage.paths import open_path
from diffseg_jax.systems.feature_sources import FROZEN, RUNS, Entry
from diffseg_jax.weights.backbones import FAMILIES, backbone_settings, load_backbone_maps
from diffseg_jax.weights.dino import described_dino, dino_settings, load_dino
from diffseg_jax.weights.efficientnet_lite import efficientnet_settings, load_efficientnet
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.mae import load_mae, mae_settings
from diffseg_jax.weights.packaged import packaged_efficientnet
from diffseg_jax.weights.resnet import load_resnet, resnet_settings
from diffseg_jax.weights.transunet import hybrid_settings, load_hybrid

RANDOM = "random"  # in place of a file: weights that were never trained


@dataclasses.dataclass(frozen=True)
class NetworkReader:
    """How files with the weights of a kind of network are read.

    settings  (arrays, source) -> the sizes of the network in a file; and of `options`
    load      (arrays, settings, source) -> {"params", "stats"}
    packaged  () -> path of a file that an installed package holds; None where there is none
    options   sizes that files may not tell: "heads" of the attention, "grid" of positions
    """

    settings: Callable
    load: Callable
    packaged: Callable[[], Path] | None = None
    options: tuple[str, ...] = ()


GENERIC = ("model", "pytorch_model")  # names of files of Hugging Face, whatever they hold
TRAINED_ON = {  # what names of DINOv3's files say -> the sources that take it, and of which images
    "sat493m": (("dinov3_satellite",), ", by its name of satellite images"),
    "lvd1689m": (("dinov3",), ", by its name of photographs"),
}


def _dino(name, arrays, source, heads=None) -> DinoSettings:
    """The sizes of a DINO; UserError where the source of another name fits the file."""
    settings = dino_settings(arrays, source, heads)
    fits, images = ("dinov3", "dinov3_satellite") if settings.rotary else ("dinov2",), ""
    for mark, trained in TRAINED_ON.items():  # arrays do not tell; names of files may say nothing
        if settings.rotary and mark in _own_name(source).lower():
            fits, images = trained
    if name not in fits:
        raise UserError(f"{source} is {described_dino(settings)}{images}. {_take(fits[0], source)}")
    return settings


def _own_name(source):
    """The name of a file, and of its folder where all files of a library have the same name."""
    path = Path(source)
    return f"{path.parent.name}/{path.name}" if path.stem in GENERIC else path.name


def _swav(name, arrays, source) -> ResNetSettings:
    """The sizes of a ResNet-50; UserError where it is of the other published width."""
    settings = resnet_settings(arrays, source)
    right = {64: "swav", 128: "swav_w2"}.get(settings.stem, name)
    if right != name:
        raise UserError(
            f"{source} is a ResNet-50 of {settings.channels[-1]} channels. {_take(right, source)}"
        )
    return settings


def _take(name, source):
    return f'Try --config.features.sources="{name}={source}", or --source={name} to convert it.'


def _mae(arrays, source, heads=None) -> MAESettings:
    """The sizes of an MAE without its decoder, which computes no features."""
    return encoder_alone(mae_settings(arrays, source, heads, decoder_heads=1))


def _backbone(name, arrays, source) -> SwinSettings | ConvNeXtSettings:
    """The sizes of a Swin or ConvNeXt; UserError where it is the other one."""
    settings = backbone_settings(arrays, source)
    if settings.backbone != name:
        raise UserError(
            f"{source} is a {FAMILIES[settings.backbone]}. {_take(settings.backbone, source)}"
        )
    return settings


READERS = {
    "efficientnet_lite0": NetworkReader(
        efficientnet_settings, load_efficientnet, packaged_efficientnet
    ),
    **{
        name: NetworkReader(functools.partial(_dino, name), load_dino, options=("heads",))
        for name in ("dinov2", "dinov3", "dinov3_satellite")
    },
    "mae": NetworkReader(_mae, load_mae, options=("heads",)),
    "resnet50": NetworkReader(resnet_settings, load_resnet),
    "swav": NetworkReader(functools.partial(_swav, "swav"), load_resnet),
    "swav_w2": NetworkReader(functools.partial(_swav, "swav_w2"), load_resnet),
    "swin": NetworkReader(functools.partial(_backbone, "swin"), load_backbone_maps),
    "convnext": NetworkReader(functools.partial(_backbone, "convnext"), load_backbone_maps),
    "vit": NetworkReader(hybrid_settings, load_hybrid, options=("heads", "grid")),
}


def file_of_source(entry: Entry) -> str | Path:
    """What an entry names, or the file in its package; UserError where there is neither."""
    if entry.file:
        return entry.file
    if entry.name == "files":
        raise UserError(
            "feature source files needs a folder with a .npz of maps for every image. Give "
            "--config.features.sources=files=DIR; python -m diffseg_jax.features writes one."
        )
    if entry.name in RUNS:
        raise UserError(
            f"feature source {entry.name} needs a run. Give its directory, such as "
            f'--config.features.sources="{entry.name}=runs/a/checkpoints/train".'
        )
    if READERS[entry.name].packaged:
        return READERS[entry.name].packaged()
    raise UserError(
        f"feature source {entry.name} needs a file with the weights of its network. Give "
        f'--config.features.sources="(\'{entry.name}={entry.name}.pth\',)", or a directory that '
        f"python -m diffseg_jax.convert --source={entry.name} wrote."
    )


def source_sizes(entry: Entry, part: str = "", **options) -> dict:
    """The sizes of the network that an entry names, JSON values; UserError for a wrong file.

    part     of the file, as of `read_arrays`
    options  of its `NetworkReader`; those that are missing are as such files usually have them
    """
    if entry.name == "files":
        return folder_sizes(file_of_source(entry))
    if entry.name in RUNS:
        return _run_of(entry)[0]
    if entry.file == RANDOM:
        return dataclasses.asdict(FROZEN[entry.name].published)
    file = file_of_source(entry)
    if _was_written_here(file):
        return _directory(entry)[0]
    arrays = read_arrays(open_path(file), part)
    settings = READERS[entry.name].settings(arrays, str(file), **options)
    return dataclasses.asdict(settings)


def table_note(sizes: dict) -> str:
    """How a DINO with such sizes resizes its table of positions, for people; "" for others."""
    if not sizes.get("grid") or "layout" not in sizes or sizes["registers"]:
        return ""  # with registers the programs agree
    side = sizes["grid"]
    program = {"official": "of DINOv2's authors", "transformers": "transformers"}[sizes["layout"]]
    return (
        f"images of other than {side}x{side} patches resize its table of positions as the program "
        f"{program} does, in whose names the file is"
    )


def with_mae_of_stage(config, task: dict):
    """The config of a stage of kind "mae" with the features of its network; task: `Task.meta`."""
    changed = config.copy_and_resolve_references()
    networks = {"mae": sizes_in("mae", task)}
    changed.features = dict(sources=("mae",), dtype="float32", networks=networks)
    return changed


def load_source(entry: Entry, sizes: dict, part: str = "") -> dict:
    """{"params": {name}, "stats": {name}} of the network that an entry names, {} for random ones.

    sizes  as `source_sizes` found them; UserError where the file has others
    part   of the file, as of `read_arrays`
    """
    if entry.name == "files":
        return {}
    if entry.name in RUNS:
        found = _run_of(entry)[1]()
        return {kind: {entry.name: found[kind]} for kind in found}
    if entry.file == RANDOM:
        return {}
    file = file_of_source(entry)
    if _was_written_here(file):
        return _directory(entry)[1]()
    settings = FROZEN[entry.name].settings(sizes)
    found = READERS[entry.name].load(read_arrays(open_path(file), part), settings, str(file))
    return {part: {entry.name: found[part]} for part in found}


def _run_of(entry):
    """(sizes, () -> network) of a stage of "ddp" or "ddep"."""
    directory = open_path(file_of_source(entry))
    meta = open_meta(directory)
    config, stage = meta["config"], meta["stage"]
    if config["system"] != entry.name:
        advice = f'Try --config.features.sources="{config["system"]}={entry.file}".'
        if config["system"] not in RUNS:
            advice = (
                f"Give a run of {' or '.join(RUNS)}; a converted network goes by the name of its "
                f"own source, such as dinov2={entry.file}."
            )
        raise UserError(f"{directory} is of system {config['system']}, not {entry.name}. {advice}")
    options = config.get("stages", {}).get(stage, {}).get("augment", {})
    sizes = {
        "config": {key: config[key] for key in RUN_KEYS if key in config},
        "kind": meta["task"]["kind"],
        "crop": options.get("crop", (64, 64)),
        "num_classes": len(meta.get("classes", ())),
    }
    return as_tuples(sizes), lambda: open_network(directory)[0]


RUN_KEYS = (  # options of a run that its network depends on
    "dtype", "remat", "seed", "model", "diffusion", "sampling", "new_head", "noise", "pretrain",
    "task", "depth", "bev",
)  # fmt: skip


def _was_written_here(file):
    """Whether it is the directory of a stage or a run, and no file or folder of other programs."""
    path = open_path(file)
    return path.is_dir() and (has_checkpoint(path) or (path / "checkpoints").is_dir())


def _directory(entry):
    """(sizes, () -> arrays) of the network in a directory that `convert` or a run wrote."""
    directory = open_path(entry.file)
    task = open_meta(directory)["task"]
    if (sizes := sizes_in(entry.name, task)) is None:
        raise UserError(
            f"{directory} holds no {entry.name} network. Give one that "
            f"python -m diffseg_jax.convert --source={entry.name} wrote, or the file itself."
        )
    return sizes, lambda: arrays_in(entry.name, open_network(directory)[0], task)


def sizes_in(name: str, task: dict) -> dict | None:
    """The sizes of the network of a source in a checkpoint with that `Task.meta`; None if none."""
    if task["kind"] == name == "mae":
        return dataclasses.asdict(encoder_alone(MAESettings(**task["model"])))
    return task.get("features", {}).get("networks", {}).get(name)


def arrays_in(name: str, network: dict, task: dict) -> dict:
    """{"params": {name}, "stats": {name}} of that network, without a decoder.

    network  of the checkpoint with that `Task.meta`
    """
    if task["kind"] == name == "mae":
        encoder = {part: tree for part, tree in network["params"].items() if part != "decoder"}
        return {"params": {name: encoder}, "stats": {}}
    return {part: {name: network[part].get(name, {})} for part in network}
