"""Ten pixel classifiers of ours and of the plain PyTorch program torch_ensemble.py, in turn.

python tests/benchmarks/bench_ensemble.py --torch-python PATH [--rounds 2] [--only step heads]
python tests/benchmarks/bench_ensemble.py --torch-python PATH --only step fit     (10 minutes)
python tests/benchmarks/bench_ensemble.py --memory [--images 50] [--steps 1000] (20 minutes)

step    one step of all classifiers by the recipe "paper", each with its own 64 pixels, from random
        features of 20 images with the shapes of the LSUN network: 8448 numbers a pixel, in 9 maps
        of float16. In PyTorch the time of one classifier times ten, from a matrix in memory; with
        two threads and with one, whichever is faster
fit     the recipe "fast" from start to end, with compilation and checkpoint, for 50 images; and
        the steps that "paper" makes at least, four passes over all pixels, times the seconds of one
heads   ten classifiers on one image of 256x256, from maps to votes and uncertainty
memory  the complete command with 50 random images and a file of random weights as large as
        the published one: loading, features, the recipe "fast", a checkpoint, one prediction. Its
        peak beyond that of a process that loads the network and reads the features of one image.
        Needs 5 GB where temporary files go (TMPDIR)

Every measurement is a process of its own. The best call counts; the worst of the same process tells
how quiet the machine was. Memory is resident (Linux) and compilation among it; "+" is what it rises
above the inputs, brackets are computed. The table at the end is for the README.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

TAPS = ((1024, 32), (512, 32), (512, 32), (512, 64), (256, 128))  # channels, side; of one step
NOISE_LEVELS = 3
SIDE = 256  # pixels; side of the images
FEATURES = NOISE_LEVELS * sum(channels for channels, _ in TAPS)  # 8448 a pixel
MEMBERS, HIDDEN, CLASSES = 10, (128, 32), 29
BATCH = 64  # pixels of a member, of the recipe "paper" and in torch_ensemble.py
CALLS = 5  # of 32 steps
IMAGES = dict(step=20, fit=50, memory=50)
HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "ddpm_seg_published.py"


# --- our side, in a process of its own ------------------------------------------------------------


def random_features(images):
    """Features with the shapes of the LSUN network: 50 MB per image, on the device."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.models.taps import PixelFeatures, stack

    def maps_of(key):  # one image at a time limits the memory
        keys = jax.random.split(key, (NOISE_LEVELS, len(TAPS)))
        draw = lambda key, c, side: jax.random.uniform(key, (1, side, side, c), jnp.float16, -1)
        maps = [draw(key, *tap) for row in keys for key, tap in zip(row, TAPS)]
        return [values[0] for values in stack(maps, (SIDE, SIDE), dtype=jnp.float16).maps]

    keys = jax.random.split(jax.random.key(0), images)
    maps = jax.jit(functools.partial(jax.lax.map, maps_of))(keys)
    return PixelFeatures(tuple(jax.block_until_ready(maps)), (SIDE, SIDE))


def make_fit(recipe, images, steps):
    """A Fit to random features and classes of all pixels; steps = 0: as many as the recipe's."""
    import numpy as np

    from diffseg_jax.systems.pixel_ensemble import make_member
    from diffseg_jax.systems.pixel_fit import PixelFit
    from diffseg_jax.systems.recipes import RECIPES
    from diffseg_jax.training.fit_loop import Fit

    recipe, count = RECIPES[recipe], images * SIDE**2
    steps = steps or recipe.length(count)
    member = make_member(FEATURES, CLASSES, HIDDEN)
    loss = PixelFit(None, member, MEMBERS, recipe, small_objects=0, on_host=False).loss
    return Fit(
        name="fit", features=random_features(images), pixels=np.arange(count, dtype=np.int32),
        labels=np.random.default_rng(0).integers(CLASSES, size=count, dtype=np.uint8),
        init=member.init, loss=loss, members=MEMBERS, steps=steps, batch_size=recipe.batch_size,
        stops=recipe.stops, own_order=recipe.own_order, optimizer=recipe.optimizer(steps),
        frozen={"params": {}, "stats": {}}, every=dict(log=200, checkpoint=steps), meta={}, seed=0,
        advice="",
    )  # fmt: skip


def time_step(args):
    """Seconds of a step by the recipe "paper", and of its gathering alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffseg_jax.training import fit_loop

    fit, made = make_fit("paper", args.images, args.steps), 0
    learned = jax.jit(functools.partial(fit_loop.initial_state, fit))()
    call = jax.jit(functools.partial(fit_loop.steps_of, fit), donate_argnums=0)
    data, orders = jax.device_put((fit.features, fit.pixels, fit.labels)), fit_loop.Orders(fit)
    shape = args.images, SIDE, SIDE

    @jax.jit
    def gather(features, rows):
        return features.gather(*jnp.unravel_index(rows.reshape(-1), shape))

    def steps_of_all():
        nonlocal learned, made
        numbers = np.arange(made, made + fit_loop.STEPS_PER_CALL)
        rows, always = orders.rows(numbers), numbers >= 0
        learned, losses = call(learned, data, rows, numbers + 1, ~always, always)
        made += len(numbers)
        jax.block_until_ready((learned, losses))

    def gathering():  # rows index all pixels, because none is ignored
        for rows in orders.rows(np.arange(fit_loop.STEPS_PER_CALL)):
            jax.block_until_ready(gather(data[0], rows))

    def each(function):
        seconds = timeit.repeat(function, number=1, repeat=CALLS)
        return [second / fit_loop.STEPS_PER_CALL for second in seconds]

    line = dict(first=timeit.timeit(steps_of_all, number=1), seconds=each(steps_of_all))
    gathering()
    return line | dict(gather=each(gathering))


def time_fit(args):
    """Seconds of the recipe "fast" from start to end."""
    from diffseg_jax.devices.mesh import make_mesh
    from diffseg_jax.storage.checkpoints import StageCheckpoints
    from diffseg_jax.training import fit_loop
    from diffseg_jax.training.log import Log

    fit = make_fit("fast", args.images, args.steps)
    with tempfile.TemporaryDirectory() as folder, StageCheckpoints(Path(folder)) as checkpoints:
        run = lambda: fit_loop.train_members(fit, checkpoints, make_mesh(), Log(folder))
        with contextlib.redirect_stdout(sys.stderr):  # the log
            seconds = timeit.timeit(run, number=1)
    return dict(seconds=[seconds], steps=fit.steps, batch=fit.batch_size)


def time_heads(args):
    """Seconds of all classifiers on one image, and the memory that rises above the inputs."""
    import jax

    from diffseg_jax.systems.pixel_ensemble import ensemble_maps, make_member

    features, member = random_features(1), make_member(FEATURES, CLASSES, HIDDEN)
    members = jax.jit(jax.vmap(member.init))(jax.random.split(jax.random.key(0), MEMBERS))
    run = jax.jit(functools.partial(ensemble_maps, member))
    call = lambda: jax.block_until_ready(run(members, features))
    jax.block_until_ready(members)
    start_peak()
    before = memory_mb("VmRSS")
    line = dict(first=timeit.timeit(call, number=1))
    line |= dict(seconds=timeit.repeat(call, number=1, repeat=CALLS))
    return line | dict(more_mb=memory_mb("VmHWM") - before)


def make_config(folder, args):
    """The published config on random images in a folder, 29 classes, one image to be predicted."""
    import numpy as np
    from PIL import Image

    from diffseg_jax.systems.recipes import RECIPES

    draw = np.random.default_rng(0)
    for split, count in (("train", args.images), ("val", 1)):
        for part, values, shape in (
            ("images", 256, (SIDE, SIDE, 3)),
            ("masks", CLASSES, (SIDE,) * 2),
        ):
            (folder / part / split).mkdir(parents=True)
            for index in range(count):
                drawn = draw.integers(values, size=shape, dtype=np.uint8)
                Image.fromarray(drawn).save(folder / part / split / f"{index:03}.png")
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.data.update(source="folder", path=str(folder), train="train", val="val")
    config.data.options = dict(num_classes=CLASSES, ignore=(0,))
    config.weights, config.ensemble.recipe = args.weights, "fast"
    if args.steps:
        RECIPES["fast"] = dataclasses.replace(RECIPES["fast"], steps=args.steps)
    (folder / "run").mkdir()
    return config


def follow_network(args):
    """The peaks of making the LSUN network, of the features of one image, and of its prediction."""
    import jax
    import numpy as np

    from diffseg_jax.experiment import fit_features, fit_network
    from diffseg_jax.experiment.plan import make_plan

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        (plan,) = make_plan(make_config(Path(folder), args), Path(folder) / "run").stages
        start = timeit.default_timer()
        network = jax.block_until_ready(fit_network.open_backbone(plan))
        phases = [phase("network", start)]
        task = plan.task
        fit_features.collect(plan, network, plan.indices[:1])
        phases.append(phase("one image", start))
        members = jax.jit(jax.vmap(task.fit.member.init))(jax.random.split(jax.random.key(0), 10))
        for part in network:
            network[part]["ensemble"] = members[part]
        image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        jax.block_until_ready(task.predict(network, image, np.array([[SIDE, SIDE]])))
        return dict(phases=[*phases, phase("one prediction", start)])


def follow_stage(args):
    """The peaks of the parts of the command, in order."""
    import jax

    from diffseg_jax.experiment import ensemble_stage, stages
    from diffseg_jax.training import fit_loop

    start, phases = timeit.default_timer(), []

    def watch(module, name, what):
        """Records memory and time whenever that function of the package returns."""
        function = getattr(module, name)

        @functools.wraps(function)
        def watched(*args, **options):
            result = jax.block_until_ready(function(*args, **options))
            phases.append(phase(what, start))
            return result

        setattr(module, name, watched)

    watch(ensemble_stage, "open_backbone", "network")
    watch(ensemble_stage, "collect", "features")
    watch(fit_loop, "train_members", "fit")
    watch(stages, "open_network", "opening")
    watch(stages, "result_of", "prediction")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        stages.train(make_config(Path(folder), args), Path(folder) / "run")
    return dict(phases=phases)


def phase(what, start):
    """A finished part: name, seconds since the start, peak and current memory in MB."""
    line = dict(what=what, seconds=timeit.default_timer() - start)
    line |= dict(peak=memory_mb("VmHWM"), left=memory_mb("VmRSS"))
    start_peak()
    return line


def memory_mb(key):
    """The current (VmRSS) or peak (VmHWM) resident memory; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def start_peak():
    """Resets the peak of resident memory, if the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


OURS = dict(
    step=time_step, fit=time_fit, heads=time_heads, network=follow_network, stage=follow_stage
)


# --- both sides -----------------------------------------------------------------------------------


def call(command):
    """The last line a program prints, as JSON."""
    command = list(map(str, command))
    print(
        f"... load {os.getloadavg()[0]:.1f}: {' '.join(command[1:])}", file=sys.stderr, flush=True
    )
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(what, images=1, steps=0, weights=""):
    options = f"--ours={what}", f"--images={images}", f"--steps={steps}", f"--weights={weights}"
    return call([sys.executable, __file__, *options])


def in_turn(what, args, images=1):
    """Lines of our program and of PyTorch's, `rounds` times, with two threads and with one."""
    here, there = [], []
    for _ in range(args.rounds):
        here.append(ours(what, images))
        for threads in (2, 1):
            program = [args.torch_python, HERE / "torch_ensemble.py", f"--what={what}"]
            there.append(call([*program, f"--members={MEMBERS}", f"--threads={threads}"]))
    return here, there


def best(lines, key="seconds"):
    return min(second for line in lines for second in line[key])


def spread(lines):
    """Best and worst second of the process that was best; other thread counts are not noise."""
    seconds = min((line["seconds"] for line in lines), key=min)
    return f"{in_words(min(seconds))} to {in_words(max(seconds))}"


def highest(lines, key):
    return max(line[key] for line in lines) / 1024


def in_words(seconds):
    """3 h 05 min, 3 min 05 s, 52 s, 4.25 s or 43.1 ms."""
    if seconds >= 120:
        return duration(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def duration(seconds):
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"


def compare_step(args):
    """Rows of a step and of its gathering, and a note on the minimal work of a step."""
    images = args.images or IMAGES["step"]
    here, there = in_turn("step", args, images)
    first, *rest = (a * b for a, b in itertools.pairwise((FEATURES, *HIDDEN, CLASSES)))
    values = MEMBERS * (first + sum(rest))  # kernels
    operations = 2 * MEMBERS * BATCH * (2 * first + 3 * sum(rest))  # features get no gradient
    read = 4 * 2 * MEMBERS * BATCH * FEATURES  # four neighbours in float16
    moved = 6 * 4 * values + read  # Adam reads and writes parameters and two moments
    seconds = best(here)
    NOTES.append(
        f"A step needs at least {operations / 1e9:.1f} GFLOP and {moved / 1e9:.2f} GB; that is "
        f"{operations / 1e9 / seconds:.0f} GFLOP/s and {moved / 1e9 / seconds:.1f} GB/s here."
    )
    what = f"a step of {MEMBERS} classifiers, {BATCH} pixels each, {images} images"
    memory = f"{highest(here, 'peak_rss_mb'):.1f} GB, ({enlarged(images):.0f} GB)"
    row(what, best(here), best(there), memory, f"{spread(here)}; {spread(there)}")
    row("its gathering alone", best(here, "gather"))


def enlarged(images):
    """GB of the features in the memory of the published program."""
    return images * SIDE**2 * FEATURES * 4 / 2**30


def compare_fit(args):
    """Rows of the two recipes; PyTorch has only that of the paper."""
    images = args.images or IMAGES["fit"]
    here, there = in_turn("step", args, images)
    fast = ours("fit", images, args.steps)
    steps = 4 * (images * SIDE**2 // BATCH)
    at_least = steps * best(here)
    what = f"fast: {fast['steps']:,} steps of {fast['batch']} pixels, {images} images"
    row(what, best([fast]), memory=f"{fast['peak_rss_mb'] / 1024:.1f} GB")
    memory = f"{highest(here, 'peak_rss_mb'):.1f} GB, ({enlarged(images):.0f} GB)"
    row(f"paper: at least {steps:,} steps of {BATCH}", at_least, steps * best(there), memory)
    NOTES.append(
        f"paper / fast, both here: at least {at_least / best([fast]):.0f}. The length of paper is "
        "steps x the seconds of one; a member stops 51 or more batches later."
    )


def compare_heads(args):
    """The row of the prediction for one image."""
    here, there = in_turn("heads", args)
    memory = f"+{highest(here, 'more_mb'):.2f} GB, +{highest(there, 'more_mb'):.2f} GB"
    what = f"{MEMBERS} classifiers on one image of {SIDE}x{SIDE}"
    row(what, best(here), best(there), memory, f"{spread(here)}; {spread(there)}")


def follow_memory(args):
    """Rows of the parts of a stage and of the network alone, and the difference of their peaks."""
    images = args.images or IMAGES["memory"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lsun_bedroom.pt")
        write = HERE / "lsun_checkpoint.py", "--name=lsun_bedroom", f"--output={file}"
        call([sys.executable, *write])
        alone = ours("network", images, args.steps, file)["phases"]
        stage = ours("stage", images, args.steps, file)["phases"]
    for name, phases in (("alone: ", alone), ("stage: ", stage)):
        before = 0
        for part in phases:
            memory = f"{part['peak'] / 1024:.2f} GB, then {part['left'] / 1024:.2f} GB"
            row(name + part["what"], part["seconds"] - before, memory=memory)
            before = part["seconds"]
    of_alone, of_stage = (
        max(part["peak"] for part in phases) / 1024 for phases in (alone[:2], stage)
    )
    of_prediction = alone[2]["peak"] / 1024
    features = images * sum(2 * NOISE_LEVELS * c * side**2 for c, side in TAPS) / 2**30
    NOTES.append(
        f"Peak of the stage {of_stage:.2f} GB, of the network with one image {of_alone:.2f} GB, "
        f"difference {of_stage - of_alone:.2f} GB; the features of {images} images are "
        f"{features:.2f} GB of it, enlarged they would be {enlarged(images):.0f} GB. Peak of one "
        f"prediction after that, in the process of the network alone: {of_prediction:.2f} GB, "
        f"{max(0, of_prediction - of_alone):.2f} GB beyond it."
    )


PARTS = dict(step=compare_step, fit=compare_fit, heads=compare_heads, memory=follow_memory)
ROWS, NOTES = [], []


def row(what, here, there=None, memory="", seen=""):
    """Adds a line to the table, which is printed at the end."""
    ratio = f"{there / here:.2f}" if there else ""
    there = in_words(there) if there else ""
    ROWS.append(f"| {what} | {in_words(here)} | {there} | {ratio} | {memory} | {seen} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run: step and heads")
    parser.add_argument("--memory", action="store_true", help="the part memory, alone or beside")
    parser.add_argument("--images", type=int, default=0, help="other than 20 and 50")
    parser.add_argument("--steps", type=int, default=0, help="fewer than the recipe fast has")
    parser.add_argument("--ours", choices=OURS, help="one measurement of ours, in this process")
    parser.add_argument("--weights", default="", help="of the LSUN network, for --ours")
    args = parser.parse_args()
    if args.ours:
        line = OURS[args.ours](args)
        print(json.dumps({**line, "peak_rss_mb": memory_mb("VmHWM")}))
        return
    parts = args.only or ([] if args.memory else ["step", "heads"])
    for part in [*parts, *["memory"] * args.memory]:
        PARTS[part](args)
    print("|  | here | PyTorch | PyTorch / here | peak memory here, PyTorch | best to worst |")
    print("|---|---|---|---|---|---|", *ROWS, "", *NOTES, sep="\n")


if __name__ == "__main__":
    main()
