"""What a prediction takes: operations of all views, and one measurement for equal networks."""

import dataclasses

import jax
import numpy as np
import pytest

from diffseg_jax.devices.mesh import local_mesh
from diffseg_jax.experiment import prediction_cost
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.prediction_cost import cost_of_prediction
from diffseg_jax.inference.views import Protocol, View
from diffseg_jax.systems.task import Task

SIZE, CLASSES = (4, 6), 5
FLOP = 2 * 3 * CLASSES * 4 * 6  # of a network that multiplies every pixel by a matrix


@pytest.fixture(scope="module")
def network():
    """A matrix for the colours, and a bias."""
    return {"params": {"colours": np.ones((3, CLASSES), np.float32), "bias": np.ones(CLASSES)}}


@pytest.fixture(scope="module")
def predict():
    """Logits of pixels, each apart."""

    def logits(network, images, valid):
        params = network["params"]
        return {"logits": images.astype("float32") @ params["colours"] + params["bias"]}

    return jax.jit(logits)


@pytest.fixture
def evaluation(predict, tmp_path):
    """Of two images at a time; the first one of the source, of another size, is not validated."""
    unused = dict.fromkeys(field.name for field in dataclasses.fields(Evaluation))
    source = [{"image": np.zeros((*size, 3), np.uint8)} for size in ((9, 9), SIZE)]
    mine = dict(
        target=LABEL_TARGET, task=Task(init=None, meta={}, predict=predict), source=source,
        indices=np.array([1]), protocol=Protocol(), batch_size=2, mesh=local_mesh("cpu"),
    )  # fmt: skip
    return Evaluation(**(unused | mine))


@pytest.mark.parametrize(
    ("protocol", "times"),
    [
        (Protocol(), 1),
        (Protocol(flip=True), 2),
        (Protocol(scales=(1.0, 2.0)), 1 + 4),
        (Protocol(view=View.SLIDE, window=(4, 4), stride=(4, 2)), 2 * 4 / 6),  # overlapping ones
    ],
)
def test_operations_are_those_of_one_image_in_all_its_views(evaluation, network, protocol, times):
    found = cost_of_prediction(dataclasses.replace(evaluation, protocol=protocol), network)
    assert found["operations"] == {"float32": pytest.approx(times * FLOP)}
    assert found["parameters"] == 3 * CLASSES + CLASSES
    assert (found["image"], found["batch"]) == (list(SIZE), 2)


def test_equal_networks_share_one_measurement_and_others_have_their_own(
    evaluation, network, monkeypatch
):
    timed = []
    monkeypatch.setattr(
        prediction_cost, "milliseconds", lambda each, _: timed.append(each.batch_size) or 20.0
    )
    first = cost_of_prediction(evaluation, network)
    assert timed == [1, 2] and first["ms"] == 20 and first["images_per_second"] == 50
    other_values = jax.tree.map(lambda array: 2 * array, network)
    assert cost_of_prediction(evaluation, other_values, [first]) == first and len(timed) == 2
    mirrored = dataclasses.replace(evaluation, protocol=Protocol(flip=True))
    assert cost_of_prediction(mirrored, network, [first])["operations"] != first["operations"]
    assert len(timed) == 4


def test_the_cores_of_a_cpu_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert prediction_cost.name_of_devices(local_mesh("cpu")) == "3 CPU cores"
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)
    assert prediction_cost.name_of_devices(local_mesh("cpu")) == "1 CPU core"
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS
    assert prediction_cost.name_of_devices(local_mesh("cpu")) == "64 CPU cores"
