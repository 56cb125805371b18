"""gs:// without a network: folders, prepared sets and checkpoints in the bucket of fake_gcs.py."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils import epath
from PIL import Image

import fake_gcs
from diffseg_jax.data import files, fingerprint
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import prepare_data
from diffseg_jax.metrics.image_counts import ImageCounts, read_image_counts
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.networks import open_network
from diffseg_jax.training.state import flatten
from line_run import trained

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def service():
    """A bucket service for this module, because packages cache the first address."""
    if importlib.util.find_spec("gcsfs") is None:  # an import would ignore the variables
        pytest.skip("gcsfs is not installed")
    with (
        fake_gcs.serve() as fake,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # fsspec may be loaded already
        yield fake


@pytest.fixture
def bucket(service, request):
    """A folder of the bucket for one test."""
    return epath.Path(f"gs://bucket/{request.node.name}")


def copy(folder, bucket):
    """Copies a local folder to a bucket, as gcloud storage cp -r does."""
    for file in folder.rglob("*"):
        if file.is_file():
            (bucket / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def labelled_folder(root):
    """A labelled folder with an image of each format and one .npy mask."""
    for split in ("train", "val"):
        for i in range(3):
            image = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), np.uint8))
            mask = RNG.integers(0, 2, (9, 12)).astype(np.uint8)
            for part in ("images", "masks"):
                (root / part / split / "town").mkdir(parents=True, exist_ok=True)
            image.save(root / f"images/{split}/town/p{i}.{('png', 'jpg', 'bmp')[i]}")
            if i:
                Image.fromarray(mask).save(root / f"masks/{split}/town/p{i}.png")
            else:
                np.save(root / f"masks/{split}/town/p{i}.npy", mask)
    (root / "images/train/.hidden.png").write_bytes(b"not an image")
    (root / "classes.json").write_text('{"names": ["ground", "sky"]}')
    return root


def assert_same(one, other):
    assert one.names == other.names and one.labels == other.labels and len(one)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])
        np.testing.assert_array_equal(left.get("mask"), right.get("mask"))


def test_paths_in_a_bucket_behave_like_local_paths(bucket):
    (bucket / "a.txt").write_text("hello")
    (bucket / "d/b").write_bytes(bytes(range(256)) * 5000)
    assert (bucket / "a.txt").read_text() == "hello"
    assert bucket.is_dir() and (bucket / "d").is_dir() and not (bucket / "e").exists()
    assert sorted(path.name for path in bucket.glob("*")) == ["a.txt", "d"]
    (bucket / "e").mkdir(parents=True, exist_ok=True)
    (bucket / "a.txt").rename(bucket / "c.txt")
    (bucket / "c.txt").replace(bucket / "f.txt")
    assert (bucket / "f.txt").read_text() == "hello" and not (bucket / "a.txt").exists()
    large = os.urandom(7 * 2**20)  # uploaded in several parts
    (bucket / "large").write_bytes(large)
    assert (bucket / "large").read_bytes() == large
    (bucket / "d").rmtree()
    assert sorted(path.name for path in bucket.iterdir()) == ["f.txt", "large"]


def test_requests_to_an_overloaded_service_are_repeated(service, bucket):
    (bucket / "a").write_text("hello")
    service.failing(2)
    assert (bucket / "a").read_text() == "hello" and service.refused == 0


def test_counts_of_images_return_from_a_bucket(bucket):
    counts = RNG.integers(0, 9, (3, 4, 2))
    ImageCounts(tuple("abc"), ("x", "y"), counts, "skip").save(bucket / "00000010.npz")
    np.testing.assert_array_equal(read_image_counts(bucket / "00000010.npz").counts, counts)


def test_checkpoints_are_saved_and_restored(bucket):
    import orbax.checkpoint as ocp

    tree = {"a": np.arange(10.0), "b": {"c": np.ones((300, 400), np.float32)}}
    with ocp.CheckpointManager(str(bucket)) as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
    with ocp.CheckpointManager(str(bucket)) as manager:
        assert manager.latest_step() == 3
        restored = manager.restore(3, args=ocp.args.StandardRestore(tree))
    np.testing.assert_array_equal(restored["a"], tree["a"])
    np.testing.assert_array_equal(restored["b"]["c"], tree["b"]["c"])


@pytest.mark.parametrize("name", ["folder", "unlabelled"])
def test_folders_are_read_like_local_ones(bucket, tmp_path, name):
    copy(labelled_folder(tmp_path), bucket)
    for split in ("train", "val"):
        assert_same(*(open_source(name, split, path=path) for path in (tmp_path, bucket)))


def test_sets_of_few_labels_are_read_like_local_ones(bucket, tmp_path):
    folder = tmp_path / "cat_15/real/train"
    folder.mkdir(parents=True)
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "a.png")
    np.save(folder / "a.npy", np.full((8, 8), 3))
    copy(tmp_path, bucket)
    assert_same(*(open_source("cat_15", "train", path=path) for path in (tmp_path, bucket)))


def test_prepared_folders_are_written_to_and_read_from_a_bucket(
    service, bucket, tmp_path, tiny_config
):
    with tiny_config.unlocked():
        tiny_config.data.source, tiny_config.data.path = "folder", str(bucket / "mine")
        tiny_config.data.options, tiny_config.unlabelled.source = {}, ""
    copy(labelled_folder(tmp_path), bucket / "mine")
    prepare_data.prepare(tiny_config, bucket / "run")
    written = {name: held for name, held in service.objects.items() if "/run/" in name[1]}
    assert not any("partial" in name for _, name in written)
    prepare_data.prepare(tiny_config, bucket / "run")
    assert written == {name: held for name, held in service.objects.items() if "/run/" in name[1]}
    other = open_source(f"tfds:{bucket}/run/data", "train")
    assert_same(open_source("folder", "train", path=tmp_path), other)
    service.failing(1)
    assert other[1]["image"].shape == (9, 12, 3)


def test_missing_and_truncated_files_in_a_bucket_are_reported(bucket, tmp_path):
    copy(labelled_folder(tmp_path), bucket)
    with pytest.raises(UserError, match="not a folder. Data set camvid"):
        open_source("camvid", "train", path=bucket / "nowhere")
    with pytest.raises(UserError, match="not a folder. To list its parent: gcloud storage ls"):
        open_source("folder", "test", path=bucket)
    with pytest.raises(UserError, match="no prepared TFDS data set"):
        open_source(f"tfds:{bucket}", "train")
    (bucket / "images/train/town/p0.png").write_bytes(b"truncated")
    with pytest.raises(UserError, match=r"cannot read gs://bucket/.*town/p0\.png"):
        open_source("folder", "train", path=bucket)[0]
    source = open_source("folder", "train", path=bucket)
    (bucket / "masks/train/town/p0.npy").unlink()
    (bucket / "images/train/town/p0.png").write_bytes(
        (tmp_path / "images/train/town/p0.png").read_bytes()
    )
    with pytest.raises(UserError, match=r"cannot read mask gs://.*town/p0\.npy"):
        source[0]


def test_a_refusal_of_the_service_is_one_sentence(service, bucket, tmp_path, monkeypatch):
    copy(labelled_folder(tmp_path), bucket)

    def refuse(*arguments, **options):
        raise RuntimeError("Forbidden: no access to this bucket")

    monkeypatch.setattr(type(bucket), "is_dir", refuse)
    with pytest.raises(UserError, match="cannot be reached .*Forbidden.*gcloud auth"):
        open_source("folder", "train", path=bucket)


def test_other_addresses_are_refused():
    for path in ("s3://bucket/x", "https://example.com/x"):
        with pytest.raises(UserError, match="neither a path on this machine nor in a bucket"):
            open_source("folder", "train", path=path)
        with pytest.raises(UserError, match="neither a path on this machine nor in a bucket"):
            open_source(f"tfds:{path}", "train")


def test_a_missing_package_is_reported_in_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, path in (("unlabelled", "gs://bucket/x"), ("tfds:gs://bucket/x", "")):
        with pytest.raises(UserError, match=r'pip install "diffseg_jax\[gcs\]"'):
            open_source(name, "train", path=path)


def test_local_paths_need_no_package_for_buckets(tmp_path):
    program = (
        "import sys\n"
        "for name in ('gcsfs', 'fsspec', 'google.auth', 'tensorflow'): sys.modules[name] = None\n"
        "from diffseg_jax.data.sources import open_source\n"
        f"print(len(open_source('folder', 'train', path={str(labelled_folder(tmp_path))!r})[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.strip() == "3", done.stderr
    found = files.list_files(tmp_path / "images", (".png",))
    assert found == ["train/town/p0.png", "val/town/p0.png"]


def test_a_stage_in_a_bucket_is_that_of_a_local_run_also_if_it_resumes(bucket, tmp_path):
    trained(bucket, steps=3)
    remote, local = trained(bucket), trained(tmp_path)
    for part in ("params", "ema", "stats"):
        for path, array in flatten(local[part]).items():
            np.testing.assert_array_equal(flatten(remote[part])[path], array)
    ours, theirs = (
        [(record["step"], record["loss"]) for record in map(json.loads, text.splitlines())]
        for text in ((workdir / "metrics.jsonl").read_text() for workdir in (bucket, tmp_path))
    )
    assert ours == theirs and [step for step, _ in ours] == [3, 6]
    assert sorted(path.name for path in (bucket / "line").iterdir()) == ["3", "6"]
    assert [*(bucket / "tensorboard/line").iterdir()]  # one of each second in which it is started


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_workdir_in_a_bucket_equals_a_local_one(service, command, diffusion_run):
    """Quick: test_a_stage_in_a_bucket_is_that_of_a_local_run_also_if_it_resumes."""
    config = ROOT / "tests/configs/tiny_ddpm.py"
    local, remote = diffusion_run.workdir, epath.Path("gs://bucket/runs/a")
    done = command(remote, config=config)
    assert done.code == 0, done.err
    assert "caching.py" not in done.err  # the package warns of every read
    assert "pretrain: starts" in done.out
    again = command(remote, config=config)
    assert "pretrain: is finished" in again.out

    # ---- the same network, numbers and files
    ours, _ = open_network(remote / "checkpoints" / "pretrain")
    theirs, _ = open_network(local / "checkpoints" / "pretrain")
    for path, array in flatten(theirs).items():
        np.testing.assert_array_equal(flatten(ours)[path], array)
    losses = [
        [json.loads(line).get("loss") for line in text.splitlines()]
        for text in ((workdir / "metrics.jsonl").read_text() for workdir in (remote, local))
    ]
    assert losses[0] == losses[1] != []
    names = {file.name for file in (remote / "pictures").iterdir()}
    assert names == {file.name for file in (local / "pictures").iterdir()}
    assert any("tfevents" in file.name for file in (remote / "tensorboard/pretrain").iterdir())


def test_an_unsupported_address_is_reported_in_one_sentence(command):
    done = command("s3://bucket/runs/a")
    assert done.code == 2
    assert done.err == (
        "error: s3://bucket/runs/a is neither a path on this machine nor in a bucket of Google "
        "Cloud Storage, such as gs://bucket/runs/a.\n"
    )


def test_a_folder_in_a_bucket_has_one_writer(bucket):
    lock = lambda: locked(bucket, "train", "--workdir")
    with lock(), pytest.raises(UserError, match="is in use: process"), lock():
        pass
    assert not (bucket / ".train.lock").exists()


def test_a_replaced_image_in_a_bucket_is_found_by_listing_it(service, bucket, tmp_path):
    copy(labelled_folder(tmp_path), bucket)
    source = open_source("folder", "train", path=bucket)
    before, sent = fingerprint.fingerprint(source, np.arange(3)), len(service.requests)
    assert fingerprint.fingerprint(source, np.arange(3)) == before
    assert sum("/o?" in path for _, path in service.requests[sent:]) == 1
    image = (tmp_path / "images/train/town/p1.jpg").read_bytes()
    (bucket / "images/train/town/p1.jpg").write_bytes(image + b"0")
    after = fingerprint.fingerprint(source, np.arange(3))
    assert fingerprint.changes_of_data(before, after) == ["1 file changed: town/p1"]
    (bucket / "images/train/town/p1.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read gs://.*/images/train/town/p1\.jpg .*Restore"):
        fingerprint.fingerprint(source, np.arange(3))
