"""Maps seen from above as predictions: rigs of calibrated photographs in, layers of a map out."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from diffseg_jax.data.bev_transforms import RigView, network_input
from diffseg_jax.data.rig_files import read_rig
from diffseg_jax.errors import UserError, counted
from diffseg_jax.figures.sheets import legend, save_png
from diffseg_jax.inference.bev_maps import BEVPrediction, maps_from
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.rig_forward import make_rig_forward
from diffseg_jax.inference.views import Decision
from diffseg_jax.storage.paths import write_json

FOR_RIGS = ("steps", "samples", "seed", "batch_size")  # of the options of a prediction


def view_of(meta: Mapping) -> RigView:
    """What a network sees of photographs, by its `Task.meta`."""
    return RigView(tuple(meta["size"]), meta["resize"])


def predict_rigs(
    segmenter, rigs: Sequence, *, steps: int | None = None, samples: int | None = None,
    seed: int | None = None, batch_size: int | None = None,
) -> BEVPrediction:  # fmt: skip
    """The maps around cars, predicted by a network for maps seen from above.

    segmenter  what `diffseg_jax.load` returns
    rigs       dicts of "images" u8[N,H,W,3], "intrinsics" f[N,3,3], "camera_to_world" f[N,4,4] and
               "name", as sources of such data have them, or paths of NAME.json, see `read_rig`
    steps, samples, seed, batch_size  as of `Segmenter.predict`

    Raises UserError for a network of another task, and for rigs without calibration.
    """
    if segmenter.output.name != "bev":
        raise UserError(
            f"{segmenter.directory} is a network for {segmenter.output.name}, but rigs of cameras "
            "are read by networks for maps seen from above. Call its predict with images."
        )
    rigs = [dict(rig) if isinstance(rig, Mapping) else read_rig(rig) for rig in rigs]
    task, view = segmenter.task_for(steps, samples), view_of(segmenter.meta["task"])
    program = jax.jit(functools.partial(task.predict, seed=segmenter.seed_for(seed)))
    size = batch_size or segmenter.batch_size
    forward = make_rig_forward(program, segmenter.network, segmenter.mesh, size, view)
    parts = [maps_from(forward(rigs[i : i + size])) for i in range(0, len(rigs), size)]
    maps = [part[row] for part in parts for row in range(len(part.probs))]
    names = tuple(str(rig.get("name", n)) for n, rig in enumerate(rigs))
    shown = [network_input(rig, view)["images"] for rig in rigs]
    output = tuple(segmenter.meta["task"]["model"]["output"])
    return BEVPrediction(names, segmenter.names, segmenter.palette, output, tuple(maps), shown)


def predict_rig_files(segmenter, images: Sequence[str], output: str, options: PredictOptions):
    """Writes the maps of all NAME.json among files and folders; returns a summary, JSON values.

    Raises UserError for options that only images have, and where there is no such file.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    if wrong := [name for name in given if name not in FOR_RIGS]:
        raise UserError(
            f"{wrong[0]}={given[wrong[0]]} is for networks that read single images, but this one "
            f"predicts maps seen from above. It has {', '.join(FOR_RIGS)}."
        )
    paths = [Path(image) for image in images]
    files = [f for p in paths for f in (sorted(p.glob("**/*.json")) if p.is_dir() else [p])]
    if not files or any(file.suffix != ".json" for file in files):
        raise needs_rigs(segmenter)
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two files are called {twice}.json. Give them different names.")
    folder, pictures = Path(output), {}
    for file in files:
        prediction = predict_rigs(segmenter, [file], **given)
        written = prediction.save(folder)
        pictures[file.stem] = {
            "uncertainty": float(prediction.uncertainty.mean()), "calibrated": False,
            "shares": {
                name: float(layer.mean())
                for name, layer in zip(segmenter.names, prediction.layers[0], strict=True)
            },
            "files": [each.name for each in written],
        }  # fmt: skip
    summary = {
        "checkpoint": str(segmenter.directory), "classes": list(segmenter.names),
        "output": list(segmenter.meta["task"]["model"]["output"]), "pictures": pictures,
        "by_need": sorted(pictures, key=lambda name: -pictures[name]["uncertainty"]),
        "calibrated": False, "unreadable": {},
    }  # fmt: skip
    save_png(folder / "legend.png", legend(segmenter.names, segmenter.palette))
    write_json(folder / "summary.json", summary)
    return json.loads(json.dumps(summary))


def needs_rigs(segmenter) -> UserError:
    """That a network reads no single images, and what it reads."""
    return UserError(
        f"{segmenter.directory} predicts maps seen from above, from the images of several cameras "
        f"with their calibration ({counted(len(segmenter.names), 'class')}). Give a folder of "
        "NAME.json files, which list photographs with intrinsics and camera_to_world, as --images, "
        "or call diffseg_jax.inference.bev_output.predict_rigs."
    )


def _of_images(*_, **__):
    raise UserError("maps seen from above are not of single images; see predict_rigs.")


BEV_OUTPUT = OutputKind(
    name="bev",
    decision=Decision(of_view=_of_images, decided=_of_images),
    colour=_of_images,
    overlay=_of_images,
    sheet=_of_images,
    check=_of_images,
    endings=_of_images,
    described=_of_images,
    contents=_of_images,
    legend=_of_images,
    statistics=_of_images,
    overview=_of_images,
    shown="sheet.png",
    need="mean entropy of the classes",
    required=(),
    text=_of_images,
    exported=_of_images,
    meanings=_of_images,
    of_files=predict_rig_files,
    refusal=needs_rigs,
    call=(
        "from diffseg_jax.inference.bev_output import predict_rigs",
        'prediction = predict_rigs(segmenter, ["rigs/street.json"])',
    ),
    inputs="rigs",
)
