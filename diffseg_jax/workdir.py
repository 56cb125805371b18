"""A run's directory: whose it is, and the results in it."""

import json
import tempfile
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffseg_jax.checkpoints import write_json
from diffseg_jax.config import UserError, differing_lines


def claim_workdir(config: ConfigDict, workdir: Path):
    """Makes the workdir and writes config.json, or checks that its checkpoints are this config's.

    A run that stopped before its first checkpoint left nothing to mix up, so its config may change.
    Raises UserError when the workdir cannot be written or holds a run of another config.
    """
    make_workdir(workdir)
    if has_checkpoints(workdir) and (workdir / "config.json").exists():
        check_same(config, workdir, may_differ=("mesh",))
    elif jax.process_index() == 0:
        write_json(workdir / "config.json", plain(config.to_dict()))


def make_workdir(workdir: Path):
    """Raises UserError when it cannot be made or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror}). "
            "Give a directory of yours, such as --workdir=runs/a."
        ) from None


def has_checkpoints(workdir: Path) -> bool:
    """Whether a stage saved anything whole there."""
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*/*"))


def check_same(config: ConfigDict, workdir: Path, may_differ: tuple[str, ...]):
    """Raises UserError with the lines in which a config is not the workdir's.

    may_differ  first words of options that may
    """
    file = workdir / "config.json"
    try:
        old = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}), so whose checkpoints {workdir} holds is unknown. "
            "Take another --workdir, or put the file back."
        ) from None
    lines = [
        line for line in differing_lines(old, plain(config.to_dict()))
        if not line.startswith(tuple(f"{word}." for word in may_differ))
    ]  # fmt: skip
    if lines:
        raise UserError(
            f"workdir {workdir} holds a run of another config; take another --workdir, or undo:\n  "
            + "\n  ".join(lines)
        )


def read_results(workdir: Path) -> dict:
    """What results.json says of each stage, {} without the file."""
    file = workdir / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


def plain(values):
    """The same values as JSON gives them back: tuples as lists."""
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    return [plain(value) for value in values] if isinstance(values, (tuple, list)) else values
