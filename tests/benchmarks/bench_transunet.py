"""Our TransUNet and the plain PyTorch one of torch_transunet.py, in turn, each in its own process.

python tests/benchmarks/bench_transunet.py [--torch-python PATH] [--rounds 2]

Published size, batch 4 of 224x224, float32. `ours` and `torch` are the best seconds of all rounds,
`ratio` is torch / ours (above 1 = we are faster), `MB` the peak of resident memory (ours includes
compilation), `first s` our first call, mostly compilation. It also checks that a frozen encoder has
neither gradients nor moments in the optimizer.

Measured 2026-11-21 with PyTorch 2.13.0 and jax 0.10.2 on 2 cores (Intel Xeon of family 6, model
207, with AVX-512), nothing else running, seconds of ours and torch: forward 1.25 and 1.14, train
5.21 and 3.76, ddep 2.24 and 1.75; ddep / train 0.43.
"""

import argparse
import functools
import json
import math
import resource
import subprocess
import sys
import timeit
from pathlib import Path

WHATS = ("forward", "train", "ddep")
BATCH, SIZE, CLASSES = 4, 224, 19
REPEATS = 3
NOISE = dict(
    kind="scaled", low=0.22, high=0.22, uniform_in="sigma", target="noise", condition=False
)


def random_values(network):
    """{"params", "stats"} filled by numpy; initialising the network would compile for a minute."""
    import jax
    import numpy as np

    draw = np.random.default_rng(0)

    def fill(path, leaf):
        constants = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}
        name = path[-1].key
        if name in constants:
            return np.full(leaf.shape, constants[name], np.float32)
        return draw.standard_normal(leaf.shape, np.float32) * 0.02

    abstract = jax.eval_shape(network.init, jax.random.key(0))
    return jax.device_put(jax.tree_util.tree_map_with_path(fill, abstract))


def random_batch():
    """What a train step reads: image, mask, valid, row."""
    import jax
    import numpy as np

    draw = np.random.default_rng(1)
    batch = dict(
        image=draw.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        mask=draw.integers(0, CLASSES, (BATCH, SIZE, SIZE), np.int32),
        valid=np.full((BATCH, 2), SIZE, np.int32),
        row=np.arange(BATCH, dtype=np.int32),
    )
    return jax.device_put(batch)


def make_step(what):
    """A function of no arguments that runs our forward pass or train step, and the train state."""
    import jax

    from diffseg_jax.models.network import Network
    from diffseg_jax.models.transunet import TransUNet
    from diffseg_jax.systems import ddep
    from diffseg_jax.training.optimizer import make_optimizer, make_schedule
    from diffseg_jax.training.state import new_state
    from diffseg_jax.training.step import train_step

    frozen = what == "ddep"
    network = Network(lambda rngs: TransUNet(3 if frozen else CLASSES, rngs=rngs))
    values, batch = random_values(network), random_batch()
    if what == "forward":
        predict = jax.jit(functools.partial(ddep.class_probabilities, network))
        return lambda: jax.block_until_ready(predict(values, batch["image"], batch["valid"])), None
    optimizer = make_optimizer(
        "adam", make_schedule("constant", 1e-4, 1000, 0, 0), b1=0.9, b2=0.999, epsilon=1e-8,
        weight_decay=0.0, no_decay=(), clip_norm=0.0,
    )  # fmt: skip
    segment = functools.partial(ddep.segmentation_loss, network)
    denoise = functools.partial(ddep.denoising_loss, network, NOISE, False)
    learns = lambda path: not (frozen and path[0] == "encoder")
    state = new_state(values, learns, optimizer, ())
    update = functools.partial(train_step, denoise if frozen else segment, optimizer, 1, ())
    update = jax.jit(update, donate_argnums=0)

    def step():
        nonlocal state
        state, metrics = update(state, batch, jax.random.key(0))
        jax.block_until_ready((state, metrics))

    return step, state


def encoder_leaves(state):
    """Paths below `params` or `opt` (gradients have the tree of params) that name the encoder."""
    import jax

    parts = {name: state[name] for name in ("params", "opt")}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(parts)]
    return [path for path in paths if "encoder" in path]


def time_ours(what):
    """Prints one JSON line like torch_transunet.py, with the seconds of the first call."""
    step, state = make_step(what)
    leaves = encoder_leaves(state) if what == "ddep" else []
    line = dict(what=what, first=timeit.timeit(step, number=1))
    line["seconds"] = timeit.repeat(step, number=1, repeat=REPEATS)
    line["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # from KiB
    print(json.dumps({**line, "encoder_leaves": leaves}))


def call(command):
    """The last line a program prints, as JSON."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(what, torch_python, rounds):
    """Best seconds and largest peak of both programs, and our last line."""
    torch_file = Path(__file__).with_name("torch_transunet.py")
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(call([sys.executable, __file__, f"--ours={what}"]))
        theirs.append(call([torch_python, torch_file, f"--what={what}", f"--repeats={REPEATS}"]))
    best = lambda lines: min(second for line in lines for second in line["seconds"])
    peak = lambda lines: max(line["peak_rss_mb"] for line in lines)
    return best(ours), best(theirs), peak(ours), peak(theirs), ours[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ours", choices=WHATS, help="time our side alone, in this process")
    args = parser.parse_args()
    if args.ours:
        return time_ours(args.ours)
    seconds = dict.fromkeys(WHATS, math.nan)
    print("         ours s  torch s  ratio     MB  torch MB  first s")
    for what in WHATS:
        ours, theirs, peak, their_peak, last = compare(what, args.torch_python, args.rounds)
        seconds[what] = ours
        print(
            f"{what:8} {ours:7.2f} {theirs:8.2f} {theirs / ours:6.2f} {peak:6.0f} "
            f"{their_peak:9.0f} {last['first']:8.1f}", flush=True,
        )  # fmt: skip
    print(f"ddep / train: {seconds['ddep'] / seconds['train']:.2f}")
    print(f"encoder leaves learned or in the optimizer of ddep: {last['encoder_leaves'] or 'none'}")
    if last["encoder_leaves"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
