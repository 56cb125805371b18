"""Our ADM UNet and the plain PyTorch one of torch_adm.py, in turn, each in its own process.

python tests/benchmarks/bench_adm.py [--torch-python PATH] [--rounds 2] [--only forward files]

forward   the LSUN network, one image of 256x256, float32
taps      the same up to output block 12, for the five blocks that DDPM-Seg reads
train     forward, backward and AdamW of a smaller network, 8 images of 64x64, float32
files     a full-size state dict of the LSUN network: write it (random numbers, by
          lsun_checkpoint.py), convert it, load the result and run it

`ours` and `torch` are the best seconds of all rounds, `ratio` is torch / ours (above 1 = we are
faster), `MB` the peak of resident memory (ours includes compilation), `first s` our first call,
mostly compilation. The seconds of `convert` include the start of the program; its memory includes
the pages of the mapped file, which the system can take back at any time. `forward` under `files` is
the second call, in the process that loaded. `files` needs 5 GB where temporary files go (TMPDIR).

Measured 2026-11-21 with PyTorch 2.13.0 and jax 0.10.2 on 2 cores (Intel Xeon of family 6, model
207, with AVX-512), nothing else running, one round, seconds of ours and torch: forward 7.13 and
9.71, taps 4.14 and 5.03, train 7.66 and 6.89. Files, seconds and MB: write 10.6 and 122, convert
17.7 and 3349, load 3.5 and 2618, forward 7.8 and 4079.
"""

import argparse
import functools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

from lsun_checkpoint import LSUN

SMALLER = LSUN | dict(
    channels=128, channel_mult=(1, 2, 3, 4), attention_factors=(4, 8), dropout=0.0
)
TIMED = dict(  # network, image size, batch; the same in torch_adm.py
    forward=(LSUN, 256, 1), taps=(LSUN, 256, 1), train=(SMALLER, 64, 8)
)  # fmt: skip
TAPS = (5, 6, 7, 8, 12)  # output blocks
REPEATS = 3
HERE = Path(__file__).parent


# --- our side, in a process of its own ------------------------------------------------------------


def make_network(sizes):
    from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
    from diffseg_jax.models.network import Network

    return Network(lambda rngs: ADMUNet(ADMSettings(**sizes), rngs=rngs))


def random_values(network):
    """{"params", "stats"} by numpy, no layer zero; initialising would compile for a minute."""
    import jax
    import numpy as np

    draw = np.random.default_rng(0)

    def fill(path, leaf):
        constants = {"scale": 1.0, "bias": 0.0}
        name = path[-1].key
        if name in constants:
            return np.full(leaf.shape, constants[name], np.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return draw.standard_normal(leaf.shape, np.float32) * np.float32(fan_in**-0.5)

    abstract = jax.eval_shape(network.init, jax.random.key(0))
    return jax.device_put(jax.tree_util.tree_map_with_path(fill, abstract))


def random_batch(size, batch):
    """What a train step reads: image and noise f32[B,H,W,3], t i32[B]."""
    import jax
    import numpy as np

    draw = np.random.default_rng(1)
    shape = (batch, size, size, 3)
    return jax.device_put(dict(
        image=draw.uniform(-1, 1, shape).astype(np.float32),
        noise=draw.standard_normal(shape, np.float32),
        t=draw.integers(0, 1000, batch).astype(np.int32),
    ))  # fmt: skip


def predict(network, values, image, t):
    return network.bind(**values)(image, t)[0]


def tapped(network, values, image, t):
    _, features = network.bind(**values)(image, t, until=f"output_{max(TAPS)}")
    return [features[f"output_{index}"] for index in TAPS]


def training_loss(network, params, stats, batch, key):
    """The loss of torch_adm.py, in the form that train_step asks for."""
    import jax.numpy as jnp

    output, _ = network.bind(params, stats)(0.8 * batch["image"] + 0.6 * batch["noise"], batch["t"])
    guess, variance = jnp.split(output, 2, axis=-1)
    loss = jnp.mean((guess - batch["noise"]) ** 2) + 1e-3 * jnp.mean(variance**2)
    return loss, (jnp.float32(1), stats, {})


def make_step(what):
    """A function of no arguments that runs our forward pass, taps or train step to its end."""
    import jax

    from diffseg_jax.training.optimizer import make_optimizer, make_schedule
    from diffseg_jax.training.state import new_state
    from diffseg_jax.training.step import train_step

    sizes, size, count = TIMED[what]
    network, batch = make_network(sizes), random_batch(size, count)
    values = random_values(network)
    if what != "train":
        run = jax.jit(functools.partial(tapped if what == "taps" else predict, network))
        return lambda: jax.block_until_ready(run(values, batch["image"], batch["t"]))
    optimizer = make_optimizer(
        "adamw", make_schedule("constant", 1e-4, 1000, 0, 0), b1=0.9, b2=0.999, epsilon=1e-8,
        weight_decay=0.0, no_decay=(), clip_norm=0.0,
    )  # fmt: skip
    state = new_state(values, lambda path: True, optimizer, ())
    loss = functools.partial(training_loss, network)
    update = jax.jit(functools.partial(train_step, loss, optimizer, 1, ()), donate_argnums=0)

    def step():
        nonlocal state
        state, metrics = update(state, batch, jax.random.key(0))
        jax.block_until_ready((state, metrics))

    return step


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB


def time_ours(what):
    """Prints one JSON line like torch_adm.py, with the seconds of the first call."""
    step = make_step(what)
    line = dict(what=what, first=timeit.timeit(step, number=1))
    line["seconds"] = timeit.repeat(step, number=1, repeat=REPEATS)
    print(json.dumps({**line, "peak_rss_mb": peak_mb()}))


def time_loaded(directory):
    """Prints one JSON line: seconds and peak memory of loading and of running what was loaded."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.storage.networks import open_network

    start = timeit.default_timer()
    values, _ = open_network(Path(directory))
    line = dict(load=timeit.default_timer() - start, load_mb=peak_mb())
    sizes, size, count = TIMED["forward"]
    values, batch = jax.device_put(values), random_batch(size, count)
    run = jax.jit(functools.partial(predict, make_network(sizes)))
    step = lambda: jax.block_until_ready(run(values, batch["image"], batch["t"]))
    if not jnp.all(jnp.isfinite(step())):
        sys.exit("the loaded network gives numbers that are not finite.")
    print(json.dumps({**line, "forward": timeit.timeit(step, number=1), "forward_mb": peak_mb()}))


# --- both sides -----------------------------------------------------------------------------------


def run(command):
    """What a program prints, its seconds with start and end, and its peak of memory in MB."""
    start = timeit.default_timer()
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return printed, timeit.default_timer() - start, usage.ru_maxrss / 1024


def call(command):
    """The last line a program prints, as JSON."""
    return json.loads(run(command)[0].splitlines()[-1])


def compare(what, torch_python, rounds):
    """One line of the table: both programs in turn, `rounds` times."""
    torch_command = [torch_python, HERE / "torch_adm.py", f"--what={what}", f"--repeats={REPEATS}"]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(call([sys.executable, __file__, f"--ours={what}"]))
        theirs.append(call(torch_command))
    best = lambda lines: min(second for line in lines for second in line["seconds"])
    peak = lambda lines: max(line["peak_rss_mb"] for line in lines)
    print(
        f"{what:8} {best(ours):7.2f} {best(theirs):8.2f} {best(theirs) / best(ours):6.2f} "
        f"{peak(ours):6.0f} {peak(theirs):9.0f} {ours[-1]['first']:8.1f}", flush=True,
    )  # fmt: skip


def follow_file():
    """Prints seconds and peak memory of each step from a state dict to an output."""
    row = lambda step, seconds, mb: print(f"{step:8} {seconds:7.2f} {mb:6.0f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "lsun_bedroom.pt"), Path(folder, "converted")
        name = "--name=lsun_bedroom"
        print("               s     MB")
        line = call([sys.executable, HERE / "lsun_checkpoint.py", name, f"--output={source}"])
        row("write", line["seconds"], line["peak_rss_mb"])
        convert = [sys.executable, "-m", "diffseg_jax.convert", "--source=adm", name]
        row("convert", *run([*convert, f"--input={source}", f"--output={target}"])[1:])
        line = call([sys.executable, __file__, f"--loaded={target}"])
        row("load", line["load"], line["load_mb"])
        row("forward", line["forward"], line["forward_mb"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=2)
    parts = (*TIMED, "files")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run")
    parser.add_argument("--ours", choices=TIMED, help="time our side alone, in this process")
    parser.add_argument("--loaded", help="time a converted network alone, in this process")
    args = parser.parse_args()
    if args.ours:
        return time_ours(args.ours)
    if args.loaded:
        return time_loaded(args.loaded)
    timed = [what for what in TIMED if what in args.only]
    if timed:
        print("         ours s  torch s  ratio     MB  torch MB  first s")
    for what in timed:
        compare(what, args.torch_python, args.rounds)
    if "files" in args.only:
        follow_file()


if __name__ == "__main__":
    main()
