"""Features of the labelled images of a fit, on the devices or in the host's memory."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.devices.mesh import local_rows, to_devices
from diffseg_jax.display.progress import COMPILES, Progress
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.fit_feature_files import GB, KeptMaps
from diffseg_jax.experiment.fit_images import examples, seeds_of_copies
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.models.taps import PixelFeatures

MOST_PIXELS = 2**31 - 1  # of a fit, whose positions are i32
CGROUP = Path("/sys/fs/cgroup")  # of a container, where it has bounds of its own


def require_memory(plan: StagePlan, frozen: dict, masks: np.ndarray) -> int:
    """Bytes of the features; UserError when they and the fit exceed the memory that is free."""
    fit = plan.task.fit
    read = tuple(plan.source.names[int(index)] for index in plan.indices[:1])
    maps = fit.files.read(read) if fit.files else ()
    shape = jax.eval_shape(fit.extract, frozen, *_one_image(masks.shape[1:]), *maps)
    features = shape.nbytes * len(masks)
    member = sum(leaf.size * 4 for leaf in jax.tree.leaves(fit.member.abstract["params"]))
    orders = 2 * (fit.members if fit.recipe.own_order else 1)  # of two passes
    training = 4 * fit.members * member + masks.size * (1 + 4 + 4 * orders)
    need = features + training
    lower = (
        f"Lower --config.data.count, or the limit, crop or variants of --config.stages.{plan.name}."
        "augment"
    )
    if masks.size > MOST_PIXELS:
        raise UserError(
            f"stage {plan.name} has {masks.size:,} pixels of {len(masks)} images and changed "
            f"copies, but {MOST_PIXELS:,} are counted at most. {lower}."
        )
    free = free_bytes(fit.on_host)
    if free and need > free:
        advice = ""
        if any(values.dtype == jnp.float32 for values in shape.maps) and (
            plan.task.meta["features"]["dtype"] != "float16"
        ):
            advice += ", or --config.features.dtype=float16"
        if not fit.on_host and jax.default_backend() != "cpu":
            advice += ", or --config.features.place=host"
        allowed = max(int((free - training) / shape.nbytes), 0)
        raise UserError(
            f"stage {plan.name} needs {need / GB:.1f} GB for {len(masks)} images of {shape.width} "
            f"features a pixel, but {free / GB:.1f} GB are free, enough for {allowed}. {lower}, or "
            f"take fewer taps, scales, steps or blocks in --config.features{advice}."
        )
    return features


def _one_image(size):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    return image, jax.ShapeDtypeStruct((1, 2), jnp.int32)


def free_bytes(on_host: bool) -> int:
    """Memory that is free on the device, or in the host or container; 0 where it is unknown."""
    device = jax.local_devices()[0]
    if not on_host and device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    host = int(found[0]) * 1024 if found else 0
    return min(host, _free_in_container()) or host


def _free_in_container():
    """Bytes that a container may still take, files in its cache aside; infinity for no bound."""
    try:
        bound, used, stat = (
            (CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat")
        )
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]
        return max(int(bound) - int(used) + int(cached), 1)
    except (OSError, ValueError, LookupError):  # no such files, or the bound is "max"
        return float("inf")


def extractor(plan) -> Callable:
    """`PixelFit.extract`, compiled; what it returns is replicated on every device."""
    return jax.jit(plan.task.fit.extract, out_shardings=NamedSharding(plan.mesh, PartitionSpec()))


def collect(
    plan: StagePlan, network: dict, shown: np.ndarray, extract: Callable | None = None,
    progress: Progress | None = None, kept: KeptMaps | None = None,
) -> PixelFeatures:  # fmt: skip
    """Features of training images, pairs as of `examples`, replicated on every device.

    Each device works on one image at a time, and each process reads those of its devices.
    extract, progress  for several calls, a compiled function, and what counts the images
    kept               files of their maps: those that are there are read, others are written
    """
    fit, mesh = plan.task.fit, plan.mesh
    extract = extract or extractor(plan)
    progress = progress or features_shown(plan, shown)  # else it is counted, not shown
    put = functools.partial(_put, fit.on_host, jax.jit(_write, donate_argnums=0), len(shown))
    buffers, lacking, one = [], [], kept and kept.like
    for row in range(len(shown)):
        maps = kept.read(row) if kept else None
        if maps is None:
            lacking.append(row)
            continue
        if not fit.on_host:
            maps = jax.device_put(maps, NamedSharding(mesh, PartitionSpec()))
        buffers = put(buffers, maps, 0, row)
        progress.add()
    groups = [lacking[start : start + mesh.size] for start in range(0, len(lacking), mesh.size)]
    filled = [np.resize(shown[group], (mesh.size, 2)) for group in groups]
    mine = [pairs[local_rows(mesh, mesh.size)] for pairs in filled]
    changed = examples(plan, [pair for pairs in mine for pair in pairs])
    for group, rows in zip(groups, mine, strict=True):
        read = [next(changed) for _ in rows]
        batch = {key: np.stack([e[key] for e in read]) for key in ("image", "valid")}
        if fit.files:
            maps = fit.files.read([example["name"] for example in read])
            batch |= {f"map_{i:02}": values for i, values in enumerate(maps)}
        batch = to_devices(batch, mesh, mesh.size)
        own = seeds_of_copies(plan.seed, shown[group], mesh.size)
        own = {"other_seed": own} if fit.own_seeds else {}
        one = extract(network, *batch.values(), **own)
        _require_alike(plan, read[0]["name"], one.maps, buffers or one.maps)
        for number, row in enumerate(group):
            buffers = put(buffers, one.maps, number, row)
            if kept:
                kept.write(row, read[number], [values[number] for values in one.maps])
        progress.add(len(group))
    return PixelFeatures(tuple(buffers), one.size, one.covered)


def features_shown(plan, shown) -> Progress:
    what = f"{plan.name}: features"
    return plan.log.progress(what, len(shown), unit="images", first=COMPILES)


def _require_alike(plan, name, maps, first):
    """Raises UserError for maps of another size than those of the first image."""
    sizes, expected = ([values.shape[1:3] for values in each] for each in (maps, first))
    if sizes != expected:
        folder = plan.task.fit.files.folder if plan.task.fit.files else "the features"
        raise UserError(
            f"stage {plan.name}: maps in {folder} are of several sizes (height, width): {expected} "
            f"of the first image, but {sizes} of {name}. Compute them again from images of one "
            "size."
        )


def _put(on_host, write, count, buffers, maps, number, row):
    """The buffers of so many images, [] at first, with maps[number] as their maps[row]."""
    if not buffers:
        make = np.zeros if on_host else jnp.zeros
        buffers = [make((count, *values.shape[1:]), values.dtype) for values in maps]
    if not on_host:
        return jax.block_until_ready(write(buffers, maps, number, row))
    for buffer, values in zip(buffers, maps, strict=True):
        buffer[row] = np.asarray(values[number])
    return buffers


def _write(buffers, maps, number, row):
    cut, update = jax.lax.dynamic_slice_in_dim, jax.lax.dynamic_update_slice_in_dim
    each = zip(buffers, maps, strict=True)
    return [update(buffer, cut(values, number, 1), row, 0) for buffer, values in each]
