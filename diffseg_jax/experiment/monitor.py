"""Looking at a stage: numbers and pictures, during training and at its end."""

import dataclasses
import math

import jax
import numpy as np

from diffseg_jax.data.transforms import resize_image, resize_mask
from diffseg_jax.devices import processes
from diffseg_jax.errors import counted
from diffseg_jax.experiment.evaluate import UNCERTAIN, Counts, evaluate, spread
from diffseg_jax.experiment.plan import Run, augmentation
from diffseg_jax.figures import sheets
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.views import Protocol, View, protocol_of
from diffseg_jax.metrics import segmentation
from diffseg_jax.metrics.uncertainty import auroc
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.system import Task
from diffseg_jax.training.state import network_of

PROTOCOL = (  # options of evaluate that are written beside the results
    "view", "window", "stride", "limit", "short", "scales", "flip", "absent",
)  # fmt: skip


def watcher(run: Run, name: str, task: Task):
    """(state, step) -> numbers, drawing pictures on the way; what the loop calls now and then."""
    ema = run.config.stages[name].ema
    if task.sample:
        count = run.config.samples.images

        def draw(state, step):
            images = task.sample(network_of(state, ema), run.config.seed, count)
            file = f"{name}_{step:06d}"
            save_picture(run, sheets.grid(images), file, name, step)
            run.log.say(f"{name} {step}: samples in {run.workdir / 'pictures' / file}.png")
            return {}

        return draw
    options = run.config.evaluate
    if task.predict:
        whole = protocol_of(run.config.evaluate)
        nearest = min(whole.scales, key=lambda scale: abs(math.log(scale)))
        quick = dataclasses.replace(whole, scales=(nearest,), flip=False)
        places = run.places_of_val(options.quick_images)

        def watch(state, step):
            counts, kept = measure(run, task, network_of(state, ema), places, quick)
            trace_steps(run, task, network_of(state, ema), kept, quick)
            draw_predictions(run, kept, f"{name}_{step:06d}", name, step)
            scored = scores_of(run, counts)
            return {**{mean: scored[mean] for mean in segmentation.MEANS}, "images": len(places)}

        return watch
    examples = _some_crops(run, name)

    def look(state, step):
        key = jax.random.key(run.config.seed)
        images, valid = examples["image"], examples["valid"]
        *pictures, error = task.denoise(network_of(state, ema), images, valid, key)
        sheet = sheets.denoising_sheet(*map(np.asarray, pictures))
        save_picture(run, sheet, f"{name}_{step:06d}", name, step)
        return {"denoising_error_of_pictures": float(error)}

    return look


def _some_crops(run, name):
    """A few fixed training crops of an unlabelled stage, as one batch."""
    change = augmentation(run.config.stages[name].augment.to_dict(), labelled=False)
    places = spread(np.arange(len(run.unlabelled)), max(run.config.evaluate.pictures, 1))
    crops = [
        change(run.unlabelled[int(place)]["image"], None, np.random.default_rng(place))
        for place in places
    ]
    return {key: np.stack([crop[key] for crop in crops]) for key in ("image", "valid")}


def measure(run: Run, task: Task, network: dict, places, protocol: Protocol):
    """Counts of what a network gets right, and the examples to draw."""
    options = run.config.evaluate
    forward = make_forward(task.predict, network, run.mesh, options.batch_size, task.stride)
    return evaluate(
        forward, run.val, places, len(run.val.labels.names), protocol, options.batch_size,
        options.pictures,
    )  # fmt: skip


def result_of(
    run: Run, name: str, task: Task, network: dict, meta: dict, picture: str = "result"
) -> dict:
    """The final numbers of a stage under the whole protocol, and what they are of; JSON values.

    picture  last word of the name of the sheet of examples
    """
    options = run.config.evaluate
    places = run.places_of_val(options.images)
    run.log.say(f"{name}: evaluates step {meta['step']} on {counted(len(places), 'image')}")
    counts, kept = measure(run, task, network, places, protocol_of(run.config.evaluate))
    trace_steps(run, task, network, kept, protocol_of(run.config.evaluate))
    draw_predictions(run, kept, f"{name}_{picture}", name, meta["step"])
    names, convention = run.val.labels.names, run.system.CONVENTION
    papers = {}
    if convention != "default":
        papers[convention] = segmentation.to_json(scores_of(run, counts, convention), names)
    return {
        "step": meta["step"],
        "start": meta["start"],
        "images": len(places),
        "labelled_images": meta["labelled"]["n"],
        "protocol": as_json({word: options[word] for word in PROTOCOL}),
        **segmentation.to_json(scores_of(run, counts), names),
        "AUROC": segmentation.to_number(auroc(counts.uncertainty)),
        "AUROC_of": measured(counts),
        "image_uncertainty": counts.uncertain / UNCERTAIN / counts.images,
        **papers,
        **({"sampling": as_json(run.config.sampling.to_dict())} if task.trace else {}),
    }


def scores_of(run: Run, counts: Counts, convention: str = "") -> dict:
    """Ratios of the counts by a paper's convention, or by the config's choice about absent classes.

    Classes that are never labelled have none.
    """
    absent, ignored_row = segmentation.CONVENTIONS[convention or "default"]
    confusion = counts.confusion if ignored_row else counts.confusion[:-1]
    absent = absent if convention else run.config.evaluate.absent
    return segmentation.scores(confusion, absent=absent, left_out=run.val.labels.unscored)


def measured(counts: Counts) -> dict:
    """AUROC of every measure of uncertainty that the network gave."""
    given = {name: values for name, values in counts.measures.items() if values.any()}
    return {name: segmentation.to_number(auroc(values)) for name, values in given.items()}


def trace_steps(run: Run, task: Task, network: dict, kept: list[dict], protocol: Protocol):
    """Adds to each example "steps", its labels i32[T,H,W] after every reverse step, if any.

    Only where pictures are shown whole: windows have noise of their own.
    """
    if not task.trace or protocol.view is not View.WHOLE:
        return
    forward = make_forward(task.trace, network, run.mesh, 1)
    for example in kept:
        own = example["image"].shape[:2]
        shown = resize_image(example["image"], protocol.sizes(own)[0])
        labels = forward(shown[None], np.array([shown.shape[:2]], np.int32))[0]
        example["steps"] = np.stack([resize_mask(step, own) for step in labels])


def draw_predictions(run: Run, kept: list[dict], file: str, name: str, step: int):
    """Saves a sheet of examples: image, truth, steps, prediction, uncertainty, error."""
    if kept:
        columns = [[e[key] for e in kept] for key in ("image", "mask", "labels", "uncertainty")]
        steps = [e["steps"] for e in kept] if "steps" in kept[0] else None
        sheet = sheets.prediction_sheet(*columns, run.val.labels, steps)
        save_picture(run, sheet, file, name, step)


def save_picture(run: Run, picture: np.ndarray, file: str, name: str, step: int):
    """Saves a picture to the workdir and the events, in the first process only."""
    if processes.is_first():
        (run.workdir / "pictures").mkdir(exist_ok=True)
        sheets.save_png(run.workdir / "pictures" / f"{file}.png", picture)
        run.log.picture(name, step, file.rsplit("_", 1)[0], picture)
