"""A random forest on classical features of the image, which every method should beat.

The features are those of scikit-image's example "Trainable segmentation using local features and
random forests": intensity, edges and texture at five scales; the trees grow without a limit.
"""

import math
from collections.abc import Sequence

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.evaluate import Counts, no_counts
from diffseg_jax.inference.views import predict_whole
from diffseg_jax.metrics.calibration import scores_by_class
from diffseg_jax.metrics.segmentation import scores, to_number

FOREST_EXTRA = 'pip install -e ".[compare]"'
FILTERS = dict(intensity=True, edges=True, texture=True, sigma_min=1, sigma_max=16)
TREES = dict(n_estimators=50, max_samples=0.05)
GROWN_AT_ONCE = 10  # trees, after which the progress is shown
PIXELS_OF_IMAGE = 20_000  # that are drawn from a labelled image


def has_forest_libraries() -> bool:
    """Whether scikit-image and scikit-learn are installed."""
    try:
        import skimage.feature  # noqa: F401
        import sklearn.ensemble  # noqa: F401
    except ImportError:
        return False
    return True


def filter_responses(image: np.ndarray) -> np.ndarray:
    """The responses of all filters to an image u8[H,W,3]: f32[H,W,60]."""
    from skimage.feature import multiscale_basic_features  # of an extra

    return multiscale_basic_features(image, channel_axis=-1, **FILTERS)


def fit_forest(
    source: Sequence, indices: Sequence[int], display: Display, *, seed: int = 0,
    pixels: int = PIXELS_OF_IMAGE, max_depth: int | None = None, threads: int = -1,
    seconds: float = math.inf,
):  # fmt: skip
    """A forest fitted to drawn pixels of the labelled images at `indices`.

    pixels   drawn from each image at most; 0 for all that are labelled
    threads  -1 for as many as there are cores
    seconds  in which the images must be read; UserError as soon as it shows that they will not be
    """
    from sklearn.ensemble import RandomForestClassifier  # of an extra

    generator, parts = np.random.default_rng(seed), []
    with display.progress("forest: reads images", len(indices), unit="images") as progress:
        for index in progress.each_of(indices):
            parts.append(_labelled_pixels(source[int(index)], pixels, generator))
            needed = progress.seconds_each * len(indices)
            if progress.is_warm and needed > seconds:
                raise UserError(
                    f"a forest needs {duration(needed)} to read the images, but has "
                    f"{duration(seconds)}. Give more --minutes, in another --workdir, or smaller "
                    "images."
                )
    responses, classes = map(np.concatenate, zip(*parts, strict=True))
    if not len(classes):
        raise UserError("no pixel of the labelled images is labelled. Look at their masks.")
    forest = RandomForestClassifier(
        max_depth=max_depth, random_state=seed, n_jobs=threads, warm_start=True, **TREES
    )
    trees = TREES["n_estimators"]
    with display.progress("forest: grows trees", trees, unit="trees") as progress:
        for grown in range(GROWN_AT_ONCE, trees + 1, GROWN_AT_ONCE):
            forest.set_params(n_estimators=grown).fit(responses, classes)  # keeps those it has
            progress.at(grown)
    return forest


def _labelled_pixels(example, count, generator):
    """The responses f32[N,60] and the classes i32[N] of drawn labelled pixels."""
    mask = example["mask"].ravel()
    chosen = np.flatnonzero(mask != IGNORE)
    if 0 < count < len(chosen):
        chosen = generator.choice(chosen, count, replace=False)
    responses = filter_responses(example["image"])
    return responses.reshape(-1, responses.shape[-1])[chosen], mask[chosen]


def forest_probabilities(forest, responses: np.ndarray, num_classes: int) -> np.ndarray:
    """f32[H,W,K] of responses f32[H,W,60]; 0 for classes that no drawn pixel has."""
    height, width, depth = responses.shape
    probs = np.zeros((height * width, num_classes), np.float32)
    probs[:, forest.classes_] = forest.predict_proba(responses.reshape(-1, depth))
    return probs.reshape(height, width, num_classes)


def count_forest(
    forest, source: Sequence, indices: Sequence[int], display: Display
) -> tuple[Counts, dict]:
    """The counts over the images at `indices`, and {index: labels i32[H,W]} of each."""
    num_classes = len(source.labels.names)
    counts, labels = no_counts(num_classes), {}
    with display.progress("forest: measures images", len(indices), unit="images") as progress:
        for index in progress.each_of(map(int, indices)):
            example = source[index]
            probs = forest_probabilities(forest, filter_responses(example["image"]), num_classes)
            maps = predict_whole(probs[None])
            counts.add(example["mask"], maps, 0)
            labels[index] = np.asarray(maps.labels[0])
    return counts, labels


def forest_result(
    source: Sequence, indices: Sequence[int], held_out: Sequence, held_out_indices: Sequence[int],
    seed: int, display: Display, seconds: float = math.inf,
) -> tuple[dict, dict[int, np.ndarray]]:  # fmt: skip
    """(numbers of a forest on held-out images, its labels of them).

    The numbers have the keys that a stage's results have.
    """
    forest = fit_forest(source, indices, display, seed=seed, seconds=seconds)
    counts, labels = count_forest(forest, held_out, held_out_indices, display)
    trust = scores_by_class(counts.chance, ())
    result = {
        "mIoU": to_number(scores(counts.confusion[:-1], absent="skip")["mIoU"]),
        "AUROC": trust["AUROC"],
        "calibration": {"ECE": trust["ECE"]},
    }
    return result, labels
