"""Shared fixtures: where recorded outputs of the originals lie."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("DIFFSEG_GOLDEN", Path(__file__).parent / "recorded"))


@pytest.fixture
def golden():
    """`golden("ddep/transunet_seg*.json")`: the recorded cases of that pattern, or a skipped test."""

    def find(pattern):
        paths = sorted(GOLDEN.glob(pattern))
        if not paths:
            pytest.skip(f"no recorded case {pattern} in {GOLDEN}")
        return paths

    return find
