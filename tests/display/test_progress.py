"""How far an activity is, as text, by a clock of the test."""

import pytest

from diffseg_jax.display.progress import COMPILES, Progress, fitted, rate_text

pytestmark = pytest.mark.quick


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def run(seconds, total, first=0.0, until=None, **options):
    """A progress whose parts took `seconds` each, the first one `first` more, and its clock."""
    clock = Clock()
    progress = Progress("fit: features", total, clock=clock, **options)
    for index in range(total if until is None else until):
        clock.now += seconds + (first if index == 0 else 0.0)
        progress.add()
    return progress, clock


def shown(progress, width):
    return "".join(text for text, _ in fitted(progress, width))


def test_compilation_in_the_first_part_changes_neither_the_rate_nor_the_time_left():
    for first in (0.0, 60.0):
        progress, _ = run(2.0, 10, first, until=4, unit="images")
        assert progress.seconds_each == 2 and progress.seconds_left == 12
        assert progress.line() == "fit: features 4/10   2.0 s each   12 s left"


def test_nothing_is_promised_before_a_part_without_compilation_is_done():
    progress, clock = run(5.0, 10, until=0, unit="images", first=0, **{})
    clock.now = 9
    assert progress.line() == "fit: features 0/10   9 s so far"
    progress.add()
    assert progress.seconds_left is None and progress.line() == "fit: features 1/10"


def test_time_left_runs_down_while_a_part_takes_its_time_and_stops_when_it_is_late():
    progress, clock = run(10.0, 10, until=5)
    clock.now += 4
    assert progress.seconds_left == 46
    clock.now += 60
    assert progress.seconds_left == 40  # of the four parts after this one
    progress.at(9)
    clock.now += 60
    assert progress.seconds_left is None  # nothing comes after the one that is late


def test_a_resumed_activity_counts_only_what_it_does_itself():
    clock = Clock()
    progress = Progress("train", 100, done=90, clock=clock)
    for _ in range(5):
        clock.now += 3
        progress.add()
    assert progress.seconds_left == 15


def test_rests_are_in_the_time_left_but_not_in_the_rate():
    progress, clock = run(1.0, 20, until=6, unit="images", each=8)
    clock.now += 5
    progress.rest(5)
    progress.add(5)
    assert progress.texts()["rate"] == "16.0 images/s"  # 80 images in 10 s less 5
    assert progress.seconds_left == 9
    progress.rest(60)  # as a checkpoint, before the next part is done
    assert progress.texts()["rate"] == "16.0 images/s"


def test_what_may_end_early_promises_no_more_than_a_bound():
    progress, _ = run(2.0, 10, until=4, at_most=True)
    assert progress.line() == "fit: features 4/10   at most 12 s left"


def test_what_compiles_is_said_until_the_first_part_is_done():
    clock = Clock()
    progress = Progress("images", 4, first=COMPILES, clock=clock)
    clock.now = 12
    line = "images 0/4   compiles once for each size, 12 s so far"
    assert progress.line() == line
    progress.add()
    assert COMPILES not in progress.line()


def test_an_activity_without_parts_shows_its_time():
    clock = Clock()
    progress = Progress("opens data", clock=clock)
    clock.now = 70
    assert progress.line() == "opens data   1 min 10 s so far"


def test_every_width_shows_what_and_how_many_and_never_more_columns():
    progress, clock = run(0.5, 1200, until=600, unit="images", each=8)
    progress.show(loss="0.1234", mIoU="0.4512")
    for width in range(30, 201):
        text = shown(progress, width)
        assert len(text) <= width
        assert text.startswith("fit: features") and "600/1,200" in text
    left, values = "5 min 00 s left", "loss 0.1234   mIoU 0.4512"
    bar = "━" * 20 + "─" * 20 + "    600/1,200  16.0 images/s"
    assert shown(progress, 200) == f"fit: features  {bar}  {values}  {left}"
    assert shown(progress, 79) == f"fit: features    600/1,200  {values}  {left}"
    assert shown(progress, 50) == f"fit: features    600/1,200  {left}"


def test_names_of_two_columns_a_character_are_cut_in_time():
    progress = Progress("写真" * 20, 10, clock=Clock())
    assert shown(progress, 30) == f"{'写真' * 5}写…  {' 0/10'}"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(12.34, "12.3 images/s"), (0.3, "3.3 s each"), (0.005, "3 min 20 s each")],
)
def test_slow_rates_are_the_time_of_one(rate, text):
    assert rate_text(rate, "images") == text


def test_a_part_that_compiles_for_another_size_changes_neither_the_rate_nor_the_time_left():
    progress, clock = run(2.0, 10, until=4, unit="images")
    progress.begins("48 x 64, compiling")
    clock.now += 30
    shown = "fit: features 4/10   2.0 s each   10 s left   48 x 64, compiling, 30 s so far"
    assert progress.line() == shown
    progress.add()
    for _ in range(2):
        clock.now += 2
        progress.add()
    assert progress.seconds_each == 2 and progress.seconds_left == 6


def test_the_time_left_passes_while_a_batch_of_parts_is_done():
    clock = Clock()
    with Progress("images", 120, clock=clock) as progress:
        for done in (16, 32):
            clock.now += 64
            progress.at(done)
        left = []
        for _ in range(4):
            left.append(progress.seconds_left)
            clock.now += 24
        assert left == [352, 328, 304, 288]


def test_a_narrow_terminal_shows_the_beginning_of_a_note():
    progress = Progress("images", 12, first=COMPILES, clock=Clock())
    assert shown(progress, 50) == "images   0/12  compiles once for each size, 0 s s…"
    assert shown(progress, 20) == "images   0/12"
