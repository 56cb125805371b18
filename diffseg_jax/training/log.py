"""Numbers and messages of a run: metrics.jsonl, TensorBoard events, and lines for the reader."""

import json
import time
from pathlib import Path

from rich.console import Console
from tensorboardX import SummaryWriter


class Log:
    """Writes what happens to the workdir and the terminal; silent in all processes but the first.

    A resumed run rewinds the log to its checkpoint, so that no step stands there twice.
    """

    def __init__(self, workdir: Path, primary: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self.events = Path(workdir) / "tensorboard"
        self.primary = primary
        self.console = Console(quiet=not primary, highlight=False, soft_wrap=True)
        self.writer = None

    def say(self, text: str):
        """A line for the reader."""
        self.console.print(text, markup=False)

    def rewind(self, stage: str, step: int):
        """Drops what was written for `stage` after `step`, and a line that was cut short."""
        if not self.primary:
            return
        kept = []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["stage"] != stage or record["step"] <= step:
                kept.append(line + "\n")
        partial = self.path.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(kept))
        partial.replace(self.path)
        self.close()
        self.writer = SummaryWriter(str(self.events / stage), purge_step=step + 1)

    def write(self, stage: str, step: int, numbers: dict[str, float]):
        """One record: the stage, the step, seconds since the epoch, and the numbers."""
        if not self.primary:
            return
        record = {"stage": stage, "step": step, "time": round(time.time(), 3), **numbers}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, stage: str, step: int, name: str, picture):
        """Adds a picture u8[H,W,3] to the events, if a stage writes any."""
        if self.writer is not None:
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self):
        """Flushes the events."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def duration(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 05 min."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
