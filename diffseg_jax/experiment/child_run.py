"""A run of a command in a process of its own, whose lines are shown and kept."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from diffseg_jax.storage.lock import InUse, require_free
from diffseg_jax.storage.workdir import FIT_FEATURES

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss
POLL = 2.0  # seconds between two looks at a run that an earlier command has left


def record_of_command(
    command: Sequence[str], log: Path, folder: Path, task: str, say: Callable[[str], None]
) -> dict:  # fmt: skip
    """Runs a command: {"seconds", "command", ...}, and why it "failed", if it did.

    folder, task  of the lock that it takes: a run that goes on there is waited for. The features
                  that its fits have kept are removed once it has ended or failed, as there may be
                  many runs
    others        as of `run_watched`
    """
    while True:
        wait_until_free(folder, task, say)
        begun = time.perf_counter()
        status, usage, last = run_watched(command, log, say)
        if not status or not _holder_of(folder, task):
            break  # else another run, left by a killed command, took the lock while this one began
    record = {
        "seconds": time.perf_counter() - begun, "command": shell_line(command),
        "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * MAXRSS_UNIT,
    }  # fmt: skip
    shutil.rmtree(folder / FIT_FEATURES, ignore_errors=True)
    if status:
        return {**record, "failed": last.removeprefix("error: ") or f"exit code {status}"}
    return record


def shell_line(command: Sequence[str]) -> str:
    """A command, given as it follows python, for a shell."""
    return shlex.join(["python", *command])


def wait_until_free(folder: Path, task: str, say: Callable[[str], None]):
    """Returns once no run writes in a folder: one may outlive a command that was killed.

    Raises UserError for a folder that cannot be reached.
    """
    if holder := _holder_of(folder, task):
        say(f"  waits for a run that goes on: {holder}")
    while _holder_of(folder, task):
        time.sleep(POLL)


def _holder_of(folder, task) -> str:
    """The sentence that names the run which writes in a folder now; "" if none does."""
    try:
        require_free(folder, task, "--workdir")
    except InUse as error:
        return str(error)
    return ""


def run_watched(command: Sequence[str], log: Path, say: Callable[[str], None]):
    """(exit code, resource usage, last line) of a run whose lines are shown and kept in a file.

    The last line of a run that a signal has ended says so.

    command  as typed after python
    log      its folder is made
    say      takes each line as it comes, indented
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    last = ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", buffering=1) as kept:  # whoever follows it sees every line at once
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        try:
            for line in process.stdout:
                say(f"  {line.rstrip()}")
                kept.write(line)
                last = line.strip() or last
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:  # Ctrl-C reaches the run as well, which saves and ends
            process.terminate()
            process.wait()
            raise
    if process.returncode < 0:
        last = _ended_by(-process.returncode)
    return process.returncode, usage, last


def _ended_by(number):
    """That a signal ended a process, which could not say so itself."""
    perhaps = "; perhaps the memory was full" if number == signal.SIGKILL else ""
    return f"was ended by signal {number} ({signal.strsignal(number)}){perhaps}"
