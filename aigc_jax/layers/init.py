"""First weights that several networks share."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.types import Array

Initializer = jax.nn.initializers.Initializer


def scaled_normal(deviation: float) -> Initializer:
    """N(0, deviation^2); for 0 Glorot's normal weights times 0.02, as CUT's published code."""
    if deviation:
        return nn.initializers.normal(deviation)
    return nn.initializers.variance_scaling(0.02**2, "fan_avg", "normal")


def around_one(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """N(1, 0.02^2), the scales of batch norm in DCGAN and what follows it."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)
