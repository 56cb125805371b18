"""Settings of the process of a command, which it cannot take back: each test starts others."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, threading
from diffseg_jax.devices.starting import reuse_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
reuse_memory()

def step():
    b"x" * 2**26

counts = []
for _ in range(6):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[1])
"""


def page_faults(**variables):
    kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    kept.pop("GLIBC_TUNABLES", None)
    environment = kept | variables
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(ended.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_serves_the_next_step():
    pages = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")  # of four steps
    assert page_faults() < pages / 10
    assert page_faults(MALLOC_ARENA_MAX="4") > pages / 2  # what the environment sets is heeded
