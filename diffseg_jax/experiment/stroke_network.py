"""The network whose features strokes are read from, and the config of such a fit."""

import dataclasses
import os
from collections.abc import Mapping

from ml_collections import ConfigDict

import diffseg_jax
from diffseg_jax.config.schema import as_tuples
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.inference.locate import find_stage
from diffseg_jax.inference.outputs import require_segmentation
from diffseg_jax.sources.diffusion import LISTED_STEPS, make_settings
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.clean_config import unets_in
from diffseg_jax.systems.feature_sources import (
    FROM_FILES,
    RUNS,
    SOURCE_NAMES,
    TRAINED,
    source_entries,
)
from diffseg_jax.systems.few_labels import fit_task
from diffseg_jax.systems.source_files import load_source, source_sizes
from diffseg_jax.systems.task import Task

DEFAULT_SOURCE, WITHOUT_NETWORK = "efficientnet_lite0", "colour"
DEFAULT_TAPS = tuple(f"{DEFAULT_SOURCE}/block{i}" for i in (2, 4, 10, 15))
DEFAULT_SCALES = (1.0, 2.0)  # of the default network, by which images are enlarged
SHORT = 128  # pixels, at which a diffusion model of a run without a fit sees images
STAGE, RECIPE = "fit", "strokes"


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network that computes features, as parts of the config of a fit.

    features  the group of that name in a config, complete with the sizes of networks
    others    further parts of the config on which it depends: model and diffusion
    start     `config.stages.fit.start`
    arrays    {"params", "stats"} as far as files and checkpoints give them
    note      a sentence for people, or ""
    """

    features: Mapping
    others: Mapping
    start: str
    arrays: dict
    note: str = ""


def open_features(source: str | os.PathLike = "") -> FeatureNetwork:
    """The network of a feature source, or of a checkpoint.

    source  a name as in the option features.sources, or "name=file"; a workdir, the directory of a
            stage or of a converted network; "" = EfficientNet-Lite0 where its package is installed,
            else colours, which `note` says

    Raises UserError for what is neither, and for networks that read maps from files.
    """
    name, _, file = str(source).partition("=")
    if not name:
        try:
            return _of_source(DEFAULT_SOURCE)
        except UserError as error:
            note = f"learns from colour and position, as {error}"
            return dataclasses.replace(_of_source(WITHOUT_NETWORK), note=note)
    if name not in SOURCE_NAMES:
        return _of_checkpoint(source)
    if name == "files" or (name in ("adm", "clean") and not file):
        raise UserError(
            f"the source {source} gives no features of new images. Give {DEFAULT_SOURCE}, "
            f"{WITHOUT_NETWORK}, or the directory of a checkpoint."
        )
    return _of_source(str(source))


def require_labels_of(source: str | os.PathLike):
    """Raises UserError for a checkpoint that predicts no labels, of which it reads no array.

    source  as of `open_features`; others than checkpoints pass
    """
    if (name := str(source).partition("=")[0]) and name not in SOURCE_NAMES:
        require_segmentation(open_meta(find_stage(source))["config"], "annotate", source)


def _of_source(text) -> FeatureNetwork:
    default = text == DEFAULT_SOURCE
    features = {
        "sources": (text,), "taps": DEFAULT_TAPS if default else (),
        "scales": DEFAULT_SCALES if default else (1.0,), "dtype": "float16", "place": "device",
    }  # fmt: skip
    arrays, networks = {"params": {}, "stats": {}}, {}
    for entry in source_entries(features):
        if entry.name in FROM_FILES:
            networks[entry.name] = source_sizes(entry)
            found = load_source(entry, networks[entry.name])
            for part in found:
                arrays[part] |= found[part]
    features["networks"] = networks
    return FeatureNetwork(features, {}, "weights" if networks else "random", arrays)


def _of_checkpoint(source) -> FeatureNetwork:
    """The network of a checkpoint of any method."""
    directory = find_stage(source)
    network, meta = open_network(directory)
    config, task = as_tuples(meta["config"]), as_tuples(meta["task"])
    require_segmentation(config, "annotate", directory)
    start, kind = str(directory), task["kind"]
    if config["system"] in RUNS:
        return dataclasses.replace(_of_source(f"{config['system']}={start}"), start=start)
    if kind == "mae":
        return dataclasses.replace(_of_source(f"mae={start}"), start=start)
    others = {key: config[key] for key in ("model", "diffusion") if key in config}
    if kind in TRAINED:
        name = {"pretrain": "adm"}.get(kind, kind)
        features = _of_diffusion(name, config, task)
        arrays = {"params": {}, "stats": {}}
        unet = {"adm": "unet", "clean": "clean"}[name]
        arrays["params"][unet] = unets_in(network["params"], kind)[unet]
        return FeatureNetwork(features, others, start, arrays)
    if "files" in task["features"].get("networks", {}):
        raise UserError(
            f"{directory} reads maps from files, so it has no features of new images. Give "
            f"another --checkpoint, or {DEFAULT_SOURCE}."
        )
    learned = ("ensemble", "probe")
    arrays = {
        part: {name: tree for name, tree in network[part].items() if name not in learned}
        for part in ("params", "stats")
    }
    return FeatureNetwork(task["features"], others, start, arrays)


def _of_diffusion(name, config, task) -> dict:
    """The features of a diffusion model: those of its run's fit, else the published steps."""
    if "features" in config and "blocks" in config["features"]:
        return {**config["features"], "sources": (name,)}
    count = config["diffusion"]["steps"]
    blocks = len(make_settings(task["model"]).output_widths)
    chosen = tuple(range(blocks // 3, max(2 * blocks // 3, 1)))
    chosen = config["clean"]["blocks"] or chosen if "clean" in config else chosen
    return {
        "sources": (name,), "steps": tuple(step * count // 1000 for step in LISTED_STEPS),
        "blocks": chosen, "short": SHORT, "share_noise": True, "noise_file": "", "draws": 1,
        "dtype": "float16", "place": "device",
    }  # fmt: skip


def fit_config(
    network: FeatureNetwork, members: int, limit: tuple[int, int], seed: int
) -> ConfigDict:  # fmt: skip
    """The config of a fit to strokes, in the form of configs/ddpm_seg_folder.py.

    limit  (longer, shorter side) into which images are fitted
    """
    side = max(limit)
    config = {
        "system": "ddpm_seg", "seed": seed, "dtype": "float32", "remat": False,
        "mesh": {"data": -1, "fsdp": 1},
        "data": {
            "source": "folder", "path": "", "options": {"num_classes": 0, "ignore": ()},
            "train": "train", "val": "val", "fraction": 1.0, "count": 0, "subset_seed": 0,
            "list_path": "", "folds": 0, "fold": -1, "threads": 2, "workers": 0, "cache": True,
        },
        **network.others,
        "features": dict(network.features),
        "ensemble": {
            "recipe": RECIPE, "members": members, "widths": (), "small_objects": 0,
            "classifiers": "", "probe": False,
        },
        "run": (STAGE,),
        "stages": {STAGE: {
            "kind": "fit", "start": network.start,
            "augment": {"limit": limit, "short": 0, "crop": (side, side)},
            "every": {"log": 200, "checkpoint": 1_000},
        }},
        "evaluate": {
            "view": "whole", "window": (0, 0), "stride": (0, 0), "scales": (1.0,), "flip": False,
            "limit": limit, "short": 0, "batch_size": 1, "images": 0, "quick_images": 24,
            "absent": "skip", "checkpoint": "last", "pictures": 4,
        },
    }  # fmt: skip
    return ConfigDict(config)


def fit_meta(config: ConfigDict, task: Task, labels: Labels, images: int) -> dict:
    """The metadata of a fit to strokes, as of other fits; images: the number with strokes."""
    return {
        "version": diffseg_jax.__version__, "config": as_json(config.to_dict()),
        "start": config.stages[STAGE].start, "task": as_json(task.meta),
        "classes": list(labels.names), "palette": [list(colour) for colour in labels.palette],
        "labelled": {"n": images, "of": images, "seed": 0, "sha256": ""},
        "stage": STAGE, "ema": [], "finished": True,
    }  # fmt: skip


def make_fit_task(config: ConfigDict, num_classes: int) -> Task:
    """The task of such a config."""
    return fit_task(config, STAGE, tuple(config.stages[STAGE].augment.crop), num_classes)
