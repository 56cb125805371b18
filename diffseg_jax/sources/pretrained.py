"""Reads the networks of feature sources: the sizes in a file, and its arrays."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from diffseg_jax.errors import UserError
from diffseg_jax.sources.chosen import FROZEN, Entry, settings_from
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.storage.paths import open_path
from diffseg_jax.weights.formats import read_arrays

RANDOM = "random"  # in place of a file: weights that were never trained


@dataclasses.dataclass(frozen=True)
class NetworkReader:
    """How files with the weights of a kind of network are read.

    settings  (arrays, source) -> the sizes of the network in a file
    load      (arrays, settings, source) -> {"params", "stats"}
    packaged  () -> path of a file that an installed package holds; None where there is none
    """

    settings: Callable
    load: Callable
    packaged: Callable[[], str] | None = None


READERS: dict[str, NetworkReader] = {}


def require_files(entries: list[Entry]):
    """Raises UserError for a network without a file; finds a packaged one."""
    for entry in entries:
        if entry.name in FROZEN and entry.file != RANDOM:
            _file_of(entry)


def _file_of(entry) -> str:
    if entry.file:
        return entry.file
    if READERS[entry.name].packaged:
        return READERS[entry.name].packaged()
    raise UserError(
        f"feature source {entry.name} needs a file with the weights of its network. Give "
        f'--config.features.sources="(\'{entry.name}={entry.name}.pth\',)", or a directory that '
        f"python -m diffseg_jax.convert --source={entry.name} wrote."
    )


def source_sizes(entry: Entry) -> dict:
    """The sizes of the network that an entry names, JSON values; UserError for a wrong file."""
    if entry.file == RANDOM:
        return dataclasses.asdict(FROZEN[entry.name].settings())
    file = _file_of(entry)
    if os.path.isdir(file):
        return _directory(entry)[0]["networks"][entry.name]
    settings = READERS[entry.name].settings(read_arrays(file), Path(file).name)
    return dataclasses.asdict(settings)


def load_source(entry: Entry, sizes: dict) -> dict:
    """{"params": {name}, "stats": {name}} of the network that an entry names, {} for random ones.

    sizes  as `source_sizes` found them; UserError where the file has others
    """
    if entry.file == RANDOM:
        return {}
    file = _file_of(entry)
    if os.path.isdir(file):
        found = _directory(entry)[1]
        return {part: {entry.name: found[part].get(entry.name, {})} for part in found}
    settings = settings_from(FROZEN[entry.name].settings, sizes)
    found = READERS[entry.name].load(read_arrays(file), settings, Path(file).name)
    return {part: {entry.name: found[part]} for part in found}


def _directory(entry):
    """(features, network) of a directory that `convert` or a run wrote."""
    directory = open_path(entry.file)
    features = open_meta(directory)["task"].get("features", {})
    if entry.name not in features.get("networks", {}):
        raise UserError(
            f"{directory} holds no {entry.name} network. Give one that "
            f"python -m diffseg_jax.convert --source={entry.name} wrote, or the file itself."
        )
    return features, open_network(directory)[0]
