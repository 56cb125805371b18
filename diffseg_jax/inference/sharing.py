"""Copies a trained network to the Hugging Face Hub, a bucket or a folder, with its model card."""

import re
import shlex
import warnings
from collections.abc import Iterable
from pathlib import Path

from diffseg_jax.devices.processes import barrier, is_first
from diffseg_jax.errors import UserError, counted
from diffseg_jax.inference.converted import convert_run, without_folders
from diffseg_jax.inference.description import describe_checkpoint
from diffseg_jax.inference.locate import find_stage, stages_in
from diffseg_jax.inference.model_card import CARD, MARK, PLACEHOLDER, model_card, write_card
from diffseg_jax.storage.hub import in_hub, split_address, upload
from diffseg_jax.storage.networks import open_meta
from diffseg_jax.storage.paths import open_path, write_atomically, write_json
from diffseg_jax.storage.workdir import read_results, saved_config

RUN_FILES = ("config.json", "results.json")  # of a workdir, where they are


def keep_card(workdir: Path, command: str):
    """Writes the model card of a run into its workdir; all processes read, the first one writes.

    command  that trained it; it stands below those that trained it before
    """
    barrier("results written")  # by them all processes choose the same stage
    if not stages_in(workdir):
        return
    before = command_in(_text_of(workdir / CARD)).splitlines()
    command = "\n".join(before if command in before else [*before, command])
    described = describe_checkpoint(workdir, with_taps=False)
    picture = _sheet_of(workdir, described["stage"])
    if is_first():
        try:
            write_card(workdir, model_card(described, picture=picture, command=command))
        except OSError as error:  # the run itself is finished and saved
            warnings.warn(
                f"the model card {workdir / CARD} cannot be written ({error.strerror or error}). "
                "The results are saved; python -m diffseg_jax.share writes the card anew.",
                stacklevel=2,
            )


def command_in(card: str) -> str:
    """The command in a card that trained the network, "" if there is none."""
    after = card.partition("## Training")[2].partition("```bash\n")[2]
    return after.partition("\n```")[0]


def prepare_copy(
    checkpoint: str, target: str, folder: Path, licence: str = "", stage: str | None = None,
    pictures: bool = True, **options,
):  # fmt: skip
    """Writes what is shared of a checkpoint into an empty folder on this machine.

    target   from which others load it
    licence  as of `model_card`
    pictures  whether those of the stage come too, which show images of the data
    stage, options  of `convert_run`: the parameters of one stage are copied, without the optimizer

    Of a run come its config and its results as well; without results and pictures if they are of
    another step or average than the copied one. Paths of this machine lose their folders. A
    README.md that people wrote is copied as it is. Raises UserError if there is no such checkpoint.
    """
    directory = find_stage(checkpoint, stage)
    convert_run(directory, folder, with_folders=False, **options)
    in_run = directory.parent.name == "checkpoints"
    root = directory.parent.parent if in_run else directory
    results = open_meta(folder).get("results")
    measured = in_run and bool(results)
    shown = measured or in_run and _shows_last(directory, **options)
    pictures = (root / "pictures").glob(f"{directory.name}_*.png") if shown and pictures else ()
    for file in [*([root / "results.json"] if measured else ()), *pictures]:
        write_atomically(folder / file.relative_to(root).as_posix(), file.read_bytes())
    config = saved_config(root) if in_run else {}
    config = config or open_meta(directory)["config"]
    write_json(folder / "config.json", without_folders(config))
    address = target if "://" in target else Path(target).name
    text = _text_of(root / CARD)
    if not text or MARK in text:
        text = model_card(
            describe_checkpoint(directory) | {"results": results}, address=address,
            command=shared_command(text), picture=_sheet_of(folder, directory.name),
            licence=licence,
        )  # fmt: skip
    write_atomically(folder / CARD, text.replace(PLACEHOLDER, address).encode())


def copy_to(target: str, folder: Path, public: bool = False) -> str:
    """Copies a prepared folder; returns where it can be seen.

    target  hf://user/repository, gs://bucket/folder, or a folder; a repository gets one commit, a
            folder must be empty or not exist, so that nothing is mixed
    public  as of `upload`

    Raises UserError for a target that holds files, and where nothing can be written.
    """
    files = {name: folder / name for name in files_in(folder)}
    if in_hub(target):
        return upload(target, files, is_of_a_copy, public)
    to = open_path(target)
    if to.exists() and any(to.iterdir()):
        raise UserError(f"{target} is not empty. Give a new folder, or empty this one.")
    last = [CARD]  # it says that the copy is complete
    for name in [name for name in files if name not in last] + last:
        write_atomically(to / name, files[name].read_bytes())
    return str(to)


def is_of_a_copy(name):
    """Whether a file of a repository was written by an earlier copy."""
    first = name.partition("/")[0]
    return first.isdecimal() or first == "pictures" or name in RUN_FILES


def files_in(folder: Path) -> dict[str, int]:
    """Path in the folder -> bytes of each file."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def notes_on_copy(files: Iterable[str], target: str, licence: str) -> list[str]:
    """Sentences on what a sharer may have missed, before the files are copied to the target."""
    shown, notes = sum(name.startswith("pictures/") for name in files), []
    if not licence:
        notes.append("the card states no licence; --licence=apache-2.0, for example, adds one")
    if shown:
        what = f"{counted(shown, 'file')} in pictures/ may show images of your data"
        notes.append(f"{what}; --no-pictures leaves them out")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", target) and not Path(target).parent.exists():
        notes.append(f"{target} is a folder here; --to=hf://{target} is a repository")
    return [f"note: {note}" for note in notes]


def require_target(target: str):
    """UserError for a target to which nothing can be written, before anything is read."""
    if in_hub(target):
        _, folder, _ = split_address(target)
        if folder:
            raise UserError(
                f"{target} names a folder in a repository, but a checkpoint takes the whole of it. "
                f"Give --to={target.removesuffix('/').removesuffix(folder).rstrip('/')}."
            )
    elif open_path(target).is_file():
        raise UserError(f"--to={target} is a file. Give a new folder, hf://... or gs://...")


def shared_command(card: str) -> str:
    """`command_in` a card, in which paths of this machine have lost their folders."""
    lines = [shlex.split(line) for line in command_in(card).splitlines()]
    return "\n".join(shlex.join(map(without_folders, words)) for words in lines)


def _shows_last(directory, step=None, ema=None, **_):
    """Whether pictures of a stage that is never measured are of the parameters to copy."""
    is_measured = read_results(directory.parent.parent).get(directory.name)
    return not is_measured and ema is None and step in (None, open_meta(directory)["step"])


def _text_of(file):
    return file.read_text(errors="replace") if file.exists() else ""


def _sheet_of(folder, stage):
    """The sheet of predictions of a stage, relative to a workdir or a copy; "" if it has none."""
    picture = f"pictures/{stage}_result.png"
    return picture if (folder / picture).exists() else ""
