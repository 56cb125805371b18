"""What a stage without labels draws while it runs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from diffseg_jax.display.progress import Progress
from diffseg_jax.experiment import monitor
from diffseg_jax.systems import ddpm_sampling


def test_samples_count_their_reverse_steps(monkeypatch):
    shown, drawn = [], np.zeros((2, 8, 8, 3), np.uint8)

    def sample_images(step, process, params, *, progress, **options):
        assert len(list(progress(range(7)))) == 7
        return drawn

    def progress(what, **options):
        shown.append(Progress(what, **options))
        return shown[-1]

    monkeypatch.setattr(ddpm_sampling, "sample_images", sample_images)
    monkeypatch.setattr(monitor, "save_sheet", lambda *_: None)
    monkeypatch.setattr(monitor, "network_of", lambda state, ema: {"params": {}})
    draw = lambda network, seed, progress: ddpm_sampling.first_images(
        None, None, (8, 8), 0, 2, network, seed, progress
    )
    plan = SimpleNamespace(
        name="pretrain", seed=0, workdir=Path("run"), task=SimpleNamespace(sample=draw),
        options=SimpleNamespace(ema=()), log=SimpleNamespace(progress=progress, say=print),
    )  # fmt: skip
    monitor.make_monitor(plan)(None, 5)
    assert (shown[0].done, shown[0].total) == (7, 7)
