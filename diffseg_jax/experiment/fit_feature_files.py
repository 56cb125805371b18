"""Files of the features that a fit reads, for the fit after a stop, or with more labels."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jaxlib
import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.data.npy import arrays_in_npz, shapes_in_npz
from diffseg_jax.experiment.fit_images import LabelledMasks, digest_of_image, seeds_of_copies
from diffseg_jax.experiment.labelled_images import run_before
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.integrity import fingerprints
from diffseg_jax.storage.paths import in_bucket, write_atomically
from diffseg_jax.storage.workdir import FIT_FEATURES

GB = 2**30
MOST_KEPT = 3 * GB  # of the features of a fit, which would take too much of a disk
OWN_FILE = re.compile(r"\.?[0-9a-f]{32}\.npz(\.\d+)?")  # of `KeptMaps`, also one that is not whole
NOT_KEPT = "if the run is stopped, it reads them again"
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
OF_COMPILERS = (  # variables of the environment that change how numbers are rounded
    "XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
MAP_NAME = "map_{:04}"  # of an array in a file


@dataclasses.dataclass
class KeptMaps:
    """The maps of the images of a fit in files, named after all that they depend on.

    digests  of the images as they are shown, as of `LabelledMasks`
    keys     of the images, in their order
    like     abstract features of images, whose first axis is another
    full     whether nothing more is written
    """

    plan: StagePlan
    folder: Path
    digests: tuple[bytes, ...]
    keys: tuple[str, ...]
    like: PixelFeatures
    full: bool = False

    def of(self, rows: Sequence[int]) -> "KeptMaps":
        """Those of some of the images."""
        digests, keys = (tuple(each[row] for row in rows) for each in (self.digests, self.keys))
        return dataclasses.replace(self, digests=digests, keys=keys)

    def lacking(self) -> list[int]:
        """The rows of the images without a file, or with one that is cut or of other maps."""
        return [row for row in range(len(self.keys)) if not self._is_whole(row)]

    def _is_whole(self, row):
        names = [MAP_NAME.format(number) for number in range(len(self.like.maps))]
        try:
            with open(self._file(row), "rb") as file:
                return shapes_in_npz(file, names) == self._shapes()
        except Exception:  # numpy and zipfile raise many types
            return False

    def read(self, row: int) -> list[np.ndarray] | None:
        """The maps [1,h,w,C] of an image; None without a file, and for one that is damaged."""
        try:
            with open(self._file(row), "rb") as file:
                arrays = arrays_in_npz(file)  # which compares checksums
        except Exception:  # as above
            return None
        maps = [values for _, values in sorted(arrays.items())]
        if [(values.shape, values.dtype) for values in maps] != self._shapes():
            return None
        return [values[None] for values in maps]

    def write(self, row: int, example: dict, maps: Sequence[np.ndarray]):
        """Writes the maps [h,w,C] of an image, unless the disk is full.

        example  as of `examples`: nothing is written of an image that was replaced meanwhile
        """
        if self.full or digest_of_image(example) != self.digests[row]:
            return
        try:
            write_atomically(self._file(row), file_of_maps(maps), sync=False)  # `read` finds damage
        except OSError as error:
            self.full, removed = True, ""
            if error.errno in DISK_IS_FULL:  # which checkpoints need
                self.remove_others()
                removed = ", and those that were kept are removed"
            why = f"{error.strerror or error}{removed}"
            self.say(f"features are not kept in {self.folder} any more ({why}); {NOT_KEPT}")

    def remove_others(self, wanted: Sequence[str] = ()):
        """Removes the files of fits, but for those of some keys."""
        names = {f"{key}.npz" for key in wanted}
        for file in self.folder.glob("*"):
            if OWN_FILE.fullmatch(file.name) and file.name not in names:
                with contextlib.suppress(OSError):
                    file.unlink()

    def _file(self, row):
        return self.folder / f"{self.keys[row]}.npz"

    def _shapes(self):
        return [(values.shape[1:], values.dtype) for values in self.like.maps]

    def say(self, sentence: str):
        """Logs a sentence about the fit."""
        self.plan.log.say(f"{self.plan.name}: {sentence}")


def file_of_maps(maps: Sequence[np.ndarray], **others: np.ndarray) -> bytes:
    """A file of maps [h,w,C], and of other arrays."""
    arrays = {MAP_NAME.format(number): values for number, values in enumerate(maps)}
    file = io.BytesIO()
    np.savez(file, **others, **arrays)
    return file.getvalue()


def maps_of_fit(
    plan: StagePlan, network: dict, extract: Callable, read: LabelledMasks
) -> KeptMaps | None:
    """Where a fit keeps the features that it reads; None where it keeps none.

    extract  as of `extractor`, which reads the features of the network

    They are not kept in a bucket, by several processes, and if no network computes them. Files of
    other images or networks are removed, before those of the fit need space. The log says where the
    files are, or that the features would be too large.
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
    kept = KeptMaps(plan, workdir / FIT_FEATURES / plan.name, read.digests, keys, like)
    kept.remove_others(keys)
    each, lacking = like.nbytes // len(like.maps[0]), len(kept.lacking())
    need, free = each * len(keys), shutil.disk_usage(workdir).free
    if need > MOST_KEPT:
        size, most = need / GB, MOST_KEPT / GB
        why = f"features of {size:.2g} GB are not kept in files, of {most:.2g} GB at most"
    elif 2 * each * lacking > free:
        why = f"features are not kept in files, as the disk has {free / GB:.2g} GB"
    else:
        if lacking:
            kept.say(f"keeps features in {kept.folder}, to resume sooner if it is stopped")
        return kept
    kept.full = True
    kept.say(f"{why}; {NOT_KEPT}")
    return kept


def _program(plan, network, extract) -> tuple[PixelFeatures, bytes]:
    """Abstract features, and a digest of the network and of the program that reads them of it."""
    size, crop = plan.mesh.size, tuple(plan.options.augment.crop)
    inputs = [((size, *crop, 3), np.uint8), ((size, 2), np.int32)]
    image, valid = (jax.ShapeDtypeStruct(*each) for each in inputs)
    own = {"other_seed": jax.ShapeDtypeStruct((size,), np.int32)} if plan.task.fit.own_seeds else {}
    lowered, device = extract.lower(network, image, valid, **own), plan.mesh.devices.flat[0]
    made = [
        jax.__version__, jaxlib.__version__, device.client.platform_version, device.device_kind,
        _model_of_cpu() if device.platform == "cpu" else "",
        [os.environ.get(name, "") for name in OF_COMPILERS], lowered.as_text(),
    ]  # fmt: skip
    described = json.dumps([*made, fingerprints(network)], sort_keys=True)
    return lowered.out_info, hashlib.sha256(described.encode()).digest()


def _model_of_cpu() -> str:
    """For which XLA compiles; programs of another one may round otherwise."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
