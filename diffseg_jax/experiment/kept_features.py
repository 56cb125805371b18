"""Features of a fit in files, so that fits of other maps, members or images read them again.

`keep_features` writes those of all images, for studies; every fit keeps what it reads, `KeptMaps`.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from ml_collections import ConfigDict

from diffseg_jax.config.options import FIT
from diffseg_jax.data.npy import arrays_in_npz
from diffseg_jax.data.transforms import resize_image
from diffseg_jax.devices.processes import require_one
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError, choose, counted
from diffseg_jax.experiment.fit_features import GB, seeds_of_copies
from diffseg_jax.experiment.fit_images import LabelledMasks, examples
from diffseg_jax.experiment.fit_network import open_backbone
from diffseg_jax.experiment.labelled_images import run_before
from diffseg_jax.experiment.plan import StagePlan, make_plan
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.sources.diffusion import maps_of_diffusion, options_of_maps
from diffseg_jax.sources.from_files import DESCRIPTION_FILE
from diffseg_jax.storage.integrity import fingerprints
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.paths import in_bucket, read_object, write_atomically, write_json
from diffseg_jax.storage.workdir import FIT_FEATURES, as_json, make_workdir
from diffseg_jax.systems.methods import SYSTEMS

KEPT = "features"  # the folder in the workdir
MOST_KEPT = 3 * GB  # of the features of a fit, which would take too much of a disk
OWN_FILE = re.compile(r"\.?[0-9a-f]{32}\.npz(\.\d+)?")  # of `KeptMaps`, also one that is not whole
NOT_KEPT = "if the run is stopped, it reads them again"


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
            content = _npz(maps, covered=np.array([covered] * len(names)))
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


def _npz(maps, **others) -> bytes:
    """A file of maps [h,w,C], and of other arrays."""
    arrays = {f"map_{number:04}": values for number, values in enumerate(maps)}
    file = io.BytesIO()
    np.savez(file, **others, **arrays)
    return file.getvalue()


# ---- a fit keeps what it reads -----------------------------------------------------------------


@dataclasses.dataclass
class KeptMaps:
    """The maps of the images of a fit in files, named after all that they depend on.

    keys  of the images, in their order
    like  abstract features of images, whose first axis is another
    full  whether nothing more is written
    """

    plan: StagePlan
    folder: Path
    keys: tuple[str, ...]
    like: PixelFeatures
    full: bool = False

    def of(self, rows: np.ndarray) -> "KeptMaps":
        """Those of some of the images."""
        return dataclasses.replace(self, keys=tuple(self.keys[row] for row in rows))

    def lacking(self) -> int:
        """The number of images without a file."""
        present = {file.stem for file in self.folder.glob("*.npz")}
        return sum(key not in present for key in self.keys)

    def read(self, row: int) -> list[np.ndarray] | None:
        """The maps [1,h,w,C] of an image; None without a file, and for one that is damaged."""
        try:
            with open(self._file(row), "rb") as file:
                arrays = arrays_in_npz(file)  # which compares checksums
        except Exception:  # numpy and zipfile raise many types
            return None
        maps = [values for _, values in sorted(arrays.items())]
        expected = [(values.shape[1:], values.dtype) for values in self.like.maps]
        if [(values.shape, values.dtype) for values in maps] != expected:
            return None
        return [values[None] for values in maps]

    def write(self, row: int, maps: list[np.ndarray]):
        """Writes the maps [h,w,C] of an image, unless the disk is full."""
        if self.full:
            return
        try:
            write_atomically(self._file(row), _npz(maps), sync=False)  # `read` finds damage
        except OSError as error:
            self.full = True
            shutil.rmtree(self.folder, ignore_errors=True)  # checkpoints need the space
            why = error.strerror or error
            self.say(f"features are not kept in {self.folder} any more ({why}); {NOT_KEPT}")

    def finish(self, lacking: int):
        """Removes files of other images or networks, once all are read; says where the others are.

        lacking  images that had no file before
        """
        if self.full:
            return
        wanted = {self._file(row).name for row in range(len(self.keys))}
        for file in self.folder.glob("*"):
            if OWN_FILE.fullmatch(file.name) and file.name not in wanted:
                with contextlib.suppress(OSError):
                    file.unlink()
        if lacking:
            self.say(
                f"keeps these features in {self.folder}, for a run that is stopped or goes on with "
                "more labels; delete that folder whenever you need the space"
            )

    def _file(self, row):
        return self.folder / f"{self.keys[row]}.npz"

    def say(self, sentence: str):
        """Logs a sentence about the fit."""
        self.plan.log.say(f"{self.plan.name}: {sentence}")


def maps_of_fit(
    plan: StagePlan, network: dict, extract: Callable, read: LabelledMasks
) -> KeptMaps | None:
    """Where a fit keeps the features that it reads; None where it keeps none.

    extract  as of `extractor`, which reads the features of the network

    They are not kept in a bucket, by several processes, and if no network computes them. The log
    says where they would be too large.
    """
    fit, leaves = plan.task.fit, flatten(network)
    own = flatten(jax.eval_shape(plan.task.init, jax.random.key(0)))  # not the linear probe
    used = unflatten({path: leaves[path] for path in own})
    alone = jax.process_count() == 1 and not in_bucket(plan.workdir)
    if fit.files or not used.get("params") or not alone:
        return None
    like, program = _program(plan, {"stats": {}, **used}, extract)
    seeds = seeds_of_copies(plan.seed, read.shown, len(read.shown)) * int(fit.own_seeds)
    keys = tuple(
        hashlib.sha256(program + digest + seed.tobytes()).hexdigest()[:32]
        for digest, seed in zip(read.digests, seeds, strict=True)
    )
    workdir = run_before(plan.workdir) or plan.workdir
    kept = KeptMaps(plan, workdir / FIT_FEATURES / plan.name, keys, like)
    each = like.nbytes // len(like.maps[0])
    if each * len(keys) > MOST_KEPT:
        kept.say(
            f"features of {each * len(keys) / GB:.2g} GB are not kept in files, of "
            f"{MOST_KEPT / GB:.2g} GB at most; {NOT_KEPT}"
        )
        return None
    free = shutil.disk_usage(workdir).free
    if 2 * each * kept.lacking() > free:
        kept.full = True
        kept.say(f"features are not kept in files, as the disk has {free / GB:.2g} GB; {NOT_KEPT}")
    return kept


def _program(plan, network, extract) -> tuple[PixelFeatures, bytes]:
    """Abstract features, and a digest of the network and of the program that reads them of it."""
    size, crop = plan.mesh.size, tuple(plan.options.augment.crop)
    inputs = [((size, *crop, 3), np.uint8), ((size, 2), np.int32)]
    image, valid = (jax.ShapeDtypeStruct(*each) for each in inputs)
    own = {"other_seed": jax.ShapeDtypeStruct((size,), np.int32)} if plan.task.fit.own_seeds else {}
    lowered, device = extract.lower(network, image, valid, **own), plan.mesh.devices.flat[0]
    made = [jax.__version__, device.client.platform_version, device.device_kind, lowered.as_text()]
    described = json.dumps([*made, fingerprints(network)], sort_keys=True)
    return lowered.out_info, hashlib.sha256(described.encode()).digest()
