"""The gradient loop: it is handed a stage and knows no system."""

import collections
import contextlib
import dataclasses
import functools
import itertools
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
from diffseg_jax.display.progress import COMPILES, Progress, duration, values_text
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training import resources
from diffseg_jax.training.lifecycle import Lifecycle, origin
from diffseg_jax.training.log import Log
from diffseg_jax.training.state import new_state
from diffseg_jax.training.step import train_step

MAX_STEPS_IN_FLIGHT = 4  # on accelerators; more than 1 can deadlock fake CPU devices


@dataclasses.dataclass(frozen=True)
class Stage:
    """Data, loss, trainable parameters, optimizer and steps: all that the loop needs to know.

    name        the stage's name in the config and on disk
    batches     step -> endless iterator of this process's host batches from that step on
    init        key -> {"params", "stats"}, random and jit-able
    loaded      () -> arrays that replace some of that tree; None replaces none
    trainable   path of a parameter -> whether it is trained
    loss        see `train_step`
    optimizer   is given the rate of `schedule` at every step
    every       steps between log lines, checkpoints and evaluations
    evaluate    (state, step) -> numbers to log and to choose the best checkpoint by; it may draw
                images and return no numbers
    ema         rates of the moving averages; readers take the first one unless told otherwise
    pace        (stage, step, seconds of a step) -> the stage with other steps, every and schedule,
                or with no steps left; it is asked before each log line. None: they stay
    probe       (stage, state, step) -> the stage, perhaps with no steps left, numbers to log, and a
                line for the reader; it is asked every `every["probe"]` steps. None: never
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
    pace: Callable[["Stage", int, float], "Stage"] | None = None
    probe: Callable[["Stage", dict, int], tuple["Stage", dict[str, float], str]] | None = None


def abstract_state(stage: Stage) -> dict:
    """Shapes and types of the stage's state, without computing it."""
    network = jax.eval_shape(stage.init, _key(stage, "init"))  # traced once: jax keeps the result
    return jax.eval_shape(functools.partial(_start, stage), network)


def jitted_step(stage: Stage, mesh) -> Callable:
    """(state, batch, key, rate) -> the new state in place of the old one, metrics; under `jit`."""
    step = functools.partial(train_step, stage.loss, stage.optimizer, stage.accumulate, stage.ema)
    placed = state_shardings(abstract_state(stage), mesh), NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=placed)


def train_network(stage: Stage, checkpoints: StageCheckpoints, mesh, log: Log) -> dict:
    """Trains from the latest checkpoint, or the start, to the last step; returns the final state.

    Raises UserError when the loss or a gradient is not finite; the last good checkpoint is kept.
    Raises Stopped after a signal that asks to stop, once the state is saved.
    """
    # ---- where the last run stopped
    life = Lifecycle(stage.name, stage.steps, checkpoints, log)
    with log.progress(f"{stage.name}: prepares parameters") as shown:
        state, start = life.resume(abstract_state(stage), mesh)
        if state is None:
            shown.begins(COMPILES)
            state = fresh(stage, mesh)
    unreported = {}
    if start:
        meta = checkpoints.meta(start)
        unreported = meta["unreported"]
        ended = start == stage.steps != meta.get("steps", start)  # by a probe, earlier than planned
        if ended or not meta["evaluated"]:
            _evaluate_late(stage, life, state, start, meta)
    if start >= stage.steps:
        return state

    # ---- one compiled step
    key, step_fn = _key(stage, "noise"), jitted_step(stage, mesh)
    batches = stage.batches(start)
    in_flight = collections.deque()
    limit = 1 if jax.default_backend() == "cpu" else MAX_STEPS_IN_FLIGHT
    to_go = "" if stage.pace else f", {stage.steps - start} steps to go"
    log.say(f"{stage.name}: {origin(start)}{to_go}")
    with log.progress(f"{stage.name}: reads the first batch"):
        batch, rate = to_devices(next(batches), mesh, stage.batch_size), _rate_of(stage.schedule)
    with log.progress(stage.name, first=COMPILES):
        begun = time.perf_counter()
        lowered = step_fn.lower(state, batch, key, rate(start))
        step_fn = lowered.compile()
        seconds = time.perf_counter() - begun
        needs = resources.of_step(lowered, step_fn, mesh.size, seconds)
    log.say(f"{stage.name}: {needs}")

    # ---- steps
    sums = _Sums(**unreported)
    total = None if stage.pace else stage.steps  # `pace` will say
    steps = log.progress(stage.name, total, unit="images", each=stage.batch_size, done=start)
    with steps as shown, life.running() as asked, contextlib.closing(batches):
        for step in itertools.count(start + 1):
            state, metrics = step_fn(state, batch, key, rate(step - 1))
            in_flight.append((step, metrics))
            if step < stage.steps:  # The next batch is read and sent while the step runs.
                batch = to_devices(next(batches), mesh, stage.batch_size)
            stop, last = asked(), step == stage.steps
            while len(in_flight) > limit or (in_flight and (stop or _due(stage, step))):
                finished, metrics = in_flight.popleft()
                sums.add(*_finished(stage, life, finished, metrics))
                shown.at(finished)
                shown.show(loss=f"{sums.means()['loss']:.4f}")

            # ---- what happens every so many steps
            if stage.pace and not last and step % stage.every["log"] == 0:
                stage = stage.pace(stage, step, stage.batch_size / sums.rate(stage.batch_size))
                life, rate = dataclasses.replace(life, total=stage.steps), _rate_of(stage.schedule)
                shown.total = stage.steps
                last = step == stage.steps
            if stage.probe and step % stage.every["probe"] == 0:
                pause = time.perf_counter()
                stage, numbers, text = stage.probe(stage, state, step)
                life.report(step, numbers, text)
                _pause(sums, shown, pause)
                last, shown.total = step == stage.steps, stage.steps
            if last or step % stage.every["log"] == 0:
                _report(stage, life, step, sums.means(), sums.rate(stage.batch_size), shown)
                sums = _Sums()
            pause = time.perf_counter()
            due = stage.evaluate and (last or step % stage.every["evaluate"] == 0)
            stop = stop or (asked() if due else 0)  # the step has run meanwhile
            missed, numbers = due and stop, None
            if due and not stop:
                numbers = _evaluate(stage, life, state, step)
                stop = asked()
            shown.show(**_in_short(numbers or {}))
            if last or stop or step % stage.every["checkpoint"] == 0:
                _require_finite(stage, life, step, state)
                meta = _meta(stage, step, sums, evaluated=not missed)
                life.save(step, state, meta, numbers, stop)
            _pause(sums, shown, pause)
            if last:
                return state


def _start(stage, network):
    return new_state(network, stage.trainable, stage.optimizer, stage.ema)


@functools.lru_cache(1)  # `pace` is asked often, and seldom changes the schedule
def _rate_of(schedule):
    """Updates made -> the learning rate, an array that no step waits for."""
    return jax.jit(lambda step: jnp.asarray(schedule(step), jnp.float32))


def _key(stage, purpose):
    """The stage's key for a named purpose."""
    number = zlib.crc32(f"{stage.name}/{purpose}".encode())
    return jax.random.fold_in(jax.random.key(stage.seed), number)


def fresh(stage, mesh):
    """The state before the first step; no device ever holds more than its shard."""
    key = _key(stage, "init")
    abstract = jax.eval_shape(stage.init, key)
    drawn, network = flatten(state_shardings(abstract, mesh)), flatten(abstract, True)
    for path, array in flatten(stage.loaded() if stage.loaded else {}).items():
        network[path] = place_tree(np.asarray(array, network[path].dtype), drawn.pop(path))
    # It runs once: on a CPU unoptimised code is fast enough and compiles in a quarter of the time.
    if drawn:
        cpu = jax.default_backend() == "cpu"
        options = {"xla_backend_optimization_level": 0} if cpu else None
        draw = lambda key: {p: x for p, x in flatten(stage.init(key)).items() if p in drawn}
        network |= jax.jit(draw, out_shardings=drawn, compiler_options=options)(key)
    shardings = state_shardings(abstract_state(stage), mesh)
    start = jax.jit(functools.partial(_start, stage), out_shardings=shardings, donate_argnums=0)
    return start(unflatten(network))


def _due(stage, step):
    """Whether this step's numbers are needed, so that all steps in flight must be awaited."""
    return step == stage.steps or any(step % every == 0 for every in stage.every.values())


def _finished(stage, life, step, metrics):
    """Awaits a step's numbers; raises UserError for numbers that are not finite."""
    numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not numbers.pop("finite"):
        loss = f"(loss {numbers['loss']:.4g})"
        problem = f"the loss or its gradient is not finite at step {step} {loss}"
        raise life.diverged(problem, _advice(stage))
    return numbers, time.perf_counter()


@jax.jit
def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _require_finite(stage, life, step, state):
    """Raises UserError before an unusable state is saved: a finite gradient may overflow Adam."""
    if not _all_finite({part: state[part] for part in ("params", "stats", "ema")}):
        problem = f"the parameters or batch statistics are not finite after step {step}"
        raise life.diverged(problem, _advice(stage))


def _advice(stage):
    return f"a smaller --config.stages.{stage.name}.optim.peak_lr, or --config.dtype=float32"


def _pause(sums, shown, begun):
    """Excludes the time since `begun`, in which no steps were made."""
    seconds = time.perf_counter() - begun
    sums.pause(seconds)
    shown.rest(seconds)


def _report(stage, life, step, numbers, rate, shown: Progress):
    numbers["learning_rate"] = float(stage.schedule(jnp.asarray(step - 1)))
    numbers["images_per_second"] = round(rate, 2)
    text = f"loss {numbers['loss']:.4f}   {rate:.1f} images/s"
    if step < stage.steps:
        left = shown.seconds_left or (stage.steps - step) * stage.batch_size / rate
        text += f"   {duration(left)} left"
    life.report(step, numbers, text)


def _evaluate_late(stage, life, state, step, meta):
    """Evaluates a step that was saved because of a stop, and adds the numbers to its checkpoint."""
    numbers = stage.evaluate(state, step)
    ended = {"steps": step} if step == stage.steps else {}
    life.checkpoints.add_evaluation(step, {**meta, **ended, "evaluated": True}, numbers)
    _report_evaluation(life, step, numbers)


def _evaluate(stage, life, state, step):
    """The numbers of an evaluation, which are logged."""
    numbers = stage.evaluate(state, step)
    _report_evaluation(life, step, numbers)
    return numbers


def _report_evaluation(life, step, numbers):
    if numbers:
        shown = values_text({name: f"{value:.4g}" for name, value in numbers.items()})
        life.report(step, numbers, f"evaluated: {shown}")


def _in_short(numbers):
    """The first number of an evaluation, beside the loss."""
    return {name: f"{value:.4g}" for name, value in list(numbers.items())[:1]}


def _meta(stage, step, sums, evaluated):
    """What is saved beside the state.

    evaluated  False where an evaluation was due but the run was asked to stop before it
    """
    return {
        **stage.meta,
        "steps": stage.steps,
        "ema": list(stage.ema),
        "data": {"next_batch": step},
        "unreported": {"steps": sums.count, "totals": dict(sums.totals)},
        "evaluated": evaluated,
    }


class _Sums:
    """Means of the logged numbers, and images per second, since the last log line.

    steps, totals  sums of steps that a stopped run had not reported yet; their time is not counted
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
        """Excludes time that was not spent on steps."""
        self.start += seconds
        self.end += seconds

    def means(self):
        return {name: total / self.count for name, total in self.totals.items()}

    def rate(self, batch_size):
        return self.timed * batch_size / max(self.end - self.start, 1e-9)
