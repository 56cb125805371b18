"""What all formats of labels have in common: labelled regions of images, and formats as values.

Coordinates are those of the borders of pixels: x to the right, y down, (0, 0) the upper left corner
of the image, so that the centre of the first pixel is (0.5, 0.5).
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffseg_jax.annotations.photos import Photo, Photos
from diffseg_jax.annotations.polygons import fill_rings
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import counted

UNLABELLED, IGNORED = -1, -2  # in LabelledImage.ids: nothing is said about a pixel; it is ignored
OVERLAPS = ("last", "first", "smallest")  # which of several regions a pixel belongs to


@dataclass(frozen=True, eq=False)
class LabelledRegion:
    """A part of an image with a class: polygons, or a mask.

    name    of its class
    rings   f64[N,2] of corners (x, y), each; a pixel is inside if its centre is inside an odd
            number of them, so a ring in another one is a hole
    mask    bool[h,w] of the pixels of the box whose upper left pixel is `corner`, (x, y), or None.
            The box lies in the image
    crowd   whether it covers many objects that are not told apart
    group   regions of the same group, unless it is None, count as one when they are compared by
            size
    """

    name: str
    rings: tuple[np.ndarray, ...] = ()
    mask: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)
    crowd: bool = False
    group: Hashable = None

    def inside(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
        """((rows, columns) of a box in an image of (height, width), bool[h,w] of its pixels)."""
        if self.mask is None:
            return fill_rings(self.rings, size)
        (x, y), (height, width) = self.corner, self.mask.shape
        return (slice(y, y + height), slice(x, x + width)), self.mask


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """The labels of an image.

    name     relative path of its file, with "/" and ending; see `photos.py:safe_name`
    size     (height, width) in pixels, of the image on which the labels were drawn
    regions  in the order of the file; may be read once only
    ids      int[H,W] of indices into the classes of the set, UNLABELLED or IGNORED; None if the
             labels are regions
    photo    the image file, where the labels say where it is
    """

    name: str
    size: tuple[int, int]
    regions: Iterable[LabelledRegion] = ()
    ids: np.ndarray | None = None
    photo: Photo | None = None


class Notes:
    """Sentences about what was read otherwise than written; equal ones are counted."""

    def __init__(self):
        self.counts = {}

    def add(self, verb: str, noun: str, rest: str, example: str = "", count: int = 1):
        """Adds to a sentence "verb: 3 nouns rest; the first: example"."""
        key = verb, noun, rest
        before, first = self.counts.get(key, (0, example))
        self.counts[key] = before + count, first

    def sentences(self) -> Iterator[str]:
        """The sentences, in the order in which they came up."""
        for (verb, noun, rest), (count, first) in self.counts.items():
            example = f"; the first: {first}" if first else ""
            yield f"{verb}: {counted(count, noun)} {rest}{example}"


@dataclass(eq=False)
class LabelledSet:
    """A set of labelled images.

    classes  names, in the order of the file
    images   read one by one; raises UserError where a file is wrong
    colours  (r, g, b) of the classes, or () where the file has none
    notes    grow while images are read
    ignored  names of classes whose pixels are ignored unless they are renamed, or chosen by name
    are_found  whether the classes are those that occur, so that there may be others
    count    of the images, 0 if it is not known
    """

    classes: tuple[str, ...]
    images: Iterable[LabelledImage]
    colours: tuple[tuple[int, int, int], ...] = ()
    notes: Notes = field(default_factory=Notes)
    ignored: tuple[str, ...] = ()
    are_found: bool = False
    count: int = 0


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The labels of an image as they are written.

    name   relative path of the image file, with "/" and ending
    ids    u8[H,W] of class indices, upright, 255 = ignored
    photo  the image file, or None if it is not known
    """

    name: str
    ids: np.ndarray
    photo: Photo | None = None


@dataclass(frozen=True)
class WriteOptions:
    """What formats may ask of a writer.

    polygons  whether COCO (where a region has no holes), CVAT and Label Studio write polygons, and
              not run lengths or masks
    split     the folder before the names of all images, "" for none
    """

    polygons: bool = False
    split: str = ""


@dataclass(frozen=True, eq=False)
class LabelFormat:
    """A format of labels: how it is told, read and written.

    about       what is read and written, for --help: a file or a folder, and the tools
    recognise   (path) -> whether it is of this format, by names and the beginnings of files
    read        (path, photos) -> LabelledSet; photos: where image files are looked for
    write       (folder, labels, maps, options): writes the label maps below a folder that exists
                and is empty. `maps` is read once, one by one. None: the format is read only
    overlap     one of OVERLAPS: which region the format itself draws on top
    image_folder  where image files belong below the folder that is written; "" is the folder
                itself, None: the writer saves them
    lists_images  whether a file that is written holds the names of images, which must be text then
    """

    about: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path, Photos], LabelledSet]
    write: Callable[[Path, Labels, Iterable[LabelMap], WriteOptions], None] | None = None
    overlap: str = "last"
    image_folder: str | None = "images"
    lists_images: bool = False
