"""Numbers and messages of a run: metrics.jsonl, TensorBoard events, and lines for the reader."""

import json
import tempfile
import time
from pathlib import Path

from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import Progress
from diffseg_jax.storage.paths import in_bucket, write_atomically

COPY_EVERY = 30  # seconds
EVENT_BYTES = 8 * 10**6  # after which events go on in another file, as a file is copied as a whole


class Log:
    """Writes a run's numbers to the workdir and the terminal, in the first process only.

    A resumed run rewinds the log to its checkpoint, so that no step appears twice. The files of a
    workdir in a bucket, whose objects cannot be appended to, are written to a temporary folder and
    copied at most every COPY_EVERY seconds, if they have changed.
    """

    def __init__(self, workdir: Path, primary: bool = True, display: Display | None = None):
        """display: of the command; None: one of its own."""
        self.primary = primary
        self.display = display or Display(quiet=not primary)
        self.bucket = workdir if in_bucket(workdir) else None
        self.folder = Path(tempfile.mkdtemp() if self.bucket and primary else workdir)
        self.path, self.events = self.folder / "metrics.jsonl", self.folder / "tensorboard"
        self.copied, self.copies = 0.0, {}  # when, and file -> its size and time at its last copy
        self.writer, self.prefix, self.part, self.event_bytes = None, "", 0, 0
        self.trackers = None  # `tracking` sets them

    def say(self, text: str):
        """A line for the reader."""
        self.display.say(text)

    def progress(self, what: str, total: int | None = None, **options) -> Progress:
        """How far an activity is; as `Display.progress`."""
        return self.display.progress(what, total, **options)

    def rewind(self, stage: str, step: int):
        """Drops the records of `stage` after `step`, and lines that are none."""
        if not self.primary:
            return
        if self.bucket and not self.path.exists() and (self.bucket / self.path.name).exists():
            self.path.write_bytes((self.bucket / self.path.name).read_bytes())
        kept = []
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
                if record["stage"] != stage or record["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
        write_atomically(self.path, b"".join(kept))
        self.close()
        (self.events / stage).mkdir(parents=True, exist_ok=True)
        self.prefix = str(self.events / stage / "events")
        self._begin_events(0)
        # Readers drop earlier events from this step on.
        self._event(step + 1, session_log={"status": "START"})

    def write(self, stage: str, step: int, numbers: dict[str, float]):
        """One record: the stage, the step, seconds since the epoch, and the numbers."""
        if not self.primary:
            return
        from tensorboardX import summary

        record = {"stage": stage, "step": step, "time": round(time.time(), 3), **numbers}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in numbers.items():
            self._event(step, summary=summary.scalar(name, value))
        self.writer.flush()
        if self.trackers:
            self.trackers.numbers(stage, step, numbers)
        if time.monotonic() - self.copied > COPY_EVERY:
            self.flush()

    def image(self, step: int, name: str, image):
        """Adds an image u8[H,W,3] to the events of the current stage, if there is one."""
        if self.writer is not None:
            from tensorboardX import summary

            self._event(step, summary=summary.image(name, image, dataformats="HWC"))
        if self.trackers:
            self.trackers.image(step, name, image)

    def _event(self, step, **content):
        """Writes synchronously: on a full disk a writer thread would end and block the caller."""
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self.writer.write_event(event)
        self.event_bytes += event.ByteSize()
        if self.bucket and self.event_bytes > EVENT_BYTES:
            self.writer.close()
            self._begin_events(self.part + 1)

    def _begin_events(self, part):
        from tensorboardX.event_file_writer import EventsWriter  # a slow import

        self.part, self.event_bytes = part, 0
        suffix = f".{part}" if part else ""  # the name holds a second, in which several may begin
        self.writer = EventsWriter(self.prefix, suffix)

    def close(self):
        """Flushes the events."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            self.flush()

    def flush(self):
        """Copies the files to the bucket, if the workdir is in one."""
        self.copied = time.monotonic()
        for file in filter(Path.is_file, self.folder.rglob("*")) if self.bucket else ():
            state = file.stat().st_size, file.stat().st_mtime_ns
            if self.copies.get(file) != state:
                target = self.bucket / file.relative_to(self.folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                self.copies[file] = state
