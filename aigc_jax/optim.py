"""Optimizers, schedules and the moving average of weights, from a config."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.types import Array

_SCHEDULES = ("constant", "cosine", "linear")
_OPTIMIZERS = ("adabelief", "adam", "adamw", "lion", "rmsprop", "sgd")


def schedule(config: ConfigDict, num_steps: int) -> optax.Schedule | float:
    """The learning rate by step: warm-up from 0, then `config.schedule` down to `config.end` of it.

    The first `config.hold`, a share of the steps, keep the full rate. The way down ends after
    `config.decay_steps` steps, 0: with the last one.
    """
    if config.schedule not in _SCHEDULES:
        name = config.schedule
        raise UserError(f"Unknown schedule {name!r}.{did_you_mean(name, _SCHEDULES)}")
    if config.schedule == "constant" and not config.warmup_steps:
        return config.lr
    num_steps, end = config.get("decay_steps", 0) or num_steps, config.get("end", 0.0)
    held = max(config.warmup_steps, round(config.get("hold", 0.0) * num_steps))
    steps = max(1, num_steps - held)
    main = {
        "constant": optax.constant_schedule(config.lr),
        "cosine": optax.cosine_decay_schedule(config.lr, steps, end),
        "linear": optax.linear_schedule(config.lr, end * config.lr, steps),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    whole = optax.constant_schedule(config.lr)
    return optax.join_schedules([warmup, whole, main], [config.warmup_steps, held])


def optimizer(config: ConfigDict, num_steps: int, **overrides: Any) -> optax.GradientTransformation:
    """The optax optimizer `config.name` with those of the config's fields that it takes.

    Args:
      config: the `optimizer` section of a config.
      num_steps: how many updates the schedule spans.
      **overrides: fields of the section to replace, for one of several networks; None keeps.
    """
    config = ConfigDict(config.to_dict() | {k: v for k, v in overrides.items() if v is not None})
    if config.name not in _OPTIMIZERS:
        raise UserError(
            f"Unknown optimizer {config.name!r}.{did_you_mean(config.name, _OPTIMIZERS)}"
        )
    make = getattr(optax, config.name)
    takes = inspect.signature(make).parameters
    fields = {k: config[k] for k in ("b1", "b2", "eps", "weight_decay") if k in takes}
    rate, last_b2 = schedule(config, num_steps), config.get("b2_end")
    if last_b2 is None:
        return make(rate, **fields)
    if "b2" not in fields:
        raise UserError(f"config.optimizer.b2_end: {config.name} has no b2; leave it out.")
    steps = config.get("decay_steps", 0) or num_steps
    fields["b2"] = lambda count: annealed(count, config.b2, last_b2, steps)
    return optax.inject_hyperparams(make)(rate, **fields)


def annealed(step: Array, first: float, last: float, steps: int) -> Array:
    """From `first` to `last` along half a cosine of so many steps, and `last` from then on."""
    share = jnp.minimum(step.astype(jnp.float32) / steps, 1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


def update(
    tx: optax.GradientTransformation,
    grads: Any,
    opt: Any,
    params: Any,
    scale: Array | None = None,
) -> tuple[Any, Any]:
    """One optimizer step, `scale` times as long: (new parameters, new optimizer state)."""
    updates, opt = tx.update(grads, opt, params)
    if scale is not None:
        updates = jax.tree.map(lambda x: x * scale.astype(x.dtype), updates)
    return optax.apply_updates(params, updates), opt


def averaged(
    average: Any, new: Any, step: Array, batch_size: int, half_life: float, ramp: float
) -> Any:
    """`ema` after a step of so many images, `step` of them having gone before; without one None."""
    if average is None:
        return None
    seen = step.astype(jnp.float32) * batch_size
    return ema(average, new, seen, batch_size, half_life, ramp)


def ema(average: Any, new: Any, seen: Array, batch_size: int, half_life: float, ramp: float) -> Any:
    """The moving average after one more step (Karras et al. 2022, appendix F.2).

    Args:
      seen: images seen before this step, a scalar.
      half_life: in images, after which an old weight counts half.
      ramp: early on the half-life is at most this share of the images seen.
    """
    half_life = jnp.minimum(half_life, jnp.maximum(seen * ramp, 1e-8)) if ramp else half_life
    decay = 0.5 ** (batch_size / half_life)
    return jax.tree.map(lambda old, x: x + decay * (old - x), average, new)
