"""What `--mode=prepare` writes into a folder beside the files of TFDS, read back.

prepared.json names the data set, the options and the labels that the folder was made from.
"""

import json

from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import open_path, reachable

PREPARED_FILE = "prepared.json"
NAMES_FILE = "names-{split}.json"  # a list: the names of the examples of a split, in order
NO_SPLIT = "pictures"  # the split of a prepared folder whose data set has no splits


def non_empty(options):
    """The options that are not empty; lists become tuples, and ids to ignore are unique."""
    values = {
        key: tuple(value) if isinstance(value, (list, tuple)) else value
        for key, value in options.items()
    }
    if "ignore" in values:  # (0, 0) would look like an empty size
        values["ignore"] = tuple(dict.fromkeys(values["ignore"]))
    return {key: value for key, value in values.items() if value not in ("", 0, (0, 0), ())}


def without_applied(folder, options, seed, square):
    """(options, square) without those that `--mode=prepare` applied when it wrote the folder.

    So a config whose source alone is changed to the prepared folder reads the same examples. Raises
    UserError for an option whose value differs from the one that the folder was prepared with.
    """
    file = open_path(folder) / PREPARED_FILE
    with reachable(file):
        if not file.exists():
            return options, square
    applied = read_json(file, dict).get("options")
    if not isinstance(applied, dict):
        raise UserError(f"{file} has no options. Copy or prepare the folder again.")
    applied = non_empty(applied)
    for key, value in (options | non_empty({"seed": seed, "square": square})).items():
        if key in applied and applied[key] != value:
            raise UserError(
                f"{folder} was prepared with {key}={applied[key]}, but {key}={value} is given. "
                "Give the same value, or prepare another folder."
            )
    remaining = {key: value for key, value in options.items() if key not in applied}
    return remaining, 0 if "square" in applied else square


def listed_names(builder, split, base):
    """The names of the examples of `split`, which is `base` or a slice of it."""
    import tensorflow_datasets as tfds

    file = builder.data_path / NAMES_FILE.format(split=base)
    names, count = read_json(file, list), builder.info.splits[base].num_examples
    if not all(isinstance(name, str) for name in names) or len(set(names)) != count:
        raise UserError(
            f"{file} does not list the different names of {count} examples. Copy or prepare the "
            "folder again."
        )
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    return tuple(name for part in parts for name in names[part.from_ : part.to])


def read_json(file, expected: type):
    """The list or dict in a file of a prepared folder; UserError for anything else."""
    with reachable(file):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"cannot read {file}: {error}. Copy or prepare the folder again."
            ) from None
    if not isinstance(content, expected):
        raise UserError(
            f"{file} does not hold a {expected.__name__}. Copy or prepare the folder again."
        )
    return content
