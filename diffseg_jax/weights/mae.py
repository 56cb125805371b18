"""MAE's published checkpoints, as their authors and as Hugging Face name them."""

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.mae import MAE, MAESettings, position_table
from diffseg_jax.models.network import Network
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import AS_IS, convert, targets, within
from diffseg_jax.weights.torch_rows import joined_qkv, linear_rows, norm

TABLE_ERROR = 5e-3  # of a position table that was rounded to bfloat16; its values are in [-1, 1]


def patch_matrix(array: np.ndarray) -> np.ndarray:
    """The kernel of the patches' convolution [D, 3, p, p] as the matrix [p*p*3, D]."""
    return array.transpose(2, 3, 1, 0).reshape(-1, len(array))


MAE_BLOCK = (
    *norm(r"norm([12])", "norm{1}"),
    *linear_rows(r"attn\.qkv", "attention.qkv"),
    *linear_rows(r"attn\.proj", "attention.out"),
    *linear_rows(r"mlp\.fc([12])", "mlp.fc{1}"),
)
MAE_BLOCK_HUGGING = (
    *norm(r"layernorm_before", "norm1"),
    *norm(r"layernorm_after", "norm2"),
    *linear_rows(r"attention\.attention\.qkv", "attention.qkv"),  # joined by `joined_qkv`
    *linear_rows(r"attention\.output\.dense", "attention.out"),
    *linear_rows(r"intermediate\.dense", "mlp.fc1"),
    *linear_rows(r"output\.dense", "mlp.fc2"),
)
MAE_ENCODER = (
    (r"cls_token", "class_token", AS_IS),
    (r"patch_embed\.proj\.weight", "patch_embedding.kernel", patch_matrix),
    (r"patch_embed\.proj\.bias", "patch_embedding.bias", AS_IS),
    *within(r"blocks\.(\d+)\.", "block{0}.", MAE_BLOCK),
    *norm(r"norm", "norm"),
)
MAE_ENCODER_HUGGING = (
    (r"embeddings\.cls_token", "class_token", AS_IS),
    (r"embeddings\.patch_embeddings\.projection\.weight", "patch_embedding.kernel", patch_matrix),
    (r"embeddings\.patch_embeddings\.projection\.bias", "patch_embedding.bias", AS_IS),
    *within(r"encoder\.layer\.(\d+)\.", "block{0}.", MAE_BLOCK_HUGGING),
    *norm(r"layernorm", "norm"),
)
MAE_DECODER = (
    (r"mask_token", "mask_token", AS_IS),
    *linear_rows(r"decoder_embed", "embedding"),
    *within(r"decoder_blocks\.(\d+)\.", "block{0}.", MAE_BLOCK),
    *within(r"decoder_layers\.(\d+)\.", "block{0}.", MAE_BLOCK_HUGGING),
    *norm(r"decoder_norm", "norm"),
    *linear_rows(r"decoder_pred", "prediction"),
)
IN_DECODER = r"(?:decoder\.)?"  # before all names of the decoder in Hugging Face's files
MAE_ROWS = (
    *MAE_ENCODER,
    *within(r"(?:vit\.)?", "", MAE_ENCODER_HUGGING),
    *within(IN_DECODER, "decoder.", MAE_DECODER),
)
ENCODER_POSITIONS = r"pos_embed|(?:vit\.)?embeddings\.position_embeddings"
DECODER_POSITIONS = IN_DECODER + r"decoder_pos_embed"
DECODER_ONLY = IN_DECODER + r"(?:mask_token|decoder_.*)"

MAE_HEADS = {768: 12, 1024: 16, 1280: 16}  # of the published networks, by width
HEADS_ADVICE = (
    "Convert the file, python -m diffseg_jax.convert --source=mae --heads=N, with the N that the "
    "network was trained with, usually one for every 64 channels."
)
MAE_FILES = (
    "Give a file of MAE's pretraining: mae_pretrain_vit_large.pth and its like, or a ViTMAE of "
    "Hugging Face."
)


def mae_settings(
    arrays: Mapping[str, np.ndarray], source: str, heads: int | None = None,
    decoder_heads: int | None = None,
) -> MAESettings:  # fmt: skip
    """The sizes of the network in a file, with a decoder if the file has one.

    heads, decoder_heads  of the attention, which no shape tells; None = those of the published
                          network of this width, in the decoder one for every 32 channels

    Raises UserError for arrays of another network, for heads that do not divide the width, and
    where their number is unknown.
    """
    sizes = _sizes(arrays, source)
    width, decoder = sizes["width"], sizes["decoder_width"]
    heads = heads or MAE_HEADS.get(width, 0)
    if not heads:
        raise UserError(
            f"{source} is MAE of {width} channels, which no published network has, so its number "
            f"of heads is unknown. {HEADS_ADVICE}"
        )
    _require_dividing(heads, width, source)
    if decoder:
        decoder_heads = decoder_heads or max(decoder // 32, 1)
        _require_dividing(decoder_heads, decoder, source)
    return MAESettings(**sizes, heads=heads, decoder_heads=decoder_heads if decoder else 0)


def _sizes(arrays, source) -> dict:
    """All fields of MAESettings but the numbers of heads; UserError for another network."""
    found = targets(joined_qkv(arrays, source), MAE_ROWS)
    length = lambda name: (found.get(name) or (0,))[0]
    kernel = found.get("patch_embedding.kernel", ())
    if len(kernel) != 4 or not {"class_token", "block0.attention.qkv.kernel"} <= set(found):
        raise UserError(f"{source} is no MAE: {described(arrays)}. {MAE_FILES}")
    return {
        "patch": kernel[-1],
        "width": kernel[0],
        "depth": _blocks(found, ""),
        "mlp": length("block0.mlp.fc1.bias"),
        "decoder_width": length("decoder.embedding.bias"),
        "decoder_depth": _blocks(found, r"decoder\."),
        "decoder_mlp": length("decoder.block0.mlp.fc1.bias"),
    }


def _blocks(found, part):
    """The number of blocks in a part of the network."""
    return len({m[1] for name in found if (m := re.match(rf"{part}block(\d+)\.", name))})


def _require_dividing(heads, width, source):
    """Raises UserError for heads that do not divide the width."""
    if width % heads:
        raise UserError(
            f"an attention of {heads} heads cannot share the {width} channels of {source} evenly. "
            f"{HEADS_ADVICE}"
        )


def mae_grid(arrays: Mapping[str, np.ndarray], source: str) -> tuple[int, int]:
    """Rows and columns of patches in the images that the network of a file was trained on.

    Raises UserError unless the position tables are the fixed ones of MAE, which are computed and
    not loaded.
    """
    parts, grids = {"encoder": ENCODER_POSITIONS}, set()
    if any(re.fullmatch(DECODER_ONLY, name) for name in arrays):
        parts["decoder"] = DECODER_POSITIONS
    for part, pattern in parts.items():
        names = [name for name in arrays if re.fullmatch(pattern, name)]
        if len(names) != 1:
            count = ", ".join(names) or "no entry"
            raise UserError(f"{source} has {count} for the positions of the {part}. {MAE_FILES}")
        grids.add(_grid_of(np.asarray(arrays[names[0]], np.float32), f"{source}: {names[0]}"))
    if len(grids) > 1:
        raise UserError(f"{source} has position tables of different grids. {MAE_FILES}")
    return grids.pop()


def _grid_of(table, what):
    """The grid whose positions a table [1, 1 + N, D] holds; UserError if there is none."""
    is_table = table.ndim == 3 and len(table) == 1 and table.shape[2] % 4 == 0
    count, width = (table.shape[1] - 1, table.shape[2]) if is_table else (0, 0)
    rows = [n for n in range(1, count + 1) if count % n == 0]
    for n in sorted(rows, key=lambda n: abs(n - count / n)):
        if np.max(np.abs(position_table(n, count // n, width) - table)) <= TABLE_ERROR:
            return n, count // n
    raise UserError(
        f"{what} of shape {table.shape} is not MAE's fixed table of sines and cosines, so it is "
        f"that of another vision transformer, or of one that was fine-tuned. {MAE_FILES}"
    )


def load_mae(arrays: Mapping[str, np.ndarray], settings: MAESettings, source: str) -> dict:
    """{"params", "stats"} of the network in a file, float32.

    settings  the network; without a decoder, that of the file is dropped

    Raises UserError as `mae_settings`, `mae_grid` and `convert`, and for a network of other sizes.
    """
    _require_sizes(arrays, settings, source)
    mae_grid(arrays, source)
    abstract = Network(lambda rngs: MAE(settings, rngs=rngs)).abstract["params"]
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract)
    ignore = (ENCODER_POSITIONS, DECODER_POSITIONS)
    ignore += () if settings.decoder_width else (DECODER_ONLY,)
    joined = joined_qkv(arrays, source)
    return {"params": convert(joined, MAE_ROWS, shapes, ignore=ignore, source=source), "stats": {}}


def _fitting(found, wanted) -> dict:
    """The usual numbers of heads where those of the network do not share the widths in a file."""
    usual = {"": max(found["width"] // 64, 1), "decoder_": max(found["decoder_width"] // 32, 1)}
    return {
        f"{part}heads": heads
        for part, heads in usual.items()
        if wanted[f"{part}heads"] and found[f"{part}width"] % wanted[f"{part}heads"]
    }


def _require_sizes(arrays, settings, source):
    """Raises UserError unless the file has the sizes of the network, where it needs them."""
    found, wanted = _sizes(arrays, source), dataclasses.asdict(settings)
    names = [n for n in found if settings.decoder_width or not n.startswith("decoder_")]
    names = [name for name in names if found[name] != wanted[name]]
    if names:
        listed = lambda sizes: ", ".join(f"mae.{name} {sizes[name]}" for name in names)
        flags = " ".join(
            f"--config.mae.{name}={value}"
            for name, value in {**{n: found[n] for n in names}, **_fitting(found, wanted)}.items()
        )
        raise UserError(
            f"{source} is an MAE with {listed(found)}, but the network has {listed(wanted)}. "
            f"Try {flags}."
        )
