"""All formats of labels, by name."""

from pathlib import Path

from diffseg_jax.annotations.labelme import LABELME
from diffseg_jax.annotations.mask_folder import MASKS
from diffseg_jax.annotations.regions import LabelFormat
from diffseg_jax.errors import UserError

LABEL_FORMATS: dict[str, LabelFormat] = {
    "masks": MASKS,
    "labelme": LABELME,
}


def recognised(path: Path) -> str:
    """The name of the format of a file or folder; UserError unless it is just one."""
    found = [name for name, each in LABEL_FORMATS.items() if each.recognise(path)]
    if len(found) == 1:
        return found[0]
    known = " or ".join(found) if found else ", ".join(LABEL_FORMATS)
    which = "may be of several formats" if found else "is of no format that is recognised"
    raise UserError(f"{path} {which}. Name it: --from={known}.")
