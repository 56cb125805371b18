"""Which images get files of features, and which folders are refused."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffseg_jax.errors import UserError
from diffseg_jax.figures.layout import save_png
from diffseg_jax.inference import feature_files, frames
from diffseg_jax.models.taps import PixelFeatures


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes features of the photos, their pixels times a weight; names of what it computed."""

    def written(photos="photos", taps=(), dtype="float32", weight=1.0):
        def extract(network, images, valid):
            return PixelFeatures((images * network["params"]["w"],), images.shape[1:3], ((1, 1),))

        segmenter = SimpleNamespace(
            meta={"task": {"kind": "fit"}}, system="ddpm_seg", directory=tmp_path,
            network={"params": {"w": np.float32(weight)}, "stats": {}}, fingerprint=str(weight),
            config=ConfigDict({"dtype": dtype}),
            mesh=SimpleNamespace(devices=np.array(jax.devices())),
        )  # fmt: skip
        source = SimpleNamespace(extract=extract, name="any", normalisation="v", stride=1)
        monkeypatch.setattr(feature_files, "source_of", lambda *_: source)
        seen, read = [], frames.read_image
        noted = lambda path: seen.append(path) or read(path)
        monkeypatch.setattr(frames, "read_image", noted)
        output = tmp_path / "maps"
        feature_files.write_features(segmenter, [str(tmp_path / photos)], str(output), taps)
        monkeypatch.setattr(frames, "read_image", read)
        return [path.rpartition("/")[2] for path in seen]

    for folder, shade in (("photos", 1), ("others", 2)):
        for name in ("a", "b"):
            save_png(tmp_path / folder / f"{name}.png", np.full((4, 6, 3), shade, np.uint8))
    return written


def test_only_images_that_changed_are_computed_again(write, tmp_path):
    assert write() == ["a.png", "b.png"] and write() == []
    save_png(tmp_path / "photos" / "a.png", np.full((4, 6, 3), 9, np.uint8))
    (tmp_path / "maps" / "b.npz").unlink()
    assert write() == ["a.png", "b.png"] and write() == []
    with pytest.raises(UserError, match="holds features of .*photos/a.png as a, which those of"):
        write("others")  # other images of these names
    shutil.rmtree(tmp_path / "photos")
    assert write("others") == ["a.png", "b.png"]
    assert np.load(tmp_path / "maps" / "a.npz")["map_00"].max() == 2


@pytest.mark.parametrize("change", [{"taps": ("b",)}, {"dtype": "bfloat16"}, {"weight": 2.0}])
def test_a_folder_of_other_features_is_refused(write, change):
    write()
    with pytest.raises(UserError, match="holds features of .* another --output"):
        write(**change)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_description_is_named(write, tmp_path, content):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "features.json").write_bytes(content)
    with pytest.raises(UserError, match="features.json was not written by this command"):
        write()


def test_features_that_are_files_already_are_not_written_again(monkeypatch):
    source = SimpleNamespace(files=SimpleNamespace(folder="maps"))
    monkeypatch.setattr(feature_files, "chosen_sources", lambda *_: [source])
    segmenter = SimpleNamespace(
        meta={"task": {"kind": "fit"}}, system="ddpm_seg", config=ConfigDict(), directory="runs/a"
    )
    with pytest.raises(UserError, match="runs/a reads maps from files in maps"):
        feature_files.source_of(segmenter)
