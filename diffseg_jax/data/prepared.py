"""What --mode=prepare leaves beside the files of TFDS in a folder."""

import json

from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import open_path, reachable

# Beside TFDS's files in a folder that --mode=prepare wrote: what it was made from and how.
PREPARED = "prepared.json"

NAMES = "names-{split}.json"  # names of the examples of a split in order, a list

NO_SPLIT = "pictures"  # what the split of sources that need none is called there


def stated(options):
    """Those of the options that are not empty, as tuples, numbers and text; ids once each."""
    values = {
        key: tuple(value) if isinstance(value, (list, tuple)) else value
        for key, value in options.items()
    }
    if "ignore" in values:  # (0, 0) would read as no size
        values["ignore"] = tuple(dict.fromkeys(values["ignore"]))
    return {key: value for key, value in values.items() if value not in ("", 0, (0, 0), ())}


def still_to_do(folder, given, seed, square):
    """(options, square) without those that --mode=prepare applied when it wrote the folder.

    So a config reads what was prepared from it when nothing but its source is changed. Raises
    UserError for an option that the folder was prepared with another value of.
    """
    file = open_path(folder) / PREPARED
    with reachable(file):
        if not file.exists():
            return given, square
    made = _read_json(file, dict).get("options")
    if not isinstance(made, dict):
        raise UserError(f"{file} has no options. Copy or prepare the folder again, whole.")
    made = stated(made)
    for key, value in (given | stated({"seed": seed, "square": square})).items():
        if key in made and made[key] != value:
            raise UserError(
                f"{folder} was prepared with {key}={made[key]}, but {key}={value} is given. Give "
                "the same value, or prepare another folder."
            )
    left = {key: value for key, value in given.items() if key not in made}
    return left, 0 if "square" in made else square


def listed_names(builder, split, whole):
    """The names of the examples of `split`, which is `whole` or a slice of it, as prepared."""
    import tensorflow_datasets as tfds

    file = open_path(builder.data_dir) / NAMES.format(split=whole)
    names, count = _read_json(file, list), builder.info.splits[whole].num_examples
    if not all(isinstance(name, str) for name in names) or len(set(names)) != count:
        raise UserError(
            f"{file} does not list the different names of {count} examples. Copy or prepare the "
            "folder again, whole."
        )
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    return tuple(name for part in parts for name in names[part.from_ : part.to])


def _read_json(file, kind):
    """The list or dict in a file of a prepared folder; UserError for anything else."""
    with reachable(file):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"cannot read {file}: {error}. Copy or prepare the folder again, whole."
            ) from None
    if not isinstance(content, kind):
        raise UserError(
            f"{file} holds no {kind.__name__}. Copy or prepare the folder again, whole."
        )
    return content
