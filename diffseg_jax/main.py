"""Trains and evaluates the experiment that a config describes.

  python -m diffseg_jax.main --config=configs/ddep_scenes.py --workdir=runs/scenes
  python -m diffseg_jax.main --config=configs/ddp_ade20k.py:swin_t --workdir=runs/ade20k \\
      --config.data.path=ADEChallengeData2016 --config.stages.train.batch_size=8

The name of a preset may follow the config file after a colon; the file lists its presets. Every
option of the config can be changed by --config.option=value; one that is True or False also by
--config.option and --noconfig.option.

Once a run is finished and more images are labelled, the same command with --continue trains it
further, or fits its classifiers again.

modes:
  train        run the stages that are not finished, evaluate, write results.json
  eval         evaluate the checkpoints again with other options, write results_eval.json
  corruptions  measure a finished run on images with noise, blur, fog and other corruptions
  check        read all data, report and draw them
  cost         compute memory, communication and times on other devices; needs no data
  steps        measure numbers of reverse steps (DDP)
  features     keep the features of a fit in files, for fits of fewer of them (DDPM-Seg)
  taps         measure which features of the diffusion model to take (DDPM-Seg)
  clusters     draw clusters of features, without labels (DDPM-Seg)
  prepare      write the data as a few large files

exit codes:
  0    finished
  2    a mistake in the arguments or the files, explained in one sentence
  75   stopped by SIGTERM, after saving
  130  stopped by Ctrl-C
  134  another process of the run was lost or never started (as SIGABRT)
After any code except 0, 2 and 130, start the same command again: it resumes from the last
checkpoint.
"""

import faulthandler
import shlex
import sys
import time
from collections.abc import Sequence

from absl import flags as absl_flags

from diffseg_jax.cli import Flags, add_cache_flag, names, number, use_cache, user_errors
from diffseg_jax.config.files import read_config
from diffseg_jax.config.flags import split_overrides
from diffseg_jax.devices import joining, processes
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.devices.starting import reuse_memory, seconds_of_process, use_memory
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, choose
from diffseg_jax.experiment import (
    check_data,
    cluster_maps,
    corruption_study,
    cost,
    kept_features,
    more_labels,
    prepare_data,
    stages,
    steps_study,
    tap_study,
)
from diffseg_jax.inference.sharing import keep_card
from diffseg_jax.storage.workdir import open_workdir
from diffseg_jax.training.trackers import TRACKERS, require_trackers

NOT_OF_COST = (  # flags of modes that run something
    "track", "memory_fraction", "changed_data", "coordinator", "processes", "process",
    "join_within", "lost_after",
)  # fmt: skip
MODES = {
    "train": stages.train,
    "eval": stages.evaluate_only,
    "check": check_data.check_data,
    "cost": cost.show_cost,
    "clusters": cluster_maps.draw_clusters,
    "features": kept_features.keep_features,
    "taps": tap_study.choose_taps,
    "steps": steps_study.choose_steps,
    "prepare": prepare_data.prepare,
    "corruptions": corruption_study.measure_corruptions,
}


def make_flags() -> Flags:
    """All flags but the options of the config."""
    flags = Flags("main", __doc__)
    add = flags.add_argument
    add("--config", metavar="FILE[:PRESET]", help="the experiment, a file in configs/")
    add("--workdir", metavar="DIR", help="folder of checkpoints, numbers and images; also gs://")
    add("--mode", default="train", metavar="MODE", help=f"{', '.join(MODES)}; default: train")
    given = (
        "minutes that training takes, whatever the machine, or fewer where it only fits "
        "classifiers; default: as the recipe needs"
    )
    add("--minutes", type=number(float, 0.1, 1e6), metavar="X", help=given)
    changed = "what a stage does whose data changed since it stopped; default: refuse"
    add("--changed_data", choices=stages.CHANGED_DATA, help=changed)
    more = "train a finished run further, on labelled images that were added or changed"
    add("--continue", action="store_true", dest="go_on", help=more)
    services = f"services that get the numbers and images too: {', '.join(TRACKERS)}"
    add("--track", type=names, default=(), metavar="NAME,...", help=services)
    add_cache_flag(add)
    add("--devices", type=number(int, 1, 4096), help="of --mode=cost: how many; default: 1")
    add("--accelerators", type=names, default=(), metavar="h100,...", help="of --mode=cost: which")
    traced = "of --mode=cost: compile nothing, which leaves communication and memory unknown"
    add("--traced", action="store_true", help=traced)
    share = "share of a GPU's memory taken at the start; 0: as needed; default of jax: 0.75"
    add("--memory_fraction", type=number(float, 0, 1), metavar="X", help=share)
    add = flags.add_argument_group("several processes, one run").add_argument
    coordinator = (
        "host:port of process 0; auto (default): from the cluster (TPU pod, SLURM, Open "
        "MPI, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID); none: one process"
    )
    add("--coordinator", default="auto", metavar="ADDRESS", help=coordinator)
    add("--processes", type=int, default=-1, metavar="N", help="with host:port: their number")
    add("--process", type=int, default=-1, metavar="N", help="with host:port: its index, from 0")
    wait = "how long processes wait for each other at the start; default: 300"
    add("--join_within", type=number(int, 1), default=300, metavar="SECONDS", help=wait)
    lost = "how long a process may be silent until it counts as lost; default: 30"
    add("--lost_after", type=number(int, 5), default=30, metavar="SECONDS", help=lost)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line: reads the config once, then runs the mode."""
    stopped = "stopped; the same command goes on from what was saved, if anything was"
    absl_flags.FLAGS.mark_as_parsed()  # grain hands its own flags to its worker processes
    imports = seconds_of_process() if arguments is None else 0.0  # so far, nothing else was done
    with user_errors(stopped):
        run(sys.argv[1:] if arguments is None else arguments, time.monotonic() - imports)


def run(arguments: Sequence[str], begun: float | None = None):
    """Runs the command; errors are raised. begun: as of `stages.train`."""
    own, overrides = split_overrides(arguments)
    flags = make_flags()
    given = flags.parse_args(own)
    mode = choose(MODES, given.mode, "mode")
    options = {}
    if given.go_on and given.mode != "train":
        raise UserError(f"--continue trains, but --mode is {given.mode}. Leave out one of them.")
    if given.go_on and given.changed_data == "refuse":
        raise UserError(
            "--continue learns from changed data, which --changed_data=refuse forbids. Leave out "
            "one of them."
        )
    for flag in NOT_OF_COST if given.mode == "cost" else ():
        if getattr(given, flag) != flags.get_default(flag):
            raise UserError(f"--{flag} does nothing with --mode=cost, which runs nothing. Omit it.")
    changed_data = given.changed_data or "refuse"
    of_training = {"minutes": given.minutes, "begun": begun, "track": given.track}
    require_trackers(given.track)
    if given.go_on:
        mode, options = more_labels.continue_run, of_training
    elif given.mode == "train":
        options = {"changed_data": changed_data, **of_training}
    of_modes = {"minutes": "train", **dict.fromkeys(("devices", "accelerators", "traced"), "cost")}
    for flag, its_mode in of_modes.items():
        if getattr(given, flag) and given.mode != its_mode:
            raise UserError(
                f"--{flag} is for --mode={its_mode}, but the mode is {given.mode}. Leave out "
                f"--{flag} or --mode."
            )
    if not given.config:
        raise UserError("no config was given. Try --config=configs/ddpm_seg_folder.py.")
    config = read_config(given.config, overrides)
    if not given.workdir and given.mode != "cost":
        raise UserError("no workdir was given. Try --workdir=runs/a.")
    use_cache(given.compilation_cache)
    workdir = open_workdir(given.workdir) if given.workdir else None
    if given.mode == "cost":
        options = {"accelerators": given.accelerators, "compiled": not given.traced}
        return mode(config, workdir, given.devices or 1, **options)
    use_memory(given.memory_fraction)
    reuse_memory()
    joining.join(
        given.coordinator, given.processes, given.process, given.join_within, given.lost_after
    )
    find_devices()
    display = Display(quiet=not processes.is_first())
    mode(config, workdir, display=display, **options)
    if given.mode == "train":
        with display.progress("writes the model card"):
            keep_card(workdir, f"python -m diffseg_jax.main {shlex.join(map(str, arguments))}")


if __name__ == "__main__":
    faulthandler.enable()  # a crash in compiled code shows where Python was
    main()
