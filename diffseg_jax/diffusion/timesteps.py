"""Choice of the timesteps to train on: uniform, or more often where the loss is large.

The state is a dict of arrays that belongs to the training state; {} is the uniform sampler. In a
jitted step `update` sees t and losses of the global batch, including those of other hosts, so every
host has the same state.
"""

import jax
import jax.numpy as jnp

from diffseg_jax.diffusion.process import check_timesteps
from diffseg_jax.errors import require_known

TIMESTEP_SAMPLERS = ("uniform", "loss_second_moment")
HISTORY = 10  # losses stored for each t
UNIFORM_SHARE = 0.001  # share of uniform draws, so that every t is visited


def start(name: str, steps: int) -> dict[str, jax.Array]:
    """The initial state: {}, or losses f32[T, 10] and counts i32[T] of the losses so far.

    Raises UserError for a name that is not in TIMESTEP_SAMPLERS.
    """
    require_known(name, TIMESTEP_SAMPLERS, "timestep sampler")
    if name == "uniform":
        return {}
    losses = jnp.zeros((steps, HISTORY), jnp.float32)
    return {"losses": losses, "counts": jnp.zeros(steps, jnp.int32)}


def probabilities(state: dict[str, jax.Array], steps: int) -> jax.Array:
    """The probability of each t, f[T] in the dtype of the losses; the sum is 1.

    Proportional to sqrt(mean(loss^2)) of the last ten losses, once every t has ten: Nichol and
    Dhariwal (2021), equation 18. Until then, or if all losses are 0, uniform.
    """
    if not state:
        return jnp.full(steps, 1 / steps, jnp.float32)
    size = jnp.sqrt(jnp.mean(jnp.square(state["losses"]), axis=1))
    total = jnp.sum(size)
    ready = jnp.all(state["counts"] >= HISTORY) & (total > 0)
    share = size / jnp.where(ready, total, 1)
    mixed = (1 - UNIFORM_SHARE) * share + UNIFORM_SHARE / steps
    return jnp.where(ready, mixed, 1 / steps)


def draw(state: dict[str, jax.Array], steps: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(t i32[], weight f32[]) for one image; vmap it over keys for a batch.

    weight   1 / (T p_t), so that weight * loss has the same expectation as loss at uniform t
    """
    if not state:
        return jax.random.randint(key, (), 0, steps, jnp.int32), jnp.float32(1)
    p = probabilities(state, steps)
    t = jax.random.categorical(key, jnp.log(p)).astype(jnp.int32)
    return t, (1 / (steps * p[t])).astype(jnp.float32)


def update(state: dict[str, jax.Array], t: jax.Array, loss: jax.Array) -> dict[str, jax.Array]:
    """The state after a batch of unweighted losses, in order; t i32[B] may repeat, loss f32[B].

    Losses that are not finite are skipped; one of them would make every probability NaN.
    """
    if not state:
        return state

    def remember(state, pair):
        t, loss = pair
        slot, finite = state["counts"][t] % HISTORY, jnp.isfinite(loss)  # the oldest is replaced
        value = jnp.where(finite, loss, state["losses"][t, slot])
        losses = state["losses"].at[t, slot].set(value.astype(state["losses"].dtype))
        return {"losses": losses, "counts": state["counts"].at[t].add(finite)}, None

    t = check_timesteps(t, len(state["counts"]))
    return jax.lax.scan(remember, state, (t, jnp.asarray(loss)))[0]
