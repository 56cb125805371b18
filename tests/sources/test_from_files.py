"""Maps of features that files hold."""

import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.config.schema import as_tuples
from diffseg_jax.data import npy
from diffseg_jax.errors import UserError
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.sources.from_files import files_source, folder_sizes
from diffseg_jax.systems.feature_sources import kept_maps


def write(folder, name, seed=0, channels=(3, 2), size=(4, 5), **more):
    draw = np.random.default_rng(seed)
    maps = {f"map_{i:02}": draw.normal(size=(*size, c)) for i, c in enumerate(channels)}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **{**maps, **more})
    return maps


def described(folder, maps, **options):
    content = {"maps": maps, "options": {"steps": [1], "blocks": [0, 1], "draws": 1, **options}}
    (folder / "features.json").write_text(json.dumps(content))


def source_in(folder):
    return files_source(as_tuples(folder_sizes(str(folder))), "float32")


def test_maps_are_found_by_the_names_of_images(tmp_path):
    covered = np.array([[0.5, 1], [1, 1]])
    expected = write(tmp_path, "train/a", covered=covered)
    write(tmp_path, "second/b", seed=1, covered=covered)
    source = source_in(tmp_path)
    images, valid = jnp.zeros((2, 8, 10, 3), jnp.uint8), jnp.full((2, 2), 8)
    maps = source.files.read(["train/a", "b"])
    found = source.extract({}, images, valid, *maps)
    one = tuple(jnp.asarray(values[None], jnp.float32) for values in expected.values())
    exact = PixelFeatures(one, (8, 10), ((0.5, 1.0), (1.0, 1.0)))
    np.testing.assert_array_equal(found.dense()[:1], exact.dense())
    shapes = jax.eval_shape(source.extract, {}, images, valid, *source.files.example)
    assert shapes.width == found.width == 5


@pytest.mark.parametrize(("make", "names", "part"), [
    (lambda f: None, ["c"], "no features of c"),
    (lambda f: None, [""], "this image has none"),
    (lambda f: write(f, "b", channels=(3,)), ["a", "b"], "Compute it again"),
    (lambda f: write(f, "b", size=(2, 5)), ["a", "b"], "shapes for images of one size"),
    (lambda f: write(f, "b", covered=np.ones((2, 2)) / 2), ["b"], "padded differently"),
    (lambda f: (f / "b.npz").write_bytes(b"text"), ["b"], "is no .npz file"),
    (lambda f: write(f, "b", map_00=np.full((4, 5, 3), np.nan)), ["b"], "NaN"),
    (lambda f: write(f, "b", map_00=np.zeros(3)), ["b"], "must hold maps"),
    (lambda f: (write(f, "x/b"), write(f, "y/b")), ["b"], "several features of b"),
    (lambda f: write(f, "train/b"), ["b"], "may be of an image b of another split"),
    (lambda f: write(f, "x/train/b"), ["val/b"], "no features of val/b"),
    (lambda f: write(f, "b"), ["val/b"], "no features of val/b"),
    (lambda f: write(f, "b", covered=np.ones(3)), ["b"], "each of its 2 maps"),
    (lambda f: write(f, "b", covered=np.zeros((2, 2))), ["b"], "each of its 2 maps"),
    (lambda f: write(f, "b", size=(400, 5)), ["b"], "unpacks to .* 10000 are allowed"),
])  # fmt: skip
def test_files_with_other_maps_are_refused(tmp_path, monkeypatch, make, names, part):
    write(tmp_path, "a")
    source = source_in(tmp_path)
    monkeypatch.setattr(npy, "MAX_UNPACKED", 10_000)
    make(tmp_path)
    with pytest.raises(UserError, match=part):
        source.files.read(names)


@pytest.mark.parametrize(("folder", "part"), [("none", "does not exist"), ("", "holds no .npz")])
def test_a_folder_without_features_is_refused(tmp_path, folder, part):
    with pytest.raises(UserError, match=part):
        folder_sizes(str(tmp_path / folder))


def test_a_file_with_fewer_maps_than_the_description_is_refused(tmp_path):
    names = ["output_0@1", "output_1@1"]
    write(tmp_path, "a")
    described(tmp_path, names)
    source = files_source(as_tuples(folder_sizes(str(tmp_path))), "float32", [1])
    write(tmp_path, "b", channels=(3,))
    with pytest.raises(UserError, match="b.npz holds 1 maps, but features.json names more"):
        source.files.read(["b"])
    described(tmp_path, [*names, "output_2@1"])
    with pytest.raises(UserError, match="a.npz holds 2 maps, but features.json names 3"):
        folder_sizes(str(tmp_path))


def test_maps_that_were_computed_with_other_options_are_refused(tmp_path):
    write(tmp_path, "a")
    described(tmp_path, ["output_0@1", "output_1@1"], short=64, share_noise=False, place="host")
    sizes = folder_sizes(str(tmp_path))
    given = {"steps": (1,), "blocks": (1,), "draws": 1, "short": 64, "noise": "per_image"}
    assert kept_maps(sizes, given) == [1]
    with pytest.raises(UserError, match="features.draws=1, but the config says 4. Try --config"):
        kept_maps(sizes, {**given, "draws": 4})
    with pytest.raises(UserError, match="features.noise=per_image, but the config says shared"):
        kept_maps(sizes, {**given, "noise": "shared", "share_noise": True})
    del sizes["options"]  # as a fit of an earlier version kept them
    assert kept_maps(sizes, {**given, "draws": 4}) == [1]


def test_the_folder_is_listed_once_for_many_images(tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path, f"x/{name}")
    source, walks, rglob = source_in(tmp_path), [], Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *given: walks.append(1) or rglob(*given))
    for name in "abc":
        source.files.read([name])
    assert len(walks) == 1


def test_images_without_a_file_are_found_at_once(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "train/b")
    lacking = source_in(tmp_path).files.lacking
    assert lacking(["a", "c", "train/b", "val/a"]) == ["c", "val/a"]
    with pytest.raises(UserError, match="may be of an image b of another split"):
        lacking(["a", "b"])


def test_files_that_come_later_are_found_and_the_folder_does_not_depend_on_the_place(
    tmp_path, monkeypatch
):
    write(tmp_path, "maps/a")
    monkeypatch.chdir(tmp_path)
    source = files_source(as_tuples(folder_sizes("maps")), "float32")
    monkeypatch.chdir("/")
    source.files.read(["a"])
    with pytest.raises(UserError, match="no features of b"):
        source.files.read(["b"])
    expected = write(tmp_path, "maps/x/train/b")
    np.testing.assert_allclose(source.files.read(["train/b"])[0][0], expected["map_00"], 1e-6)


def test_a_file_larger_than_the_memory_is_read_map_by_map(tmp_path, monkeypatch):
    expected = write(tmp_path, "a", size=(40, 5))
    described(tmp_path, ["output_0@1", "output_1@1"])
    monkeypatch.setattr(npy, "MAX_UNPACKED", 5_000)  # the first map has 4800 bytes
    sizes, read = as_tuples(folder_sizes(str(tmp_path))), zipfile.ZipFile.read
    names = []
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, part: names.append(part.filename) or read(self, part)
    )
    assert sizes["channels"] == (3, 2)
    (found,) = files_source(sizes, "float32", [0]).files.read(["a"])
    np.testing.assert_allclose(found[0], expected["map_00"], 1e-6)
    assert names == ["map_00.npy"]
    with pytest.raises(UserError, match="unpacks to .* 5000 are allowed"):
        files_source(sizes, "float32", [0, 1]).files.read(["a"])
