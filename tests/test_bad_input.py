"""Each mistake of a user ends in one sentence, a code that is not 0, and nothing half-written."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from configs import tiny_ddpm
from diffseg_jax import annotate, convert, export, info, main, plot, predict, sample, suggest
from diffseg_jax.config.files import read_config
from diffseg_jax.data.pipeline import training_batches
from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stages
from diffseg_jax.experiment.plan import augmentation, check_config, make_plan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.workdir import claim_workdir
from diffseg_jax.training import loop
from diffseg_jax.training.log import Log

TINY = Path(__file__).parent / "configs" / "tiny_ddep.py"

# ---- through the command line: the real code, the real stderr ------------------------------------

CALLS = {  # name -> flags after the config, devices, what the sentence says
    "option": (["--config.stages.pretrain.bach_size=3"], 1, ['Did you mean "batch_size"?']),
    "devices": ([], 8, ["batch_size is 4, but 8 devices", "batch_size=8 or 16"]),
    "seconds": (["--lost_after=1"], 1, ["--lost_after is 1, but it must be a whole number"]),
    "below a file": (["--mode=check"], 1, ["cannot be written", "--workdir=runs/a"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_command_line_ends_with_one_sentence(command, tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    workdir = tmp_path / ("file" if name == "below a file" else "") / "run"
    flags, devices, parts = CALLS[name]
    if devices == 1:
        done = command(workdir, *flags)
    else:
        done = command.process(workdir, *flags, devices=devices)
    assert done.code == 2, (done.code, done.out, done.err)
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    assert all(part in lines[0] for part in parts), done.err
    assert not workdir.exists()


def test_a_workdir_of_another_config_is_refused(tiny_config, command, tmp_path):
    claim_workdir(tiny_config, tmp_path)
    (tmp_path / "checkpoints/pretrain/3").mkdir(parents=True)
    before = (tmp_path / "config.json").read_bytes()
    done = command(tmp_path, "--config.seed=1", "--config.noise.kind=simple")
    lines = done.err.splitlines()
    assert done.code == 2
    assert lines[0].startswith(f"error: workdir {tmp_path} holds a run of another config")
    assert lines[1:] == ["  noise.kind: scaled -> simple", "  seed: 0 -> 1"]
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.slow  # compiles a program of its own
def test_a_loss_that_is_not_finite_ends_the_run(command, tmp_path):
    optim = "--config.stages.scratch.optim."
    flags = ["--config.run=('scratch',)", f"{optim}name=sgd", f"{optim}peak_lr=1e30"]
    flags += [f"{optim}clip_norm=0.0", f"{optim}warmup_ratio=0.0"]
    flags += ["--config.stages.scratch.every.checkpoint=1"]
    done = command(tmp_path / "run", *flags)
    assert done.code == 2 and "Traceback" not in done.err
    assert done.err.startswith("error: stage scratch: the ") and " not finite " in done.err
    assert "--config.stages.scratch.optim.peak_lr" in done.err
    network, _ = open_network(tmp_path / "run/checkpoints/scratch")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(network))
    assert not (tmp_path / "run/results.json").exists()


# ---- flags and files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag, parts",
    [
        ("--config.data.sead=3", ["no option data.sead", "Known: cache, count, fold, folds"]),
        ("--config.stages.pretrain.bach_size=3", ["stages.pretrain.bach_size", '"batch_size"?']),
        ("--config.seed.x=1", ["no option seed.x", "seed is 0"]),
        ("--config.seed=abc", ['--config.seed is "abc"', "a whole number, such as"]),
        ("--config.data.count=1.5", ['--config.data.count is "1.5"', "a whole number, such as"]),
        ("--config.data.cache=maybe", ['is "maybe"', "True or False"]),
        ("--config.evaluate.window=(3,4", ['is "(3,4"', "a tuple, such as (0, 0)"]),
        ("--config.stages=3", ["--config.stages holds several options", "--config.stages.fine"]),
        ("--noconfig.seed", ["--config.seed needs a value: a whole number, such as 0."]),
        ("--processes=two", ["--processes is two, but it must be a whole number."]),
        ("--process", ["--process: expected one argument."]),
        ("--memory_fraction=2", ["--memory_fraction is 2", "a number from 0 to 1."]),
        ("surplus", ['"surplus" is not a flag']),
        ("--mode=trian", ["Known: check, clusters, corruptions, cost, eval, ", "Did you mean"]),
        ("--config=", ["no config was given. Try --config=configs/"]),
        ("--workdir=", ["no workdir was given. Try --workdir=runs/a."]),
        ("--workdri=x", ["no flag --workdri", 'Did you mean "--workdir"?']),
    ],
)
def test_a_mistake_in_a_flag_is_explained(flag, parts):
    with pytest.raises(UserError) as error:
        main.run([f"--config={TINY}", flag])
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ("    c.remat = False\n", "", ['lacks the option "remat"']),
        ("c.remat = False", "c.remat = False; c.remta = 1", ['"remta"', 'mean "remat"?']),
        ('c.system = "ddep"\n', "\n", ['unknown system ""']),
        ("c.seed = 0", "c.seed = zero", ["cannot be run", "NameError", "get_config()"]),
        ("def get_config", "def get", ["cannot be run", "get_config()"]),
        ("return c", "return", ["cannot be run", "ConfigDict"]),
        ("import", "imprt", ["cannot be run", "SyntaxError"]),
    ],
)
def test_a_mistake_in_a_config_file_is_explained(tmp_path, old, new, parts):
    text = TINY.read_text()
    assert old in text
    file = tmp_path / "mine.py"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        check_config(read_config(str(file)))
    assert all(part in str(error.value) for part in parts), error.value


def test_a_missing_config_file_is_named():
    with pytest.raises(UserError) as error:
        read_config(str(TINY.with_name("tiny_dep.py")))
    assert f'Did you mean "{TINY}"?' in str(error.value)


@pytest.mark.parametrize("what", ["loss", "parameters"])
def test_a_run_that_becomes_infinite_keeps_the_last_good_checkpoint(tmp_path, what):
    loss = {"loss": exploding_loss, "parameters": linear_loss}[what]
    rates = {"loss": 0.5, "parameters": lambda step: jnp.where(step < 3, 0.1, 3e38)}
    optimizer = optax.sgd(rates[what])
    stage = loop.Stage(
        name="toy", steps=9, batch_size=2, batches=lambda start: (TOY_BATCH for _ in range(9)),
        init=lambda key: {"params": {"w": jnp.ones(3)}, "stats": {"m": jnp.zeros(3)}},
        trainable=lambda path: True, loss=loss, optimizer=optimizer,
        schedule=lambda step: 0.5, every=dict(log=1, checkpoint=1, evaluate=9), meta={},
    )  # fmt: skip
    with StageCheckpoints(tmp_path / "toy") as checkpoints, pytest.raises(UserError) as error:
        loop.train_network(stage, checkpoints, make_mesh(), Log(tmp_path))
    network, meta = open_network(tmp_path / "toy")
    assert f"stage toy: the {what} or " in str(error.value)
    assert f"The checkpoint of step {meta['step']} is kept" in str(error.value)
    assert "--config.stages.toy.optim.peak_lr" in str(error.value)
    assert 1 <= meta["step"] < 9 and np.all(np.isfinite(network["params"]["w"]))


TOY_BATCH = {"x": np.ones((2, 3), np.float32)}


def linear_loss(params, stats, batch, key):
    """Has a gradient of 3 everywhere, which times 3e38 overflows."""
    return jnp.sum(batch["x"] * 3 * params["w"]), (jnp.asarray(2.0), stats, {})


def exploding_loss(params, stats, batch, key):
    """Grows by the tenth power in each step."""
    return jnp.sum(batch["x"] * params["w"] ** 8), (jnp.asarray(2.0), stats, {})


# ---- in this process -----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A labelled folder of 6 images 32 x 48 of 2 classes in both splits."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for i in range(6):
            image, mask = rng.integers(0, 255, (32, 48, 3)), rng.integers(0, 2, (32, 48))
            Image.fromarray(image.astype(np.uint8)).save(root / f"images/{split}/p{i}.png")
            Image.fromarray(mask.astype(np.uint8)).save(root / f"masks/{split}/p{i}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["a", "b"]}))
    return root


@pytest.fixture
def config(tiny_config, folder):
    """Fine-tuning on that folder, in one stage."""
    with tiny_config.unlocked():
        tiny_config.data.source, tiny_config.data.path = "folder", str(folder)
        tiny_config.data.options, tiny_config.data.count = {}, 0
        tiny_config.run = ("scratch",)
    return tiny_config


def refused(config, workdir):
    """The error message of training, which is raised before anything is written."""
    with pytest.raises(UserError) as error:
        stages.train(config, workdir)
    assert not workdir.exists()
    sentence = str(error.value)
    assert sentence.endswith((".", "?", '".')) and "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    "path, value, parts",
    [
        ("system", "ddepp", ['unknown system "ddepp"', 'Did you mean "ddep"?']),
        ("data.source", "camvit", ['unknown data set "camvit"', 'Did you mean "camvid"?']),
        ("data.path", "/nowhere", ["/nowhere is not a folder", "images/<split>"]),
        ("data.train", "trian", ["trian is not a folder", "train, val"]),
        ("data.count", 7, ["count is 7, but there are 6"]),
        ("run", ("scrach",), ['"scrach"', 'Did you mean "scratch"?']),
        ("stages.scratch.kind", "finetun", ['"finetun"', 'Did you mean "finetune"?']),
        ("stages.scratch.start", "/nowhere", ["there is no directory /nowhere"]),
        ("stages.scratch.optim.name", "adamm", ['unknown optimizer "adamm"']),
        ("stages.scratch.optim.schedule", "cosin", ['unknown schedule "cosin"', '"cosine"?']),
        ("stages.scratch.augment.crop", (320, 480), ["32 x 48", 'crop="(32, 32)"', "short=480"]),
        ("stages.scratch.batch_size", 0, ["batch_size is 0", "from 1 to 1048576"]),
        ("stages.scratch.accumulate", 3, ["batch_size is 4", "in 3 parts", "batch_size=3 or 6"]),
        ("mesh.fsdp", 5, ["number of devices, 1", "--config.mesh."]),
        ("model.hidden", 33, ["model.hidden is 33", "--config.model.hidden=34"]),
        ("noise.low", 0.5, ["noise.low is 0.5", "low <= high"]),
        ("evaluate.view", "slide", ["evaluate.window is (0, 0)"]),
        ("dtype", "float16", ["dtype is 'float16'", "float32, bfloat16"]),
    ],
)
def test_an_invalid_value_is_explained(config, tmp_path, path, value, parts):
    *above, last = path.split(".")
    branch = config
    for key in above:
        branch = branch[key]
    branch[last] = value
    sentence = refused(config, tmp_path / "run")
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    "values, parts",
    [
        (
            {"stages.pretrain.augment.crop": (16, 15)},
            ["stages.pretrain.augment.crop is (16, 15)", "multiples of 2", 'crop="(16, 14)"'],
        ),
        ({"model.heads": 3}, ["32 channels", "shared evenly", "heads 3"]),
        ({"model.heads": 2, "model.head_channels": 24}, ["32 channels", "head_channels 24"]),
        ({"model.channels": 40}, ["channels 40", "a multiple of 32"]),
        ({"model.attention_factors": (4,)}, ["attention_factors holds 4", "1, 2 only"]),
        (
            {"model.learn_sigma": False},
            ["learn_sigma is False", "variance learned", "diffusion.variance=fixed_large"],
        ),
        (
            {"diffusion.variance": "fixed_small"},
            ["learn_sigma is True", "variance fixed_small", "diffusion.variance=learned"],
        ),
        (
            {"model.learn_sigma": False, "diffusion.variance": "fixed_large"},
            ["loss is hybrid", "learn_sigma is False", "--config.diffusion.loss=simple"],
        ),
        ({"diffusion.loss": "hybird"}, ["diffusion.loss is 'hybird'", "mean", "hybrid"]),
        ({"diffusion.timesteps": "even"}, ["uniform, loss_second_moment"]),
        ({"samples.steps": "ddim9"}, ["ddim9 is not possible", "ddim10"]),
        ({"samples.steps": "30"}, ['"30"', "at most 20"]),
        ({"samples.images": 0}, ["samples.images is 0", "from 1 to 64"]),
        ({"samples.eta": 2.0}, ["samples.eta is 2.0", "from 0 to 1"]),
        ({"samples.sampler": "dpm"}, ["samples.sampler is 'dpm'", "ddpm, ddim"]),
        (
            {"model.num_classes": 3},
            ["num_classes is 3", "no classes", "--config.model.num_classes=0"],
        ),
        ({"stages.pretrain.start": "weights"}, ["no file is given", "--config.weights="]),
        (
            {"stages.pretrain.start": "weights", "weights": "/nowhere.pt"},
            ["there is no file /nowhere.pt"],
        ),
        ({"weights_order": "old"}, ["weights_order is 'old'", "legacy, new"]),
        ({"stages.pretrain.start": "/nowhere"}, ["there is no directory /nowhere"]),
        ({"stages.pretrain.ema": (1.0,)}, ["stages.pretrain.ema", "0.999999"]),
        ({"stages.pretrain.kind": "finetune"}, ['"finetune"', "pretrain"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_an_invalid_value_of_a_diffusion_model_is_explained(tmp_path, values, parts):
    config = tiny_ddpm.get_config()
    with config.unlocked():
        for path, value in values.items():
            *above, last = path.split(".")
            branch = config
            for key in above:
                branch = branch[key]
            branch[last] = value
    sentence = refused(config, tmp_path / "run")
    assert all(part in sentence for part in parts), sentence


def test_unlabelled_images_need_no_options_of_labelled_ones(tmp_path):
    """If a config has them nevertheless, the error says that they are not read."""
    config = tiny_ddpm.get_config()
    check_config(config)
    with config.unlocked():
        config.data = dict(config.unlabelled)
    assert 'unknown option "data"' in refused(config, tmp_path / "run")


def test_an_empty_folder_is_refused(config, folder, tmp_path):
    for file in (folder / "images/val").iterdir():
        file.unlink()
    assert "holds no file" in refused(config, tmp_path / "run")


def test_an_image_without_a_mask_is_named(config, folder, tmp_path):
    (folder / "masks/train/p4.png").unlink()
    assert "1 of 6 images" in (sentence := refused(config, tmp_path / "run"))
    assert "p4.png" in sentence


# What is wrong with a single file shows when it is read, perhaps in the middle of training.


def damage_id(folder):
    Image.fromarray(np.full((32, 48), 9, np.uint8)).save(folder / "masks/train/p4.png")
    return ["p4.png has class id 9", "0..1"]


def damage_size(folder):
    Image.fromarray(np.zeros((16, 48), np.uint8)).save(folder / "masks/train/p4.png")
    return ["p4.png is 48x16", "48x32"]


def damage_file(folder):
    file = folder / "images/train/p4.png"
    file.write_bytes(file.read_bytes()[:900])
    return ["cannot read", "p4.png"]


@pytest.mark.parametrize("damage", [damage_id, damage_size, damage_file])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_file_in_the_middle_of_training_is_named(config, folder, tmp_path, damage, threads):
    parts = damage(folder)
    config.data.threads = threads
    plan = make_plan(config, tmp_path / "run").stages[-1]  # the first file is good
    batches = training_batches(
        plan.source, plan.indices, augmentation(plan.options.augment, labelled=True),
        seed=0, batch_size=2, start=0, steps=3, threads=threads,
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        list(batches)
    assert all(part in str(error.value) for part in parts)


def test_a_bad_first_file_is_found_before_anything_is_written(config, folder, tmp_path):
    (folder / "images/train/p0.png").write_bytes(b"")
    assert "p0.png" in refused(config, tmp_path / "run")


def test_labels_from_which_nothing_can_be_learned_are_refused(config, folder, tmp_path):
    for file in (folder / "masks").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(255)).save(file)
    sentence = refused(config, tmp_path / "run")
    assert 'train: every labelled pixel is "a", and' in sentence
    assert f'If 255 is "b", set "ids": [0, 255] in {folder}/classes.json.' in sentence
    entries = {"names": ["a", "b", "never"], "ids": [0, 255, 7]}
    (folder / "classes.json").write_text(json.dumps(entries))
    _, warnings = stages.checked_plan(config, tmp_path / "run")
    assert warnings == ['no mask shows "never".']


def test_only_a_run_with_checkpoints_reserves_its_workdir(tiny_config, tmp_path):
    claim_workdir(tiny_config, tmp_path)
    tiny_config.seed = 1
    claim_workdir(tiny_config, tmp_path)  # nothing was trained: a mistake may be mended
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    (tmp_path / "checkpoints/pretrain/3").mkdir(parents=True)
    claim_workdir(tiny_config, tmp_path)
    tiny_config.mesh.fsdp = 2
    claim_workdir(tiny_config, tmp_path)  # the devices may change
    tiny_config.seed = 2
    with pytest.raises(UserError, match="seed: 1 -> 2"):
        claim_workdir(tiny_config, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        claim_workdir(tiny_config, tmp_path)
    assert (tmp_path / "config.json").read_text() == "{"


def test_evaluation_without_a_checkpoint_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        stages.evaluate_only(tiny_config, tmp_path / "run")
    claim_workdir(tiny_config, tmp_path / "run")
    with pytest.raises(UserError, match="holds no checkpoint that can predict"):
        stages.evaluate_only(tiny_config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


# ---- the flags of all commands -------------------------------------------------------------------

COMMANDS = (annotate, convert, export, info, main, plot, predict, sample, suggest)


@pytest.mark.parametrize("command_", COMMANDS, ids=lambda module: module.__name__)
def test_all_commands_read_flags_in_the_same_way(command_, capsys):
    name = command_.__name__
    with pytest.raises(SystemExit) as end:
        command_.main(["--xyzzy=1"])
    shown = capsys.readouterr()
    assert end.value.code == 2 and shown.out == ""
    assert shown.err.startswith("error: there is no flag --xyzzy. Known: --"), shown.err
    assert shown.err.count("\n") == 1
    with pytest.raises(SystemExit) as end:
        command_.main(["--help"])
    shown = capsys.readouterr()
    assert end.value.code == 0 and shown.err == ""
    assert shown.out.startswith(f"usage: python -m {name} ") and f"python -m {name} --" in shown.out


def test_a_missing_flag_is_reported_in_one_sentence(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--output=x"])
    shown = capsys.readouterr().err
    assert shown.startswith("error: the following arguments are required: --checkpoint. All flags")


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--seed=x"], "--seed is x, but it must be a whole number."),
        (["--scales=1,y"], "--scales is 1,y, but it must be numbers, such as 0.75,1,1.25."),
        (["--tile", "3z"], "--tile is 3z, but it must be a side, such as 512, or height,width."),
        (["--flip=perhaps"], "--flip is perhaps, but it must be True or False."),
        (["--palette=x"], "--palette is x, but known are own, readable. All flags"),
    ],
)
def test_an_invalid_value_of_a_flag_is_reported_in_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit):
        predict.main(["--checkpoint=scenes", "--images=x", "--output=y", *flags])
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
