"""Files below a folder: found, and paired by name."""

import glob
import os
from collections import Counter
from pathlib import Path, PurePosixPath

from diffseg_jax.data.formats import FORMATS, LOSSY_FORMATS, endings_of
from diffseg_jax.data.names import partners
from diffseg_jax.errors import UserError, counted
from diffseg_jax.storage.paths import BUCKET, in_bucket, open_path, reachable
from diffseg_jax.storage.similar import similar_path

MASK_ENDINGS = (".png", ".npy")  # taken where a mask exists in other formats too
LOSSY_ENDINGS = endings_of(LOSSY_FORMATS)
OTHER_MASK_ENDINGS = (".npz", *endings_of(FORMATS.keys() - set(LOSSY_FORMATS)))
NO_IMAGES = (  # endings of files that nobody takes for images
    ".json", ".jsonl", ".txt", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".log",
    ".py", ".ipynb", ".npy", ".npz", ".mat", ".h5", ".pkl", ".zip", ".tar", ".gz", ".pt", ".pth",
)  # fmt: skip
MAX_LISTED = 12  # folders or endings in a sentence
FILES_OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", ":zone.identifier")  # of Windows
FOLDERS_OF_SYSTEMS = (  # small copies and deleted files, of Synology, macOS and Windows
    "@eadir", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found",
)  # fmt: skip


def require_folder(path, name, layout):
    """`path` as `open_path` returns it; UserError if it is not a folder.

    The error says that data set `name` needs a folder with `layout`.
    """
    if not path:
        raise UserError(
            f"path is empty, but data set {name} is read from a folder with {layout}. Give "
            f"--config.{'unlabelled' if name == 'unlabelled' else 'data'}.path=FOLDER."
        )
    root = open_path(path)
    with reachable(root):
        if not root.is_dir():
            raise UserError(
                f"path {path} is not a folder. Data set {name} needs one with {layout}."
                f"{similar_path(root, fits=Path.is_dir)}"
            )
    return root


def expanded(path: str | os.PathLike, output: str = "") -> list[str]:
    """The path; or what it matches, sorted, if it does not exist but holds *, ? or [.

    output  a folder in which nothing is matched, unless the whole pattern is searched there

    Hidden files are not matched. Raises UserError where nothing is.
    """
    path = os.fsdecode(path)
    root, rest = open_path(path), []
    with reachable(root):
        while glob.has_magic(str(root)) and not root.exists():
            root, rest = root.parent, [root.name, *rest]
        if not rest:
            return [path]
        found = sorted(str(match) for match in root.glob("/".join(rest)) if match.name[0] != ".")
    if output and is_below(output, root) and not is_below(root, output):
        inside = _resolved(output)
        found = [match for match in found if not _resolved(match).startswith(inside)]
    if not found:
        near = similar_path(root)
        raise UserError(f"there is no file or folder like {path}. Check the pattern.{near}")
    return found


def is_below(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path is a folder or lies in it; links are followed."""
    return _resolved(path).startswith(_resolved(folder))


def _resolved(path):
    """The path without links, as text with "/" at its end."""
    return str(path if in_bucket(path) else open_path(path).resolve()).rstrip("/") + "/"


def list_files(folder, endings):
    """Sorted paths below `folder`, relative to it, with "/"; hidden files and folders are skipped.

    Raises UserError if the folder is missing, with a list of its neighbours, or holds no such file.
    """
    return split_files(folder, endings)[0]


def split_files(folder, endings):
    """(files that end so, the others) of a folder; otherwise as list_files."""
    with reachable(folder):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder. {_neighbours(folder)}")
        files = files_below(folder)
    found = [file for file in files if ends_with(file, endings)]
    if not found:
        others = f", but {_counted_endings(files)}" if files else ""
        raise UserError(
            f"{folder} holds no file that ends with {' '.join(endings)}{others}. Check the path."
        )
    return found, sorted(set(files) - set(found))


def list_masks(folder):
    """As list_files, for masks; of those with the same stem, PNG or .npy alone if there is one."""
    found = files_below(folder, MASK_ENDINGS + OTHER_MASK_ENDINGS)
    if not found:
        lossy = files_below(folder, LOSSY_ENDINGS)
        if lossy:
            raise UserError(
                f"{folder} holds no mask but {counted(len(lossy), 'file')} such as {lossy[0]}, and "
                "lossy compression changes ids. Export the labels again, as PNG; a PNG made from "
                "these files has the same errors."
            )
        return list_files(folder, MASK_ENDINGS + OTHER_MASK_ENDINGS)
    usual = {file.rpartition(".")[0] for file in found if ends_with(file, MASK_ENDINGS)}
    return [
        file
        for file in found
        if ends_with(file, MASK_ENDINGS) or file.rpartition(".")[0] not in usual
    ]


def skipped_note(folder, files) -> tuple[str, ...]:
    """A sentence about files that were skipped for their ending; () for none."""
    if not files:
        return ()
    are = "is" if len(files) == 1 else "are"
    advice = " Save images among them as JPEG or PNG."
    if all(ends_with(file, NO_IMAGES) for file in files):
        advice = ""
    return (
        f"{counted(len(files), 'file')} in {folder} {are} skipped, since no image ends so: "
        f"{_counted_endings(files)}; the first is {files[0]}.{advice}",
    )


def _counted_endings(files):
    """How many files have each ending, as text: "3 .heic, 1 .txt"."""
    endings = Counter(PurePosixPath(file).suffix.lower() or "without ending" for file in files)
    shown = [f"{count} {ending}" for ending, count in endings.most_common(MAX_LISTED)]
    return ", ".join(shown) + (", ..." if len(endings) > MAX_LISTED else "")


def ends_with(file: str, endings: tuple[str, ...]) -> bool:
    """Whether a file name ends so, in lower or upper case and with spaces after it or without."""
    return file.rstrip().lower().endswith(endings)


def files_below(folder, endings=("",)):
    """As list_files, but [] where the folder is missing or holds no such file."""
    found, root = [], Path(str(folder).removeprefix(BUCKET))
    remote = in_bucket(folder)
    walk = folder.walk(on_error=_unless_missing) if remote else os.walk(root, followlinks=True)
    for base, folders, files in walk:
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name.lower() not in FOLDERS_OF_SYSTEMS
            and (remote or not _leads_back(Path(base, name)))
        ]
        below = Path(str(base).removeprefix(BUCKET)).relative_to(root).as_posix()
        prefix = "" if below == "." else below + "/"
        found += [
            prefix + name
            for name in files
            if ends_with(name, endings)
            and not name.startswith(".")
            and not ends_with(name, FILES_OF_SYSTEMS)
        ]
    return sorted(found)


def _leads_back(folder):
    """Whether a folder is a link to one of its parents, in which a walk would not end."""
    if not folder.is_symlink():
        return False
    target = os.path.realpath(folder)
    return any(os.path.realpath(above) == target for above in folder.parents)


def _unless_missing(error):
    """Raises the errors of a walk in a bucket, which ignores them by default."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _neighbours(folder):
    """A sentence with the folders in the nearest parent that exists."""
    if in_bucket(folder):
        return f"To list its parent: gcloud storage ls {folder.parent}"
    above = next((parent for parent in folder.parents if parent.is_dir()), Path("/"))
    folders = sorted(entry.name for entry in above.iterdir() if entry.is_dir())[:MAX_LISTED]
    return f"Folders in {above}: {', '.join(folders) or 'none'}."


def by_stem(files, folder, suffix=""):
    """{relative path without ending: file} of the stems that end with `suffix`, which is removed.

    Raises UserError if no stem does, or if two files share a stem, which makes pairs ambiguous.
    """
    stems = {}
    for file in files:
        stem = file.rpartition(".")[0]
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in stems:
            raise UserError(
                f"{stems[stem]} and {file} in {folder} differ in their ending only, so it is not "
                "clear which one belongs to the pair. Remove or rename one."
            )
        stems[stem] = file
    if not stems:
        raise UserError(
            f"no file in {folder} has a name that ends with {suffix}. Check the layout."
        )
    return stems


def pair(image_folder, images, mask_folder, masks, what="mask"):
    """(image paths, mask paths, stems, report) of two results of `by_stem`, sorted by stem.

    what  the noun for a mask, such as depth map

    Names pair as `partners` says. Masks without an image are only reported. Raises UserError that
    names the first image without a mask.
    """
    mask_of = partners(images, masks)
    no_mask = sorted(images.keys() - mask_of.keys())
    no_image = sorted(masks.keys() - set(mask_of.values()))
    if no_mask:
        first = images[no_mask[0]]
        raise UserError(
            f"{len(no_mask)} of {len(images)} images in {image_folder} have no {what} in "
            f"{mask_folder}; the first is {first}. {_similar(mask_folder, no_mask[0])}"
            f"Add the {what}s (same name, .png or .npy) or move the images away."
        )
    report = ()
    if no_image:
        first = masks[no_image[0]]
        report = (f"{len(no_image)} {what}s in {mask_folder} have no image; the first is {first}.",)
    stems = tuple(sorted(images))
    image_paths = tuple(f"{image_folder}/{images[stem]}" for stem in stems)
    mask_paths = tuple(f"{mask_folder}/{masks[mask_of[stem]]}" for stem in stems)
    return image_paths, mask_paths, stems, report


def _similar(folder, stem):
    """A sentence about a file that may be the mask of an image under another name, or ""."""
    near = [file for file in files_below(folder, "") if file.startswith(stem)]
    if not near:
        return ""
    if ends_with(near[0], LOSSY_ENDINGS):
        return f"There is {near[0]}, but lossy compression changes ids: export it as PNG. "
    return f"There is {near[0]}: its name without ending must be that of the image. "
