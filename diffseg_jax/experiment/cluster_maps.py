"""What a diffusion model tells apart without labels: clusters of its features, block by block.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), show
k-means of features at several blocks and steps.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.config.schema import lacking
from diffseg_jax.data.transforms import resize_image
from diffseg_jax.devices.processes import require_one
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import counted
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.fit_network import open_backbone
from diffseg_jax.experiment.kept_features import plan_features
from diffseg_jax.experiment.plan import StagePlan
from diffseg_jax.figures import layout
from diffseg_jax.figures.cluster_plot import cluster_plot
from diffseg_jax.metrics.clusters import DRAWN_VECTORS, enlarged_labels, kmeans, matched
from diffseg_jax.sources.diffusion import maps_of_diffusion
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import make_workdir


@dataclasses.dataclass(frozen=True)
class Clustering:
    """How features are clustered; the defaults are in `config.schema.LACKING`.

    k          clusters
    images     validation images that are shown, spread over all
    restarts   starts of k-means, of which the best counts
    per_image  whether each image has clusters of its own; else they are those of all together
    """

    k: int
    images: int
    restarts: int
    per_image: bool


@own_settings()
def draw_clusters(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Clusters features at every step and block of the config: pictures/clusters.png.

    Also leaves clusters.json, how they were made. Raises UserError without a fit to the features of
    a diffusion model, and for more clusters than different vectors.
    """
    require_one("--mode=clusters")
    require_free(workdir, "clusters", "--workdir")
    how = Clustering(**{**lacking("clusters."), **config.get("clusters", {})})
    plan = plan_features(config, workdir, display)
    make_workdir(workdir)
    with locked(workdir, "clusters", "--workdir"):
        images, features = _features(plan, how)
        names = maps_of_diffusion(plan.task.meta["features"])
        with plan.log.progress(f"{plan.name}: clusters of maps", len(names)) as shown:
            given = {name: features[name] for name in names}
            labels = cluster_maps(given, how, plan.seed, done=shown.add)
        picture = workdir / "pictures" / "clusters.png"
        with plan.log.progress(f"{plan.name}: draws"):
            layout.save_png(picture, cluster_plot(images, labels, how.k))
        write_json(workdir / "clusters.json", {
            **dataclasses.asdict(how), "seed": plan.seed, "scaling": "none", "start": plan.start,
            "vectors": f"centres from {DRAWN_VECTORS} at most, drawn; all get the nearest",
            "maps": names, "colours": f"matched to {names[0]} by the largest overlap",
        })  # fmt: skip
        plan.log.say(f"finished; clusters of {counted(len(images), 'image')} in {picture}")
        plan.log.close()


def _features(plan: StagePlan, how) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Images u8[h,w,3], and the maps f32[h,w,C] of each by name."""
    evaluation = plan.evaluation
    network, read = open_backbone(plan), jax.jit(plan.task.features)
    images, found = [], {}
    chosen = spread(evaluation.indices, how.images)
    what = f"{plan.name}: features"
    with plan.log.progress(what, len(chosen), unit="images", first=COMPILES) as progress:
        for index in progress.each_of(chosen):
            image = evaluation.source[int(index)]["image"]
            image = resize_image(image, evaluation.protocol.sizes(image.shape[:2])[0])
            images.append(image)
            maps = read(network, image[None], np.array([image.shape[:2]], np.int32))
            for name, values in maps.items():
                found.setdefault(name, []).append(np.asarray(values[0]))
    return images, found


def cluster_maps(
    features: Mapping[str, list[np.ndarray]], how: Clustering, seed: int,
    done: Callable[[], None] = lambda: None,
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """The clusters i32[h,w] of every image and map, named alike in all maps.

    features  name of a map -> f32[h,w,C] of each image, at its native size and not scaled
    done      called after each map
    """
    found = {}
    for name, maps in features.items():
        groups = [[values] for values in maps] if how.per_image else [list(maps)]
        labels = [each for group in groups for each in _clusters_of(group, how, seed)]
        found[name] = labels if not found else _named_alike(labels, next(iter(found.values())), how)
        done()
    return found


def _clusters_of(maps, how, seed):
    """The clusters of some maps together."""
    vectors = np.concatenate([values.reshape(-1, values.shape[-1]) for values in maps])
    labels = kmeans(vectors, how.k, how.restarts, seed)
    ends = np.cumsum([values.shape[0] * values.shape[1] for values in maps])[:-1]
    shapes = [values.shape[:2] for values in maps]
    return [p.reshape(shape) for p, shape in zip(np.split(labels, ends), shapes, strict=True)]


def _named_alike(labels, reference, how):
    """Clusters with the names of those of a reference that they overlap most."""
    sizes = [np.maximum(a.shape, b.shape) for a, b in zip(labels, reference, strict=True)]
    ours, theirs = (
        [enlarged_labels(each, size).ravel() for each, size in zip(maps, sizes, strict=True)]
        for maps in (labels, reference)
    )
    if how.per_image:
        names = [_new_names(*pair, how.k) for pair in zip(ours, theirs, strict=True)]
    else:
        names = [_new_names(np.concatenate(ours), np.concatenate(theirs), how.k)] * len(labels)
    return [new[mine] for new, mine in zip(names, labels, strict=True)]


def _new_names(labels, reference, k):
    """The name i32[k] of each cluster that overlaps most with those of a reference."""
    names = np.zeros(k, np.int32)
    names[labels] = matched(labels, reference, k)
    return names
