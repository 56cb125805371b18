"""The benchmark runs programs in turn, survives failures, and its rows name programs there are."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
LINE = """
import json, sys

print("a note")
seconds = 0.25 if "--compile" in sys.argv else {seconds}
print(json.dumps(dict(first=3.0, seconds=[seconds, 2 * seconds, 3 * seconds], peak_rss_mb=2048,
                      rise_mb=1024, device="cpu", versions=dict(jax="9.9"))))
"""


@pytest.fixture
def modules(monkeypatch):
    """The modules of the benchmark, which find each other as in its programs."""
    monkeypatch.syspath_prepend(FOLDER)
    import driver
    import rows
    import timing

    return driver, rows, timing


@pytest.fixture
def run(modules, tmp_path, monkeypatch):
    """A function that runs stand-in rows and returns both files."""
    driver, _, _ = modules

    def run(rows, *options, peaks=()):
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", ["x", f"--output={output}", "--no-compile", *options])
        driver.main(rows, peaks)
        return json.loads((output / "benchmark.json").read_text()), (
            output / "benchmark.md"
        ).read_text()

    return run


@pytest.fixture
def stand_in(modules, tmp_path):
    """A function that makes a row whose programs are given as code."""
    _, rows, _ = modules

    def stand_in(name, here, torch="", seconds=1.0, **fields):
        def command(code, side):
            file = tmp_path / f"{name}_{side}.py"
            file.write_text(code)
            return (str(file),) if code else ()

        return rows.Row(
            name, "a stand-in", "contributing", command(here, "here"), command(torch, "torch"),
            {"cpu": seconds}, **fields,
        )  # fmt: skip

    return stand_in


def test_programs_alternate_and_are_compared(run, stand_in, capsys):
    peak = stand_in("product", LINE.format(seconds=1.0), flop=4e9)
    row = stand_in("sum", LINE.format(seconds=1.0), LINE.format(seconds=2.0), flop=2e9, bytes=6e9)
    found, page = run([row], "--rounds=2", peaks=(peak,))
    order = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": " in line]
    assert order[:6] == ["product, here", "sum, here", "sum, PyTorch"] * 2
    here, torch = found["summary"]["sum"]["here"], found["summary"]["sum"]["PyTorch"]
    assert (here["median"], here["min"], here["max"], here["rounds"]) == (2.0, 1.0, 3.0, 2)
    assert torch["ratio"] == 2.0
    assert here["flop_share"] == 2e9 / 2.0 / (4e9 / 1.0)  # the peak is of its fastest call
    assert here["bytes"] == 3e9
    assert found["machine"]["versions"] == {"jax": "9.9"}
    row_of = lambda name: next(line for line in page.splitlines() if f"| sum | {name} |" in line)
    assert "2 s (1 s-3 s)" in row_of("here") and "1 G (25%)" in row_of("here")
    assert "| 2.00 |" in row_of("PyTorch") and "2.00 GB, +1.00" in row_of("PyTorch")


def test_what_fails_is_named_and_the_rest_goes_on(run, stand_in):
    fails = stand_in("fails", LINE.format(seconds=1.0), "raise SystemExit('no such kernel')")
    silent = stand_in("silent", "pass")
    last = stand_in("last", LINE.format(seconds=1.0))
    found, page = run([fails, silent, last], "--rounds=1")
    assert list(found["summary"]["fails"]) == ["here"]
    assert found["rows"]["fails"]["failed"] == {"PyTorch": "exit code 1: no such kernel"}
    assert found["summary"]["silent"] == {} and found["summary"]["last"]["here"]["calls"] == 3
    assert "- `silent`, here: exit code 0: it printed nothing" in page


def test_rows_that_do_not_fit_are_skipped_and_said(run, stand_in):
    short = stand_in("short", LINE.format(seconds=1.0))
    long = stand_in("long", LINE.format(seconds=1.0), seconds=10_000.0)
    hangs = stand_in("hangs", "import time; time.sleep(60)", seconds=0.1)
    found, page = run([long, short, hangs], "--rounds=1", "--minutes=0.05")
    assert "expected to take 10000 s" in found["skipped"]["long"] and "- `long`: exp" in page
    assert found["summary"]["short"]
    assert found["rows"]["hangs"]["failed"]["here"].startswith("stopped after")


def test_only_names_rows_by_their_start(run, stand_in, capsys):
    rows = [stand_in(name, LINE.format(seconds=1.0)) for name in ("adm_one", "adm_two", "ddp")]
    found, _ = run(rows, "--only=adm", "--rounds=1")
    assert list(found["summary"]) == ["adm_one", "adm_two"]
    with pytest.raises(SystemExit):
        run(rows, "--only=adn")
    assert "--only=adn starts no row of cpu: adm_one, adm_two, ddp" in capsys.readouterr().err


def test_a_real_program_is_timed(run, modules):
    _, rows, _ = modules
    row = rows.Row("tiny", "a product", "contributing",
                   ("bench_matmul.py", "--size=64", "--repeats=4", "--seconds=0"), (),
                   {"cpu": 20.0}, flop=2 * 64**3)  # fmt: skip
    found, _ = run([row], "--rounds=1")
    assert found["rows"]["tiny"]["failed"] == {}
    here = found["summary"]["tiny"]["here"]
    assert here["calls"] == 4 and 0 < here["min"] <= here["median"] < here["first"]
    assert here["host_mb"] > 50 and here["flop"] > 0
    assert {"jax", "jaxlib", "python"} <= set(found["machine"]["versions"])


def test_the_rows_have_programs_that_take_their_options(modules, monkeypatch):
    _, rows, timing = modules
    taken = []

    def parse(doc, whats, make, **options):
        taken.append(Path(sys.argv[0]).name)
        timing.arguments(doc, whats, options)

    monkeypatch.setattr(timing, "jax_program", parse)
    monkeypatch.setattr(timing, "torch_program", parse)
    commands = {command for row in (*rows.PEAKS, *rows.ROWS) for command in (row.here, row.torch)}
    commands = [command for command in commands if command and usable(command)]
    for file, *options in commands:
        monkeypatch.setattr(sys, "argv", [file, *options, "--device=gpu", "--compile"])
        runpy.run_path(str(FOLDER / file), run_name="__main__")
    assert taken == [file for file, *_ in commands]
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    pages = {row.guide for row in rows.ROWS}
    assert all((FOLDER.parents[1] / ".docs" / f"{page}.md").exists() for page in pages)


def usable(command):
    """Whether its modules are installed: PyTorch is not, but for benchmarks."""
    if not command[0].startswith("torch_"):
        return True
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
