"""Workers that read data outlive signals that a terminal sends to all processes, not the run."""

import subprocess
import sys
import time
from pathlib import Path

RUN = """
import multiprocessing, os, signal
import numpy as np
from absl import flags
from diffseg_jax.data.pipeline import training_batches

class Images:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return {"image": np.full((4, 4, 3), index, np.uint8)}

def augment(image, mask, rng):
    return {"image": image}

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()  # grain reads its own
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: print("asked by", number))
    batches = training_batches(
        Images(), np.arange(64), augment, seed=0, batch_size=4, start=0, steps=2000, workers=1
    )
    next(batches)
    os.killpg(0, signal.SIGINT)
    os.killpg(0, signal.SIGTERM)
    print("read", sum(len(next(batches)["image"]) for _ in range(200)))  # more than are ahead
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os._exit(0)  # as `leave` does, and as a kill
"""


def test_a_worker_reads_on_after_a_signal_to_the_group_and_ends_with_the_run(tmp_path):
    file = tmp_path / "run.py"
    file.write_text(RUN)
    done = subprocess.run(
        [sys.executable, file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True, timeout=300,
    )  # fmt: skip
    *lines, children = done.stdout.splitlines()
    assert lines == ["asked by 2", "asked by 15", "read 800"] and len(children.split()) == 1
    deadline = time.monotonic() + 60
    while runs(children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(process):
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False
