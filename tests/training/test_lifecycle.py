"""What a stage shows while it ends."""

import signal
from types import SimpleNamespace

import pytest

from diffseg_jax.display.console import Display
from diffseg_jax.training.lifecycle import Lifecycle
from diffseg_jax.training.log import Log
from diffseg_jax.training.signals import Stopped

pytestmark = pytest.mark.quick


def test_a_stage_that_is_stopped_shows_that_it_saves(tmp_path):
    display, shown = Display(ticking=False), []
    keep = lambda *arguments: shown.append([each.what for each in display.open])
    checkpoints = SimpleNamespace(save=keep, wait=keep)
    stage = Lifecycle("train", 100, checkpoints, Log(tmp_path, display=display))
    with display.progress("train", 100), pytest.raises(Stopped):
        stage.save(60, {}, {})
        stage.save(65, {}, {}, stop=signal.SIGINT)
    assert shown == [["train"], *[["train", "train: saves step 65"]] * 2]
