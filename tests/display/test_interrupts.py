"""Ctrl-C in a command: in Python, in compiled code, in a step of training, and while it loads."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

pytestmark = pytest.mark.quick

CTRL_C = b"\x03"
SECONDS = 180  # that a busy machine may take
BEGIN = """
import hashlib, signal, sys, time
from diffseg_jax.display.console import Display
from diffseg_jax.display.interrupts import INTERRUPTS
INTERRUPTS.watch()
compiled = lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # runs no handler
"""


class Command:
    """A Python program in a terminal of its own."""

    def __init__(self, *arguments):
        self.terminal, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
            env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def until(self, part):
        """Reads until the text has the part; None: until the program has ended."""
        deadline = time.monotonic() + SECONDS
        while part is None or part not in self.text:
            assert time.monotonic() < deadline, self.text
            if not select.select([self.terminal], [], [], 0.1)[0]:
                continue
            read = b""
            with contextlib.suppress(OSError):  # nobody holds the other end any more
                read = os.read(self.terminal, 65536)
            if not read:
                assert part is None, self.text
                return
            self.text += read.decode()

    def press(self, keys=CTRL_C):
        os.write(self.terminal, keys)

    def end(self):
        """The exit code."""
        self.until(None)
        return self.process.wait(SECONDS)


@pytest.fixture
def started():
    """*arguments of Python -> `Command`, which is killed at the end."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            command = Command(*arguments)
            stack.callback(os.close, command.terminal)
            stack.callback(command.process.wait)
            stack.callback(command.process.kill)
            return command

        yield start


def test_compiled_code_is_ended_with_a_sentence_and_without_rows(started):
    command = started("-c", BEGIN + """
with INTERRUPTS.raised("stopped; it resumes"), Display().progress("compiles"):
    compiled()
""")  # fmt: skip
    command.until("compiles")
    command.press()
    assert command.end() == 130
    assert command.text.endswith("\r\x1b[Jstopped; it resumes\r\n")  # the row is erased


def test_python_code_is_ended_in_order(started):
    command = started("-c", BEGIN + """
with INTERRUPTS.raised("never said"):
    try:
        print("begun", flush=True)
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        time.sleep(2)
        print("saved")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert "saved" in command.text and "never" not in command.text


def test_ctrl_c_in_a_callback_that_may_not_raise_is_not_lost(started):
    """Such as those of jax, which Python calls when it collects garbage."""
    command = started("-c", BEGIN + """
class Collected:
    def __del__(self):
        print("begun", flush=True)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            time.sleep(0.01)
with INTERRUPTS.raised("never said"):
    Collected()
    try:
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        print("heard")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert command.text.endswith("heard\r\n") and "Exception" not in command.text


def test_a_step_is_answered_while_it_runs_and_ended_by_the_second_ctrl_c(started):
    command = started("-c", BEGIN + """
from diffseg_jax.training.signals import watched
try:
    with INTERRUPTS.raised("ended"), watched() as asked:
        asked()
        print("begun", flush=True)
        compiled()
except KeyboardInterrupt:  # as commands do, if the second came before the code ran
    INTERRUPTS.leave()
""")  # fmt: skip
    command.until("begun")
    command.press()
    command.until("stops after this step and saves; Ctrl-C again stops at once\r\n")
    assert command.process.poll() is None
    command.press()
    assert command.end() == 130
    assert command.text.endswith("ended\r\n") and "Traceback" not in command.text


def test_a_server_that_handles_ctrl_c_itself_is_left_alone(started):
    command = started("-c", BEGIN + """
with INTERRUPTS.raised("never said"):
    signal.signal(signal.SIGINT, lambda *_: print("last requests", flush=True))
    print("begun", flush=True)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        time.sleep(0.01)
    print("finished")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert "last requests" in command.text and command.text.endswith("finished\r\n")


def test_a_command_says_first_that_it_loads_and_may_be_stopped_then(started):
    command = started("-m", "diffseg_jax.plot", "--help")
    command.until("loading, a few seconds")
    assert command.text.startswith("loading, a few seconds")
    command.press()
    assert command.end() == 130
    assert command.text.endswith("\r\x1b[2Kstopped\r\n") and "Traceback" not in command.text


def test_the_row_of_loading_is_gone_before_the_first_line(started):
    command = started("-m", "diffseg_jax.plot", "--help")
    assert command.end() == 0
    time_shown = r"(\rloading, a few seconds, \d+ s so far)*"
    assert re.match(rf"loading, a few seconds{time_shown}\r\x1b\[2Kusage: ", command.text)


def test_what_is_no_terminal_is_not_told_about_loading():
    shown = subprocess.run(
        [sys.executable, "-m", "diffseg_jax.plot", "--help"], capture_output=True, text=True
    )
    assert shown.stdout.startswith("usage: ") and not shown.stderr
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler  # not in a program
