"""Writes TransUNets of PyTorch and R50+ViT encoders as a directory with one checkpoint."""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.data.palette import numbered_labels
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError
from diffseg_jax.inference.converted import CONFIG, WHOLE_IMAGES, require_unused, save_converted
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.transunet import (
    is_port,
    load_encoder,
    load_whole,
    require_transunet,
    sizes_of,
)

NOISE = {  # as in configs/ddep_cityscapes.py; a converted network does not use it
    "kind": "scaled", "low": 0.22, "high": 0.22, "uniform_in": "sigma", "target": "noise",
    "condition": False,
}  # fmt: skip


def convert_transunet(
    path: str | os.PathLike, output: str | os.PathLike, part: str = "", heads: int | None = None,
    grid: Sequence[int] = (),
) -> int:  # fmt: skip
    """Writes a TransUNet, or the encoder of one, as a directory with one checkpoint.

    path   a PyTorch TransUNet; or R50+ViT-B/16 of the ViT authors, timm or Hugging Face, to which a
           random decoder is added: features can be read, and a fine-tuning may start from it
    part   of the file, as of `read_arrays`
    heads  of the attention, if they are not in the file; None = one for every 64 channels
    grid   (rows, columns) of the position table; () = square

    Images are fitted to the size that the position table was made for. Returns the number of
    parameters. Raises UserError for a file that cannot be read or is not of such a network, for
    heads that do not divide its width, and for an output that exists.
    """
    require_unused(output)
    arrays, source = read_arrays(path, part), str(path)
    require_transunet(arrays, source)
    sizes = sizes_of(arrays, source, grid)
    model = _model(sizes, heads, source)
    config = {
        **CONFIG, "system": "ddep", "pretrain": "supervised", "noise": NOISE, "model": model,
        "evaluate": {**WHOLE_IMAGES, **_fitted(sizes["size"])},
    }  # fmt: skip
    whole, classes = is_port(arrays), sizes["num_classes"]
    kind = "finetune" if whole else "pretrain"
    task = SYSTEMS["ddep"].make_task(ConfigDict(config), kind, sizes["size"], classes)
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(task.init, jax.random.key(0)))
    if whole:
        params, stats = load_whole(arrays, source, *(shapes[p] for p in ("params", "stats")),
                                   grid=grid)  # fmt: skip
    else:
        encoder = load_encoder(arrays, source, shapes["params"]["encoder"], grid)
        fresh = _fresh_decoder(task)
        params, stats = {**fresh["params"], "encoder": encoder}, fresh["stats"]
    print(f"{source}: {_summary(sizes, model, whole)}")
    labels = {"classes": list(numbered_labels(classes).names)} if whole else {}
    meta = {**as_json(task.meta), "size": list(sizes["size"])}
    return save_converted(output, {"params": params, "stats": stats}, path, config, meta, **labels)


def _model(sizes, heads, source) -> dict:
    """The part `model` of a config for sizes of `sizes_of`."""
    width = sizes["hidden"]
    heads = sizes["heads"] or heads or max(width // 64, 1)
    if width % heads:
        raise UserError(
            f"--heads is {heads}, which does not divide the {width} channels of {source}. Give the "
            "number that the network was trained with, usually 12."
        )
    names = ("arithmetic", "resnet_width", "resnet_units", "hidden", "layers", "mlp", "decoder",
             "bridge", "skips")  # fmt: skip
    return {
        **{name: sizes[name] for name in names}, "heads": heads, "decoder_width": 1.0,
        "scale_bridge": False, "dropout": 0.1,
    }  # fmt: skip


def _fitted(size: tuple[int, int]) -> Mapping:
    """The options of an evaluation that fit images to that size."""
    return {"short": size[0]} if size[0] == size[1] else {"limit": size}


@own_settings()
def _fresh_decoder(task) -> dict:
    """Random parameters and fresh statistics of all but the encoder."""

    def fresh(key):
        network = task.init(key)
        params = {name: tree for name, tree in network["params"].items() if name != "encoder"}
        return {"params": params, "stats": network["stats"]}

    return jax.tree.map(np.asarray, jax.jit(fresh)(jax.random.key(0)))


def _summary(sizes, model, whole) -> str:
    height, width = sizes["size"]
    units = "-".join(map(str, model["resnet_units"]))
    flag = "" if sizes["heads"] else " (--heads)"
    network = (
        f"a ResNet of {units} units, {model['layers']} layers of {model['hidden']} channels and "
        f"{model['heads']} heads{flag}"
    )
    if not whole:
        return (
            f"an encoder: {network}; the decoder is random, so that features can be read, but "
            "labels need fine-tuning"
        )
    return (
        f"a TransUNet: {network}, {sizes['num_classes']} classes; images are fitted to "
        f"{height}x{width} and shown as (v - 127.5) / 127.5, so a network that was trained with "
        "other numbers predicts poorly"
    )
