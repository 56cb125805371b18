"""Image segmentation with diffusion models, for many images and few labels."""

import signal
import sys

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith(f"{__name__}."):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback until `display.loading` begins

from diffseg_jax.errors import UserError

__all__ = ["UserError", "annotate", "load"]
__version__ = "0.1.0"
__path__.append(f"{__path__[0]}/old_names")  # documented modules that have moved since 0.1.0


def __getattr__(name):
    """Imports a function at its first use, so that the parts of the package do not import it."""
    if name == "load":
        from diffseg_jax.inference.segmenter import load

        return load
    if name == "annotate":
        import diffseg_jax.annotate as command  # `from` would ask this function again

        return command
    raise AttributeError(f"module diffseg_jax has no attribute {name}")
