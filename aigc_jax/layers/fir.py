"""Sizes changed and images smoothed by the filter (1, 3, 3, 1) along both axes, zeros around.

As in StyleGAN2 (Karras et al. 2020b), whose CUDA kernel this needs not: a few shifted sums. Its
cousins in `resample` mirror or repeat the border.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from aigc_jax.types import Array


def fir_up(x: Array) -> Array:
    """Twice the size, every pixel among its neighbours: (B, H, W, C) -> (B, 2H, 2W, C).

    Zeros between the pixels, then the filter with a sum of 4, which keeps the mean of an image.
    """
    return _both_axes(_up, x)


def fir_down(x: Array) -> Array:
    """Half the size, by the filter with a sum of 1: (B, 2H, 2W, C) -> (B, H, W, C)."""
    return _both_axes(_down, x)


def fir_blur(x: Array, padding: int, gain: float = 1.0) -> Array:
    """The filter with a sum of `gain`: (B, H, W, C) -> (B, H + 2 padding - 3, ..., C).

    With padding 2 for a 3x3 convolution of stride 2 to follow, with padding 1 (and a gain of 4) for
    one that has been transposed.
    """
    x = _padded(_padded(x, 1, padding), 2, padding)
    return _both_axes(lambda x, axis: _blur(x, axis, gain**0.5), x)


def _both_axes(function: Callable[[Array, int], Array], x: Array) -> Array:
    return function(function(x, 1), 2)


def _up(x: Array, axis: int) -> Array:
    n = x.shape[axis]
    padded = _padded(x, axis, 1)
    before, after = (lax.slice_in_dim(padded, i, i + n, axis=axis) for i in (0, 2))
    pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _down(x: Array, axis: int) -> Array:
    n = x.shape[axis]
    padded = _padded(x, axis, 1)
    a, b, c, d = (lax.slice_in_dim(padded, i, i + n - 1, 2, axis) for i in range(4))
    return 0.125 * (a + d) + 0.375 * (b + c)


def _blur(x: Array, axis: int, gain: float) -> Array:
    n = x.shape[axis] - 3
    a, b, c, d = (lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(4))
    return (0.125 * gain) * (a + d) + (0.375 * gain) * (b + c)


def _padded(x: Array, axis: int, size: int) -> Array:
    return jnp.pad(x, [(size, size) if i == axis else (0, 0) for i in range(x.ndim)])
