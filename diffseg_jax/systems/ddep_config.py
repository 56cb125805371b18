"""DDeP in a config: its options and checks, where a stage starts, and foreign weights."""

import math

import jax
import numpy as np

from diffseg_jax.config.options import MASK_LOSS
from diffseg_jax.config.schema import Flag, Number, Optional, Several, Text
from diffseg_jax.devices import processes
from diffseg_jax.diffusion.schedules import LEVELS
from diffseg_jax.errors import UserError
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.models.transunet import resize_positions
from diffseg_jax.systems.ddep import decoder_channels, make_task
from diffseg_jax.systems.system import System, require_same_network
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.transunet import (
    is_port,
    load_encoder,
    load_whole,
    require_transunet,
    table_grid,
)

CHOICES = ("none", "supervised", "dep", "ddep")
STARTS_OF_CHOICES = {"none": "random", "supervised": "weights"}  # else the pretrain stage
STARTS_OF_PRETRAIN = ("random", "weights")

# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    if kind == "pretrain":
        return "weights" if config.pretrain == "ddep" and config.weights else "random"
    replaced = STARTS_OF_CHOICES.get(config.pretrain, start) if start == "pretrain" else start
    return "random" if replaced == "weights" and not config.weights else replaced


def skips(config, kind: str) -> bool:
    """Whether the value of `config.pretrain` skips stages of this kind."""
    return kind == "pretrain" and config.pretrain in STARTS_OF_CHOICES


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """The arrays that a stage takes over from another one: all but the projection to noise.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`
    The position table moves to this stage's grid. Raises UserError when the networks differ.
    """
    params = resize_positions(previous["params"], tuple(meta["grid"]), tuple(task.meta["grid"]))
    if meta["kind"] != task.meta["kind"]:
        params = {name: tree for name, tree in params.items() if name != "head"}
    taken = {"params": params, "stats": previous["stats"]}
    require_same_network(abstract, taken, may_lack="head")
    return taken


def class_rows(meta: dict, names) -> dict:
    """The arrays that depend on the classes: those of the head; as of `System.class_rows`."""
    return {("params", "head", leaf): (-1, tuple(names)) for leaf in ("kernel", "bias")}


def load_weights(config, abstract: dict, task: Task) -> dict:
    """The arrays that the file config.weights gives a stage: the encoder, or all of them.

    Released R50+ViT weights give the encoder, a PyTorch TransUNet the decoder too and, for
    fine-tuning, the head. The position table moves to this stage's grid, from that of the file:
    config.weights_grid, or a square where the config lacks it. Raises UserError for arrays that
    are missing, extra or of another shape.
    """
    path, params = config.weights, abstract["params"]
    grid = tuple(config.get("weights_grid", ()))
    arrays = read_arrays(path, config.get("weights_part", ""))
    require_transunet(arrays, path)
    if is_port(arrays):
        head = task.meta["kind"] == "finetune"
        loaded, stats = load_whole(
            arrays, path, _shapes(params), _shapes(abstract["stats"]), head=head, grid=grid
        )
    else:
        encoder = load_encoder(arrays, path, _shapes(params["encoder"]), grid)
        loaded, stats = {"encoder": encoder}, {}
    _note_arithmetic(config, is_port(arrays))
    rows, columns = table_grid(loaded["encoder"]["position_embedding"].shape[1], grid)
    if not grid and processes.is_first():
        print(
            f"{path}: assumed a position table of {rows}x{columns}; for another grid write "
            "c.weights_grid = (rows, columns) into the config file"
        )
    loaded = resize_positions(loaded, (rows, columns), tuple(task.meta["grid"]))
    return jax.tree.map(np.asarray, {"params": loaded, "stats": stats})


def _note_arithmetic(config, port):
    """Prints a line if the weights were trained with the other arithmetic."""
    trained = (Arithmetic.PORT if port else Arithmetic.OFFICIAL).value
    if trained != config.model.arithmetic and processes.is_first():
        print(
            f"{config.weights}: was trained with the arithmetic {trained}, but model.arithmetic is "
            f"{config.model.arithmetic}, which computes other features; "
            f"--config.model.arithmetic={trained} selects that of the weights"
        )


def _shapes(tree):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


# ---- options and checks ------------------------------------------------------------------------


OPTIONS = {
    "pretrain": Text(CHOICES),
    "weights": Text(),
    "weights_part": Optional(Text()),
    "loss": MASK_LOSS,
    "weights_grid": Optional(Several(Number(int, 1, 65536), 2)),
    "noise": {
        "kind": Text(tuple(LEVELS)),
        "low": Number(float, 0, 1000),
        "high": Number(float, 0, 1000),
        "uniform_in": Text(("sigma", "gamma")),
        "target": Text(("noise", "image")),
        "condition": Flag(),
    },
    "model": {
        "arithmetic": Text(tuple(kind.value for kind in Arithmetic)),
        "resnet_width": Number(float, 0.5, 8),
        "resnet_units": Several(Number(int, 1, 64), 3),
        "hidden": Number(int, 1, 16384),
        "layers": Number(int, 1, 64),
        "heads": Number(int, 1, 1024),
        "mlp": Number(int, 1, 65536),
        "decoder": Several(Number(int, 1, 16384), 4),
        "decoder_width": Number(float, 0.01, 64),
        "bridge": Number(int, 1, 16384),
        "scale_bridge": Flag(),
        "skips": Number(int, 0, 3),
        "dropout": Number(float, 0, 0.99),
    },
}


def check(config):
    """Raises UserError for option values that do not go together."""
    noise, model = config.noise, config.model
    if noise.low > noise.high:
        raise UserError(
            f"noise.low is {noise.low} and noise.high {noise.high}; give low <= high, "
            "for example 0.22 for both."
        )
    if 64 * model.resnet_width % 32:
        raise UserError(
            f"model.resnet_width is {model.resnet_width}, but 64 times it must be a multiple of 32 "
            "for its group norms. Try 0.5 or 1.0."
        )
    if model.hidden % model.heads:
        raise UserError(
            f"model.hidden is {model.hidden}, which {model.heads} heads cannot share evenly. "
            f"Try --config.model.hidden={math.ceil(model.hidden / model.heads) * model.heads}."
        )
    decoder, bridge = decoder_channels(model)
    if not 1 <= min(*decoder, bridge) <= max(*decoder, bridge) <= 65536:
        raise UserError(
            f"model.decoder_width is {model.decoder_width}, which makes {(*decoder, bridge)} "
            "channels, but each must be 1 to 65536. Try --config.model.decoder_width=1.0."
        )


def note(config, kind: str, start: str) -> str:
    """A sentence for the user before a stage with that `start` runs, or an empty string."""
    missing = "no encoder weights were given (--config.weights=R50+ViT-B_16.npz)"
    if kind == "pretrain":
        if config.pretrain == "dep" and (config.weights or start != "random"):
            given = "weights are" if config.weights else f"start={start} is"
            file = "" if config.weights else " --config.weights=R50+ViT-B_16.npz"
            return (
                f"{given} given but not read: with pretrain=dep the whole network learns from "
                f"random values; --config.pretrain=ddep{file} starts the encoder from weights"
            )
        if config.pretrain == "ddep" and start not in STARTS_OF_PRETRAIN:
            return f"start={start} is given but not read: with pretrain=ddep --config.weights is"
        if config.pretrain == "ddep" and not config.weights:
            return (
                f"{missing}, so the frozen encoder is random; the paper's learned from ImageNet-21k"
            )
        return ""
    asked = STARTS_OF_CHOICES.get(config.pretrain) if start == "pretrain" else start
    if asked == "weights" and not config.weights:
        return f"{missing}, so the encoder starts at random, as with pretrain=none"
    return ""


DDEP = System(
    stages={"pretrain": "unlabelled", "finetune": "labelled"},
    make_task=make_task,
    adopt=adopt,
    load_weights=load_weights,
    class_rows=class_rows,
    options=OPTIONS,
    origin=(
        "a TransUNet, which can learn to denoise images before it learns labels (DeP, DDeP)",
        "Denoising Pretraining for Semantic Segmentation",
        "https://arxiv.org/abs/2205.11423",
    ),
    check=check,
    start_of=start_of,
    skips=skips,
    note=note,
)
