"""The cells of a study, the runs that they need, their commands and their order."""

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffseg_jax.config.files import SUBSET, find, read_config
from diffseg_jax.config.schema import lacking
from diffseg_jax.data.corruptions import default_types, require_large_enough
from diffseg_jax.data.sources import open_source
from diffseg_jax.data.subsets import used_images
from diffseg_jax.errors import UserError, require_known, shortened
from diffseg_jax.experiment.corruption_report import CLEAN, OF_CORRUPTIONS
from diffseg_jax.experiment.study_file import Axis, Study
from diffseg_jax.storage.paths import open_path, read_object
from diffseg_jax.storage.similar import similar_path

NAME_BYTES = 240  # of 255: a partial copy is called .NAME.json.1234567


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of `diffseg_jax.main` in a folder of its own, below runs/ of the study.

    options  of the config, `run` included; what it starts from is not among them
    before   the run whose stages this one starts from, or whose features it reads; None: it starts
             as the config says
    mode     train or features
    shared   name of the folder, where runs that keep features of other images share it; "": its own
    """

    name: str
    options: Mapping[str, object]
    before: "Run | None" = None
    mode: str = "train"
    shared: str = ""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it runs."""
        return tuple(self.options["run"])

    @property
    def chain(self) -> tuple["Run", ...]:
        """The runs that come before it, and itself."""
        return (*(self.before.chain if self.before else ()), self)


@dataclasses.dataclass(frozen=True)
class StudyCell:
    """One point of every axis, and a seed.

    labels    of the points, in the order of the axes
    measured  options with which the network of the run is measured once more; {}: as it was
    is_clean  whether its numbers are those of the clean images of --mode=corruptions
    """

    labels: tuple[str, ...]
    seed: str
    run: Run
    measured: Mapping[str, object]
    is_clean: bool = False

    @property
    def name(self) -> str:
        """Of its files."""
        return _name_of_cell(self.labels, self.seed)

    @property
    def mode(self) -> str:
        """Of the command that measures it: train, eval or corruptions."""
        return "corruptions" if _corrupts(self.measured) else "eval" if self.measured else "train"


def _name_of_cell(labels, seed):
    return name_of_labels((*labels, f"seed{seed}"))


def _corrupts(options):
    return any(key.startswith(OF_CORRUPTIONS) for key in options)


def name_of_labels(labels: Sequence[str]) -> str:
    """Of the point with these labels, or of what else they tell apart, for files."""
    return "-".join(re.sub(r"[^\w.+=]+", "_", label).strip("_") or "_" for label in labels)


def cells_of_study(study: Study) -> list[StudyCell]:
    """All cells, the most useful first: one seed of every cell, then the next.

    Within a seed the columns of a row come after each other, as they are compared. Raises UserError
    that names the cell for an option that the config does not have.
    """
    base, cells, runs = read_config(study.base), [], {}
    corruptions = _first_corruptions(study)
    deciding = _deciding_axes(study, corruptions)
    _require_known_stages(study, base)
    _require_evaluated(study, corruptions)
    for seed, repeated in study.seeds.points.items():
        for labels in _in_order(study):
            points = {a.name: a.points[label] for a, label in zip(study.axes, labels, strict=True)}
            is_clean, measured = any(not _corrupts(points[name]) for name in deciding), {}
            for name in (name for name in points if name in study.evaluated):
                measured |= points[name]
                if is_clean and name in deciding:  # the images and calibrator of the first cell
                    measured |= corruptions[name]
            options = {**study.options, **repeated}
            for chosen in (*points.values(), study.combined.get(labels, {})):
                options |= chosen
            kept = {key: value for key, value in options.items() if key not in measured}
            try:
                config = config_of(study, {**kept, **measured})
                stages = tuple(config_of(study, kept).run) if "run" in kept else tuple(base.run)
                _require_stages(base, stages)
                run = _run_of(study, kept, stages, labels, seed, runs)
            except UserError as error:
                raise UserError(f"cell {_name_of_cell(labels, seed)}: {error}") from None
            if _corrupts(measured):  # without a stage, the best of the run would be measured
                stage = find(config, f"{OF_CORRUPTIONS}stage") or study.stage or run.stages[-1]
                measured |= {f"{OF_CORRUPTIONS}stage": stage}
            elif _are_those_of(study, run, measured):
                measured = {}
            cells.append(StudyCell(labels, seed, run, measured, is_clean))
    _require_own_names(cells)
    return cells


def _require_stages(base, stages):
    """UserError for a run without a stage, and for one that the config does not have."""
    if not stages:
        raise UserError(f"run is (), so nothing is trained. Stages: {', '.join(base.stages)}.")
    for name in stages:
        require_known(name, base.stages, "stage in run")


def _first_corruptions(study) -> dict[str, dict]:
    """Evaluated axis with corrupted points -> options of `evaluate.corruptions` of the first."""
    found = {}
    for axis in (axis for axis in study.axes if axis.name in study.evaluated):
        first = next(filter(_corrupts, axis.points.values()), {}).items()
        found[axis.name] = {key: value for key, value in first if key.startswith(OF_CORRUPTIONS)}
    return {name: options for name, options in found.items() if options}


def _deciding_axes(study, corruptions) -> list[str]:
    """The axes of `_first_corruptions` that choose types or severities; all of them if none does.

    Beside them another one may set other options of corruptions, such as photographs of frost.
    """
    keys = {f"{OF_CORRUPTIONS}{name}" for name in ("types", "severities")}
    chooses = lambda axis: any(keys & set(options) for options in axis.points.values())
    axes = [axis for axis in study.axes if axis.name in corruptions and chooses(axis)]
    return [axis.name for axis in axes] or list(corruptions)


def _require_evaluated(study, corruptions):
    """UserError for options of corrupted images where each point would train a network instead.

    Beside an axis of corruptions, another one may choose the stage that is measured.
    """
    trained = [axis for axis in study.axes if axis.name not in study.evaluated]
    for axis in (*trained, study.seeds, Axis("combined", study.combined)):
        for key in (key for options in axis.points.values() for key in options):
            is_of_stage = corruptions and key == f"{OF_CORRUPTIONS}stage"
            if key.startswith(OF_CORRUPTIONS) and not is_of_stage:
                raise UserError(
                    f"{key} is set by {axis.name}, but it is read only where a finished network is "
                    "measured on corrupted images. Set it along an axis that evaluated lists, as "
                    "in configs/studies/robustness.py."
                )


def _are_those_of(study, run, measured):
    """Whether a run measures its network with these options as it ends."""
    configs = [config_of(study, {**run.options, **more}).to_dict() for more in ({}, measured)]
    return configs[0] == configs[1]


def require_data(study: Study, cells: Sequence[StudyCell]):
    """Raises UserError where images of the cells cannot be opened, or fewer exist than they use.

    Opened are training images, and unlabelled ones where a stage learns from them or their path is
    given; every data set once. Of validation images that are to be corrupted the first one is read,
    as they may be too small for that. Files of weights and of feature sources are looked for last.
    """
    opened, read = {}, set()
    for cell in cells:
        config = config_of(study, {**cell.run.options, **cell.measured})
        kinds = {config.stages[stage].kind for run in cell.run.chain for stage in run.stages}
        for part, split in (("data", "train"), ("unlabelled", "split")):
            data = config.get(part)
            if data is None or (part != "data" and "pretrain" not in kinds and not data.path):
                continue
            given = data.source, data.path, data.options.to_dict()
            source = _open_once(study, opened, part, data[split], given)
            if part == "data":
                try:
                    used_images(data, source.names)
                except UserError as error:
                    raise UserError(f"cell {cell.name}: {error}") from None
        if cell.mode == "corruptions" and repr(config.data) not in read:
            read.add(repr(config.data))
            _require_corruptible(study, opened, cell, config)
    _require_networks(study, cells)


def _require_networks(study, cells):
    """UserError that names the cell for a missing file, or package, of weights or a feature source.

    Loads what knows the methods only for studies that may read such files.
    """
    found = set()
    for cell in cells:
        for run in cell.run.chain:
            config = config_of(study, run.options)
            if not config.get("weights") and "features" not in config:
                continue
            try:
                for file in _files_read(config, run):
                    if file not in found and not (path := open_path(file)).exists():
                        raise UserError(f"there is no {path}, which it reads.{similar_path(path)}")
                    found.add(file)
            except UserError as error:
                raise UserError(f"cell {cell.name}: {error}") from None


def _files_read(config, run):
    from diffseg_jax.systems.methods import SYSTEMS  # slow imports

    system = SYSTEMS[config.system]
    for name in run.stages:
        kind = config.stages[name].kind
        if not system.skips(config, kind):
            start = system.start_of(config, kind, config.stages[name].start)
            yield from map(str, system.files(config, kind, start))


def _open_once(study, opened, part, split, given):
    """A split of a given (source, path, options), one of `opened` if it is among them."""
    source, path, options = given
    key = repr((split, given))
    if key not in opened:
        try:
            opened[key] = open_source(source, split, path=path, **options)
        except UserError as error:
            how = "" if Path(path).exists() else study.made.get(path, "")
            how = f" It is made by: {how}" if how else ""
            raise UserError(f"--config.{part}: {error}{how}") from None
    return opened[key]


def _require_corruptible(study, opened, cell, config):
    from diffseg_jax.experiment.label_target import LABEL_TARGET  # slow imports
    from diffseg_jax.experiment.labelled_images import OpenedData, validation_set, validation_split

    learned, data = config.data, OpenedData(config, {}, LABEL_TARGET)
    given = learned.source, learned.path, learned.options.to_dict()
    data.train = _open_once(study, opened, "data", learned.train, given)
    try:
        if split := validation_split(config):
            part, given = validation_set(config)
            data.val = _open_once(study, opened, part, split, given)
        shown = data.validation(in_turn=False)  # in turn, its images are validated as well
        example = shown.source[int(shown.indices[0])]
        require_large_enough(example["image"], example["name"])
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from None


def _require_known_stages(study, base):
    """UserError for a name in `shared` that nothing would be shared by."""
    for name, groups in study.shared.items():
        require_known(name, {*base.stages, "features"}, f"stage in shared of {study.name}")
        for group in groups:
            find(base, group)


def _in_order(study):
    """Labels of all points, those of the first axis after each other."""
    for rows in itertools.product(*(axis.points for axis in study.axes[1:])):
        for column in study.axes[0].points:
            yield (column, *rows)


def corruptions_of(study: Study, cell: StudyCell) -> list[tuple[str, int]]:
    """The types and severities of whose rows a cell of corruptions has the means."""
    if cell.is_clean:
        return [(CLEAN, 0)]
    config = config_of(study, {**cell.run.options, **cell.measured})
    types, severities, frost = (
        find(config, OF_CORRUPTIONS + name) for name in ("types", "severities", "frost")
    )
    severities = severities or lacking(OF_CORRUPTIONS)["severities"]
    return list(itertools.product(types or default_types(bool(frost)), severities))


def config_of(study: Study, options: Mapping):
    """The base config with these options; nobody may change it."""
    return _config(study.base, tuple((key, as_typed(value)) for key, value in options.items()))


@functools.lru_cache(maxsize=1024)
def _config(base, typed):
    with contextlib.redirect_stderr(io.StringIO()):  # notes on replaced options, for every cell
        return read_config(base, typed)


def as_typed(value) -> str | bool:
    """A value as it is typed after --config.option=."""
    if isinstance(value, (bool, str)):
        return value
    return repr(tuple(value)) if isinstance(value, (tuple, list)) else repr(value)


def _run_of(study, options, stages, labels, seed, runs) -> Run:
    """The run of these options; one of `runs`, by their content, if there is one that is equal."""
    count = next((i for i, stage in enumerate(stages) if stage not in study.shared), len(stages))
    first, rest = stages[:count], stages[count:]
    before = None
    if first:
        constant = _constant_options(study)  # these also reach a cell that is measured by this run
        kept = {
            key: value
            for key, value in options.items()
            if key in constant or not _is_unread(study, key, first)
        }
        where = [*_labels_that_set(study, labels, kept), *_seed_that_sets(study, seed, kept)]
        name = name_of_labels(("+".join(first), *where))
        before = _known(runs, Run(name, {**kept, "run": first}))
    if not rest:
        _require_read(study, {**options, "run": first}, before)
        return before
    if study.features:
        before = _known(runs, _features_run(study, options, rest, labels, seed, before))
    trained = [
        label
        for axis, label in zip(study.axes, labels, strict=True)
        if axis.name not in study.evaluated
    ]
    name = name_of_labels((*trained, f"seed{seed}"))
    return _known(runs, Run(name, {**options, "run": rest}, before))


def _require_read(study, options, run):
    """UserError where a shared run measures a cell without an option that measuring reads."""
    config, own = config_of(study, options), config_of(study, run.options)
    unread = [key for key in {*options} - {*run.options} if find(config, key) != find(own, key)]
    if not [key for key in unread if key.partition(".")[0] not in ("seed", "stages")]:
        return
    from diffseg_jax.experiment.stages import read_in_evaluation  # slow imports

    groups = read_in_evaluation(config)
    for key in sorted({*unread} - {f"{OF_CORRUPTIONS}stage"}):  # which is measured by a command
        if any(_is_within(key, group) for group in groups):
            raise UserError(
                f"the run {run.name}, whose stages are shared, measures it without its {key}. Set "
                f"{key} along an axis that evaluated lists, so that the network is measured with "
                "each of its points."
            )


def _constant_options(study) -> set[str]:
    """Options of the study with one value in all cells, but for those of stages."""
    points = (*(each for axis in (*study.axes, study.seeds) for each in axis.points.values()),
              *study.combined.values())  # fmt: skip
    varied = {key for options in points for key in options}
    return {key for key in study.options if key not in varied and not key.startswith("stages.")}


def _features_run(study, options, stages, labels, seed, before) -> Run:
    """The run that keeps the features which a cell with these options and stages reads.

    Runs that differ in the choice of labelled images alone add to one folder, so that the features
    of an image that several of them need, such as a validation image, are computed once.
    """
    unread = lambda key: key.startswith("stages.") and key.split(".")[1] not in stages
    kept = {
        key: value
        for key, value in options.items()
        if not unread(key) and not any(_is_within(key, each) for each in study.shared["features"])
    }
    network = before.options if before else {}
    decisive = {*kept} - {"data.subset_seed", *SUBSET} | {*network}
    name, shared = (
        name_of_labels(("features", *_labels_that_set(study, labels, each),
                        *_seed_that_sets(study, seed, each)))
        for each in (kept, decisive)
    )  # fmt: skip
    options = {**kept, **study.features, "run": stages[-1:]}
    return Run(name, options, before, "features", shared)


def _is_within(key, group):
    return key == group or key.startswith(f"{group}.")


def _known(runs, run):
    key = repr((sorted(run.options.items(), key=str), run.before and run.before.name))
    return runs.setdefault(key, run)


def _is_unread(study, key, stages):
    """Whether none of some shared stages reads an option."""
    if key == "run":
        return True
    if key.startswith("stages."):
        return key.split(".")[1] not in stages
    return all(any(_is_within(key, each) for each in study.shared[stage]) for stage in stages)


def _labels_that_set(study, labels, options):
    """The labels of the points that set one of some options, alone or together."""
    pairs = zip(study.axes, labels, strict=True)
    together = set(study.combined.get(labels, ())) & set(options)
    return [label for axis, label in pairs if together or set(axis.points[label]) & set(options)]


def _seed_that_sets(study, seed, options):
    return [f"seed{seed}"] if set(study.seeds.points[seed]) & set(options) else []


def _require_own_names(cells):
    """UserError for two cells or runs of one name, and for a name too long for files."""
    for names, what in (
        ([cell.name for cell in cells], "cell"),
        ([run.name for run in runs_of(cells)], "run"),
    ):
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"two {what}s of the study would be called {name}. Give the points of the axes "
                    "names that differ in letters and digits."
                )
            if (length := len(os.fsencode(name))) > NAME_BYTES:
                raise UserError(
                    f"the name of a {what}, {shortened(name, NAME_BYTES // 2)}, has {length} "
                    f"bytes, but at most {NAME_BYTES} are allowed. Give the points of the axes "
                    "shorter names, in a dict of names with the options that each sets."
                )


def runs_of(cells: Sequence[StudyCell]) -> list[Run]:
    """The runs of some cells in the order in which they are needed, each once."""
    needed = [run for cell in cells for run in cell.run.chain]
    return list({id(run): run for run in needed}.values())


# ---- commands ----------------------------------------------------------------------------------


def folder_of_run(workdir: Path, run: Run) -> Path:
    """The workdir of a run."""
    return workdir / "runs" / (run.shared or run.name)


def command_of_run(study: Study, run: Run, workdir: Path) -> list[str]:
    """What is typed for a run, after python."""
    mode = [] if run.mode == "train" else [f"--mode={run.mode}"]
    return _command(study, run, workdir, run.options, mode)


def command_of_cell(study: Study, cell: StudyCell, workdir: Path) -> list[str]:
    """What is typed to measure a cell, after python."""
    options = {**cell.run.options, **cell.measured}
    mode = [] if cell.mode == "train" else [f"--mode={cell.mode}"]
    return _command(study, cell.run, workdir, options, mode)


def started_options(study: Study, run: Run, workdir: Path, options: Mapping) -> dict:
    """Options of a run with those that say where its stages start.

    A run that has begun keeps them as they were: earlier versions did not resolve the workdir.
    """
    starts = _starts(study, run, workdir)
    begun = read_object(folder_of_run(workdir, run) / "config.json")
    for key, now in starts.items():
        before = functools.reduce(lambda group, name: group.get(name, {}), key.split("."), begun)
        starts[key] = before if before and _resolved(before) == _resolved(now) else now
    return {**options, **starts}


def _resolved(start):
    """A start, or feature sources in files, with absolute paths."""
    if isinstance(start, (tuple, list)):
        return [_resolved(each) for each in start]
    return Path(start.removeprefix("files=")).resolve()


def _command(study, run, workdir, options, mode=()):
    options, folder = started_options(study, run, workdir, options), folder_of_run(workdir, run)
    return [
        "-m", "diffseg_jax.main", f"--config={study.base}", f"--workdir={folder}", *mode,
        *(_flag(key, as_typed(value)) for key, value in options.items()),
    ]  # fmt: skip


def _flag(key, typed):
    return f"--config.{key}={typed}"


def _starts(study, run, workdir) -> dict[str, str]:
    """Where the stages of a run start that start from another run's."""
    if not run.before:
        return {}
    if run.before.mode == "features":
        from diffseg_jax.experiment.kept_features import KEPT  # slow imports

        kept = folder_of_run(workdir, run.before) / KEPT
        return {"features.sources": (f"files={kept}",), f"stages.{run.stages[-1]}.start": "weights"}
    config, starts = config_of(study, run.options), {}
    for name in run.stages:
        stage, at, which = config.stages[name].start.partition("@")
        if stage in run.before.stages:
            folder = folder_of_run(workdir, run.before) / "checkpoints" / stage
            starts[f"stages.{name}.start"] = f"{folder}{at}{which}"
    return starts
