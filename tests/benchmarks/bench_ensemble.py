"""Ten pixel classifiers, timed; torch_ensemble.py is their plain PyTorch twin.

python tests/benchmarks/bench_ensemble.py --what=step|gather|fit|heads [--images=20]
python tests/benchmarks/bench_ensemble.py --memory [--images=50] [--limit=1000] (20 minutes)

step      one step of all classifiers by the recipe "paper", each with its own 64 pixels, from
          random features of 20 images with the shapes of the LSUN network: 8448 numbers a pixel,
          in 9 maps of float16
gather    the gathering of a step alone
fit       the recipe "fast" from start to end, with compilation and checkpoint, for 50 images, at
          most --limit steps. "paper" makes at least four passes over all pixels: 204,800 steps
heads     ten classifiers on one image of 256x256, from maps of float32, as predictions have them,
          to votes and uncertainty
--memory  prints the peaks of the complete command with 50 random images and a file of random
          weights as large as the published one: loading, features, the recipe "fast", a
          checkpoint, one prediction; and its peak beyond that of a process that loads the network
          and reads the features of one image. Needs 5 GB where temporary files go (TMPDIR)
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

from timing import jax_program, memory_mb, start_peak

TAPS = ((1024, 32), (512, 32), (512, 32), (512, 64), (256, 128))  # channels, side; of one step
NOISE_LEVELS = 3
SIDE = 256  # pixels; side of the images
FEATURES = NOISE_LEVELS * sum(channels for channels, _ in TAPS)  # 8448 a pixel
MEMBERS, HIDDEN, CLASSES = 10, (128, 32), 29
HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "ddpm_seg_published.py"


def random_features(images, dtype="float16"):
    """Features with the shapes of the LSUN network, on the device: 50 MB per image in float16."""
    import jax
    import jax.numpy as jnp

    from diffseg_jax.models.taps import PixelFeatures, stack

    def maps_of(key):  # one image at a time limits the memory
        keys = jax.random.split(key, (NOISE_LEVELS, len(TAPS)))
        draw = lambda key, c, side: jax.random.uniform(key, (1, side, side, c), dtype, -1)
        maps = [draw(key, *tap) for row in keys for key, tap in zip(row, TAPS)]
        return [values[0] for values in stack(maps, (SIDE, SIDE), dtype=jnp.dtype(dtype)).maps]

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


def make_step(args):
    """A call that makes as many steps by the recipe "paper" as one of the loop."""
    import jax
    import numpy as np

    from diffseg_jax.training import fit_loop

    fit, made = make_fit("paper", args.images, args.limit), 0
    learned = jax.jit(functools.partial(fit_loop.initial_state, fit))()
    call = jax.jit(functools.partial(fit_loop.steps_of, fit), donate_argnums=0)
    data, orders = jax.device_put((fit.features, fit.pixels, fit.labels)), fit_loop.Orders(fit)

    def steps_of_all():
        nonlocal learned, made
        numbers = np.arange(made, made + fit_loop.STEPS_PER_CALL)
        rows, always = orders.rows(numbers), numbers >= 0
        learned, losses = call(learned, data, rows, numbers + 1, ~always, always)
        made += len(numbers)
        return learned, losses

    return steps_of_all, 1 / fit_loop.STEPS_PER_CALL


def make_gather(args):
    """The gathering of as many steps; rows index all pixels, because none is ignored."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffseg_jax.training import fit_loop

    fit, shape = make_fit("paper", args.images, args.limit), (args.images, SIDE, SIDE)
    rows = fit_loop.Orders(fit).rows(np.arange(fit_loop.STEPS_PER_CALL))
    run = jax.jit(lambda maps, rows: maps.gather(*jnp.unravel_index(rows.reshape(-1), shape)))
    features = jax.device_put(fit.features)

    def gathering():
        for chosen in rows:
            out = jax.block_until_ready(run(features, chosen))
        return out

    return gathering, 1 / fit_loop.STEPS_PER_CALL


def make_whole_fit(args):
    """The recipe "fast" from start to end."""
    from diffseg_jax.devices.mesh import make_mesh
    from diffseg_jax.storage.checkpoints import StageCheckpoints
    from diffseg_jax.training import fit_loop
    from diffseg_jax.training.log import Log

    fit = make_fit("fast", args.images, args.limit)

    def whole_fit():
        with (
            tempfile.TemporaryDirectory() as folder,
            StageCheckpoints(Path(folder)) as checkpoints,
            contextlib.redirect_stdout(sys.stderr),  # the log
        ):
            fit_loop.train_members(fit, checkpoints, make_mesh(), Log(folder))

    return whole_fit


def make_heads(args):
    """All classifiers on one image."""
    import jax

    from diffseg_jax.systems.pixel_ensemble import ensemble_maps, make_member

    features, member = random_features(1, "float32"), make_member(FEATURES, CLASSES, HIDDEN)
    members = jax.jit(jax.vmap(member.init))(jax.random.split(jax.random.key(0), MEMBERS))
    run = jax.jit(functools.partial(ensemble_maps, member))
    jax.block_until_ready(members)
    return lambda: run(members, features)


CALLS = dict(step=make_step, gather=make_gather, fit=make_whole_fit, heads=make_heads)


# --- the memory of a complete command -------------------------------------------------------------


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
    if args.limit:
        RECIPES["fast"] = dataclasses.replace(RECIPES["fast"], steps=args.limit)
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
    watch(stages, "measured_by_folds", "prediction")  # is called right after the prediction
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        stages.train(make_config(Path(folder), args), Path(folder) / "run")
    return dict(phases=phases)


def phase(what, start):
    """A finished part: name, seconds since the start, peak and current memory in MB."""
    line = dict(what=what, seconds=timeit.default_timer() - start)
    line |= dict(peak=memory_mb("VmHWM"), left=memory_mb("VmRSS"))
    start_peak()
    return line


def peaks_of(what, args):
    """The parts that a process of this program reports."""
    command = [sys.executable, __file__, "--memory", what, f"--images={args.images}"]
    command += [f"--limit={args.limit}", f"--weights={args.weights}"]
    print(f"... load {os.getloadavg()[0]:.1f}: {what}", file=sys.stderr, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])["phases"]


def follow_memory(args):
    """Prints the parts of a stage and of the network alone, and the difference of their peaks."""
    with tempfile.TemporaryDirectory() as folder:
        args.weights = str(Path(folder, "lsun_bedroom.pt"))
        write = HERE / "lsun_checkpoint.py", "--name=lsun_bedroom", f"--output={args.weights}"
        subprocess.run([sys.executable, *write], check=True)
        alone, stage = peaks_of("network", args), peaks_of("stage", args)
    print("                         s  peak GB  then GB")
    for name, phases in (("alone: ", alone), ("stage: ", stage)):
        before = 0
        for part in phases:
            seconds, peak, left = part["seconds"] - before, part["peak"] / 1024, part["left"] / 1024
            print(f"{name + part['what']:22} {seconds:6.1f} {peak:8.2f} {left:8.2f}")
            before = part["seconds"]
    of_alone, of_stage = (
        max(part["peak"] for part in phases) / 1024 for phases in (alone[:2], stage)
    )
    of_prediction = alone[2]["peak"] / 1024
    features = args.images * sum(2 * NOISE_LEVELS * c * side**2 for c, side in TAPS) / 2**30
    enlarged = args.images * SIDE**2 * FEATURES * 4 / 2**30
    print(
        f"Peak of the stage {of_stage:.2f} GB, of the network with one image {of_alone:.2f} GB, "
        f"difference {of_stage - of_alone:.2f} GB; the features of {args.images} images are "
        f"{features:.2f} GB of it, enlarged they would be {enlarged:.0f} GB. Peak of one "
        f"prediction after that, in the process of the network alone: {of_prediction:.2f} GB, "
        f"{max(0, of_prediction - of_alone):.2f} GB beyond it."
    )


def memory_command():
    parser = argparse.ArgumentParser(description="Peaks of memory of a complete command.")
    parser.add_argument("--memory", nargs="?", choices=("network", "stage"))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--limit", type=int, default=0, help="steps, fewer than fast has")
    parser.add_argument("--weights", default="", help="of the LSUN network")
    args = parser.parse_args()
    if args.memory:
        follow = dict(network=follow_network, stage=follow_stage)[args.memory]
        return print(json.dumps(follow(args)))
    follow_memory(args)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        memory_command()
    else:
        make = lambda args: CALLS[args.what](args)
        jax_program(__doc__, CALLS, make, images=20, limit=0)
