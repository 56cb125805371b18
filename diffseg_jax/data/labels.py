"""The ignore label, and the names and colours of classes."""

from dataclasses import dataclass

IGNORE = 255  # label of pixels that no loss and no metric counts
NO_CLASS = {  # names of what is usually ignored
    "void", "unlabelled", "unlabeled", "ignore", "ignored", "unknown", "undefined", "unassigned",
    "no label", "not labelled", "not labeled", "don't care", "dontcare",
}  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """The K classes of a data set: names, and colours (r, g, b) in 0..255, in class order.

    unscored  classes in 0..K-1 that no label shows because their pixels are ignored; networks have
              an output for them, and means over classes skip them
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    unscored: tuple[int, ...] = ()
