"""A fit reads the features that it has kept, after a stop and with more labels; no others."""

import dataclasses
import functools
import shutil
import types

import jax
import numpy as np
import pytest

from configs import tiny_ddpm_seg
from diffseg_jax.experiment import child_run, fit_feature_files, fit_features
from diffseg_jax.experiment.fit_images import read_masks
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.models.taps import stack

pytestmark = pytest.mark.quick


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

    reading.lacking is the number of images without a whole file before.
    """

    def read(factor=1.0, weight=0.3, rows=None, stop=None, **changes):
        extract, said = Counted(toy(factor)), []
        log = types.SimpleNamespace(say=said.append)
        plan = dataclasses.replace(planned, **{"workdir": tmp_path, "log": log, **changes})
        found = read_masks(dataclasses.replace(plan, log=planned.log), 0, 1)
        found = found if rows is None else found.of(np.array(rows))
        network, shown = network_of(weight), fit_features.features_shown(planned, found.shown)
        files = fit_feature_files.maps_of_fit(plan, network, extract, found)
        read.lacking = len(files.lacking())
        written, real = [], fit_feature_files.write_atomically

        def write(file, content, sync):
            if len(written) == stop or isinstance(stop, OSError):
                raise KeyboardInterrupt if isinstance(stop, int) else stop
            written.append(file)
            real(file, content, sync)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit_feature_files, "write_atomically", write)
            features = fit_features.collect(plan, network, found.shown, extract, shown, files)
        return features.maps[0], extract.images, " ".join(said)

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
    assert computed == 4 and reading.lacking >= 3  # a turned bit may be seen only when it is read
    assert reading()[1] == 0


@pytest.mark.parametrize("change", [{"factor": 2.0}, {"weight": 0.4}, {"seed": 1}])
def test_features_of_another_program_network_or_copy_are_not_taken(reading, tmp_path, change):
    before = reading()[0]
    maps, computed, _ = reading(**change)
    same = [bytes(np.asarray(a)) == bytes(np.asarray(b)) for a, b in zip(maps, before)]
    assert computed == 6 - sum(same) == (3 if "seed" in change else 6)
    assert len(files_in(tmp_path)) == 6  # those of before are removed


@pytest.mark.parametrize("other", ["jaxlib", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE", "CPU"])
def test_features_of_another_compiler_or_cpu_are_not_taken(reading, monkeypatch, other):
    reading()
    if other == "jaxlib":
        monkeypatch.setattr(fit_feature_files, "jaxlib", types.SimpleNamespace(__version__="0"))
    elif other == "CPU":
        monkeypatch.setattr(fit_feature_files, "_model_of_cpu", lambda: "another")
    else:
        monkeypatch.setenv(other, "--xla_cpu_enable_fast_math=true")
    assert reading()[1] == 6


def test_features_of_another_precision_of_products_are_another_program(planned):
    def digest(precision):
        with jax.default_matmul_precision(precision):
            extract = jax.jit(lambda network, images, valid: stack([images @ network["a"]], (4, 4)))
            network = {"a": np.ones((3, 3), np.float32)}
            return fit_feature_files._program(planned, network, extract)[1]

    assert digest("highest") == digest("highest") != digest("default")


def test_old_files_are_removed_before_new_ones_need_space(reading, tmp_path, monkeypatch):
    reading()
    with pytest.raises(KeyboardInterrupt):
        reading(weight=0.4, stop=0)
    assert not files_in(tmp_path)
    for where, name, value in (
        (fit_feature_files, "MOST_KEPT", 9),
        (fit_feature_files.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=9)),
    ):
        reading()
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            assert reading()[1] == 0  # what is there is read
            assert "are not kept" in reading(weight=0.4)[2]
        assert not files_in(tmp_path)


def test_an_image_that_is_replaced_while_features_are_read_has_no_file(reading, tmp_path):
    def replaced(plan, shown):
        for number, example in enumerate(real(plan, shown)):
            yield {**example, "image": example["image"] // (1 if number else 2)}

    real = fit_features.examples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_features, "examples", replaced)
        reading()
    assert len(files_in(tmp_path)) == 5
    assert reading()[1] == 1


def test_files_do_not_depend_on_where_the_fit_holds_its_features(reading, planned):
    here = reading()[0]
    fit = dataclasses.replace(planned.task.fit, on_host=True)
    there, computed, _ = reading(task=dataclasses.replace(planned.task, fit=fit))
    assert computed == 0 and isinstance(there, np.ndarray) and isinstance(here, jax.Array)
    np.testing.assert_array_equal(there, here)


def test_only_new_images_are_computed_and_removed_ones_go(reading, tmp_path):
    reading(rows=[0, 1, 2, 3])
    assert reading(rows=[0, 1, 4, 5])[1] == 2
    assert len(files_in(tmp_path)) == 4


def test_a_full_disk_stops_no_fit_and_is_left_space(reading, tmp_path):
    reading(rows=[0, 1])
    other = tmp_path / "fit_features" / "fit" / "notes.txt"
    other.write_text("not of a fit")
    maps, computed, said = reading(stop=PermissionError(13, "Permission denied"))
    assert computed == 4 and "denied)" in said and len(files_in(tmp_path)) == 3
    maps, computed, said = reading(stop=OSError(28, "No space left on device"))
    assert computed == 4 and len(maps) == 6 and said.count("No space left on device, and") == 1
    assert files_in(tmp_path) == [other]


def test_features_that_would_fill_the_disk_are_not_kept(reading, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk = types.SimpleNamespace(free=9)
        patch.setattr(fit_feature_files.shutil, "disk_usage", lambda _: disk)
        assert "as the disk has" in reading()[2]
    with monkeypatch.context() as patch:
        patch.setattr(fit_feature_files, "MOST_KEPT", 9)
        assert "are not kept in files, of" in reading()[2]
    assert not files_in(tmp_path)


def test_a_run_that_goes_on_reads_the_files_of_the_run_before(reading, tmp_path):
    reading()
    (tmp_path / "config.json").write_text("{}")
    assert reading(workdir=tmp_path / "continued")[1] == 0


def test_runs_of_studies_leave_no_features(tmp_path):
    given = tmp_path / "log", tmp_path / "run", "train", print
    for program, failed in (("", False), ("import none_such", True)):
        (tmp_path / "run" / "fit_features").mkdir(parents=True)
        assert ("failed" in child_run.record_of_command(["-Sc", program], *given)) == failed
        assert not (tmp_path / "run" / "fit_features").exists()
