"""What it takes to compile our programs, and how many of them images of twenty sizes need.

python tests/benchmarks/bench_compile.py [--only=scenes,ddp_t_steps_3]

Prints a line for each program, in a process of its own: processor seconds, of all processors
together, in which jax traces it and in which XLA compiles it, and the number of instructions of the
result. Nothing is cached, and nothing runs. Half a minute for the small ones, minutes for others.

--only=sizes  prints how many programs `predict` compiles for photographs of SIZES, and compiles
              none: of a network that was trained on small images and is shown them as they are,
              with sides that are rounded to multiples, and of `scenes`, which resizes them
"""

import argparse
import copy
import functools
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import timing
from rows import ROWS
from timing import processor_seconds

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIZES = (  # height, width of photographs
    (333, 500), (500, 333), (375, 500), (500, 375), (360, 480), (480, 360), (427, 640), (640, 427),
    (480, 640), (640, 480), (400, 600), (512, 512), (512, 683), (540, 960), (600, 800), (683, 1024),
    (768, 1024), (1024, 768), (720, 1280), (1080, 1920),
)  # fmt: skip
MULTIPLES = (1, 64, 128, 256)


def scenes(_):
    """The packaged network, as `predict` calls it for an image of 96x128."""
    import diffseg_jax

    segmenter = diffseg_jax.load("scenes")
    program, _ = segmenter.compiled()
    inputs, seed = inputs_for(segmenter, (96, 128))[0]
    return functools.partial(program, *inputs, seed=seed)


def inputs_for(segmenter, size, **options):
    """(network, images, valid) and seed of the calls of `predict` for an image; none runs."""
    import numpy as np

    given = []

    def stand_in(network, images, valid, seed):
        given.append(((network, images, valid), seed))
        return np.zeros((*images.shape[:3], len(segmenter.names)), np.float32)

    segmenter = copy.copy(segmenter)
    segmenter.compiled = lambda steps, samples: (stand_in, segmenter.task)
    segmenter.predict(np.zeros((*size, 3), np.uint8), **options)
    return given


def of_row(name):
    """The program of a row of the benchmark with its inputs, as the row times them."""
    file, *options = next(row.here for row in ROWS if row.name == name)
    calls = []

    def keep(doc, whats, make, **known):
        calls.append(make(timing.arguments(doc, whats, known)))

    sys.argv, timing.jax_program = [file, *options], keep
    runpy.run_path(str(HERE / file), run_name="__main__")
    return functools.partial(calls[0].func, *calls[0].args)


def ddep_scenes(_):
    """The training step of the quick start, of shapes in place of images."""
    from diffseg_jax.config.files import read_config
    from diffseg_jax.devices.mesh import make_mesh
    from diffseg_jax.experiment import blank
    from diffseg_jax.experiment.gradient_stage import blank_stage
    from diffseg_jax.training.loop import jitted_step

    config, name, mesh = read_config(str(ROOT / "configs/ddep_scenes.py")), "finetune", make_mesh()
    task = blank.blank_task(config, name)
    stage = blank_stage(name, config.stages[name], task, config.seed)
    inputs = blank.inputs_of(stage, blank.blank_row(config, name), mesh)
    return functools.partial(jitted_step(stage, mesh), *inputs)


PROGRAMS = dict(
    scenes=("`scenes`, three steps, an image of 96x128", scenes),
    ddp_t_steps_3=("DDP with ConvNeXt-T, three steps, 512x1024", of_row),
    adm_forward=("the LSUN network of ADM, an image of 256x256", of_row),
    ddep_scenes=("training step of `ddep_scenes.py`, 8 images of 96x128", ddep_scenes),
    transunet_train=("training step of the published TransUNet, 4 images of 224x224", of_row),
)


def compile_one(name):
    """Prints the row of a program."""
    import jax

    from diffseg_jax.devices.settings import own_settings

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    what, make = PROGRAMS[name]
    call = make(name)
    start = processor_seconds()
    with own_settings():
        lowered = call.func.lower(*call.args, **call.keywords)
    traced = processor_seconds()
    text = lowered.compile().as_text()
    seconds = traced - start, processor_seconds() - traced
    print(f"| {what} | {seconds[0]:.1f} | {seconds[1]:.1f} | {text.count(' = '):,} |", flush=True)


def count_sizes():
    """Prints how many programs all sizes need, by the multiple that sides are rounded to."""
    import diffseg_jax
    from diffseg_jax.inference.views import Protocol

    warnings.simplefilter("ignore")  # of tiles, which are wanted here
    segmenter = diffseg_jax.load("scenes")
    resized = segmenter.protocol
    count = functools.partial(programs_for, segmenter)
    print("programs for twenty sizes:")
    segmenter.protocol = Protocol()
    for multiple in MULTIPLES:
        print(f"  round_to={multiple}: {count(round_to=multiple)}", flush=True)
    segmenter.protocol = resized
    print(f"  of `scenes`: {count()}")


def programs_for(segmenter, **options):
    """How many programs `predict` compiles for SIZES."""
    given = (each for size in SIZES for each in inputs_for(segmenter, size, **options))
    return len({images.shape for (_, images, _), _ in given})


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join((*PROGRAMS, "sizes")))
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - {*PROGRAMS, "sizes"}:
        parser.error(f"--only={args.only}: no {', '.join(unknown)}. Known: {', '.join(PROGRAMS)}.")
    if args.here:
        return count_sizes() if names == ["sizes"] else compile_one(*names)
    print("| program | jax traces it | XLA compiles it | instructions |", flush=True)
    print("|---|---|---|---|", flush=True)
    for name in names:
        subprocess.run([sys.executable, __file__, f"--only={name}", "--here"], check=True)


if __name__ == "__main__":
    main()
