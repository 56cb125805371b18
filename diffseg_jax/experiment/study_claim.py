"""Which study a folder holds, in study.json, and what of a study may change; loads no jax."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from diffseg_jax.config.files import converted, find, read_config
from diffseg_jax.config.schema import as_tuples, differing_lines
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.study_cells import as_typed
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.storage.json_files import read_json_object
from diffseg_jax.storage.paths import write_json

STUDY_FILE = "study.json"
MOST_LINES = 12  # of an error
ABSENT = "(absent)"


def claim_study(study: Study, workdir: Path):
    """Writes what is studied; UserError if the workdir holds another study.

    Points of axes and seeds may be added later. Those that were studied once stay in the file, so
    that none comes back with other options under the name of its old numbers.
    """
    stored, mine = require_same_study(study, workdir)
    mine["seeds"] = {**stored["seeds"], **mine["seeds"]}
    mine["axes"] = {key: {**stored["axes"][key], **now} for key, now in mine["axes"].items()}
    mine["combined"] = {**stored.get("combined", {}), **mine["combined"]}
    write_json(workdir / STUDY_FILE, mine)


def require_same_study(study: Study, workdir: Path) -> tuple[dict, dict]:
    """What the numbers in the workdir depend on, as stored, and those of this study.

    Raises UserError if the workdir holds another study; in one that holds none both are the same.
    """
    file, mine = workdir / STUDY_FILE, _claim_of(study)
    stored = read_json_object(file, ". Restore the file.") if file.exists() else mine
    if lines := _changes(stored, mine):
        more = len(lines) - MOST_LINES
        lines = [*lines[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])]
        raise UserError(
            f"{workdir} holds another study; take another --workdir, such as {workdir}_2, or "
            "undo:\n  " + "\n  ".join(lines)
        )
    return stored, mine


def _claim_of(study) -> dict:
    """What the numbers of a study depend on, as the file returns it."""
    return json.loads(json.dumps({
        "base": study.base, "config": read_config(study.base).to_dict(),
        "options": dict(study.options), "shared": dict(study.shared),
        "features": dict(study.features), "evaluated": study.evaluated, "stage": study.stage,
        "axes": {axis.name: dict(axis.points) for axis in study.axes},
        "combined": {json.dumps(labels): options for labels, options in study.combined.items()},
        "seeds": dict(study.seeds.points),
    }))  # fmt: skip


def _changes(stored, mine) -> list[str]:
    """A line for everything that is not as it was; earlier files may lack some of it."""
    stored = {**mine, "features": {}, "axes": {}, "seeds": {}, "combined": {}, **stored}
    both, base = (stored, mine), read_config(mine["base"])
    lines = _differing(*({key: each[key] for key in ("evaluated", "stage")} for each in both))
    lines += _differing(*({"axes": list(each["axes"])} for each in both))
    lines += _differing(stored["shared"], mine["shared"], " in shared")
    for name in ("options", "features"):
        lines += _differing(*(_as_read(base, each[name]) for each in both), f" in {name}")
    axes = [(name, *(each["axes"].get(name, {}) for each in both)) for name in mine["axes"]]
    for name, before, now in (*axes, ("seeds", stored["seeds"], mine["seeds"])):
        for label in (label for label in now if label in before):
            points = (_as_read(base, each[label]) for each in (before, now))
            lines += _differing(*points, f" at {label} of {name}")
    for point in {**stored["combined"], **mine["combined"]}:
        labels = json.loads(point)
        if all(_has_point(each, labels) for each in both):
            options = (_as_read(base, each["combined"].get(point, {})) for each in both)
            lines += _differing(*options, f" at {' / '.join(labels)}")
    of_base = differing_lines(stored["config"], mine["config"])
    return lines + [f"{line} in {mine['base']}" for line in of_base if not _is_of_mesh(line)]


def _has_point(claim, labels):
    return all(label in axis for label, axis in zip(labels, claim["axes"].values()))


def _is_of_mesh(option):
    """Numbers do not depend on it."""
    return option.startswith("mesh.")


def _as_read(base, options) -> dict:
    """Options of the base config as it holds them, however they were typed."""
    found = {key: value for key, value in options.items() if not _is_of_mesh(key)}
    for key, value in found.items():
        with contextlib.suppress(UserError):  # of an option that there was in an earlier version
            found[key] = as_tuples(converted(key, as_typed(value), find(base, key)))
    return found


def _differing(before: Mapping, now: Mapping, where: str = "") -> list[str]:
    keys = dict.fromkeys((*before, *now))
    pairs = ((key, before.get(key, ABSENT), now.get(key, ABSENT)) for key in keys)
    text = lambda value: '""' if value == "" else value
    return [f"{key}: {text(old)} -> {text(new)}{where}" for key, old, new in pairs if old != new]
