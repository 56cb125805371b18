"""The one training loop: it is handed a stage and knows no system."""

import collections
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.devices.mesh import place_tree, state_shardings, to_devices
from diffseg_jax.errors import UserError
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training import resources
from diffseg_jax.training.log import Log, duration
from diffseg_jax.training.signals import Stopped, watched
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
    Raises Stopped after a signal that asks to stop, once the state is saved.
    """
    # ---- where the last run stopped
    state, start = checkpoints.newest(abstract_state(stage), mesh, log.say)
    unreported = {}
    if state is None:
        state = fresh(stage, mesh)
    log.rewind(stage.name, start)
    if start:
        meta = checkpoints.meta(start)
        unreported = meta["unreported"]
        if not meta["evaluated"]:
            _make_up(stage, checkpoints, state, start, meta, log)
    if start >= stage.steps:
        return state

    # ---- one compiled step
    key = _key(stage, "noise")
    fixed = (stage.loss, stage.optimizer, stage.accumulate, stage.ema)
    placed = state_shardings(abstract_state(stage), mesh), NamedSharding(mesh, PartitionSpec())
    step_fn = functools.partial(train_step, *fixed)
    step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=placed)
    batches = stage.batches(start)
    in_flight = collections.deque()
    limit = 1 if jax.default_backend() == "cpu" else STEPS_IN_FLIGHT
    batch = to_devices(next(batches), mesh, stage.batch_size)
    done = f"continues after step {start}" if start else "starts"
    log.say(f"{stage.name}: {done}, {stage.steps - start} steps to go; compiles the first")
    begun = time.perf_counter()
    lowered = step_fn.lower(state, batch, key)
    step_fn = lowered.compile()
    seconds = time.perf_counter() - begun
    log.say(f"{stage.name}: {resources.of_step(lowered, step_fn, mesh.size, seconds)}")

    # ---- steps
    sums = _Sums(**unreported)
    with watched() as asked:
        for step in range(start + 1, stage.steps + 1):
            state, metrics = step_fn(state, batch, key)
            in_flight.append((step, metrics))
            if step < stage.steps:  # read and sent while the step runs
                batch = to_devices(next(batches), mesh, stage.batch_size)
            stop, last = asked(), step == stage.steps
            while len(in_flight) > limit or (in_flight and (stop or _due(stage, step))):
                sums.add(*_finished(stage, checkpoints, *in_flight.popleft()))

            # ---- what happens every so many steps
            if last or step % stage.every["log"] == 0:
                _report(stage, step, sums.means(), sums.rate(stage.batch_size), log)
                sums = _Sums()
            pause = time.perf_counter()
            due = stage.evaluate and (last or step % stage.every["evaluate"] == 0)
            numbers = _evaluate(stage, state, step, log) if due and not stop else None
            if last or stop or step % stage.every["checkpoint"] == 0:
                _require_finite(stage, checkpoints, step, state)
                log.flush()  # a step that is saved is not run again to be logged
                meta = _meta(stage, step, sums, evaluated=not (due and stop))
                checkpoints.save(step, state, meta, numbers)
            if stop:
                checkpoints.wait()
                raise Stopped(stage.name, step, stop)
            sums.pause(time.perf_counter() - pause)
        checkpoints.wait()
        if stop := asked():  # it came after the last step
            raise Stopped(stage.name, stage.steps, stop)
    return state


def _start(stage, network):
    return new_state(network, stage.trainable, stage.optimizer, stage.ema)


def _key(stage, purpose):
    """The stage's key for a named purpose."""
    number = zlib.crc32(f"{stage.name}/{purpose}".encode())
    return jax.random.fold_in(jax.random.key(stage.seed), number)


def fresh(stage, mesh):
    """The state before the first step; no device ever holds more than its part of it."""
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
    return start(network)


def _replace(network, loaded, shardings):
    """The network with the loaded arrays in place of the random ones."""
    leaves, where = flatten(network, keep_empty_nodes=True), flatten(shardings)
    for path, array in flatten(loaded).items():
        leaves[path] = place_tree(np.asarray(array, leaves[path].dtype), where[path])
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
    numbers["images_per_second"] = round(rate, 2)
    shown = f"loss {numbers['loss']:.4f}   {rate:.1f} images/s"
    if step < stage.steps:
        shown += f"   {duration((stage.steps - step) * stage.batch_size / rate)} left"
    log.write(stage.name, step, numbers)
    log.say(f"{stage.name} {step:>{len(str(stage.steps))}}/{stage.steps}   {shown}")


def _make_up(stage, checkpoints, state, step, meta, log):
    """Evaluates where a stop came before, and saves the step again as one that may be the best."""
    numbers = stage.evaluate(state, step)
    own = {word: value for word, value in meta.items() if word != "arrays"}
    checkpoints.replace(step, state, {**own, "evaluated": True}, numbers)
    _report_evaluation(stage, numbers, step, log)


def _evaluate(stage, state, step, log):
    """The numbers of an evaluation, which are logged."""
    numbers = stage.evaluate(state, step)
    _report_evaluation(stage, numbers, step, log)
    return numbers


def _report_evaluation(stage, numbers, step, log):
    if numbers:
        log.write(stage.name, step, numbers)
        shown = "   ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        log.say(f"{stage.name} {step}/{stage.steps}   evaluated: {shown}")


def _meta(stage, step, sums, evaluated):
    """What is saved beside the state.

    evaluated  False where an evaluation was due, but the run was asked to stop before it
    """
    own = {"stage": stage.name, "step": step, "ema": list(stage.ema), "data": {"next_batch": step}}
    own["unreported"] = {"steps": sums.count, "totals": dict(sums.totals)}
    return {**stage.meta, **own, "evaluated": evaluated}


class _Sums:
    """Means of the logged numbers, and images per second, since the last log line.

    steps, totals  sums of steps that a stopped run had not reported yet; they took no time here
    """

    def __init__(self, steps: int = 0, totals: Mapping[str, float] = MappingProxyType({})):
        self.start = self.end = time.perf_counter()
        self.count, self.timed = steps, 0
        self.totals = collections.Counter(totals)

    def add(self, numbers, when):
        self.count += 1
        self.timed += 1
        self.totals.update(numbers)
        self.end = when

    def pause(self, seconds):
        """Leaves time out that was not spent on steps."""
        self.start += seconds

    def means(self):
        return {name: total / self.count for name, total in self.totals.items()}

    def rate(self, batch_size):
        return self.timed * batch_size / max(self.end - self.start, 1e-9)
