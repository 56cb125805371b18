"""Image segmentation with diffusion models, for many images and few labels."""

from diffseg_jax.display.command import end_without_traceback
from diffseg_jax.errors import UserError

__all__ = ["UserError", "annotate", "load"]
__version__ = "0.1.0"
__path__.append(f"{__path__[0]}/old_names")  # documented modules that have moved since 0.1.0

end_without_traceback()  # the one thing that happens at import, and only in a command


def __getattr__(name):
    """Imports a function at its first use, so that the parts of the package do not import it."""
    if name == "load":
        from diffseg_jax.inference.segmenter import load

        return load
    if name == "annotate":
        import diffseg_jax.annotate as command  # `from` would ask this function again

        return command
    raise AttributeError(f"module diffseg_jax has no attribute {name}")
