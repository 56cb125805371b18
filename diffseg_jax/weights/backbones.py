"""Swin and ConvNeXt backbones: OpenMMLab's names, and ImageNet weights in the usual formats."""

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models import swin
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.encoder_maps import BackboneMaps, ConvNeXtSettings, SwinSettings
from diffseg_jax.models.network import Network
from diffseg_jax.models.swin import relative_index, resize_bias_table
from diffseg_jax.weights.formats import naming, read_arrays
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import AS_IS, Row, convert, targets, within
from diffseg_jax.weights.torch_rows import conv, joined_qkv, linear_rows, norm

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


def _merging(torch, stage="{0}"):
    """The rows of patch merging in files whose channels are ordered by position."""
    return within(torch, f"merge{stage}.", (
        (r"norm\.weight", "norm.scale", by_channel),
        (r"norm\.bias", "norm.bias", by_channel),
        (r"reduction\.weight", "reduction.kernel", lambda array: by_channel(array).T),
    ))  # fmt: skip


ORIGINAL_BLOCK = (
    *norm(r"norm([12])", "norm{2}"),
    (r"attn\.relative_position_bias_table", "attention.bias_table", AS_IS),
    *linear_rows(r"attn\.qkv", "attention.qkv"),
    *linear_rows(r"attn\.proj", "attention.out"),
    *linear_rows(r"mlp\.fc([12])", "mlp.fc{2}"),
)
ORIGINAL_SWIN = (
    *conv(r"patch_embed\.proj", "patch_embedding.conv"),
    *norm(r"patch_embed\.norm", "patch_embedding.norm"),
    *within(r"layers\.(\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", ORIGINAL_BLOCK),
    *_merging(r"layers\.(\d+)\.downsample\."),
)
TIMM_SWIN = (  # the merging stands in the stage after it; layers_0 in a network of features only
    *(row for row in ORIGINAL_SWIN if row[0].startswith("patch_embed")),
    *within(r"layers[._](\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", ORIGINAL_BLOCK),
    *(row for i in range(3) for row in _merging(rf"layers[._]{i + 1}\.downsample\.", i)),
)
TORCHVISION_SWIN = (
    *conv(r"features\.0\.0", "patch_embedding.conv"),
    *norm(r"features\.0\.2", "patch_embedding.norm"),
    *(row for i in range(4) for row in within(
        rf"features\.{2 * i + 1}\.(\d+)\.", f"stage{i}.block{{0}}.", (
            *norm(r"norm([12])", "norm{1}"),
            (r"attn\.relative_position_bias_table", "attention.bias_table", AS_IS),
            *linear_rows(r"attn\.qkv", "attention.qkv"),
            *linear_rows(r"attn\.proj", "attention.out"),
            *linear_rows(r"mlp\.0", "mlp.fc1"),
            *linear_rows(r"mlp\.3", "mlp.fc2"),
        ))),
    *(row for i in range(3) for row in _merging(rf"features\.{2 * i + 2}\.", i)),
)  # fmt: skip
HUGGING_NORMS = tuple(  # of a backbone inside a segmentation network
    row for i in range(4) for row in norm(rf"hidden_states_norms\.stage{i + 1}", f"norm{i}")
)
HUGGING_SWIN = (
    *conv(r"embeddings\.patch_embeddings\.projection", "patch_embedding.conv"),
    *norm(r"embeddings\.norm", "patch_embedding.norm"),
    *within(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", (
        *norm(r"layernorm_before", "norm1"),
        *norm(r"layernorm_after", "norm2"),
        (r"attention\.self\.relative_position_bias_table", "attention.bias_table", AS_IS),
        *linear_rows(r"attention\.self\.qkv", "attention.qkv"),  # joined by `joined_qkv`
        *linear_rows(r"attention\.output\.dense", "attention.out"),
        *linear_rows(r"intermediate\.dense", "mlp.fc1"),
        *linear_rows(r"output\.dense", "mlp.fc2"),
    )),
    *_merging(r"encoder\.layers\.(\d+)\.downsample\."),
    *HUGGING_NORMS,
)  # fmt: skip
ORIGINAL_CONVNEXT = (
    *(row for row in CONVNEXT if row[0].startswith("downsample_layers")),
    *within(r"stages\.(\d+)\.(\d+)\.", "stage{0}.block{1}.", (
        *conv(r"dwconv", "depthwise"),
        *norm(r"norm", "norm"),
        *linear_rows(r"pwconv([12])", "mlp.fc{2}"),
        (r"gamma", "gamma", "c->c"),
    )),
    *norm("norm", "norm3"),  # the norm before the classifier, as in OpenMMLab's files
)  # fmt: skip
TIMM_CONVNEXT = (  # stem_0, stages_0 in a network of features only
    *conv(r"stem[._]0", "stem.conv"),
    *norm(r"stem[._]1", "stem.norm"),
    *norm(r"stages[._](\d+)\.downsample\.0", "down{0}.norm"),
    *conv(r"stages[._](\d+)\.downsample\.1", "down{0}.conv"),
    *within(r"stages[._](\d+)\.blocks\.(\d+)\.", "stage{0}.block{1}.", (
        *conv(r"conv_dw", "depthwise"),
        *norm(r"norm", "norm"),
        (r"mlp\.fc([12])\.weight", "mlp.fc{2}.kernel", "oi...->...io"),  # also 1x1 convolutions
        (r"mlp\.fc([12])\.bias", "mlp.fc{2}.bias", "c->c"),
        (r"gamma", "gamma", "c->c"),
    )),
    *norm(r"head\.norm", "norm3"),
)  # fmt: skip
TORCHVISION_CONVNEXT = (
    *conv(r"features\.0\.0", "stem.conv"),
    *norm(r"features\.0\.1", "stem.norm"),
    *(row for i in range(1, 4) for row in within(rf"features\.{2 * i}\.", f"down{i}.", (
        *norm("0", "norm"),
        *conv("1", "conv"),
    ))),
    *(row for i in range(4) for row in within(
        rf"features\.{2 * i + 1}\.(\d+)\.", f"stage{i}.block{{0}}.", (
            *conv(r"block\.0", "depthwise"),
            *norm(r"block\.2", "norm"),
            *linear_rows(r"block\.3", "mlp.fc1"),
            *linear_rows(r"block\.5", "mlp.fc2"),
            (r"layer_scale", "gamma", AS_IS),
        ))),
    *norm(r"classifier\.0", "norm3"),
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
    *norm("layernorm", "norm3"),
    *HUGGING_NORMS,
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One naming scheme for the parameters of a classifier's backbone.

    author  whose scheme it is, as in error messages before the family
    family  a key of FAMILIES
    mark    pattern, after any prefix, of a name that every such file and none further down has
    unused  patterns of names that only classification needs, with or without that prefix; of
            those with a row too, only where the network lacks the target
    """

    author: str
    family: str
    mark: str
    rows: tuple[Row, ...]
    unused: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.author} {FAMILIES[self.family]}"


LAST = r"(norm|head|layernorm|classifier)\.(weight|bias)"  # norm before the classifier, classifier
BACKBONE_FORMATS = (
    Format("timm's", "swin", r"layers[._]3\.downsample\.reduction\.weight",
           TIMM_SWIN, (LAST, r"head\..*", r"layers\.\d+\.blocks\.\d+\.attn_mask", INDEX)),
    Format("the original", "swin", r"layers\.0\.blocks\.0\.attn\.qkv\.weight",
           ORIGINAL_SWIN, (LAST, r"layers\.\d+\.blocks\.\d+\.attn_mask", INDEX)),
    Format("the original", "convnext", r"stages\.0\.0\.dwconv\.weight",
           ORIGINAL_CONVNEXT, (LAST,)),
    Format("timm's", "convnext", r"stages[._]0\.blocks\.0\.conv_dw\.weight",
           TIMM_CONVNEXT, (LAST, r"(head|norm_pre)\..*")),
    Format("OpenMMLab's", "swin", r"stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight",
           SWIN, (LAST, r"head\..*", INDEX)),
    Format("OpenMMLab's", "convnext", r"stages\.0\.0\.depthwise_conv\.weight",
           CONVNEXT, (LAST, r"head\..*")),
    Format("torchvision's", "swin", r"features\.1\.0\.attn\.qkv\.weight",
           TORCHVISION_SWIN, (LAST, INDEX)),
    Format("torchvision's", "convnext", r"features\.1\.0\.block\.0\.weight",
           TORCHVISION_CONVNEXT, (r"classifier\.[02]\.(weight|bias)",)),
    Format("Hugging Face's", "swin",
           r"encoder\.layers\.0\.blocks\.0\.attention\.self\.query\.weight",
           HUGGING_SWIN, (LAST, r"swin\.layernorm\.(weight|bias)", INDEX)),
    Format("Hugging Face's", "convnext", r"encoder\.stages\.0\.layers\.0\.dwconv\.weight",
           HUGGING_CONVNEXT, (LAST,)),
)  # fmt: skip


SECOND_VERSION = r".*\.(logit_scale|cpb_mlp\..*|continuous_position_bias_mlp\..*|grn\..*)"  # V2
IN_MEMORY = (  # names of Swin in the memory of transformers 5, and those in its files
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def _as_saved(arrays: dict) -> dict:
    """The arrays under the names of files, where transformers' names in memory were saved."""
    if not any(name.endswith("blocks.0.attention.q_proj.weight") for name in arrays):
        return arrays
    for pattern, name_in_file in IN_MEMORY:
        arrays = {re.sub(pattern, name_in_file, name): array for name, array in arrays.items()}
    return arrays


def find_format(arrays: Mapping[str, np.ndarray]) -> tuple[Format, str] | None:
    """The format of a classifier's names and the prefix that they have, or None."""
    for known in BACKBONE_FORMATS:
        mark = re.compile(rf"((?:\w+\.)*?){known.mark}")
        if match := next(filter(None, map(mark.fullmatch, arrays)), None):
            return known, match[1]
    return None


def load_backbone(
    path: str | os.PathLike, shapes: dict, settings: DDPSettings, part: str = ""
) -> dict:
    """A backbone's parameters from a classifier's file, float32.

    path    PyTorch or safetensors, in one of BACKBONE_FORMATS;  part  as of `read_arrays`
    shapes  `params["backbone"]` of the network with a shape tuple at each leaf
    out     the same tree without those of norm0, ..., norm3 that the file lacks; bias tables of
            another window are resized

    Raises UserError for a file in an unknown format, for another backbone or size, and as
    `read_arrays` and `convert` do.
    """
    return _parameters(read_arrays(path, part), str(path), shapes, settings)


def _parameters(arrays, source, shapes, settings):
    """`load_backbone` of the arrays of a file; norms that `shapes` lacks are not read."""
    arrays = _as_saved(arrays)
    known, prefix = _require_format(arrays, settings, source)
    check_indices(arrays, source)
    _require_alone(arrays, known, prefix, source)
    arrays = _resized(joined_qkv(arrays, source), settings.window, source)
    rows = within(re.escape(prefix), "", known.rows)
    unused = tuple(f"(?:{re.escape(prefix)})?{pattern}" for pattern in known.unused)
    if "norm0" not in shapes:
        unused += tuple(pattern for pattern, target, _ in rows if target.startswith("norm"))
    found = targets(arrays, rows)
    _require_size(found, known, settings, source)
    outer = {target.partition(".")[0] for target in found}
    kept = {key: value for key, value in shapes.items() if key in outer or key[:4] != "norm"}
    return convert(arrays, rows, kept, ignore=unused, source=source)


def _require_format(arrays, settings, source):
    """The format and its prefix; UserError for an unknown one or another backbone."""
    known, prefix = _require_known(arrays, source)
    if known.family != settings.backbone:
        raise UserError(
            f"{source} is in the format of {known.name}, but the network's backbone is "
            f"{FAMILIES[settings.backbone]}. Give weights of that, or take the other backbone."
        )
    return known, prefix


def _require_known(arrays, source):
    """The format and its prefix; UserError for an unknown one."""
    found = find_format(arrays)
    if found is None or any(re.fullmatch(SECOND_VERSION, name) for name in arrays):
        names = ", ".join(each.name for each in BACKBONE_FORMATS)
        raise UserError(
            f"{source} is in no known format of ImageNet weights: {described(arrays)}. "
            f"Known: {names}. Give a file in one of them."
        )
    return found


def _require_alone(arrays, known, prefix, source):
    """Raises UserError where the backbone is one part of a larger network, such as a detector."""
    others = [name for name in arrays if not name.startswith(prefix)]
    others = [n for n in others if not any(re.fullmatch(u, n) for u in known.unused)]
    if others:
        raise UserError(
            f"{source} is a whole network of which {prefix[:-1]} is {known.name}; it also has "
            f"{others[0]} ({len(others)} such entries). To take the backbone, "
            f"{naming(prefix[:-1])}."
        )


def _require_size(found, known, settings, source):
    """Raises UserError unless the file has the depths and channels of the network.

    found  our name -> shape in the file's order of axes
    """
    channels, depths = _sizes(found, known)
    if not all(channels) or (channels, depths) == (settings.channels, settings.depths):
        return  # `convert` names what is missing
    raise UserError(
        f"{source} is {known.name} with channels {channels} and depths {depths}, but the network "
        f"has {tuple(settings.channels)} and {tuple(settings.depths)}. Give a file of this size, "
        "or the config or preset of that one."
    )


def _sizes(found, known):
    """The channels, 0 where they are missing, and depths of the four stages."""
    first = {"swin": "norm1", "convnext": "norm"}[known.family]
    scales = [found.get(f"stage{i}.block0.{first}.scale", (0,)) for i in range(4)]
    blocks = [re.match(r"stage(\d)\.block(\d+)\.", target) for target in found]
    depths = tuple(len({b[2] for b in blocks if b and b[1] == str(i)}) for i in range(4))
    return tuple(math.prod(shape) for shape in scales), depths


def check_indices(arrays: Mapping[str, np.ndarray], source: str):
    """Raises UserError if an entry `relative_position_index` orders pairs of tokens differently."""
    for name, array in arrays.items():
        if not re.fullmatch(INDEX, name):
            continue
        window = math.isqrt(math.isqrt(array.size))
        flat = array.ndim == 1  # torchvision's
        if not np.array_equal(array, _index(window).reshape(-1) if flat else _index(window)):
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


# --- as sources of features -----------------------------------------------------------------------


def backbone_settings(
    arrays: Mapping[str, np.ndarray], source: str
) -> SwinSettings | ConvNeXtSettings:
    """The sizes of the backbone in a file; UserError for another network or a damaged one."""
    arrays = _as_saved(arrays)
    known, prefix = _require_known(arrays, source)
    found = targets(joined_qkv(arrays, source), within(re.escape(prefix), "", known.rows))
    channels, depths = _sizes(found, known)
    problem = "" if all(channels) else "one of its four stages has no block with a norm."
    if known.family == "convnext":
        settings = ConvNeXtSettings(
            channels, depths, down_epsilon=1e-5 if known.author == "OpenMMLab's" else 1e-6
        )
    else:
        tables = [found.get(f"stage{i}.block0.attention.bias_table", (0, 0)) for i in range(4)]
        heads = tuple(shape[-1] for shape in tables)
        window = table_window(np.empty(tables[0]), f"{source}: the first bias table")
        settings = SwinSettings(channels, depths, heads, window)
        problem = problem or swin.problem(channels, depths, heads, window)
    if problem:
        raise UserError(f"{source} is {known.name}, but damaged: {problem}")
    return settings


def load_backbone_maps(
    arrays: Mapping[str, np.ndarray], settings: SwinSettings | ConvNeXtSettings, source: str
) -> dict:
    """{"params", "stats"} of `BackboneMaps`, float32; UserError as `load_backbone`.

    Norms of the outputs, which some files hold, are not read.
    """
    abstract = Network(lambda rngs: BackboneMaps(settings, rngs=rngs)).abstract["params"]
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract)["backbone"]
    return {"params": {"backbone": _parameters(arrays, source, shapes, settings)}, "stats": {}}
