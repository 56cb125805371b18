"""Which calibrators come beside a checkpoint: those of the images by which its run is measured."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.devices.mesh import local_mesh
from diffseg_jax.display.progress import Progress
from diffseg_jax.experiment import stages
from diffseg_jax.experiment.plan import make_compiled_task
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.results import forward_of, keep_calibrator, progress_of, trace_steps
from diffseg_jax.inference.views import Protocol
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.task import Task

pytestmark = pytest.mark.quick

POINTS = np.array([0.0, 1.0])
CALIBRATOR = Calibrator(("entropy",), np.ones(1), np.zeros(2), POINTS, POINTS, {"images": 2})
META = {"step": 3, "config": {"evaluate": {}}, "arrays": {}, "ema": []}


class Log:
    """What was said last."""

    def say(self, line):
        self.last = line

    def close(self):
        pass


def evaluation_of(workdir, **changes):
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(Evaluation))
    own = dict(stage="train", workdir=workdir, log=Log(), recorded={}, own_images=True)
    return Evaluation(**(nothing | own | changes))


def test_other_images_write_no_calibrator(tmp_path):
    evaluation = evaluation_of(tmp_path, own_images=False)
    keep_calibrator(evaluation, CALIBRATOR, META, replace=False)
    assert not list(tmp_path.iterdir()) and "no calibrator of these images" in evaluation.log.last
    keep_calibrator(evaluation_of(tmp_path), CALIBRATOR, META, replace=False)
    assert [*tmp_path.glob("checkpoints/train/3/calibrator.json")]


def test_only_the_final_result_removes_a_calibrator(tmp_path):
    evaluation = evaluation_of(tmp_path)
    keep_calibrator(evaluation, CALIBRATOR, META, replace=True)
    for replace, left in ((False, 1), (True, 0), (True, 0)):
        keep_calibrator(evaluation, None, META, replace)
        assert len([*tmp_path.glob("checkpoints/train/3/calibrator.json")]) == left


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, True),
        ({"evaluate.images": 1}, True),
        ({"data.val": "train"}, False),
        ({"data.validation": {"source": "scenes", "options": {"images": 3}}}, False),
        ({"data.validation": {"source": "", "path": "", "options": {}}}, True),
    ],
    ids=str,
)
def test_an_evaluation_knows_whether_its_images_are_those_of_the_run(
    tiny_config, tmp_path, monkeypatch, changes, own
):
    meta = {**META, "config": as_json(tiny_config.to_dict())}
    with tiny_config.unlocked():
        for option, value in changes.items():
            group, _, name = option.partition(".")
            tiny_config[group][name] = value
    found = []
    target = SimpleNamespace(
        result_of=lambda evaluation, *_: found.append(evaluation.own_images) or {}, table=str
    )
    evaluation = evaluation_of(tmp_path, target=target)
    monkeypatch.setattr(stages, "evaluations_of_run", lambda *_: [evaluation])
    monkeypatch.setattr(stages, "open_network", lambda *_: ({}, meta))
    checkpoints = SimpleNamespace(chosen=lambda best: 3)
    monkeypatch.setattr(stages, "StageCheckpoints", lambda *_, **__: nullcontext(checkpoints))
    stages.evaluate_only(tiny_config, tmp_path)
    assert found == [own]


def test_the_time_of_an_image_leaves_out_what_the_only_batch_compiled():
    clock = SimpleNamespace(now=0.0)
    evaluation = evaluation_of(None, timed={})
    evaluation.log.progress = lambda what, total, **named: Progress(
        what, total, clock=lambda: clock.now
    )
    for seconds, expected in ((12.0, 3.0), (2.0, 0.5), (9.0, 0.5)):
        with progress_of(evaluation, np.arange(4), Protocol()) as progress:
            clock.now += seconds
            progress.at(4)
        assert evaluation.timed == {Protocol(): expected}
    with progress_of(evaluation, np.arange(8), Protocol()) as progress:
        for seconds in (2.0, 4.0):  # of several batches, the last ones tell
            clock.now += seconds
            progress.add(4)
    assert evaluation.timed == {Protocol(): 1.0}


def test_steps_come_from_the_program_of_the_predictions(tiny_config, tmp_path, monkeypatch):
    traced = []

    def maps(network, images, valid):
        traced.append(images.shape)
        values = images[..., 0]
        return {"probs": images / 255}, jnp.stack([values, 255 - values], 1)

    task = Task(
        init=None, meta={}, predict=lambda *given: maps(*given)[0], traced=maps,
        trace=lambda shown, images: shown.astype(jnp.int32),
    )  # fmt: skip
    system = SimpleNamespace(make_task=lambda *_: task)
    monkeypatch.setitem(SYSTEMS, tiny_config.system, system)
    mesh = local_mesh()
    evaluation = evaluation_of(
        tmp_path, task=make_compiled_task(tiny_config, "finetune", 3, mesh), mesh=mesh,
        batch_size=2, target=SimpleNamespace(step_maps=lambda steps, size: steps),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    examples = [{"image": image} for image in images]
    forward_of(evaluation, {})(images[:2], np.array([[4, 5]] * 2, np.int32))
    trace_steps(evaluation, {}, examples, Protocol())
    assert traced == [(2, 4, 5, 3)]
    for example, image in zip(examples, images, strict=True):
        np.testing.assert_array_equal(example["steps"], [image[..., 0], 255 - image[..., 0]])
