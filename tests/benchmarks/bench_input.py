"""The input pipeline against a PyTorch DataLoader with the same transforms, images per second.

python tests/benchmarks/bench_input.py --data=camvid [--torch-python=PATH] [--rounds=3]

Both decode 360 x 480 JPEG and PNG pairs, jitter the scale by 0.5 to 2, crop 256 x 256 so that no
class fills more than 75 %, flip, distort the colours and make batches of 8; ours end as arrays in
[-1, 1] on the device, PyTorch's as CHW tensors. The two run in turn, and medians are compared.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH, CROP, WARM_UP, BATCHES = 8, (256, 256), 6, 60


def ours(data: str, threads: int) -> float:
    """Images per second of `training_batches`, moved to the device and scaled there."""
    import jax
    import numpy as np

    from diffseg_jax.data.pipeline import training_batches
    from diffseg_jax.data.sources import open_source
    from diffseg_jax.data.transforms import augment
    from diffseg_jax.models.inputs import scale_images

    source = open_source("camvid", "train", path=data)
    change = functools.partial(augment, scale=(0.5, 2.0), crop=CROP, photometric=True)
    batches = training_batches(
        source, np.arange(len(source)), change, seed=0, batch_size=BATCH, start=0,
        steps=WARM_UP + BATCHES, threads=threads,
    )  # fmt: skip
    scale = jax.jit(scale_images)
    for step, batch in enumerate(batches):
        jax.block_until_ready(scale(batch["image"], batch["valid"]))
        if step == WARM_UP - 1:
            start = time.perf_counter()
    return BATCHES * BATCH / (time.perf_counter() - start)


def measured(command: list[str]) -> dict:
    """The JSON line that a subprocess prints last."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    """Prints a table: each program's images per second, and the ratio of the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="measure ours once and print it as JSON")
    flags = parser.parse_args()
    if flags.threads:
        print(json.dumps({"images_per_second": ours(flags.data, flags.threads)}))
        return
    torch_program = str(Path(__file__).with_name("torch_input.py"))
    torch = [flags.torch_python, torch_program, f"--data={flags.data}", f"--batches={BATCHES}"]
    here = [sys.executable, __file__, f"--data={flags.data}"]
    programs = {
        "diffseg_jax, 2 threads": [*here, "--threads=2"],
        "PyTorch, 0 workers": [*torch, "--workers=0"],
        "PyTorch, 2 workers": [*torch, "--workers=2"],
    }
    rates = {name: [] for name in programs}
    for _ in range(flags.rounds):
        for name, command in programs.items():
            rates[name].append(measured(command)["images_per_second"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:<24} {medians[name]:7.0f} images/s   {[round(v) for v in values]}")
    best = max(value for name, value in medians.items() if name.startswith("PyTorch"))
    print(f"ratio to the best PyTorch loader: {medians['diffseg_jax, 2 threads'] / best:.2f}")


if __name__ == "__main__":
    main()
