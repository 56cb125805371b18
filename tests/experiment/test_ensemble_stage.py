"""A stage that fits an ensemble: from the command to the results, and what is refused before."""

import contextlib
import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.tiny_ddpm_seg import get_config
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment import (
    ensemble_stage,
    fit_feature_files,
    fit_features,
    fit_images,
    fit_network,
    kept_features,
    linear_probe,
    stages,
    tap_study,
)
from diffseg_jax.experiment.plan import check_config, make_plan
from diffseg_jax.experiment.pretraining_probe import make_scorer
from diffseg_jax.inference import sampling
from diffseg_jax.metrics.image_counts import mean_iou, read_image_counts
from diffseg_jax.storage.networks import open_network
from diffseg_jax.systems import ddpm_seg_config
from diffseg_jax.systems.recipes import RECIPES
from diffseg_jax.training import fit_loop


@pytest.fixture(scope="module", autouse=True)
def shorter():
    """The fast recipe in a third of its steps, which are enough for what is asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "fast", dataclasses.replace(RECIPES["fast"], steps=350))
        yield


@pytest.fixture
def seg_config():
    """A fresh copy of the tiny config of both stages, with the short recipe."""
    config = get_config()
    config.ensemble.recipe = "fast"
    return config


@pytest.fixture(scope="module")
def fitted(shorter, tmp_path_factory):
    """The workdir of a whole run, which no test may change."""
    config = get_config()
    config.ensemble.recipe = "fast"
    workdir = tmp_path_factory.mktemp("fitted")
    stages.train(config, workdir)
    return workdir


# ---- a whole run ---------------------------------------------------------------------------------


def test_a_run_leaves_results_by_both_conventions_and_a_checkpoint_that_is_whole(fitted):
    result = json.loads((fitted / "results.json").read_text())["fit"]
    assert result["labelled_images"] == 3 and result["images"] == 6
    assert set(result["ddpm_seg"]) == {"mIoU", "mAcc", "aAcc", "IoU", "Acc"}
    assert 0 < result["AUROC"] < 1 and 0 < result["image_uncertainty"] < 1
    network, meta = open_network(fitted / "checkpoints" / "fit")
    assert set(network["params"]) == {"unet", "ensemble"}
    assert set(network["stats"]) == {"noise", "ensemble"}
    assert meta["finished"] and len(meta["classes"]) == len(result["IoU"])
    unet = open_network(fitted / "checkpoints" / "pretrain")[0]["params"]
    jax.tree.map(np.testing.assert_array_equal, network["params"]["unet"], unet)


def test_counts_of_single_images_have_the_mean_iou_of_both_conventions(fitted):
    result = json.loads((fitted / "results.json").read_text())["fit"]
    kept = read_image_counts(fitted / "image_counts_fit.npz")
    assert len(set(kept.names)) == result["images"] and kept.classes == tuple(result["IoU"])
    sums = kept.counts.sum(0)
    assert mean_iou(sums, kept.absent, kept.unscored) == result["mIoU"]
    assert mean_iou(sums, "zero", kept.unscored, True) == result["ddpm_seg"]["mIoU"]


def test_a_finished_fit_is_not_repeated_and_eval_agrees(fitted, seg_config, capsys):
    before = (fitted / "results.json").read_bytes()
    stages.train(seg_config, fitted)
    assert "fit: is finished" in capsys.readouterr().out
    assert (fitted / "results.json").read_bytes() == before
    stages.evaluate_only(seg_config, fitted)
    again = json.loads((fitted / "results_eval.json").read_text())["fit"]
    assert again == json.loads(before)["fit"]


@pytest.fixture
def fresh_config(seg_config, fitted):
    """Of a linear fit to an image and two copies, whose noise differs."""
    seg_config.features.noise = "fresh"
    seg_config.stages.fit.augment.variants = 2
    seg_config.ensemble.recipe, seg_config.ensemble.probe = "linear", False
    seg_config.ensemble.widths, seg_config.run = (), ("fit",)
    seg_config.stages.fit.start = str(fitted / "checkpoints" / "pretrain")
    return seg_config


@pytest.mark.slow  # compiles programs of its own; the copies themselves are compared below
def test_a_fit_to_copies_with_fresh_noise_says_so(fresh_config, tmp_path):
    stages.train(fresh_config, tmp_path)
    result = json.loads((tmp_path / "results.json").read_text())["fit"]
    assert result["features"] == {"noise": "fresh", "copies": 3}


def test_copies_of_a_labelled_image_have_fresh_noise_and_predictions_another(
    fresh_config, tmp_path
):
    plan = make_plan(fresh_config, tmp_path).stages[0]
    network = fit_network.open_backbone(plan)
    shown = np.array([[plan.indices[0], copy] for copy in range(3)])
    maps = fit_features.collect(plan, network, shown).maps[0]
    assert not np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[1], maps[2])
    seeds = fit_images.seeds_of_copies(0, shown, 3)
    assert len({*seeds.tolist(), fresh_config.seed}) == 4


def test_a_fit_to_kept_features_has_the_same_results_and_they_are_computed_once(
    fitted, seg_config, tmp_path, capsys
):
    seg_config.run, seg_config.stages.fit.start = ("fit",), str(fitted / "checkpoints/pretrain")
    kept = seg_config.copy_and_resolve_references()
    kept.features.steps, kept.features.blocks = (1, 3, 5), (0, 1, 2)  # more than are read
    folder = tmp_path / "features"
    plan = kept_features.plan_features(kept, tmp_path)
    for number in (9, 0):  # images computed the first and the second time
        kept_features.keep_all(plan, folder)
        said = " ".join(capsys.readouterr().out.split())
        assert f"{number} images computed now, 27 passes of the network in all" in said
    seg_config.stages.fit.start = "weights"
    seg_config.features.sources = (f"files={folder}",)
    stages.train(seg_config, tmp_path / "run")
    result, whole = (
        json.loads((workdir / "results.json").read_text())["fit"]
        for workdir in (tmp_path / "run", fitted)
    )
    assert {**result, "start": ""} == {**whole, "start": ""}
    seg_config.features.steps = (1, 7)
    refused(seg_config, tmp_path / "other", "hold no output_0@7; they hold output_0@1, output_1@1")
    with pytest.raises(UserError, match="holds other features"):
        kept_features.keep_all(dataclasses.replace(plan, seed=1), folder)
    kept.features.noise, kept.stages.fit.augment.variants = "fresh", 1
    for change, sentence in (({}, "noise is fresh"), ({"features.sources": ("colour",)}, "keeps")):
        kept.update_from_flattened_dict(change)
        with pytest.raises(UserError, match=sentence):
            kept_features.keep_features(kept, tmp_path / "kept")


def test_colours_need_no_network_and_have_a_linear_probe(seg_config, tmp_path, capsys):
    seg_config.features.sources, seg_config.stages.fit.start = ("colour",), "random"
    seg_config.run, seg_config.ensemble.probe = ("fit",), True
    stages.train(seg_config, tmp_path)
    network, meta = open_network(tmp_path / "checkpoints" / "fit")
    assert set(network["params"]) == {"ensemble"}
    assert set(network["stats"]) == {"ensemble", "probe"}
    assert meta["task"]["features_per_pixel"] == 5
    result = json.loads((tmp_path / "results.json").read_text())["fit"]
    assert result["mIoU"] > 0.2  # sky is above and roads are below
    assert 0.15 < result["linear_probe"]["mIoU"] != result["mIoU"]
    headings = [line.split() for line in capsys.readouterr().out.splitlines() if "(from" in line]
    assert headings == [["fit", "(from", "fit,", "linear", "fit,", "counted"]]
    resumed = fit_network.open_backbone(make_plan(seg_config, tmp_path).stages[0])["stats"]
    np.testing.assert_array_equal(resumed["probe"]["kernel"], network["stats"]["probe"]["kernel"])


def test_features_in_the_hosts_memory_give_the_same_fit(seg_config, fitted, tmp_path):
    seg_config.features.place, seg_config.run = "host", ("fit",)
    seg_config.stages.fit.start = str(fitted / "checkpoints" / "pretrain")
    stages.train(seg_config, tmp_path)
    here, there = (json.loads((d / "results.json").read_text())["fit"] for d in (tmp_path, fitted))
    assert abs(here["mIoU"] - there["mIoU"]) < 0.02


def test_a_fit_in_the_hosts_memory_reads_the_files_of_one_on_the_devices(
    seg_config, fitted, tmp_path
):  # fmt: skip
    seg_config.features.place, seg_config.run = "host", ("fit",)
    seg_config.stages.fit.start = str(fitted / "checkpoints" / "pretrain")
    shutil.copytree(fitted / "fit_features", tmp_path / "fit_features")
    plan = make_plan(seg_config, tmp_path).stages[0]
    network, extract = fit_network.open_backbone(plan), fit_features.extractor(plan)
    read = fit_images.read_masks(plan, plan.task.fit.small_objects)
    files = fit_feature_files.maps_of_fit(plan, network, extract, read)
    assert len(files.keys) == 3 and files.lacking() == [] and plan.task.fit.on_host


class Captured(Exception):
    """Ends a stage before its first step."""


@pytest.mark.parametrize("balance", ["recipe", "none", "class", "stroke"])
def test_pixels_may_be_drawn_evenly_by_class_or_stroke(seg_config, tmp_path, balance, monkeypatch):
    def captured(fit, *_):
        raise Captured(fit)

    monkeypatch.setattr(fit_loop, "train_members", captured)
    seg_config.features.sources, seg_config.stages.fit.start = ("colour",), "random"
    seg_config.run, seg_config.ensemble.probe = ("fit",), False
    seg_config.ensemble.recipe, seg_config.ensemble.widths = "regularised", ()
    if balance != "recipe":  # a config may lack it
        seg_config.stages.fit.balance = balance
    with pytest.raises(Captured) as found:
        stages.train(seg_config, tmp_path)
    (fit,) = found.value.args
    assert fit.power == {"none": None}.get(balance, 0.5)
    if balance in ("recipe", "none"):
        assert fit.chances is None
        return
    shares = np.bincount(fit.labels, fit.chances)
    np.testing.assert_allclose(shares[shares > 0], 1 / len(np.unique(fit.labels)))
    of_sky = fit.chances[fit.labels == np.bincount(fit.labels).argmax()]
    assert (np.ptp(of_sky) > 1e-9) == (balance == "stroke")
    assert fit.meta["config"]["stages"]["fit"]["balance"] == balance


@pytest.mark.parametrize(("lacking", "counted"), [(None, 3), (6, 3), (2, 1), (1, 1)])
def test_time_is_reserved_for_features_that_are_not_in_files(monkeypatch, lacking, counted):
    read = []
    plan = plan_of_time()
    shown = types.SimpleNamespace(seconds_each=0.5)
    monkeypatch.setattr(ensemble_stage, "features_shown", lambda *_: contextlib.nullcontext(shown))
    monkeypatch.setattr(ensemble_stage, "collect", lambda *given: read.append(given))
    budget = types.SimpleNamespace(copies=lambda plan, images, copies, each: images)
    files = lacking and types.SimpleNamespace(
        lacking=lambda: list(range(6))[-lacking:], of=lambda rows: list(rows)
    )
    kept = np.array([[index, copy] for index in range(3) for copy in range(2)])
    assert ensemble_stage._copies_in_time(plan, budget, None, kept, None, files) == counted
    ((_, _, few, *_, written),) = read
    rows = {None: [0, 1], 6: [0, 1], 2: [4, 5], 1: [5, 5]}[lacking]  # a file is written of each
    assert written == (files and rows) and few.tolist() == kept[rows].tolist()


def test_no_program_is_compiled_to_be_timed_when_all_features_are_in_files():
    files = types.SimpleNamespace(lacking=list)
    given = plan_of_time(), None, None, np.zeros((6, 2), int), None, files
    assert ensemble_stage._copies_in_time(*given) == 1


def plan_of_time():
    """As much of a plan as the measurement of features needs."""
    augment = types.SimpleNamespace(get=lambda *_: 1)
    return types.SimpleNamespace(
        name="fit", mesh=types.SimpleNamespace(size=1), log=types.SimpleNamespace(say=print),
        options=types.SimpleNamespace(augment=augment),
    )  # fmt: skip


def test_random_weights_make_a_network_as_deep_as_trained_ones(seg_config):
    """Fresh residual branches end in zeros, which would leave a linear filter of the image."""
    task = ddpm_seg_config.make_task(seg_config, "fit", (32, 48), 9)
    one = lambda params: params["output_2"]["residual"]["conv2"]["kernel"]  # alone soon compiled
    kernel = jax.jit(lambda key: one(task.init(key)["params"]["unet"]))(jax.random.key(0))
    assert np.std(kernel) > 1e-3


# ---- what is refused, before anything is trained -------------------------------------------------


@pytest.mark.parametrize(("change", "sentence"), [
    ({"features.blocks": (1, 4)}, "holds 4, but this network has the blocks 0 to 3"),
    ({"features.steps": (20,)}, "holds 20, but this network has the steps 0 to 19"),
    ({"features.blocks": (1, 1)}, "holds 1 twice"),
    ({"ensemble.widths": (64,)}, "has two hidden layers"),
    ({"features.noise_file": "a.npy", "features.share_noise": False}, "reads no file"),
    ({"features.noise_file": "a.npy", "features.noise": "fresh"}, "reads no file"),
    ({"features.noise": "fresh"}, "read with one noise only. Try .*variants=7"),
    ({"features.noise": "per_step", "features.share_noise": False}, "means per_image"),
    ({"features.noise": "none"}, "must be one of shared, per_step, per_image, fresh"),
    ({"features.sources": ("colour",)}, "no network to start from"),
    ({"evaluate.scales": (0.5, 1.0)}, "would be brought back"),
    ({"stages.fit.start": "weights"}, "start is weights, but no file is given"),
    ({"ensemble.recipe": "slow"}, "must be one of paper, fast"),
    ({"ensemble.recipe": "linear", "ensemble.classifiers": "a"}, "Try --config.ensemble.recipe=p"),
    ({"stages.fit.steps": 5}, 'unknown option "stages.fit.steps"'),
    ({"stages.fit.balance": "pixel"}, "stages.fit.balance is 'pixel', but it must be one of rec"),
    ({"run": ("fit", "fit")}, "config.run names fit twice"),
])  # fmt: skip
def test_options_without_a_possible_network_are_refused(seg_config, change, sentence):
    with seg_config.unlocked():
        seg_config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=sentence):
        check_config(seg_config)


def refused(config, workdir, sentence):
    """The run ends with the sentence, and nothing was trained before."""
    with pytest.raises(UserError, match=sentence):
        stages.train(config, workdir)
    assert not (workdir / "checkpoints").exists()


def test_no_labelled_pixel_left_names_the_image_and_the_rule(seg_config, tmp_path):
    seg_config.ensemble.small_objects = 10**6
    refused(seg_config, tmp_path, r"such as train_00000\d \(no class covers 1000000 pixels\)")


def test_the_error_for_too_many_features_names_their_memory(seg_config, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_features, "free_bytes", lambda on_host: 1000)
    refused(seg_config, tmp_path, r"needs .* GB for 3 images of 128 features a pixel, but 0.0 GB")


def test_more_pixels_than_can_be_counted_are_refused(seg_config, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_features, "MOST_PIXELS", 4_000)
    refused(seg_config, tmp_path, r"4,608 pixels of 3 images .* 4,000 are counted .* --config.data")


def test_a_container_bounds_the_memory_that_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_features, "CGROUP", tmp_path)
    host = fit_features.free_bytes(on_host=True)
    for name, text in (("current", "700"), ("stat", "anon 600\ninactive_file 100\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    (tmp_path / "memory.max").write_text("max\n")
    assert fit_features.free_bytes(on_host=True) > host / 2 > 0
    (tmp_path / "memory.max").write_text("1000\n")
    assert fit_features.free_bytes(on_host=True) == 400


@pytest.mark.parametrize(
    ("crop", "short", "verb"), [((16, 48), 0, "fit into"), ((40, 48), 16, "fill")]
)
def test_images_must_suit_the_crop(seg_config, tmp_path, crop, short, verb):
    seg_config.stages.fit.augment.crop, seg_config.features.short = crop, short
    sentence = rf"up to \(32, 48\) .* but they must {verb} it. .*augment.crop=\"\(32, 48\)\""
    refused(seg_config, tmp_path, sentence)


def maps_of(config, tmp_path, sizes):
    """Has the fit read maps of (height, width) each from files, of the labelled images in turn."""
    config.run, config.stages.fit.start = ("fit",), "weights"
    config.features.sources = (f"files={tmp_path / 'maps'}",)
    config.features.short = 0
    (tmp_path / "maps").mkdir()
    for index in range(config.data.options.images):
        values = np.ones((*sizes[index % len(sizes)], 2), np.float32)
        np.savez(tmp_path / "maps" / f"train_{index:06d}.npz", map_00=values)


def test_images_fill_the_crop_where_files_hold_their_maps(seg_config, tmp_path):
    maps_of(seg_config, tmp_path, [(8, 12)])
    seg_config.stages.fit.augment.crop = (48, 48)
    refused(seg_config, tmp_path / "run", r"must fill it. .*augment.crop=\"\(32, 48\)\"")
    seg_config.stages.fit.augment.crop = (32, 48)
    fit_images.check_sizes(make_plan(seg_config, tmp_path / "run").stages[0])


def test_images_whose_maps_are_missing_are_named_before_the_fit(seg_config, tmp_path):
    maps_of(seg_config, tmp_path, [(8, 12)])
    plan = make_plan(seg_config, tmp_path / "run").stages[0]
    validation = [plan.evaluation.source.names[index] for index in plan.evaluation.indices]
    count = len(validation) + len(plan.indices)
    sentence = f"{counted(len(validation), 'image')} of {count} .*, such as {validation[0]}"
    with pytest.raises(UserError, match=sentence):
        ensemble_stage.check_fit(plan)
    for name in validation:
        np.savez(tmp_path / "maps" / f"{name}.npz", map_00=np.ones((8, 12, 2), np.float32))
    ensemble_stage.check_fit(plan)


def test_maps_of_several_sizes_are_refused_with_the_name_of_the_image(seg_config, tmp_path):
    maps_of(seg_config, tmp_path, [(8, 12), (4, 6)])
    plan = make_plan(seg_config, tmp_path / "run").stages[0]
    shown = np.array([[index, 0] for index in range(2)])
    with pytest.raises(UserError, match=r"several sizes .*\(8, 12\).*\(4, 6\).* of train_000001"):
        fit_features.collect(plan, {"params": {}, "stats": {}}, shown)


def test_missing_classifiers_and_noise_are_refused(seg_config, tmp_path):
    seg_config.ensemble.classifiers = str(tmp_path / "nothing")
    refused(seg_config, tmp_path / "run", "nothing")
    seg_config.ensemble.classifiers, seg_config.features.noise_file = "", str(tmp_path / "no.npy")
    refused(seg_config, tmp_path / "run", "no.npy")


def test_published_classifiers_of_other_taps_are_refused(golden, tmp_path, seg_config):
    model = golden("adm/pixel_classifier_*_model_0.pt")[0]
    folder = tmp_path / "50_150_250_5_6_7_8_12"
    folder.mkdir()
    (folder / "model_0.pth").write_bytes(model.read_bytes())
    seg_config.ensemble.classifiers = str(folder)
    refused(seg_config, tmp_path / "run", "for other taps")


def test_a_start_that_is_neither_a_stage_nor_a_directory_is_refused(seg_config, tmp_path):
    seg_config.run, seg_config.stages.fit.start = ("fit",), "pretrian"
    refused(seg_config, tmp_path, 'unknown start "pretrian".*Did you mean "pretrain"')


def test_a_network_of_other_noise_levels_is_refused(seg_config, fitted, tmp_path):
    seg_config.run, seg_config.diffusion.rescale_timesteps = ("fit",), True
    seg_config.stages.fit.start = str(fitted / "checkpoints" / "pretrain")
    with pytest.raises(UserError, match="rescale_timesteps is True, but .* trained with False"):
        stages.train(seg_config, tmp_path)


def test_a_fit_cannot_be_sampled_from(fitted):
    with pytest.raises(UserError, match="holds no diffusion model"):
        sampling.sample(fitted / "checkpoints" / "fit", images=1)


# ---- your own folder: K, the ids to ignore and the number of images come from the config -------


def folder_of_mixed_sizes(config, tmp_path):
    """Writes two sizes of images whose third class means nothing, and points the config there."""
    rng = np.random.default_rng(0)
    for split, sizes in (("train", [(32, 48), (24, 40)]), ("val", [(32, 48), (33, 20)])):
        for number, size in enumerate(sizes):
            ids = np.zeros(size, np.uint8)
            ids[size[0] // 2 :] = 1
            ids[:, :3] = 2
            shades = np.array([40, 200, 120], np.uint8)[ids]
            image = np.repeat(shades[..., None], 3, -1) + rng.integers(0, 20, (*size, 3), np.uint8)
            for folder, array in (("images", image), ("masks", ids)):
                file = tmp_path / "mine" / folder / split / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    with config.unlocked():
        config.data.update(source="folder", path=str(tmp_path / "mine"), count=2)
        config.data.options = dict(num_classes=3, ignore=(2,))
    config.run, config.stages.fit.start = ("fit",), "random"


def test_images_of_many_sizes_need_one_that_the_network_sees(seg_config, tmp_path):
    folder_of_mixed_sizes(seg_config, tmp_path)
    seg_config.features.short = 16
    sentence = r"2 sizes .*\(24, 40\) .* to \(32, 48\).*crop=\"\(32, 48\)\" .*features.short=0"
    refused(seg_config, tmp_path / "run", sentence)


def test_images_of_mixed_sizes_with_an_ignored_id_are_learned(seg_config, tmp_path):
    folder_of_mixed_sizes(seg_config, tmp_path)
    seg_config.features.short = 0
    stages.train(seg_config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "results.json").read_text())["fit"]
    assert result["IoU"]["class_2"] is None and result["labelled_images"] == 2
    assert result["mIoU"] > 0.7


def test_a_probe_reads_the_network_that_trains_and_holds_none_of_its_arrays(seg_config, fitted):
    seg_config.stages.pretrain.probe = dict(every=2)
    score, _ = make_scorer(make_plan(seg_config, fitted).stages[0])
    network, _ = open_network(fitted / "checkpoints" / "pretrain")
    found = []
    for make in (jnp.array, jnp.array, jnp.zeros_like):
        params = jax.tree.map(make, network["params"])
        found.append(score({"ema": {"0.5": params}, "frozen": {}, "stats": network["stats"]}))
        jax.tree.map(lambda leaf: leaf.delete(), params)  # as the next step does
    assert found[0] == found[1] > found[2] > 0


# ---- which taps to read --------------------------------------------------------------------------


def test_a_probe_finds_what_is_linear_and_not_what_is_noise():
    rng = np.random.default_rng(0)
    y, folds = rng.integers(0, 3, 600), np.arange(600) % 4
    seen = np.eye(3)[y] @ rng.normal(size=(3, 8)) + 0.05 * rng.normal(size=(600, 8))
    assert linear_probe.probe(seen.astype(np.float32), y, folds, 3) > 0.99
    assert linear_probe.probe(rng.normal(size=(600, 8)).astype(np.float32), y, folds, 3) < 0.35


def test_a_probe_is_judged_on_images_that_it_has_not_seen():
    """Features that separate images but not classes, must not score."""
    rng = np.random.default_rng(1)
    folds = np.repeat(np.arange(5), 100)
    y = np.repeat([0, 1, 0, 1, 2], 100)
    own = np.eye(5)[folds] + 0.01 * rng.normal(size=(500, 5))
    assert linear_probe.probe(own.astype(np.float32), y, folds, 3) < 0.2


def test_the_best_taps_are_those_with_the_highest_means():
    grid = np.arange(8)[None] + 100 * np.array([[1], [4], [2], [3]])
    chosen = tap_study.best_taps(grid, (0, 10, 20, 30))
    assert chosen == {"steps": (10, 20, 30), "blocks": (3, 4, 5, 6, 7)}


def test_taps_are_scored_of_the_trained_network_and_written(seg_config, fitted, tmp_path, capsys):
    with seg_config.unlocked():
        seg_config.stages.untrained = seg_config.stages.fit.copy_and_resolve_references()
    seg_config.stages.untrained.start = "random"
    seg_config.run = ("pretrain", "untrained", "fit")
    seg_config.stages.fit.start = str(fitted / "checkpoints" / "pretrain")
    tap_study.choose_taps(seg_config, tmp_path)
    out = capsys.readouterr().out
    assert f"fit, from {fitted}" in out and '--config.features.steps="(' in out
    study = json.loads((tmp_path / "taps.json").read_text())
    assert np.shape(study["mIoU"]) == (len(study["steps"]), 4) and np.min(study["mIoU"]) > 0
    assert set(seg_config.features.steps) <= set(study["steps"])
    assert np.asarray(Image.open(tmp_path / "pictures" / "taps.png")).std() > 10


def test_taps_of_ddep_are_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match="needs a stage of kind fit"):
        tap_study.choose_taps(tiny_config, tmp_path)


def test_the_backbone_is_read_from_the_checkpoint_once_there_is_one(seg_config, fitted):
    network = fit_network.open_backbone(make_plan(seg_config, fitted).stages[-1])
    assert set(network["params"]) == {"unet"} and set(network["stats"]) == {"noise"}
