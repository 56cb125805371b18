"""Kept features are those of one network and of the images as they are."""

import contextlib
import json
import types

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.experiment import kept_features

pytestmark = pytest.mark.quick

OPTIONS = {"steps": [1, 5], "blocks": [0], "draws": 3}


class Shown:
    """A progress that shows nothing."""

    def __init__(self):
        self.said = []

    def progress(self, what, total, **more):
        return contextlib.nullcontext(types.SimpleNamespace(each_of=iter))

    def say(self, text):
        self.said.append(text)

    def close(self):
        pass


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A function that keeps the features of images of two pixels: (folder, what was said, reads).

    stops  after which image it stops;  weight  of the network;  values  of the images by name
    options  of the fit, further ones
    """
    reads = []
    monkeypatch.setattr(kept_features, "fractions_covered", lambda *_: reads.append(1) or (1, 1))

    def keep(values, weight=1.0, start="a", stops=None, **options):
        reads.clear()
        image = lambda value: lambda: np.full((1, 2, 3), value, np.uint8)
        images = [(name, image(value)) for name, value in values.items()]
        network = {"params": {"w": np.full(2, weight, np.float32)}}
        monkeypatch.setattr(kept_features, "_images_of", lambda plan: images)
        monkeypatch.setattr(kept_features, "open_backbone", lambda plan: network)
        real = kept_features.write_atomically

        def write(file, content):
            if file.stem == stops:
                raise KeyboardInterrupt
            real(file, content)

        names = kept_features.maps_of_diffusion(OPTIONS)
        task = types.SimpleNamespace(
            meta={"features": {**OPTIONS, "dtype": "float16", **options}},
            features=lambda network, images, valid: dict.fromkeys(names, images * 1.0),
        )
        augment = types.SimpleNamespace(crop=(1, 2))
        plan = types.SimpleNamespace(
            name="fit", task=task, start=start, seed=0, log=Shown(),
            options=types.SimpleNamespace(augment=augment),
        )  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(kept_features, "write_atomically", write)
            kept_features.keep_all(plan, tmp_path / "features")
        return tmp_path / "features", plan.log.said, len(reads)

    return keep


def test_passes_are_those_of_images_steps_and_draws_and_the_covered_part_is_found_once(kept):
    folder, said, reads = kept({"a": 1, "b": 2})
    assert json.loads((folder / "features.json").read_text())["passes"] == 2 * 2 * 3
    assert "12 passes" in said[0] and reads == 1
    folder, said, reads = kept({"a": 1, "b": 2, "c": 3}, start="moved")
    assert "1 image computed now, 18 passes" in said[0]


def test_features_are_described_before_the_first_of_them_is_there(kept):
    with pytest.raises(KeyboardInterrupt):
        kept({"a": 1, "b": 2}, stops="b")
    with pytest.raises(UserError, match="holds other features .network"):
        kept({"a": 1, "b": 2}, weight=2.0)
    assert "1 image computed now, 12 passes" in kept({"a": 1, "b": 2})[1][0]


def test_features_of_an_image_that_changed_and_those_of_nothing_known_are_refused(kept):
    folder, _, _ = kept({"a": 1, "b": 2})
    with pytest.raises(UserError, match="have changed since, such as b"):
        kept({"a": 1, "b": 3})
    (folder / "features.json").unlink()
    with pytest.raises(UserError, match="no features.json that says of what"):
        kept({"a": 1, "b": 2})


def test_files_are_of_one_dtype_whatever_that_of_the_fit_and_rounded_ones_are_refused(kept):
    folder, _, _ = kept({"a": 1, "b": 2})
    said = kept({"a": 1, "b": 2}, dtype="float32")[1]
    assert "0 images computed now" in said[0]
    description = json.loads((folder / "features.json").read_text())
    del description["stored"]  # as before the files were of float32
    description["options"]["dtype"] = "float16"
    (folder / "features.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=f"of an older version.* rm -r {folder}, or take another"):
        kept({"a": 1, "b": 2})
    description["options"]["dtype"] = "float32"  # which was not rounded then either
    (folder / "features.json").write_text(json.dumps(description))
    assert "0 images computed now" in kept({"a": 1, "b": 2})[1][0]


def test_options_that_change_no_file_may_differ_and_others_may_not(kept):
    folder, _, _ = kept({"a": 1}, place="device", share_noise=True)
    same = dict(place="host", noise="shared", noise_file="", scales=(2.0,), taps=("x",))
    assert "0 images computed now" in kept({"a": 1}, **same)[1][0]
    description = json.loads((folder / "features.json").read_text())
    assert description["options"] == {**OPTIONS, "noise": "shared"}
    description["options"] = {**OPTIONS, "place": "device", "share_noise": True, "scales": [1.0]}
    (folder / "features.json").write_text(json.dumps(description))  # as in earlier versions
    assert "0 images computed now" in kept({"a": 1}, **same)[1][0]
    for other in (dict(draws=4), dict(noise="per_image"), dict(short=64)):
        with pytest.raises(UserError, match="holds other features .options"):
            kept({"a": 1}, **other)
