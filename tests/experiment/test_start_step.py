"""A stage starts from the best checkpoint of an evaluated stage, or from the one that is named."""

import re
import shutil

import numpy as np
import pytest

from configs import tiny_ddep, tiny_ddp
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.experiment.start_step import open_start, step_to_start_from
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.systems.system import split_start

SCORES = {10: 0.1, 20: 0.7, 30: 0.4, 40: None, 50: 0.6}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder of two stages, "evaluated" with SCORES and "plain" without."""
    folder = tmp_path_factory.mktemp("run")
    for name, scores in (("evaluated", SCORES), ("plain", dict.fromkeys(SCORES))):
        with StageCheckpoints(folder / name) as checkpoints:
            for step, score in scores.items():
                state = {"params": {"kernel": np.full(2, step, np.float32)}, "stats": {}}
                numbers = None if score is None else {"mIoU": score}
                checkpoints.save(step, state, {"step": step, "ema": []}, numbers)
    return folder


@pytest.mark.parametrize(
    ("stage", "which", "step"),
    [
        ("evaluated", "", 20), ("evaluated", "best", 20), ("evaluated", "last", 50),
        ("evaluated", "40", 40), ("plain", "", 50), ("plain", "last", 50), ("plain", "40", 40),
    ],
)  # fmt: skip
def test_the_step_is_the_best_unless_another_is_named(stages, stage, which, step):
    logged = []
    network, meta = open_start(stages / stage, which, logged.append)
    assert meta["step"] == step and network["params"]["kernel"][0] == step
    assert f"starts from step {step} of {stages / stage}" in logged[0]


def test_the_error_for_a_missing_step_lists_the_saved_ones(stages):
    with pytest.raises(UserError, match=r"holds the steps 20, 40, 50. Try @50"):
        step_to_start_from(stages / "evaluated", "30")
    with pytest.raises(UserError, match=r"was not evaluated while .* Try @last"):
        step_to_start_from(stages / "plain", "best")


def test_a_damaged_best_checkpoint_is_named(stages, tmp_path):
    """A start that names it ends with advice that works; another one says which one is taken."""
    shutil.copytree(stages / "evaluated", tmp_path / "a")
    (tmp_path / "a/20/meta/metadata").write_text("{")
    logged = []
    for which in ("best", "20"):
        with pytest.raises(UserError, match=rf"names @{which}, but .*a/20 is damaged .*Try @last"):
            open_start(tmp_path / "a", which, logged.append)
    assert open_start(tmp_path / "a", "last", logged.append)[1]["step"] == 50
    assert open_start(tmp_path / "a", "", logged.append)[1]["step"] == 50
    assert re.search(r"starts from step 50 of .*, as checkpoint .*a/20 is damaged", logged[-1])
    (tmp_path / "a/50/meta/metadata").write_text("{")
    with pytest.warns(match="takes step 40"), pytest.raises(UserError, match="Try @40"):
        open_start(tmp_path / "a", "best", logged.append)


def test_a_step_is_split_from_names_and_paths(tmp_path):
    assert split_start("train") == ("train", "")
    assert split_start("train@1200") == ("train", "1200")
    assert split_start("gs://b/r/checkpoints/train@last") == ("gs://b/r/checkpoints/train", "last")
    assert split_start("me@home/train") == ("me@home/train", "")
    (tmp_path / "a@best").mkdir()
    assert split_start(f"{tmp_path}/a@best") == (f"{tmp_path}/a@best", "")


STARTS = {  # start of a stage -> part of the error, whose advice holds
    ("align", "train@6"): "train@6, but train, .* Try .*train@best or .*train@last",
    ("align", "train@bst"): 'unknown start "train@bst".*After @: best, last or a step',
    ("train", "weights@best"): "weights has no checkpoints to choose",
}


@pytest.mark.parametrize(("stage", "start"), STARTS)
def test_a_start_that_cannot_be_is_refused_before_anything_runs(tmp_path, stage, start):
    config = tiny_ddp.get_config()
    config.stages[stage].start = start
    config.run = ("train", "align")
    with pytest.raises(UserError, match=STARTS[stage, start]):
        make_plan(config, tmp_path)


@pytest.mark.parametrize("start", ["train", "train@best", "train@last", "train@8"])
def test_a_stage_of_the_run_may_be_named_with_a_step(tmp_path, start):
    config = tiny_ddp.get_config()
    config.stages.align.start, config.run = start, ("train", "align")
    stage = make_plan(config, tmp_path).stages[1]
    assert stage.start == stage.meta["start"] == start


def test_a_stage_that_is_not_evaluated_has_no_best(tmp_path):
    config = tiny_ddep.get_config()
    config.stages.finetune.start = "pretrain@best"
    with pytest.raises(UserError, match="pretrain is not evaluated .* Try .*start=pretrain@last"):
        make_plan(config, tmp_path)
