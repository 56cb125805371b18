"""Flags -> config -> one call; the only file that reads flags.

python -m diffseg_jax.main --config=configs/ddep_scenes.py --workdir=runs/scenes

Exit codes: 0 finished; 2 a mistake, in one sentence; 75 stopped by SIGTERM, after saving; 130
Ctrl-C; 134 (as SIGABRT) another process of the run did not come or was lost. After all but 0, 2 and
130 a new start is worth it: the same command goes on from the last checkpoint.
"""

import difflib
import os
import re
import runpy

from absl import app, flags
from ml_collections import config_flags

from diffseg_jax.cli import CACHE, use_cache, use_memory, user_errors
from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.errors import UserError, choose
from diffseg_jax.experiment import check_data, prepare_data, steps_study, tap_study, train
from diffseg_jax.storage.workdir import open_workdir

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, numbers and pictures go.")
MODE = flags.DEFINE_string("mode", "train", "train, eval, check, taps, steps or prepare.")
COMPILED = flags.DEFINE_string(
    "compilation_cache", CACHE, "Where compiled programs go; empty for nowhere."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "auto",
    "Where processes of one run meet: host:port of process 0; auto: what the cluster says (TPU "
    "pod, SLURM, Open MPI, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), none: "
    "one process.",
)  # fmt: skip
PROCESSES = flags.DEFINE_integer("processes", -1, "With host:port: how many processes.")
PROCESS = flags.DEFINE_integer("process", -1, "With host:port: which of them this is, from 0.")
JOIN_WITHIN = flags.DEFINE_integer(
    "join_within", 300, "Seconds that processes wait for each other at the start.", 1
)
LOST_AFTER = flags.DEFINE_integer(
    "lost_after", 30, "Seconds without a sign of life until a process counts as lost.", 5
)
MEMORY = flags.DEFINE_float(
    "memory_fraction", None, "Share of a GPU's memory taken at the start (jax takes 0.75); 0: "
    "memory is taken as it is needed.", 0.0, 1.0,
)  # fmt: skip
OWN = (
    CONFIG, WORKDIR, MODE, COMPILED, COORDINATOR, PROCESSES, PROCESS, JOIN_WITHIN, LOST_AFTER,
    MEMORY,
)  # fmt: skip

MODES = {
    "train": train.train,
    "eval": train.evaluate_only,
    "check": check_data.check_data,
    "taps": tap_study.choose_taps,
    "steps": steps_study.choose_steps,
    "prepare": prepare_data.prepare,
}


def main(arguments):
    """Runs the mode; a user's mistake ends with one sentence and exit code 2."""
    if arguments[1:]:
        raise UserError(f'"{arguments[1]}" is no flag. Flags begin with --, such as --mode=eval.')
    mode = choose(MODES, MODE.value, "mode")
    if CONFIG.value is None:
        raise UserError("no config was given. Try --config=configs/ddep_scenes.py.")
    if not WORKDIR.value:
        raise UserError("no workdir given. Try --workdir=runs/a.")
    use_cache(COMPILED.value)
    workdir = open_workdir(WORKDIR.value)
    use_memory(MEMORY.value)
    processes.join(
        COORDINATOR.value, PROCESSES.value, PROCESS.value, JOIN_WITHIN.value, LOST_AFTER.value
    )
    find_devices()
    mode(CONFIG.value, workdir)


def _parse(arguments):
    """The flags, or a UserError in place of the tracebacks of absl and ml_collections."""
    values = _check_config_flags(arguments)
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from None
    except flags.IllegalFlagValueError as error:
        raise UserError(_wrong_value(str(error), values)) from None
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error).splitlines()[0]) from None


def _check_config_flags(arguments):
    """The config as nested dicts, {} without one.

    Raises UserError for a config file that cannot be run, and for options that it does not hold.
    """
    file = None
    for place, argument in enumerate(arguments[1:], 1):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            file = value if equals else "".join(arguments[place + 1 : place + 2])
    if file is None:
        if any(argument.startswith("--config.") for argument in arguments[1:]):
            raise UserError("options of a config are given, but no config. Add --config=<file>.")
        return {}
    values = _run_config(file)
    for argument in arguments[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            _check_path(values, match[1])
    return values


def _run_config(given):
    """The options of "file.py", or of "file.py:argument", which goes to its get_config."""
    file, colon, argument = given.partition(":")
    if not os.path.isfile(file):
        folder = os.path.dirname(file) or "."
        names = os.listdir(folder) if os.path.isdir(folder) else []
        known = [os.path.join(folder, name) for name in names if name.endswith(".py")]
        where = "" if known else " Configs lie in the folder configs of the repository."
        raise UserError(f"there is no config file {file}.{_advice(file, known)}{where}")
    try:
        arguments = [argument] if argument else []
        return runpy.run_path(file)["get_config"](*arguments).to_dict()
    except ValueError as error:
        raise UserError(f"config file {given}: {error}.") from None
    except Exception as error:  # whatever the user's own program raises
        raise UserError(
            f"config file {file} cannot be run: {type(error).__name__}: {error}. "
            "It must hold a function get_config() that returns a ConfigDict"
            f"{', and take what stands after the colon' if colon else ''}."
        ) from None


def _check_path(values, path):
    """Raises UserError unless a.b.c is an option of the nested dicts."""
    before = ""
    for word in path.split("."):
        if not isinstance(values, dict):
            raise UserError(f"the config has no option {path}: {before[:-1]} is {values!r}.")
        if word not in values:
            raise UserError(f"the config has no option {before}{word}.{_advice(word, values)}")
        values, before = values[word], f"{before}{word}."


def _unknown_flag(name):
    known = [f"--{flag.name}" for flag in OWN]
    return f"there is no flag --{name}.{_advice(f'--{name}', known)}"


def _wrong_value(message, now):
    """absl's "flag --a.b=given: reason" as a sentence that shows what the option holds now."""
    name, given = re.match(r"flag --([^=]+)=(.*?): ", message, re.DOTALL).groups()
    if not name.startswith("config."):
        lower = getattr(flags.FLAGS[name].parser, "lower_bound", None)
        upper = getattr(flags.FLAGS[name].parser, "upper_bound", None)
        most = "" if upper is None else f" to {upper:g}"
        return f"--{name} is {given}, but it must be a number from {lower or 0:g}{most or ' up'}."
    for word in name.split(".")[1:]:
        now = now[word]
    if isinstance(now, dict):
        first = next(iter(now), "x")
        return f"--{name} holds several options; give them one by one, as in --{name}.{first}=..."
    kinds = {int: "a whole number", float: "a number", bool: "True or False", tuple: "a tuple"}
    return f'--{name} is "{given}", but it must be {kinds.get(type(now), "text")}, such as {now!r}.'


def _advice(name, known):
    """The nearest of the known names, or all of them."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    if near:
        return f" Did you mean {near[0]}?"
    return f" Known: {', '.join(sorted(known))}." if known else ""


def run():
    """The command line."""
    stopped = "stopped; the same command goes on from the last checkpoint, if one was saved"
    with user_errors(stopped):
        app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
