"""TransUNet weights: the ImageNet-21k encoder as released, and PyTorch TransUNet checkpoints."""

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.encoder_maps import HybridMaps, HybridSettings
from diffseg_jax.models.network import Network
from diffseg_jax.models.transunet import STRIDE
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import AS_IS, convert, targets, within
from diffseg_jax.weights.torch_rows import conv, linear_rows, norm, statistics


def _in_config(grid: tuple[int, int]) -> str:
    """What to type to give the grid of a position table, such as that one."""
    return (
        "Write the grid that the network was trained with into the config file: "
        f"c.weights_grid = {grid}. For convert it is --grid={','.join(map(str, grid))}."
    )


def table_grid(
    length: int, grid: Sequence[int] = (), *, class_row: bool = False,
    advice: Callable[[tuple[int, int]], str] = _in_config,
) -> tuple[int, int]:  # fmt: skip
    """Rows and columns of the grid of positions in a position table of `length` rows.

    grid       (rows, columns), or () for a square, as released tables have it
    class_row  whether a row for the class token may stand before the positions
    advice     (rows, columns) of an example -> what to type, in the error

    Raises UserError when the table has no such grid.
    """
    for positions in (length - 1, length) if class_row else (length,):
        rows, columns = grid or (math.isqrt(positions),) * 2
        if positions and rows * columns == positions:
            return rows, columns
    wanted = f"grid of {grid[0]}x{grid[1]}" if grid else "square grid"
    token = ", with or without one for the class token" if class_row else ""
    raise UserError(
        f"the {length} rows of the position table form no {wanted}{token}. "
        f"{advice(_example(length))}"
    )


def _example(length):
    """A grid of a position table with or without a class-token row, as near a square as can be."""
    grids = [(r, n // r) for n in (length, length - 1) for r in range(1, n + 1) if n % r == 0]
    return min(grids, key=lambda grid: abs(grid[1] - grid[0]), default=(1, 1))


# Released files number the parts of a layer across all classes (0, 1, 2, 3), Linen within each
# class. Their norm vectors are (1, 1, 1, C) or (C).
OFFICIAL = (  # released array                     ours                             axes
    *within("", "encoder.", (
        (r"conv_root/kernel",                      "root.conv.kernel",              "hwio->hwio"),
        (r"gn_root/(scale|bias)",                  "root.norm.{0}",                 AS_IS),
        (r"embedding/kernel",                      "patch_embedding.kernel",        "hwio->hwio"),
        (r"embedding/bias",                        "patch_embedding.bias",          "o->o"),
        (r"Transformer/posembed_input/pos_embedding", "position_embedding", "bnd->bnd"),
        (r"Transformer/encoder_norm/(scale|bias)", "norm.{0}",                      "c->c"),
    )),
    *within(r"block(\d+)/unit(\d+)/", "encoder.block{0}.unit{1}.", (
        (r"conv([123]|_proj)/kernel",              "conv{2}.kernel",                "hwio->hwio"),
        (r"gn([123]|_proj)/(scale|bias)",          "norm{2}.{3}",                   AS_IS),
    )),
    *within(r"Transformer/encoderblock_(\d+)/", "encoder.layer{0}.", (
        (r"LayerNorm_0/(scale|bias)",              "norm1.{1}",                     "c->c"),
        (r"LayerNorm_[12]/(scale|bias)",           "norm2.{1}",                     "c->c"),
        (r"MlpBlock_[03]/Dense_0/kernel",          "mlp.fc1.kernel",                "io->io"),
        (r"MlpBlock_[03]/Dense_0/bias",            "mlp.fc1.bias",                  "o->o"),
        (r"MlpBlock_[03]/Dense_1/kernel",          "mlp.fc2.kernel",                "io->io"),
        (r"MlpBlock_[03]/Dense_1/bias",            "mlp.fc2.bias",                  "o->o"),
    )),
    *within(r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/",
            "encoder.layer{0}.attention.", (
        (r"(query|key|value)/kernel",              "{1}.kernel",                    "ihd->ihd"),
        (r"(query|key|value)/bias",                "{1}.bias",                      "hd->hd"),
        (r"out/kernel",                            "out.kernel",                    "hdo->hdo"),
        (r"out/bias",                              "out.bias",                      "o->o"),
    )),
)
OFFICIAL_UNUSED = (r"cls", r"pre_logits/(kernel|bias)", r"head/(kernel|bias)")    # classification

TORCH_UNIT = (  # of the ResNet in timm's and Hugging Face's files, where numbers start at 0
    *conv(r"conv([123])",                  "conv{0}"),
    *norm(r"norm([123])",                  "norm{0}"),
    *conv(r"downsample\.conv",             "conv_proj"),
    *norm(r"downsample\.norm",             "norm_proj"),
)
PORT = (  # torch layer                    ours
    *within(r"transformer\.embeddings\.", "params.encoder.", (
        (r"position_embeddings",           "position_embedding",            "bnd->bnd"),
        *conv(r"patch_embeddings",         "patch_embedding"),
    )),
    *within(r"transformer\.embeddings\.hybrid_model\.root\.", "params.encoder.root.", (
        *conv(r"conv",                     "conv"),
        *norm(r"gn",                       "norm"),
    )),
    *within(r"transformer\.embeddings\.hybrid_model\.body\.block(\d+)\.unit(\d+)\.",
            "params.encoder.block{0}.unit{1}.", (
        *conv(r"conv([123])",              "conv{2}"),
        *conv(r"downsample",               "conv_proj"),
        *norm(r"gn([123]|_proj)",          "norm{2}"),
    )),
    *within(r"transformer\.encoder\.layer\.(\d+)\.", "params.encoder.layer{0}.", (
        *norm(r"attention_norm",           "norm1"),
        *linear_rows(r"attn\.(query|key|value|out)", "attention.{1}"),
        *norm(r"ffn_norm",                 "norm2"),
        *linear_rows(r"ffn\.(fc1|fc2)",         "mlp.{1}"),
    )),
    *norm(r"transformer\.encoder\.encoder_norm", "params.encoder.norm"),
    *conv(r"decoder\.conv_more\.0",        "params.decoder.bridge.conv"),
    *norm(r"decoder\.conv_more\.1",        "params.decoder.bridge.norm"),
    *statistics(r"decoder\.conv_more\.1",  "stats.decoder.bridge.norm"),
    *within(r"decoder\.blocks\.(\d+)\.conv([12])\.", "", (
        *conv(r"0",                        "params.decoder.stage{0}.conv{1}.conv"),
        *norm(r"1",                        "params.decoder.stage{0}.conv{1}.norm"),
        *statistics(r"1",                  "stats.decoder.stage{0}.conv{1}.norm"),
    )),
    *conv(r"segmentation_head\.0",         "params.head"),
)
PORT_UNUSED = (r"decoder\..*\.num_batches_tracked",)

TIMM_HYBRID = (  # timm's vit_base_r50_s16, the released weights in PyTorch
    (r"pos_embed",                         "encoder.position_embedding",    "bnd->bnd"),
    *conv(r"patch_embed\.proj",            "encoder.patch_embedding"),
    *norm(r"norm",                         "encoder.norm"),
    *conv(r"patch_embed\.backbone\.stem\.conv", "encoder.root.conv"),
    *norm(r"patch_embed\.backbone\.stem\.norm", "encoder.root.norm"),
    *within(r"blocks\.(\d+)\.", "encoder.layer{0}.", (
        *norm(r"norm([12])",               "norm{1}"),
        *linear_rows(r"attn\.(query|key|value)", "attention.{1}"),         # split by `_split`
        *linear_rows(r"attn\.proj",        "attention.out"),
        *linear_rows(r"mlp\.(fc[12])",     "mlp.{1}"),
    )),
)
TIMM_UNUSED = (r"cls_token", r"(head|pre_logits|fc_norm)\..*")
BIT = r"embeddings\.patch_embeddings\.backbone\.bit\."
HUGGING_HYBRID = (  # Hugging Face's ViT-hybrid
    (r"embeddings\.position_embeddings",   "encoder.position_embedding",    "bnd->bnd"),
    *conv(r"embeddings\.patch_embeddings\.projection", "encoder.patch_embedding"),
    *norm(r"layernorm",                    "encoder.norm"),
    *within(BIT, "encoder.", (
        *conv(r"embedder\.convolution",    "root.conv"),
        *norm(r"embedder\.norm",           "root.norm"),
    )),
    *within(r"encoder\.layer\.(\d+)\.", "encoder.layer{0}.", (
        *norm(r"layernorm_before",         "norm1"),
        *norm(r"layernorm_after",          "norm2"),
        *linear_rows(r"attention\.attention\.(query|key|value)", "attention.{1}"),
        *linear_rows(r"attention\.output\.dense", "attention.out"),
        *linear_rows(r"intermediate\.dense", "mlp.fc1"),
        *linear_rows(r"output\.dense",     "mlp.fc2"),
    )),
)
HUGGING_UNUSED = (r"embeddings\.cls_token", r"classifier\..*", r"pooler\..*")


@dataclasses.dataclass(frozen=True)
class EncoderFormat:
    """One naming scheme for the parameters of the encoder.

    prefix    pattern of an optional prefix of all names
    mark      pattern, after the prefix, of names that such files and no others have
    rows      of all but the units of the ResNet, if `units` is given
    units     pattern of what the names of a unit begin with: its stage and its number from 0
    unused    patterns of names that only classification needs
    position  name of the position table in the file
    """

    prefix: str
    mark: str
    rows: tuple
    units: str
    unused: tuple[str, ...]
    position: str

    def table(self, names: Iterable[str]) -> tuple:
        """The rows for a file with these names."""
        begins = {}
        for name in names if self.units else ():
            if match := re.match(self.prefix + self.units, name):
                begins[match[0]] = [int(number) + 1 for number in match.groups()]
        units = (
            within(re.escape(begin), f"encoder.block{stage}.unit{unit}.", TORCH_UNIT)
            for begin, (stage, unit) in begins.items()
        )
        return within(self.prefix, "", self.rows) + sum(units, ())

    def matches(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is in this format."""
        return any(re.fullmatch(f"{self.prefix}(?:{self.mark})", name) for name in names)


ENCODERS = (
    EncoderFormat(
        "", r"conv_root/kernel|block1/.*", OFFICIAL, "", OFFICIAL_UNUSED,
        "Transformer/posembed_input/pos_embedding",
    ),
    EncoderFormat(
        "", r"patch_embed\.backbone\.stem\.conv\.weight", TIMM_HYBRID,
        r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", TIMM_UNUSED, "pos_embed",
    ),
    EncoderFormat(
        r"(?:vit\.)?", BIT + r"embedder\.convolution\.weight", HUGGING_HYBRID,
        BIT + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", HUGGING_UNUSED,
        "embeddings.position_embeddings",
    ),
)
PORT_MARK = "transformer.embeddings.hybrid_model.root.conv.weight"


def is_port(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is a PyTorch TransUNet."""
    return PORT_MARK in arrays


def require_transunet(arrays: Mapping[str, np.ndarray], source: str):
    """Raises UserError for arrays of neither an encoder nor a whole TransUNet."""
    if not is_port(arrays) and not any(known.matches(arrays) for known in ENCODERS):
        raise UserError(
            f"{source} is no TransUNet and no R50+ViT encoder: {described(arrays)}. Give "
            "R50+ViT-B_16.npz of the ViT authors, the same weights from timm (vit_base_r50_s16) or "
            "Hugging Face (vit-hybrid), or a PyTorch TransUNet."
        )


def load_encoder(
    arrays: Mapping[str, np.ndarray], source: str, target_shapes: dict, grid: Sequence[int] = ()
) -> dict:
    """The encoder parameters of released R50+ViT-B_16 weights, float32.

    arrays          as the ViT authors, timm or Hugging Face name them, see `read_arrays`
    target_shapes   `params["encoder"]` of our model with a shape tuple at each leaf
    grid            (rows, columns) of the file's position table, or () for a square

    Both numberings of sub-modules, both norm shapes, and files with or without class token,
    pre_logits and head are accepted; these three are dropped. The position table keeps the grid of
    the file, [1, gh*gw, D]; a row for the class token before it is dropped. The caller resizes it.
    Raises UserError as `require_transunet`, `convert` and `table_grid` do.
    """
    require_transunet(arrays, source)
    known = next((each for each in ENCODERS if each.matches(arrays)), ENCODERS[0])
    shapes = {"encoder": _with_free_grid(target_shapes)}
    unused = tuple(known.prefix + pattern for pattern in known.unused)
    tree = convert(_split(arrays), known.table(arrays), shapes, ignore=unused, source=source)
    table = tree["encoder"]["position_embedding"]
    length = table.shape[1]
    rows, columns = _check_grid(source, known.position, length, grid, class_row=True)
    return {**tree["encoder"], "position_embedding": table[:, length - rows * columns :]}


PUBLISHED_DECODER = {"decoder": (256, 128, 64, 16), "bridge": 512, "skips": 3}


def sizes_of(
    arrays: Mapping[str, np.ndarray], source: str, grid: Sequence[int] = (),
    advice: Callable[[tuple[int, int]], str] = _in_config,
) -> dict:  # fmt: skip
    """The sizes of a TransUNet or of an encoder, from its names and shapes.

    arrays, source, grid  as of `load_encoder`;  advice  as of `table_grid`
    out  arithmetic, resnet_width, resnet_units, hidden, layers, mlp, decoder, bridge, skips;
         heads (None where no shape tells), num_classes (0 of an encoder), size (height, width) of
         the images that the position table was made for

    Raises UserError where an entry that tells a size is missing.
    """
    port = is_port(arrays)
    table = PORT if port else next(k for k in ENCODERS if k.matches(arrays)).table(arrays)
    found = targets(_split(arrays), table)
    found = {name.removeprefix("params."): shape for name, shape in found.items()}

    def length(name, axis=-1):
        if name not in found or len(found[name]) < abs(axis):
            raise UserError(f"{source} has no entry for {name}. Give a whole TransUNet or encoder.")
        return found[name][axis]

    numbers = lambda pattern: {m[1] for name in found if (m := re.match(pattern, name))}
    units = tuple(len(numbers(rf"encoder\.block{b}\.unit(\d+)\.")) for b in (1, 2, 3))
    rows, columns = _check_grid(
        source, "the position table", length("encoder.position_embedding", -2), grid,
        class_row=not port, advice=advice,
    )  # fmt: skip
    query = found.get("encoder.layer0.attention.query.kernel", ())
    decoder = _decoder_sizes(length) if port else PUBLISHED_DECODER
    return {
        "arithmetic": "port" if port else "official",
        "resnet_width": length("encoder.root.norm.scale") / 64,
        "resnet_units": units,
        "hidden": length("encoder.norm.scale"),
        "layers": len(numbers(r"encoder\.layer(\d+)\.")),
        "heads": query[1] if len(query) == 3 else None,
        "mlp": length("encoder.layer0.mlp.fc1.bias"),
        "num_classes": length("head.bias") if port else 0,
        "size": (16 * rows, 16 * columns),
        **decoder,
    }


def _decoder_sizes(length) -> dict:
    """Channels of the decoder and its number of skips; `length(name, axis)` of an entry."""
    bridge, decoder = length("decoder.bridge.norm.scale"), []
    channels, skips = bridge, 0
    for stage in range(4):
        skips += length(f"decoder.stage{stage}.conv1.conv.kernel", -3) > channels
        channels = length(f"decoder.stage{stage}.conv1.norm.scale")
        decoder.append(channels)
    return {"decoder": tuple(decoder), "bridge": bridge, "skips": skips}


def load_official(path, target_shapes: dict, grid: Sequence[int] = ()) -> dict:
    """`load_encoder` of a file; raises UserError as `read_arrays` too."""
    return load_encoder(read_arrays(path), str(path), target_shapes, grid)


def _split(arrays):
    """The arrays with timm's `attn.qkv` as query, key and value."""
    split = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)qkv(\.\w+)", name)
        if match is None or array.ndim == 0 or len(array) % 3:
            split[name] = array
            continue
        for part, values in zip(("query", "key", "value"), np.split(array, 3), strict=True):
            split[f"{match[1]}{part}{match[2]}"] = values
    return split


def load_port(
    path, params_shapes: dict, stats_shapes: dict, *, head: bool = True, grid: Sequence[int] = ()
) -> tuple[dict, dict]:
    """`load_whole` of a file; raises UserError as `read_arrays` too."""
    arrays = read_arrays(path)
    return load_whole(arrays, str(path), params_shapes, stats_shapes, head=head, grid=grid)


def load_whole(
    arrays: Mapping[str, np.ndarray], source: str, params_shapes: dict, stats_shapes: dict, *,
    head: bool = True, grid: Sequence[int] = (),
) -> tuple[dict, dict]:  # fmt: skip
    """(params, stats) of a PyTorch TransUNet checkpoint, float32.

    params_shapes, stats_shapes   our two trees with a shape tuple at each leaf
    head                          whether the file's head is read; without it, "head" is absent
    grid                          (rows, columns) of the position table, or () for a square

    The position table keeps the grid of the file, [1, gh*gw, D]; the caller resizes it.
    Raises UserError as `require_transunet`, `convert` and `table_grid` do.
    """
    encoder = _with_free_grid(params_shapes["encoder"])
    params = {**params_shapes, "encoder": encoder}
    unused = PORT_UNUSED
    if not head:
        del params["head"]
        unused += (r"segmentation_head\.0\.(weight|bias)",)
    shapes = {"params": params, "stats": stats_shapes}
    tree = convert(arrays, PORT, shapes, ignore=unused, source=source)
    length = tree["params"]["encoder"]["position_embedding"].shape[1]
    _check_grid(source, "transformer.embeddings.position_embeddings", length, grid)
    return tree["params"], tree["stats"]


def _check_grid(path, entry, *arguments, **options):
    """`table_grid`, whose error then begins with the file and the entry."""
    try:
        return table_grid(*arguments, **options)
    except UserError as error:
        raise UserError(f"{path}: {entry}: {error}") from None


def _with_free_grid(encoder_shapes: dict) -> dict:
    shape = encoder_shapes["position_embedding"]
    return {**encoder_shapes, "position_embedding": shape and (1, None, shape[-1])}


# ---- the encoder as a source of features -------------------------------------------------------


def hybrid_settings(
    arrays: Mapping[str, np.ndarray], source: str, heads: int | None = None,
    grid: Sequence[int] = (),
) -> HybridSettings:  # fmt: skip
    """The sizes of the encoder in a file, also in that of a whole TransUNet.

    heads  of the attention, if they are not in the file; None = one for every 64 channels
    grid   (rows, columns) of the position table; () = square

    Raises UserError as `require_transunet` and `sizes_of`, and for other numbers of heads.
    """
    require_transunet(arrays, source)
    options = lambda given: (
        f"Convert the file: python -m diffseg_jax.convert --source=vit "
        f"--input={shlex.quote(source)} --output=vit {given}"
    )
    sizes = sizes_of(arrays, source, grid, lambda grid: options("--grid={},{}".format(*grid)))
    width, told = sizes["hidden"], sizes["heads"]
    heads = heads or told or max(width // 64, 1)
    if width % heads or told not in (None, heads):
        right = f", but {told}" if told else ""
        raise UserError(
            f"{source} has {width} channels, which are not those of {heads} heads{right}. "
            + options(f"--heads={told}" if told else "--heads=N, with the N of its training.")
        )
    rows, columns = (side // STRIDE for side in sizes["size"])
    names = ("resnet_width", "resnet_units", "hidden", "layers", "mlp", "arithmetic")
    return HybridSettings(
        **{name: sizes[name] for name in names}, heads=heads, grid=(rows, columns)
    )


def load_hybrid(
    arrays: Mapping[str, np.ndarray], settings: HybridSettings, source: str
) -> dict:  # fmt: skip
    """{"params", "stats"} of `HybridMaps`, float32; UserError as `load_encoder`."""
    abstract = Network(lambda rngs: HybridMaps(settings, rngs=rngs)).abstract["params"]
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract)
    if not is_port(arrays):
        encoder = load_encoder(arrays, source, shapes["encoder"], settings.grid)
        return {"params": {"encoder": encoder}, "stats": {}}
    rows = tuple(row for row in PORT if row[1].startswith("params.encoder."))
    unused = (r"decoder\..*", r"segmentation_head\..*")
    tree = convert(arrays, rows, {"params": shapes}, ignore=unused, source=source)
    return {**tree, "stats": {}}
