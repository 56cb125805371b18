"""What a damaged file of a workdir leads to: a sentence that names it, or its good lines."""

import json
from pathlib import Path

import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.experiment.changed_data import LISTED_IN, listed_in
from diffseg_jax.experiment.prepare_data import PREPARED_FILE, add_shards
from diffseg_jax.inference.summary import Summary
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.integrity import Damaged, with_digest
from diffseg_jax.storage.workdir import as_json, claim_workdir, read_results, saved_config
from diffseg_jax.training import log as training_log
from diffseg_jax.training.log import Log

pytestmark = pytest.mark.quick

DAMAGED = {
    "empty": b"", "cut": b'{"train": {"mIoU"', "zeros": bytes(100), "not text": b"\xff\xfe\x80",
    "list": b"[]", "text": b'"train"', "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_every_reader_of_json_names_a_damaged_file(tmp_path, damage):
    read = {
        "results.json": lambda: read_results(tmp_path),
        "config.json": lambda: saved_config(tmp_path),
        "summary.json": lambda: Summary(tmp_path, {"version": "1"}),
        PREPARED_FILE: lambda: add_shards({}, tmp_path),
    }
    for name, reader in read.items():
        (tmp_path / name).write_bytes(DAMAGED[damage])
        with pytest.raises(UserError, match=rf"{tmp_path}/{name}"):
            reader()
    (tmp_path / LISTED_IN).write_bytes(DAMAGED[damage])
    assert listed_in(tmp_path) == {}


@pytest.mark.parametrize("content", [*DAMAGED.values(), b'{"mIoT": 0.1}', b'{"mIoU": "0.1"}'])
def test_metrics_that_hold_no_number_are_damage(tmp_path, content):
    (tmp_path / "3/metrics").mkdir(parents=True)
    (tmp_path / "3/metrics/metrics").write_bytes(content)
    with pytest.raises(Damaged, match=f"checkpoint {tmp_path}/3 is damaged"):
        StageCheckpoints(tmp_path, read_only=True)


def test_results_of_no_stage_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"train": 0.5}')
    with pytest.raises(UserError, match=r"results\.json cannot be read .* Remove it, and give"):
        read_results(tmp_path)


def test_a_summary_drops_entries_that_are_none(tmp_path):
    entries = {"a": {"file": "a.png", "stamp": [1, 2]}, "b": {"file": "b.png"}}
    (tmp_path / "summary.json").write_text(json.dumps({"version": "1", "pictures": entries}))
    assert list(Summary(tmp_path, {"version": "1"}).content["pictures"]) == ["a"]


def test_checkpoints_without_config_json_tell_their_config(tiny_config, tmp_path):
    folder, file = tmp_path / "checkpoints/pretrain/3/meta", tmp_path / "config.json"
    folder.mkdir(parents=True)
    meta = with_digest({"arrays": {}, "config": as_json(tiny_config.to_dict())})
    (folder / "metadata").write_text(json.dumps(meta))
    tiny_config.mesh.fsdp = 2  # the devices may change
    claim_workdir(tiny_config, tmp_path)
    assert json.loads(file.read_text())["mesh"]["fsdp"] == 2
    file.unlink()
    tiny_config.seed += 1
    with pytest.raises(UserError, match="holds a run of another config; .*\n  seed: "):
        claim_workdir(tiny_config, tmp_path)
    (folder / "metadata").write_text("{")
    with pytest.raises(UserError, match="config.json is missing, so it is unknown which"):
        claim_workdir(tiny_config, tmp_path)
    assert not file.exists()


def test_a_log_in_a_bucket_copies_what_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "EVENT_BYTES", 100)
    log, copied = Log(tmp_path / "here"), []
    log.bucket = tmp_path / "bucket"
    log.rewind("train", 0)

    def write(path, content, real=Path.write_bytes):
        copied.append(path.name)
        return real(path, content)

    monkeypatch.setattr(type(tmp_path), "write_bytes", write)
    for step in range(8):
        log.write("train", step, {"loss": 1.0})
        log.flush()
        log.flush()
    log.close()
    assert copied.count("metrics.jsonl") == 8
    events = [name for name in copied if "tfevents" in name]
    assert len(set(events)) >= 3 and len(events) < 8 + len(set(events))  # a full one once more
    for name in events:
        here, there = (f / "tensorboard/train" / name for f in (tmp_path / "here", log.bucket))
        assert here.read_bytes() == there.read_bytes()


def test_a_resumed_log_drops_damaged_lines(tmp_path):
    good = b'{"stage": "train", "step": 1}'
    bad = [*DAMAGED.values(), b'{"step": 1}', b'{"stage": "train", "step": "1"}', b"3"]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good, *bad, good]))
    log = Log(tmp_path)
    log.rewind("train", 2)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (good + b"\n") * 2
