"""--mode=features: features of a diffusion model in files, for fits of other maps or members."""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.config.options import FIT
from diffseg_jax.data.transforms import resize_image
from diffseg_jax.devices.processes import require_one
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError, choose, counted
from diffseg_jax.experiment.fit_feature_files import file_of_maps
from diffseg_jax.experiment.fit_images import examples
from diffseg_jax.experiment.fit_network import open_backbone
from diffseg_jax.experiment.plan import StagePlan, make_plan
from diffseg_jax.sources.diffusion import maps_of_diffusion, options_of_maps
from diffseg_jax.sources.from_files import DESCRIPTION_FILE
from diffseg_jax.storage.integrity import fingerprints
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.paths import read_object, write_atomically, write_json
from diffseg_jax.storage.workdir import as_json, make_workdir
from diffseg_jax.systems.methods import SYSTEMS

KEPT = "features"  # the folder in the workdir


@own_settings()
def keep_features(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Writes the features of the labelled and the validation images to <workdir>/features.

    The same config with sources=("files=<workdir>/features",) and stages.fit.start=weights fits to
    them, or to those at fewer steps and blocks. features.json counts the passes of the network: one
    for each image, step and draw of noise. Images that have a file are skipped. Raises UserError
    without a fit to the features of a diffusion model, for noise that is fresh, and for images of
    several sizes.
    """
    require_one("--mode=features")
    require_free(workdir, "features", "--workdir")
    plan = plan_features(config, workdir, display)
    make_workdir(workdir)
    with locked(workdir, "features", "--workdir"):
        keep_all(plan, workdir / KEPT)


def plan_features(config: ConfigDict, workdir: Path, display: Display | None = None) -> StagePlan:
    """The fit whose features are kept."""
    names = [name for name in config.run if config.stages[name].kind == FIT]
    make_grid = choose(SYSTEMS, config.system, "system").tap_grid
    if not names or not make_grid or not make_grid(config):
        raise UserError(
            "--mode=features keeps the features of a diffusion model that a stage of kind fit "
            "reads. Try --config=configs/ddpm_seg_scenes.py, or python -m diffseg_jax.features for "
            "other networks."
        )
    config = config.copy_and_resolve_references()
    config.run = (names[0],)
    plan = make_plan(config, workdir, display).stages[0]
    if plan.task.fit.own_seeds:
        raise UserError(
            "features.noise is fresh, but features in files have the noise that they were computed "
            "with. Try --config.features.noise=shared."
        )
    return plan


def keep_all(plan: StagePlan, folder: Path):
    """Writes the features that are missing in a folder; UserError if it holds other features.

    Others are those of another network, options or seed, and of images that have changed.
    """
    shown, features = dict(_images_of(plan)), plan.task.meta["features"]
    names = maps_of_diffusion(features)
    passes = len(features["steps"]) * features["draws"]
    network, crop = open_backbone(plan), tuple(plan.options.augment.crop)
    described = _described(plan, network, crop, names, shown, folder)
    missing = [name for name in shown if not (folder / f"{name}.npz").exists()]
    kept = len(described["images"]) - len(missing)
    write_json(folder / DESCRIPTION_FILE, {**described, "passes": passes * kept})
    read, what = jax.jit(plan.task.features), f"{plan.name}: features kept"
    covered = fractions_covered(plan.task, crop) if missing else ()
    with plan.log.progress(what, len(missing), unit="images", first=COMPILES) as progress:
        for name in progress.each_of(missing):
            image = shown[name]()
            found = read(network, image[None], np.array([image.shape[:2]], np.int32))
            maps = [np.asarray(found[each][0]) for each in names]  # f32, which a fit rounds
            content = file_of_maps(maps, covered=np.array([covered] * len(names)))
            write_atomically(folder / f"{name}.npz", content)
    passes *= len(described["images"])
    write_json(folder / DESCRIPTION_FILE, {**described, "passes": passes})
    plan.log.say(
        f"features of {counted(len(shown), 'image')} in {folder}; {counted(len(missing), 'image')} "
        f"computed now, {counted(passes, 'pass')} of the network in all"
    )
    plan.log.close()


def _described(plan, network, crop, names, shown, folder) -> dict:
    """What the features are of, JSON values; UserError if the folder holds those of something else.

    The network and the images are known by their content, as files may be moved or replaced.
    Options that change no file, such as features.dtype, to which a fit rounds what it reads, are no
    part of it; those of older folders are not compared.
    """
    arrays = json.dumps(fingerprints(network)).encode()
    options = _decisive(plan.task.meta["features"])
    description = as_json({
        "source": "adm", "network": hashlib.sha256(arrays).hexdigest()[:16], "maps": names,
        "options": options, "stored": "float32", "seed": plan.seed, "crop": crop,
    })  # fmt: skip
    images = {
        name: hashlib.sha256(read().tobytes()).hexdigest()[:16] for name, read in shown.items()
    }
    stored = read_object(folder / DESCRIPTION_FILE)
    if not stored and any(folder.rglob("*.npz")):
        raise UserError(
            f"{folder} holds features, but no {DESCRIPTION_FILE} that says of what. Remove the "
            "folder, or take another --workdir."
        )
    if stored.get("options", {}).pop("dtype", "float32") != "float32":  # which is not kept now
        raise UserError(
            f"{folder} holds features of an older version, which were rounded to features.dtype. "
            f"Remove them with rm -r {shlex.quote(str(folder))}, or take another --workdir."
        )
    if stored:
        stored = {**stored, "options": _decisive(stored.get("options", {}))}
    if other := [key for key, now in description.items() if stored.get(key, now) != now]:
        raise UserError(
            f"{folder} holds other features ({', '.join(other)}). Take another --workdir."
        )
    before = stored.get("images", {})
    if changed := [name for name, now in images.items() if before.get(name, now) != now]:
        raise UserError(
            f"{folder} holds features of images that have changed since, such as {changed[0]} "
            f"({len(changed)} in all). Remove the folder, or take another --workdir."
        )
    return {**description, "start": plan.start, "images": {**before, **images}}


def _decisive(features) -> dict:
    """The options that kept features depend on, of a config or of a description."""
    chosen = {key: features[key] for key in ("steps", "blocks") if key in features}
    return {**chosen, **options_of_maps(features)}


def _images_of(plan) -> Iterator[tuple[str, Callable]]:
    """(name, () -> image u8[h,w,3]) as the fit sees labelled images, and evaluation others."""
    crop, evaluation, seen = tuple(plan.options.augment.crop), plan.evaluation, set()

    def checked(name, image):
        if image.shape[:2] != crop:
            raise UserError(
                f"{name} is {image.shape[0]} x {image.shape[1]} pixels before the network, but "
                f"features in files are of images that fill the crop {crop}. Give images of one "
                f'size, and --config.stages.{plan.name}.augment.crop="{image.shape[:2]}".'
            )
        return image

    def labelled(index):
        example = next(examples(plan, [(index, 0)]))
        valid = example["valid"]
        return checked(example["name"], example["image"][: valid[0], : valid[1]])

    def measured(index):
        image = evaluation.source[int(index)]["image"]
        size = evaluation.protocol.sizes(image.shape[:2])[0]
        return checked(evaluation.source.names[index], resize_image(image, size))

    held_out, learned = evaluation.indices, set(plan.indices.tolist())
    if evaluation.source is plan.source:
        held_out = [index for index in held_out if index not in learned]
    parts = (plan.source, plan.indices, labelled), (evaluation.source, held_out, measured)
    for source, indices, read in parts:
        for index in indices:
            name = source.names[index]
            if name in seen:
                raise UserError(
                    f"two images of the data are called {name}, but features in files go by names. "
                    "Give images of all splits names of their own."
                )
            seen.add(name)
            yield name, lambda read=read, index=index: read(index)


def fractions_covered(task, size: tuple[int, int]) -> tuple[float, ...]:
    """The fractions of the height and width of a map that an image of that size fills."""
    image = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), np.int32)
    network = jax.eval_shape(task.init, jax.random.key(0))
    return jax.eval_shape(task.fit.extract, network, image, valid).covered[0]
