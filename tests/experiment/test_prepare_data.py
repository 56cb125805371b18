"""--mode=prepare: its folders are read back bit for bit, also after interruptions."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from depth_files import make_depth_folder
from diffseg_jax.data.fingerprint import fingerprint
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.sources import CroppedSquares, open_source
from diffseg_jax.data.subsets import subset
from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import prepare_data

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


def save(file, array, mode=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, array)
    else:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(file)


def random_image(height=12, width=14):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def labelled(root, splits=("train", "val"), count=5):
    """A labelled folder with image and mask files of several formats and modes."""
    endings = (("jpg", None), ("png", None), ("png", "RGBA"), ("bmp", None), ("png", "P"))
    for split in splits:
        for i in range(count):
            ending, mode = endings[i % len(endings)]
            mask = RNG.integers(0, 4, (12 + i, 14)).astype(np.uint8)
            mask[0] = 255
            save(root / f"images/{split}/town/p{i:02d}.{ending}", random_image(12 + i), mode)
            mask_ending = ".npy" if i == 1 else ".png"
            stored = np.where(mask == 255, -1, mask.astype(np.int32)) if i == 1 else mask
            save(root / f"masks/{split}/town/p{i:02d}{mask_ending}", stored)
    entries = {"names": ["a", "b", "c", "d"], "palette": [[k, 2 * k, 9] for k in range(4)]}
    (root / "classes.json").write_text(json.dumps(entries | {"ignore": [0]}))


@pytest.fixture
def config(tiny_config, tmp_path):
    """The tiny config on a labelled folder, with two ignored ids."""
    labelled(tmp_path / "mine")
    use(tiny_config, "data", "folder", tmp_path / "mine", ignore=(2, 2))
    use(tiny_config, "unlabelled", "unlabelled", tmp_path / "mine")
    return tiny_config


def use(config, part, source, path="", **options):
    with config.unlocked():
        config[part].source, config[part].path, config[part].options = source, str(path), options


def opened(config, part, folder):
    """(original, prepared) source of each split of a part, from the same options."""
    splits = (config.data.train, config.data.val) if part == "data" else (config.unlabelled.split,)
    options = config[part].options.to_dict()
    for split in splits:
        yield tuple(
            open_source(source, split, path=config[part].path, **options)
            for source in (config[part].source, f"tfds:{folder}/{part}")
        )


def assert_same(one, other):
    assert one.names == other.names and one.labels == other.labels and len(one) == len(other)
    assert one.classes == other.classes
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"name"}:
            assert left[key].dtype == right[key].dtype
            np.testing.assert_array_equal(left[key], right[key])


def files(folder):
    """{file: (contents, inode)} of a prepared folder; a rewritten file has another inode."""
    return {
        file.name: (file.read_bytes(), file.stat().st_ino)
        for file in folder.iterdir()
        if file.is_file()
    }


def contents(folder):
    return {name: content for name, (content, _) in files(folder).items()}


def test_a_folder_is_read_back_bit_for_bit(config, tmp_path):
    prepare_data.prepare(config, tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    for part in ("data", "unlabelled"):
        for one, other in opened(config, part, tmp_path / "elsewhere"):
            assert_same(one, other)
            np.testing.assert_array_equal(*(subset(s.names, fraction=0.5) for s in (one, other)))
    assert one.names[0] == "town/p00.jpg" and one.labels is None
    original, other = next(opened(config, "data", tmp_path / "elsewhere"))
    assert other.labels.unscored == (0, 2) and other.labels.palette[1] == (1, 2, 9)
    assert original.names[0] == "town/p00"
    half = open_source(f"tfds:{tmp_path}/elsewhere/data", "train[40%:]")
    assert half.names == original.names[2:]
    np.testing.assert_array_equal(half[0]["image"], original[2]["image"])
    shards = {file.name for file in (tmp_path / "elsewhere/data").glob("data-train.*")}
    found = fingerprint(open_source(f"tfds:{tmp_path}/elsewhere/data", "train"), np.arange(5))
    assert found["files"].keys() == shards and all(found["files"].values()) and found["ids"]
    assert "tensorflow" not in sys.modules


def test_jpeg_and_rgb_png_files_are_stored_unchanged(config, tmp_path):
    prepare_data.prepare(config, tmp_path / "run")
    original, other = next(opened(config, "data", tmp_path / "run"))
    for index, unchanged in enumerate((True, True, False, False, False)):
        stored = other.example(index)["image"]
        assert (stored == Path(original.images[index]).read_bytes()) == unchanged
        assert stored.startswith((b"\xff\xd8\xff", b"\x89PNG"))
    raw = tfds_reads(tmp_path / "run/data")
    assert [example["image"].shape[-1] for example in raw] == [3] * 5
    assert [example["mask"].shape[-1] for example in raw] == [1] * 5


def tfds_reads(folder):
    """The train split as tensorflow_datasets reads it by itself."""
    import tensorflow_datasets as tfds

    return list(tfds.builder_from_directory(folder).as_data_source("train"))


@pytest.mark.parametrize(
    "source, options",
    [
        ("scenes", dict(images=3, size=(16, 24), seed=2)),
        ("scenes", dict(images=3, size=(16, 24), seed=2, square=8)),
        ("unlabelled", dict(classes="prefix")),
        ("unlabelled", dict(classes="folder", square=6)),
    ],
)
def test_scenes_and_images_with_a_class_are_read_back(tiny_config, tmp_path, source, options):
    path = "" if source == "scenes" else tmp_path / "mine"
    for name in ("x/cat_1.png", "x/dog_1.jpg", "y/dog_2.bmp"):
        save(tmp_path / "mine" / name, random_image())
    use(tiny_config, "unlabelled", source, path, **options)
    with tiny_config.unlocked():
        tiny_config.unlabelled.split = "train" if source == "scenes" else ""
    prepare_data.prepare(tiny_config, tmp_path / "run")
    for part in ("data", "unlabelled"):
        for one, other in opened(tiny_config, part, tmp_path / "run"):
            assert_same(one, other)
    assert not isinstance(other, CroppedSquares)  # prepared squares are not cropped again
    assert ("depth" in other[0]) == (source == "scenes" and "square" not in options)
    if source == "scenes":
        assert next(opened(tiny_config, "data", tmp_path / "run"))[1][0]["depth"].max() > 1
    if "square" not in options:
        smaller = open_source(
            f"tfds:{tmp_path}/run/unlabelled", tiny_config.unlabelled.split, square=4
        )
        assert smaller[0]["image"].shape == (4, 4, 3)


def test_depth_is_read_back_and_image_files_are_kept(tiny_config, tmp_path):
    make_depth_folder(tmp_path / "mine", size=(16, 24))
    use(tiny_config, "unlabelled", "depth_folder", tmp_path / "mine")
    with tiny_config.unlocked():
        tiny_config.unlabelled.split = "train"
    prepare_data.prepare(tiny_config, tmp_path / "run")
    ((one, other),) = opened(tiny_config, "unlabelled", tmp_path / "run")
    assert_same(one, other)
    for index in range(len(one)):
        np.testing.assert_array_equal(one[index]["depth"], other[index]["depth"])
    stored = tfds_reads(tmp_path / "run" / "unlabelled")
    assert "mask" not in stored[0] and stored[0]["depth"].dtype == np.float32
    file = tmp_path / "mine/images/train/photo0.png"
    assert prepare_data.original_file(one, 0) == file.read_bytes()


def test_few_label_sets_are_stored_after_resizing(tiny_config, tmp_path):
    for split in ("train", "test"):
        save(tmp_path / f"cat_15/real/{split}/a.png", random_image(20, 20))
        save(tmp_path / f"cat_15/real/{split}/a.npy", 3 * np.eye(10, dtype=int))
    use(tiny_config, "data", "cat_15", tmp_path)
    with tiny_config.unlocked():
        tiny_config.data.val = "test"
    prepare_data.prepare(tiny_config, tmp_path / "run")
    for one, other in opened(tiny_config, "data", tmp_path / "run"):
        assert_same(one, other)
    assert other[0]["image"].shape == (256, 256, 3)


def test_labels_that_are_certainly_wrong_are_not_prepared(config, tmp_path):
    for file in (tmp_path / "mine/masks/val/town").iterdir():
        file.unlink()
        save(file.with_suffix(".png"), np.full((12 + int(file.stem[1:]), 14), 255, np.uint8))
    with pytest.raises(UserError, match="val: every pixel of all 5 masks is ignored"):
        prepare_data.prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prepared_folder_can_be_prepared_again(config, tmp_path):
    prepare_data.prepare(config, tmp_path / "a")
    use(config, "data", f"tfds:{tmp_path}/a/data")
    prepare_data.prepare(config, tmp_path / "b")
    for one, other in opened(config, "data", tmp_path / "b"):
        assert_same(one, other)


def test_an_interrupted_run_resumes_with_the_missing_shards(config, tmp_path, monkeypatch, capsys):
    prepare_data.prepare(config, tmp_path / "uninterrupted")
    publish, puts = prepare_data.publish, itertools.count()

    def stopped(draft, file):
        if next(puts) == 4:
            raise KeyboardInterrupt
        publish(draft, file)

    monkeypatch.setattr(prepare_data, "publish", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare_data.prepare(config, tmp_path / "run")
    with pytest.raises(UserError, match="not completely prepared.*--mode=prepare"):
        open_source(f"tfds:{tmp_path}/run/data", "train")
    before = files(tmp_path / "run/data")
    assert len(before) == 4  # the manifest and three shards
    for process in (0, 5):  # left by a killed run of several processes
        (tmp_path / f"run/data/.partial-{process}").mkdir()
        (tmp_path / f"run/data/.partial-{process}/x").write_text("half")
    cut = next(name for name in before if name.endswith("00000-of-00005"))
    os.truncate(tmp_path / "run/data" / cut, 70_000)  # as after a power failure
    capsys.readouterr()
    prepare_data.prepare(config, tmp_path / "run")
    assert "2 images are there already" in capsys.readouterr().out
    after = files(tmp_path / "run/data")
    assert {name for name in before if after[name] == before[name]} == set(before) - {cut}
    assert contents(tmp_path / "run/data") == contents(tmp_path / "uninterrupted/data")
    assert not list(tmp_path.glob("run/data/.partial-*"))


def test_a_second_run_replaces_only_missing_shards(config, tmp_path, capsys):
    prepare_data.prepare(config, tmp_path)
    before = files(tmp_path / "data")
    capsys.readouterr()
    prepare_data.prepare(config, tmp_path)
    assert "data is prepared already; --config.data.source=tfds:" in capsys.readouterr().out
    assert files(tmp_path / "data") == before
    lost = tmp_path / "data/data-train.array_record-00001-of-00005"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(UserError, match=r"cannot read example town/p01 .* again"):
        open_source(f"tfds:{tmp_path}/data", "train")[1]
    prepare_data.prepare(config, tmp_path)
    assert lost.read_bytes() == content


def test_a_folder_whose_writing_stopped_anywhere_does_not_open(config, tmp_path, monkeypatch):
    publish, allowed = prepare_data.publish, 0
    prepare_data.prepare(config, tmp_path / "uninterrupted")

    def stopped(draft, file):
        if next(puts) == allowed:
            raise KeyboardInterrupt
        publish(draft, file)

    monkeypatch.setattr(prepare_data, "publish", stopped)
    while not (tmp_path / "run/unlabelled").exists():
        puts, allowed = itertools.count(), allowed + 1
        with pytest.raises(KeyboardInterrupt):
            prepare_data.prepare(config, tmp_path / "run")
        if not (tmp_path / "run/unlabelled").exists():
            with pytest.raises(UserError, match="not completely prepared|no prepared"):
                open_source(f"tfds:{tmp_path}/run/data", "train")
    assert allowed > 4 and contents(tmp_path / "run/data") == contents(
        tmp_path / "uninterrupted/data"
    )


PROGRAM = """
import sys
from pathlib import Path
from configs.tiny_ddep import get_config
from diffseg_jax.experiment.prepare_data import prepare
config = get_config()
with config.unlocked():
    config.unlabelled.source = ""
    config.data.options.images = 40
prepare(config, Path(sys.argv[1]))
"""


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tiny_config, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    give_up = time.monotonic() + 120
    while len(list(tmp_path.glob("run/data/*array_record*"))) < 10:
        assert time.monotonic() < give_up and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run/data/dataset_info.json").exists()
    with tiny_config.unlocked():
        tiny_config.unlabelled.source = ""
        tiny_config.data.options.images = 40
    for name in ("run", "uninterrupted"):
        prepare_data.prepare(tiny_config, tmp_path / name)
    assert contents(tmp_path / "run/data") == contents(tmp_path / "uninterrupted/data")
    assert not list(tmp_path.glob("run/data/.*"))


def test_another_config_is_refused(config, tmp_path):
    prepare_data.prepare(config, tmp_path)
    use(config, "data", "folder", config.data.path, ignore=(3,))
    with pytest.raises(UserError, match=r"holds other data.*\n  labels.unscored.*\n  options"):
        prepare_data.prepare(config, tmp_path)
    use(config, "data", "folder", config.data.path, ignore=(2,))
    (Path(config.data.path) / "images/train/town/p00.jpg").unlink()
    with pytest.raises(UserError, match=r"splits.train.images: 5 -> 4"):
        prepare_data.prepare(config, tmp_path)
    (tmp_path / "data/prepared.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*prepared.json"):
        prepare_data.prepare(config, tmp_path)


def test_a_bad_example_is_named_and_can_be_repaired(config, tmp_path):
    bad = Path(config.data.path) / "masks/train/town/p03.png"
    good = bad.read_bytes()
    save(bad, np.full((15, 14), 77, np.uint8))
    with pytest.raises(UserError, match=r"town/p03\.png has class id 77"):
        prepare_data.prepare(config, tmp_path / "run")
    bad.write_bytes(good)
    prepare_data.prepare(config, tmp_path / "run")
    for one, other in opened(config, "data", tmp_path / "run"):
        assert_same(one, other)


def test_images_and_masks_that_change_behind_a_shard_are_noticed(tmp_path):
    labelled(tmp_path / "mine", splits=("train",))
    source = open_source("folder", "train", path=str(tmp_path / "mine"))
    plan = lambda: prepare_data.plan_shards("data", manifest, {"train": source}, folder)
    manifest, folder = {"source": "folder"}, tmp_path / "data"
    folder.mkdir()
    plan()
    file = folder / "prepared.json"
    shard = folder / "data-train.array_record-00003-of-00005"
    shard.touch()  # written, the others not yet
    planned, inode = file.read_text(), file.stat().st_ino
    plan()
    assert file.stat().st_ino == inode
    save(tmp_path / "mine/masks/train/town/p02.png", np.zeros((14, 14), np.uint8))
    plan()  # repaired, and read anew
    before, after = (json.loads(text)["content"]["train"] for text in (planned, file.read_text()))
    assert [old == new for old, new in zip(before, after, strict=True)] == [1, 1, 0, 1, 1]
    for changed in ("masks", "images"):
        (file_of_shard,) = (tmp_path / f"mine/{changed}/train/town").glob("p03*")
        refused = pytest.raises(UserError, match="town/p03 to town/p03 of split train.*00003-of")
        with changing(file_of_shard), refused:
            plan()
    older = json.loads(planned)
    del older["content"]
    file.write_text(json.dumps(older))
    with changing(file_of_shard):
        plan()  # its shards are of unknown files
    assert json.loads(file.read_text()) == older


@contextlib.contextmanager
def changing(file):
    """Within it, one byte of a file is another one."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    yield
    file.write_bytes(content)


def test_options_that_the_folder_was_not_prepared_with_are_refused(tiny_config, tmp_path):
    prepare_data.prepare(tiny_config, tmp_path)
    folder = f"tfds:{tmp_path}/data"
    for wrong in (dict(images=9), dict(size=(32, 40)), dict(seed=0, images=11)):
        with pytest.raises(UserError, match="was prepared with .*Give the same value"):
            open_source(folder, "train", **wrong)
    with pytest.raises(UserError, match="num_classes"):
        open_source(folder, "train", num_classes=3)
    with pytest.raises(UserError, match="raw_459=True was given, but"):
        open_source(folder, "train", raw_459=True)


def test_lost_or_cut_files_are_refused(config, tmp_path):
    prepare_data.prepare(config, tmp_path)
    folder = f"tfds:{tmp_path}/data"
    names = tmp_path / "data/names-train.json"
    listed = names.read_text()
    names.write_text("[]")
    with pytest.raises(UserError, match="names-train.json does not list .* of 5 examples"):
        open_source(folder, "train")
    names.write_text(listed)
    for name in ("names-train.json", "features.json", "metadata.json", "dataset_info.json"):
        file = tmp_path / "data" / name
        content = file.read_bytes()
        for cut in (content[: len(content) // 2], b""):
            file.write_bytes(cut)
            with pytest.raises(UserError):
                open_source(folder, "train")
        file.write_bytes(content)
    os.truncate(tmp_path / "data/data-train.array_record-00000-of-00005", 1000)
    with pytest.raises(UserError, match="cannot read example town/p00"):
        open_source(folder, "train")[0]


def test_a_full_disk_is_reported(tmp_path):
    with pytest.raises(UserError, match="No space left on device.*same command"):
        examples = (b"x" * 9 for _ in range(3))
        prepare_data.write_shard(examples, Path("/dev/full"), tmp_path / "shard")
    assert not (tmp_path / "shard").exists()


@pytest.mark.parametrize("split", ["train[:50%]", "a/b", "all"])
def test_splits_that_cannot_be_named_are_refused(config, tmp_path, split):
    with config.unlocked():
        config.unlabelled.split = split
    with pytest.raises(UserError, match="cannot be the name of a prepared split"):
        prepare_data.prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_large_examples_fill_more_shards(monkeypatch):
    source = FolderSource(("a",) * 100, (), ("a",) * 100)
    monkeypatch.setattr(prepare_data, "_serializer", lambda source: lambda example: b"x" * 1000)
    monkeypatch.setattr(prepare_data, "encode", lambda source, index: {})
    for shard, count in ((10**9, 8), (5000, 20), (10, 100)):
        monkeypatch.setattr(prepare_data, "SHARD_BYTES", shard)
        assert prepare_data.count_shards(source) == count
        ranges = prepare_data.shard_ranges(100, count)
        assert [*itertools.chain(*ranges)] == [*range(100)]
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_processes_share_the_shards(config, tmp_path, monkeypatch):
    """Two threads stand in for two processes, with a shared barrier."""
    prepare_data.prepare(config, tmp_path / "alone")
    mine, barrier, agreed = threading.local(), threading.Barrier(2), {}

    def all_true(value):
        agreed[mine.index] = value
        barrier.wait(60)
        return all(agreed.values())

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: mine.index)
    monkeypatch.setattr(processes, "is_first", lambda: mine.index == 0)
    monkeypatch.setattr(processes, "barrier", lambda purpose: barrier.wait(60))
    monkeypatch.setattr(processes, "true_in_all", all_true)
    wrote, write_shard = {0: [], 1: []}, prepare_data.write_shard

    def noted(records, draft, file):
        wrote[mine.index].append(file.name)
        write_shard(records, draft, file)

    monkeypatch.setattr(prepare_data, "write_shard", noted)

    def work(index):
        mine.index = index
        prepare_data.prepare(config, tmp_path / "together")

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    assert len(wrote[0]) == 9 and len(wrote[1]) == 6 and not set(wrote[0]) & set(wrote[1])
    for part in ("data", "unlabelled"):
        assert contents(tmp_path / "together" / part) == contents(tmp_path / "alone" / part)
