"""Labels follow their image: it is known by the bytes of its file, and not by its name alone.

Two images may change their names, one may take the name of another, and a.jpg is named a_jpg as
soon as there is an a.png. What belongs to an image that is gone from its name is set aside:

    replaced/strokes/<name>.<first digits of SHA-256>.png;  predictions/ and uncertainty/ alike

and is put under the new name of that image, now or whenever it is among the images again. Its
record is kept as replaced/<name>.<first digits of SHA-256>, so that it is still accepted then.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath

from diffseg_jax.errors import counted, visible
from diffseg_jax.server.page_images import PageImage, key_of

REPLACED = "replaced"  # the folder of what is set aside, in that of the project
SET_ASIDE = re.compile(r".+\.([0-9a-f]+)\.png")
SHA256 = re.compile(r"[0-9a-f]{64}")


def settle_images(
    folder: Path, parts: Sequence[str], images: Iterable[PageImage], records: Mapping[str, dict],
    save: Callable[[dict[str, dict]], None],
) -> tuple[dict[str, dict], list[str]]:  # fmt: skip
    """(records by the present names, sentences about labels that belong to no present image).

    parts    names of folders in `folder` that hold <name>.png for images, strokes first
    records  name -> record with "sha256", of the last start
    save     writes the records: after files were set aside, and before they get new names, so that
             a process that is killed in between leaves no file under the name of another image
    """
    images = list(images)
    records = {name: each for name, each in records.items() if _is_record(name, each)}
    old_names = _old_names(images, records)
    present, moved = {image.name for image in images}, set(old_names.values())
    kept = {name for name, old in old_names.items() if name == old}
    misplaced = [name for name in records if name not in kept and name in present | moved]
    notes = []
    if misplaced:
        lost = [name for name in misplaced if _set_aside(folder, parts, name, records[name])]
        others = {name: record for name, record in records.items() if name not in misplaced}
        gone = [name for name in misplaced if name not in moved]
        others |= {f"{REPLACED}/{_aside(name, records[name])}": records[name] for name in gone}
        new = {name: records[old] for name, old in old_names.items()}
        records = others | new
        save(records)
        notes = _notes(folder, [name for name in gone if name in lost])
    _put_back(folder, parts, images)
    return records, notes


def _is_record(name, record) -> bool:
    """Whether paths can be made of a record, which may be that of a folder from somebody else."""
    is_inside = not PurePath(name).is_absolute() and ".." not in PurePath(name).parts
    return is_inside and bool(SHA256.fullmatch(record["sha256"]))


def _old_names(images, records):
    """{name: name in the records} of the images that are known, whatever they were named."""
    same = [
        image.name
        for image in images
        if records.get(image.name, {}).get("sha256") == image.sha256
    ]
    old_names, free = dict(zip(same, same)), {}
    for name, record in records.items():
        if name not in old_names:
            free.setdefault(record["sha256"], []).append(name)
    for image in images:
        if image.name not in old_names and free.get(image.sha256):
            old_names[image.name] = free[image.sha256].pop(0)
    return old_names


def _aside(name, record) -> str:
    """The name of what is set aside, which tells the images of one name apart."""
    return f"{name}.{key_of(record['sha256'])}"


def _set_aside(folder, parts, name, record) -> bool:
    """Moves the files of a name that has another image now; whether they were made by hand."""
    moved = []
    for part in parts:
        file = folder / part / f"{name}.png"
        if file.exists():
            target = folder / REPLACED / part / f"{_aside(name, record)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            moved.append(part)
    return parts[0] in moved or record["accepted"]


def _put_back(folder, parts, images):
    """Moves what was set aside to the present names of its images, where they have no strokes."""
    found = {}
    for part in parts:
        for file in sorted((folder / REPLACED / part).rglob("*.png")):
            if match := SET_ASIDE.fullmatch(file.name):
                found.setdefault(match[1], {}).setdefault(part, file)
    for image in images if found else ():
        files = found.get(image.key, {})
        if (folder / parts[0] / f"{image.name}.png").exists():
            continue
        for part in reversed(parts):  # the strokes last: a start after a kill goes on with the rest
            target = folder / part / f"{image.name}.png"
            if part in files and files[part].exists() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(files[part], target)


def _notes(folder, lost):
    """A sentence about labels whose images are not among the present ones."""
    if not lost:
        return []
    return [
        f"{counted(len(lost), 'image')} with labels, the first {visible(lost[0])}, had other "
        "content when they were made. They are set aside in "
        f"{visible(str(folder / REPLACED))}, and come back with the image that they belong to."
    ]
