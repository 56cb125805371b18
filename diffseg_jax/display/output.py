"""The standard streams of a command, which ignore a closed pipe."""

import contextlib
import io
import os


class Output:
    """A standard stream that takes any text, and drops it once nobody reads the pipe any more.

    Names of files that are not valid text are printed with escapes.
    """

    def __init__(self, stream):
        """stream: None where the process has no such stream."""
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)  # for all but `write` and `flush`

    def write(self, text: str) -> int:
        with self._dropped():
            self.stream.write(text)
        return len(text)

    def flush(self):
        with self._dropped():
            self.stream.flush()

    @contextlib.contextmanager
    def _dropped(self):
        try:
            yield
        except BrokenPipeError:  # what is still buffered would raise again
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
