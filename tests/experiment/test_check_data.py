"""--mode=check reports good and bad folders."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stages
from diffseg_jax.experiment.check_data import changed_sheet, check_data
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.labelled_images import open_data
from diffseg_jax.storage.workdir import claim_workdir

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path):
    """A labelled folder with four images of two classes: 20 x 30, the last one 10 x 30."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for i in range(4):
            shape = (10 if i == 3 else 20, 30)
            mask = np.zeros(shape, np.uint8)
            mask[:, :10], mask[:, 10:15] = 1, 255
            image = Image.fromarray(np.full((*shape, 3), 50 * i, np.uint8))
            image.save(root / f"images/{split}/p{i}.png")
            Image.fromarray(mask).save(root / f"masks/{split}/p{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "sky"]}))
    return root


@pytest.fixture
def config(tiny_config, folder):
    """The tiny config on that folder."""
    with tiny_config.unlocked():
        tiny_config.data.source, tiny_config.data.path = "folder", str(folder)
        tiny_config.unlabelled.source, tiny_config.unlabelled.path = "unlabelled", str(folder)
        tiny_config.data.options = tiny_config.unlabelled.options = {}
        tiny_config.data.count = 0
    return tiny_config


def test_counts_sizes_shares_and_notes_are_printed(config, tmp_path, capsys):
    config.stages.pretrain.start = "weights"  # which pretrain=dep does not read
    check_data(config, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("note: pretrain: start=weights is given but not read")
    assert lines[-1].startswith("finished; training can start")
    assert lines[0] == "train: 4 images of folder, split train"
    assert "20 x 30 (3), 10 x 30 (1)" in lines[1]
    shares = [line.split() for line in lines if line.split()[0] in ("0", "1", "255")]
    assert shares[:3] == [
        ["0", "ground", "50.00%", "4"],
        ["1", "sky", "33.33%", "4"],
        ["255", "ignored", "16.67%", "4"],
    ]
    for name in ("train", "val", "unlabelled"):
        with Image.open(tmp_path / "run" / f"check_{name}.png") as sheet:
            assert min(sheet.size) > 10


def test_training_images_are_shown_as_their_stage_changes_them(config, folder):
    source, augment = open_data(config, "data", "train"), config.stages.finetune.augment
    plain, again = (changed_sheet(source, augment, LABEL_TARGET, seed=0) for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    turned = changed_sheet(source, {**augment, "rotate": 90.0}, LABEL_TARGET, seed=0)
    assert turned.shape == plain.shape and (turned != plain).any()


def test_images_much_smaller_than_most_are_named(config, folder, tmp_path, capsys):
    Image.new("RGB", (30, 2)).save(folder / "images/val/p3.png")
    Image.new("L", (30, 2)).save(folder / "masks/val/p3.png")
    check_data(config, tmp_path / "run")
    assert re.findall("note: .* than most.*", capsys.readouterr().out) == [
        "note: 1 image much smaller than most: p3"
    ]


def test_all_bad_files_are_named_and_the_others_are_shown(config, folder, tmp_path, capsys):
    (folder / "images/train/p1.png").write_bytes(b"not an image")
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(folder / "masks/val/p2.png")
    first = r"3 examples cannot be used: .*p1\.png.* The lines above name the others\."
    with pytest.raises(UserError, match=first):  # p1 is also unlabelled
        check_data(config, tmp_path / "run")
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  bad:")]
    assert len(bad) == 3
    assert "p1.png" in bad[0] and "p2.png has class id 7" in bad[1]
    assert (tmp_path / "run/check_train.png").exists()


def test_problems_of_one_kind_take_one_line(config, folder, tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), (i, 90, 9), np.uint8)).save(
            folder / f"masks/train/p{i}.png"
        )
    with pytest.raises(UserError, match="3 examples cannot be used"):
        check_data(config, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    (bad,) = (k for k, line in enumerate(lines) if line.startswith("  bad:"))
    assert "p0.png holds colours" in lines[bad]
    assert lines[bad + 1].strip() == "and 2 others like it: p1, p2"


def test_labels_are_judged_as_training_judges_them(config, folder, tmp_path, capsys):
    """Only images whose labels are used count; certain mistakes are errors, others warnings."""
    for i in range(4):
        mask = np.full((10 if i == 3 else 20, 30), 1, np.uint8)
        mask[:, :20] = 0 if i else 1
        Image.fromarray(mask).save(folder / f"masks/val/p{i}.png")
    (folder / "classes.json").write_text(json.dumps({"names": ["ground", "sky", "never"]}))
    check_data(config, tmp_path / "run")
    assert capsys.readouterr().out.count('warning: no mask shows "never".') == 1
    Image.fromarray(np.full((20, 30), 1, np.uint8)).save(folder / "masks/train/p0.png")
    (tmp_path / "list.txt").write_text("p0.png\n")
    config.data.list_path = str(tmp_path / "list.txt")
    with pytest.raises(UserError, match='train: every labelled pixel is "sky"'):
        check_data(config, tmp_path / "run")
    assert "warning" not in capsys.readouterr().out
    config.data.fraction = 0.5
    with pytest.raises(UserError, match="only one of them can choose the subset"):
        check_data(config, tmp_path / "run")


def change_of_workdir(config, workdir):
    claim_workdir(config, workdir)
    (workdir / "checkpoints/finetune/8").mkdir(parents=True)
    config.seed += 1


REFUSED = {  # part of what training says -> what makes it say so
    "augment.crop is (64, 128), but the images are 20 x 30": lambda config, workdir: (
        config.stages.finetune.augment.update(crop=(64, 128))
    ),
    'unknown optimizer "adamm"': lambda config, workdir: (
        config.stages.finetune.optim.update(name="adamm")
    ),
    "there is no directory nowhere/at/all": lambda config, workdir: (
        config.stages.finetune.update(start="nowhere/at/all")
    ),
    "holds a run of another config": change_of_workdir,
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_training_refuses_is_found(config, tmp_path, sentence, capsys):
    REFUSED[sentence](config, tmp_path / "run")
    errors = []
    for command in (check_data, stages.train):
        with pytest.raises(UserError, match=re.escape(sentence)) as error:
            command(config, tmp_path / "run")
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert "  contact sheet" in capsys.readouterr().out  # the data were checked all the same


def test_what_is_wrong_with_the_data_is_said_once(config, folder, tmp_path):
    config.data.path = str(folder / "no")
    with pytest.raises(UserError) as error:
        check_data(config, tmp_path / "run")
    assert str(error.value).count("is not a folder") == 2  # of train and of val


def test_a_folder_without_a_good_file_has_no_sheet(config, folder, tmp_path, capsys):
    for i in range(4):
        (folder / f"images/val/p{i}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="cannot be used"):
        check_data(config, tmp_path / "run")
    assert not (tmp_path / "run/check_val.png").exists()


def test_masks_without_an_image_are_noted(config, folder, tmp_path, capsys):
    (folder / "images/val/p0.png").unlink()
    check_data(config, tmp_path / "run")
    note = next(line for line in capsys.readouterr().out.splitlines() if "  note:" in line)
    assert "have no image; the first is p0.png" in note


def test_a_missing_folder_does_not_hide_the_others(config, folder, tmp_path, capsys):
    config.data.val = "test"
    with pytest.raises(UserError, match="val: .*test is not a folder"):
        check_data(config, tmp_path / "run")
    assert "train: 4 images" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "check_train.png", "check_unlabelled.png",
    }  # fmt: skip


def test_nothing_to_open_leaves_no_workdir(config, tmp_path):
    config.data.path = config.unlabelled.path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        check_data(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_images_of_each_fold_are_printed_without_val(config, folder, tmp_path, capsys):
    for part in ("images", "masks"):
        shutil.rmtree(folder / part / "val")
    check_data(config, tmp_path / "run")
    said = capsys.readouterr().out
    folds = re.findall(r"  fold (\d) of 4, 1 image: (p\d)", said)
    assert len(folds) == 4 and {name for _, name in folds} == {"p0", "p1", "p2", "p3"}
    assert f"(fold 0 of 4: {folds[0][1]})" in said and "check_val" not in said


def test_labels_of_another_tool_are_named_with_the_command(config, folder, tmp_path):
    """In the check and at the start of training, once, for labels and for masks that are no ids."""
    shutil.rmtree(folder / "masks")
    (folder / "annotations.xml").write_text("<annotations></annotations>")
    command = f"python -m diffseg_jax.labels --from=cvat --to=masks --input={folder} "
    command += f"--images={folder}/images --output={folder}_masks"
    for start in (check_data, stages.train):
        with pytest.raises(UserError) as error:
            start(config, tmp_path / "run")
        assert str(error.value).count(command) == 1


@pytest.mark.parametrize("value", [255, (9, 0, 0)])
def test_masks_that_are_no_ids_are_named_with_the_command(config, folder, tmp_path, value):
    for file in (folder / "masks").rglob("*.png"):
        mask = np.zeros((20 - 10 * file.stem.endswith("3"), 30, *np.shape(value)), np.uint8)
        mask[:, :9] = value
        Image.fromarray(mask).save(file)
    name = "binary" if value == 255 else "colours"
    for start in (check_data, stages.train):
        with pytest.raises(UserError) as error:
            start(config, tmp_path / "run")
        assert str(error.value).count(f"diffseg_jax.labels --from={name} ") == 1
