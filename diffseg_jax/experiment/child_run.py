"""A run of a command in a process of its own, whose lines are shown and kept."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss


def run_watched(command: Sequence[str], log: Path, say: Callable[[str], None]):
    """(exit code, resource usage, last line) of a run whose lines are shown and kept in a file.

    command  as typed after python
    log      its folder is made
    say      takes each line as it comes, indented
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    last = ""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as kept:
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
    return process.returncode, usage, last
