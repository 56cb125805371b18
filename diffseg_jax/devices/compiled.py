"""Compiled programs kept in a folder, so that another process need not compile them again."""

import os

import jax

CACHE = "~/.cache/diffseg_jax"  # of the commands; of `load` with cache=True
MIN_SECONDS = 0.5  # of compilation; faster programs are not kept


def keep_compiled(folder: str | os.PathLike = CACHE):
    """Keeps what this process compiles, all of it: jax has one such folder for a process."""
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
