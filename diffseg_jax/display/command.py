"""The command that Python was asked to run; read before the imports that take time."""

import re
import signal
import sys

PYTHON_FLAGS = r"(-[WX]\n?.+\n|-[a-zA-Z]+\n)*-[a-zA-Z]*m\n?"  # up to the name of a module
MODULE = re.compile(PYTHON_FLAGS + r"(?P<name>diffseg_jax\.[\w.]+)\n")


def typed_module() -> str:
    """diffseg_jax.NAME, where this process was started as `python -m diffseg_jax.NAME`; else ""."""
    found = MODULE.match("\n".join(sys.orig_argv[1:]) + "\n")
    return found["name"] if found else ""


def end_without_traceback():
    """In a command, Ctrl-C ends the process without a traceback until `display.loading` begins.

    The imports of that take a third of a second. Only the handler of Python is replaced: one of the
    program stays, and SIG_IGN, which a process inherits.
    """
    if typed_module() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
