"""Compiled programs: a folder of them for other processes, and bounds on it and on memory."""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

CACHE = "~/.cache/diffseg_jax"  # of the commands; of `load` with cache=True
MOST_CACHED = 2**30  # bytes in that folder when `keep_compiled` begins to use it
PROGRAM = re.compile(r"-[0-9a-f]{64}-cache$")  # the end of a file's name, as jax writes them
MIN_SECONDS = 0.5  # of compilation; programs that compile faster are not cached
MOST_SHAPES = 16  # of inputs, whose programs are in memory


def keep_compiled(folder: str | os.PathLike | None = None):
    """Caches all programs that this process compiles; jax has one such folder per process.

    folder  None: that of JAX_COMPILATION_CACHE_DIR in the environment, or CACHE

    In CACHE, and in no other folder, the programs that were not used for longest are deleted
    first, until the others take at most MOST_CACHED. (jax_compilation_cache_max_size needs the
    package filelock, and fails to write to a folder that holds programs from before it was set.)
    """
    folder = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR") or CACHE
    folder = os.path.expanduser(folder)
    if folder == os.path.expanduser(CACHE):
        _delete_oldest(Path(folder), MOST_CACHED)
    if folder != jax.config.jax_compilation_cache_dir:
        compilation_cache.reset_cache()  # jax would go on with the folder of the first compilation
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def _delete_oldest(folder, most):
    """Deletes the programs of jax in a folder that were read and written longest ago."""
    files, found = [], []
    with contextlib.suppress(OSError):  # there is no such folder, or it may not be read
        files = [file for file in folder.iterdir() if PROGRAM.search(file.name)]
    for file in files:
        with contextlib.suppress(OSError):  # deleted by another process meanwhile
            found.append((file.lstat(), file))
    found = [(status, file) for status, file in found if stat.S_ISREG(status.st_mode)]
    found.sort(key=lambda pair: max(pair[0].st_atime, pair[0].st_mtime), reverse=True)
    for status, file in found:
        most -= status.st_size
        if most < 0:
            with contextlib.suppress(OSError):  # of another user: the next one may be deleted
                file.unlink()


class BoundedPrograms:
    """A function that is compiled for each shape of its inputs, as by `jax.jit`.

    most  shapes whose programs are kept in memory: one more drops them all, and they compile again
    """

    def __init__(self, function: Callable, most: int = MOST_SHAPES):
        self.compiled, self.most, self._shapes = jax.jit(function), most, set()

    def __call__(self, *inputs):
        leaves, structure = jax.tree.flatten(inputs)
        shapes = structure, *(leaf.shape for leaf in leaves)
        if shapes not in self._shapes and len(self._shapes) >= self.most:
            self.compiled.clear_cache()
            self._shapes.clear()
        self._shapes.add(shapes)
        return self.compiled(*inputs)
