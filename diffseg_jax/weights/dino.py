"""Weights of DINOv2 and DINOv3: the authors' files, and those of Hugging Face's transformers."""

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.dino import Dino, DinoSettings, rotary_periods
from diffseg_jax.models.network import Network
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import AS_IS, Row, convert, targets, within
from diffseg_jax.weights.torch_rows import conv, join_layers, joined_qkv, linear_rows, norm

PUBLISHED_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 20, 1536: 24, 4096: 32}  # by width
PARTS = (  # layers that we compute by one product, in the order of its outputs
    (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.qkv"),
    (("mlp.w1", "mlp.w2"), "mlp.fc1"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.fc1"),
)  # fmt: skip
SCALES = tuple((rf"(?:ls|layer_scale){i}\.(?:gamma|lambda1)", f"scale{i}", "c->c") for i in (1, 2))
OFFICIAL_DINO = (
    (r"cls_token", "params.class_token", AS_IS),
    (r"(?:register|storage)_tokens", "params.registers", AS_IS),
    (r"pos_embed", "params.position_embedding", AS_IS),
    (r"rope_embed\.periods", "stats.periods", "p->p"),
    *conv(r"patch_embed\.proj", "params.patch_embedding"),
    *norm(r"norm", "params.norm"),
    # In training checkpoints the blocks are chunked: blocks.CHUNK.BLOCK
    *within(r"blocks\.(?:\d+\.)?(\d+)\.", "params.block{0}.", (
        *norm(r"norm([12])", "norm{1}"),
        *linear_rows(r"attn\.qkv", "attention.qkv"),
        *linear_rows(r"attn\.proj", "attention.out"),
        *SCALES,
        *linear_rows(r"mlp\.(fc[12])", "mlp.{1}"),  # fc1: w1 and w2, joined by `load_dino`
        *linear_rows(r"mlp\.w12", "mlp.fc1"),
        *linear_rows(r"mlp\.w3", "mlp.fc2"),
    )),
)  # fmt: skip
HUGGING_DINO = (
    (r"embeddings\.cls_token", "params.class_token", AS_IS),
    (r"embeddings\.register_tokens", "params.registers", AS_IS),
    (r"embeddings\.position_embeddings", "params.position_embedding", AS_IS),
    (r"rope_embed\.periods", "stats.periods", "p->p"),  # computed by `_named`
    *conv(r"embeddings\.patch_embeddings(?:\.projection)?", "params.patch_embedding"),
    *norm(r"(?:layer)?norm", "params.norm"),
    *within(r"(?:encoder\.|model\.)?layer\.(\d+)\.", "params.block{0}.", (
        *norm(r"norm([12])", "norm{1}"),
        *linear_rows(r"attention\.(?:attention\.)?qkv", "attention.qkv"),  # joined by `load_dino`
        *linear_rows(r"attention\.(?:output\.dense|o_proj)", "attention.out"),
        *SCALES,
        *linear_rows(r"mlp\.(fc[12])", "mlp.{1}"),
        *linear_rows(r"mlp\.(?:weights_in|up_proj)", "mlp.fc1"),
        *linear_rows(r"mlp\.(?:weights_out|down_proj)", "mlp.fc2"),
    )),
)  # fmt: skip
DINO_UNUSED = (  # by features
    r"(embeddings\.)?mask_token",
    r"local_cls_norm\.(weight|bias)",  # of class tokens of small crops in DINOv3's training
)
HEADS = r"(dino_head|ibot_head|linear_head|classifier)\..*"  # beside the network
ROTARY = r"rope_embed\.periods|storage_tokens|(model\.)?layer\.0\..*"  # names in DINOv3 alone
GATED = r".*\.mlp\.(w12|w1|weights_in|gate_proj)\.weight"
QKV_BIAS = r".*\.(attn\.qkv|query|q_proj)\.bias"


class DinoFormat(NamedTuple):
    """The names that one program gives to the network.

    layout  see `DinoSettings`
    mark    pattern of a name that tells the format, without what stands before all names
    """

    layout: str
    mark: str
    rows: tuple[Row, ...]


DINO_FORMATS = (
    DinoFormat("official", r"blocks\.(?:0\.)?0\.ls1\.gamma", OFFICIAL_DINO),
    DinoFormat(
        "transformers", r"(?:encoder\.|model\.)?layer\.0\.layer_scale1\.lambda1", HUGGING_DINO
    ),
)


def dino_settings(
    arrays: Mapping[str, np.ndarray], source: str, heads: int | None = None
) -> DinoSettings:
    """The sizes of the network that the arrays of `read_arrays` are of.

    heads  of each attention; None: those of the published network of this width

    Raises UserError for another network, and where the number of heads is unknown or wrong.
    """
    known, arrays = _named(arrays, source)
    found = targets(arrays, known.rows)
    size = lambda target, axis: (0, 0, 0, *found.get(target, ()))[axis]
    has = lambda pattern: any(re.fullmatch(pattern, name) for name in arrays)
    rotary, width = has(ROTARY), size("params.class_token", -1)
    settings = DinoSettings(
        patch=size("params.patch_embedding.kernel", -1),
        width=width,
        depth=len({name.split(".")[1] for name in found if name.startswith("params.block")}),
        heads=_heads(width, size("stats.periods", -1), heads, rotary, source),
        hidden=size("params.block0.mlp.fc2.kernel", -1),
        registers=size("params.registers", -2),
        gated=has(GATED),
        qkv_bias=has(QKV_BIAS),
        rotary=rotary,
        grid=0 if rotary else _grid(size("params.position_embedding", -2), source),
        epsilon=1e-5 if rotary else 1e-6,
        layout=known.layout,
    )
    if not settings.patch or not settings.hidden:
        raise UserError(
            f"{source} lacks the patch embedding or the first block of {described_dino(settings)}. "
            "Give the file as its program saved it."
        )
    return settings


def load_dino(arrays: Mapping[str, np.ndarray], settings: DinoSettings, source: str) -> dict:
    """{"params", "stats"} of the network from the arrays of `read_arrays`, float32.

    Raises UserError for a network of another size, and as `convert` does.
    """
    own = dino_settings(arrays, source, settings.heads)
    if dataclasses.replace(own, layout=settings.layout) != settings:
        raise UserError(
            f"{source} is {described_dino(own)}, but the network is {described_dino(settings)}. "
            "Give the weights of this network, or take the sizes of the file."
        )
    known, arrays = _named(arrays, source)
    if settings.rotary:
        periods = rotary_periods(settings.width // settings.heads)
        arrays = {"rope_embed.periods": periods, **_with_key_biases(arrays)}
    arrays = joined_qkv(_masked(arrays), source)
    for parts, whole in PARTS:
        if any(f"{parts[0]}.weight" in name for name in arrays):
            arrays = join_layers(arrays, parts, whole, source)
    abstract = Network(lambda rngs: Dino(settings, rngs=rngs)).abstract
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract)
    return {"stats": {}, **convert(arrays, known.rows, shapes, ignore=DINO_UNUSED, source=source)}


def described_dino(settings: DinoSettings) -> str:
    """The network in a few words, such as "DINOv2 with patches of 14, 384 channels, ..."."""
    s = settings
    return (
        f"DINOv{3 if s.rotary else 2} with patches of {s.patch}, {s.width} channels, {s.depth} "
        f"blocks of {s.heads} heads, {'gated ' * s.gated}MLPs of {s.hidden} and {s.registers} "
        "registers"
    )


# ---- names and sizes ---------------------------------------------------------------------------


def _named(arrays, source):
    """The format of the arrays, and those of the network without what stands before all names."""
    known, prefix = _format(arrays, source)
    others = [name for name in arrays if not name.startswith(prefix)]
    others = [name for name in others if not re.fullmatch(HEADS, name)]
    if others:
        part = prefix[:-1]
        rotary = any(re.fullmatch(re.escape(prefix) + f"({ROTARY})", name) for name in arrays)
        output = "dinov3" if rotary else "dinov2"
        raise UserError(
            f"{source} is a whole network of which {part} is DINO; it also has {others[0]} "
            f"({len(others)} such entries). To take DINO alone, convert it: python -m "
            f"diffseg_jax.convert --source={output} --input={shlex.quote(source)} "
            f"--output={output} --part={part}"
        )
    own = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    if not any(re.fullmatch(DINO_UNUSED[0], name) for name in own):
        raise UserError(
            f"{source} has no mask_token, which every file of DINOv2 or DINOv3 by its authors or "
            "Hugging Face holds. Give one of theirs, not one of timm."
        )
    return known, {name: array for name, array in own.items() if array.size}  # 0 registers


def _format(arrays, source):
    """The format of the arrays and what stands before all names, the teacher's before others."""
    names = sorted(arrays, key=lambda name: "teacher" not in name)
    for known in DINO_FORMATS:
        mark = re.compile(rf"((?:\w+\.)*?){known.mark}")
        if match := next(filter(None, map(mark.fullmatch, names)), None):
            return known, match[1]
    raise UserError(
        f"{source} is no vision transformer of DINOv2 or DINOv3: {described(arrays)}. Give a file "
        "of its authors or of Hugging Face."
    )


def _heads(width, periods, heads, rotary, source):
    """The number of heads: as the periods tell, as given, or as in the published networks."""
    told = width // (4 * periods) if periods else 0
    if told and heads not in (None, told):
        raise UserError(
            f"{source} is DINO of {told} heads, as its rotary positions tell, not {heads}. Give "
            f"--heads={told}, or leave it out."
        )
    heads = told or heads or PUBLISHED_HEADS.get(width, 0)
    advice = (
        f"Convert the file, python -m diffseg_jax.convert --source=dinov{3 if rotary else 2} "
        "--heads=N, with the N that the network was trained with."
    )
    if not heads:
        raise UserError(
            f"{source} is DINO of {width} channels, which no published network has, so its number "
            f"of heads is unknown. {advice}"
        )
    if width % (4 * heads if rotary else heads):
        raise UserError(
            f"{source} is DINO of {width} channels, which {heads} heads do not share evenly. "
            f"{advice}"
        )
    return heads


def _grid(rows, source):
    """Rows and columns of a table of positions, the first row of which is the class token's."""
    side = math.isqrt(max(rows - 1, 0))
    if not side or side**2 != rows - 1:
        raise UserError(
            f"{source} has a table of {rows} positions, which are not those of the class token and "
            "of a square of patches. Give a file of its authors or of Hugging Face."
        )
    return side


# ---- arrays --------------------------------------------------------------------------------------


def _with_key_biases(arrays):
    """The arrays with biases of 0 for keys that have none beside the biases of queries."""
    names = [name for name in arrays if name.endswith(".q_proj.bias")]
    zeros = {name.replace(".q_proj.", ".k_proj."): np.zeros_like(arrays[name]) for name in names}
    return zeros | arrays


def _masked(arrays):
    """The arrays with biases multiplied by their masks, which are no parameters."""
    masks = [name for name in arrays if name.endswith(".qkv.bias_mask")]
    biases = {name.removesuffix("_mask"): name for name in masks}
    kept = {name: array for name, array in arrays.items() if name not in masks}
    for name in biases.keys() & kept.keys():
        mask = np.asarray(arrays[biases[name]], np.float32)
        bias = np.asarray(kept[name], np.float32)
        kept[name] = np.where(mask == 0, 0, bias * mask)  # whatever is masked, also NaN
    return kept
