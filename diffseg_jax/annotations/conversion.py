"""Converts labels from one format to another, by way of label maps."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffseg_jax.annotations.label_formats import LABEL_FORMATS, recognised
from diffseg_jax.annotations.painting import (
    ClassTable,
    Painted,
    PaintOptions,
    blank,
    class_table,
    painted_map,
)
from diffseg_jax.annotations.photos import Photo, Photos, is_text, stem_of
from diffseg_jax.annotations.regions import LabelledImage, LabelMap, Notes, WriteOptions
from diffseg_jax.data.folder_source import SPLITS, has_no_splits, split_like
from diffseg_jax.data.labels import Labels
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, choose, require_known
from diffseg_jax.storage.outputs import require_outside
from diffseg_jax.storage.paths import in_bucket, make_folder, open_path
from diffseg_jax.storage.similar import similar_path

PHOTO_FILES = ("copy", "link", "none")  # what becomes of the image files
EMPTY = ("skip", "keep")  # what becomes of images without any label
IMAGES = "images"  # the folder of all images in a folder of masks
MAX_PLACES = 4  # folders that a sentence names
PARTIAL = ".labels.partial"  # folder in the output, from which finished files are moved


@dataclass(frozen=True)
class ConvertOptions:
    """How labels are converted, besides `paint`, a PaintOptions.

    photo_files  one of PHOTO_FILES: image files are copied to where the format wants them, or
                 symbolic links to them are made, or neither
    empty        one of EMPTY; a kept image is unlabelled everywhere
    write        what the written format may ask
    """

    paint: PaintOptions = PaintOptions()
    photo_files: str = PHOTO_FILES[0]
    empty: str = EMPTY[0]
    write: WriteOptions = WriteOptions()

    def __post_init__(self):
        require_known(self.photo_files, PHOTO_FILES, "value of image_files")
        require_known(self.empty, EMPTY, "value of empty")
        if not re.fullmatch(r"[\w-]*", self.write.split):
            raise UserError(f"split is {self.write.split}, but must be a name, such as train.")


@dataclass
class Converted:
    """What a conversion did.

    source, target  the names of the formats
    labels  classes of the label maps;  images, photos  their number, and that of image files
    folders  the first folder in the name of each image, "" for none
    pixels  int64[256] of each id;  notes  sentences for the user
    """

    source: str
    target: str
    labels: Labels
    images: int = 0
    photos: int = 0
    folders: set[str] = field(default_factory=set)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    notes: Sequence[str] = ()


def convert_labels(
    input: str, output: str, target: str = "masks", source: str | None = None,
    images: str | None = None, options: ConvertOptions | None = None,
    display: Display | None = None,
) -> Converted:  # fmt: skip
    """Reads labels of one format and writes them in another one below a folder.

    input   the file or folder of the labels
    output  a folder, which is made; files in it are never replaced by others
    target, source  names of LABEL_FORMATS; None: the source is recognised by its files
    images  the folder of the image files; None: where the labels say they are
    display  of the command; None: one of its own

    Raises UserError for what is wrong with the labels, and for files that are there already.
    Nothing is left in the folder then but what was there.
    """
    options, display = options or ConvertOptions(), display or Display()
    path, folder = _local(input, "input"), _local(output, "output")
    if not path.exists():
        raise UserError(f"there is no {input}. Give the labels by --input.{similar_path(path)}")
    if path.is_dir():
        require_outside(folder, path, "input", "what this one writes for labels")
    source = source or recognised(path)
    read = choose(LABEL_FORMATS, source, "format").read
    into = choose(LABEL_FORMATS, target, "format")
    if into.write is None:
        raise UserError(f"labels of the format {target} are read only. Give another --to.")
    photos = Photos(None if images is None else _local(images, "images"))
    with display.progress(f"reads {source}"):
        labelled = read(path, photos)
        table = class_table(labelled, options.paint)
    done = Converted(source, target, table.labels)
    make_folder(folder)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        overlap = options.paint.overlap or LABEL_FORMATS[source].overlap
        maps = _Maps(labelled, photos, table, overlap, options, done)
        with_files = _with_photos(maps, partial, into.image_folder, options.photo_files, done)
        with display.progress("images", labelled.count or None, unit="images") as progress:
            into.write(partial, table.labels, progress.each_of(with_files), options.write)
        if not done.images:
            raise UserError(_no_image(source, path, labelled.notes, photos))
        deliver(partial, folder)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"{error.filename} is a file where a folder is needed, or the other way round. Give "
            "another --output, or rename an image in the labels."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    done.notes = [*labelled.notes.sentences(), *maps.sentences()]
    return done


def _local(path, flag):
    """A path on this machine; UserError for an address in a bucket."""
    if in_bucket(path):
        raise UserError(f"--{flag}={path} is in a bucket. Copy it to this machine first.")
    return open_path(path)


def _no_image(source, path, notes, photos):
    """The sentence about labels of which nothing could be written."""
    reason = next(notes.sentences(), "")
    found = "" if photos.folder is None else f" for the images below {photos.folder}"
    reason = f" ({reason})" if reason else ""
    return f"{path}, read as {source}, has no labels{found}{reason}. Check --input and --images."


class _Maps:
    """The label maps of a set, painted one by one."""

    def __init__(self, labelled, photos, table: ClassTable, overlap, options, done):
        self.labelled, self.photos, self.table = labelled, photos, table
        self.overlap, self.options, self.done = overlap, options, done
        self.painted, self.stems = Painted.nothing(), {}

    def __iter__(self) -> Iterator[LabelMap]:
        for image in self.labelled.images:
            photo = self._photo(image)
            if self.photos.folder is not None and photo is None:
                rest = f"that is not below {self.photos.folder}"
                self.labelled.notes.add("skipped", "image", rest, image.name)
                continue
            ids = self._ids(image, photo)
            if ids is not None:
                self.done.images += 1
                yield LabelMap(self._name(image.name), ids, photo)
        self.done.pixels = self.painted.pixels

    def _photo(self, image: LabelledImage) -> Photo | None:
        if self.photos.folder is not None:
            return self.photos.find(image.name)
        return image.photo

    def _ids(self, image, photo):
        """u8[H,W] of an image, upright, or None if it has no labels."""
        notes, options = self.labelled.notes, self.options.paint
        turns = photo is not None and photo.turns(image.size)
        if turns:
            rest = "whose labels were drawn on the stored pixels: turned upright, as the images are"
            notes.add("EXIF", "image", rest, image.name)
        elif photo is not None and photo.fits_both_ways():
            rest = "with an EXIF orientation that keeps the size: labels taken as drawn upright"
            notes.add("EXIF", "image", rest, image.name)
        classes, crowd = self.labelled.classes, options.crowd
        ids = painted_map(image, classes, self.table, self.overlap, crowd, self.painted)
        if ids is None and self.options.empty == EMPTY[0]:
            rest = "without any label (--empty=keep writes them)"
            notes.add("skipped", "image", rest, image.name)
            return None
        ids = blank(image.size, self.table, self.painted) if ids is None else ids
        return photo.upright(ids) if turns else ids

    def _name(self, name):
        """The name of an image in the output, without a folder images/, in which all will be.

        Raises UserError if another one has the same stem, and for what the format cannot hold.
        """
        if LABEL_FORMATS[self.done.target].lists_images and not is_text(name):
            raise UserError(
                f"image {name} has a name that {self.done.target} cannot hold, which lists names "
                "as lines of UTF-8. Rename it, in the labels too."
            )
        written, name = name, name.removeprefix(f"{IMAGES}/")
        stem = stem_of(name)
        if stem in self.stems:
            raise UserError(
                f"images {self.stems[stem]} and {written} have the same name but for the ending or "
                "the folder, so their label maps would be one file. Rename one, in the labels too."
            )
        self.stems[stem] = written
        split = self.options.write.split
        name = f"{split}/{name}" if split else name
        self.done.folders.add(name.partition("/")[0] if "/" in name else "")
        return name

    def sentences(self) -> Iterator[str]:
        """What a user should know about the label maps."""
        yield from self.table.sentences()
        yield from self.painted.sentences(self.overlap, self.options.paint.unlabelled)
        notes = Notes()
        for file, stem in self.photos.only_by_name.items():
            rest = "whose folder, or case, is another one in the labels: found by the name alone"
            notes.add("images", "file", rest, f"{file} for {stem}")
        for file in self.photos.unused():
            rest = f"below {self.photos.folder} of which the labels say nothing"
            notes.add("not used", "image", rest, file)
        yield from notes.sentences()


def _with_photos(maps, folder, image_folder, photo_files, done) -> Iterator[LabelMap]:
    """The maps, while image files are copied, or linked, to where they belong."""
    for each in maps:
        if each.photo is not None and image_folder is not None and photo_files != "none":
            place_photo(each.photo, folder / image_folder / each.name, photo_files == "link")
            done.photos += 1
        yield each


def place_photo(photo: Photo, file: Path, link: bool):
    """Copies an image file, or makes a symbolic link to it; photos in memory are written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if photo.content is not None:
        file.write_bytes(photo.content)
    elif link:
        file.symlink_to(Path(photo.path).resolve())
    else:
        shutil.copyfile(photo.path, file)


def deliver(partial: Path, folder: Path):
    """Moves all files of a folder to the same places in another one; those in its root come last.

    Equal files may be there already. Raises UserError, before it moves any, for other ones, and
    when it is stopped in between.
    """
    files = [Path(base, name) for base, _, names in os.walk(partial) for name in names]
    files = sorted(file.relative_to(partial) for file in files)
    for file in files:
        there = folder / file
        if os.path.lexists(there) and not _same_content(there, partial / file):
            raise UserError(
                f"{there} is there already, with another content. Give another --output."
            )
    moved = 0
    try:
        for file in sorted(files, key=lambda file: len(file.parts) == 1):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / file, folder / file)
            moved += 1
    except KeyboardInterrupt:
        raise UserError(
            f"stopped after {moved} of {len(files)} files were moved into {folder}. Give the same "
            "command again: equal files may be there already."
        ) from None


def _same_content(one, other):
    return one.is_file() and one.read_bytes() == other.read_bytes()


def next_steps(done: Converted, output: str) -> list[str]:
    """Lines that say how to train on label maps; [] for labels of another format."""
    if done.target != "masks":
        return []
    if not done.photos:
        return ["to train on them, give the image files by --images as well"]
    images = open_path(output) / IMAGES
    others = [] if has_no_splits(images.parent) else sorted(done.folders - set(SPLITS))
    val = "" if (images / "val").is_dir() else split_like("val", others)
    option = f" --config.data.val={shlex.quote(val)}" if val else ""
    unread = [each for each in others if not val or each != val]
    if others and not (images / "train").is_dir():
        train = split_like("train", unread) or ("", *unread)[-1]
        given = f", or give --config.data.train={shlex.quote(train)}{option}" if train else ""
        return [
            f"training reads {IMAGES}/train, but there are images in {_places(others)}: convert "
            f"them with --split=train and another --output{given}"
        ]
    lines = []
    if unread:
        lines.append(
            f"note: training reads {IMAGES}/train, but not the images in {_places(unread)}: move "
            "them, and their masks, into folders train or val"
        )
    command = (
        "python -m diffseg_jax.main --mode=check --config=configs/ddpm_seg_folder.py "
        f"--workdir=runs/few --config.data.path={shlex.quote(output)}{option}"
    )
    return [*lines, f"check them: {command}"]


def _places(folders):
    places = ", ".join(f"{IMAGES}/{each}".rstrip("/") for each in folders[:MAX_PLACES])
    return f"{places}, ..." if len(folders) > MAX_PLACES else places
