"""Gradient penalties on a critic, a function from images (B, H, W, C) to logits (B, ...)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax.types import Array

Critic = Callable[[Array], Array]


def gradient_penalty(critic: Critic, real: Array, fake: Array, keys: Array) -> Array:
    """E (|grad D(x)| - 1)^2 on lines from real to fake images (Gulrajani et al. 2017, eq. 3).

    Args:
      keys: (B,) keys, one per example, for its place on the line.
    """
    t = jax.vmap(jax.random.uniform)(keys)[:, None, None, None]
    squared = _squared_gradient(critic, real + t * (fake - real))
    # The root's slope is infinite at 0, where a dead critic starts.
    return jnp.mean((jnp.sqrt(squared + 1e-12) - 1) ** 2)


def r1(critic: Critic, real: Array) -> Array:
    """E |grad D(x)|^2 / 2 on real images (Mescheder et al. 2018, eq. 9); weigh it by gamma."""
    return jnp.mean(_squared_gradient(critic, real)) / 2


def r2(critic: Critic, fake: Array) -> Array:
    """The same on generated images (Mescheder et al. 2018, eq. 10)."""
    return r1(critic, fake)


def weighted(
    critic: Critic, real: Array, fake: Array, keys: Array, weights: Mapping[str, float]
) -> tuple[Array | float, dict[str, Array]]:
    """The weighted sum of the penalties above, and each of them, unweighted, by name.

    Args:
      keys: (B,) keys, one per example; also used elsewhere, so they are folded first.
      weights: of `gradient_penalty`, `r1` and `r2`; 0 leaves one out, and its computation.
    """
    terms = {}
    if weights["gradient_penalty"]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        terms["gradient_penalty"] = gradient_penalty(critic, real, fake, keys)
    if weights["r1"]:
        terms["r1"] = r1(critic, real)
    if weights["r2"]:
        terms["r2"] = r2(critic, fake)
    return sum(weights[name] * term for name, term in terms.items()), terms


def _squared_gradient(critic: Critic, images: Array) -> Array:
    gradient = jax.grad(lambda x: jnp.sum(critic(x), dtype=jnp.float32))(images)
    return jnp.sum(gradient.astype(jnp.float32) ** 2, axis=(1, 2, 3))
