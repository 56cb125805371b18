"""Says how labels of another format are converted that lie where masks are wanted."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from diffseg_jax.annotations.black_white import are_black_and_white
from diffseg_jax.annotations.class_tables import find_colour_table
from diffseg_jax.annotations.label_formats import LABEL_FORMATS
from diffseg_jax.annotations.mask_pairs import folder_in, some_masks
from diffseg_jax.data.files import MASK_ENDINGS, OTHER_MASK_ENDINGS, files_below
from diffseg_jax.data.mask_files import COLOUR, content_of, is_image_folder
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import in_bucket, open_path

OF_MASKS = ("voc", "colours", "binary", "palette", "cityscapes")  # formats that are image files
MAX_CANDIDATES = 20  # files of a folder, and folders, that are looked at
COMMAND = "python -m diffseg_jax.labels"


def conversion_advice(path) -> str:
    """A sentence with the command that makes masks of what lies in a folder; "" for none.

    path  the folder of a data set, in which images/ and masks/ should be
    """
    if not path or in_bucket(path):
        return ""
    try:
        root = open_path(path)
        return _advice(root) if root.is_dir() else ""
    except (OSError, UserError):
        return ""


@contextlib.contextmanager
def advised(path) -> Iterator[None]:
    """Within it, a UserError says how to convert labels of another format in the folder."""
    try:
        yield
    except UserError as error:
        advice = "" if COMMAND in str(error) else conversion_advice(path)
        if not advice:
            raise
        raise UserError(f"{error} {advice}") from None


def _advice(root):
    masks = root / "masks"
    if files_below(masks, MASK_ENDINGS + OTHER_MASK_ENDINGS):
        return _advice_on_masks(root, masks)
    for candidate in _candidates(root):
        for name, each in LABEL_FORMATS.items():
            if name != "masks" and not (name in OF_MASKS and is_image_folder(candidate.name)):
                with contextlib.suppress(OSError, UserError):
                    if each.recognise(candidate):
                        found = f"{candidate} holds labels of the format {name}."
                        return f"{found} {_command(root, name, candidate)}"
    return ""


def _advice_on_masks(root, masks):
    """The sentence about masks/ itself: black and white, or colours, that nothing describes yet."""
    some, file = some_masks(masks), root / "classes.json"
    described = file.read_bytes() if file.is_file() else b""
    if some and are_black_and_white(some):
        if b'"ids"' in described:
            return ""
        return f"{masks} holds black and white masks. {_command(root, 'binary', root)}"
    if b'"palette"' in described or not any(content_of(mask) == COLOUR for mask in some):
        return ""
    table = find_colour_table(root)
    line = "" if table else f"Write a line name:r,g,b:: for each class into {root}/labelmap.txt. "
    return f"{masks} holds masks in colours. {line}{_command(root, 'colours', root)}"


def _candidates(root) -> Iterator[Path]:
    """What may be labels: a folder, those in it, and then the files in each of them."""
    folders = sorted(each for each in root.iterdir() if each.is_dir() and each.name[0] != ".")
    folders = [root, *folders[:MAX_CANDIDATES]]
    yield from folders
    for folder in folders:
        yield from _files(folder)


def _files(folder):
    endings = (".json", ".xml")
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() in endings)
    return files[:MAX_CANDIDATES]


def _command(root, name, labels):
    """How labels are converted, and what reads the result."""
    output, images = f"{str(root).rstrip('/')}_masks", folder_in(root, is_image_folder)
    flags = [f"--from={name}", "--to=masks", f"--input={labels}"]
    flags += [f"--images={images}"] if images else []
    line = " ".join([COMMAND, *map(shlex.quote, [*flags, f"--output={output}"])])
    return f"To make masks of them: {line}; then give --config.data.path={shlex.quote(output)}."
