"""What a continued run does, and how it takes the place of the old one, wherever it is killed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg
from diffseg_jax import main
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import more_labels
from diffseg_jax.storage import workdir
from diffseg_jax.storage.workdir import as_json

pytestmark = pytest.mark.quick


def test_stages_go_on_from_their_checkpoint_or_start_again_from_another_labelled_stage():
    config = tiny_ddp.get_config()
    config.new_head = True
    further = more_labels.continued_config(config, Path("runs/a"), ["train", "align"])
    train, align = further.stages.train, further.stages.align
    assert further.run == ("train", "align") and not further.new_head and config.new_head
    assert (train.start, train.steps) == ("runs/a/checkpoints/train", 2)
    assert train.optim.peak_lr == config.stages.train.optim.peak_lr / 2
    assert train.optim.warmup_steps == 0 and config.stages.train.steps == 8
    assert align.to_dict() == config.stages.align.to_dict()
    further = more_labels.continued_config(tiny_ddep.get_config(), Path("runs/a"), ["finetune"])
    assert further.stages.finetune.start == "runs/a/checkpoints/finetune"
    further = more_labels.continued_config(tiny_ddpm_seg.get_config(), Path("runs/a"), ["fit"])
    assert further.stages.fit.start == "runs/a/checkpoints/pretrain"


def write(root, **files):
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def files_in(root):
    return {str(f.relative_to(root)): f.read_text() for f in root.rglob("*") if f.is_file()}


OLD = {
    "checkpoints/train/8": "old", "checkpoints/pretrain/9": "old", "results.json": "old",
    "config.json": "old", "folds/fit/0.npz": "old", "results_eval.json": "old",
    "corruptions.csv": "old", "image_counts_train_eval.npz": "old", "image_counts_train.npz": "old",
    "corruption_counts/fog_1.npz": "old",
}  # fmt: skip
NEW = {"checkpoints/train/2": "new", "results.json": "new", "folds/fit/0.npz": "new"}
AFTER = {
    "checkpoints/train/2": "new", "checkpoints/pretrain/9": "old", "results.json": "new",
    "folds/fit/0.npz": "new", "before_1/results_eval.json": "old",
    "before_1/corruption_counts/fog_1.npz": "old",
    "before_1/corruptions.csv": "old", "before_1/image_counts_train_eval.npz": "old",
    "image_counts_train.npz": "old",
    "before_1/checkpoints/train/8": "old", "before_1/results.json": "old",
    "before_1/folds/fit/0.npz": "old", "before_1/config.json": "old",
}  # fmt: skip


@pytest.mark.parametrize("killed_at", range(12))
def test_a_new_run_takes_the_place_of_the_old_one_wherever_it_is_killed(
    tmp_path, monkeypatch, killed_at
):  # fmt: skip
    write(tmp_path, **OLD)
    new = {"config.json": "new", "metrics.jsonl": json.dumps({"stage": "train"}), **NEW}
    write(tmp_path / "continued", **new)
    write(tmp_path, **{"metrics.jsonl": json.dumps({"stage": "pretrain"}) + "\n"})
    config = tiny_ddp.get_config()
    assert more_labels._announce_move(config, tmp_path) == tmp_path / "before_1"
    rename, left = Path.rename, [killed_at]

    def killed(path, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        more_labels._move(tmp_path)
    monkeypatch.undo()
    more_labels._move(tmp_path)
    found = files_in(tmp_path)
    assert AFTER.items() <= found.items()
    assert json.loads(found["config.json"]) == as_json(config.to_dict())
    stages = [json.loads(line)["stage"] for line in found["metrics.jsonl"].splitlines()]
    assert stages == ["pretrain", "train"] and not (tmp_path / "continued").exists()
    more_labels._move(tmp_path)
    assert files_in(tmp_path) == found


def test_the_config_of_the_old_run_outlives_a_kill_after_the_new_one_is_written(
    tmp_path, monkeypatch
):
    write(tmp_path, **{"config.json": "old", "continued__results.json": "new"})
    more_labels._announce_move(tiny_ddp.get_config(), tmp_path)

    def written(*arguments):
        workdir.write_json(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(more_labels, "write_json", written)
    with pytest.raises(KeyboardInterrupt):
        more_labels._move(tmp_path)
    monkeypatch.undo()
    more_labels._move(tmp_path)
    assert (tmp_path / "before_1/config.json").read_text() == "old"


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """(workdir, run): of a run that held out a fold; run(minutes, **options of data) goes on.

    Its stage is not trained: run returns the config of that, and what is said.
    """
    config, said, further = tiny_ddp.get_config(), [], []
    with config.unlocked():
        config.data.update(val="", folds=5)
    write(tmp_path, **{"config.json": json.dumps(as_json(config.to_dict()))})
    write(tmp_path, **{"results.json": json.dumps({"train": RESULT}), "checkpoints__train__8": ""})
    stage = SimpleNamespace(
        name="train", evaluation=True, start="weights", options=config.stages.train,
        indices=range(20), task=SimpleNamespace(fit=None),
    )  # fmt: skip
    log = SimpleNamespace(say=said.append, close=lambda: None, display=None)

    def train(config, workdir, *_):
        further.append(config)
        of = {**RESULT, "mIoU": 0.9, "images": 20, "measured_on": {"held_out": False}}
        write(workdir, **{"results.json": json.dumps({"train": of}), "checkpoints__train__2": ""})

    monkeypatch.setattr(workdir, "has_checkpoints", lambda folder: True)
    for name, stub in {
        "make_plan": lambda *_: SimpleNamespace(stages=(stage,), log=log), "train": train,
        "_ended": lambda stage: True, "changes_since": lambda stage: ["4 files added"],
    }.items():  # fmt: skip
        monkeypatch.setattr(more_labels, name, stub)

    def run(minutes=None, **options):
        with config.unlocked():
            config.data.update(options)
        more_labels.continue_run(config, tmp_path, minutes)
        return (further or [None])[-1], "\n".join(said)

    return tmp_path, run


RESULT = {"mIoU": 0.5, "images": 4, "IoU": {"a": 0.5}, "measured_on": {"held_out": True}}


def test_a_network_learns_at_last_from_the_images_that_were_held_out(finished):
    folder, run = finished
    further, said = run(val="train", folds=0)
    assert (further.data.val, further.stages.train.steps) == ("train", 2)
    assert "train: mIoU 50.00 -> 90.00 (of 4 and 20 images" in said
    assert "no image was held out, so the new numbers are of images that it has learned" in said
    assert json.loads((folder / "before_1/results.json").read_text()) == {"train": RESULT}
    assert json.loads((folder / "config.json").read_text())["data"]["val"] == "train"
    assert run(val="")[0].data.val == ""  # once there are more labels


def test_a_run_that_has_learned_from_all_labels_says_so_and_ends(finished, monkeypatch):
    folder, run = finished
    monkeypatch.setattr(more_labels, "changes_since", lambda stage: [])
    before = files_in(folder)
    assert run(val="train", folds=0) == (
        None, "--continue: the run has learned from all labelled images already; its numbers are "
        f"in {folder / 'results.json'}",
    )  # fmt: skip
    assert files_in(folder) == before


def test_images_that_were_learned_from_are_not_held_out_by_another_fold(finished):
    _, run = finished
    with pytest.raises(UserError, match=r"data.fold: \(absent\) -> 2"):
        run(fold=2, val="train")


def test_steps_are_announced_only_if_they_will_be_made(finished):
    _, run = finished
    images = "on 20 labelled images"
    assert f"train: goes on from its checkpoint, 2 steps, {images}" in run()[1]
    assert f"checkpoint, as long as the minutes allow (recipe: 2 steps), {images}" in run(10)[1]


def test_a_bucket_is_refused_before_anything_is_trained():
    with pytest.raises(UserError, match="cannot be done in a bucket"):
        more_labels.continue_run(tiny_ddp.get_config(), epath.Path("gs://a/runs"))


def test_the_flag_is_of_training_alone():
    with pytest.raises(UserError, match="--mode is eval. Leave out one"):
        main.run(["--continue", "--mode=eval", "--config=a.py", "--workdir=a"])
    with pytest.raises(UserError, match="--changed_data=refuse forbids"):
        main.run(["--continue", "--changed_data=refuse", "--config=a.py", "--workdir=a"])
