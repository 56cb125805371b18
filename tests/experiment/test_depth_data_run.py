"""Sets of depth in their published layouts, through whole runs of the configs for them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

import diffseg_jax
from configs import tiny_ddp_depth
from depth_files import make_depth_folder, make_kitti, make_nyu
from diffseg_jax import main
from diffseg_jax.config.files import run_config
from diffseg_jax.data import depth_sets
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import check_data, stages
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.metrics.depth import DEPTH_METRICS
from diffseg_jax.systems.ddp_depth import make_depth_network, make_depth_settings
from diffseg_jax.training.optimizer import decayed
from diffseg_jax.weights.ddp import DDP_TABLE
from diffseg_jax.weights.tables import _row

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = [f"{name}:swin_{size}" for name in ("ddp_kitti", "ddp_nyu") for size in "tsbl"]
WINDOWS = {"ddp_nyu:swin_l": 12}  # of the other presets 7


def tiny_sets(monkeypatch):
    """Sets of small images; the parts that are cut from them are as small."""
    monkeypatch.setattr(depth_sets, "KITTI_PART", (32, 48))
    monkeypatch.setattr(depth_sets, "NYU_PART", (4, 36, 4, 52))
    return {
        "ddp_kitti": (make_kitti, dict(size=(40, 72)), dict()),
        "ddp_nyu": (make_nyu, dict(size=(40, 72)), dict(crop="none")),
        "ddp_depth_folder": (make_depth_folder, dict(size=(32, 48)), dict(limit=(0, 0))),
    }


def config_of(name, path, evaluate):
    """The shipped config of a data set, with crops and steps for small images."""
    config = run_config(f"{CONFIGS / name}.py")
    config.data.update(path=str(path), threads=2)
    config.stages.train.update(steps=2, batch_size=2)
    config.stages.train.augment.update(crop=(32, 48), limit=(0, 0))
    config.evaluate.update(evaluate)
    config.run = ("train",)
    return config


@pytest.mark.parametrize("name", ["ddp_kitti", "ddp_nyu", "ddp_depth_folder"])
def test_a_set_as_published_is_checked(name, tmp_path, monkeypatch, capsys):
    make, options, evaluate = tiny_sets(monkeypatch)[name]
    config = config_of(name, make(tmp_path / "set", **options), evaluate)
    main.MODES["check"](config, tmp_path / "check")
    said = capsys.readouterr().out
    assert "training can start" in said and re.search(r"depth: \d+.\d% of the pixels are m", said)
    for file in ("train", "train_changed", "val"):
        assert (tmp_path / f"check/check_{file}.png").exists()


def test_a_part_of_a_folder_without_validation_images_is_held_out(tmp_path, capsys):
    make_depth_folder(tmp_path / "set", count=5, size=(32, 48), splits=("",))
    config = config_of("ddp_depth_folder", tmp_path / "set", dict(limit=(0, 0)))
    main.MODES["check"](config, tmp_path / "check")
    said = capsys.readouterr().out
    assert "training can start" in said and "fold 4 of 5, 1 image: " in said


def test_the_check_warns_of_the_range_as_the_training_does(tmp_path, monkeypatch, capsys):
    plan = SimpleNamespace(stages=[], evaluations=())
    make_depth_folder(tmp_path / "set", count=2, size=(32, 48))
    config = config_of("ddp_depth_folder", tmp_path / "set", dict(limit=(0, 0)))
    monkeypatch.setattr(stages, "checked_plan", lambda *_: (plan, ["train: odd depths."]))
    monkeypatch.setattr(check_data, "draw_changes", lambda *_: None)
    main.MODES["check"](config, tmp_path / "check")
    assert "\nwarning: train: odd depths.\nfinished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp_kitti", "ddp_nyu", "ddp_depth_folder"])
def test_a_set_as_published_is_learned_measured_and_predicted(name, tmp_path, monkeypatch):
    """With the network and the sizes of the tiny config, whose programs other tests compile."""
    make, options, _ = tiny_sets(monkeypatch)[name]
    config = tiny_ddp_depth.get_config()
    config.update_from_flattened_dict({
        "run": ("train",), "stages.train.steps": 2, "stages.train.every.evaluate": 2,
        "sampling.steps": 2, "data.source": run_config(f"{CONFIGS / name}.py").data.source,
        "data.path": str(make(tmp_path / "set", **options)), "data.count": 0,
    })  # fmt: skip
    config.data.options = {}
    main.MODES["train"](config, tmp_path / "run")
    result = json.loads((tmp_path / "run/results.json").read_text())["train"]
    assert all(np.isfinite(result[metric]) for metric in DEPTH_METRICS)
    assert result["images"] == (3 if name == "ddp_depth_folder" else 2)
    assert (tmp_path / "run/pictures/train_result.png").exists()
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    found = diffseg_jax.load(tmp_path / "run").predict(image)
    assert found.depth.shape == (1, 32, 48)
    assert config.depth.low <= found.depth.min() <= found.depth.max() <= config.depth.high


# --- shipped configs ------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("preset", [*PRESETS, "ddp_kitti:tiny", "ddp_nyu:tiny", "ddp_depth_folder"])
def test_the_configs_for_depth_are_valid(preset):
    name, _, variant = preset.partition(":")
    config = run_config(f"{CONFIGS / name}.py" + (f":{variant}" if variant else ""))
    check_config(config)
    if variant.startswith("swin"):
        assert config.model.window == WINDOWS.get(preset, 7)
        optim, kitti = config.stages.train.optim, name == "ddp_kitti"
        assert optim.peak_lr == (1e-4 if kitti else 6e-5) and optim.clip_norm == 35
        assert config.depth.high == (80 if kitti else 10) and config.evaluate.flip
        assert tuple(config.stages.train.augment.crop) == ((352, 704) if kitti else (416, 544))


@pytest.mark.quick
def test_a_depth_config_without_a_set_of_depth_is_refused(tmp_path):
    config = run_config(f"{CONFIGS}/ddp_kitti.py:tiny")
    config.data.update(source="scenes")
    with pytest.raises(UserError, match="scenes has labels, and no measured depth.*depth_sc"):
        main.MODES["train"](config, tmp_path / "run")


@pytest.mark.golden
def test_recorded_decay_groups_of_depth(golden):
    """Which parameters the original decays, by the names in its checkpoints."""
    seen = 0
    for path in golden("ddp/keys_*.json"):
        record = json.loads(path.read_text())
        if "decode_head.conv_depth.bias" not in record["tensors"]:
            continue  # a network of another task
        data = "kitti" if "kitti" in record["name"] else "nyu"
        size = next(size for size in "tsbl" if f"swin{size}" in record["name"])
        config = run_config(f"{CONFIGS}/ddp_{data}.py:swin_{size}")
        optim = config.stages.train.optim
        assert (optim.peak_lr, optim.weight_decay, optim.clip_norm) == (
            record["base_lr"], record["base_weight_decay"], record["grad_clip"]["max_norm"]
        )  # fmt: skip
        timed = "decode_head.encoder.layers.0.time_mlp.1.weight" in record["tensors"]
        config.depth.timed = timed
        network = make_depth_network(make_depth_settings(config), "train", "float32", False)
        ours = decayed(network.abstract["params"], optim.no_decay)
        ours = {".".join(path): value for path, value in flatten({"params": ours}).items()}
        for name, (_, kind, decay) in record["tensors"].items():
            if kind == "param":
                assert ours[_row(name, DDP_TABLE)[0]] == (decay > 0), name
                seen += 1
    if not seen:
        pytest.skip("no ddp/keys_*.json of a network for depth")
