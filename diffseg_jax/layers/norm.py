"""Normalisation: PyTorch's batch norm, a fast group norm, and any norm in float32."""

import jax
import jax.numpy as jnp
from flax import nnx


class BatchNorm(nnx.Module):
    """Normalises over all axes but the last; running averages move by `1 - momentum` per step.

    x    f[..., C], such as [B, H, W, C]; any float type, statistics in float32
    out  f[..., C] in the dtype of x

    Training divides by the biased batch variance, but the running variance uses the unbiased one
    (n / (n - 1)), as PyTorch does and flax's BatchNorm does not. Under `jax.jit` the statistics are
    those of the global batch, however it is sharded.
    """

    def __init__(self, channels: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None):
        """Called by `nnx.view(model, use_running_average=True)`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._update(x.astype(jnp.float32))
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * factor
        return (x.astype(jnp.float32) * factor + shift).astype(x.dtype)

    def _update(self, x):
        count = x.size // x.shape[-1]
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(x, axes)
        var = jnp.mean(jnp.square(x - mean), axes)
        unbiased = jax.lax.stop_gradient(var) * (count / max(count - 1, 1))
        keep = self.momentum
        self.mean[...] = keep * self.mean[...] + (1 - keep) * jax.lax.stop_gradient(mean)
        self.var[...] = keep * self.var[...] + (1 - keep) * unbiased
        return mean, var


class GroupNorm(nnx.Module):
    """Normalises over the pixels and the channels of a group in each image (Wu and He, 2018).

    x    f[B, H, W, C], C divisible by groups; statistics in float32, the variance from centred x
    out  f[B, H, W, C] in the dtype of x

    Sums run over pixels first and over the channels of a group last, so that no pass needs x with
    its channels split, as those of nnx.GroupNorm do (`bench_forms.py --form=group_norm`).
    """

    def __init__(self, channels: int, groups: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups = groups
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        centre = self._average(jnp.mean(y, (1, 2)))
        var = self._average(jnp.mean(jnp.square(y - centre[:, None, None]), (1, 2)))
        factor = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)  # [B, C]
        shift = self.bias[...] - centre * factor
        return (y * factor[:, None, None] + shift[:, None, None]).astype(x.dtype)

    def _average(self, values):
        """f32[B, C] with each value replaced by the mean of its group."""
        grouped = values.reshape(len(values), self.groups, -1)
        mean = jnp.mean(grouped, 2, keepdims=True)
        return jnp.broadcast_to(mean, grouped.shape).reshape(values.shape)


def in_float32(norm: nnx.Module, x: jax.Array) -> jax.Array:
    """The norm of x, computed in float32 and returned in the dtype of x."""
    return norm(x.astype(jnp.float32)).astype(x.dtype)
