"""Compiled programs: a folder of them for other processes, and a bound on those in memory."""

import os
from collections.abc import Callable

import jax

CACHE = "~/.cache/diffseg_jax"  # of the commands; of `load` with cache=True
MIN_SECONDS = 0.5  # of compilation; programs that compile faster are not cached
MOST_SHAPES = 16  # of inputs, whose programs are in memory


def keep_compiled(folder: str | os.PathLike = CACHE):
    """Caches all programs that this process compiles; jax has one such folder per process."""
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


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
