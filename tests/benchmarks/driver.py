"""Runs the rows of the benchmark: ours, PyTorch and torch.compile in turn, each in its own process.

A round measures ours and PyTorch of all rows, most important first, and then what else there is:
torch.compile, and PyTorch with other options. Rounds follow until they are made or the minutes are
over. What is not expected to fit is skipped; what fits no further time, and a program that fails or
takes too long, are named, and the others go on. benchmark.json and
benchmark.md are written after every row. Nothing is downloaded: weights are random, and compiled
programs are kept for the run alone, so the first call of the first round compiles from nothing, and
those of later rounds read them.

rounds            that were made; a later one is skipped where it is not expected to fit
median (min-max)  of all calls after the first, of all rounds
PyTorch / here    a program's median by ours (above 1 = we are faster)
first             seconds of the first call, mostly compilation; in brackets from compiled programs
its CPU           the same of all processors together, which other programs lengthen less; without
                  compilers in processes that go on, as those of torch.compile
host, device      peaks of memory; the first is resident memory with compilation, "+" its rise above
                  the inputs
FLOP/s            of the row's operations, see `rows.Row`, as a share of the fastest product of two
                  large matrices of the same dtype and precision in this run
B/s               of the bytes that must move, as a share of the fastest copy in this run
"""

import argparse
import contextlib
import datetime
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import PEAKS, ROWS

from diffseg_jax.errors import scaled

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OURS, PAIR = "here", ("here", "PyTorch")
CACHES = dict(JAX_COMPILATION_CACHE_DIR="jax", TORCHINDUCTOR_CACHE_DIR="torch")  # of a run
PATIENCE = 5  # times its expected seconds; a program that takes longer is stopped
COLUMNS = "row|program|rounds|median (min-max)|PyTorch / here|first|its CPU|host|device|FLOP/s|B/s"


def main(rows=ROWS, peaks=PEAKS):
    """The command line."""
    flags = parsed(rows)
    folder, end = Path(flags.output), time.monotonic() + 60 * flags.minutes
    folder.mkdir(parents=True, exist_ok=True)
    report = dict(machine=machine(flags), rows={}, skipped={}, fewer={})
    chosen = with_peaks(rows_of(rows, flags), peaks, flags.device)
    with tempfile.TemporaryDirectory() as scratch:
        for number, pair in itertools.product(range(flags.rounds), (True, False)):
            for row in chosen:
                run_row(row, pair, number, flags, scratch, end, report)
                write(report, chosen, folder)
    print(markdown(report, chosen))
    print(f"\nwritten to {folder / 'benchmark.json'} and {folder / 'benchmark.md'}")


def parsed(rows):
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", default="", help="rows by name or its start: adm,ddp_t_steps")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="torch.compile as a third program")  # fmt: skip
    parser.add_argument("--output", default="runs/benchmark", help="a folder")
    parser.add_argument("--data", default="", help="CamVid, for the row input; else drawn scenes")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    flags = parser.parse_args()
    names = [row.name for row in rows if flags.device in row.seconds]
    for start in filter(None, flags.only.split(",")):
        if not any(name.startswith(start) for name in names):
            parser.error(f"--only={start} starts no row of {flags.device}: {', '.join(names)}.")
    if flags.data and not Path(flags.data).is_dir():
        parser.error(f"--data={flags.data} is no folder.")
    return flags


def rows_of(rows, flags):
    """The rows of the device that --only names."""
    starts = tuple(filter(None, flags.only.split(","))) or ("",)
    return [row for row in rows if flags.device in row.seconds and row.name.startswith(starts)]


def with_peaks(rows, peaks, device):
    """The rows, after the peaks that their shares are taken of."""
    needed = lambda peak: any(limits(peak, row, unit) for row in rows for unit in ("flop", "bytes"))
    return [*(peak for peak in peaks if device in peak.seconds and needed(peak)), *rows]


def limits(peak, row, unit):
    """Whether a row's share of "flop" or "bytes" is one of that peak."""
    if not getattr(peak, unit) or not getattr(row, unit):
        return False
    alike = peak.dtype == row.dtype and ("cpu" in peak.seconds or peak.exact == row.exact)
    return alike or unit == "bytes"


def machine(flags):
    """What the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line for line in lines if "model name" in line]
    gpus = "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"
    return dict(
        started=datetime.datetime.now().isoformat(timespec="seconds"),
        command=" ".join(["python tests/benchmarks", *sys.argv[1:]]),
        processor=named[0].split(": ")[1] if named else platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        commit=printed_by("git", "rev-parse", "--short", "HEAD"),
        gpus=printed_by("nvidia-smi", *gpus).splitlines() if flags.device == "gpu" else [],
        flags={
            name: value for name, value in os.environ.items()
            if name.startswith(("XLA_", "JAX_", "NVIDIA_TF32", "OMP_", "MKL_", "TORCH", "CUDA_"))
            and name not in CACHES
        },
        versions={}, devices=[], loads=[],
    )  # fmt: skip


def printed_by(program, *options):
    """What a program prints; "" where it is not installed, or fails."""
    if not (found := shutil.which(program)):
        return ""
    done = subprocess.run([found, *options], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


# ---- programs ----------------------------------------------------------------------------------


def programs_of(row, flags, scratch):
    """Name -> command, or why there is none."""
    data = Path(flags.data).resolve() if flags.data else f"{scratch}/data"
    fill = lambda options: [option.format(folder=scratch, data=data) for option in options]
    command = lambda python, program: [
        python, str(HERE / program[0]), *fill(program[1:]), f"--device={flags.device}"
    ]  # fmt: skip
    programs = {OURS: command(sys.executable, row.here)}
    if not row.torch:
        return programs
    torch = command(flags.torch_python, row.torch)
    if flags.torch_python == sys.executable and not importlib.util.find_spec("torch"):
        return programs | {"PyTorch": "torch is not installed: pip install -e .[bench]"}
    programs["PyTorch"] = torch
    for option, name in row.variants.items():
        if flags.device == "cpu" or not option.startswith("--threads"):
            programs[name] = [*torch, option]
    if flags.compile and row.compiles:
        compilers = filter(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))
        missing = "no compiler is installed: g++ or clang++"
        programs["torch.compile"] = [*torch, "--compile"] if any(compilers) else missing
    return programs


def run_row(row, pair, number, flags, scratch, end, report):
    """Adds a round of a row to the report: lines of programs, failures, or why it is skipped.

    pair  whether of ours and PyTorch, or of its other programs
    """
    found = report["rows"].get(row.name, dict(lines={}, failed={}, took={}))
    programs = {
        name: command for name, command in programs_of(row, flags, scratch).items()
        if (name in PAIR) == pair and name not in found["failed"]
        and (name in found["took"] or not number)
    }  # fmt: skip
    if not programs or not (pair or found["took"]):
        return
    expected = sum(
        found["took"].get(name, row.seconds[flags.device])
        for name, command in programs.items() if not isinstance(command, str)
    )  # fmt: skip
    if expected > (left := end - time.monotonic()):
        what = row.name if pair else f"{row.name}, {', '.join(programs)}"
        why = f"expected to take {expected:.0f} s, when {max(left, 0):.0f} s were left"
        if number:
            why = f"{number} of {flags.rounds} rounds; the next was {why}"
        report["fewer" if number else "skipped"].setdefault(what, why)
        return
    report["rows"][row.name] = found
    for name, command in programs.items():
        if isinstance(command, str):
            found["failed"][name] = command
            continue
        limit = min(end - time.monotonic(), max(30, PATIENCE * row.seconds[flags.device]))
        start = time.monotonic()
        line = call(command, limit, scratch)
        shown = line.get("failed") or f"{in_words(statistics.median(line['seconds']))}"
        print(f"{row.name}, {name}: {shown}", flush=True)
        if "failed" in line:
            found["failed"][name] = line["failed"]
            continue
        # a later round reads what the first call of the first one compiled
        cold = 0 if number else max(0, line["first"] - max(line["seconds"]))
        found["took"][name] = time.monotonic() - start - cold
        found["lines"].setdefault(name, []).append(line)
        report["machine"]["versions"].update(line.pop("versions", {}))
        report["machine"]["loads"].append(line["load"])
        if line.get("device") not in report["machine"]["devices"]:
            report["machine"]["devices"].append(line.get("device"))


def call(command, limit, scratch):
    """The JSON that a program prints last, or {"failed": why}; it is stopped after the limit."""
    environment = os.environ | dict(
        PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        **{name: f"{scratch}/{folder}" for name, folder in CACHES.items()},
    )
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=printed, stderr=errors, env=environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(max(limit, 0))
        except subprocess.TimeoutExpired:
            return dict(failed=f"stopped after {limit:.0f} s, its limit or the end of --minutes")
        finally:
            with contextlib.suppress(ProcessLookupError):  # compilers that it started, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = [(file.seek(0), file.read().split("\n"))[1] for file in (printed, errors)]
    said = [list(filter(str.strip, each)) for each in lines]
    if process.returncode or not said[0]:
        why = said[1][-1].strip()[:300] if said[1] else "it printed nothing"
        return dict(failed=f"exit code {process.returncode}: {why}")
    return json.loads(said[0][-1]) | dict(load=load)


# ---- the report --------------------------------------------------------------------------------


def write(report, chosen, folder):
    """Both files, of what is measured so far."""
    report["summary"] = summaries(report, chosen)
    for name, text in (("json", json.dumps(report, indent=1)), ("md", markdown(report, chosen))):
        part = folder / f"benchmark.{name}.part"
        part.write_text(text + "\n")
        part.replace(folder / f"benchmark.{name}")


def summaries(report, chosen):
    """Row -> program -> numbers of all its rounds."""
    table = {}
    for row in chosen:
        lines = report["rows"].get(row.name, {}).get("lines", {})
        table[row.name] = {name: summary(row, name, each) for name, each in lines.items()}
    peaks = [row for row in chosen if row.name.startswith(("product", "copy"))]
    for unit in ("flop", "bytes"):
        for row in chosen:
            best = max((
                getattr(peak, unit) / found["min"]
                for peak in peaks if limits(peak, row, unit)
                for found in table[peak.name].values()
            ), default=0)  # fmt: skip
            for found in table[row.name].values():
                if best and found[unit]:
                    found[f"{unit}_share"] = found[unit] / best
    for programs in table.values():
        for found in programs.values():
            if OURS in programs:
                found["ratio"] = found["median"] / programs[OURS]["median"]
    return table


def summary(row, name, lines):
    flop = row.flop if name == OURS else row.torch_flop or row.flop
    seconds = [second for line in lines for second in line["seconds"]]
    most = lambda key: max((line.get(key) or 0 for line in lines), default=0)
    median = statistics.median(seconds)
    return dict(
        rounds=len(lines), calls=len(seconds), median=median, min=min(seconds), max=max(seconds),
        first=lines[0]["first"], first_again=min((line["first"] for line in lines[1:]), default=0),
        host_mb=most("peak_rss_mb"), rise_mb=most("rise_mb"), device_mb=most("device_mb"),
        flop=flop / median, bytes=row.bytes / median, first_cpu=lines[0].get("first_cpu", 0),
    )  # fmt: skip


def markdown(report, chosen):
    """The report as a page: the machine, the table, and what is not in it."""
    about, table = report["machine"], summaries(report, chosen)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    loads = about["loads"] or [os.getloadavg()[0]]
    text = [
        "# Benchmark", "",
        f"`{about['command']}`, {about['started']}, commit {about['commit'] or 'unknown'}.",
        f"{about['processor']}, {about['cores']} cores; {', '.join(about['devices']) or 'cpu'}; "
        + "".join(f"{gpu}; " for gpu in about["gpus"]) +
        f"load average {min(loads):.1f} to {max(loads):.1f}; {versions}.",
        f"Flags: {' '.join(f'{k}={v}' for k, v in about['flags'].items()) or 'none'}.", "",
        f"| {COLUMNS.replace('|', ' | ')} |", "|---" * (COLUMNS.count("|") + 1) + "|",
    ]  # fmt: skip
    for row in chosen:
        for name, found in table[row.name].items():
            text.append("| " + " | ".join((row.name, name, *cells(found))) + " |")
    text += ["", *(f"- `{row.name}`: {row.what}, {row.dtype}" for row in chosen if table[row.name])]
    failed = [
        f"- `{name}`, {program}: {why}"
        for name, found in report["rows"].items() for program, why in found["failed"].items()
    ]  # fmt: skip
    skipped = [f"- `{name}`: {why}" for name, why in report["skipped"].items()]
    fewer = [f"- `{name}`: {why}" for name, why in report["fewer"].items()]
    for title, lines in (("Failed", failed), ("Skipped", skipped), ("Fewer rounds", fewer)):
        text += ["", f"{title}:", "", *lines] if lines else []
    return "\n".join(text)


def cells(found):
    """The columns of one program."""
    again = f" ({in_words(found['first_again'])})" if found["first_again"] else ""
    rate = lambda key: " ".join(filter(None, (
        scaled(found[key], "") if found[key] else "",
        f"({found[f'{key}_share']:.0%})" if f"{key}_share" in found else "",
    )))  # fmt: skip
    return (
        str(found["rounds"]),
        f"{in_words(found['median'])} ({in_words(found['min'])}-{in_words(found['max'])})",
        f"{found['ratio']:.2f}" if found.get("ratio", 1) != 1 else "",
        in_words(found["first"]) + again,
        in_words(found["first_cpu"]) if found["first_cpu"] else "",
        f"{found['host_mb'] / 1024:.2f} GB, +{found['rise_mb'] / 1024:.2f}",
        f"{found['device_mb'] / 1024:.2f} GB" if found["device_mb"] else "",
        rate("flop"),
        rate("bytes"),
    )


def in_words(seconds):
    """3 min 5 s, 4.25 s, 43.1 ms or 12 us."""
    if seconds >= 120:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    for scale, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
