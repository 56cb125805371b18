"""Guided-diffusion checkpoints: the published configurations, their flags and their names."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
from diffseg_jax.models.network import Network
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import convert, differences, within
from diffseg_jax.weights.torch_rows import conv, linear_rows, norm

ORDERS = ("legacy", "new")  # order of the channels of `qkv`: by head, or all queries first
MAX_LISTED = 3  # differences between a file and a network in an error message
MULTIPLES = {  # channel_mult by image size, where the flag is left empty
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Properties of a checkpoint that its file does not contain.

    order      order of the channels of `qkv`, one of ORDERS
    diffusion  options of its training: schedule, steps, rescale_timesteps, target, variance, loss,
               timesteps
    """

    settings: ADMSettings
    image_size: int
    order: str
    diffusion: dict


def from_flags(
    *,
    image_size: int = 64,
    num_channels: int = 128,
    num_res_blocks: int = 2,
    channel_mult: tuple[float, ...] = (),
    attention_resolutions: tuple[int, ...] = (16, 8),
    num_heads: int = 4,
    num_heads_upsample: int = -1,
    num_head_channels: int = -1,
    use_scale_shift_norm: bool = True,
    resblock_updown: bool = False,
    use_new_attention_order: bool = False,
    class_cond: bool = False,
    num_classes: int = 1000,
    learn_sigma: bool = False,
    dropout: float = 0.0,
    diffusion_steps: int = 1000,
    noise_schedule: str = "linear",
    rescale_timesteps: bool = False,
    predict_xstart: bool = False,
    use_kl: bool = False,
    rescale_learned_sigmas: bool = False,
) -> Configuration:
    """The configuration for flags of guided diffusion's training script.

    channel_mult           () = by image size: 64, 128, 256 or 512
    attention_resolutions  sizes of the feature maps with attention
    num_classes            only read with class_cond

    Raises UserError for invalid flags.
    """
    if not channel_mult and image_size not in MULTIPLES:
        raise UserError(
            f"image_size is {image_size}, for which no channel_mult is known. Give one, such as "
            "--channel_mult 1,2,3,4."
        )
    for size in attention_resolutions:
        if size < 1 or image_size % size:
            raise UserError(
                f"attention_resolutions holds {size}, which does not divide image_size "
                f"{image_size}. Give sizes of feature maps, such as 16,8."
            )
    make_process(noise_schedule, diffusion_steps)  # raises UserError for a wrong schedule
    settings = ADMSettings(
        channels=num_channels,
        channel_mult=tuple(channel_mult) or MULTIPLES[image_size],
        res_blocks=num_res_blocks,
        attention_factors=tuple(sorted(image_size // size for size in attention_resolutions)),
        heads=num_heads,
        heads_up=num_heads_upsample,
        head_channels=num_head_channels,
        resample_in_blocks=resblock_updown,
        scale_shift=use_scale_shift_norm,
        num_classes=num_classes if class_cond else 0,
        learn_sigma=learn_sigma,
        dropout=dropout,
    )
    if problem := settings.problem():
        raise UserError(problem)
    hybrid = "hybrid_rescaled" if rescale_learned_sigmas else "hybrid"
    loss = "kl" if use_kl else hybrid if learn_sigma else "simple"
    diffusion = dict(
        schedule=noise_schedule, steps=diffusion_steps, rescale_timesteps=rescale_timesteps,
        target="image" if predict_xstart else "noise",
        variance="learned" if learn_sigma else "fixed_large",
        loss=loss, timesteps="uniform",
    )  # fmt: skip
    order = "new" if use_new_attention_order else "legacy"
    return Configuration(settings, image_size, order, diffusion)


_COMMON = dict(
    num_channels=256, attention_resolutions=(32, 16, 8), num_head_channels=64,
    resblock_updown=True, learn_sigma=True,
)  # fmt: skip
_LSUN = from_flags(**_COMMON, image_size=256, dropout=0.1)
_PLAIN = from_flags(**_COMMON, image_size=256)
PUBLISHED = {
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
    "ffhq": _LSUN,  # trained by the authors of DDPM-Seg
    "lsun_horse_nodropout": _PLAIN,
    "imagenet256_uncond": _PLAIN,
    "imagenet256": from_flags(**_COMMON, image_size=256, class_cond=True),
    "imagenet512": from_flags(**_COMMON, image_size=512, class_cond=True),
    "imagenet128": from_flags(
        **{**_COMMON, "num_head_channels": -1}, image_size=128, num_heads=4, class_cond=True
    ),
    "imagenet64": from_flags(
        **{**_COMMON, "num_channels": 192}, image_size=64, num_res_blocks=3, class_cond=True,
        dropout=0.1, use_new_attention_order=True, noise_schedule="cosine",
    ),
}  # fmt: skip


def adm_table(settings: ADMSettings, order: str) -> tuple:
    """The rows that `weights.tables.convert` takes, for one order of the channels of `qkv`."""
    canonical = functools.partial(_canonical, settings, order)
    return (
        *linear_rows(r"time_embed\.0", "time1"),
        *linear_rows(r"time_embed\.2", "time2"),
        (r"label_emb\.weight", "classes", "ke->ke"),
        *conv(r"input_blocks\.0\.0", "input_0"),
        *_residual(r"input_blocks\.(\d+)\.0\.", "input_{0}.residual."),
        *_attention(r"input_blocks\.(\d+)\.1\.", "input_{0}.attention.", canonical),
        *conv(r"input_blocks\.(\d+)\.0\.op", "input_{0}.conv"),
        *_residual(r"middle_block\.0\.", "middle.residual1."),
        *_attention(r"middle_block\.1\.", "middle.attention.", canonical),
        *_residual(r"middle_block\.2\.", "middle.residual2."),
        *_residual(r"output_blocks\.(\d+)\.0\.", "output_{0}.residual."),
        *_attention(
            r"output_blocks\.(\d+)\.1\.", "output_{0}.attention.",
            functools.partial(canonical, up=True),
        ),
        *_residual(r"output_blocks\.(\d+)\.[12]\.", "output_{0}.enlarge."),
        *conv(r"output_blocks\.(\d+)\.[12]\.conv", "output_{0}.enlarge"),
        *norm(r"out\.0", "norm"),
        *conv(r"out\.2", "head"),
    )  # fmt: skip


def _residual(torch, ours):
    return within(torch, ours, (
        *norm(r"in_layers\.0", "norm1"),
        *conv(r"in_layers\.2", "conv1"),
        *linear_rows(r"emb_layers\.1", "emb"),
        *norm(r"out_layers\.0", "norm2"),
        *conv(r"out_layers\.3", "conv2"),
        *conv(r"skip_connection", "skip"),
    ))  # fmt: skip


def _attention(torch, ours, canonical):
    return within(torch, ours, (
        *norm(r"norm", "norm"),
        (r"qkv\.weight", "qkv.kernel", lambda array: np.einsum("oix->xio", canonical(array))),
        (r"qkv\.bias", "qkv.bias", canonical),
        (r"proj_out\.weight", "out.kernel", "oix->xio"),
        (r"proj_out\.bias", "out.bias", "o->o"),
    ))  # fmt: skip


def _canonical(settings, order, array, up=False):
    """The 3C rows of `qkv` as [queries, keys, values], each with its heads in order."""
    if order == "new":
        return array
    rows, *rest = array.shape
    heads = settings.num_heads(rows // 3, up)
    by_head = array.reshape(heads, 3, -1, *rest)
    return np.swapaxes(by_head, 0, 1).reshape(rows, *rest)


@functools.cache
def abstract_params(settings: ADMSettings) -> dict:
    """Shapes and dtypes of the network's parameters, as nested dicts without memory."""
    return Network(lambda rngs: ADMUNet(settings, rngs=rngs)).abstract["params"]


def load_adm(
    arrays: Mapping[str, np.ndarray], settings: ADMSettings, order: str, source: str = "the file"
) -> dict:
    """The parameters of an ADMUNet from a published state dict, float32.

    arrays  official name -> array, as `weights.formats.read_arrays` gives them
    source  name of the file in error messages

    Raises UserError when an entry is missing, unknown or of another shape; it names the published
    configurations that do fit.
    """
    shapes = _shapes(abstract_params(settings))
    rows = adm_table(settings, order)
    if different := differences(arrays, rows, shapes):
        listed = "; ".join(different[:MAX_LISTED])
        rest = len(different) - MAX_LISTED
        more = f"; and {rest} more" if rest > 0 else ""
        raise UserError(
            f"{source} does not match the requested network: {listed}{more}. {_advice(arrays)}"
        )
    return convert(arrays, rows, shapes, source=source)


def _advice(arrays):
    fits = functools.cache(functools.partial(_fits, arrays))
    fitting = [
        name for name, known in PUBLISHED.items()
        if fits(dataclasses.replace(known.settings, dropout=0.0), known.order)
    ]  # fmt: skip
    if fitting:
        return f"It fits {', '.join(fitting)}: give that name, or its settings."
    if "time_embed.0.weight" not in arrays:
        return f"It is of no guided diffusion: {described(arrays)}."
    return "No published configuration fits it either; give the settings that it was trained with."


def _fits(arrays, settings, order):
    first = arrays.get("time_embed.0.weight")  # detects another width without making a network
    if first is None or first.shape != (4 * settings.channels, settings.channels):
        return False
    shapes = _shapes(abstract_params(settings))
    return not differences(arrays, adm_table(settings, order), shapes)


def _shapes(tree):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
