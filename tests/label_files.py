"""Label files of other tools for the tests, and what is read from them."""

import numpy as np
from PIL import Image

from diffseg_jax.annotations.label_formats import LABEL_FORMATS
from diffseg_jax.annotations.painting import Painted, PaintOptions, class_table, painted_map
from diffseg_jax.annotations.photos import Photos


def label_maps(name, path, folder=None, **options):
    """({image: u8[H,W]}, class names, notes) of labels in a format; folder: of the images."""
    labelled, options = LABEL_FORMATS[name].read(path, Photos(folder)), PaintOptions(**options)
    table, overlap = class_table(labelled, options), options.overlap or LABEL_FORMATS[name].overlap
    maps = {
        each.name: painted_map(each, labelled.classes, table, overlap, "255", Painted.nothing())
        for each in labelled.images
    }
    return maps, table.labels.names, list(labelled.notes.sentences())


def ids_in(file):
    """The ids that a mask stores, int[H,W]."""
    with Image.open(file) as image:
        return np.asarray(image).astype(int)
