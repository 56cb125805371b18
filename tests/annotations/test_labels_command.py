import numpy as np
import pytest

from diffseg_jax import labels
from diffseg_jax.data.folder_source import open_folder
from diffseg_jax.errors import UserError
from label_cases import maps_of, write_maps, write_object, write_photo

BOX = [0, 0, 3, 0, 3, 4, 0, 4]


@pytest.fixture
def instances(tmp_path):
    """A JSON file of COCO, and a folder of images with one more."""
    write_photo(tmp_path / "photos" / "a.png")
    write_photo(tmp_path / "photos" / "b.png")
    return write_object(tmp_path / "instances.json", {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [BOX], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "road"}],
    })  # fmt: skip


def test_the_output_is_ready_for_training(tmp_path, instances, capsys):
    flags = ["--from=coco", f"--input={instances}", f"--images={tmp_path / 'photos'}"]
    labels.main([*flags, f"--output={tmp_path / 'mine'}", "--unlabelled=background"])
    said = capsys.readouterr().out
    assert "1 image of coco, written as masks" in said and "50.00%    1  road" in said
    assert "b.png" in said and "--mode=check" in said
    source = open_folder("train", path=str(tmp_path / "mine"))
    assert source.labels.names == ("background", "road")
    np.testing.assert_array_equal(source[0]["mask"], [[1, 1, 1, 0, 0, 0]] * 4)


def steps(tmp_path, capsys, maps, *flags):
    """What the command says at the end about label maps of images of these names."""
    folder, output = tmp_path / "in", str(tmp_path / "mine")
    write_maps(folder, dict.fromkeys(maps, np.zeros((4, 6), np.uint8)))
    labels.main([f"--input={folder}", f"--output={output}", *flags])
    lines = capsys.readouterr().out.splitlines()
    wanted = ("training reads", "note: training", "check them")
    return [line for line in lines if line.startswith(wanted)], output


def test_folders_that_training_takes_for_splits_are_told(tmp_path, capsys):
    (line,), output = steps(tmp_path, capsys, ["batch1/a.png", "batch2/b.png"])
    assert "images in images/batch1, images/batch2:" in line
    assert "--split=train" in line and line.endswith("--config.data.train=batch2")
    assert len(open_folder("batch2", path=output)) == 1
    with pytest.raises(UserError):
        open_folder("train", path=output)


@pytest.mark.parametrize("train, val", [("train2017", "val2017"), ("train", "valid")])
def test_folders_that_are_called_like_splits_are_named_as_those(tmp_path, capsys, train, val):
    (line,), output = steps(tmp_path, capsys, [f"{train}/a.png", f"{val}/b.png"])
    options = [] if train == "train" else [f"--config.data.train={train}"]
    given = [word for word in line.split() if word.partition("=")[0].endswith((".train", ".val"))]
    assert given == [*options, f"--config.data.val={val}"]
    assert ("--mode=check" in line) == (train == "train")
    with pytest.raises(UserError, match=f"Try --config.data.val={val}, or move"):
        open_folder("val", path=output)


def test_images_of_one_name_are_told_as_the_labels_write_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        steps(tmp_path, capsys, ["a.png", "images/a.png"])
    error = capsys.readouterr().err
    assert "images a.png and images/a.png" in error or "images images/a.png and a.png" in error


@pytest.mark.parametrize(
    "maps, flags, unread",
    [
        (["a.png", "batch/b.png"], [], 0),
        (["train/a.png", "val/b.png"], [], 0),
        (["batch1/a.png", "b.png"], ["--split=train"], 0),
        (["train/a.png", "train/b.png", "c.png"], [], 1),
    ],
)
def test_images_that_training_would_not_read_are_told(tmp_path, capsys, maps, flags, unread):
    lines, output = steps(tmp_path, capsys, maps, *flags)
    assert "--mode=check" in lines[-1] and len(lines) == 1 + unread
    assert not unread or "but not the images in images: move them" in lines[0]
    is_val = [name.startswith("val/") for name in maps]
    assert len(open_folder("train", path=output)) == len(maps) - unread - sum(is_val)


def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, instances, capsys):
    instances.write_text(instances.read_text().replace('"road"', '""'))
    with pytest.raises(SystemExit) as stopped:
        labels.main([f"--input={instances}", f"--output={tmp_path / 'mine'}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and "the name of a class" in error and error.count("\n") == 1
    assert not list((tmp_path / "mine").rglob("*"))


def test_help_names_all_formats(capsys):
    with pytest.raises(SystemExit):
        labels.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in labels.LABEL_FORMATS)


def test_a_path_that_is_not_there_is_said_with_the_nearest(
    tmp_path, instances, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        labels.main(["--input=instance.json", "--output=mine"])
    assert 'Did you mean "instances.json"' in capsys.readouterr().err


def test_what_is_in_the_output_stays_when_a_conversion_fails(tmp_path, instances, capsys):
    ids = np.zeros((4, 6), np.uint8)
    write_maps(tmp_path / "mine", {"a.png": ids})
    with pytest.raises(SystemExit):
        labels.main([f"--input={instances}", f"--output={tmp_path / 'mine'}"])
    assert "is there already" in capsys.readouterr().err
    assert maps_of(tmp_path / "mine") == {"a.png": ids.tolist()}


@pytest.mark.parametrize("flags", [["--ignore=rode"], ["--classes=x,y"]])
def test_a_refused_command_leaves_no_empty_folder(tmp_path, instances, capsys, flags):
    with pytest.raises(SystemExit):
        labels.main([f"--input={instances}", f"--output={tmp_path / 'new' / 'mine'}", *flags])
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "new").exists()


@pytest.mark.parametrize("inside", ["", "masks/more"])
def test_labels_are_not_written_into_those_that_are_read(tmp_path, capsys, inside):
    write_maps(tmp_path / "mine", {"a.png": np.zeros((4, 6), np.uint8)})
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "mine" / inside
    with pytest.raises(SystemExit):
        labels.main(["--to=labelme", f"--input={tmp_path / 'mine'}", f"--output={output}"])
    assert f"--output={output} lies in --input" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
