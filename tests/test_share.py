"""Model cards, and copies of a run in a folder; tests/storage/test_hub.py has those in the Hub."""

import errno
import json
import shutil

import chex
import numpy as np
import pytest
import yaml

from diffseg_jax import load, share
from diffseg_jax.errors import UserError
from diffseg_jax.inference import model_card, sharing
from diffseg_jax.inference.converted import save_values, without_folders
from diffseg_jax.inference.description import describe_checkpoint
from diffseg_jax.inference.model_card import CARD, MARK, PLACEHOLDER


@pytest.fixture
def run_copy(tiny_run, tmp_path):
    """A run that a test may change."""
    return shutil.copytree(tiny_run.workdir, tmp_path / "streets")


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_results_json_says(tiny_run):
    results = json.loads((tiny_run.workdir / "results.json").read_text())
    description = describe_checkpoint(tiny_run.workdir)
    card, found = model_card.model_card(description), results[description["stage"]]
    metrics = header_of(card)["model-index"][0]["results"][0]["metrics"]
    assert metrics[0]["value"] == round(found["mIoU"], 4)
    for name, ratio in found["IoU"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert row.split("|")[2].strip() == ("-" if ratio is None else f"{100 * ratio:.1f}")
    assert "license" not in header_of(card)
    licensed = model_card.model_card(description, licence="cc-by-4.0")
    assert header_of(licensed)["license"] == "cc-by-4.0"


def test_a_network_without_errors_has_no_auroc_in_its_card(tiny_run):
    description = describe_checkpoint(tiny_run.workdir)
    results = {**description["results"], "calibration": {"AUROC": None, "ECE": 0.0}}
    results.pop("calibrated", None)
    card = model_card.model_card({**description, "results": results})
    assert "Measured on" in card and "with an AUROC" not in card


def test_names_of_classes_and_folders_cannot_break_the_card(tiny_run):
    description = describe_checkpoint(tiny_run.workdir)
    first, *others = description["classes"]
    found = description["results"]
    for key in ("IoU", "Acc"):
        found[key] = {"a|b *c*": found[key][first], **{n: found[key][n] for n in others}}
    description["classes"] = ["a|b *c*", *others]
    description["trained_on"] |= {"source": "folder", "path": "/home/anna/secret/mine: 'x'\n---"}
    card = model_card.model_card(description)
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {4}
    assert header_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == "mine: 'x'\n---"
    assert "/home/anna" not in card


def test_a_training_leaves_its_card(tiny_run):
    card = (tiny_run.workdir / CARD).read_text()
    assert MARK in card and "--workdir=" in sharing.command_in(card)
    picture = card.partition("](pictures/")[2].partition(")")[0]
    assert (tiny_run.workdir / "pictures" / picture).exists()


def test_a_card_that_cannot_be_written_does_not_end_a_finished_run(run_copy, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharing, "write_card", full)
    with pytest.warns(UserWarning, match=r"README\.md cannot be written \(No space left.*saved"):
        sharing.keep_card(run_copy, "python -m diffseg_jax.main")


def test_a_copy_in_a_folder_is_all_that_load_needs(run_copy, tmp_path, capsys):
    to = tmp_path / "shared"
    share.main([f"--checkpoint={run_copy}", f"--to={to}"])
    said = capsys.readouterr().out
    assert "the card states no licence" in said and said.rstrip().endswith(f"copied to {to}")
    card = (to / CARD).read_text()
    assert PLACEHOLDER not in card and f'load("{to.name}")' in card and str(tmp_path) not in card
    assert {"config.json", "results.json"} <= (files := set(sharing.files_in(to)))
    assert any(name.startswith("pictures/") for name in files) and "--no-pictures" in said
    texts = [(to / CARD).read_text(), (to / "config.json").read_text()]
    texts += [file.read_text() for file in to.glob("*/meta/metadata")]
    assert len(texts) == 3 and not [text for text in texts if str(run_copy.parent) + "/str" in text]
    original, copy = load(run_copy), load(to)
    assert copy.names == original.names
    chex.assert_trees_all_equal(copy.network, original.network)
    with pytest.raises(SystemExit):
        share.main([f"--checkpoint={run_copy}", f"--to={to}"])
    assert "is not empty" in capsys.readouterr().err


def test_a_card_that_people_wrote_is_kept_and_a_dry_run_copies_nothing(run_copy, tmp_path, capsys):
    (run_copy / CARD).write_text("# Our streets")
    assert not model_card.write_card(run_copy, "other") and (run_copy / CARD).read_text()[0] == "#"
    share.main([f"--checkpoint={run_copy}", f"--to={tmp_path / 'new'}", "--dry_run"])
    said = capsys.readouterr().out
    assert "# Our streets" in said and "would be copied" in said
    assert not (tmp_path / "new").exists()


def test_notes_are_printed_before_others_can_see_the_copy(monkeypatch, capsys):
    monkeypatch.setattr(sharing, "prepare_copy", lambda *_, **options: None)
    monkeypatch.setattr(sharing, "copy_to", lambda *_: "it is online")
    share.main(["--checkpoint=any", "--to=hf://anna/streets", "--public"])
    assert "no licence" in capsys.readouterr().out.partition("it is online")[0]


def test_pictures_of_data_may_be_left_out(run_copy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    share.main([f"--checkpoint={run_copy}", "--to=anna/streets", "--no-pictures"])
    said = capsys.readouterr().out
    assert "show images of" not in said
    assert "--to=hf://anna/streets is a repository" in said
    files = sharing.files_in(tmp_path / "anna/streets")
    assert CARD in files and not [name for name in files if name.startswith("pictures/")]
    assert "pictures/" not in (tmp_path / "anna/streets" / CARD).read_text()


def test_parameters_that_were_not_evaluated_are_shared_without_results(run_copy, tmp_path):
    sharing.prepare_copy(run_copy, "hf://anna/streets", tmp_path / "new", ema="off")
    card, files = (tmp_path / "new" / CARD).read_text(), sharing.files_in(tmp_path / "new")
    assert "model-index" not in card and "## Results" not in card and "pictures/" not in card
    assert not [name for name in files if name.startswith(("pictures/", "results"))]


def test_pictures_of_a_stage_that_is_not_measured_are_those_of_its_last_step(tmp_path):
    run, shown = tmp_path / "run", "pictures/pretrain_000002.png"
    meta = {"stage": "pretrain", "config": {"system": "ddpm_seg"}, "task": {"kind": "pretrain"}}
    for step in (1, 2):
        values = {"params": {"w": np.float32([step])}, "stats": {}}
        save_values(run / "checkpoints/pretrain", values, {**meta, "step": step})
    others = '{"fit": {"step": 9}}'
    for file, content in {shown: "", CARD: "# Ours", "results.json": others}.items():
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(content)
    for step, files in ((None, {shown}), (2, {shown}), (1, set())):
        copy = tmp_path / f"copy {step}"
        sharing.prepare_copy(run, "hf://anna/streets", copy, stage="pretrain", step=step)
        found = {name for name in sharing.files_in(copy) if not name[0].isdecimal()}
        assert found == {CARD, "config.json", *files}
    assert not sharing._shows_last(run / "checkpoints/pretrain", ema="off")


@pytest.mark.parametrize(("given", "shared"), [
    ("/home/anna/photos", "photos"), ("~/photos", "photos"), ("../anna/photos", "photos"),
    ("dinov2=/home/anna/dinov2.pth", "dinov2=dinov2.pth"), ("a=b=../anna/c", "a=b=c"),
    ("mae=/a/mae.pth,swav=~/b/swav.pth", "mae=mae.pth,swav=swav.pth"),
    ("/home/anna/a=b/c", "c"), ("gs://bucket/a", "gs://bucket/a"), ("runs/a", "runs/a"), (3, 3),
])  # fmt: skip
def test_paths_lose_their_folders(given, shared):
    assert without_folders({"sources": (given,)}) == {"sources": (shared,)}


def test_the_shared_command_keeps_all_its_feature_sources():
    flag = "--config.features.sources=mae={}mae.pth,swav={}swav.pth"
    card = "## Training\n```bash\npython -m diffseg_jax.main {}\n```\n"
    written = card.format(flag.format("/home/a/", "../b/"))
    assert sharing.shared_command(written) == sharing.command_in(card.format(flag.format("", "")))


def test_wrong_targets_are_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Give --to=hf://anna/streets."):
        sharing.require_target("hf://anna/streets/a/b")
    with pytest.raises(UserError, match="is a file"):
        sharing.require_target(str(tmp_path / "file"))
    with pytest.raises(UserError, match="holds no checkpoint"):
        sharing.prepare_copy(str(tmp_path), "hf://anna/streets", tmp_path / "new")
