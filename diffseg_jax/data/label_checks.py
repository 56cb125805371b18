"""Labels that nobody can have meant, found before training and by --mode=check.

What is certainly wrong becomes an error: no labelled pixel, one class everywhere, splits without a
common class. What may be meant becomes a warning.
"""

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from diffseg_jax.data.class_ids import MaskRules
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.labels import IGNORE, NO_CLASS
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.errors import UserError

MAX_NAMES = 8  # in a warning
MOSTLY_IGNORED, ONE_CLASS = 0.95, 0.99  # shares of pixels from which a warning is given


@dataclass(frozen=True)
class SeenLabels:
    """The labels that were read in a split.

    source   the images of the split;  indices  those that are used, of which some were read
    pixels   number of pixels by label
    masks    number of masks that were read
    """

    split: str
    source: Sequence
    indices: Sequence[int]
    pixels: collections.Counter
    masks: int

    @property
    def complete(self) -> bool:
        """Whether all masks that are used were read."""
        return self.masks == len(self.indices)

    @property
    def classes(self) -> set[int]:
        """The classes of which a pixel was seen."""
        return self.pixels.keys() - {IGNORE}


def label_counts(mask: np.ndarray) -> dict[int, int]:
    """{label: number of pixels} of a mask."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}


def read_labels(
    split: str, source: Sequence, indices: Sequence[int], first: Iterable[int]
) -> SeenLabels:
    """Reads the examples `first`, and more of `indices` until two classes were seen."""
    pixels, read = collections.Counter(), dict.fromkeys(map(int, first))
    for index in read:
        pixels.update(label_counts(source[index]["mask"]))
    for index in map(int, indices):
        if len(pixels.keys() - {IGNORE}) > 1:
            break
        if index not in read:
            pixels.update(label_counts(source[index]["mask"]))
            read[index] = None
    return SeenLabels(split, source, indices, pixels, len(read))


def require_sensible(train: SeenLabels, val: SeenLabels) -> list[str]:
    """The warnings about the labels of a run; UserError if they are certainly wrong."""
    if wrong := errors_of(train, val):
        raise UserError(wrong[0])
    return warnings_of(train, val)


def require_sensible_parts(learned: SeenLabels, held_out: SeenLabels) -> list[str]:
    """As `require_sensible` of images of one split, some of which are held out of the others.

    Few images may show one class, so only all of them together must show two.
    """
    for seen, purpose in ((learned, "learn"), (held_out, "measure")):
        if wrong := _nothing_labelled(seen, purpose):
            raise UserError(wrong[0])
    both = learned
    if not np.array_equal(learned.indices, held_out.indices):
        both = SeenLabels(
            learned.split, learned.source, [*learned.indices, *held_out.indices],
            learned.pixels + held_out.pixels, learned.masks + held_out.masks,
        )  # fmt: skip
    found = [*require_sensible(both, both), *_absent_classes(learned, held_out)]
    return list(dict.fromkeys(found))


# ---- what is certainly wrong -------------------------------------------------------------------


def errors_of(train: SeenLabels, val: SeenLabels) -> list[str]:
    """Sentences about labels from which nothing can be learned, or with which nothing measured."""
    names, wrong = train.source.labels.names, []
    for seen, purpose in ((train, "learn"), (val, "measure")):
        wrong += _nothing_labelled(seen, purpose)
    if wrong:
        return wrong
    for seen in (train, val):
        if seen.complete and len(seen.classes) == 1:
            ignored = seen.pixels[IGNORE] / seen.pixels.total()
            also = f", and {ignored:.0%} of all pixels are ignored" if ignored else ""
            wrong.append(
                f'{seen.split}: every labelled pixel is "{names[min(seen.classes)]}"{also}, so '
                f"there is nothing to tell apart. {_second_class(seen)}"
            )
    if wrong:
        return wrong
    if train.complete and val.complete and not train.classes & val.classes:
        wrong.append(
            f"{train.split} shows {_named(names, train.classes)}, but {val.split} shows "
            f"{_named(names, val.classes)}, so what is learned is not measured. Both need the same "
            "ids for the same classes."
        )
    return wrong


def require_labelled(val: SeenLabels):
    """UserError if there is nothing to measure."""
    if wrong := _nothing_labelled(val, "measure"):
        raise UserError(wrong[0])


def _nothing_labelled(seen, purpose):
    if not seen.complete or not seen.masks or seen.classes:
        return []
    masks = "the only mask" if seen.masks == 1 else f"all {seen.masks:,} masks"
    return [
        f"{seen.split}: every pixel of {masks} is ignored, so there is nothing to {purpose}. "
        f"{_advice(seen)}"
    ]


def _second_class(seen):
    if seen.pixels[IGNORE]:
        return _advice(seen)
    if len(seen.source.labels.names) == 1:
        return "There must be two classes, such as one for the background."
    return "Check that these are the right masks."


def _rules(seen) -> MaskRules | None:
    """The rules of masks in files."""
    source = seen.source.source if isinstance(seen.source, Cached) else seen.source
    return source.rules if isinstance(source, FolderSource) else None


def _advice(seen):
    """What to type, by the ids that the masks store."""
    if not (rules := _rules(seen)):
        return "Prepare the data again, from masks that show the classes."
    return rules.advice(_stored_ids(seen))


def _stored_ids(seen):
    source = seen.source.source if isinstance(seen.source, Cached) else seen.source
    return source.some_ids()


# ---- what may be meant -------------------------------------------------------------------------


def warnings_of(train: SeenLabels, val: SeenLabels) -> list[str]:
    """Sentences about labels that are unusual."""
    sentences = [*_absent_classes(train, val), *_void_classes(train)]
    for seen in (train, val):
        total, ignored = seen.pixels.total(), seen.pixels[IGNORE]
        if ignored == total:
            continue  # an error if all masks could be read
        if ignored >= MOSTLY_IGNORED * total:
            sentences.append(f"{seen.split}: {ignored / total:.0%} of the pixels are ignored.")
        label, count = max(
            ((k, n) for k, n in seen.pixels.items() if k != IGNORE), key=lambda pair: pair[1]
        )
        if count >= ONE_CLASS * (total - ignored):
            share, name = count / (total - ignored), seen.source.labels.names[label]
            sentences.append(f'{seen.split}: {share:.1%} of the labelled pixels are "{name}".')
    return sentences


def _absent_classes(train, val):
    """Sentences about classes that a split does not show."""
    labels = train.source.labels
    scored = set(range(len(labels.names))) - set(labels.unscored)
    if not train.complete or not val.complete:
        return
    nowhere = scored - train.classes - val.classes
    if nowhere:
        remedy = _remedy_for(nowhere, train)
        yield f"no mask shows {_named(labels.names, nowhere)}.{remedy}"
    if unlearned := (scored & val.classes) - train.classes:
        yield f"{val.split} shows {_named(labels.names, unlearned)}, but {train.split} does not."
    if unmeasured := (scored & train.classes) - val.classes:
        yield f"{train.split} shows {_named(labels.names, unmeasured)}, but {val.split} does not."


def _remedy_for(nowhere, seen):
    """What to type if the absent classes come from ids that are taken for others, or ""."""
    rules, names = _rules(seen), seen.source.labels.names
    if not rules or not rules.file:
        return ""
    count = len(names)
    if rules.entries.get("zero_is_ignored") and count - 1 in nowhere and 0 in _stored_ids(seen):
        return f' If 0 is "{names[0]}", {rules.written(zero_is_ignored=False)}.'
    if 0 in nowhere and 1 not in nowhere and rules.class_of(0) == 0:
        return f" If ids count from 1, {rules.written(zero_is_ignored=True)}."
    if seen.source.labels.unscored:  # classes without an id
        return ""
    if len(nowhere) == 1 and seen.pixels[IGNORE] and 255 in _stored_ids(seen):
        missing = min(nowhere)
        ids = [255 if k == missing else rules.stored_id(k) for k in range(count)]
        return f' If 255 is "{names[missing]}", {rules.numbered(ids)}.'
    return ""


def _void_classes(seen):
    """Sentences about classes whose name says that they are none."""
    for label, name in enumerate(seen.source.labels.names):
        if name.lower().replace("_", " ").strip() in NO_CLASS and label in seen.classes:
            rules = _rules(seen)
            remedy = ""
            if rules and rules.file:
                remedy = f" To leave it out, {rules.ignoring([rules.stored_id(label)])}."
            yield f'"{name}" is learned and measured as any class.{remedy}'


def _named(names, labels):
    listed = ", ".join(f'"{names[label]}"' for label in sorted(labels)[:MAX_NAMES])
    more = len(labels) - MAX_NAMES
    return f"{listed} and {more} more" if more > 0 else listed
