"""What the networks of DDP share for all tasks: an image encoder and a decoder of noisy maps.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), figure 2 and section 3.3.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.mlp import by_rows
from diffseg_jax.models import convnext, swin

MIN_SIDE = 32  # pixels; the backbones' last map of a smaller image would be empty


class DenseNetwork(nnx.Module):
    """The methods that a loss and a sampler combine; `decode` is of the task.

    A subclass sets `settings`, `dtype`, `transform`, `time`, `decoder`, and what `encode` runs.
    """

    def encode(self, image: jax.Array, keys=None) -> tuple[jax.Array, dict]:
        """Merged features f[B,h,w,E] of images f32[B,H,W,3], and a dict of named features.

        h, w are H/4, W/4, rounded up by Swin and down by ConvNeXt; H, W are 32 or more. keys [B]
        turn drop path on.
        """
        maps, features = self.backbone(image.astype(self.dtype), keys)
        merged, named = self.neck(maps)
        return merged, {**features, **named, "merged": merged}

    def project_features(self, x: jax.Array) -> jax.Array:
        """The features' part of the decoder's input, f[B,h,w,E] -> f32[B,h,w,E]."""
        kernel, bias = self.transform.kernel[...], self.transform.bias[...]
        product = by_rows(x, kernel[: x.shape[-1]].astype(x.dtype))
        return product.astype(jnp.float32) + bias

    def project_codes(self, codes: jax.Array) -> jax.Array:
        """The part of codes or noisy maps, f32[..., n] -> f32[..., E]; linear."""
        kernel = self.transform.kernel[-self.settings.code_width :]
        return by_rows(codes, kernel)

    def constants(self, x: jax.Array) -> jax.Array:
        """What the decoder's layers know of the cells of features f[B,h,w,E], see `MapDecoder`."""
        return self.decoder.constants(x.shape[1:3])

    def modulations(self, level: jax.Array) -> jax.Array:
        """Scale and shift of every layer for noise levels f32[B]: f32[B, layers, 2E]."""
        return self.decoder.modulations(self.time(level))


def combination(settings, features: int | None = None, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The 1x1 convolution of features (as many as E by default) beside noisy maps."""
    return nnx.Linear(
        (features or settings.width) + settings.code_width, settings.width, rngs=rngs,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )  # fmt: skip


def make_backbone(settings, *, dtype, remat, rngs) -> nnx.Module:
    """The image encoder that the settings name."""
    shared = dict(
        channels=settings.channels, depths=settings.depths, drop_path=settings.drop_path,
        dtype=dtype, remat=remat, rngs=rngs,
    )  # fmt: skip
    if settings.backbone == "swin":
        return swin.Swin(heads=settings.heads, window=settings.window, **shared)
    return convnext.ConvNeXt(down_epsilon=settings.down_epsilon, **shared)


def problem_of_sizes(settings) -> str:
    """Why encoder and decoder cannot have these sizes, with advice, or an empty string."""
    if settings.backbone == "swin":
        found = swin.problem(settings.channels, settings.depths, settings.heads, settings.window)
        if found:
            return found
    elif settings.heads or settings.window:
        return (
            f"heads is {settings.heads} and window {settings.window}, which only a Swin has. For "
            "ConvNeXt give () and 0."
        )
    width = settings.width
    for name, divisor in (("groups", settings.groups), ("decoder_heads", settings.decoder_heads)):
        if width % divisor:
            return (
                f"width is {width}, which {divisor} {name} cannot share evenly. "
                f"Try --config.model.width={-(-width // divisor) * divisor}, or "
                f"--config.model.{name}={math.gcd(width, divisor)}."
            )
    return "" if width % 4 == 0 else f"width is {width}; take a multiple of 4."
