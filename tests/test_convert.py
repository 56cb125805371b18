"""A converted official file opens, samples and starts a stage; other files are a sentence."""

import dataclasses
import json
import math
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from PIL import Image

import ddp_file
from benchmarks import lsun_checkpoint
from configs import tiny_ddpm
from diffseg_jax import convert
from diffseg_jax.data.transforms import keep_ratio_size
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.inference import converted as converting
from diffseg_jax.inference.converted import adm_configuration
from diffseg_jax.inference.sampling import sample
from diffseg_jax.inference.segmenter import Segmenter, load
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.weights import adm
from diffseg_jax.weights.adm import load_adm
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.transunet import load_port
from transunet_file import TINY, encoder_shapes, official_file, random_leaves

FLAGS = {  # of the network of the tiny config, for two classes
    "image_size": 16, "num_channels": 32, "channel_mult": "1,1", "num_res_blocks": 1,
    "attention_resolutions": "", "num_heads": 2, "resblock_updown": True, "class_cond": True,
    "num_classes": 2, "learn_sigma": True, "dropout": 0.1, "diffusion_steps": 20,
    "noise_schedule": "cosine", "use_fp16": False,
}  # fmt: skip
MODEL = dict(
    channels=32, channel_mult=(1, 1), res_blocks=1, attention_factors=(), heads=2, head_channels=-1,
    resample_in_blocks=True, scale_shift=True, num_classes=2, learn_sigma=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A state dict in the official names with random numbers."""
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    lsun_checkpoint.write_state_dict(path, lsun_checkpoint.official_shapes(MODEL))
    return path


def called(file, output, source="adm", **flags):
    """The command, as a user types it."""
    written = [f"--{name}={value}" for name, value in flags.items()]
    convert.main([f"--source={source}", f"--input={file}", f"--output={output}", *written])


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory):
    """The directory that the command wrote."""
    directory = tmp_path_factory.mktemp("converted") / "tiny"
    called(file, directory, **FLAGS)
    return directory


def params_of(file):
    """The parameters in a file, without the command."""
    known = adm_configuration("", parsed(FLAGS))
    return flatten(load_adm(read_arrays(file), known.settings, known.order))


def parsed(flags):
    return {name: convert.ADM_FLAGS[name](str(value)) for name, value in flags.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[p], other[p]) for p in one)


# ---- adm -----------------------------------------------------------------------------------------


def test_every_parameter_is_there(file, converted):
    values, meta = open_network(converted)
    assert equal(flatten(values["params"]), params_of(file)) and values["stats"] == {}
    count = sum(map(math.prod, lsun_checkpoint.official_shapes(MODEL).values()))
    assert sum(leaf.size for leaf in flatten(values["params"]).values()) == count
    assert meta["ema"] == [] and meta["step"] == 0 and meta["start"] == str(file)
    assert meta["task"]["size"] == [16, 16] and meta["task"]["model"]["num_classes"] == 2
    assert meta["task"]["diffusion"] == {
        "schedule": "cosine", "steps": 20, "rescale_timesteps": False, "target": "noise",
        "variance": "learned", "loss": "hybrid", "timesteps": "uniform",
    }  # fmt: skip


def test_the_command_prints_the_number_of_parameters(file, tmp_path, capsys):
    called(file, tmp_path / "out", **FLAGS)
    printed = capsys.readouterr()
    count = sum(map(math.prod, lsun_checkpoint.official_shapes(MODEL).values()))
    assert printed.out == f"{tmp_path / 'out'}: {count:,} parameters\n" and printed.err == ""


def test_numpy_files_are_read_too(file, converted, tmp_path):
    np.savez(tmp_path / "tiny.npz", **read_arrays(file))
    called(tmp_path / "tiny.npz", tmp_path / "out", **FLAGS)
    one, other = (open_network(path)[0]["params"] for path in (tmp_path / "out", converted))
    assert equal(flatten(one), flatten(other))


def test_the_order_of_attention_channels_is_followed(file, converted, tmp_path):
    called(file, tmp_path / "new", **FLAGS, use_new_attention_order=True)
    one, other = (flatten(open_network(p)[0]["params"]) for p in (tmp_path / "new", converted))
    differ = {".".join(path) for path in one if not np.array_equal(one[path], other[path])}
    assert differ == {"middle.attention.qkv.kernel", "middle.attention.qkv.bias"}


def test_a_converted_network_samples(converted):
    images = sample(converted, images=2, sampler="ddim", steps="ddim2", classes=(0, 1))
    assert images.shape == (2, 16, 16, 3) and images.std() > 10
    with pytest.raises(UserError, match='"0.9999".*Known: off'):
        sample(converted, ema=0.9999)


# ---- ddp -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ddp_file.TINY)
def official_ddp(request, tmp_path_factory):
    """A DDP state dict in the official names with random numbers, and its settings."""
    path = tmp_path_factory.mktemp("official") / f"{request.param}.npz"
    np.savez(path, **ddp_file.random_file(ddp_file.TINY[request.param]))
    return path, ddp_file.TINY[request.param]


def test_every_value_of_ddp_is_there(official_ddp, tmp_path, capsys):
    file, settings = official_ddp
    called(file, tmp_path / "out", "ddp", groups=8)
    values, meta = open_network(tmp_path / "out")
    ddp_file.assert_is(values, read_arrays(file), settings.backbone)
    count = sum(leaf.size for leaf in flatten(values["params"]).values())
    found, wrote = capsys.readouterr().out.splitlines()
    assert f"{settings.backbone} of depths" in found and "5 classes" in found
    assert "8 groups (--groups)" in found
    assert wrote == f"{tmp_path / 'out'}: {count:,} parameters"
    assert meta["config"]["system"] == "ddp" and meta["stage"] == "converted"
    assert meta["ema"] == [] and meta["step"] == 0 and meta["start"] == str(file)
    assert meta["classes"] == [f"class_{k}" for k in range(5)] and "palette" not in meta


def test_a_converted_file_segments(official_ddp, tmp_path):
    file, settings = official_ddp
    called(file, tmp_path / "out", "ddp", groups=8)
    segmenter = load(tmp_path / "out")
    assert segmenter.task_for().meta["model"] == segmenter.meta["task"]["model"] | {
        key: tuple(segmenter.meta["task"]["model"][key]) for key in ("channels", "depths", "heads")
    }
    program = jax.eval_shape(
        segmenter.task.predict, segmenter.network, np.zeros((1, 40, 48, 3), np.uint8),
        np.array([[40, 48]]),
    )  # fmt: skip
    assert program["logits"].shape == (1, 40, 48, settings.num_classes)


def test_the_task_of_ddp_is_in_the_metadata(official_ddp, tmp_path):
    file, settings = official_ddp
    called(file, tmp_path / "out", "ddp", groups=8)
    task = open_meta(tmp_path / "out")["task"]
    expected = dataclasses.asdict(dataclasses.replace(settings, groups=8))
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in task.pop("model").items()
            } == expected  # fmt: skip
    assert task == {
        "kind": "train", "num_classes": 5, "normalisation": "(v - mean) / std",
        "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375],
        "sampling": {
            "steps": 3, "sampler": "ddim", "draws": 1, "time_difference": 1, "start": 0.0,
            "schedule": "cosine", "accumulate": False,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("classes", "names"), [
    (19, ["road", "sidewalk", "building"]), (150, ["wall", "building", "sky"]),
])  # fmt: skip
def test_published_classes_have_names_and_colours(classes, names, tmp_path):
    settings = dataclasses.replace(ddp_file.TINY["convnext"], num_classes=classes)
    np.savez(tmp_path / "file.npz", **ddp_file.random_file(settings))
    called(tmp_path / "file.npz", tmp_path / "out", "ddp")
    meta = open_meta(tmp_path / "out")
    assert meta["classes"][:3] == names and len(meta["classes"]) == classes
    assert len({tuple(colour) for colour in meta["palette"]}) == classes
    assert meta["task"]["sampling"]["accumulate"] == (classes == 150)
    assert meta["task"]["model"]["groups"] == 32


@pytest.mark.parametrize(("name", "classes", "flags", "steps", "limit"), [
    ("ddp_convnext_t_4x4_512x1024_160k_cityscapes.npz", 19, {}, 3, (2048, 1024)),
    ("ddp_convnext_t_4x4_512x1024_5k_cityscapes_aligned.npz", 19, {}, 10, (2048, 1024)),
    ("ddp_swin_t_2x8_512x512_160k_ade20k.npz", 150, {}, 3, (2048, 512)),
    ("mine_aligned.npz", 19, {"steps": 1, "limit": 0}, 1, (0, 0)),
])  # fmt: skip
def test_the_published_test_protocol_is_written(name, classes, flags, steps, limit, monkeypatch):
    """Images of 1024x2048 stay as they are for Cityscapes, and lose half their sides for ADE20K."""
    settings = dataclasses.replace(ddp_file.TINY["convnext"], num_classes=classes)
    arrays, written = ddp_file.random_file(settings), []
    monkeypatch.setattr(converting, "read_arrays", lambda *given: arrays)
    monkeypatch.setattr(converting, "save_values", lambda *given: written.append(given) or 1)
    called(name, "out", "ddp", **flags)
    ((_, network, meta),) = written
    segmenter = Segmenter("out", network, as_json(meta))
    assert segmenter.meta["task"]["sampling"]["steps"] == steps
    assert segmenter.task_for().meta["sampling"]["steps"] == steps
    expected = keep_ratio_size((1024, 2048), limit) if any(limit) else (1024, 2048)
    assert segmenter.protocol.sizes((1024, 2048)) == [expected]


def test_advised_groups_are_accepted(tmp_path, capsys):
    settings = dataclasses.replace(ddp_file.TINY["convnext"], width=40)
    np.savez(tmp_path / "file.npz", **ddp_file.random_file(settings))
    sentence = refused(capsys, tmp_path / "file.npz", tmp_path / "out", "ddp")
    (groups,) = re.findall(r"such as --groups=(\d+)\.", sentence)
    called(tmp_path / "file.npz", tmp_path / "out", "ddp", groups=groups)
    assert open_meta(tmp_path / "out")["task"]["model"]["groups"] == int(groups)


def refused(capsys, *arguments, **flags):
    """The one line of a command that ends with a sentence."""
    with pytest.raises(SystemExit) as end:
        called(*arguments, **flags)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_flags_of_the_other_source_are_refused(file, tmp_path, capsys):
    for source, flags in (("ddp", {"name": "ffhq"}), ("ddp", {"num_channels": 32, "groups": 8}),
                          ("adm", {**FLAGS, "groups": 8})):  # fmt: skip
        flag = next(name for name in flags if source == "ddp" or name == "groups")
        sentence = refused(capsys, file, tmp_path / "out", source, **flags)
        assert sentence == f"error: --{flag} means nothing for --source={source}. Leave it out.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("groups", [0, -4, 5, 64])
def test_groups_that_do_not_divide_the_width_are_refused(groups, official_ddp, tmp_path, capsys):
    sentence = refused(capsys, official_ddp[0], tmp_path / "out", "ddp", groups=groups)
    assert f"--groups is {groups}, which does not divide the 32 channels" in sentence
    assert "such as --groups=32." in sentence and not (tmp_path / "out").exists()


def test_another_network_is_not_a_ddp(file, official_ddp, tmp_path, capsys):
    sentence = refused(capsys, file, tmp_path / "out", "ddp")
    assert "is no checkpoint of DDP: it is a UNet of guided diffusion (python -m" in sentence
    assert "--source=adm); its first entry is time_embed.0.weight. Give a seg" in sentence
    called(official_ddp[0], tmp_path / "out", "ddp")
    capsys.readouterr()
    sentence = refused(capsys, official_ddp[0], tmp_path / "out", "ddp")
    assert "holds a checkpoint already. Give another --output." in sentence


# ---- transunet, ddpm_seg -------------------------------------------------------------------------

RECORDED = Path(__file__).parent / "recorded"


def opened(monkeypatch, source, given, **flags):
    """The Segmenter of what the command would save, without files."""
    written = []
    monkeypatch.setattr(converting, "save_values", lambda *given: written.append(given) or 1)
    called(given, "out", source, **flags)
    ((_, network, meta),) = written
    return Segmenter("out", network, as_json(meta))


def shapes_match(segmenter):
    """Whether the network has the arrays that its task needs, beside those of a fit."""
    abstract = flatten(jax.eval_shape(segmenter.task.init, jax.random.key(0)))
    found = {path: leaf.shape for path, leaf in flatten(segmenter.network).items()}
    return {path: leaf.shape for path, leaf in abstract.items()}.items() <= found.items()


def outputs_of(segmenter, size):
    """The shapes that a prediction of an image of that size has."""
    image = np.zeros((1, *size, 3), np.uint8)
    maps = jax.eval_shape(segmenter.task.predict, segmenter.network, image, np.array([size]))
    return maps if isinstance(maps, dict) else {"probs": maps}


def test_a_transunet_segments_and_an_encoder_gives_features(monkeypatch, capsys, tmp_path):
    file = RECORDED / "ddep/transunet_ddep_state.pt"
    config = json.loads((RECORDED / "ddep/transunet_ddep.json").read_text())["config"]
    segmenter = opened(monkeypatch, "transunet", file, heads=config["num_heads"])
    assert shapes_match(segmenter) and "a TransUNet" in capsys.readouterr().out
    assert segmenter.config.model.arithmetic == "port" and len(segmenter.names) == 3
    assert segmenter.config.model.decoder == tuple(config["decoder_channels"])
    assert segmenter.config.model.skips == config["n_skip"]
    assert segmenter.protocol.short == config["img_size"]
    assert outputs_of(segmenter, (40, 56))["probs"].shape == (1, 40, 56, 3)
    named = load_port(file, *(jax.tree.map(np.shape, segmenter.network[part])
                              for part in ("params", "stats")))  # fmt: skip
    assert equal(flatten(dict(zip(("params", "stats"), named))), flatten(segmenter.network))

    sentence = refused(capsys, file, "out", "transunet", grid="3,5")
    assert "form no grid of 3x5" in sentence and "For convert it is --grid=4,4." in sentence

    file = tmp_path / "released.npz"
    np.savez(file, **official_file(random_leaves(encoder_shapes(TINY))))
    segmenter = opened(monkeypatch, "transunet", file)
    assert shapes_match(segmenter) and "the decoder is random" in capsys.readouterr().out
    assert segmenter.config.model.heads == TINY["num_heads"]  # the file tells
    assert "encoded" in segmenter.taps and segmenter.config.model.arithmetic == "official"
    with pytest.raises(UserError, match="knows no classes, so it cannot segment"):
        segmenter.predict(np.zeros((32, 32, 3), np.uint8))


@pytest.fixture
def classifiers(tmp_path):
    """Two pixel classifiers in the official names, of 2 steps and 2 blocks of the tiny network."""
    folder = tmp_path / "1_5_0_2"
    folder.mkdir()
    rng, width = np.random.default_rng(0), 128
    for number in range(2):
        arrays = {}
        for layer, (k, n) in {0: (width, 8), 3: (8, 4), 6: (4, 3)}.items():
            arrays |= {f"layers.{layer}.weight": rng.standard_normal((n, k)),
                       f"layers.{layer}.bias": rng.standard_normal(n)}  # fmt: skip
        for layer, n in {2: 8, 5: 4}.items():
            for name in ("weight", "bias", "running_mean", "running_var"):
                arrays[f"layers.{layer}.{name}"] = rng.uniform(0.5, 1.5, n)
        with open(folder / f"model_{number}.pth", "wb") as stream:
            np.savez(stream, **{name: np.float32(array) for name, array in arrays.items()})
    return folder


def test_pixel_classifiers_segment_with_the_network_that_they_read(
    classifiers, tmp_path, monkeypatch, capsys
):  # fmt: skip
    unet = tmp_path / "unet.pt"
    lsun_checkpoint.write_state_dict(
        unet, lsun_checkpoint.official_shapes({**MODEL, "num_classes": 0})
    )
    flags = {name: value for name, value in FLAGS.items() if name not in ("class_cond",)}
    segmenter = opened(monkeypatch, "ddpm_seg", classifiers, unet=unet, **flags)
    said = capsys.readouterr().out
    assert "2 classifiers of 3 classes on 128 features" in said
    assert "levels 1,5 (--feature_steps), blocks 0,2 (--feature_blocks)" in said
    assert shapes_match(segmenter) and segmenter.protocol.short == 16
    assert outputs_of(segmenter, (16, 24))["votes"].shape == (1, 16, 24, 3)
    kernel = segmenter.network["params"]["ensemble"]["linear1"]["kernel"]
    expected = read_arrays(classifiers / "model_1.pth")["layers.0.weight"].T
    np.testing.assert_array_equal(kernel[1], expected)
    for given, part in (({}, "Try --unet="), ({"unet": unet, **flags, "feature_blocks": 9},
                                              "blocks holds 9")):  # fmt: skip
        sentence = refused(capsys, classifiers, tmp_path / "out", "ddpm_seg", **given)
        assert part in sentence


# ---- where a stage starts ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, one folder each."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for name, base in (("dark", 0), ("light", 150)):
        (root / name).mkdir()
        for i in range(3):
            pixels = base + rng.integers(0, 100, (20, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def stage_config(folder, **values):
    """The tiny config on that folder, the classes told apart."""
    config = tiny_ddpm.get_config()
    with config.unlocked():
        config.unlabelled.update(source="unlabelled", path=str(folder))
        config.unlabelled.options = dict(classes="folder", square=16)
    config.model.num_classes = 2
    config.weights = str(values.get("weights", ""))
    config.stages.pretrain.start = str(values.get("start", "random"))
    return config


def test_a_stage_starts_from_the_file_or_the_directory(file, converted, folder, tmp_path):
    for values in (dict(weights=file, start="weights"), dict(start=converted)):
        (plan,) = make_plan(stage_config(folder, **values), tmp_path).stages
        loaded = plan.loaded()
        assert loaded.keys() == {"params"} and equal(flatten(loaded["params"]), params_of(file))


@pytest.mark.slow
def test_a_class_conditional_stage_continues_an_official_file(command, file, folder, tmp_path):
    """After two steps at a tiny learning rate, all parameters have moved a little."""
    stage = "--config.stages.pretrain."
    flags = [
        f"--config.unlabelled.path={folder}", "--config.unlabelled.source=unlabelled",
        f"--config.weights={file}", "--config.model.num_classes=2", f"{stage}start=weights",
        f"{stage}steps=2", f"{stage}accumulate=2", f"{stage}optim.peak_lr=1e-6",
        "--config.samples.images=2", "--config.samples.steps=ddim2",
    ]  # fmt: skip
    config = tmp_path / "config.py"
    scenes = "options=dict(images=10, size=(32, 48), seed=0, square=16)"
    assert scenes in (text := Path(tiny_ddpm.__file__).read_text())
    config.write_text(text.replace(scenes, 'options=dict(square=16, classes="folder")'))
    done = command(tmp_path / "run", *flags, config=config)
    assert done.code == 0 and done.err == "", done.err[-2000:]
    assert done.out.startswith("pretrain: from weights; ") and "6 unlabelled images" in done.out
    values, meta = open_network(tmp_path / "run/checkpoints/pretrain", ema="off")
    ours, theirs = flatten(values["params"]), params_of(file)
    assert max(np.abs(ours[path] - theirs[path]).max() for path in theirs) < 1e-5
    still = {path[0] for path in ours if np.array_equal(ours[path], theirs[path])}
    assert not still and meta["start"] == "weights"
    assert (tmp_path / "run/pictures/pretrain_000002.png").exists()


# ---- what is refused -----------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return print, ("this was run",)


def changed(**values):
    return SimpleNamespace(**dict(dict(flags=FLAGS, source="adm", input="file"), **values))


REFUSED = {
    "wrong width": (
        changed(flags={**FLAGS, "num_channels": 64}),
        ["does not match the requested", "time_embed.0.weight is (32, 128), where (64, 256)",
         "; and 121 more", "No published configuration fits it", "give the settings"],
    ),
    "fewer blocks": (
        changed(flags={**FLAGS, "channel_mult": "1"}),
        ["input_blocks.2", "has no counterpart", "It fits tiny: give that name"],
    ),
    "more blocks": (
        changed(flags={**FLAGS, "num_res_blocks": 2}),
        ["does not match", "more. ", "It fits tiny: give that name"],
    ),
    "no classes": (
        changed(flags={**FLAGS, "class_cond": False}),
        ["label_emb.weight has no counterpart", "It fits tiny: give that name"],
    ),
    "a published name": (
        changed(flags={"name": "lsun_bedroom"}),
        ["does not match the requested network", "It fits tiny: give that name"],
    ),
    "name and flags": (
        changed(flags={"name": "ffhq", "num_channels": 32}),
        ["both --name=ffhq and --num_channels", "the name or the flags"],
    ),
    "neither": (changed(flags={}), ["Give --name (", "lsun_bedroom", "flags"]),
    "unknown name": (
        changed(flags={"name": "lsun_bedrom"}),
        ['"lsun_bedrom"', "Known: ", 'Did you mean "lsun_bedroom"?'],
    ),
    "unknown source": (
        changed(source="amd"), ['"amd"', "Known: adm, convnext", 'Did you mean "adm"?']
    ),
    "size without multiples": (
        changed(flags={"image_size": 48}), ["image_size is 48", "--channel_mult 1,2,3,4"],
    ),
    "attention between levels": (
        changed(flags={**FLAGS, "attention_resolutions": "5"}),
        ["holds 5", "does not divide", "16"],
    ),
    "unknown schedule": (
        changed(flags={**FLAGS, "noise_schedule": "cosin"}), ['"cosin"', 'Did you mean "cosine"?'],
    ),
    "uneven heads": (
        changed(flags={**FLAGS, "num_heads": 3}),
        ["32 channels cannot be shared evenly", "heads 3"],
    ),
    "no file": (changed(input="nothing"), ["there is no file", "nothing"]),
    "a program": (
        changed(input="program"), ["is not tensors only", "Nothing in it was run", "state dict"],
    ),
}  # fmt: skip


@pytest.fixture
def published(monkeypatch):
    """One small configuration to compare files with, as the published ones are large."""
    known = {"tiny": adm_configuration("", parsed(FLAGS))}
    monkeypatch.setattr(adm, "PUBLISHED", known)
    return known


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_and_flags_are_refused(name, published, file, tmp_path, capsys):
    if name == "wrong width":
        published.clear()
    case, parts = REFUSED[name]
    (tmp_path / "program").write_bytes(pickle.dumps({"w": Harmful()}, protocol=2))
    given = file if case.input == "file" else tmp_path / case.input
    with pytest.raises(SystemExit) as end:
        called(given, tmp_path / "out", case.source, **case.flags)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert all(part in lines[0] for part in parts) and lines[0].endswith((".", "?")), lines
    assert printed.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "sentence"),
    [("gs://bucket/x", "is an address. Give an --output on"), ("full", "full is not empty. Give")],
)
def test_an_output_that_cannot_be_new_is_refused(tmp_path, monkeypatch, output, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full/checkpoints").mkdir(parents=True)
    (tmp_path / "stopped/0.orbax-checkpoint-tmp").mkdir(parents=True)
    converting.require_unused("stopped")
    with pytest.raises(UserError, match=sentence):
        converting.require_unused(output)


def test_an_output_that_exists_is_refused(file, converted, capsys):
    before = sorted(path.name for path in converted.iterdir())
    with pytest.raises(SystemExit):
        called(file, converted, **FLAGS)
    assert "holds a checkpoint already. Give another --output." in capsys.readouterr().err
    assert sorted(path.name for path in converted.iterdir()) == before
