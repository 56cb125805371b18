"""Training in a given number of minutes: how they are divided, and how many steps fit into them.

Seconds are those of the run. If it was stopped and started again, those of all its processes add
up: `time_budget.json` in the workdir keeps them.
"""

import contextlib
import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.devices import processes
from diffseg_jax.display.interrupts import INTERRUPTS
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.plan import stage_schedule
from diffseg_jax.experiment.planned import Evaluation, StagePlan
from diffseg_jax.experiment.results import KNOWN_LEARNED
from diffseg_jax.inference.views import Protocol
from diffseg_jax.storage.paths import read_object, write_json
from diffseg_jax.training.log import Log

KEPT_IN = "time_budget.json"
FIRST_STEPS = 5  # after which the speed of a stage is first known, unless they are slow
LINES, CHECKPOINTS = 10.0, 60.0  # seconds between log lines, and at most between checkpoints
SAVED_EVERY = 10.0  # seconds; a process that is killed loses count of no more
FINAL, WATCHED = 0.15, 0.1  # shares of the time: final evaluations, and those of a stage, at most
CLOSING = 6.0  # seconds of a final evaluation for calibration, sheets and plots
COMPILATION, FIT = 30.0, 0.25  # until they are known: seconds, and a share of the time
UNWATCHED = 10.0  # seconds of an evaluation during training, which compiles at first, until known
STEP_PASSES = 3  # forward passes that take as long as one with its gradient
TRIED = 4  # images, or two batches, on which a final evaluation is tried if no other one was
LEAST = 0.3  # share of the time left that trains, and of a fit's steps, however long all takes
FEWEST = 8  # images of a final evaluation
OVER = 0.03  # share of the time by which the last evaluation may exceed it
VIEW = 2.0  # seconds of an image to evaluate for each second to read its features, until known
FEATURES = 0.6  # share of a fit's time in which its features are read
SETTLED = 0.02  # relative change of the steps left up to which they are kept
MOST_STEPS = 10**8
NOT_BEGUN = "is not begun, as the time is too short"


@dataclasses.dataclass(frozen=True)
class Share:
    """What a stage that is not finished needs.

    cost     of the steps of its recipe, in pixels that are learned from; 0 for a fit
    fixed    seconds beside its steps: to compile and to be evaluated, or those of the whole fit
    closing  seconds of its final evaluation
    """

    name: str
    cost: float
    fixed: float
    closing: float


def divide(left: float, shares: Sequence[Share]) -> dict[str, float]:
    """Seconds for the steps of each stage: what the rest leaves, in the ratio of their costs."""
    free = max(left - sum(share.fixed + share.closing for share in shares), LEAST * left, 0.0)
    cost = sum(share.cost for share in shares)
    return {share.name: free * share.cost / cost for share in shares if share.cost}


def steps_within(step: int, steps: int, left: float, seconds: float) -> int:
    """The number of steps of a stage that ends in time.

    step, steps  made, and planned so far
    left         seconds left for steps, and `seconds` that each takes
    """
    new = min(step + max(int(left / seconds), 0), MOST_STEPS)
    return steps if step < steps and abs(new - steps) <= SETTLED * (steps - step) else new


def intervals(seconds: float, length: float, total: float, evaluation: float) -> dict[str, int]:
    """Steps between log lines, checkpoints and evaluations; the last is a multiple of the second.

    seconds     of a step;  length  of all of the stage's;  total  of the run
    evaluation  seconds of one during training; 0: not known yet, then the first comes soon
    """
    checkpoint = _round(min(CHECKPOINTS, total / 10) / seconds)
    times = min(max(WATCHED * length / evaluation, 0.5), 10) if evaluation else 5
    multiple = _round(length / seconds / times / checkpoint)
    return {
        "log": _round(LINES / seconds),
        "checkpoint": checkpoint,
        "evaluate": checkpoint * multiple,
    }


def _round(number: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... that is not above a number."""
    power = 10 ** int(math.log10(max(number, 1)))
    return power * max(digit for digit in (1, 2, 5) if digit * power <= max(number, 1))


def images_within(seconds: float, each: float, learned: int) -> int:
    """The number of validation images that can be evaluated, with training images to compare.

    each     seconds of an image
    learned  number of training images at most; not more than of validation images
    """
    images = int(max(seconds, 0) / each)
    return max(images - learned, images // 2)


class Budget:
    """The time of a run, what is used of it, and what is known of the speed of its stages.

    All processes of a run call the same functions; what they decide is that of process 0.

    plans     the stages of the run that are not finished, in their order
    begun     when the process started, by the clock
    optional  names of the stages that are not begun if the time is too short
    slowness  by which seconds that are not measured are multiplied, see `slowness_of_machine`
    """

    def __init__(
        self, minutes: float, plans: Sequence[StagePlan], workdir: Path, log: Log, begun: float,
        clock: Callable[[], float] = time.monotonic, optional: Collection[str] = (),
        slowness: float = 1.0,
    ):  # fmt: skip
        saved = read_budget(workdir)
        self.minutes, self.total, self.waiting = minutes, 60 * minutes, list(plans)
        self.file, self.log, self.begun, self.clock = workdir / KEPT_IN, log, begun, clock
        self.before, self.spent = saved.get("used", 0.0), dict(saved.get("spent", {}))
        self.slowness, self.compilation = slowness, slowness * COMPILATION
        self.watched, self.step_seconds, self.optional = {}, {}, optional
        self.labelled = max(sum(plan.evaluation is not None for plan in plans), 1)
        self.expected = dict(saved.get("image", {}))  # stage -> seconds of an image
        self.saving = threading.RLock()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.total - self.before - (self.clock() - self.begun)

    def save(self):
        """Writes what is used to the workdir, in the first process."""
        image = {p.name: each for p in self.waiting if (each := self.image_seconds(p.evaluation))}
        used = {"minutes": self.minutes, "used": self.total - self.left}
        if processes.is_first():
            with self.saving:
                write_json(self.file, {**used, "spent": dict(self.spent), "image": image})

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Saves what is used every few seconds and at its end, whatever runs or is stopped."""
        INTERRUPTS.releases.append(self.save)
        try:
            with self._saved_meanwhile():
                yield
        except BaseException:
            with contextlib.suppress(Exception):  # the first error says more
                self.save()
            raise
        else:
            self.save()
        finally:
            INTERRUPTS.releases.remove(self.save)

    @contextlib.contextmanager
    def _saved_meanwhile(self):
        """Saves from a thread; a file that could not be written is tried again the next time."""
        ended = threading.Event()

        def save():
            while not ended.wait(SAVED_EVERY):
                with contextlib.suppress(Exception):
                    self.save()

        saver = threading.Thread(target=save, daemon=True)
        saver.start()
        try:
            yield
        finally:
            ended.set()
            saver.join(SAVED_EVERY)  # a bucket may be out of reach

    def announce(self):
        """Logs how the time that is left is divided."""
        again = f", of which {duration(self.left)} are left" if self.before else ""
        unit = "minute" if self.minutes == 1 else "minutes"
        self.log.say(f"{self.minutes:g} {unit}{again}: {self._division({})}")

    def _division(self, notes) -> str:
        """Such as "train about 4 min 20 s, evaluation about 1 min"; notes: by name of a stage."""
        shares = self._shares()
        steps, closing = divide(self.left, shares), sum(share.closing for share in shares)
        parts = []
        for share in shares:
            seconds = f"about {duration(steps.get(share.name, 0) + share.fixed)}"
            if not steps:  # only fits, which end with their recipe
                seconds = f"at most {duration(max(self.fit_seconds(), 0))}"
            parts.append(f"{share.name} {seconds}{notes.get(share.name, '')}")
        parts += [f"evaluation about {duration(closing)}"] if closing else []
        parts += [f"{plan.name} {NOT_BEGUN}" for plan in self.waiting[len(shares) :]]
        return ", ".join(parts)

    # ---- what is needed ---------------------------------------------------------------------

    def _shares(self) -> list[Share]:
        """Of the stages that are not finished, the first of which may be running.

        Without the last ones that need more time than there is, if they are optional.
        """
        shares = [self._share(plan, plan is not self.waiting[0]) for plan in self.waiting]
        trains = self.left + sum(self.spent.get(share.name, 0.0) for share in shares[:1])
        while len(shares) > 1 and shares[-1].name in self.optional:
            need = sum(share.fixed + share.closing for share in shares)
            if need < (1 - LEAST) * trains:
                break
            shares.pop()
        return shares

    def begins(self, plan: StagePlan) -> bool:
        """Whether a stage is begun: an optional one must have time to compile."""
        if plan.name not in self.optional or plan.name not in [p.name for p in self.waiting]:
            return True
        short = self._share(plan, compiles=True).fixed > self.left
        short = processes.broadcast_from_first(int(short))
        if short:
            self.log.say(f"{plan.name}: {NOT_BEGUN}; the same command with more --minutes goes on")
            self.end(plan)
        return not short

    def _share(self, plan, compiles):
        closing = self.closing(plan.evaluation) if plan.evaluation else 0.0
        if plan.task.fit:
            return Share(plan.name, 0.0, min(FIT * self.total, 3 * COMPILATION), closing)
        fixed = self.compilation * (compiles or plan.name not in self.spent)
        fixed += self._watch_seconds(plan) * self._watches(plan)
        return Share(plan.name, cost_of(plan), fixed, closing)

    def closing(self, evaluation: Evaluation) -> float:
        """Seconds of a final evaluation, which takes at most its share of the time."""
        each, most = self.image_seconds(evaluation), FINAL * self.total / self.labelled
        if not each:
            return self.slowness * CLOSING + min(most, 2 * COMPILATION)
        learned = learned_images(evaluation)
        return self.slowness * CLOSING + min(each * (len(evaluation.indices) + learned), most)

    def image_seconds(self, evaluation: Evaluation | None) -> float:
        """Seconds of one image of the final evaluation; 0 if they are not known yet."""
        if not evaluation:
            return 0.0
        for shown in (evaluation.protocol, evaluation.quick_protocol):
            if shown in evaluation.timed:
                return evaluation.timed[shown] * views_of(evaluation.protocol) / views_of(shown)
        return self.expected.get(evaluation.stage, 0.0)

    def _watch_seconds(self, plan):
        """Seconds of one evaluation, or sheet of images, during training."""
        long = plan.task.sample or plan.evaluation
        unknown = self.slowness * (2 * UNWATCHED if long else UNWATCHED / 2)
        if plan.task.sample and plan.name in self.step_seconds:
            steps = plan.task.passes / (STEP_PASSES * plan.options.batch_size)
            unknown += steps * self.step_seconds[plan.name]
        return self.watched.get(plan.name, unknown)

    def _watches(self, plan):
        """Whether a stage is evaluated while it is trained: one without labels if that is quick."""
        return bool(plan.evaluation) or self._watch_seconds(plan) <= WATCHED * self.total

    # ---- stages -----------------------------------------------------------------------------

    def watch(self, plan: StagePlan, evaluate: Callable) -> Callable:
        """`evaluate` of a stage, whose time is measured; a slow one without labels is skipped."""

        def watched(state, step):
            if not processes.broadcast_from_first(int(self._watches(plan))):
                return {}
            begun = self.clock()
            numbers = evaluate(state, step)
            before = self.watched.get(plan.name, math.inf)  # the first one includes compilation
            self.watched[plan.name] = min(self.clock() - begun, before)
            return numbers

        return watched

    def paced(self, plan: StagePlan, start: int) -> Callable:
        """The `pace` of a stage that begins after the step `start`, see `training.loop.Stage`."""
        speed, began, earlier = Speed(), self.clock(), self.spent.get(plan.name, 0.0)

        def pace(stage, step, seconds):
            first = not speed.seconds
            if first and step - start < FIRST_STEPS:
                quick = FIRST_STEPS * seconds < LINES
                if processes.broadcast_from_first(int(quick)):
                    return dataclasses.replace(stage, every={**stage.every, "log": FIRST_STEPS})
            speed.add(seconds)
            if first:
                prepared = max(self.clock() - began - (step - start) * seconds, 0.0)
                self.compilation = speed.prepared = prepared
            self.step_seconds[plan.name] = speed.seconds
            spent = earlier + self.clock() - began - speed.prepared
            self.spent[plan.name] = spent
            planned = divide(self.left + spent, self._shares())[plan.name]
            known = 0 if first else stage.steps
            steps = steps_within(step, known, planned - spent, speed.seconds)
            steps = processes.broadcast_from_first(steps)
            every = intervals(
                speed.seconds, planned, self.total, self.watched.get(plan.name, 0.0)
            )  # fmt: skip
            every = {key: processes.broadcast_from_first(n) for key, n in every.items()}
            if first:
                self._say_steps(plan, steps, speed.seconds)
            self.save()
            if steps != stage.steps:  # else the program of the schedule serves on
                schedule = stage_schedule(plan.options, steps)
                stage = dataclasses.replace(stage, steps=steps, schedule=schedule)
            return dataclasses.replace(stage, every={**stage.every, **every})

        return pace

    def _say_steps(self, plan, steps, seconds):
        """Logs the division again, now with numbers of steps."""
        each = seconds / cost_of(plan) * plan.options.steps  # of a pixel that is learned from
        planned, notes = divide(self.left, self._shares()), {}
        for other in self.waiting:
            if other.name in planned:
                recipe = other.options.steps
                made = int(planned[other.name] / (each * cost_of(other) / recipe))
                made = steps if other.name == plan.name else made
                notes[other.name] = f" ({counted(made, 'step')}, {made / recipe:.0%} of the recipe)"
        left = f"{duration(self.left)} left" if self.left > 0 else "the time is over"
        self.log.say(f"{left}: {self._division(notes)}")

    def end(self, plan: StagePlan):
        """A stage is finished."""
        self.waiting = [other for other in self.waiting if other.name != plan.name]
        self.save()

    # ---- fits and final evaluations ---------------------------------------------------------

    def fit_seconds(self) -> float:
        """Seconds for what is left of the fit that runs."""
        mine, *later = self._shares()
        return self.left - mine.closing - sum(share.fixed + share.closing for share in later)

    def copies(self, plan: StagePlan, images: int, copies: int, each: float) -> int:
        """Changed copies of each image whose features can be read in time.

        images  number without copies;  each  seconds of one
        """
        self.expected.setdefault(plan.name, VIEW * each)
        fitting = max(int(FEATURES * self.fit_seconds() / (images * each)) - 1, 0)
        fitting = processes.broadcast_from_first(min(fitting, copies))
        need = duration(images * (copies + 1) * each)
        if fitting < copies:
            self.log.say(
                f"{plan.name}: the features of the recipe need {need}; to end in time, there are "
                f"{fitting} instead of {copies} changed copies of each image"
            )
        return fitting

    def fit_steps(self, plan: StagePlan, steps: int, each: float) -> int:
        """Steps of a fit that end in time, each taking some seconds; never less than a part."""
        least = math.ceil(LEAST * steps)  # of fewer, the classifiers would be worth nothing
        fitting = int(min(max(self.fit_seconds() / each, least), steps))
        fitting = processes.broadcast_from_first(fitting)
        need = f"{plan.name}: the recipe needs {duration(each * steps)} for at most {steps:,} steps"
        fewer = ""
        if fitting < steps:
            aim = "to end in time" if fitting > least else "as the time is short"
            fewer = f"; {aim}, there are at most {counted(fitting, 'step')}"
        self.log.say(need + fewer)
        return fitting

    def shortened(self, evaluation: Evaluation, network: dict) -> Evaluation:
        """The final evaluation of as many images as the time allows, spread over all of them.

        network  is first tried on a few images if none was evaluated yet
        """
        count = len(evaluation.indices)
        few = spread(evaluation.indices, max(TRIED, 2 * evaluation.batch_size))
        if not evaluation.timed and 2 * len(few) < count:
            self.log.say(f"{evaluation.stage}: evaluates {len(few)} images first")
            evaluation.target.measure(evaluation, network, few, evaluation.protocol)
        each, later = self.image_seconds(evaluation), self._shares()
        closing = self.slowness * CLOSING
        left = self.left - sum(share.fixed + share.closing for share in later)
        if not later:
            left += OVER * self.total
        if any(share.cost for share in later):
            left = min(left, FINAL * self.total / self.labelled + closing)
        learned = learned_images(evaluation)
        images = images_within(left - closing, each, learned) if each else count
        images = max(images, FEWEST)
        images = processes.broadcast_from_first(min(images, count))
        if images == count:
            return evaluation
        self.log.say(
            f"{evaluation.stage}: evaluates {images} of {count} images, spread over all of them, "
            "as the time is short; --mode=eval evaluates all"
        )
        few = dataclasses.replace(evaluation, indices=spread(evaluation.indices, images))
        if not evaluation.learned:
            return few
        source, indices = evaluation.learned
        return dataclasses.replace(few, learned=(source, spread(indices, min(learned, images))))


@dataclasses.dataclass
class Speed:
    """Seconds of a step, of which the last ones count most, and of what came before the first."""

    seconds: float = 0.0
    prepared: float = 0.0

    def add(self, seconds: float):
        """The mean of some more steps."""
        self.seconds = (self.seconds + seconds) / 2 if self.seconds else seconds


def slowness_of_machine() -> float:
    """How many programs share a core of a busy machine, by its load: 1 to 4."""
    try:
        return min(max(os.getloadavg()[0] / os.cpu_count(), 1.0), 4.0)
    except (OSError, AttributeError):  # not every system tells
        return 1.0


def cost_of(plan: StagePlan) -> float:
    """Of the recipe of a gradient stage: the number of pixels from which it learns."""
    options = plan.options
    return float(options.steps * options.batch_size * np.prod(options.augment.crop))


def views_of(protocol: Protocol) -> float:
    """How often the pixels of an image are shown."""
    return sum(scale**2 for scale in protocol.scales) * (1 + protocol.flip)


def learned_images(evaluation: Evaluation) -> int:
    """Images of the training that are evaluated too, to tell foreign images from known ones."""
    several = evaluation.held_out and evaluation.learned is not None and not evaluation.folds
    return min(len(evaluation.learned[1]), KNOWN_LEARNED) if several else 0


def read_budget(workdir: Path) -> dict:
    """What the workdir says of the time of its run; {} if nothing that can be read."""
    content = read_object(workdir / KEPT_IN)
    try:
        return {**content, "used": float(content["used"]), "minutes": float(content["minutes"])}
    except (ValueError, LookupError, TypeError):
        return {}


def require_unfinished(workdir: Path, minutes: float):
    """UserError for another number of minutes than that with which a run has finished."""
    before = read_budget(workdir).get("minutes")
    if before != minutes:
        ended = f" with --minutes={before:g}" if before else ""
        raise UserError(
            f"the run in {workdir} is finished{ended}, and --minutes={minutes:g} does not continue "
            "it. Take another --workdir, or leave out --minutes to see its results."
        )
