"""Sums over a window whose weights belong to pairs of pixels: each is kept once and used twice.

Three maps that are each other's derivatives, so that those of every order (in reverse mode) are as
fast. Images lie as rows of planes, (B, H, K, W): the rows of all K that a window meets fit the
nearest cache, and the last axis fills the processor's lanes. Weights of the pairs (i, i + s), s one
of each two opposite shifts of the window, lie by their first pixel with a frame of radius r around
the image that pairs with one end inside reach: (S, B, H + r, W + 2 r). Nothing gathers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.types import Array

Shift = tuple[int, int]


def half_window(window: int) -> list[Shift]:
    """One shift (down, right) of each pair s, -s of an odd window: S of them."""
    side = range(-(window // 2), window // 2 + 1)
    return [(y, x) for y in side for x in side if (y, x) > (0, 0)]


def inside(height: int, width: int, window: int) -> np.ndarray:
    """(S, 1, H + r, W + 2 r) float32: 1 for pairs of which both pixels are in the image, else 0."""
    r = window // 2
    frame = np.pad(np.ones((height, width), np.float32), ((r, r), (2 * r, 2 * r)))
    rows, columns = height + r, width + 2 * r
    second = [frame[y : y + rows, r + x : r + x + columns] for y, x in half_window(window)]
    first = frame[:rows, r : r + columns]
    return np.stack([first * x for x in second])[:, None]


@jax.custom_vjp
def pair_sums(weights: Array, x: Array) -> Array:
    """Each pixel's weighted sum of the others in its window: a symmetric matrix times x.

    Args:
      weights: (S, B or 1, H + r, W + 2 r).
      x: (B, H, K, W).

    Returns:
      (B, H, K, W).
    """
    size, height, labels, width = x.shape
    r = weights.shape[2] - height
    framed, total = _framed(x, r, r), 0.0

    def of_pairs(s: int, top: int, left: int) -> Array:
        start = s, 0, r + top, r + left
        end = s + 1, weights.shape[1], start[2] + height, start[3] + width
        return lax.slice(weights, start, end).reshape(-1, height, 1, width)

    def others(down: int, right: int) -> Array:
        start = 0, r + down, 0, r + right
        return lax.slice(framed, start, (size, start[1] + height, labels, start[3] + width))

    for s, (y, z) in enumerate(half_window(2 * r + 1)):
        total += of_pairs(s, 0, 0) * others(y, z) + of_pairs(s, -y, -z) * others(-y, -z)
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pair_products(x: Array, y: Array, window: int) -> Array:
    """The sum over K of x_i y_j + x_j y_i: (S, B, H + r, W + 2 r), for x and y (B, H, K, W)."""
    return _for_pairs(lambda x_i, x_j, y_i, y_j: x_i * y_j + x_j * y_i, (x, y), window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def pair_distances(x: Array, window: int) -> Array:
    """The sum over K of (x_i - x_j)^2, 0 unless both are inside: as `pair_products`."""
    _, height, _, width = x.shape
    squares = _for_pairs(lambda x_i, x_j: (x_i - x_j) ** 2, (x,), window)
    return squares * inside(height, width, window)


def _sums_backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    weights, x = kept
    products = pair_products(x, g, 2 * (weights.shape[2] - x.shape[1]) + 1)
    if weights.shape[1] == 1:
        products = products.sum(1, keepdims=True)
    return products, pair_sums(weights, g)


def _products_backward(window: int, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, y = kept
    return pair_sums(g, y), pair_sums(g, x)


def _distances_backward(window: int, x: Array, g: Array) -> tuple[Array]:
    count = pair_sums(g, jnp.ones_like(x[:, :, :1]))
    return (2 * (count * x - pair_sums(g, x)),)


pair_sums.defvjp(lambda weights, x: (pair_sums(weights, x), (weights, x)), _sums_backward)
pair_products.defvjp(lambda x, y, w: (pair_products(x, y, w), (x, y)), _products_backward)
pair_distances.defvjp(lambda x, w: (pair_distances(x, w), x), _distances_backward)


def _for_pairs(function: Callable, arrays: tuple[Array, ...], window: int) -> Array:
    """The sum over K of function(x_i, x_j, y_i, y_j, ...), a shift at a time."""
    size, height, labels, width = arrays[0].shape
    r, count = window // 2, window**2 // 2
    framed = [_framed(x, r, 2 * r) for x in arrays]

    def plane(x: Array, k: int, y: Array | int, z: Array | int) -> Array:
        return lax.dynamic_slice(x, (0, y, k, r + z), (size, height + r, 1, width + 2 * r))[:, :, 0]

    def both(_: None, number: Array) -> tuple[None, Array]:
        place = number + count + 1  # in the whole window, as `half_window` goes through it
        ends = (0, 0), (place // window - r, place % window - r)
        parts = ([plane(x, k, *end) for x in framed for end in ends] for k in range(labels))
        return None, sum(function(*part) for part in parts)

    return lax.scan(both, None, lax.iota(jnp.int32, count))[1]


def _framed(x: Array, rows: int, columns: int) -> Array:
    """With zeros around it; laid down, else each of its many uses would frame it anew."""
    # Not jnp.pad: constants in these maps, even its zero, break their second derivatives in a
    # lax.scan (jax 0.7 to 0.10).
    frame = (0, 0, 0), (rows, rows, 0), (0, 0, 0), (columns, columns, 0)
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), frame))
