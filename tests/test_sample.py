"""The sampling command: what it writes, what an image depends on, and what it refuses."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from configs.tiny_ddpm import get_config
from diffseg_jax import sample as command_line
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError
from diffseg_jax.figures import layout
from diffseg_jax.inference import sampling
from diffseg_jax.sources.diffusion import make_network, make_settings
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.systems import ddpm_sampling, ddpm_seg_config

OPTIONS = dict(sampler="ddim", steps="ddim4")


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Compiles each step once; every call of the command would compile it again."""
    made = {}

    def make_step(network, process, options, sampler, eta):
        kind = process.timesteps, sampler, eta
        if kind not in made:
            step = ddpm_sampling.make_step(network, process, options, sampler, eta).__wrapped__
            quick = {"xla_backend_optimization_level": 0}
            made[kind] = jax.jit(step, donate_argnums=1, compiler_options=quick)
        return made[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "make_step", make_step)
        yield


@functools.cache
def task_of(num_classes):
    config = get_config()
    config.model.num_classes = num_classes
    return ddpm_seg_config.make_task(config, "pretrain", (16, 16), num_classes)


def write(directory, num_classes):
    """A checkpoint with two averages and random parameters, so that all outputs vary."""
    task = task_of(num_classes)
    shapes = jax.eval_shape(task.init, jax.random.key(0))["params"]
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32)
    state = {"params": jax.tree.map(draw, shapes)}
    state["ema"] = {rate: jax.tree.map(draw, shapes) for rate in ("0.9", "0.5")}
    meta = {"task": task.meta, "ema": [0.9, 0.5], "stage": "pretrain", "step": 3}
    with StageCheckpoints(directory) as checkpoints:
        checkpoints.save(3, state, meta)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint of a network with three classes."""
    return write(tmp_path_factory.mktemp("classes") / "pretrain", 3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The checkpoint of a network without classes."""
    return write(tmp_path_factory.mktemp("plain") / "pretrain", 0)


@pytest.fixture(scope="module")
def whole(checkpoint):
    """Six images, two at a time."""
    return sampling.sample(checkpoint, images=6, batch_size=2, **OPTIONS).astype(int)


def far(one, other):
    """Largest difference of two byte images."""
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max()


# ---- what an image depends on --------------------------------------------------------------------


def test_an_image_is_a_function_of_seed_and_index(checkpoint, whole):
    """A byte may differ by one where another batch shape rounds float32 differently."""
    assert whole.shape == (6, 16, 16, 3) and whole.std() > 10
    assert len({image.tobytes() for image in whole}) == 6
    for images, size in ((5, 4), (1, 9)):
        fewer = sampling.sample(checkpoint, images=images, batch_size=size, **OPTIONS)
        assert fewer.shape[0] == images and far(fewer, whole[:images]) <= 1
    again = sampling.sample(checkpoint, images=6, batch_size=2, **OPTIONS)
    np.testing.assert_array_equal(again, whole)
    other = sampling.sample(checkpoint, images=2, seed=1, **OPTIONS)
    assert np.mean(np.abs(other - whole[:2]) > 1) > 0.5


def test_indices_may_come_in_any_order(checkpoint, whole):
    values, meta = open_network(checkpoint)
    network = make_network(make_settings(meta["task"]["model"]), "float32", False)
    process = make_process("cosine", 20, "ddim4")
    images = ddpm_sampling.sample_images(
        sampling.make_step(network, process, meta["task"]["diffusion"], "ddim", 0.0),
        process, values["params"], seed=0, indices=[4, 1], size=(16, 16), classes=np.array([1, 1]),
    )  # fmt: skip
    assert far(images, whole[[4, 1]]) <= 1


def test_classes_reach_the_network_and_take_turns(checkpoint, whole):
    options = dict(OPTIONS, images=6, batch_size=2)
    turns = sampling.sample(checkpoint, classes=(0, 1, 2), **options)
    np.testing.assert_array_equal(turns, whole)
    twos = sampling.sample(checkpoint, classes=(2,), **options)
    np.testing.assert_array_equal(twos[[2, 5]], whole[[2, 5]])
    for index in (0, 1, 3, 4):
        assert far(twos[index], whole[index]) > 1


def test_the_first_moving_average_is_taken_unless_another_is_named(checkpoint, whole):
    options = dict(OPTIONS, images=2, batch_size=2)
    np.testing.assert_array_equal(sampling.sample(checkpoint, ema=0.9, **options), whole[:2])
    for other in ("0.5", "off"):
        assert far(sampling.sample(checkpoint, ema=other, **options), whole[:2]) > 1


def test_sampler_and_steps_change_images(checkpoint, whole):
    other = dict(sampler="ddpm", steps="3")
    assert far(sampling.sample(checkpoint, images=2, batch_size=2, **other), whole[:2]) > 1


def test_the_size_may_differ_from_the_trained_one(checkpoint):
    images = sampling.sample(checkpoint, images=1, size=(8, 26), **OPTIONS)
    assert images.shape == (1, 8, 26, 3) and images.std() > 10


# ---- the command ---------------------------------------------------------------------------------


def called(*flags):
    """The command, with no cache of compiled programs."""
    command_line.main([*map(str, flags), "--compilation_cache="])


def test_the_command_writes_single_files_and_a_grid(checkpoint, whole, tmp_path, capsys):
    output = tmp_path / "new" / "samples"
    flags = ["--images=5", "--sampler=ddim", "--steps=ddim4", "--batch_size=2", "--ema=0.9"]
    called(f"--checkpoint={checkpoint}", f"--output={output}", *flags)
    names = [f"{index:06d}.png" for index in range(5)]
    assert {path.name for path in output.iterdir()} == {*names, "grid.png"}
    images = np.stack([np.asarray(Image.open(output / name)) for name in names])
    assert far(images, whole[:5]) <= 1
    np.testing.assert_array_equal(Image.open(output / "grid.png"), layout.grid(images))
    printed = capsys.readouterr()
    assert printed.err == "" and f"5 images in {output}" in printed.out


def refused(capsys, *flags):
    """The one sentence with which the command ends."""
    with pytest.raises(SystemExit) as end:
        called(*flags)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert lines[0].endswith((".", "?"))
    return lines[0]


@pytest.mark.parametrize("flags, parts", [
    (["--size=15,16"], ["size is (15, 16)", "multiples of 2", "Try --size=14,16."]),
    (["--size=16"], ["size is (16,)", "Try --size=64,64"]),
    (["--size=0,16"], ["size is (0, 16)", "multiples of 2"]),
    (["--classes=0,3"], ["class 3", "0 to 2"]),
    (["--classes=-1"], ["class -1", "0 to 2"]),
    (["--ema=0.99"], ['"0.99"', "Known: 0.5, 0.9, off"]),
    (["--steps=ddim9"], ["ddim9", "20 steps", "ddim10"]),
    (["--steps=21"], ['"21"', "at most 20"]),
    (["--steps=many"], ['"many"', "Type a count"]),
    (["--steps=0"], ["at least one"]),
    (["--images=0"], ["images is 0", "1 or more"]),
    (["--batch_size=0"], ["batch_size 0", "1 or more"]),
    (["--sampler=ddim", "--eta=1.5"], ["eta is 1.5", "from 0", "to 1"]),
], ids=lambda value: value[-1] if value[0].startswith("--") else "")  # fmt: skip
def test_options_that_do_not_fit_are_refused(checkpoint, tmp_path, capsys, flags, parts):
    sentence = refused(capsys, f"--checkpoint={checkpoint}", f"--output={tmp_path}", *flags)
    assert all(part in sentence for part in parts), sentence
    assert not list(tmp_path.iterdir())


def test_a_class_for_a_network_without_classes_is_refused(plain, tmp_path, capsys):
    sentence = refused(capsys, f"--checkpoint={plain}", f"--output={tmp_path}", "--classes=0")
    assert "a class was given" in sentence and "Leave it out" in sentence


def test_a_directory_without_a_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(b"")
    (tmp_path / "run/checkpoints/pretrain/6").mkdir(parents=True)
    for name, part in [
        ("", "holds no checkpoint. Give the directory of a stage, such as"),
        ("nowhere", "there is no directory"),
        ("x.pt", "is a file, not the directory of a stage"),
        ("run", f"Did you mean {tmp_path}/run/checkpoints/pretrain?"),
    ]:
        sentence = refused(capsys, f"--checkpoint={tmp_path / name}", f"--output={tmp_path / 's'}")
        assert part in sentence and str(tmp_path / name) in sentence


def test_a_checkpoint_of_another_system_is_refused(tmp_path, capsys):
    with StageCheckpoints(tmp_path / "ddep") as checkpoints:
        meta = {"task": {"kind": "pretrain", "grid": [2, 2]}, "ema": []}
        checkpoints.save(1, {"params": {"w": np.zeros(2, np.float32)}}, meta)
    sentence = refused(capsys, f"--checkpoint={tmp_path / 'ddep'}", f"--output={tmp_path / 's'}")
    assert "holds no diffusion model" in sentence and "ddpm_seg" in sentence


def test_an_output_that_is_not_a_folder_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        sentence = refused(capsys, f"--checkpoint={checkpoint}", f"--output={output}")
        assert f"{output} cannot be created" in sentence and "--output" in sentence


def test_an_unknown_sampler_is_refused(checkpoint):
    with pytest.raises(UserError, match='sampler "ddmp".*ddim, ddpm'):
        sampling.sample(checkpoint, sampler="ddmp", images=1)
