"""Kept features are those of one network and of the images as they are, also after a stop."""

import contextlib
import dataclasses
import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest

from configs import tiny_ddpm_seg
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import child_run, fit_features, kept_features
from diffseg_jax.experiment.fit_images import read_masks
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.models.taps import stack

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


# ---- a fit keeps what it reads -----------------------------------------------------------------


@functools.cache
def toy(factor):
    """A program that reads features."""

    def extract(network, images, valid):
        maps = network["params"]["toy"]["kernel"] * factor * images[:, ::2, ::3].astype(float)
        return stack([maps], images.shape[1:3], dtype=np.float16)

    return jax.jit(extract)


class Counted:
    """A program, and the number of images of which it has read features."""

    def __init__(self, program):
        self.program, self.images = program, 0

    def __call__(self, network, images, valid):
        self.images += len(images)
        return self.program(network, images, valid)

    def lower(self, *given):
        return self.program.lower(*given)


def network_of(weight=0.3):
    return {"params": {"toy": {"kernel": np.full(3, weight, np.float32)}}, "stats": {}}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The plan of a fit to an image and a changed copy of each, by a toy network."""
    config = tiny_ddpm_seg.get_config()
    config.features.sources, config.run, config.stages.fit.start = ("colour",), ("fit",), "random"
    with config.unlocked():
        config.stages.fit.augment.update(variants=1, scale=(0.5, 1.5), photometric=True)
    plan = make_plan(config, tmp_path_factory.mktemp("run")).stages[0]
    task = dataclasses.replace(plan.task, init=lambda key: {**network_of(), "stats": {"toy": {}}})
    return dataclasses.replace(plan, task=task)


@pytest.fixture
def reading(planned, tmp_path):
    """reading(factor, weight, rows, stop, **changes) -> (maps, images computed, what was said).

    factor, weight  of the program and of the network;  rows  of what is read; None: all
    stop            after how many files it is stopped, or the error of the disk
    changes         of the plan
    """

    def read(factor=1.0, weight=0.3, rows=None, stop=None, **changes):
        extract, log = Counted(toy(factor)), Shown()
        plan = dataclasses.replace(planned, **{"workdir": tmp_path, "log": log, **changes})
        found = read_masks(dataclasses.replace(plan, log=planned.log), 0, 1)
        found = found if rows is None else found.of(np.array(rows))
        network, shown = network_of(weight), fit_features.features_shown(planned, found.shown)
        files = kept_features.maps_of_fit(plan, network, extract, found)
        lacking, written, real = files and files.lacking(), [], kept_features.write_atomically

        def write(file, content, sync):
            if len(written) == stop or isinstance(stop, OSError):
                raise KeyboardInterrupt if isinstance(stop, int) else stop
            written.append(file)
            real(file, content, sync)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kept_features, "write_atomically", write)
            features = fit_features.collect(plan, network, found.shown, extract, shown, files)
        if files:
            files.finish(lacking)
        return features.maps[0], extract.images, " ".join(log.said)

    return read


def files_in(folder):
    return sorted((folder / "fit_features" / "fit").glob("*"))


def test_a_fit_that_was_stopped_computes_only_the_features_that_it_lacks(reading, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        reading(stop=4)
    (tmp_path / "fit_features/fit/.0123456789abcdef0123456789abcdef.npz.7").write_bytes(b"cut")
    maps, computed, said = reading()
    assert (len(maps), computed) == (6, 2) and f"in {tmp_path / 'fit_features' / 'fit'}, " in said
    again, computed, said = reading()
    assert computed == 0 and not said and len(files_in(tmp_path)) == 6
    shutil.rmtree(tmp_path / "fit_features")
    whole, computed, _ = reading()
    assert computed == 6
    for each in (maps, again):
        assert each.dtype == whole.dtype and bytes(np.asarray(each)) == bytes(np.asarray(whole))


def test_damaged_and_foreign_files_are_computed_again(reading, tmp_path):
    whole = reading()[0]
    cut, turned, other, foreign = files_in(tmp_path)[:4]
    cut.write_bytes(cut.read_bytes()[:-9])
    content = bytearray(turned.read_bytes())
    content[len(content) // 2] ^= 1
    turned.write_bytes(content)
    np.savez(other, map_0000=np.zeros((2, *whole.shape[1:]), np.float16))
    foreign.write_text("a")
    maps, computed, _ = reading()
    np.testing.assert_array_equal(maps, whole)
    assert computed == 4 and reading()[1] == 0


@pytest.mark.parametrize("change", [{"factor": 2.0}, {"weight": 0.4}, {"seed": 1}])
def test_features_of_another_program_network_or_copy_are_not_taken(reading, tmp_path, change):
    before = reading()[0]
    maps, computed, _ = reading(**change)
    same = [bytes(np.asarray(a)) == bytes(np.asarray(b)) for a, b in zip(maps, before)]
    assert computed == 6 - sum(same) == (3 if "seed" in change else 6)
    assert len(files_in(tmp_path)) == 6  # those of before are removed


def test_only_new_images_are_computed_and_removed_ones_go(reading, tmp_path):
    reading(rows=[0, 1, 2, 3])
    assert reading(rows=[0, 1, 4, 5])[1] == 2
    assert len(files_in(tmp_path)) == 4


def test_a_full_disk_stops_no_fit_and_is_left_space(reading, tmp_path):
    maps, computed, said = reading(stop=OSError(28, "No space left on device"))
    assert len(maps) == computed == 6 and said.count("No space left") == 1
    assert not (tmp_path / "fit_features" / "fit").exists()


def test_features_that_would_fill_the_disk_are_not_kept(reading, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(kept_features.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=9))
        assert "as the disk has" in reading()[2]
    with monkeypatch.context() as patch:
        patch.setattr(kept_features, "MOST_KEPT", 9)
        assert "are not kept in files, of" in reading()[2]
    assert not files_in(tmp_path)


def test_a_run_that_goes_on_reads_the_files_of_the_run_before(reading, tmp_path):
    reading()
    (tmp_path / "config.json").write_text("{}")
    assert reading(workdir=tmp_path / "continued")[1] == 0


def test_runs_of_studies_leave_no_features(tmp_path):
    (tmp_path / "run" / "fit_features").mkdir(parents=True)
    given = tmp_path / "log", tmp_path / "run", "train", print
    assert "failed" in child_run.record_of_command(["-c", "import none_such"], *given)
    assert (tmp_path / "run" / "fit_features").exists()
    assert "failed" not in child_run.record_of_command(["-c", ""], *given)
    assert not (tmp_path / "run" / "fit_features").exists()
