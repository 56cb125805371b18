"""A synthetic data set: images from a diffusion model, labelled by pixel classifiers, filtered.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), call it
DatasetDDPM; the filter is that of Zhang et al., "DatasetGAN" (CVPR 2021).
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import diffseg_jax
from diffseg_jax.config.schema import differing_lines
from diffseg_jax.data.folder_source import IS_SETTLED, SET_FILE
from diffseg_jax.data.generated_sets import CERTAIN, kept_by_uncertainty
from diffseg_jax.data.images import read_image
from diffseg_jax.data.masks import read_ids
from diffseg_jax.devices.mesh import place_tree, state_shardings
from diffseg_jax.devices.processes import require_one
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError, counted
from diffseg_jax.figures import layout, sheets
from diffseg_jax.inference.description import data_of
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.outputs import require_segmentation
from diffseg_jax.inference.sampling import read_task
from diffseg_jax.inference.saved import label_image
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.sources.diffusion import make_network, make_settings
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.paths import (
    make_folder,
    open_path,
    read_object,
    write_atomically,
    write_json,
)
from diffseg_jax.systems.ddpm_sampling import make_step, sample_floats, stored_bytes
from diffseg_jax.systems.ddpm_seg_config import check_size

SCORES_FILE = "uncertainty.jsonl"  # of images that SET_FILE does not list yet, a line per batch
POOL = "pool"  # folder of the images that the filter drops
SPLIT = "train"
ON_SHEET = 12  # images on the sheet
FLAG = "--{}={}"  # of an option of the filter, in errors


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How images are drawn; other values draw other images.

    seed     image i is a function of the seed and i
    steps    "" all, "250" evenly spread, "ddim50" evenly strided
    sampler  "ddpm", or "ddim" with eta in [0, 1]
    size     (height, width), multiples of the network's stride; None = that of the labelled images
    """

    seed: int = 0
    steps: str = ""
    sampler: str = "ddpm"
    eta: float = 0.0
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Generator:
    """A diffusion model on devices, and what draws its images."""

    draw: Callable[[Sequence[int]], np.ndarray]  # indices -> f32[n, h, w, 3] in [-1, 1]
    described: dict


def labelled_images(
    segmenter: Segmenter, draw: Callable, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, float]]:
    """Index, image u8[h,w,3], labels i32[h,w] and uncertainty in nats of each image.

    draw  indices -> images f32[n,h,w,3] in [-1, 1], from which the classifiers read; what is stored
          is rounded

    The label of a pixel is the class with most votes, the smallest index among ties. The
    uncertainty of an image is the mean divergence of the classifiers, H(mean p) - mean H(p), over
    its most uncertain tenth of pixels.
    """
    program, _ = segmenter.compiled()
    program = functools.partial(program, seed=segmenter.seed_for())
    forward = make_forward(program, segmenter.placed, segmenter.mesh, batch_size)
    nats = math.log(max(len(segmenter.names), 2))  # of the maximum, by which it is divided
    for start in range(0, len(indices), batch_size):
        chosen = np.asarray(indices[start : start + batch_size])
        # A full last batch compiles nothing new.
        drawn = draw(np.resize(chosen, batch_size))[: len(chosen)]
        drawn = np.clip(drawn, -1, 1)
        valid = np.tile(np.array(drawn.shape[1:3], np.int32), (len(drawn), 1))
        found = forward((drawn + 1) * np.float32(127.5), valid)
        labels = np.argmax(found.get("votes", found["probs"]), -1)
        for row, index in enumerate(chosen):
            score = image_uncertainty(found["divergence"][row]) * nats
            yield int(index), stored_bytes(drawn[row]), labels[row], score


@own_settings()
def synthesise(
    segmenter: Segmenter, output: str | os.PathLike, *, count: int, options: SampleOptions,
    diffusion: str = "", ema: str | None = None, batch_size: int = 16, portion: float = 0.1,
    certain: int = CERTAIN, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:  # fmt: skip
    """Writes a data set that `main` trains on; returns the content of its synthetic.json.

    segmenter   of a stage that fits pixel classifiers
    output      images/train, masks/train and classes.json; in pool/ the images that are dropped
    count       images that are drawn
    diffusion   directory of the diffusion model; "" = the one whose features are read
    ema         rate of its moving average, or "off"; None = the first rate
    portion, certain  of the filter, as of `kept_by_uncertainty`
    progress    called with the number of finished images and of all, before the first batch and
                after each

    Finished images are kept, so the same call goes on after a stop, and another filter or a larger
    count costs no image that is there. Raises UserError for a checkpoint without classifiers or
    diffusion model, for a folder of other options, and where the filter would leave nothing.
    """
    require_one("synthesise")
    _require_ensemble(segmenter)
    if count < 1 or batch_size < 1:
        raise UserError(f"count is {count} and batch_size {batch_size}; both must be 1 or more.")
    kept_by_uncertainty(np.zeros(count), portion, certain, flag=FLAG)  # before hours of sampling
    generator = open_generator(segmenter, diffusion, ema, options)
    folder = open_path(output)
    make_folder(folder)
    content = _resumed(folder, _described(segmenter, generator.described))
    missing = [i for i in range(count) if not _is_done(folder, content, i)]
    progress(count - len(missing), count)
    share = segmenter.mesh.size
    batch_size = -(-min(batch_size, max(len(missing), 1)) // share) * share
    _write_batches(segmenter, generator, folder, content, missing, batch_size, count, progress)
    return settle(folder, content, segmenter, count, portion, certain)


def _write_batches(segmenter, generator, folder, content, missing, batch_size, count, progress):
    """Draws what is missing into the pool; the uncertainties of a batch follow its files."""
    done, found = count - len(missing), {}
    for index, image, labels, score in labelled_images(
        segmenter, generator.draw, missing, batch_size
    ):
        _write_pair(folder, image_name(index), image, labels, segmenter.palette)
        found[image_name(index)] = score
        done += 1
        if len(found) == batch_size or index == missing[-1]:
            content["uncertainty"].update(found)
            _append_scores(folder, found)
            found = {}
            progress(done, count)


def open_generator(
    segmenter: Segmenter, diffusion: str, ema: str | None, options: SampleOptions
) -> Generator:  # fmt: skip
    """The diffusion model of a fit, or the one in another directory."""
    params, task, name = _diffusion_model(segmenter, diffusion, ema)
    settings, trained = make_settings(task["model"]), task["diffusion"]
    size = tuple(options.size or segmenter.meta["task"]["size"])
    check_size(size, settings, "size", "--size={},{}")
    # Only the sampler takes fewer steps: features are those of the full schedule.
    process = make_process(
        trained["schedule"], trained["steps"], options.steps, trained["rescale_timesteps"]
    )
    network = make_network(settings, segmenter.config.dtype, False)
    step = make_step(network, process, trained, options.sampler, options.eta)

    def draw(indices):
        turns = np.asarray(indices) % settings.num_classes if settings.num_classes else None
        return sample_floats(
            step, process, params, seed=options.seed, indices=indices, size=size, classes=turns
        )

    described = {**dataclasses.asdict(options), "size": list(size), "diffusion": name}
    return Generator(draw, {**described, "taken_steps": process.steps})


def _require_ensemble(segmenter):
    """Raises UserError for a checkpoint without classifiers of features of images."""
    require_segmentation(segmenter.config, "synthesise", segmenter.directory)
    if segmenter.task.fit is None or not segmenter.names:
        raise UserError(
            f"{segmenter.directory} holds no pixel classifiers, whose disagreement the filter "
            "reads. Give a stage of kind fit of a config whose system is ddpm_seg."
        )
    if segmenter.task.files:
        raise UserError(
            f"the classifiers of {segmenter.directory} read features from files, which generated "
            "images do not have. Give classifiers that read a network."
        )


def _diffusion_model(segmenter, diffusion, ema):
    """Parameters on the devices, metadata and a name of the model that draws."""
    if diffusion:
        directory = open_path(diffusion)
        task = read_task(directory)
        params = open_network(directory, ema=ema)[0]["params"]
        placed = place_tree(params, state_shardings(params, segmenter.mesh))
        return placed, task, str(directory)
    if "unet" not in segmenter.network["params"]:
        raise UserError(
            f"the classifiers of {segmenter.directory} read no diffusion model that could draw "
            "images. Give one, as with --diffusion=runs/a/checkpoints/pretrain."
        )
    if ema is not None:
        raise UserError(
            "ema is given, but the diffusion model is that of the classifiers, which have one set "
            "of parameters. Leave ema out, or give --diffusion too."
        )
    return segmenter.placed["params"]["unet"], segmenter.meta["task"], "that of the classifiers"


# ---- files -------------------------------------------------------------------------------------


def image_name(index: int) -> str:
    """The name of an image."""
    return f"{index:06d}"


def _paths(folder: Path, name: str, kept: bool) -> tuple[Path, Path]:
    """The image and the mask, in the set or in the pool."""
    root, split = (folder, SPLIT) if kept else (folder / POOL, "")
    return root / "images" / split / f"{name}.png", root / "masks" / split / f"{name}.png"


def _where(folder, name) -> tuple[Path, Path] | None:
    """The files of an image, wherever they are; None unless both are there."""
    found = []
    for part in (0, 1):
        paths = [_paths(folder, name, kept)[part] for kept in (True, False)]
        found.append(next((path for path in paths if path.exists()), None))
    return tuple(found) if all(found) else None


def _append_scores(folder, scores):
    """Adds a line {name: nats}; the whole record, which may list many images, is not written."""
    with open(folder / SCORES_FILE, "a") as file:
        file.write(json.dumps(scores) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _appended_scores(folder) -> dict[str, float]:
    """The uncertainties in all lines that were written whole."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / SCORES_FILE).read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that a killed command began
                found |= json.loads(line)
    return found


def _write_record(folder, content):
    """Writes SET_FILE with all uncertainties, so that no line beside it is needed."""
    write_json(folder / SET_FILE, content)
    (folder / SCORES_FILE).unlink(missing_ok=True)


def _is_done(folder, content, index):
    name = image_name(index)
    return name in content["uncertainty"] and _where(folder, name) is not None


def _write_pair(folder, name, image, labels, palette):
    image_path, mask_path = _paths(folder, name, False)
    write_atomically(image_path, layout.png_of(Image.fromarray(image)))
    write_atomically(mask_path, layout.png_of(label_image(labels, palette)))


def _described(segmenter, generator) -> dict:
    """What decides which images and labels are made; JSON values."""
    return {
        "checkpoint": str(segmenter.directory),
        "step": segmenter.step,
        "weights": segmenter.fingerprint,
        "dtype": segmenter.config.dtype,
        "labels_from": data_of(segmenter.meta),
        "sampling": generator,
        "classes": list(segmenter.names),
    }


def _resumed(folder, made) -> dict:
    """The content of a folder's file, or that of a new one; UserError for other options.

    The file is there before the first image, so that a command that is killed can go on.
    """
    content = read_object(folder / SET_FILE)
    if not content:
        if any(_paths(folder, "", kept)[0].parent.exists() for kept in (True, False)):
            raise UserError(
                f"{folder} holds images, but no {SET_FILE} that can be read, by which synthesise "
                "knows its own. Give another --output."
            )
        content = {"version": diffseg_jax.__version__, "made": made, "uncertainty": {}}
    # A checkpoint may be elsewhere; its weights may not change.
    ignored = ("checkpoint",)
    old, new = ({k: v for k, v in m.items() if k not in ignored} for m in (content["made"], made))
    if lines := differing_lines(old, new):
        raise UserError(
            f"{folder} was made with other options: {'; '.join(lines)}. Give these, or another "
            "--output."
        )
    content["uncertainty"] |= _appended_scores(folder)
    _write_record(folder, content)
    return content


def settle(folder: Path, content: dict, segmenter: Segmenter, count: int, portion, certain) -> dict:
    """Moves what the filter keeps into the set, and all else into the pool.

    Until all is moved, SET_FILE says so, and `open_source` refuses the folder.
    """
    names = [image_name(i) for i in range(count)]
    scores = np.array([content["uncertainty"][name] for name in names])
    kept = {names[i] for i in kept_by_uncertainty(scores, portion, certain, flag=FLAG)}
    _write_record(folder, content | {IS_SETTLED: False})
    for name in content["uncertainty"]:  # those beyond a smaller count too
        _move(folder, name, name in kept)
    labels = segmenter.labels
    write_json(
        folder / "classes.json",
        {"names": list(labels.names), "palette": [list(colour) for colour in labels.palette]},
    )
    share = _class_shares(folder, sorted(kept), labels)
    content |= {
        "filter": {"count": count, "portion": portion, "certain": certain},
        "kept": sorted(kept),
        "class_shares": share,
        IS_SETTLED: True,
    }
    _write_record(folder, content)
    order = sorted(names, key=content["uncertainty"].get)
    _draw_sheet(folder, order, content["uncertainty"], labels)
    return content


def _move(folder, name, kept):
    for source, target in zip(_paths(folder, name, not kept), _paths(folder, name, kept)):
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)


def _class_shares(folder, names, labels) -> dict[str, float]:
    """The share of pixels of each class in the kept labels."""
    counts = np.zeros(len(labels.names), np.int64)
    for name in names:
        ids = read_ids(_paths(folder, name, True)[1])
        counts += np.bincount(ids.ravel(), minlength=len(counts))[: len(counts)]
    return dict(zip(labels.names, (counts / counts.sum()).round(6).tolist(), strict=True))


def _draw_sheet(folder, order, scores, labels):
    """sheet.png: images from the most to the least certain, with their labels."""
    chosen = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, ON_SHEET).astype(int))]
    paths = [_where(folder, name) for name in chosen]
    images = [read_image(image) for image, _ in paths]
    masks = [read_ids(mask).astype(np.int32) for _, mask in paths]
    titles = [f"{name}: {scores[name]:.3f} nats" for name in chosen]
    layout.save_png(folder / "sheet.png", sheets.contact_sheet(images, masks, labels, titles))


def summary_line(content: dict) -> str:
    """How many images of the set are kept, and what drew and labelled them."""
    chosen, made = content["filter"], content["made"]
    sampling = made["sampling"]
    kept = counted(len(content["kept"]), "image")
    return (
        f"{kept} of {chosen['count']} kept (portion {chosen['portion']:g}, "
        f"{chosen['certain']} most certain); drawn by {sampling['sampler']} in "
        f"{counted(sampling['taken_steps'], 'step')}"
    )
