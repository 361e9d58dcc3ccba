"""The distance of images as a network sees them: LPIPS's formula with unit weights."""

from collections.abc import Sequence

import jax.numpy as jnp

from aigc_jax.types import Array


def perceptual_distance(of_x: Sequence[Array], of_y: Sequence[Array]) -> Array:
    """The distance of every pair of images (Zhang et al. 2018, eq. 1, with all w = 1).

    Activations are scaled to unit length along channels; their squared differences are summed over
    channels and averaged over pixels and over stages.

    Args:
      of_x, of_y: a network's activations at its stages, (B, h, w, c) each, of both sets of images.

    Returns:
      (B,) float32 in [0, 4], and at most 2 for activations that are never negative. Gradients are
      finite, also where all activations of a pixel are 0.
    """
    distances = [_distance(x, y) for x, y in zip(of_x, of_y, strict=True)]
    return sum(distances) / len(distances)


def unit(x: Array) -> Array:
    """x / (|x| + 1e-10) along the last axis, float32; its gradient at 0 is finite."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x**2, -1, keepdims=True)
    # The root of 0 has no derivative; x is 0 there anyway.
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / (jnp.where(square > 0, norm, 0) + 1e-10)


def _distance(x: Array, y: Array) -> Array:
    return jnp.mean(jnp.sum((unit(x) - unit(y)) ** 2, -1), (1, 2))
