"""A study as its file in configs/studies/ describes it; loads no jax.

The file holds `get_study(preset)`, which returns a dict of the fields of `Study`. An axis is either
an option of the base config with its values, or a name with points, each of which sets options:

    axes={
        "data.count": (6, 12, 24),
        "pretraining": {"none": {"run": ("scratch",)}, "DeP": {"run": ("pretrain", "finetune")}},
    }
"""

import dataclasses
import math
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from diffseg_jax.config.files import SUBSET, present
from diffseg_jax.errors import UserError, choose, hint, require_known, shown

PLOTS = ("lines", "bars", "grid")
PAPERS = ("ddpm_seg", "mmseg")  # of papers, in front of a number: ddpm_seg.mIoU


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is varied: label of a point -> {option of the config: value}, in their order."""

    name: str
    points: Mapping[str, Mapping[str, object]]


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs of one config.

    base       the config, as it is typed after --config
    options    {option: value} of all cells that differ from the base
    combined   {labels of a point of every axis: {option: value}}: options that depend on several
               axes, such as the file of a network of one kind for one data set
    axes       the first one gives the columns of the table, others its rows; along each of them
               the points are compared with the first one
    seeds      repetitions, whose columns are compared with each other
    shared     stage -> groups of options that it does not read: cells that differ in nothing else
               share one run of it. "seed" is such a group for a stage that is trained once for all
    features   options with which --mode=features keeps the features of a fit once, such as all
               "features.steps"; cells read theirs from the files. Its groups in `shared` are those
               of "features"; {}: every cell computes its features
    evaluated  names of axes whose options only predictions read: a trained network is measured
               with each of their points
    collect    numbers of results.json, such as "mIoU" or "calibration.ECE"; the first is compared
    stage      whose numbers those are; "": the last stage of a run
    plot       one of PLOTS
    titles     name of an axis or a number -> how tables and plots call it
    seconds    on `device`: of a "start" of the program, of a step of each stage (of a whole fit),
               of all kept "features", and of an evaluated "image", of which there are "images"
    device     which `seconds` are those of
    made       {folder of a cell: the commands that make it}, for an error where it is missing
    costs      whether a prediction is measured at every point: parameters, operations, time
    about      a sentence about what the study shows
    """

    name: str
    base: str
    axes: tuple[Axis, ...]
    options: Mapping[str, object]
    combined: Mapping[tuple[str, ...], Mapping[str, object]]
    seeds: Axis
    shared: Mapping[str, tuple[str, ...]]
    features: Mapping[str, object]
    evaluated: tuple[str, ...]
    collect: tuple[str, ...]
    stage: str
    plot: str
    titles: Mapping[str, str]
    seconds: Mapping[str, float]
    device: str
    made: Mapping[str, str]
    costs: bool
    about: str

    def title(self, name: str) -> str:
        """How tables and plots call an axis or a number."""
        return self.titles.get(name, name)


FIELD_TYPES = {  # of the fields in a file
    "base": str, "axes": Mapping, "options": Mapping, "combined": Mapping, "seeds": Mapping,
    "shared": Mapping, "features": Mapping,
    "evaluated": tuple, "collect": tuple, "stage": str, "plot": str, "titles": Mapping,
    "seconds": Mapping, "device": str, "made": Mapping, "costs": bool, "about": str,
}  # fmt: skip
DEFAULTS = {
    "options": {}, "combined": {}, "seeds": {"seed": (0, 1, 2)}, "shared": {}, "features": {},
    "evaluated": (), "collect": ("mIoU",), "stage": "", "plot": "lines", "titles": {},
    "seconds": {}, "device": "this machine", "made": {}, "costs": False, "about": "",
}  # fmt: skip


def read_study(given: str, overrides: Iterable[tuple[str, str | bool]] = ()) -> Study:
    """The study of "file.py" or "file.py:preset".

    overrides  pairs (option of the base config, value as it is typed) of all cells

    Raises UserError for a file that does not describe a study.
    """
    values = {**DEFAULTS, **_run(given)}
    for name, value in values.items():
        if name not in FIELD_TYPES:
            raise UserError(f'{given} has an unknown field "{name}".{hint(name, FIELD_TYPES)}')
        if not isinstance(value, FIELD_TYPES[name]):
            nouns = {Mapping: "a dict", tuple: "a tuple", bool: "True or False"}
            noun = nouns.get(FIELD_TYPES[name], "text")
            raise UserError(f"{name} of {given} is {shown(value)}, but it must be {noun}.")
    for name in ("base", "axes"):
        if not values.get(name):
            raise UserError(f'{given} has no "{name}". Compare configs/studies/label_fractions.py.')
    _require_elements(given, values)
    for name in ("options", "features"):
        values[name] = _plain_options(values[name], name)
    require_known(values["plot"], PLOTS, "plot")
    axes = tuple(_axis(name, points) for name, points in values["axes"].items())
    for name in values["evaluated"]:
        choose({axis.name: axis for axis in axes}, name, "axis")
    overrides, seeds = dict(overrides), _seeds(values["seeds"])
    together = Axis("combined", _combined(given, axes, values["combined"]))
    _require_own_options((*axes, seeds, together), overrides)
    _require_whole(given, values)
    values |= {
        "base": _found(values["base"], given), "name": given, "axes": axes, "seeds": seeds,
        "combined": together.points,
        "options": _options_with(values["options"], overrides),
    }  # fmt: skip
    return Study(**values)


def _found(base, given):
    """A base config as it is typed from here: where it is not, from a folder above the study's."""
    file, colon, preset = base.partition(":")
    above = [] if Path(file).exists() else Path(given.partition(":")[0]).resolve().parents
    found = (str(folder / file) for folder in above if (folder / file).is_file())
    return f"{next(found, file)}{colon}{preset}"


def _options_with(options, overrides):
    """The options of all cells; one of SUBSET replaces another one that the file chooses."""
    replaced = set(SUBSET) if set(SUBSET) & set(overrides) else set()
    return {key: v for key, v in options.items() if key not in replaced} | overrides


def _require_elements(given, values):
    """UserError for a key that is no text, and for an element of another type than its field's."""
    fields = [name for name, kind in FIELD_TYPES.items() if kind in (Mapping, tuple)]
    held = [(name, values[name]) for name in fields if name != "combined"]
    held += [(name, values[name].values()) for name in ("titles", "made")]
    for name, elements in held:
        for each in elements:
            if not isinstance(each, str):
                raise UserError(f"{name} of {given} holds {shown(each)}, but it must hold text.")
    for name, value in values["seconds"].items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise UserError(
                f"seconds of {given} are {shown(value)} at {name}, but they must be a number, 0 or "
                "more."
            )


def _is_options(value):
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _require_whole(given, values):
    """UserError for fields that lack what others need."""
    if not values["collect"]:
        raise UserError(f'collect of {given} is empty. Name one number or more, as ("mIoU",).')
    for name, groups in values["shared"].items():
        if not isinstance(groups, (tuple, list)) or not all(isinstance(g, str) for g in groups):
            raise UserError(
                f"shared of {given} is {shown(groups)} at {name}, but it must be a tuple of groups "
                'of options, such as ("data", "seed").'
            )
    if values["features"] and "features" not in values["shared"]:
        raise UserError(
            f"{given} keeps features, but does not say on which options they do not depend. Give "
            'shared={"features": ("ensemble", "seed")}, and those that the cells vary.'
        )


def _run(given):
    """What get_study() of a file returns."""
    file, _, preset = present(given).partition(":")
    try:
        content = runpy.run_path(file)
        if "get_study" not in content:
            raise UserError(
                f"{file} has no function get_study(), so it is no study. Studies are in "
                f"configs/studies/; python -m diffseg_jax.main --config={given} trains a config."
            )
        if preset and "PRESETS" in content:
            require_known(preset, content["PRESETS"], f"preset of {file}")
        values = content["get_study"](*([preset] if preset else []))
        return dict(values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"study {given}: {error}.") from None
    except Exception as error:  # a file can raise any error
        raise UserError(
            f"study {file} cannot be run: {type(error).__name__}: {error}. It must hold a function "
            "get_study() that returns a dict, as configs/studies/label_fractions.py does."
        ) from None


def _axis(name, points) -> Axis:
    if isinstance(points, (tuple, list)):
        pairs = [(_label(value), {name: value}) for value in points]
    else:
        pairs = list(points.items()) if isinstance(points, Mapping) else []
    if not pairs:
        raise UserError(
            f"axis {name} is {shown(points)}, but it must be a tuple of values of that option, or "
            "a dict of names with the options that each sets."
        )
    found = {}
    for label, options in pairs:
        if not _is_options(options):
            raise UserError(
                f"axis {name} sets {shown(options)} at {label}, but it must be a dict of options."
            )
        if str(label) in found:
            raise UserError(
                f"axis {name} has two points that are called {label}. Give points names that "
                "differ, in a dict of names with the options that each sets."
            )
        found[str(label)] = _plain_options(options, f"axis {name}")
    return Axis(name, found)


def _combined(given, axes, options):
    """Checked options of points of all axes together."""
    for labels, chosen in options.items():
        whole = isinstance(labels, tuple) and len(labels) == len(axes)
        known = whole and all(label in axis.points for axis, label in zip(axes, labels))
        if not known or not _is_options(chosen):
            first = tuple(next(iter(axis.points)) for axis in axes)
            raise UserError(
                f"combined of {given} is {shown(chosen)} at {shown(labels)}, but it must be a dict "
                f"of options at a tuple with a label of every axis, such as {first}."
            )
    return {labels: _plain_options(chosen, "combined") for labels, chosen in options.items()}


def _plain_options(options, where):
    """Options with numbers of Python in place of numpy's; UserError for what cannot be typed."""
    return {key: _plain(value, f"{key} of {where}") for key, value in options.items()}


def _plain(value, where):
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (tuple, list)):
        return tuple(_plain(each, where) for each in value)
    if not isinstance(value, (bool, int, float, str)):
        raise UserError(
            f"{where} is {shown(value)}, but it must be a number, text, True, False, or a tuple of "
            "those. Leave the option out where it should stay as in the base config."
        )
    return value


def _label(value):
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (tuple, list)):
        return " ".join(map(_label, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _seeds(values) -> Axis:
    """Repetition i takes the i-th value of every option.

    Its label is its value of the first option whose values all differ.
    """
    lengths = {len(each) for each in values.values() if isinstance(each, (tuple, list))}
    if len(lengths) != 1 or not all(isinstance(v, (tuple, list)) for v in values.values()):
        raise UserError(
            f"seeds are {shown(values)}, but they must be options with tuples of one length, such "
            'as {"seed": (0, 1, 2)}.'
        )
    number = lengths.pop()
    labelled = [tuple(map(_label, each)) for each in values.values()]
    labels = next((each for each in labelled if len(set(each)) == number), ())
    if not labels:
        raise UserError(
            f"seeds are {shown(values)}, but they must be one or more, and the values of one "
            "option must all differ."
        )
    options = (dict(zip(values, each)) for each in zip(*values.values(), strict=True))
    pairs = zip(labels, options, strict=True)
    return Axis("seeds", {label: _plain_options(each, "seeds") for label, each in pairs})


def _require_own_options(axes, overrides):
    """UserError where two axes, of which seeds are one, set an option, or --config.option too."""
    owners = {}
    for axis in axes:
        for key in dict.fromkeys(key for options in axis.points.values() for key in options):
            if key in owners:
                raise UserError(
                    f"the axes {owners[key]} and {axis.name} both set {key}. Let one axis set it."
                )
            owners[key] = axis.name
    for key in overrides:
        for owned in SUBSET if key in SUBSET else (key,):
            if owned in owners:
                raise UserError(
                    f"--config.{key} is given, but the study varies {owned} along {owners[owned]}. "
                    "Change the values in a copy of the file."
                )
