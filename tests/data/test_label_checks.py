"""Labels that nobody can have meant are named, with the line to write."""

import collections
import json
import re

import numpy as np
import pytest

from diffseg_jax.data.label_checks import (
    SeenLabels,
    errors_of,
    label_counts,
    read_labels,
    require_labelled,
    require_sensible,
    require_sensible_parts,
    warnings_of,
)
from diffseg_jax.data.named_sets import open_camvid
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder

pytestmark = pytest.mark.quick


def data_of(path, train, val, names, **entries):
    """(train, val) as read from a folder whose masks hold these values in equal parts."""
    for split, rows in (("train", train), ("val", val)):
        masks = {f"p{i}": np.repeat(np.array(row, np.uint8), 4)[None] for i, row in enumerate(rows)}
        labelled_folder(path, masks, split)
    if names:
        (path / "classes.json").write_text(json.dumps({"names": names} | entries))
    return seen_in(path)


def seen_in(path):
    sources = [Cached(open_source("folder", split, path=str(path))) for split in ("train", "val")]
    return [
        read_labels(split, source, range(len(source)), [0])
        for split, source in zip(("train", "val"), sources)
    ]


THING = ["background", "thing"]
WRONG = [  # masks of train, of val, names, the sentence, and the masks after its advice
    ([[0, 255]], [[0, 255]], THING, 'labelled pixel is "background", and 50%', [0, 1]),
    ([[255, 255]], [[0, 1]], THING, "every pixel of the only mask is ignored.*to learn", None),
    ([[0, 1]], [[255, 255]] * 2, THING, "every pixel of all 2 masks is ign.*to measure", None),
    ([[0, 1]], [[0, 255]], THING, 'val: every labelled pixel is "background", and', None),
    ([[1, 1], [1, 1]], [[0, 1]], THING, 'labelled pixel is "thing", so .* the right masks', None),
    ([[0, 255]], [[0, 255]], ["thing"], 'If 255 is "thing", set "names"', [0, 1]),
    ([[0, 0]], [[0, 0]], ["thing"], "There must be two classes, such as", None),
    ([[0, 1]], [[2, 3]], list("abcd"), 'train shows "a", "b", but val shows "c", "d"', None),
    ([[7, 7, 255]], [[7, 255]], list("abcdefgh"), 'every labelled pixel is "h"', None),
]


@pytest.mark.parametrize("train, val, names, sentence, mended", WRONG)
def test_what_is_certainly_wrong_is_an_error(tmp_path, train, val, names, sentence, mended):
    with pytest.raises(UserError, match=sentence) as error:
        require_sensible(*data_of(tmp_path, train, val, names))
    if mended:
        text = re.search(r"set (.*?) in ", str(error.value)).group(1)
        entries = json.loads(f"{{{text}}}")
        seen = data_of(tmp_path, train, val, **({"names": names} | entries))
        assert require_sensible(*seen) == []
        np.testing.assert_array_equal(np.unique(seen[0].source[0]["mask"]), mended)


UNUSUAL = [
    ([[0, 1]], [[0, 1]], ["a", "b", "c"], {}, 'no mask shows "c".'),
    ([[1, 2]], [[1, 2]], ["a", "b", "c"], {}, 'no mask shows "a". If ids count from 1, set "zero'),
    ([[0, 1, 255]], [[0, 1]], ["a", "b", "c"], {}, '"c". If 255 is "c", set "ids": [0, 1, 255] in'),
    ([[0, 1, 255]], [[0, 1]], list("abcd"), {"ignore": [3]}, 'no mask shows "c".'),
    ([[0, 1, 2]], [[0, 1]], ["a", "b", "c"], {}, 'train shows "c", but val does not.'),
    ([[0, 1]], [[0, 2]], ["a", "b", "c"], {}, 'val shows "c", but train does not.'),
    ([[0, 1]], [[0, 1]], ["a", "void"], {}, '"void" is learned and measured as any class.'),
    (
        [[5, 6]],
        [[5, 6]],
        ["unlabelled", "b"],
        {"ids": [5, 6]},
        'leave it out, set "ignore": [5] in',
    ),
    ([[0] * 99 + [1]], [[0, 1]], THING, {}, 'train: 99.0% of the labelled pixels are "backg'),
    ([[255] * 98 + [0, 1]], [[0, 1]], THING, {}, "train: 98% of the pixels are ignored."),
    (
        [[0, 1, 2]],
        [[1]] + [[1, 2]],
        list("abc"),
        {"zero_is_ignored": True},
        'set "zero_is_ignored": false in',
    ),
]


@pytest.mark.parametrize("train, val, names, entries, sentence", UNUSUAL)
def test_what_may_be_meant_is_a_warning(tmp_path, train, val, names, entries, sentence):
    found = require_sensible(*data_of(tmp_path, train, val, names, **entries))
    assert any(sentence in warning for warning in found), found


@pytest.mark.parametrize(
    "train, val, names, entries",
    [
        ([[0, 1]], [[0, 1]], THING, {}),
        ([[0, 1, 255]], [[1, 0]], THING, {}),
        ([[0, 1, 2]], [[0, 1, 2]], ["void", "a", "b"], {"ignore": [0]}),
        ([[0, 1, 2]], [[1, 2]], ["a", "b"], {"zero_is_ignored": True}),
    ],
)
def test_usual_labels_pass_in_silence(tmp_path, train, val, names, entries):
    assert require_sensible(*data_of(tmp_path, train, val, names, **entries)) == []


def test_arrays_of_ignored_pixels_alone(tmp_path):
    for split in ("train", "val"):
        labelled_folder(tmp_path, {"a": np.full((2, 2), -1)}, split, ".npy")
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["thing"]}))
    assert "the ids of ignored pixels. Check that these are" in errors_of(*seen_in(tmp_path))[0]


def test_masks_are_read_until_a_second_class_is_found(tmp_path):
    train, val = data_of(tmp_path, [[0]] * 5 + [[0, 1]] + [[1]] * 3, [[0, 1]] * 3, THING)
    assert train.masks == 6 and not train.complete and val.masks == 1
    assert require_sensible(train, val) == []  # nothing is said about masks that were not read


def test_evaluation_needs_one_labelled_pixel(tmp_path):
    require_labelled(data_of(tmp_path, [[0]], [[0]], THING)[1])
    with pytest.raises(UserError, match="nothing to measure"):
        require_labelled(data_of(tmp_path, [[0]], [[255]], THING)[1])


def test_published_sets_say_what_they_expect(tmp_path):
    labelled_folder(tmp_path, {"a": np.full((2, 2), 255, np.uint8)})
    source = open_camvid("train", path=str(tmp_path))
    seen = read_labels("train", source, [0], [0])
    assert "11 classes, not the 32" in errors_of(seen, seen)[0]


def test_other_sources_have_no_classes_json():
    class Source(list):
        labels = open_source("scenes", "train", images=1, size=(8, 8)).labels

    mask = np.full((2, 2), 255, np.int32)
    seen = SeenLabels("train", Source([0]), [0], collections.Counter(label_counts(mask)), 1)
    assert "Prepare the data again" in errors_of(seen, seen)[0]
    labelled = SeenLabels("val", Source([0]), [0], collections.Counter({0: 5, 1: 5}), 1)
    assert "no mask shows" in warnings_of(labelled, labelled)[0]


def parts_of(path, *rows):
    """The labels of the first image, and of the others, of one split whose masks hold these."""
    data_of(path, rows, rows, list("abc"))
    source = Cached(open_source("folder", "train", path=str(path)))
    shown = [0], range(1, len(rows))
    return [read_labels("train", source, part, part) for part in shown]


def test_a_part_that_is_held_out_may_show_one_class_but_not_none(tmp_path):
    held_out, learned = parts_of(tmp_path / "a", [0, 0], [0, 1], [1, 2])
    warnings = require_sensible_parts(learned, held_out)
    assert warnings == ['train shows "b", "c", but train does not.']
    held_out, learned = parts_of(tmp_path / "b", [255, 255], [0, 1], [1, 2])
    with pytest.raises(UserError, match="the only mask is ignored.*to measure"):
        require_sensible_parts(learned, held_out)
    with pytest.raises(UserError, match="the only mask is ignored.*to learn"):
        require_sensible_parts(held_out, learned)
    held_out, learned = parts_of(tmp_path / "c", [0, 0], [0, 0], [0, 0])
    with pytest.raises(UserError, match='every labelled pixel is "a"'):
        require_sensible_parts(learned, held_out)
