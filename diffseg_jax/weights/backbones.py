"""Swin and ConvNeXt backbones: OpenMMLab's names, and ImageNet weights in the usual formats."""

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.swin import relative_index, resize_bias_table
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import AS_IS, Row, convert, within
from diffseg_jax.weights.torch_rows import conv, linear_rows, norm

FAMILIES = {"swin": "Swin", "convnext": "ConvNeXt"}  # `DDPSettings.backbone` in error messages
INDEX = r".*\.relative_position_index"  # indices into the bias table, implied by the window


# --- OpenMMLab, as in checkpoints of DDP ----------------------------------------------------------

SWIN = (
    *conv(r"patch_embed\.projection", "patch_embedding.conv"),
    *norm(r"patch_embed\.norm", "patch_embedding.norm"),
    *within(r"stages\.(\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", (
        *norm(r"norm([12])", "norm{2}"),
        (r"attn\.w_msa\.relative_position_bias_table", "attention.bias_table", AS_IS),
        *linear_rows(r"attn\.w_msa\.qkv", "attention.qkv"),
        *linear_rows(r"attn\.w_msa\.proj", "attention.out"),
        *linear_rows(r"ffn\.layers\.0\.0", "mlp.fc1"),
        *linear_rows(r"ffn\.layers\.1", "mlp.fc2"),
    )),
    *norm(r"stages\.(\d+)\.downsample\.norm", "merge{0}.norm"),
    *linear_rows(r"stages\.(\d+)\.downsample\.reduction", "merge{0}.reduction"),
    *norm(r"norm(\d)", "norm{0}"),
)  # fmt: skip
CONVNEXT = (
    *conv(r"downsample_layers\.0\.0", "stem.conv"),
    *norm(r"downsample_layers\.0\.1", "stem.norm"),
    *norm(r"downsample_layers\.(\d+)\.0", "down{0}.norm"),
    *conv(r"downsample_layers\.(\d+)\.1", "down{0}.conv"),
    *within(r"stages\.(\d+)\.(\d+)\.", "stage{0}.block{1}.", (
        *conv(r"depthwise_conv", "depthwise"),
        *norm(r"norm", "norm"),
        *linear_rows(r"pointwise_conv1", "mlp.fc1"),
        *linear_rows(r"pointwise_conv2", "mlp.fc2"),
        (r"gamma", "gamma", "c->c"),
    )),
    *norm(r"norm(\d)", "norm{0}"),
)  # fmt: skip


# --- others ---------------------------------------------------------------------------------------


def by_channel(array: np.ndarray) -> np.ndarray:
    """Reorders the last axis, the 4C channels of a merged 2x2 patch, for our network.

    In these files it is ordered by position, (row, column) = (0,0), (1,0), (0,1), (1,1), then by
    channel; in our network by channel, then by position, row by row.
    """
    by_position = array.reshape(*array.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
    return np.swapaxes(by_position, -1, -2).reshape(array.shape)


def _merging(torch):
    """The rows of patch merging in files whose channels are ordered by position."""
    return within(torch, "merge{0}.", (
        (r"norm\.weight", "norm.scale", by_channel),
        (r"norm\.bias", "norm.bias", by_channel),
        (r"reduction\.weight", "reduction.kernel", lambda array: by_channel(array).T),
    ))  # fmt: skip


ORIGINAL_SWIN = (
    *conv(r"patch_embed\.proj", "patch_embedding.conv"),
    *norm(r"patch_embed\.norm", "patch_embedding.norm"),
    *within(r"layers\.(\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", (
        *norm(r"norm([12])", "norm{2}"),
        (r"attn\.relative_position_bias_table", "attention.bias_table", AS_IS),
        *linear_rows(r"attn\.qkv", "attention.qkv"),
        *linear_rows(r"attn\.proj", "attention.out"),
        *linear_rows(r"mlp\.fc([12])", "mlp.fc{2}"),
    )),
    *_merging(r"layers\.(\d+)\.downsample\."),
)  # fmt: skip
HUGGING_SWIN = (
    *conv(r"embeddings\.patch_embeddings\.projection", "patch_embedding.conv"),
    *norm(r"embeddings\.norm", "patch_embedding.norm"),
    *within(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", (
        *norm(r"layernorm_before", "norm1"),
        *norm(r"layernorm_after", "norm2"),
        (r"attention\.self\.relative_position_bias_table", "attention.bias_table", AS_IS),
        *linear_rows(r"attention\.self\.qkv", "attention.qkv"),  # joined by `_joined`
        *linear_rows(r"attention\.output\.dense", "attention.out"),
        *linear_rows(r"intermediate\.dense", "mlp.fc1"),
        *linear_rows(r"output\.dense", "mlp.fc2"),
    )),
    *_merging(r"encoder\.layers\.(\d+)\.downsample\."),
)  # fmt: skip
ORIGINAL_CONVNEXT = (
    *(row for row in CONVNEXT if row[0].startswith("downsample_layers")),
    *within(r"stages\.(\d+)\.(\d+)\.", "stage{0}.block{1}.", (
        *conv(r"dwconv", "depthwise"),
        *norm(r"norm", "norm"),
        *linear_rows(r"pwconv([12])", "mlp.fc{2}"),
        (r"gamma", "gamma", "c->c"),
    )),
)  # fmt: skip
HUGGING_CONVNEXT = (
    *conv(r"embeddings\.patch_embeddings", "stem.conv"),
    *norm(r"embeddings\.layernorm", "stem.norm"),
    *norm(r"encoder\.stages\.(\d+)\.downsampling_layer\.0", "down{0}.norm"),
    *conv(r"encoder\.stages\.(\d+)\.downsampling_layer\.1", "down{0}.conv"),
    *within(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", "stage{0}.block{1}.", (
        *conv(r"dwconv", "depthwise"),
        *norm(r"layernorm", "norm"),
        *linear_rows(r"pwconv([12])", "mlp.fc{2}"),
        (r"layer_scale_parameter", "gamma", "c->c"),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One naming scheme for the parameters of a classifier's backbone.

    author  whose scheme it is, as in error messages before the family
    family  a key of FAMILIES
    prefix  pattern of an optional prefix of all names of the backbone
    mark    pattern, after the prefix, of a name that every such file and no other has
    unused  patterns of names that only classification needs
    """

    author: str
    family: str
    prefix: str
    mark: str
    rows: tuple[Row, ...]
    unused: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.author} {FAMILIES[self.family]}"


LAST = r"(norm|head)\.(weight|bias)"  # the norm before the classifier, and the classifier
MMLAB_LAST = (r"(backbone\.)?norm\.(weight|bias)", r"head\..*", INDEX)
HUGGING_LAST = r"classifier\.(weight|bias)"
BACKBONE_FORMATS = (
    Format("the original", "swin", "", r"layers\.0\.blocks\.0\.attn\.qkv\.weight",
           ORIGINAL_SWIN, (LAST, r"layers\.\d+\.blocks\.\d+\.attn_mask", INDEX)),
    Format("the original", "convnext", "", r"stages\.0\.0\.dwconv\.weight",
           ORIGINAL_CONVNEXT, (LAST,)),
    Format("OpenMMLab's", "swin", r"(?:backbone\.)?",
           r"stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight", SWIN, MMLAB_LAST),
    Format("OpenMMLab's", "convnext", r"(?:backbone\.)?", r"stages\.0\.0\.depthwise_conv\.weight",
           CONVNEXT, MMLAB_LAST),
    Format("Hugging Face's", "swin", r"(?:swin\.)?",
           r"encoder\.layers\.0\.blocks\.0\.attention\.self\.query\.weight", HUGGING_SWIN,
           (r"(swin\.)?layernorm\.(weight|bias)", HUGGING_LAST, INDEX)),
    Format("Hugging Face's", "convnext", r"(?:convnext\.)?",
           r"encoder\.stages\.0\.layers\.0\.dwconv\.weight", HUGGING_CONVNEXT,
           (r"(convnext\.)?layernorm\.(weight|bias)", HUGGING_LAST)),
)  # fmt: skip


def find_format(arrays: Mapping[str, np.ndarray]) -> Format | None:
    """The format of a classifier's names, or None."""
    for known in BACKBONE_FORMATS:
        if any(re.fullmatch(known.prefix + known.mark, name) for name in arrays):
            return known
    return None


def load_backbone(path: str | os.PathLike, shapes: dict, settings: DDPSettings) -> dict:
    """A backbone's parameters from a classifier's file, float32.

    path    PyTorch or safetensors, in one of FORMATS
    shapes  `params["backbone"]` of the network with a shape tuple at each leaf
    out     the same tree without those of norm0, ..., norm3 that the file lacks; bias tables of
            another window are resized

    Raises UserError for a file in an unknown format, for another backbone or size, and as
    `read_arrays` and `convert` do.
    """
    arrays, source = read_arrays(path), str(path)
    known = find_format(arrays)
    if known is None:
        names = ", ".join(each.name for each in BACKBONE_FORMATS)
        raise UserError(
            f"{source} is in no known format of ImageNet weights: its first entry is "
            f"{next(iter(arrays))}. Known: {names}. Give a file in one of them."
        )
    if known.family != settings.backbone:
        raise UserError(
            f"{source} is in the format of {known.name}, but the network's backbone is "
            f"{FAMILIES[settings.backbone]}. Give weights of that, or take the other backbone."
        )
    check_indices(arrays, source)
    arrays = _resized(_joined(arrays, source), settings.window, source)
    rows = within(known.prefix, "", known.rows)
    return convert(arrays, rows, _kept(shapes, arrays), ignore=known.unused, source=source)


def check_indices(arrays: Mapping[str, np.ndarray], source: str):
    """Raises UserError if an entry `relative_position_index` orders pairs of tokens differently."""
    for name, array in arrays.items():
        if not re.fullmatch(INDEX, name):
            continue
        window = math.isqrt(array.shape[0]) if array.ndim == 2 else 1
        if not np.array_equal(array, _index(window)):
            raise UserError(
                f"{source}: {name} is not Swin's order of relative positions, so the "
                "bias tables would be misread. Give a checkpoint of the original attention."
            )


_index = functools.cache(relative_index)


def table_window(table: np.ndarray, name: str) -> int:
    """M of a bias table [(2M-1)^2, heads]; UserError for other numbers of rows."""
    rows = len(table) if table.ndim == 2 else 0
    side = math.isqrt(rows)
    if side**2 != rows or side % 2 == 0:
        raise UserError(
            f"{name} of shape {table.shape} is no table of relative positions, which has (2M-1)^2 "
            "rows for a window M. Give the file as its program saved it."
        )
    return (side + 1) // 2


def _resized(arrays, window, source):
    """The arrays with every bias table resized for this window."""
    resized = {}
    for name, array in arrays.items():
        is_table = name.endswith("relative_position_bias_table")
        if is_table and table_window(array, f"{source}: {name}") != window:
            resized[name] = resize_bias_table(np.asarray(array, np.float32), window)
    return {**arrays, **resized}


def _joined(arrays, source):
    """The arrays with Hugging Face's query, key and value as one entry `qkv`."""
    joined = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(.*\.attention\.self\.)(query|key|value)(\.\w+)", name)
        if match is None:
            joined[name] = array
            continue
        names = [f"{match[1]}{part}{match[3]}" for part in ("query", "key", "value")]
        for other in names:
            if getattr(arrays.get(other), "shape", None) != array.shape:
                raise UserError(
                    f"{source} has {name} of shape {array.shape}, but no {other} like it. "
                    "Give the file as its program saved it."
                )
        if name == names[0]:
            joined[f"{match[1]}qkv{match[3]}"] = np.concatenate([arrays[n] for n in names])
    return joined


def _kept(shapes, arrays):
    """The shapes without the output norms that no entry is for."""
    outer = re.compile(r"(?:backbone\.)?(norm\d)\.\w+")
    found = {match[1] for name in arrays if (match := outer.fullmatch(name))}
    return {key: value for key, value in shapes.items() if key in found or key[:4] != "norm"}
