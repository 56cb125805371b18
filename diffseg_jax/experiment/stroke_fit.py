"""An ensemble of pixel classifiers that learns from strokes in seconds, again and again.

    engine = StrokeFit("", labels, "photos_annotated/features")
    engine.features("a.jpg", image)                       # once for each image; then from the cache
    result = engine.fit({"a.jpg": ids})                   # 255 where nothing is painted
    labels, uncertainty = engine.predict("a.jpg")
    engine.save("photos_annotated/model")                 # what diffseg_jax.load opens

Features of each image are computed once. A fit draws a fixed number of painted pixels, so that its
program is compiled once: classes equally often, and in a class each stroke in proportion to the
square root of its size. The members that give the prediction learn
in one program with others, each of which never sees one fold of the strokes: what those say of that
fold is the score of the fit, and calibrates its uncertainty. Classes without a stroke are never
predicted, neither by the engine nor by its checkpoint: their probability is 0.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.devices.compiled import BoundedPrograms
from diffseg_jax.devices.mesh import local_mesh, place_tree, state_shardings
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.fit_network import completed
from diffseg_jax.experiment.label_strokes import (
    Strokes,
    chances,
    draw_evenly,
    find_strokes,
    joined_strokes,
    shown_labels,
)
from diffseg_jax.experiment.stroke_features import MEMORY, FeatureCache, pixels_digest
from diffseg_jax.experiment.stroke_members import PIXELS_DRAWN, Cancelled, PixelTable, StrokeMembers
from diffseg_jax.experiment.stroke_network import (
    STAGE,
    fit_config,
    fit_meta,
    make_fit_task,
    open_features,
)
from diffseg_jax.experiment.stroke_scores import fold_numbers, score_held_out
from diffseg_jax.inference.calibrators import write_calibrator
from diffseg_jax.inference.segmenter import Segmenter, load
from diffseg_jax.inference.views import predict
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.paths import open_path
from diffseg_jax.storage.workdir import stage_directory

LIMIT = (480, 360)  # longer and shorter side of the images that the network sees, as in training
MEMBERS = 3  # of the prediction


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a fit learned from, and how well it does.

    number     of fits by this object so far
    pixels     painted, at the size that the network sees;  images, strokes  that hold them
    miou       mean IoU in [0, 1] on pixels of strokes that were held out, drawn as those of the
               fit, by classifiers that learned from the others; None where nothing could be held
               out
    per_class  IoU of each class; None where no stroke of it could be held out, as all are in one
               image or, for one image, there is only one
    calibrated whether the uncertainty is calibrated; else it is 1 - the highest probability
    seconds    of this fit
    """

    number: int
    pixels: int
    images: int
    strokes: int
    miou: float | None
    per_class: tuple[float | None, ...]
    calibrated: bool
    seconds: float


class StrokeFit:
    """Learns from strokes; only one thread may use it.

    source   where features come from, as of `open_features`
    labels   the K classes, at most 254
    folder   of the cached features
    limit    (longer, shorter side) into which images are fitted for the network; predictions come
             at the size of the image
    memory   bytes of features that stay in memory
    members  classifiers of the prediction
    seed     of the pixels that are drawn, the initial values and the dropout: the same strokes give
             the same fit

    note     a sentence for people about the source, or ""
    result   the `FitResult` of the last fit, or None

    Raises UserError for a source that cannot be opened.
    """

    @own_settings()
    def __init__(
        self, source: str | os.PathLike, labels: Labels, folder: str | os.PathLike, *,
        limit: tuple[int, int] = LIMIT, memory: int = MEMORY, members: int = MEMBERS, seed: int = 0,
    ):  # fmt: skip
        opened = open_features(source)
        self.note, self.members, self.seed = opened.note, members, seed
        self.config = fit_config(opened, members, limit, seed)
        self.mesh = local_mesh()
        self.labels, self.task = labels, make_fit_task(self.config, len(labels.names))
        self.learner = StrokeMembers(self.task.fit, seed)
        placed = place_tree(opened.arrays, state_shardings(opened.arrays, self.mesh))
        self.network = completed(self.task, seed, self.mesh, placed)
        identity = {"features": self.task.meta["features"], "dtype": self.config.dtype}
        extract = BoundedPrograms(self.task.fit.extract)
        self.cache = FeatureCache(
            extract, self.network, open_path(folder), identity, limit, memory
        )  # fmt: skip
        self.shown = {}  # key -> digest, size of the image, size at which it is shown
        self.result, self.calibrator, self.ensemble, self.painted = None, None, None, 0

    def set_classes(self, labels: Labels):
        """Takes other classes, of which the ids stand for the same things; the next fit compiles.

        The last fit is gone, unless only names and colours changed.
        """
        if len(labels.names) != len(self.labels.names):
            self.task = make_fit_task(self.config, len(labels.names))
            self.learner = StrokeMembers(self.task.fit, self.seed)
            self.result, self.calibrator, self.ensemble = None, None, None
        self.labels = labels

    # ---- features ------------------------------------------------------------------------------

    @own_settings()
    def features(self, key: str, image: np.ndarray) -> PixelFeatures:
        """The features of an image, from memory, the disk, or the network.

        key    names the image for `fit` and `predict`; an image that has changed is shown again
        image  u8[H,W,3], upright
        """
        digest, size = pixels_digest(image), image.shape[:2]
        self.shown[key] = digest, size, self.cache.size_of(size)
        return self.cache.read(digest, image)

    def knows(self, key: str) -> bool:
        """Whether the features of an image were asked for and are still kept."""
        return key in self.shown and self.cache.has(self.shown[key][0])

    def _kept(self, key) -> PixelFeatures:
        try:
            return self.cache.read(self.shown[key][0])
        except LookupError:
            raise UserError(
                f"there are no features of {key}. Open the image first, and press Fit again."
            ) from None

    # ---- the fit -------------------------------------------------------------------------------

    @own_settings()
    def fit(
        self, labels: Mapping[str, np.ndarray],
        progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> FitResult:  # fmt: skip
        """Fits new classifiers to the strokes of all images, by which it predicts from now on.

        labels     key -> ids u8[H,W] of the size of the image, 0..K-1, 255 where nothing is
                   painted; neighbours, such as frames of a video, are held out together
        progress   is told "features", "fit" or "scores", and how much of it is done
        cancelled  is asked some times a second; Cancelled is raised then, and the fit before stays

        Raises UserError for strokes of less than two classes, ids of no class, sizes that differ,
        and images without features.
        """
        begun = time.perf_counter()
        keys, images, strokes = self._strokes(labels, cancelled)
        table = self._table(keys, images, strokes, progress, cancelled)
        self.ensemble, probs, signals = self.learner.fit(table, progress, cancelled)
        progress("scores", 0, 1)
        held_out = score_held_out(
            probs, signals, table.labels, table.folds, table.units, table.pixels,
            "images" if len(keys) > 1 else "strokes",
        )  # fmt: skip
        progress("scores", 1, 1)
        # It is kept also where halves of so few pixels do not show that it helps: without one, an
        # ensemble is too sure of images that it has not seen.
        self.calibrator = held_out.calibrated.calibrator if held_out.calibrated else None
        self.painted = len(keys)
        self.result = FitResult(
            number=self.result.number + 1 if self.result else 1, pixels=len(strokes.pixels),
            images=len(keys), strokes=strokes.count, miou=held_out.miou,
            per_class=held_out.per_class, calibrated=self.calibrator is not None,
            seconds=time.perf_counter() - begun,
        )  # fmt: skip
        return self.result

    def _strokes(self, labels, cancelled) -> tuple[list[str], np.ndarray, Strokes]:
        """The images with strokes, the image of every painted pixel, and the strokes of all."""
        found, names = {}, self.labels.names
        for key, ids in labels.items():
            if cancelled():
                raise Cancelled
            if (ids == IGNORE).all():
                continue
            if key not in self.shown:
                self._kept(key)
            _, size, shown = self.shown[key]
            if ids.shape != tuple(size):
                raise UserError(
                    f"the labels of {key} are {ids.shape[0]} x {ids.shape[1]}, but the image is "
                    f"{size[0]} x {size[1]}. Paint it again, or bring back the image that it was."
                )
            strokes = find_strokes(shown_labels(ids, shown))
            if (wrong := strokes.labels.max()) >= len(names):
                raise UserError(
                    f"the labels of {key} hold the id {wrong}, but there are "
                    f"{counted(len(names), 'class')}, 0 to {len(names) - 1}. Add the "
                    "class, or paint over it."
                )
            found[key] = strokes
        self._require_classes(found)
        images, strokes = joined_strokes(list(found.values()))
        return list(found), images, strokes

    def _require_classes(self, found):
        if not found:
            raise UserError(
                "nothing is painted. Paint a few strokes of two classes or more, then press Fit."
            )
        painted = np.unique(np.concatenate([each.labels for each in found.values()]))
        if len(painted) < 2:
            raise UserError(
                f"only {self.labels.names[painted[0]]} is painted. Paint a few strokes of two "
                "classes or more, then press Fit."
            )

    def _table(self, keys, images, strokes, progress, cancelled) -> PixelTable:
        rng = np.random.default_rng([self.seed, len(strokes.pixels)])
        rows = draw_evenly(chances(strokes.labels, strokes.numbers), PIXELS_DRAWN, rng)
        folds = fold_numbers(images, strokes.labels, strokes.numbers)[rows]
        units = images[rows] if len(keys) > 1 else strokes.numbers[rows]
        x = np.empty((PIXELS_DRAWN, self.task.meta["features_per_pixel"]), np.float32)
        for number, key in enumerate(keys):
            if cancelled():
                raise Cancelled
            of_image = images[rows] == number
            features, pixels = self._kept(key), strokes.pixels[rows[of_image]]
            nothing = np.zeros(len(pixels), np.int64)
            x[of_image] = features.gather(nothing, *np.divmod(pixels, features.size[1]))
            progress("features", number + 1, len(keys))
        return PixelTable(x, strokes.labels[rows].astype(np.int32), folds, units, rows)

    # ---- what it is used for ---------------------------------------------------------------------

    def _require_fit(self):
        if self.ensemble is None:
            raise UserError(
                "there is no fit yet. Paint a few strokes of two classes or more, then press Fit."
            )

    @own_settings()
    def predict(
        self, key: str, image: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """(ids u8[H,W], uncertainty f32[H,W] in [0, 1]) of an image, at its size, by the last fit.

        image  u8[H,W,3], as of `features`; None: its features are kept
        out    the uncertainty is the chance that an id is wrong, as far as strokes tell

        It is that of `segmenter().predict`, from kept features. Raises UserError before a fit, and
        where there are no features.
        """
        self._require_fit()
        features = self._kept(key) if image is None else self.features(key, image)
        _, size, _ = self.shown[key]
        forward = lambda images, valid: jax.tree.map(
            np.asarray, self.learner.predict(self.ensemble, features)
        )
        blank = np.broadcast_to(np.zeros((), np.uint8), (1, *size, 3))
        maps = predict(forward, blank, self.cache.protocol, (), self.calibrator, keep=())
        return maps.labels[0].astype(np.uint8), maps.uncertainty[0]

    @own_settings()
    def warm_up(self):
        """Compiles what a fit runs, so that the first one is as fast as the next."""
        self.learner.warm_up(self.task.meta["features_per_pixel"])

    @property
    def meta(self) -> dict:
        """The metadata of a checkpoint of the last fit."""
        return fit_meta(self.config, self.task, self.labels, self.painted)

    @own_settings()
    def segmenter(self) -> Segmenter:
        """The last fit in memory, as `diffseg_jax.load` returns it; UserError before a fit."""
        self._require_fit()
        network = {
            part: {**self.network[part], "ensemble": self.ensemble[part]}
            for part in ("params", "stats")
        }
        network = jax.tree.map(np.asarray, network)
        fits = self.result.number if self.result else 1  # of others, one was restored
        meta = {**self.meta, "step": self.task.fit.recipe.steps * fits}
        return Segmenter("strokes", network, meta, calibrator=self.calibrator)

    @own_settings()
    def save(self, directory: str | os.PathLike):
        """Writes the last fit as a workdir that `diffseg_jax.load` opens; the one before goes.

        A checkpoint appears only when its arrays are complete; its calibrator is written next, and
        if that is interrupted, the uncertainty of what is opened is 1 - the highest probability.
        Raises UserError before a fit, and where it cannot be written.
        """
        self._require_fit()
        stage = stage_directory(open_path(directory), STAGE)
        try:
            self._save(stage)
        except OSError as error:
            raise UserError(
                f"the model cannot be written to {stage} ({error.strerror or error}). Free some "
                "space, or fix this error, and fit again."
            ) from None

    def _save(self, stage):
        stage.mkdir(parents=True, exist_ok=True)
        with StageCheckpoints(stage, keep=1) as checkpoints:
            step = (checkpoints.latest() or 0) + self.task.fit.recipe.steps
            state = {
                "params": {"ensemble": self.ensemble["params"]},
                "stats": {**self.network["stats"], "ensemble": self.ensemble["stats"]},
                "frozen": self.network["params"],
                "step": np.asarray(step, np.int32),
            }
            checkpoints.save(step, state, {**self.meta, "step": step})
            checkpoints.wait()
            if self.calibrator:
                write_calibrator(stage, step, checkpoints.meta(step), self.calibrator)

    @own_settings()
    def restore(self, directory: str | os.PathLike) -> bool:
        """Predicts by the fit that `save` wrote there; False if it is of other features or classes.

        False also where no checkpoint can be read; then nothing has changed.
        """
        try:
            saved = load(directory, stage=STAGE)
        except UserError:
            return False
        own = self.meta
        if any(saved.meta[key] != own[key] for key in ("config", "start", "task", "classes")):
            return False
        learned = {part: saved.network[part]["ensemble"] for part in ("params", "stats")}
        self.ensemble = jax.tree.map(jnp.asarray, learned)
        self.calibrator, self.painted = saved.calibrator, saved.meta["labelled"]["n"]
        return True
