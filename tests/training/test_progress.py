"""Lines about a long phase, by a clock of the test."""

import pytest

from diffseg_jax.training.progress import REPORT_EVERY, Progress

pytestmark = pytest.mark.quick


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def lines_of(total, seconds, first=0.0):
    """What is said of a phase whose steps take `seconds` each, the first one `first` more."""
    lines, clock = [], Clock()
    progress = Progress(lines.append, "fit: features", total, clock)
    for index in range(total):
        clock.now += seconds + (first if index == 0 else 0.0)
        progress.add()
    return lines, progress


def test_a_short_phase_says_nothing():
    assert lines_of(10, REPORT_EVERY / 10)[0] == []


def test_a_long_phase_says_how_far_it_is_and_never_after_its_end():
    lines, progress = lines_of(10, 15.0)
    assert lines[0] == "fit: features 2/10   2 min 00 s left"
    assert len(lines) == 4  # of every second step, but the last one
    assert progress.seconds_each == 15


def test_compilation_in_the_first_part_does_not_change_the_rate():
    lines, progress = lines_of(3, 2.0, first=60.0)
    assert progress.seconds_each == 2
    assert lines == ["fit: features 2/3   2 s left"]
