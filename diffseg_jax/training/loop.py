"""The one training loop: it is handed a stage and knows no system."""

import collections
import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.checkpoints import StageCheckpoints
from diffseg_jax.config import UserError
from diffseg_jax.mesh import state_shardings, to_devices
from diffseg_jax.training.log import Log, duration
from diffseg_jax.training.state import new_state
from diffseg_jax.training.step import train_step

STEPS_IN_FLIGHT = 4  # on accelerators; unbounded dispatch can deadlock fake CPU devices, so 1 there


@dataclasses.dataclass(frozen=True)
class Stage:
    """Data, loss, trainable parameters, optimizer and steps: all that the loop has to know.

    name        the stage's name in the config and on disk
    batches     step -> endless iterator of this process's host batches from that step on
    init        key -> {"params", "stats"}, random and jit-able
    loaded      () -> what of that tree comes from elsewhere instead, as arrays
    trainable   path of a parameter -> does it learn
    loss        see `train_step`
    optimizer   and the schedule that it was made with, for the log
    every       steps between log lines, checkpoints and evaluations
    evaluate    (state, step) -> numbers to log and keep the best by; it may draw pictures and
                return no numbers
    ema         rates of the moving averages; readers take the first one unless told otherwise
    """

    name: str
    steps: int
    batch_size: int
    batches: Callable[[int], Iterator[dict]]
    init: Callable[[jax.Array], dict]
    trainable: Callable[[tuple[str, ...]], bool]
    loss: Callable
    optimizer: optax.GradientTransformation
    schedule: Callable
    every: dict[str, int]
    meta: dict
    loaded: Callable[[], dict] | None = None
    evaluate: Callable[[dict, int], dict[str, float]] | None = None
    accumulate: int = 1
    ema: tuple[float, ...] = ()
    seed: int = 0


def abstract_state(stage: Stage) -> dict:
    """Shapes and types of the stage's state, without computing it."""
    return jax.eval_shape(lambda: _start(stage, stage.init(_key(stage, "init"))))


def run(stage: Stage, checkpoints: StageCheckpoints, mesh, log: Log) -> dict:
    """Trains from the latest checkpoint, or the start, to the last step; returns the final state.

    Raises UserError when the loss or a gradient is not finite; the last good checkpoint is kept.
    """
    # ---- where the last run stopped
    state, start = _resume(stage, checkpoints, mesh)
    log.rewind(stage.name, start)
    if start >= stage.steps:
        return state
    done = f"continues after step {start}" if start else "starts"
    log.say(f"{stage.name}: {done}, {stage.steps - start} steps to go; compiles the first")

    # ---- one compiled step
    key = _key(stage, "noise")
    fixed = (stage.loss, stage.optimizer, stage.accumulate, stage.ema)
    placed = state_shardings(abstract_state(stage), mesh), NamedSharding(mesh, PartitionSpec())
    step_fn = functools.partial(train_step, *fixed)
    step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=placed)
    batches = stage.batches(start)
    in_flight = collections.deque()
    limit = 1 if jax.default_backend() == "cpu" else STEPS_IN_FLIGHT
    sums = _Sums(warm=False)
    batch = to_devices(next(batches), mesh)

    # ---- steps
    for step in range(start + 1, stage.steps + 1):
        state, metrics = step_fn(state, batch, key)
        in_flight.append((step, metrics))
        if step < stage.steps:
            batch = to_devices(next(batches), mesh)  # read and sent while the step runs
        while len(in_flight) > limit or (in_flight and _due(stage, step)):
            sums.add(*_finished(stage, checkpoints, *in_flight.popleft()))

        # ---- what happens every so many steps
        last = step == stage.steps
        if last or step % stage.every["log"] == 0:
            _report(stage, step, sums.means(), sums.rate(stage.batch_size), log)
            sums = _Sums()
        pause = time.perf_counter()
        numbers = None
        if stage.evaluate and (last or step % stage.every["evaluate"] == 0):
            numbers = stage.evaluate(state, step)
            if numbers:
                log.write(stage.name, step, numbers)
                shown = "   ".join(f"{name} {value:.4g}" for name, value in numbers.items())
                log.say(f"{stage.name} {step}/{stage.steps}   evaluated: {shown}")
        if last or step % stage.every["checkpoint"] == 0:
            _require_finite(stage, checkpoints, step, state)
            checkpoints.save(step, state, _meta(stage, step), numbers)
        sums.pause(time.perf_counter() - pause)
    checkpoints.wait()
    return state


def _start(stage, network):
    return new_state(network, stage.trainable, stage.optimizer, stage.ema)


def _key(stage, purpose):
    """The stage's key for a named purpose."""
    number = zlib.crc32(f"{stage.name}/{purpose}".encode())
    return jax.random.fold_in(jax.random.key(stage.seed), number)


def _resume(stage, checkpoints, mesh):
    """The state of the latest checkpoint and its step, or a fresh state and 0."""
    step = checkpoints.latest()
    if step is not None:
        return checkpoints.restore(step, abstract_state(stage), mesh), step
    key = _key(stage, "init")
    shardings = state_shardings(jax.eval_shape(stage.init, key), mesh)
    # run once: on a CPU unoptimised code is as good, and compiles in a quarter of the time
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    network = jax.jit(stage.init, out_shardings=shardings, compiler_options=options)(key)
    if stage.loaded:
        network = _replace(network, stage.loaded(), shardings)
    shardings = state_shardings(abstract_state(stage), mesh)
    start = jax.jit(functools.partial(_start, stage), out_shardings=shardings, donate_argnums=0)
    return start(network), 0


def _replace(network, loaded, shardings):
    """The network with the loaded arrays in place of the random ones."""
    leaves, where = flatten(network, keep_empty_nodes=True), flatten(shardings)
    for path, array in flatten(loaded).items():
        leaves[path] = jax.device_put(np.asarray(array, leaves[path].dtype), where[path])
    return unflatten(leaves)


def _due(stage, step):
    """Whether something after this step needs its numbers, so that all steps must be awaited."""
    return step == stage.steps or any(step % every == 0 for every in stage.every.values())


def _finished(stage, checkpoints, step, metrics):
    """Awaits a step's numbers; refuses to go on from one that is not finite."""
    numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not numbers.pop("finite"):
        what = f"the loss or its gradient is not finite at step {step} (loss {numbers['loss']:.4g})"
        raise _diverged(stage, checkpoints, what)
    return numbers, time.perf_counter()


@jax.jit
def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _require_finite(stage, checkpoints, step, state):
    """Refuses to save what no run can go on from: a finite gradient may overflow the update."""
    if not _all_finite({part: state[part] for part in ("params", "stats", "ema")}):
        what = f"the parameters or batch statistics are not finite after step {step}"
        raise _diverged(stage, checkpoints, what)


def _diverged(stage, checkpoints, what):
    """The error that says what happened, which checkpoint is kept, and what to try."""
    checkpoints.wait()
    kept = checkpoints.latest()
    left = f"The checkpoint of step {kept} is kept" if kept else "No checkpoint was made yet"
    return UserError(
        f"stage {stage.name}: {what}. {left}; try a smaller "
        f"--config.stages.{stage.name}.optim.peak_lr{' in a new --workdir' if kept else ''}, or "
        "--config.dtype=float32."
    )


def _report(stage, step, numbers, rate, log):
    numbers["learning_rate"] = float(stage.schedule(jnp.asarray(step - 1)))
    shown = f"loss {numbers['loss']:.4f}"
    if math.isfinite(rate):
        numbers["images_per_second"] = round(rate, 2)
        left = duration((stage.steps - step) * stage.batch_size / rate)
        shown += f"   {rate:.1f} images/s" + (f"   {left} left" if step < stage.steps else "")
    log.write(stage.name, step, numbers)
    log.say(f"{stage.name} {step:>{len(str(stage.steps))}}/{stage.steps}   {shown}")


def _meta(stage, step):
    own = {"stage": stage.name, "step": step, "ema": list(stage.ema), "data": {"next_batch": step}}
    return {**stage.meta, **own}


class _Sums:
    """Means of the logged numbers, and images per second, since the last log line.

    The first step of a process compiles; it counts for the means and not for the speed.
    """

    def __init__(self, warm: bool = True):
        self.start = time.perf_counter() if warm else None
        self.count = self.timed = 0
        self.totals = collections.Counter()

    def add(self, numbers, when):
        self.count += 1
        self.totals.update(numbers)
        if self.start is None:
            self.start = when
        else:
            self.timed += 1
            self.end = when

    def pause(self, seconds):
        """Leaves time out that was not spent on steps."""
        if self.start is not None:
            self.start += seconds

    def means(self):
        return {name: total / self.count for name, total in self.totals.items()}

    def rate(self, batch_size):
        if not self.timed:
            return math.nan
        return self.timed * batch_size / max(self.end - self.start, 1e-9)
