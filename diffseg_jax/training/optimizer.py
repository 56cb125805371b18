"""Optimizers and learning-rate schedules by name, with weight decay by group."""

import re

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.errors import choose


def cosine(peak_lr: float, steps: int, warmup_steps: int):
    """lr(t) = peak (1 + cos(pi t / steps)) / 2 for t updates already made; zero at the end."""
    return optax.cosine_decay_schedule(peak_lr, steps)


def cosine_after_warmup(peak_lr: float, steps: int, warmup_steps: int):
    """The peak during the warm-up, then (1 + cos(pi s)) / 2 of it, s from 0 to 1 at the end.

    As in MAE's recipe; computed as a squared sine, which keeps its digits near zero.
    """
    length = max(steps - warmup_steps, 1)

    def schedule(t):
        left = jnp.clip((steps - t) / length, 0.0, 1.0)
        return peak_lr * jnp.square(jnp.sin(left * (jnp.pi / 2)))

    return schedule


def cosine_to_trace(peak_lr: float, steps: int, warmup_steps: int, least: float = 1e-8):
    """lr(t) = least peak + (1 - least) peak (1 + cos(pi t / steps)) / 2, as in DDP's for depth.

    Computed as a squared sine, like `cosine_after_warmup`; the warm-up is part of the curve.
    """

    def schedule(t):
        left = jnp.clip((steps - t) / steps, 0.0, 1.0)
        return peak_lr * (least + (1 - least) * jnp.square(jnp.sin(left * (jnp.pi / 2))))

    return schedule


def polynomial(peak_lr: float, steps: int, warmup_steps: int, power: float = 1.0):
    """lr(t) = peak (1 - t / steps) ** power; the schedule of mmsegmentation's recipes.

    `optax.polynomial_schedule` rounds differently, so a resumed run would not be bit-identical.
    """
    return lambda t: peak_lr * (jnp.maximum(steps - t, 0) / steps) ** power


def constant(peak_lr: float, steps: int, warmup_steps: int):
    """lr(t) = peak."""
    return optax.constant_schedule(peak_lr)


SCHEDULES = {
    "cosine": cosine, "cosine_after_warmup": cosine_after_warmup,
    "cosine_to_trace": cosine_to_trace, "polynomial": polynomial, "constant": constant,
}  # fmt: skip


def make_schedule(name: str, peak_lr: float, steps: int, warmup_steps: int, warmup_ratio: float):
    """The named schedule; while t < warmup_steps it is multiplied by a line from the ratio to 1.

    The line is warmup_ratio + (1 - warmup_ratio) t / warmup_steps; it multiplies the running value.
    Raises UserError for an unknown name.
    """
    base = choose(SCHEDULES, name, "schedule")(peak_lr, steps, warmup_steps)
    if not warmup_steps:
        return base

    def schedule(t):
        line = warmup_ratio + (1 - warmup_ratio) * jnp.minimum(t / warmup_steps, 1.0)
        return base(t) * line

    return schedule


def adam(b1, b2, epsilon, decay):
    """Adam; weight decay joins the gradient, as in PyTorch's Adam."""
    return optax.chain(decay, optax.scale_by_adam(b1, b2, epsilon))


def adamw(b1, b2, epsilon, decay):
    """Adam; weight decay joins the update (Loshchilov and Hutter, 2019)."""
    return optax.chain(optax.scale_by_adam(b1, b2, epsilon), decay)


def sgd(b1, b2, epsilon, decay):
    """Gradient descent with momentum b1; weight decay joins the gradient."""
    return optax.chain(decay, optax.trace(b1))


# optax.adamw nests its state differently, so checkpoints of earlier versions would not resume.
OPTIMIZERS = {"adam": adam, "adamw": adamw, "sgd": sgd}


def make_optimizer(
    name: str, schedule, *, b1: float, b2: float, epsilon: float, weight_decay: float,
    no_decay: tuple[str, ...], clip_norm: float,
) -> optax.GradientTransformation:  # fmt: skip
    """The named optimizer.

    weight_decay  applied to every parameter in whose dotted path no pattern of `no_decay` (regular
                  expressions) is found
    clip_norm     global L2 norm to which gradients are clipped first; 0 = off

    Raises UserError for an unknown name.
    """
    mask = lambda params: decayed(params, no_decay)
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    core = choose(OPTIMIZERS, name, "optimizer")(b1, b2, epsilon, decay)
    return optax.chain(clip, core, scale_by_rate(schedule))


def scale_by_rate(schedule) -> optax.GradientTransformationExtraArgs:
    """As `optax.scale_by_learning_rate`, with the rate that `update` is given instead, if any.

    A compiled step that is given the rate does not depend on the schedule, nor on its length.
    """

    def update(updates, state, params=None, *, rate=None, **_):
        given = schedule if rate is None else lambda count: rate
        return optax.scale_by_learning_rate(given).update(updates, state, params)

    init = optax.scale_by_learning_rate(schedule).init
    return optax.GradientTransformationExtraArgs(init, update)


def decayed(params: dict, no_decay: tuple[str, ...]) -> dict:
    """Whether each parameter is decayed: its dotted path holds no match of the patterns."""

    def keep(path, _):
        dotted = ".".join(str(entry.key) for entry in path)
        return not any(re.search(pattern, dotted) for pattern in no_decay)

    return jax.tree_util.tree_map_with_path(keep, params)
