"""A stage of milliseconds, which learns a line, for tests of what keeps a run.

python tests/line_run.py <workdir> <host:port> <index of this process, of two>
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffseg_jax.data.sources import open_source
from diffseg_jax.devices.joining import join
from diffseg_jax.devices.mesh import local_rows, make_mesh
from diffseg_jax.devices.processes import is_first
from diffseg_jax.experiment.evaluate import draw_none, evaluate
from diffseg_jax.inference.views import Protocol
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training import loop
from diffseg_jax.training.log import Log

RATES = (0.9999, 0.5)


def line_loss(params, stats, batch, key):
    """Squared error of a line; its statistics are a count and a number in bfloat16."""
    noise = jax.random.normal(key, batch["y"].shape)
    error = batch["x"] @ params["head"]["w"] + params["base"]["b"] + 0.1 * noise - batch["y"]
    stats = {
        "seen": stats["seen"] + len(error),
        "low": (stats["low"].astype(jnp.float32) + 1 / 3).astype(jnp.bfloat16),
    }
    return jnp.sum(error**2), (jnp.asarray(4.0), stats, {})


def start(key):
    return {
        "params": {"head": {"w": jax.random.normal(key, (3,))}, "base": {"b": jnp.ones(())}},
        "stats": {"seen": jnp.zeros((2,), jnp.int32), "low": jnp.zeros((3,), jnp.bfloat16)},
    }


def batches(first):
    step, rows = first, local_rows(make_mesh(), 4)
    while True:
        rng = np.random.default_rng(step)
        yield {
            "x": rng.standard_normal((4, 3), np.float32)[rows],
            "y": rng.standard_normal(4, np.float32)[rows],
        }
        step += 1


def line_stage(steps=6, ema=RATES):
    optimizer = optax.adam(0.1)
    return loop.Stage(
        name="line", steps=steps, batch_size=4, batches=batches, init=start,
        trainable=lambda path: path[0] == "head", loss=line_loss, optimizer=optimizer,
        schedule=lambda step: 0.1, every=dict(log=3, checkpoint=3, evaluate=9), meta={}, ema=ema,
    )  # fmt: skip


def trained(workdir, **options):
    """The state after a run in `workdir`/line, which resumes from a checkpoint if there is one."""
    with (
        contextlib.closing(Log(workdir, primary=is_first())) as log,
        StageCheckpoints(workdir / "line") as saved,
    ):
        return loop.train_network(line_stage(**options), saved, make_mesh(), log)


def by_brightness(images, valid):
    """Probabilities of nine classes."""
    far = np.abs(images.mean(-1, keepdims=True) / 255 - np.linspace(0, 1, 9))
    return ((1.1 - far) / np.sum(1.1 - far, -1, keepdims=True)).astype(np.float32)


def main(workdir, *joined):
    """Trains, and counts over five images: numbers of all processes."""
    if joined:
        join(joined[0], 2, int(joined[1]), 60, 10)
    trained(Path(workdir))
    source = open_source("scenes", "val", images=5, size=(32, 48), seed=0)
    indices, by_image = np.arange(5), {}
    counts, _ = evaluate(
        by_brightness, source, indices, 9, Protocol(), 2, by_image=by_image,
        pixels=(pixels := draw_none(indices)),
    )  # fmt: skip
    return {
        "images": counts.images, "uncertain": counts.uncertain,
        "confusion": counts.confusion.tolist(), "pixels": float(pixels.table.sum()),
        "by_image": [by_image[index].tolist() for index in range(5)],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
