"""How many compiled programs stay in memory and in their folder."""

import os

import jax
import numpy as np
import pytest

from diffseg_jax.devices import compiled
from diffseg_jax.devices.compiled import BoundedPrograms, keep_compiled

pytestmark = pytest.mark.quick


def test_a_shape_too_many_drops_all_programs():
    twice = BoundedPrograms(lambda tree: 2 * tree["x"], most=2)
    counts = []
    for size in (1, 2, 1, 3, 1, 3, 2):
        np.testing.assert_array_equal(twice({"x": np.ones(size)}), np.full(size, 2.0))
        counts.append(twice.compiled._cache_size())
    assert counts == [1, 2, 2, 1, 2, 2, 1]


def test_the_folder_keeps_what_was_used_last_within_its_bound(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(compiled, "MOST_CACHED", 250)
    for name, read, written in (("a", 1, 4), ("b", 3, 2), ("c", 1, 2), ("d", 5, 1)):
        file = tmp_path / f"jit_{name}-cache"
        file.write_bytes(bytes(100))
        os.utime(file, (read, written))
    (tmp_path / "photo.png").write_bytes(bytes(1000))
    keep_compiled(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"jit_a-cache", "jit_d-cache", "photo.png"}
    assert settings["jax_compilation_cache_dir"] == str(tmp_path)
    keep_compiled(tmp_path / "new")  # jax makes it
