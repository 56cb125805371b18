"""One writer at a time: a lock file in a folder that names the process which writes there.

<folder>/.<task>.lock is JSON. The holder writes it again every BEAT seconds and removes it at the
end. A lock whose holder was killed does not hold up the next process: on the same machine the
holder's process is looked up. Where it cannot be seen, as from another machine, on a network file
system or a bucket, the lock is watched for EXPIRES seconds, within which a living holder writes it.
No clocks of different machines are compared.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from diffseg_jax.devices.first import first_does
from diffseg_jax.display.interrupts import INTERRUPTS
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import in_bucket, reachable, write_json

BEAT = 10  # seconds between two writes of a holder
EXPIRES = 60  # seconds without a write after which a lock counts as abandoned
SETTLES = 0.5  # seconds; of several processes that take over a lock, the last to write it has it
KEYS = {
    "host": str, "process": int, "started": str, "machine": list, "since": (int, float),
    "token": str,
}  # fmt: skip
_abandoned = {}  # lock -> the content with which it was waited for in vain, by this process


class InUse(UserError):
    """Another process writes in a folder; the sentence names it."""


@contextlib.contextmanager
def locked(folder: Path, task: str, flag: str) -> Iterator[None]:
    """Within it, no other process on any machine does `task` in the folder, which must exist.

    task  such as "train"; different tasks do not exclude each other
    flag  the command's flag that names the folder, for the error
    Raises InUse, a UserError that names the holder, while another process holds the lock.
    """
    file = _file(folder, task)
    mine = {**_this_process(), "since": time.time(), "token": uuid.uuid4().hex, "beat": 0}
    _take(file, mine, flag)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(file, mine, ended), daemon=True)
    beats.start()

    def release():
        ended.set()
        beats.join(BEAT)
        with _forgiving():
            if _holds(file, mine):
                file.unlink(missing_ok=True)

    INTERRUPTS.releases.append(release)
    try:
        yield
    finally:
        release()
        INTERRUPTS.releases.remove(release)


@contextlib.contextmanager
def locked_in_all(folder: Path, task: str, flag: str) -> Iterator[None]:
    """`locked` for all processes of a run together, of which the first one holds the lock."""
    with contextlib.ExitStack() as exits:
        take = lambda: exits.enter_context(locked(folder, task, flag))
        first_does(take, f"{folder} cannot be locked, as process 0 says.")
        yield


def require_free(folder: Path, task: str, flag: str):
    """Raises UserError as `locked` would, but writes nothing; the folder may not exist."""

    def require():
        with reachable(folder):
            holder = _living(_file(folder, task))
        if holder is not None:
            raise _in_use(folder, task, holder, flag)

    first_does(require, f"{folder} is in use, as process 0 says.")


def _file(folder, task):
    return folder / f".{task}.lock"


def _take(file, mine, flag):
    """Writes the lock; raises UserError while a living process holds it."""
    if _create(file, mine):
        return
    holder = _living(file)
    if holder is None:
        if _create(file, mine):  # the holder ended in the meantime
            return
        write_json(file, mine)
        time.sleep(SETTLES)
        holder = _holder(file)
    if holder is None or holder.get("token") != mine["token"]:
        raise _in_use(file.parent, file.name[1:].removesuffix(".lock"), holder, flag)


def _create(file, mine) -> bool:
    """Creates the lock; False if there is one. Exclusive creation is atomic on NFS, too."""
    content = json.dumps(mine).encode()
    try:
        if in_bucket(file):
            import fsspec

            fsspec.filesystem("gs").pipe_file(str(file), content, mode="create")
            return True
        file.touch(exist_ok=False)
        try:
            file.write_bytes(content)
        except BaseException:  # on a full disk an empty lock would be left, for which others wait
            file.unlink(missing_ok=True)
            raise
        return True
    except FileExistsError:
        return False


def _holder(file) -> dict | None:
    """The content of a lock, {} for one that cannot be read, None where there is none."""
    try:
        content = json.loads(file.read_bytes())
        known = {key: content[key] for key in KEYS}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # or not written yet
        return {}
    return content if all(isinstance(known[key], KEYS[key]) for key in KEYS) else {}


def _living(file) -> dict | None:
    """The holder of a lock, None if there is none that still runs."""
    holder = _holder(file)
    if holder is None:
        return None
    if holder.get("machine") == _machine() and (runs := _runs(holder)) is not None:
        return holder if runs else None
    if holder and holder == _abandoned.get(file):
        return None
    print(
        f"{file.parent} is in use or was left by {_named(holder)}; waits up to {EXPIRES} s for a "
        "sign of it",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    until = time.monotonic() + EXPIRES
    while time.monotonic() < until:
        time.sleep(min(1, EXPIRES / 10))
        now = _holder(file)
        if now != holder:
            return now
    _abandoned[file] = holder
    return None


def _in_use(folder, task, holder, flag):
    end = ""
    if holder:
        since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        task = f"{task}, {since}"
        end = f"end it with kill {holder['process']} on {holder['host']}, "
    return InUse(
        f"{folder} is in use: {_named(holder)} writes there ({task}). Wait until it ends, {end}or "
        f"give another {flag}."
    )


def _named(holder):
    if not holder:
        return "another process"
    return f"process {holder['process']} on {holder['host']}"


def _beat(file, mine, ended):
    """Writes the lock every BEAT seconds; ends the process if another one has taken it over."""
    content = dict(mine)
    while not ended.wait(BEAT):
        with _forgiving():
            if not _holds(file, mine):
                print(
                    f"error: {file.parent} was taken over by {_named(_holder(file))}, so this "
                    "process ends without saving",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(1)  # a signal would let training save into the folder of another process
            content["beat"] += 1
            write_json(file, content)


def _forgiving():
    """A full disk or a bucket out of reach ends a run where its results are written, not here."""
    return contextlib.suppress(Exception)  # those of buckets have no common base class


def _holds(file, mine) -> bool:
    """Whether a lock is still this process's; an unreadable one is."""
    holder = _holder(file)
    return holder is not None and holder.get("token", mine["token"]) == mine["token"]


# ---- processes -----------------------------------------------------------------------------------


def _this_process():
    return {
        "host": socket.gethostname(), "process": os.getpid(), "started": _started(os.getpid()),
        "machine": _machine(),
    }  # fmt: skip


def _machine() -> list[str]:
    """What tells machines, and containers on one machine, apart: only there pids have a meaning."""
    boot, names = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        names = os.readlink("/proc/self/ns/pid")
    return [socket.gethostname(), boot, names]


def _runs(holder) -> bool | None:
    """Whether the holder's process still runs on this machine, and is not a later one.

    None if it is another user's, and /proc hides those.
    """
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        if not Path(f"/proc/{holder['process']}").exists():
            return None
    return holder.get("started") == _started(holder["process"])


def _started(pid: int) -> str:
    """When a process was started, in ticks of its machine; "" if that is unknown or it is over."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
