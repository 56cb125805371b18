"""The path that was meant, where the one that was given does not exist."""

import contextlib
import difflib
from collections.abc import Callable, Collection
from pathlib import Path

from diffseg_jax.storage.paths import in_bucket


def similar_path(
    path: Path, known: Collection[str] = (), fits: Callable[[Path], bool] = Path.exists
) -> str:
    """The question whether the nearest path that exists was meant; "" if none is similar.

    known  names that count as paths in the working directory
    fits   whether a path that exists may be meant
    """
    if in_bucket(path) or path.exists():
        return ""
    near = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if part == ".." or (near / part).exists():
            near /= part
            continue
        if not (name := _similar_name(part, near, known if near == Path() else ())):
            return ""
        near /= name
    return f' Did you mean "{near}"?' if str(near) in known or fits(near) else ""


def _similar_name(name, folder, known):
    """The nearest name in a folder, whatever its case, or ""."""
    names = {each.lower(): each for each in known}
    with contextlib.suppress(OSError):
        names = {entry.name.lower(): entry.name for entry in folder.iterdir()} | names
    found = difflib.get_close_matches(name.lower(), names, n=1)
    return names[found[0]] if found else ""
