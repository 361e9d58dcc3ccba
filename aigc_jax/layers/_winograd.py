"""Convolutions by fewer products, and by one: forms of `_conv_forms` that cut an image into tiles.

Each heading names the geometries that its forms serve.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.layers._conv_forms import (
    Form,
    Geometry,
    Pair,
    dot,
    dot_last,
    dot_pixels,
    pad,
)
from aigc_jax.types import Array

Grid = Sequence[Sequence[Array]]


# ------------------------------------------- Winograd's minimal filtering (Lavin & Gray 2015)
#
# Two outputs in a row of a filter of r taps take r + 1 products: output @ ((kernel @ w) * (data @
# x)); in two dimensions each matrix acts on both axes, and the products are matrix products over
# the channels. F(2, 3) does the 3x3 convolution with 16 products for 36; F(2, 2) does the 2x2
# convolution with 9 for 16, and a 4x4 convolution of stride 2 is a 2x2 one of stride 1 on blocks
# of 2x2 pixels. The adjoint maps are the transposed matrices. None of these matrices amplifies
# rounding errors noticeably; those of larger tiles would.


class _Winograd(NamedTuple):
    data: np.ndarray
    kernel: np.ndarray
    output: np.ndarray


_F22 = _Winograd(
    data=np.array([[1, -1, 0], [0, 1, 0], [0, 1, -1]]),
    kernel=np.array([[1, 0], [1, 1], [0, 1]]),
    output=np.array([[1, 1, 0], [0, 1, -1]]),
)
_F23 = _Winograd(
    data=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    output=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)


def _combine(row: np.ndarray, arrays: Sequence[Array]) -> Array:
    return sum(float(c) * a for c, a in zip(row, arrays, strict=True) if c)


def _both_axes(matrix: np.ndarray, grid: Grid) -> Grid:
    """matrix @ grid @ matrix.T, unrolled: the entries of the grid are whole arrays."""
    rows = [[_combine(m, row) for m in matrix] for row in grid]
    columns = [[_combine(m, column) for m in matrix] for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


def _products(product: Callable[[Array, Array], Array], a: Grid, b: Grid) -> Grid:
    rows = zip(a, b, strict=True)
    return [[product(p, q) for p, q in zip(*row, strict=True)] for row in rows]


def _interleave(grid: Grid) -> Array:
    """A 2x2 grid of (B, t, s, O), the pixels of each parity -> (B, 2t, 2s, O)."""
    b, t, s, o = grid[0][0].shape
    return jnp.stack([jnp.stack(row, 3) for row in grid], 2).reshape(b, 2 * t, 2 * s, o)


def _parities(y: Array) -> Grid:
    return [[y[:, i::2, j::2] for j in range(2)] for i in range(2)]


def _pad_to(a: Array, size: Pair) -> Array:
    return jnp.pad(a, ((0, 0), (0, size[0] - a.shape[1]), (0, size[1] - a.shape[2]), (0, 0)))


def _count(size: Pair) -> Pair:
    return tuple(-(-n // 2) for n in size)


def _tiles_3x3(x: Array, before: Pair, count: Pair) -> Grid:
    """x (B, H, W, C) -> the 4x4 grid of inputs of each tile of 2x2 outputs, (B, *count, C).

    With `before` zeros above and to the left, and as many below and to the right as it takes.
    """
    sizes = zip(x.shape[1:3], before, count, strict=True)
    edges = [(0, 0, 0), *((p, 2 * n + 2 - p - size, 0) for size, p, n in sizes), (0, 0, 0)]
    x, (h, w) = lax.pad(x, jnp.zeros((), x.dtype), edges), (2 * n for n in count)
    return [[x[:, i : i + h : 2, j : j + w : 2] for j in range(4)] for i in range(4)]


def _convolve_3x3(
    product: Callable[[Array, Array], Array], x: Array, u: Grid, padding: Pair, size: Pair
) -> Array:
    """x by a transformed kernel, with zeros around: (B, *size, O)."""
    v = _both_axes(_F23.data, _tiles_3x3(x, padding, _count(size)))
    y = _interleave(_both_axes(_F23.output, _products(product, v, u)))
    return y[:, : size[0], : size[1]]


def _down_3x3(g: Geometry, x: Array, w: Array) -> Array:
    return _convolve_3x3(dot, x, _both_axes(_F23.kernel, w), g.padding, g.output)


def _up_3x3(g: Geometry, y: Array, w: Array) -> Array:
    # The transform of the mirrored kernel is that of the kernel, whose first and last rows and
    # columns change places: computed once for both maps.
    u = _both_axes(_F23.kernel, w)
    u = [[u[i][j] for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    return _convolve_3x3(dot_last, y, u, tuple(2 - p for p in g.padding), g.side)


def _pair_3x3(g: Geometry, y: Array, x: Array) -> Array:
    count = _count(g.output)
    m = _both_axes(_F23.output.T, _parities(_pad_to(y, tuple(2 * n for n in count))))
    u = _products(dot_pixels, m, _both_axes(_F23.data, _tiles_3x3(x, g.padding, count)))
    return jnp.stack([jnp.stack(row) for row in _both_axes(_F23.kernel.T, u)])


WINOGRAD_3X3 = Form(_down_3x3, _up_3x3, _pair_3x3)  # stride 1, padding up to 2


def _in_tiles(form: Form) -> Form:
    """A form for whole tiles of 2x2 outputs, made to serve every size: zeros below and right."""

    def sizes(g: Geometry) -> tuple[Pair, Pair]:
        tiles = [-(-n // (2 * s)) for n, s in zip(g.side, g.stride, strict=True)]
        side = tuple(2 * s * t for s, t in zip(g.stride, tiles, strict=True))
        return side, tuple(2 * t for t in tiles)

    def down(g: Geometry, x: Array, w: Array) -> Array:
        y = form.down(g, _pad_to(x, sizes(g)[0]), w)
        return y[:, : g.output[0], : g.output[1]]

    def up(g: Geometry, y: Array, w: Array) -> Array:
        x = form.up(g, _pad_to(y, sizes(g)[1]), w)
        return x[:, : g.side[0], : g.side[1]]

    def pair(g: Geometry, y: Array, x: Array) -> Array:
        side, output = sizes(g)
        return form.pair(g, _pad_to(y, output), _pad_to(x, side))

    return Form(down, up, pair)


def _column_pairs(x: Array) -> Array:
    """x (B, H, W, C) -> (B, H / 2 + 1, 2, W / 2 + 1, 2 C), of x with a border of zeros.

    Blocks of 2x2 pixels without moving data: the rows of a block stay apart, since to gather them
    in the last axis would be a six-dimensional transposition, which is slow.
    """
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return x.reshape(b, h // 2 + 1, 2, w // 2 + 1, 2 * c)


def _from_column_pairs(x: Array) -> Array:
    b, h, _, w, c = x.shape
    return x.reshape(b, 2 * h, 2 * w, c // 2)[:, 1:-1, 1:-1]


def _block_kernel(w: Array) -> Array:
    """(4, 4, C, O) -> (2, 2, 4 C, O), for blocks of 2x2 pixels."""
    c, o = w.shape[2:]
    return w.reshape(2, 2, 2, 2 * c, o).swapaxes(1, 2).reshape(2, 2, 4 * c, o)


def _from_block_kernel(u: Array) -> Array:
    c, o = u.shape[2] // 4, u.shape[3]
    return u.reshape(2, 2, 2, 2 * c, o).swapaxes(1, 2).reshape(4, 4, c, o)


def _tiles_4x4(x: Array) -> Grid:
    """x (B, 4t, 4s, C) -> the transformed 3x3 grid of blocks of each tile, (B, t, s, 4 C)."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    x = _column_pairs(x)
    blocks = [[x[:, i : i + h : 2, :, j : j + w : 2] for j in range(3)] for i in range(3)]
    blocks = _both_axes(_F22.data, blocks)
    return [[jnp.concatenate([v[:, :, 0], v[:, :, 1]], -1) for v in row] for row in blocks]


def _down_4x4(g: Geometry, x: Array, w: Array) -> Array:
    m = _products(dot, _tiles_4x4(x), _both_axes(_F22.kernel, _block_kernel(w)))
    return _interleave(_both_axes(_F22.output, m))


def _up_4x4(g: Geometry, y: Array, w: Array) -> Array:
    m = _both_axes(_F22.output.T, _parities(y))
    v = _products(dot_last, m, _both_axes(_F22.kernel, _block_kernel(w)))
    b, t, s, c = v[0][0].shape
    v = [[a.reshape(b, t, s, 2, c // 2) for a in row] for row in v]
    return _from_column_pairs(_add_tiles(_both_axes(_F22.data.T, v)).swapaxes(2, 3))


def _add_tiles(grid: Grid) -> Array:
    """Adjoint of cutting blocks (B, 2t + 1, 2s + 1, ...) into a 3x3 grid of (B, t, s, ...)."""

    def merge(first: Array, middle: Array, last: Array, axis: int) -> Array:
        even = _overlap(first, last, axis)
        both = jnp.stack([even, pad(middle, axis, 0, 1)], axis + 1)
        shape = [2 * n if i == axis else n for i, n in enumerate(even.shape)]
        return lax.slice_in_dim(both.reshape(shape), 0, shape[axis] - 1, axis=axis)

    return merge(*(merge(*row, axis=2) for row in grid), axis=1)


def _pair_4x4(g: Geometry, y: Array, x: Array) -> Array:
    m = _both_axes(_F22.output.T, _parities(y))
    u = _products(dot_pixels, m, _tiles_4x4(x))
    u = _both_axes(_F22.kernel.T, u)
    return _from_block_kernel(jnp.stack([jnp.stack(row) for row in u]))


WINOGRAD_4X4 = _in_tiles(Form(_down_4x4, _up_4x4, _pair_4x4))


# ----------------------------------- patches: 4x4 stride 2 of an image, as one matrix product
#
# With few channels the transforms above cost more than they save, and the patches are small.


def _patches(x: Array) -> Array:
    """x (B, 2h, 2w, C) -> (B, h, w, 16 C): what each output sees, in the kernel's order."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    x = _column_pairs(x)
    rows = [x[:, i : i + h, r] for i in range(2) for r in range(2)]
    return jnp.concatenate([row[:, :, j : j + w] for row in rows for j in range(2)], -1)


def _overlap(first: Array, second: Array, axis: int) -> Array:
    """Blocks that each make a first and a second block of the result, one place further."""
    return pad(first, axis, 0, 1) + pad(second, axis, 1, 0)


def _down_patches(g: Geometry, x: Array, w: Array) -> Array:
    return dot(_patches(x), w.reshape(-1, w.shape[-1]))


def _up_patches(g: Geometry, y: Array, w: Array) -> Array:
    b, h, width, _ = y.shape
    c = w.shape[2]
    blocks = dot_last(y, _block_kernel(w).reshape(16 * c, -1)).reshape(b, h, width, 2, 2, 4 * c)
    columns = _overlap(blocks[:, :, :, :, 0], blocks[:, :, :, :, 1], axis=2)
    x = _overlap(columns[:, :, :, 0], columns[:, :, :, 1], axis=1)
    return _from_column_pairs(x.reshape(b, h + 1, width + 1, 2, 2 * c).swapaxes(2, 3))


def _pair_patches(g: Geometry, y: Array, x: Array) -> Array:
    return dot_pixels(y, _patches(x)).reshape(4, 4, x.shape[-1], y.shape[-1])


PATCHES = _in_tiles(Form(_down_patches, _up_patches, _pair_patches))
