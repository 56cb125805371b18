"""How many compiled programs stay in memory and in their folder."""

import hashlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from diffseg_jax.cli import use_cache
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


def program(name):
    """The name of a file of jax."""
    return f"jit_{name}-{hashlib.sha256(name.encode()).hexdigest()}-cache"


def test_the_folder_keeps_what_was_used_last_within_its_bound(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(compiled, "MOST_CACHED", 250)
    for name, read, written in (("a", 1, 4), ("b", 3, 2), ("c", 1, 2), ("d", 5, 1)):
        file = tmp_path / program(name)
        file.write_bytes(bytes(100))
        os.utime(file, (read, written))
    others = "photo.png", "map-cache", f"jit_f-{'0' * 64}-cache.txt"
    for name in others:
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / program("folder")).mkdir()
    (tmp_path / program("link")).symlink_to(tmp_path / "photo.png")
    everything = {file.name for file in tmp_path.iterdir()}

    keep_compiled(tmp_path)  # named by the user
    assert {file.name for file in tmp_path.iterdir()} == everything
    assert settings["jax_compilation_cache_dir"] == str(tmp_path)
    monkeypatch.setattr(compiled, "CACHE", str(tmp_path))
    keep_compiled(tmp_path)
    deleted = everything - {file.name for file in tmp_path.iterdir()}
    assert deleted == {program("b"), program("c")}


def test_another_folder_takes_the_programs_from_then_on(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "MIN_SECONDS", 0)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for number, folder in enumerate("ab"):
            keep_compiled(tmp_path / folder)
            jax.jit(lambda x, number=number: x + number)(np.ones(3))
            assert [*(tmp_path / folder).glob("*-cache")]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_the_folder_of_the_environment_comes_before_the_usual_one(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(compiled, "CACHE", str(tmp_path))
    for named, folder in (("mine", "mine"), ("", str(tmp_path))):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
        use_cache()
        assert settings["jax_compilation_cache_dir"] == folder
        use_cache("typed")
        assert settings["jax_compilation_cache_dir"] == "typed"
        settings.clear()
        use_cache("")
        assert not settings


def test_a_folder_that_is_not_there_is_made_by_jax(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(compiled, "CACHE", str(tmp_path / "new"))
    keep_compiled(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_program_that_cannot_be_deleted_keeps_no_other(tmp_path, monkeypatch):
    for name, used in (("older", 1), ("newer", 2)):
        file = tmp_path / program(name)
        file.write_bytes(bytes(100))
        os.utime(file, (used, used))
    unlink = Path.unlink

    def refuse(path):
        if "newer" in path.name:  # it comes first
            raise PermissionError
        unlink(path)

    monkeypatch.setattr(Path, "unlink", refuse)
    compiled._delete_oldest(tmp_path, 50)
    assert [file.name for file in tmp_path.iterdir()] == [program("newer")]
