"""Our ADM UNet, timed; torch_adm.py is its plain PyTorch twin.

python tests/benchmarks/bench_adm.py --what=forward|taps|train|train_lsun [--batch=1] [--size=256] \
    [--remat]
python tests/benchmarks/bench_adm.py --files

forward     the LSUN network, one image of 256x256
taps        the same up to output block 12, for the five blocks that DDPM-Seg reads
train       forward, backward and AdamW of a smaller network, 8 images of 64x64
train_lsun  the same of the LSUN network, 2 images of 256x256
--remat     blocks are computed again in the backward pass
--files     prints seconds and peak memory of writing a full-size state dict of the LSUN network
            (random numbers, by lsun_checkpoint.py), converting it, loading the result and running
            it, in one process after another. The seconds of `convert` include the start of the
            program; its memory includes the pages of the mapped file, which the system can take
            back at any time. `forward` is the second call. Needs 5 GB where temporary files go
            (TMPDIR)
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

from lsun_checkpoint import LSUN
from random_network import random_values, training_call
from timing import jax_program, memory_mb

SMALLER = LSUN | dict(
    channels=128, channel_mult=(1, 2, 3, 4), attention_factors=(4, 8), dropout=0.0
)
TIMED = dict(  # network, image size, batch; the same in torch_adm.py
    forward=(LSUN, 256, 1), taps=(LSUN, 256, 1), train=(SMALLER, 64, 8), train_lsun=(LSUN, 256, 2)
)  # fmt: skip
TAPS = (5, 6, 7, 8, 12)  # output blocks
HERE = Path(__file__).parent


def make_network(sizes, dtype="float32", remat=False):
    import jax.numpy as jnp

    from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
    from diffseg_jax.models.network import Network

    options = dict(dtype=jnp.dtype(dtype), remat=remat)
    return Network(lambda rngs: ADMUNet(ADMSettings(**sizes), **options, rngs=rngs))


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

    noisy = 0.8 * batch["image"] + 0.6 * batch["noise"]
    output, _ = network.bind(params, stats)(noisy, batch["t"], None, key)  # the key: of dropout
    guess, variance = jnp.split(output, 2, axis=-1)
    loss = jnp.mean((guess - batch["noise"]) ** 2) + 1e-3 * jnp.mean(variance**2)
    return loss, (jnp.float32(1), stats, {})


def make_step(args):
    """Our forward pass, taps or train step."""
    import jax

    sizes, size, count = TIMED[args.what]
    network = make_network(sizes, args.dtype, args.remat)
    values, batch = random_values(network), random_batch(args.size or size, args.batch or count)
    if args.what.startswith("train"):
        return training_call(functools.partial(training_loss, network), values, batch)
    run = jax.jit(functools.partial(tapped if args.what == "taps" else predict, network))
    return functools.partial(run, values, batch["image"], batch["t"])


# --- a file of the published size -----------------------------------------------------------------


def time_loaded(directory):
    """Prints one JSON line: seconds and peak memory of loading and of running what was loaded."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.storage.networks import open_network

    start = timeit.default_timer()
    values, _ = open_network(Path(directory))
    line = dict(load=timeit.default_timer() - start, load_mb=memory_mb("VmHWM"))
    sizes, size, count = TIMED["forward"]
    values, batch = jax.device_put(values), random_batch(size, count)
    run = jax.jit(functools.partial(predict, make_network(sizes)))
    step = lambda: jax.block_until_ready(run(values, batch["image"], batch["t"]))
    if not jnp.all(jnp.isfinite(step())):
        sys.exit("the loaded network gives numbers that are not finite.")
    line["forward"] = timeit.timeit(step, number=1)
    print(json.dumps({**line, "forward_mb": memory_mb("VmHWM")}))


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


def follow_file():
    """Prints seconds and peak memory of each step from a state dict to an output."""
    call = lambda *command: json.loads(run([sys.executable, *command])[0].splitlines()[-1])
    row = lambda step, seconds, mb: print(f"{step:8} {seconds:7.2f} {mb:6.0f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "lsun_bedroom.pt"), Path(folder, "converted")
        name = "--name=lsun_bedroom"
        print("               s     MB")
        line = call(HERE / "lsun_checkpoint.py", name, f"--output={source}")
        row("write", line["seconds"], line["peak_rss_mb"])
        convert = [sys.executable, "-m", "diffseg_jax.convert", "--source=adm", name]
        row("convert", *run([*convert, f"--input={source}", f"--output={target}"])[1:])
        line = call(__file__, f"--loaded={target}")
        row("load", line["load"], line["load_mb"])
        row("forward", line["forward"], line["forward_mb"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--files"]:
        follow_file()
    elif sys.argv[1:2] and sys.argv[1].startswith("--loaded="):
        time_loaded(sys.argv[1].removeprefix("--loaded="))
    else:
        jax_program(__doc__, TIMED, make_step, batch=0, size=0, remat=False)
