"""Turns a config file into a ConfigDict: runs it once, then applies --config.option=value."""

import ast
import os
import re
import runpy
import sys
from collections.abc import Iterable
from glob import escape, glob

from diffseg_jax.config.options import SOURCE_DEFAULTS
from diffseg_jax.config.schema import lacking
from diffseg_jax.errors import LONGEST_VALUE, UserError, hint, require_known, shortened, shown

# Config files of version 0.1.0 -> their replacements. Version 0.2 refuses the old names.
MOVED = {
    "dep_cityscapes.py": "ddep_cityscapes.py:dep",
    "ddpm_ffhq.py": "ddpm_published.py:ffhq",
    "ddpm_imagenet64.py": "ddpm_published.py:imagenet64",
    "ddpm_lsun_bedroom.py": "ddpm_published.py:lsun_bedroom",
    "ddpm_lsun_cat.py": "ddpm_published.py:lsun_cat",
    "ddpm_lsun_horse.py": "ddpm_published.py:lsun_horse",
    "ddpm_seg_ade_bedroom30.py": "ddpm_seg_published.py:ade_bedroom30",
    "ddpm_seg_bedroom28.py": "ddpm_seg_published.py:bedroom28",
    "ddpm_seg_cat15.py": "ddpm_seg_published.py:cat15",
    "ddpm_seg_celeba19.py": "ddpm_seg_published.py:celeba19",
    "ddpm_seg_ffhq34.py": "ddpm_seg_published.py:ffhq34",
    "ddpm_seg_horse21.py": "ddpm_seg_published.py:horse21",
}
RENAMED = {"features.source": "features.sources"}  # options of version 0.1.0
# At most one of these options selects a part of the labelled images; these values select all.
SUBSET = {"data.fraction": 1.0, "data.count": 0, "data.list_path": ""}
BOOLEANS = {
    "true": True, "t": True, "yes": True, "1": True,
    "false": False, "f": False, "no": False, "0": False,
}  # fmt: skip
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "True or False", tuple: "a tuple"}


def read_config(given: str, overrides: Iterable[tuple[str, str | bool]] = ()):
    """The locked ConfigDict of "file.py", or of "file.py:preset", after the overrides.

    overrides  pairs (path, text), such as ("data.count", "24"); True or False for a flag without
               text. Tuples given for one option are joined; otherwise the last text counts. One of
               SUBSET replaces what the file chooses by another one.

    Raises UserError for a file that cannot be run, for an option that the config does not have, and
    for a text that does not parse as the type of the option.
    """
    config = run_config(given).lock()
    values = {}
    for path, text in overrides:
        path = _present_name(config, path)
        value = converted(path, text, find(config, path))
        is_repeated = path in values and isinstance(value, (tuple, list))
        values[path] = values[path] + value if is_repeated else value
    with config.unlocked():  # an option of a data set may be new, and the group of one in LACKING
        for path in values:
            config.update(_groups_of(path))
        config.update_from_flattened_dict({**_subset_of_file_off(config, values), **values})
    return config


def _groups_of(path):
    """{"stages": {"train": {}}} of stages.train.steps."""
    group, _, below = path.partition(".")
    return {group: _groups_of(below)} if below else {}


def _present_name(config, path):
    """The path, or its replacement in RENAMED where the config holds that and not the old one."""
    group, _, key = path.rpartition(".")
    values = config.get(group, {}) if "." not in group else {}
    return path if path not in RENAMED or key in values else RENAMED[path]


def _subset_of_file_off(config, values):
    """The options that choose all images, where another one of SUBSET was given."""
    given = [key for key in SUBSET if values.get(key, SUBSET[key]) != SUBSET[key]]
    given += ["data.fraction"] if "data.fraction" in values and not given else []  # 1.0: all images
    if not given:
        return {}
    off = {key: value for key, value in SUBSET.items() if key not in values}
    for key, value in off.items():
        if (replaced := find(config, key)) != value:
            print(f"{given[0]} is given, so {key}={replaced} of the config is off", file=sys.stderr)
    return off


def run_config(given: str):
    """What get_config() of "file.py" returns, or get_config("preset") of "file.py:preset".

    If the file lists PRESETS, the preset must be one of them. Raises UserError for an unknown
    preset, and for a file that is missing or cannot be run.
    """
    file, colon, preset = present(given).partition(":")
    try:
        content = runpy.run_path(file)
        if preset and "PRESETS" in content:
            require_known(preset, content["PRESETS"], f"preset of {file}")
        config = content["get_config"](*([preset] if preset else []))
        config.to_dict()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config file {given}: {error}.") from None
    except Exception as error:  # a config file can raise any error
        raise UserError(
            f"config file {file} cannot be run: {type(error).__name__}: {error}. "
            "It must hold a function get_config() that returns a ConfigDict"
            f"{', and takes the preset after the colon' if colon else ''}."
        ) from None
    return config


def present(given: str) -> str:
    """The file and preset, or their replacements; UserError if there is no such file."""
    file, colon, preset = given.partition(":")
    if os.path.isfile(file):
        return given
    folder, name = os.path.split(file)
    moved = os.path.join(folder, MOVED.get(name, name))
    if name in MOVED and not preset and os.path.isfile(moved.partition(":")[0]):
        print(
            f"warning: {file} is now {moved}. Give --config={moved}; the next version refuses the "
            "old name.",
            file=sys.stderr,
        )
        return moved
    for shipped in glob("configs/*.py") + glob("configs/studies/*.py"):
        if os.path.basename(shipped).removesuffix(".py") == name.removesuffix(".py"):
            meant = f"{shipped}{colon}{preset}"
            raise UserError(f'there is no config file {file}. Did you mean "{meant}"?')
    known = glob(os.path.join(escape(folder), "*.py"))
    where = "" if known else " The repository holds its configs in the folder configs."
    raise UserError(f"there is no config file {file}.{hint(file, known)}{where}")


def find(config, path: str):
    """The value of the option a.b.c; UserError if the config has no such option.

    Every option of a data set, as data.options.ignore, may be given, and those in LACKING.
    """
    value, before = config, ""
    for key in path.split("."):
        if not hasattr(value, "keys"):
            raise UserError(f"the config has no option {path}: {before[:-1]} is {shown(value)}.")
        if key not in value:
            is_source = re.fullmatch(r"\w+\.options\.", before)
            known, group = SOURCE_DEFAULTS if is_source else lacking(before), f"{before}{key}."
            if not lacking(group) and (key not in known or f"{before}{key}" != path):
                known = {*value, *known}
                raise UserError(f"the config has no option {before}{key}.{hint(key, known)}")
            value = {key: lacking(group) or known[key]}
        value, before = value[key], f"{before}{key}."
    return value


def converted(path: str, text: str | bool, now):
    """The text as a value of the type of `now`, the current value; UserError if it is not one."""
    if hasattr(now, "keys"):
        first = next(iter(now), "x")
        raise UserError(
            f"--config.{path} holds several options; give them one by one, as in "
            f"--config.{path}.{first}=..."
        )
    try:
        return _parsed(text, now)
    except (ValueError, SyntaxError, KeyError, RecursionError, MemoryError):
        expected = f"{TYPE_NAMES.get(type(now), 'text')}, such as {shown(now)}"
        if isinstance(text, bool):
            raise UserError(f"--config.{path} needs a value: {expected}.") from None
        text = shortened(text, LONGEST_VALUE)
        raise UserError(f'--config.{path} is "{text}", but it must be {expected}.') from None


def _parsed(text, now):
    if isinstance(now, bool):
        return text if isinstance(text, bool) else BOOLEANS[text.lower()]
    if isinstance(text, bool):
        raise ValueError
    if isinstance(now, (tuple, list)):
        return type(now)(_elements(text))
    return type(now)(text) if isinstance(now, (int, float)) else text


def _elements(text):
    """The elements of a tuple or list in Python syntax, or of bare names between commas."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if re.fullmatch(r"[^\s()\[\]'\",]+(,[^\s()\[\]'\",]+)*", text):
            return tuple(text.split(","))
        if isinstance(error, SyntaxError) and ("," in text or " " in text):
            raise
        return (text,)
    return value if isinstance(value, (tuple, list)) else (value,)
