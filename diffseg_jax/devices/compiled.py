"""A folder of compiled programs, so that another process need not compile them again."""

import os

import jax

CACHE = "~/.cache/diffseg_jax"  # of the commands; of `load` with cache=True
MIN_SECONDS = 0.5  # of compilation; programs that compile faster are not cached


def keep_compiled(folder: str | os.PathLike = CACHE):
    """Caches all programs that this process compiles; jax has one such folder per process."""
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
