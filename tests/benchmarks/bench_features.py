"""Features of a frozen network: ours and the plain PyTorch program of torch_features.py, in turn.

python tests/benchmarks/bench_features.py [--torch-python PATH] [--rounds 3]

The default maps of one image of 480x360 in float32, from the installed weights. `ms` are the best
of all rounds, each in a process of its own; `ratio` is torch / ours (above 1 = we are faster), of
PyTorch's faster layout of memory. `error` is the largest difference of the maps, as a share of the
largest value. Needs the extras `bench` and `pretrained`.

Measured 2026-11-28 with PyTorch 2.14.1 and jax 0.10.2 on 2 cores (AMD EPYC), two rounds with other
programs running at lower priority: 17.9 ms here, 43.4 and 39.3 (channels last) in PyTorch. The best
of single runs on the same machine, less busy: 13.8, 32.2 and 18.6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HEIGHT, WIDTH, REPEATS = 360, 480, 20  # as in torch_features.py


# --- our side, in a process of its own ------------------------------------------------------------


def efficientnet_lite0():
    """The network, its arrays and its default taps."""
    from diffseg_jax.models import efficientnet_lite as models
    from diffseg_jax.models.network import Network
    from diffseg_jax.weights.efficientnet_lite import efficientnet_settings, load_efficientnet
    from diffseg_jax.weights.formats import read_arrays
    from diffseg_jax.weights.packaged import packaged_efficientnet

    arrays = read_arrays(packaged_efficientnet())
    settings = efficientnet_settings(arrays, "the file")
    network = Network(lambda rngs: models.EfficientNetLite(settings, rngs=rngs))
    values = load_efficientnet(arrays, settings, "the file")
    return network, values, models.efficientnet_default_taps(settings)


NETWORKS = {"efficientnet_lite0": efficientnet_lite0}


def time_ours(name, output):
    """Prints one JSON line like torch_features.py, with the seconds of loading and compiling."""
    import jax

    start = timeit.default_timer()
    network, values, taps = NETWORKS[name]()
    line, values = dict(load=timeit.default_timer() - start), jax.device_put(values)
    image = np.random.default_rng(0).uniform(-1, 1, (1, HEIGHT, WIDTH, 3)).astype(np.float32)
    run = jax.jit(lambda values, image: network.bind_eval(**values)(image, taps))
    step = lambda: jax.block_until_ready(run(values, image))
    line["first"] = timeit.timeit(step, number=1)
    maps = step()
    np.savez(output, **{f"map_{i:02d}": maps[tap] for i, tap in enumerate(taps)})
    print(json.dumps({**line, "seconds": timeit.repeat(step, number=1, repeat=REPEATS)}))


# --- both sides -----------------------------------------------------------------------------------


def call(*command):
    """The last line that a program prints, as JSON."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def difference(ours, theirs):
    """The largest difference of two files of maps, as a share of the largest value of a map."""
    with np.load(ours) as a, np.load(theirs) as b:
        return max(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max() for name in b.files)


def compare(name, torch_python, rounds):
    """One line of the table: the programs in turn, `rounds` times."""
    from diffseg_jax.weights.packaged import packaged_efficientnet

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.npz"), Path(folder, "theirs.npz")
        torch = [torch_python, HERE / "torch_features.py", f"--network={name}",
                 f"--weights={packaged_efficientnet()}", f"--output={theirs}"]  # fmt: skip
        lines = {"ours": [], "torch": [], "channels last": []}
        for _ in range(rounds):
            lines["ours"].append(call(sys.executable, __file__, f"--ours={name}", ours))
            lines["torch"].append(call(*torch))
            lines["channels last"].append(call(*torch, "--channels-last"))
        ms = {who: 1000 * min(s for line in found for s in line["seconds"])
              for who, found in lines.items()}  # fmt: skip
        ratio = min(ms["torch"], ms["channels last"]) / ms["ours"]
        print(
            f"{name:20} {ms['ours']:6.1f} {ms['torch']:6.1f} {ms['channels last']:14.1f} "
            f"{ratio:6.2f} {difference(ours, theirs):8.1e} {lines['ours'][-1]['load']:7.2f} "
            f"{lines['ours'][-1]['first']:8.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", choices=NETWORKS, help="time our side alone, in this process")
    parser.add_argument("output", nargs="?", help="an .npz file for the maps of our side")
    args = parser.parse_args()
    if args.ours:
        time_ours(args.ours, args.output)
        return
    print(f"{'network':20} {'ours ms':>6} {'torch':>5} {'channels last':>14} {'ratio':>6} "
          f"{'error':>8} {'load s':>7} {'first s':>8}")  # fmt: skip
    for name in NETWORKS:
        compare(name, args.torch_python, args.rounds)


if __name__ == "__main__":
    main()
