"""A network of ours with random values, and its train step, as timed programs need them."""

import functools
import math


def random_values(network):
    """{"params", "stats"} by numpy, no kernel zero; initialising would compile for a minute."""
    import jax
    import numpy as np

    draw = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var", "gamma"):
            return np.ones(leaf.shape, np.float32)
        if name in ("bias", "mean"):
            return 0.1 * draw.standard_normal(leaf.shape, np.float32)
        fan_in = math.prod(leaf.shape[:-1])
        return draw.standard_normal(leaf.shape, np.float32) * np.float32(fan_in**-0.5)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, network.abstract))


def random_images(batch, height, width):
    """What a train step of segmentation reads, 19 classes: image, mask, valid, row."""
    import jax
    import numpy as np

    draw = np.random.default_rng(1)
    return jax.device_put(dict(
        image=draw.integers(0, 256, (batch, height, width, 3), np.uint8),
        mask=draw.integers(0, 19, (batch, height, width), np.int32),
        valid=np.tile(np.int32([height, width]), (batch, 1)),
        row=np.arange(batch, dtype=np.int32),
    ))  # fmt: skip


def training_call(loss, values, batch, name="adamw", learns=lambda path: True):
    """A function of no arguments that makes one update and returns state and metrics.

    Its program and first arguments are `func` and `args`, as those of a functools.partial.
    """
    import jax

    from diffseg_jax.training.optimizer import make_optimizer, make_schedule
    from diffseg_jax.training.state import new_state
    from diffseg_jax.training.step import train_step

    optimizer = make_optimizer(
        name, make_schedule("constant", 1e-4, 1000, 0, 0), b1=0.9, b2=0.999, epsilon=1e-8,
        weight_decay=0.0, no_decay=(), clip_norm=0.0,
    )  # fmt: skip
    state = new_state(values, learns, optimizer, ())
    update = jax.jit(functools.partial(train_step, loss, optimizer, 1, ()), donate_argnums=0)

    def step():
        nonlocal state
        state, metrics = update(state, batch, jax.random.key(0))
        return state, metrics

    step.func, step.args = update, (state, batch, jax.random.key(0))
    return step
