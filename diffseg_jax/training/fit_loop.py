"""Many copies of one small network, fitted in lockstep to the labelled pixels of some images.

A member stops by the rule of Baranchuk et al., "Label-Efficient Semantic Segmentation with
Diffusion Models" (ICLR 2022), as in their code.
"""

import collections
import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.devices.mesh import AXES
from diffseg_jax.display.progress import COMPILES, Progress, duration
from diffseg_jax.models.pixel_mlp import steps_of_pass
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training.lifecycle import Lifecycle, origin
from diffseg_jax.training.log import Log

STEPS_PER_CALL = 32  # per compiled call; the host only looks between calls
STEPS_PER_HOST_CALL = 4  # where the host gathers features and holds those of all steps
CALLS_IN_FLIGHT = 2  # of fits whose state is only read at their end
FREE_EPOCHS = 4  # before a member may stop
PATIENCE = 50  # batches without a lower loss after which a member stops
FIRST_BEST = 1e7  # initial lowest loss


@dataclasses.dataclass(frozen=True)
class Fit:
    """The networks to fit, the pixels to fit them to, and the recipe.

    name        of the stage
    features    of N images; NumPy arrays if they stay in the host's memory
    pixels      i32[n], the labelled pixels as (image * H + y) * W + x
    labels      u8[n], their classes
    init        key -> {"params", "stats"} of one member, jit-able
    given       () -> those of its statistics that are the same for all members, in place of `init`
    loss        (params, stats, x f32[B,D], y i32[B], step i32[]) -> mean loss f32[], new stats
    steps       maximum number, of every member
    batch_size  pixels; a last, incomplete batch of a pass over all is dropped
    stops       whether a member stops by itself (`stop_rule`) after the first four passes
    own_order   whether every member draws its own order of the pixels; else they share batches
    power       None, or the exponent of the shares by which pixels are drawn, see `Recipe`
    among       i[m], those rows of `pixels` that are learned from; None for all
    chances     None, or f64[m] with which each of those rows is drawn, in place of power
    frozen      {"params", "stats"} of the network that computes the features, saved beside them
    every       steps between log lines, and between checkpoints
    advice      what to try when a loss is not finite
    shorten     seconds of a step -> a fit of fewer steps that ends in time, with which to begin
                again, or None; it is asked once. None: nothing is asked
    """

    name: str
    features: PixelFeatures
    pixels: np.ndarray
    labels: np.ndarray
    init: Callable
    loss: Callable
    members: int
    steps: int
    batch_size: int
    stops: bool
    own_order: bool
    optimizer: optax.GradientTransformation
    frozen: dict
    every: dict[str, int]
    meta: dict
    seed: int
    advice: str
    power: float | None = None
    shorten: Callable[[float], "Fit | None"] | None = None
    given: Callable[[], dict] = dict
    among: np.ndarray | None = None
    chances: np.ndarray | None = None

    @property
    def learned(self) -> int:
        """The number of pixels that are learned from."""
        return len(self.pixels if self.among is None else self.among)

    @property
    def on_host(self) -> bool:
        """Whether the features stay in the host's memory, which then gathers from them."""
        return isinstance(self.features.maps[0], np.ndarray)

    @property
    def steps_of_pass(self) -> int:
        """Steps in a pass over the pixels."""
        return steps_of_pass(self.learned, self.batch_size)


def train_members(
    fit: Fit, checkpoints: StageCheckpoints, mesh, log: Log,
    compiled: Callable[[Fit], tuple] | None = None,
) -> None:  # fmt: skip
    """Fits from the latest checkpoint, or the start, until every member has stopped.

    compiled  `compile_steps`, or that of an earlier fit with the same network and optimizer, which
              may have learned from other rows in more or fewer steps

    The metadata of the last checkpoint says that it is finished. Raises UserError when a member's
    loss is not finite; the last good checkpoint is kept. Raises Stopped after a signal that asks
    to stop, once the state is saved.
    """
    # ---- where the last run stopped
    total = fit.steps
    replicated = NamedSharding(mesh, PartitionSpec())
    compiled = compiled or functools.partial(compile_steps, mesh=mesh)
    begin, call, data, length = compiled(fit)
    life = Lifecycle(fit.name, total, checkpoints, log)
    with log.progress(f"{fit.name}: prepares classifiers"):
        learned, step = life.resume(jax.eval_shape(begin, {}), mesh, part=True)
        if learned is None:
            learned = begin(fit.given())
        learned = jax.device_put(learned, replicated)
    at_most = "at most " if fit.stops else ""
    log.say(
        f"{fit.name}: {origin(step)}; {fit.members} classifiers of {fit.features.width:,} "
        f"features, {len(fit.pixels):,} pixels, {at_most}{total:,} steps of {fit.batch_size}"
    )

    # ---- the first of many calls of a program
    orders = Orders(fit)
    since, warm, timed, shorter = (step, time.perf_counter()), False, False, None
    inputs = _inputs(fit, orders, step, length)

    # ---- steps
    options = dict(unit="steps", first=COMPILES, done=step, at_most=bool(fit.stops))
    steps = log.progress(fit.name, total, **options)
    with steps as shown, life.running() as asked:
        while step < total:
            learned, losses = call(learned, data, *inputs)
            before, step = step, min(step + length, total)
            if step < total:
                inputs = _inputs(fit, orders, step, length)  # while the steps run
            losses, stop = np.asarray(losses), asked()
            if not np.isfinite(losses).all():
                problem = f"the loss of a classifier is not finite at or just before step {step}"
                raise life.diverged(problem, fit.advice)
            if fit.shorten and warm and not timed:
                timed, shorter = True, fit.shorten((time.perf_counter() - since[1]) / length)
                if shorter:
                    break
            running = int(np.sum(np.asarray(learned["stop"]["at"]) == 0))
            shown.at(step)
            shown.show(loss=f"{_mean_loss(losses):.4f}", running=f"{running} of {fit.members}")
            last = step == total or not running
            if last or before // fit.every["log"] != step // fit.every["log"]:
                speed = (step - since[0]) / (time.perf_counter() - since[1]) if warm else 0.0
                _report(fit, life, step, losses, running, speed)
            due = before // fit.every["checkpoint"] != step // fit.every["checkpoint"]
            if last or stop or due:
                meta = {**fit.meta, "ema": [], "finished": last}
                life.save(step, saved(learned, fit.frozen, step), meta, stop=stop)
            if not warm:  # The first call includes compilation, so its time is not counted.
                since, warm = (step, time.perf_counter()), True
            if last:
                break
    if shorter:
        train_members(shorter, checkpoints, mesh, log, compiled)


def fit_without_checkpoints(
    fit: Fit, mesh, compiled: Callable[[Fit], tuple] | None = None, shown: Progress | None = None
) -> dict:
    """The state after all steps, as of `initial_state`; for a fit of seconds, which is repeated.

    compiled  as of `train_members`
    shown     counts the steps
    """
    begin, call, data, length = compiled(fit) if compiled else compile_steps(fit, mesh)
    learned, orders, in_flight = begin(fit.given()), Orders(fit), collections.deque()
    for step in range(0, fit.steps, length):
        learned, losses = call(learned, data, *_inputs(fit, orders, step, length))
        in_flight.append((min(step + length, fit.steps), losses))
        while shown and len(in_flight) > CALLS_IN_FLIGHT:
            _await(in_flight, shown)
        if fit.stops and np.all(np.asarray(learned["stop"]["at"])):
            break
    while shown and in_flight:
        _await(in_flight, shown)
    return learned


def _await(in_flight, shown):
    """Awaits the oldest call; those after it keep the device busy meanwhile."""
    step, losses = in_flight.popleft()
    shown.show(loss=f"{_mean_loss(np.asarray(losses)):.4f}")
    shown.at(step)


def compile_steps(fit: Fit, mesh) -> tuple:
    """`initial_state`, `shared_steps`, its data on the devices, and the steps of a call."""
    data, where = (fit.features, fit.pixels, fit.labels), NamedSharding(mesh, PartitionSpec())
    data = () if fit.on_host else jax.device_put(data, where)
    begin = jax.jit(functools.partial(initial_state, fit), out_shardings=where)
    return begin, jitted_steps(fit, mesh), data, steps_per_call(fit)


def jitted_steps(fit: Fit, mesh) -> Callable:
    """`shared_steps` of a fit under `jit`; it reuses the memory of the state."""
    steps = functools.partial(shared_steps, fit, mesh)
    return jax.jit(steps, donate_argnums=0, out_shardings=NamedSharding(mesh, PartitionSpec()))


def steps_per_call(fit: Fit) -> int:
    """The number of steps of a compiled call."""
    return min(STEPS_PER_HOST_CALL if fit.on_host else STEPS_PER_CALL, fit.steps)


def initial_state(fit: Fit, given: Mapping = MappingProxyType({})) -> dict:
    """The trained state before the first step; every leaf has a leading axis of members.

    given  `fit.given()`

    {"params", "stats", "opt", "stop"}; "stop" holds f32[M] the lowest loss since the members may
    stop, i32[M] batches since then, and i32[M] the step at which a member stopped, 0 before.
    """
    key = jax.random.fold_in(jax.random.key(fit.seed), zlib.crc32(f"{fit.name}/init".encode()))
    keys = jax.vmap(lambda member: jax.random.fold_in(key, member))(jnp.arange(fit.members))
    network = jax.vmap(fit.init)(keys)
    given = {name: jnp.tile(values, (fit.members, 1)) for name, values in given.items()}
    return {
        "params": {"ensemble": network["params"]},
        "stats": {"ensemble": {**network["stats"], **given}},
        "opt": jax.vmap(fit.optimizer.init)(network["params"]),
        "stop": {
            "best": jnp.full(fit.members, FIRST_BEST, jnp.float32),
            "count": jnp.zeros(fit.members, jnp.int32),
            "at": jnp.zeros(fit.members, jnp.int32),
        },
    }


def shared_steps(fit: Fit, mesh, learned: dict, data, batches, numbers, armed, live):
    """`steps_of` with the members split over the devices of the mesh, some repeated to fill it.

    All inputs and outputs are replicated on every device.
    """
    steps = functools.partial(steps_of, fit)
    if mesh.size == 1:
        return steps(learned, data, batches, numbers, armed, live)
    rows = np.arange(-(-fit.members // mesh.size) * mesh.size) % fit.members
    learned = jax.tree.map(lambda leaf: leaf[rows], learned)
    if fit.own_order:
        batches = jax.tree.map(lambda leaf: leaf[:, rows], batches)
    everywhere, members, of_steps = PartitionSpec(), PartitionSpec(AXES), PartitionSpec(None, AXES)
    batch = of_steps if fit.own_order else everywhere
    share = jax.shard_map(
        steps, mesh=mesh, out_specs=(members, of_steps), check_vma=False,
        in_specs=(members, everywhere, batch, everywhere, everywhere, everywhere),
    )  # fmt: skip
    learned, losses = share(learned, data, batches, numbers, armed, live)
    return jax.tree.map(lambda leaf: leaf[: fit.members], learned), losses[:, : fit.members]


def steps_of(fit: Fit, learned: dict, data, batches, numbers, armed, live):
    """Some steps of all members: the new state, and losses f32[S, M], 0 where a member has stopped.

    data     features, pixels and labels; () where `batches` are already gathered
    batches  rows i32[S, M, B] or i32[S, B] of pixels; or (x f32[..., D], y) gathered from them
    numbers  i32[S] of these steps, from 1
    armed    bool[S], whether a member may stop
    live     bool[S], False for steps beyond the last one
    """

    def step(carry, inputs):
        batch, number, armed, live = inputs
        params, stats, opt, stop = carry
        x, y = batch if fit.on_host else _read(*data, batch)
        objective = jax.value_and_grad(fit.loss, has_aux=True)
        (loss, new_stats), grads = objective(params, stats, x, y, number)
        updates, new_opt = fit.optimizer.update(grads, opt, params)
        new = optax.apply_updates(params, updates), new_stats, new_opt
        new = *new, stop_rule(stop, loss, armed, number)
        runs = live & (stop["at"] == 0)
        kept = jax.tree.map(lambda a, b: jnp.where(runs, a, b), new, carry)
        return kept, jnp.where(runs, loss, 0.0)

    def member(carry, batches):
        return jax.lax.scan(step, carry, (batches, numbers, armed, live))

    carry = learned["params"]["ensemble"], learned["stats"]["ensemble"]
    carry = *carry, learned["opt"], learned["stop"]
    if not fit.own_order:
        carry, losses = jax.vmap(member, (0, None))(carry, batches)
    elif jax.default_backend() == "cpu":  # Members one after another stay in its caches.
        batches = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), batches)
        carry, losses = jax.lax.map(lambda inputs: member(*inputs), (carry, batches))
    else:
        carry, losses = jax.vmap(member, (0, 1))(carry, batches)
    params, stats, opt, stop = carry
    learned = {
        "params": {"ensemble": params}, "stats": {"ensemble": stats}, "opt": opt, "stop": stop
    }  # fmt: skip
    return learned, losses.T


def stop_rule(stop: dict, loss, armed, number) -> dict:
    """The stop state after a batch: more than 50 batches in a row without a lower loss stop it."""
    better = loss < stop["best"]
    count = jnp.where(better, 0, stop["count"] + 1)
    new = {
        "best": jnp.where(better, loss, stop["best"]),
        "count": count,
        "at": jnp.where(count > PATIENCE, number, 0),
    }
    return jax.tree.map(lambda a, b: jnp.where(armed, a, b).astype(b.dtype), new, stop)


class Orders:
    """The pixels that a step reads: a function of the seed, the member and the step alone."""

    def __init__(self, fit: Fit):
        self.fit = fit
        self.owners = fit.members if fit.own_order else 1
        self.kept = {}  # epoch -> permutations i32[owners, n]
        self.by_class = []  # rows of each class
        self.sums = None  # of the chances

    def rows(self, steps: np.ndarray) -> np.ndarray:
        """Indices into the pixels for steps counted from 0: i32[S, M, B], or i32[S, B] if shared.

        Every pass reads the pixels in a new order; fewer pixels than a batch are repeated.
        """
        rows, among = self._rows(steps), self.fit.among
        return rows if among is None else among[rows].astype(np.int32)

    def _rows(self, steps):
        size, rows = self.fit.batch_size, []
        if self.fit.chances is not None:
            drawn = np.stack([self._by_chance(int(step)) for step in steps])
            return drawn if self.fit.own_order else drawn[:, 0]
        if self.fit.power is not None:
            return np.stack([self._balanced(int(step)) for step in steps])
        for step in steps:
            epoch, batch = divmod(int(step), self.fit.steps_of_pass)
            positions = (batch * size + np.arange(size)) % self.fit.learned
            rows.append(self._order(epoch)[:, positions])
        rows = np.stack(rows)
        return rows if self.fit.own_order else rows[:, 0]

    def _by_chance(self, step):
        """Rows i32[owners, B], each drawn with its chance."""
        if self.sums is None:
            self.sums = np.cumsum(self.fit.chances)
        rng = np.random.default_rng([self.fit.seed, zlib.crc32(b"pixels by chance"), step])
        places = rng.random((self.owners, self.fit.batch_size)) * self.sums[-1]
        return np.searchsorted(self.sums, places, side="right").astype(np.int32)

    def _balanced(self, step):
        """Rows i32[B] of which a class of share f has a share in proportion to f^power."""
        if not self.by_class:
            labels, among = self.fit.labels, self.fit.among
            labels = labels if among is None else labels[among]
            self.by_class = [np.flatnonzero(labels == each) for each in np.unique(labels)]
        shares = np.array([len(rows) for rows in self.by_class]) ** self.fit.power
        rng = np.random.default_rng([self.fit.seed, zlib.crc32(b"pixels by class"), step])
        classes = rng.choice(len(shares), self.fit.batch_size, p=shares / shares.sum())
        places = rng.random(self.fit.batch_size)
        drawn = [self.by_class[c][int(p * len(self.by_class[c]))] for c, p in zip(classes, places)]
        return np.asarray(drawn, np.int32)

    def _order(self, epoch):
        if epoch not in self.kept:
            self.kept = {old: order for old, order in self.kept.items() if old == epoch - 1}
            orders = np.tile(np.arange(self.fit.learned, dtype=np.int32), (self.owners, 1))
            for owner, order in enumerate(orders):
                purpose = zlib.crc32(b"order of pixels")
                np.random.default_rng([self.fit.seed, purpose, owner, epoch]).shuffle(order)
            self.kept[epoch] = orders
        return self.kept[epoch]


def _read(features, pixels, labels, rows):
    """Feature vectors and classes of some pixels: rows i[...] -> f32[..., D], i32[...]."""
    height, width = features.size
    image, position = divmod(pixels[rows].reshape(-1), height * width)
    y, x = divmod(position, width)
    vectors = features.gather(image, y, x).reshape(*rows.shape, -1)
    return vectors, labels[rows].astype(np.int32)


def _inputs(fit, orders, step, length):
    """The inputs of `steps_of` from `step` on; steps beyond the last one are not live."""
    numbers = np.arange(step, step + length)
    rows = orders.rows(np.minimum(numbers, fit.steps - 1))
    batch = _read(fit.features, fit.pixels, fit.labels, rows) if fit.on_host else rows
    armed = fit.stops & (numbers >= FREE_EPOCHS * fit.steps_of_pass)
    return batch, numbers + 1, armed, numbers < fit.steps


def saved(learned: dict, frozen: dict, step: int) -> dict:
    """The state as checkpoints hold it: the members, and the network whose features they read.

    frozen  {"params", "stats"} of that network
    """
    return {
        **learned,
        "step": np.asarray(step, np.int32),
        "stats": {**learned["stats"], **frozen["stats"]},
        "frozen": frozen["params"],
    }


def _mean_loss(losses):
    """Of the members that still run; 0 if none does."""
    return float(losses[losses > 0].mean()) if np.any(losses > 0) else 0.0


def _report(fit, life, step, losses, running, speed):
    loss = _mean_loss(losses)
    numbers = {"loss": loss, "running": running}
    text = f"loss {loss:.4f}   {running} of {fit.members} run"
    if speed:
        numbers["steps_per_second"] = round(speed, 2)
        text += f"   {speed:.1f} steps/s"
        if step < fit.steps and running:
            at_most = "at most " if fit.stops else ""
            text += f"   {at_most}{duration((fit.steps - step) / speed)} left"
    life.report(step, numbers, text)
