"""Sentences about opened data that a user should know: choices that were made, files left out."""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.orientation import fits_both_ways
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.errors import visible
from diffseg_jax.storage.paths import in_bucket

MAX_HEADERS = 2000  # that are read at the start of a run


def notes_of(source: Sequence, indices: Sequence[int] | None = None) -> tuple[str, ...]:
    """What opening the source found, and which of its masks fit a turned image both ways.

    indices  of the images that are used; None for all, of which every header is read, also in a
             bucket
    """
    notes, turned = list(source.report), turned_both_ways(source, indices)
    if turned:
        count, first = len(turned), source.names[turned[0]]
        are, masks = ("is", "its mask fits") if count == 1 else ("are", "their masks fit")
        notes.append(
            f"{count} of {len(source)} images {are} turned by the EXIF orientation, and {masks} "
            f"the upright image as well as the stored one; the first is {first}. Masks are taken "
            "as drawn on the upright image, as viewers show it. If they were drawn on the stored "
            "pixels, save these images without the tag; --mode=check draws one of them."
        )
    return tuple(map(visible, notes))


def turned_both_ways(source: Sequence, indices: Sequence[int] | None = None) -> list[int]:
    """Those indices whose image is turned, while the mask fits the stored image as well."""
    source = source.source if isinstance(source, Cached) else source
    if not isinstance(source, FolderSource) or not source.masks:
        return []
    if indices is None:
        indices = range(len(source))
    else:
        few = np.linspace(0, len(indices) - 1, min(len(indices), MAX_HEADERS)).astype(int)
        indices = [] if in_bucket(source.images[0]) else np.asarray(indices)[few]
    return [int(i) for i in indices if fits_both_ways(source.images[i], source.masks[i])]
