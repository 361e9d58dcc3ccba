"""Sizes changed by binomial filters, which hardly alias (Zhang 2019)."""

import jax.numpy as jnp

from aigc_jax.types import Array


def blur_down(x: Array) -> Array:
    """Half the size: (1, 2, 1) / 4 along both axes around every second pixel, borders mirrored.

    x (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C).
    """
    for axis in (1, 2):
        n = x.shape[axis]
        pad = [(0, 0)] * 4
        pad[axis] = (1, 1)
        padded = jnp.pad(x, pad, "reflect")
        before, at, after = (_take(padded, axis, slice(i, i + n, 2)) for i in range(3))
        x = (before + 2 * at + after) / 4
    return x


def blur_up(x: Array) -> Array:
    """Twice the size: (1, 3, 3, 1) / 4 along both axes, borders repeated; bilinear interpolation.

    x (B, H, W, C) -> (B, 2 H, 2 W, C).
    """
    for axis in (1, 2):
        n = x.shape[axis]
        pad = [(0, 0)] * 4
        pad[axis] = (1, 1)
        padded = jnp.pad(x, pad, "edge")
        before, after = (_take(padded, axis, slice(i, i + n)) for i in (0, 2))
        pairs = jnp.stack([3 * x + before, 3 * x + after], axis + 1) / 4
        x = pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def _take(x: Array, axis: int, part: slice) -> Array:
    return x[(slice(None),) * axis + (part,)]
