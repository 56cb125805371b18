"""One update of any system, as a pure function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.training.state import merge_params


def train_step(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    accumulate: int,
    ema: tuple[float, ...],
    state: dict,
    batch: dict,
    key: jax.Array,
    rate: jax.Array | None = None,
) -> tuple[dict, dict]:
    """One update. The same state, batch and key give the same result.

    loss_fn     (params, stats, batch, key) -> loss, (weight, stats, metrics); loss is a sum whose
                mean is loss / weight, metrics are sums over the same weight
    accumulate  number of parts of the batch, whose gradients are added up
    ema         rates r of the moving averages, average <- r average + (1 - r) params; () = off
    batch       arrays [B, ...]; the row number is added as "row" i32[B], so that draws per row do
                not depend on parts or devices, and the number of updates before as "step" i32[B]
    rate        learning rate f32[] of this update; None: that of the optimizer's own schedule
    Returns the new state and f32[] metrics: loss, grad_norm, finite (1 or 0), and those of loss_fn.
    """
    key = jax.random.fold_in(key, state["step"])  # A resumed run draws the same at each step.
    rows = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
    added = {"row": rows, "step": jnp.full(rows.shape, state["step"])}
    parts = jax.tree.map(lambda x: _in_parts(x, accumulate), {**batch, **added})

    def objective(params, stats, part):
        return loss_fn(merge_params(params, state["frozen"]), stats, part, key)

    def part_sums(stats, part):
        differentiate = jax.value_and_grad(objective, has_aux=True)
        (loss, (weight, stats, metrics)), grads = differentiate(state["params"], stats, part)
        return (grads, loss, weight, metrics), stats

    def add_part(carry, part):
        sums, stats = part_sums(carry[1], part)
        return (jax.tree.map(jnp.add, carry[0], sums), stats), None

    first = jax.tree.map(lambda x: x[0], parts)
    start = part_sums(state["stats"], first)
    rest = jax.tree.map(lambda x: x[1:], parts)
    (sums, stats), _ = jax.lax.scan(add_part, start, rest) if accumulate > 1 else (start, None)
    grads, loss, weight, metrics = sums

    weight = jnp.maximum(weight, 1.0)  # A batch may hold only ignored pixels.
    grads = jax.tree.map(lambda g: g / weight, grads)
    norm = optax.tree.norm(grads)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt = update(grads, state["opt"], state["params"], rate=rate)
    params = optax.apply_updates(state["params"], updates)
    averages = {
        str(rate): optax.incremental_update(params, state["ema"][str(rate)], 1 - rate)
        for rate in ema
    }
    metrics = {name: value / weight for name, value in metrics.items()}
    metrics |= {"loss": loss / weight, "grad_norm": norm}
    metrics["finite"] = jnp.isfinite(metrics["loss"] + norm).astype(jnp.float32)
    new = dict(state, step=state["step"] + 1, params=params, stats=stats, ema=averages, opt=opt)
    return new, metrics


def _in_parts(x, parts):
    """[B, ...] -> [parts, B / parts, ...] so that every device keeps its rows."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
