"""Writes the network of a feature source as a directory that `load` opens."""

import os

from ml_collections import ConfigDict

from diffseg_jax.devices.settings import own_settings
from diffseg_jax.inference.converted import CONFIG, require_unused, save_converted
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.feature_sources import Entry
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.source_files import load_source, source_sizes, table_note

TRACED_SIDE = 224  # of the images with which the network is traced


@own_settings()
def convert_source(
    name: str, path: str | os.PathLike, output: str | os.PathLike, part: str = "",
    **options,
) -> int:  # fmt: skip
    """Writes the network in a file as a directory with one checkpoint.

    name  of the feature source, a key of `systems.feature_sources.FROZEN`
    part  of the file, as of `read_arrays`
    options  as of `source_sizes`

    Returns the number of parameters. Raises UserError for a file that cannot be read or holds
    another network, and for an output that exists.
    """
    require_unused(output)
    entry = Entry(name, str(path))
    sizes = source_sizes(entry, part, **options)
    values = load_source(entry, sizes, part)
    features = {
        "sources": (name,), "taps": (), "networks": {name: sizes}, "scales": (1.0,),
        "dtype": "float32", "place": "device",
    }  # fmt: skip
    config = ConfigDict({**CONFIG, "system": "ddpm_seg", "features": features})
    task = SYSTEMS["ddpm_seg"].make_task(config, "features", (TRACED_SIDE, TRACED_SIDE), 0)
    shown = ", ".join(f"{key} {value}" for key, value in sizes.items())
    print(f"{path}: {name} with {shown}")
    if note := table_note(sizes):
        print(f"{path}: {note}")
    return save_converted(output, values, path, config.to_dict(), as_json(task.meta))
