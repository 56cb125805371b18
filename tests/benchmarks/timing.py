"""A timed program: its options, the seconds and memory of its calls, and the JSON line it prints.

Both sides of a benchmark are programs of their own, so that neither shares memory or compiled code
with the other. A program gives `make(args)`, which returns a function of no arguments that starts
one pass and returns its outputs, or that function and what its seconds are multiplied by (a call
that makes 32 steps is given with 1 / 32). The line holds

first            seconds of the first call, which compiles; first_cpu, of all processors together
seconds          of every later one, multiplied; of the first where there is no other
peak_rss_mb      peak of resident memory; rise_mb, its rise by the calls above what was made before
device_mb        peak of the accelerator's memory, where there is one
"""

import argparse
import contextlib
import json
import os
import platform
import timeit
from importlib import metadata
from pathlib import Path

MOST = 100  # calls


def jax_program(doc, whats, make, **options):
    """Runs a program of ours by its command line."""
    args = arguments(doc, whats, options)
    import jax

    from diffseg_jax.devices.starting import reuse_memory

    reuse_memory()  # as `main` does
    jax.config.update("jax_platforms", dict(cpu="cpu", gpu="cuda,cpu")[args.device])
    device = jax.devices()[0]
    stats = lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")
    _measure(args, make, jax.block_until_ready, stats, device.device_kind, ("jax", "jaxlib"))


def torch_program(doc, whats, make, **options):
    """Runs a plain PyTorch program. What `make` makes is on the device unless it says otherwise.

    What its calls make is not: a default device would slow every operation of them. On a GPU,
    products of float32 may use the TF32 of its cores, as jax lets them.
    """
    args = arguments(doc, whats, options)
    import torch

    gpu = args.device == "gpu"
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if gpu:
        torch.set_float32_matmul_precision("high")
    wait = torch.cuda.synchronize if gpu else lambda: None
    stats = torch.cuda.max_memory_allocated if gpu else lambda: None
    kind = torch.cuda.get_device_name() if gpu else "cpu"

    def make_on_device(args):
        with torch.device("cuda" if gpu else "cpu"):
            return make(args)

    _measure(args, make_on_device, lambda outputs: wait(), stats, kind, ("torch",))


def compiled(args, function):
    """A function as --compile asks for it."""
    import torch

    return torch.compile(function) if args.compile else function


def layout(args):
    """The memory format of maps and kernels that --channels-last asks for."""
    import torch

    return torch.channels_last if args.channels_last else torch.contiguous_format


def autocast(args):
    """The context in which PyTorch computes in the dtype asked for; parameters stay float32."""
    import torch

    kind = "cuda" if args.device == "gpu" else "cpu"
    return torch.autocast(kind, torch.bfloat16, enabled=args.dtype == "bfloat16")


def arguments(doc, whats, options):
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--what", choices=whats, default=tuple(whats)[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="calls after the first, at least")
    parser.add_argument("--seconds", type=float, default=2, help="that calls are repeated for")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as cores")
    parser.add_argument("--compile", action="store_true", help="PyTorch by torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="PyTorch's maps as NHWC")
    for name, default in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def processor_seconds() -> float:
    """Of this process and of those that it started and that ended, such as compilers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _measure(args, make, wait, device_bytes, kind, packages):
    made = make(args)
    step, share = made if isinstance(made, tuple) else (made, 1)
    before, made_peak = memory_mb("VmRSS"), memory_mb("VmHWM")
    start_peak()
    call = lambda: wait(step())
    busy = processor_seconds()
    first, seconds = timeit.timeit(call, number=1), []
    busy = processor_seconds() - busy
    start = timeit.default_timer()
    while len(seconds) < args.repeats or (
        len(seconds) < MOST * bool(args.repeats) and timeit.default_timer() - start < args.seconds
    ):
        seconds.append(share * timeit.timeit(call, number=1))
    peak, on_device = memory_mb("VmHWM"), device_bytes()
    print(json.dumps(dict(
        what=args.what, first=first, first_cpu=busy, seconds=seconds or [share * first],
        peak_rss_mb=max(peak, made_peak), rise_mb=max(0, peak - before),
        device_mb=on_device and on_device / 2**20, device=kind,
        versions=dict(
            python=platform.python_version(), **{name: metadata.version(name) for name in packages}
        ),
    )))  # fmt: skip


def memory_mb(key):
    """The current (VmRSS) or peak (VmHWM) resident memory; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def start_peak():
    """Resets the peak of resident memory, if the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
