"""Maps seen from above as predictions: rigs of calibrated photographs in, layers of a map out."""

import os
from collections.abc import Mapping, Sequence

from diffseg_jax.data.bev_transforms import network_input
from diffseg_jax.data.rig_files import read_rig
from diffseg_jax.errors import UserError
from diffseg_jax.inference.bev_maps import BEVPrediction
from diffseg_jax.inference.exported_rigs import RIG_FORM, exported_layers
from diffseg_jax.inference.images import unique_name
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.rig_batch import needs_rigs, predict_rig_files, rig_maps
from diffseg_jax.inference.rig_forward import view_of
from diffseg_jax.inference.views import Decision


def predict_rigs(
    segmenter, rigs: Sequence, *, steps: int | None = None, samples: int | None = None,
    seed: int | None = None, batch_size: int | None = None,
) -> BEVPrediction:  # fmt: skip
    """The maps around cars, predicted by a network for maps seen from above.

    segmenter  what `diffseg_jax.load` returns
    rigs       dicts of "images" u8[N,H,W,3], "intrinsics" f[N,3,3], "camera_to_world" f[N,4,4] and
               "name", as sources of such data have them, or paths of NAME.json, see `read_rig`; one
               of those may stand alone. Numbers of cameras may differ; equal names get a number.
    steps, samples, seed, batch_size  as of `Segmenter.predict`

    Raises UserError for a network of another task, for no rig, and for rigs without calibration.
    """
    if segmenter.output.call != BEV_OUTPUT.call:
        raise UserError(
            f"{segmenter.directory} is a network for {segmenter.output.name}, but rigs of cameras "
            "are read by networks for maps seen from above. Call its predict with images."
        )
    rigs = [rigs] if isinstance(rigs, Mapping | str | os.PathLike) else list(rigs)
    rigs = [dict(rig) if isinstance(rig, Mapping) else read_rig(rig) for rig in rigs]
    if not rigs:
        raise UserError("no rig was given. Give a list of rigs, or of paths of NAME.json files.")
    taken = set()
    names = tuple(unique_name(str(rig.get("name", n)), taken) for n, rig in enumerate(rigs))
    for name, rig in zip(names, rigs, strict=True):
        if not len(rig.get("images", ())):
            raise UserError(
                f"rig {name} has no images. Give images u8[N,H,W,3], intrinsics and "
                "camera_to_world of its N cameras."
            )
    options = PredictOptions(steps, samples, seed=seed, batch_size=batch_size)
    order = sorted(range(len(rigs)), key=lambda number: len(rigs[number]["images"]))
    maps = rig_maps(segmenter, (rigs[number] for number in order), options)
    maps = dict(zip(order, maps, strict=True))
    view = view_of(segmenter.meta["task"])
    shown = [network_input(rig, view)["images"] for rig in rigs]
    output = tuple(segmenter.meta["task"]["model"]["output"])
    return BEVPrediction(
        names, segmenter.names, segmenter.palette, output,
        tuple(maps[number] for number in range(len(rigs))), shown,
    )  # fmt: skip


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
    exported=exported_layers,
    meanings=lambda calibrated: {
        "probs": "of every class; a cell may have several",
        "uncertainty": "the mean entropy of the classes in bits",
    },
    form=RIG_FORM,
    of_files=predict_rig_files,
    refusal=needs_rigs,
    call=(
        "from diffseg_jax.inference.bev_output import predict_rigs",
        'prediction = predict_rigs(segmenter, ["rigs/street.json"])',
    ),
    inputs="rigs",
)
