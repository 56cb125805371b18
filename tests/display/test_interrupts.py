"""Ctrl-C in a command: in Python, in compiled code, in a step of training, and while it loads."""

import contextlib
import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffseg_jax.display import loading
from diffseg_jax.display.rows import ERASE

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


IMPORT = """
import signal, sys
sys.orig_argv = sys.argv[2:]
own = lambda *_: None
handlers = {"default": signal.default_int_handler, "own": own, "ignored": signal.SIG_IGN}
before = handlers[sys.argv[1]]
signal.signal(signal.SIGINT, before)
import diffseg_jax
now = signal.getsignal(signal.SIGINT)
assert now in (before, signal.SIG_DFL)
print(now != before)
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
    assert command.text.endswith("\r\x1b[J\r\x1b[Jstopped; it resumes\r\n")  # no row


def test_python_code_is_ended_in_order(started):
    command = started("-c", BEGIN + """
with INTERRUPTS.raised("never said"):
    try:
        print("begun", flush=True)
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        time.sleep(1.3)
        print("saved")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert "saved" in command.text and "never" not in command.text


def test_python_code_that_is_interrupted_twice_is_ended_in_order(started):
    """As by a key that repeats; and once it has run, signals are handled as before."""
    command = started("-c", BEGIN + """
import os
with INTERRUPTS.raised("never said"):
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            end = time.monotonic() + 1.3
            while time.monotonic() < end:
                time.sleep(0.01)
        print("cleaned")
assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
assert signal.set_wakeup_fd(-1) == -1 and sys.unraisablehook == sys.__unraisablehook__
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert command.text.endswith("cleaned\r\n") and "never" not in command.text


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


def test_ctrl_c_in_such_a_callback_does_not_end_a_program_whose_work_is_done(started):
    command = started("-c", BEGIN + """
class Collected:
    def __del__(self):
        print("begun", flush=True)
        time.sleep(60)
with INTERRUPTS.raised("never said"):
    Collected()
time.sleep(0.5)
print("finished")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert command.text.endswith("finished\r\n")


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
    time.sleep(1.1)
    command.press()
    assert command.end() == 130
    assert command.text.endswith("ended\r\n") and "Traceback" not in command.text


def test_a_server_that_handles_ctrl_c_itself_is_left_alone(started):
    command = started("-c", BEGIN + """
with INTERRUPTS.raised("never said"):
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append("last requests"))
    print("begun", flush=True)
    while not heard:
        time.sleep(0.01)
    end = time.monotonic() + 1.3
    while time.monotonic() < end:
        time.sleep(0.01)
    print(*heard, "finished")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert command.text.endswith("last requests finished\r\n")


def test_a_server_that_raises_ctrl_c_again_once_it_has_stopped_cleans_up(started):
    """As uvicorn does."""
    command = started("-c", BEGIN + """
with INTERRUPTS.raised("never said"):
    before = signal.signal(signal.SIGINT, lambda *_: print("last requests", flush=True))
    print("begun", flush=True)
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        time.sleep(0.01)
    signal.signal(signal.SIGINT, before)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        time.sleep(1.3)
        print("cleaned")
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 0
    assert "last requests" in command.text and command.text.endswith("cleaned\r\n")


def test_signals_within_a_second_are_one_and_a_step_is_saved(started):
    command = started("-c", BEGIN + """
import os, threading
from diffseg_jax.training.signals import watched
def twice():
    for _ in range(2):
        time.sleep(0.15)
        os.kill(os.getpid(), signal.SIGINT)
with INTERRUPTS.raised("never said"), watched() as asked:
    asked()
    sender = threading.Thread(target=twice)
    sender.start()
    sender.join()  # as a step does, it runs no handler before its end
    os.kill(os.getpid(), signal.SIGINT)  # in Python code
    assert asked() == signal.SIGINT
    time.sleep(1.5)
    print("saved")
""")  # fmt: skip
    assert command.end() == 0
    assert command.text.endswith("saved\r\n") and "never" not in command.text


def test_ctrl_c_is_heard_after_sigterm_while_the_first_step_is_compiled(started):
    command = started("-c", BEGIN + """
import os
from diffseg_jax.training.signals import watched
try:
    with INTERRUPTS.raised("ended"), watched() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        print("begun", flush=True)
        compiled()
except KeyboardInterrupt:  # as commands do, if it came before the code ran
    INTERRUPTS.leave()
""")  # fmt: skip
    command.until("begun")
    command.press()
    assert command.end() == 130
    assert command.text.endswith("ended\r\n")


def test_sigterm_is_answered_while_a_step_runs(started):
    command = started("-c", BEGIN + """
from diffseg_jax.training.signals import watched
with INTERRUPTS.raised("ended"), watched() as asked:
    asked()
    print("begun", flush=True)
    compiled()
""")  # fmt: skip
    command.until("begun")
    command.process.terminate()
    command.until("stops after this step and saves\r\n")
    assert command.process.poll() is None


def test_an_answer_that_nobody_reads_does_not_end_the_thread(started):
    command = started("-c", BEGIN + """
def announce(number):
    print("answered", flush=True)
    raise BrokenPipeError
with INTERRUPTS.raised("ended"):
    INTERRUPTS.defer(announce)
    signal.signal(signal.SIGINT, lambda *_: None)
    print("begun", flush=True)
    compiled()
""")  # fmt: skip
    command.until("begun")
    command.press()
    command.until("answered")
    time.sleep(1.1)
    command.press()
    assert command.end() == 130
    assert command.text.endswith("^C\r\x1b[Jended\r\n")  # in place of what the terminal shows


@pytest.mark.parametrize("rows", ["None", "object()"], ids=["closed", "that cannot be erased"])
def test_the_sentence_is_said_whatever_becomes_of_the_rows(started, rows):
    command = started("-c", BEGIN + f"""
import threading
from diffseg_jax.display import console
display = Display()
with display.lock:  # of the main thread, which closes the display
    console._drawn.add(display)
    leaving = threading.Thread(target=INTERRUPTS.leave, args=["the sentence"])
    leaving.start()
    time.sleep(0.1)
    display.rows = {rows}
leaving.join()
""")  # fmt: skip
    assert command.end() == 130
    assert command.text == f"{ERASE}the sentence\r\n"


def test_what_a_command_holds_is_released_at_its_end(started, tmp_path):
    """Its locks, and processes that read data, which ignore other signals."""
    command = started("-c", BEGIN + f"""
import multiprocessing, threading
from pathlib import Path
from diffseg_jax.storage.lock import locked
def read():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
with locked(Path({str(tmp_path)!r}), "train", "--workdir"):
    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    time.sleep(0.2)
    assert Path({str(tmp_path)!r}, ".train.lock").exists()
    print("child", child.pid, flush=True)
    threading.Thread(target=INTERRUPTS.leave).start()
    compiled()
""")  # fmt: skip
    assert command.end() == 130
    assert not list(tmp_path.iterdir())
    child = int(re.search(r"child (\d+)", command.text)[1])
    with contextlib.suppress(FileNotFoundError):  # nobody may have collected its exit code
        assert Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


def test_a_command_ends_with_the_exit_code_of_what_stopped_it(started):
    """Without waiting for threads, in which compiled code may go on."""
    command = started("-c", """
import os, signal, threading, time
from diffseg_jax import cli
from diffseg_jax.display.interrupts import INTERRUPTS
for error in (cli.Stopped("a", 3, signal.SIGTERM), cli.Stopped("a", 3, signal.SIGINT),
              KeyboardInterrupt()):
    if not (child := os.fork()):
        INTERRUPTS.watch()
        threading.Thread(target=time.sleep, args=[600]).start()
        with cli.user_errors("the sentence"):
            raise error
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")  # fmt: skip
    assert command.end() == 0
    lines = command.text.replace(ERASE, "").splitlines()
    assert lines[1::2] == ["code 75", "code 130", "code 130"] and lines[4] == "the sentence"
    assert lines[0].startswith("stopped by SIGTERM after step 3 of stage a, which is saved;")


# --- while it loads -------------------------------------------------------------------------------


def test_a_command_says_first_that_it_loads_and_may_be_stopped_then(started):
    command = started("-m", "diffseg_jax.plot", "--help")
    command.until("loading, a few seconds")
    assert command.text.startswith("loading, a few seconds")
    command.press()
    assert command.end() == 130
    assert command.text.endswith("\r\x1b[Jstopped\r\n") and "Traceback" not in command.text


@pytest.mark.parametrize("name", ["plot", "study"])
def test_the_row_of_loading_is_gone_before_the_first_line(started, name):
    command = started("-m", f"diffseg_jax.{name}", "--help")
    assert command.end() == 0
    time_shown = r"(\r\x1b\[Jloading, \d+ s so far)*"
    assert re.match(rf"loading, a few seconds{time_shown}\r\x1b\[Jusage: ", command.text)


def test_the_row_of_loading_is_gone_before_a_traceback(started):
    command = started("-c", """
from diffseg_jax.display import loading
loading.begin()
import no_such_module
""")  # fmt: skip
    assert command.end() == 1
    assert command.text.startswith("loading, a few seconds\r\x1b[JTraceback")


def test_what_is_no_terminal_is_not_told_about_loading():
    shown = subprocess.run(
        [sys.executable, "-m", "diffseg_jax.plot", "--help"], capture_output=True, text=True
    )
    assert shown.stdout.startswith("usage: ") and not shown.stderr


def test_a_program_that_imports_or_runs_a_command_keeps_its_signals():
    """As `%run -m diffseg_jax.plot` of a notebook, where the command is the main module."""
    program = """
import runpy, signal, sys
import diffseg_jax
sys.argv = ["plot", "--help"]
try:
    runpy.run_module("diffseg_jax.plot", run_name="__main__", alter_sys=True)
except SystemExit:
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1 and sys.unraisablehook == sys.__unraisablehook__
    print("kept")
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.endswith("kept\n"), shown.stderr


@pytest.mark.parametrize(
    ("arguments", "is_one"),
    [
        ("-m diffseg_jax.plot --help", True),
        ("-W ignore -X dev -u -mdiffseg_jax.plot", True),
        ("-um diffseg_jax.plot", True),
        ("-m IPython -m diffseg_jax.plot", False),
        ("/bin/ipython -m diffseg_jax.plot", False),
        ("-c pass -m diffseg_jax.plot", False),
        ("-m diffseg_jax.plotted", False),
        ("", False),
    ],
)
def test_a_command_is_what_python_was_asked_to_run(monkeypatch, arguments, is_one):
    main = SimpleNamespace(__spec__=SimpleNamespace(name="diffseg_jax.plot"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "orig_argv", ["python", *arguments.split()])
    assert loading.is_command() == is_one


@pytest.mark.parametrize("handler, typed, quiet", [
    ("default", "python -X dev -m diffseg_jax.predict", True),
    ("default", "python program.py", False),
    ("default", "python -m pytest -m quick", False),
    ("own", "python -m diffseg_jax.predict", False),
    ("ignored", "python -m diffseg_jax.predict", False),
])  # fmt: skip
def test_a_command_that_starts_is_ended_without_a_traceback(handler, typed, quiet):
    command = [sys.executable, "-c", IMPORT, handler, *typed.split()]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(quiet)
