"""What Inception computes between its biases, each in the form that its platform wants.

GPU and TPU get XLA's own convolutions and windows. XLA on CPU is best at matrix products, and
some of these cost it a multiple of what the products do; those are written out here.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.types import Array, PyTree


def conv(
    x: Array,
    kernel: Array,
    stride: int,
    padding: str,
    precision: lax.Precision,
    winograd: bool = False,
) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C, O) -> (B, h, w, O); padding "SAME" or "VALID".

    `winograd`: on CPU with the fewest products, for 3x3 of stride 1; as exact, longer to compile.
    """
    dot = functools.partial(lax.dot_general, precision=precision)
    if kernel.shape[:2] == (1, 1):
        return _dot(dot, x, kernel[0, 0])

    def plain(x: Array, kernel: Array) -> Array:
        layout, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=layout, precision=precision
        )

    if winograd:
        on_cpu = functools.partial(_winograd, dot, padding)
    else:
        on_cpu = plain if stride == 1 else functools.partial(_patches, dot, stride)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def in_pairs(function: Callable[[Array], PyTree], x: Array) -> PyTree:
    """`function` of a batch; on CPU of two images at a time, whose arrays stay in the cache."""

    def on_cpu(x: Array) -> PyTree:
        few = 1 if len(x) % 2 else 2
        y = lax.map(function, x.reshape(-1, few, *x.shape[1:]))
        return jax.tree.map(lambda y: lax.collapse(y, 0, 2), y)

    return lax.platform_dependent(x, cpu=on_cpu, default=function)


def max_3x3(x: Array, stride: int = 1) -> Array:
    """Maxima of 3x3 pixels: around each pixel, or, two apart, of those without padding."""
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    padding = "SAME" if stride == 1 else "VALID"

    def on_cpu(x: Array) -> Array:
        x = _pad(x, -jnp.inf) if stride == 1 else x
        for axis in (1, 2):
            x = functools.reduce(jnp.maximum, _taps(x, axis, 3, stride))
        return x

    def plain(x: Array) -> Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)

    return lax.platform_dependent(x, cpu=on_cpu, default=plain)


def mean_3x3(x: Array) -> Array:
    """Means of the 3x3 pixels around each, of those that are in the image."""
    total = _pad(x)
    for axis in (1, 2):
        total = sum(_taps(total, axis, 3))
    rows, columns = (np.convolve(np.ones(n), np.ones(3))[1:-1] for n in x.shape[1:3])
    return total / jnp.asarray(np.outer(rows, columns)[..., None], x.dtype)[None]


def _dot(dot: Callable, x: Array, kernel: Array) -> Array:
    """(..., C), (C, O) -> (..., O)."""
    return dot(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _pad(x: Array, value: float = 0.0) -> Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _taps(x: Array, axis: int, kernel: int, stride: int = 1) -> list[Array]:
    """What each tap of a kernel along an axis sees, of as many outputs as there are."""
    reach = x.shape[axis] - kernel + 1
    return [lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(kernel)]


def _patches(dot: Callable, stride: int, x: Array, kernel: Array) -> Array:
    """Without padding: one product of all that each output sees."""
    rows = _taps(x, 1, kernel.shape[0], stride)
    patches = [tap for row in rows for tap in _taps(row, 2, kernel.shape[1], stride)]
    return _dot(dot, jnp.concatenate(patches, -1), kernel.reshape(-1, kernel.shape[-1]))


# Winograd's minimal filter F(2, 3): two outputs in a row of three taps from four products for six,
# output @ ((weight @ w) * (data @ x)); in two dimensions each matrix acts on both axes, and the
# products, 16 for 36, are matrix products over channels (Lavin & Gray 2015, section 4.1).
_DATA = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_WEIGHT = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])

Grid = Sequence[Sequence[Array]]


def _winograd(dot: Callable, padding: str, x: Array, kernel: Array) -> Array:
    x = _pad(x) if padding == "SAME" else x
    height, width = x.shape[1] - 2, x.shape[2] - 2
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    tiles = _both_axes(_DATA, [_taps(row, 2, 4, 2) for row in _taps(x, 1, 4, 2)])
    filters = _both_axes(_WEIGHT, kernel)
    products = [
        [_dot(dot, v, u) for v, u in zip(*rows, strict=True)]
        for rows in zip(tiles, filters, strict=True)
    ]
    y = _both_axes(_OUTPUT, products)
    b, h, w, features = y[0][0].shape
    y = jnp.stack([jnp.stack(row, 3) for row in y], 2).reshape(b, 2 * h, 2 * w, features)
    return y[:, :height, :width]


def _both_axes(matrix: np.ndarray, grid: Grid) -> Grid:
    """matrix @ grid @ matrix.T, unrolled: the entries of the grid are whole arrays."""
    columns = [[_combine(m, column) for m in matrix] for column in zip(*grid, strict=True)]
    return [[_combine(m, row) for m in matrix] for row in zip(*columns, strict=True)]


def _combine(row: np.ndarray, arrays: Sequence[Array]) -> Array:
    return sum(float(c) * a for c, a in zip(row, arrays, strict=True) if c)
