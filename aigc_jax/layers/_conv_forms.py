"""Ways to compute a convolution, its adjoint in the input and its adjoint in the kernel.

`PLAIN` is XLA's own convolution and serves every geometry on every platform. The others are for
XLA on CPU: `CANONICAL` serves every geometry without groups, each other those that its heading
names. Arrays are NHWC, kernels HWIO.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.types import Array

Pair = tuple[int, int]
Grid = Sequence[Sequence[Array]]


class Geometry(NamedTuple):
    """What is static in a convolution, besides its numbers of channels."""

    side: Pair  # height and width of the input
    kernel: Pair
    stride: Pair
    padding: Pair  # on both sides of the height, of the width
    groups: int = 1

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        sizes = zip(self.side, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)


class Form(NamedTuple):
    """One way to compute the three maps."""

    down: Callable[[Geometry, Array, Array], Array]
    up: Callable[[Geometry, Array, Array], Array]
    pair: Callable[[Geometry, Array, Array], Array]


def dot(a: Array, b: Array) -> Array:
    """(..., C), (C, O) -> (..., O)."""
    return lax.dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())))


# --------------------------------------------------------------------- plain: XLA's convolution


def _plain_down(g: Geometry, x: Array, w: Array) -> Array:
    padding, layout = [(p, p) for p in g.padding], ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, g.stride, padding, dimension_numbers=layout, feature_group_count=g.groups
    )


def _plain_up(g: Geometry, y: Array, w: Array) -> Array:
    x = jax.ShapeDtypeStruct((y.shape[0], *g.side, w.shape[2] * g.groups), y.dtype)
    return jax.linear_transpose(lambda x: _plain_down(g, x, w), x)(y)[0]


def _plain_pair(g: Geometry, y: Array, x: Array) -> Array:
    w = jax.ShapeDtypeStruct((*g.kernel, x.shape[-1] // g.groups, y.shape[-1]), y.dtype)
    return jax.linear_transpose(lambda w: _plain_down(g, x, w), w)(y)[0]


PLAIN = Form(_plain_down, _plain_up, _plain_pair)


# ------------------------------------------- canonical: the same, the adjoints in XLA's own order
#
# XLA on CPU is fast in the order NHWC, HWIO alone. It brings other convolutions to it, but not
# within control flow (scan, cond), where those of the plain adjoints take up to 200 times as long.


def _canonical(
    a: Array, b: Array, padding: list[Pair], lhs_dilation: Pair, rhs_dilation: Pair
) -> Array:
    return lax.conv_general_dilated(
        a,
        b,
        (1, 1),
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _canonical_up(g: Geometry, y: Array, w: Array) -> Array:
    sizes = zip(g.side, g.kernel, g.stride, g.padding, g.output, strict=True)
    padding = [(k - 1 - p, n - (m - 1) * s - 1 + p) for n, k, s, p, m in sizes]
    return _canonical(y, w[::-1, ::-1].swapaxes(2, 3), padding, g.stride, (1, 1))


def _canonical_pair(g: Geometry, y: Array, x: Array) -> Array:
    sizes = zip(g.side, g.kernel, g.stride, g.padding, g.output, strict=True)
    padding = [(p, (m - 1) * s + k - n - p) for n, k, s, p, m in sizes]
    # Channels as images, images as channels.
    x, y = x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)
    return _canonical(x, y, padding, (1, 1), g.stride).transpose(1, 2, 0, 3)


CANONICAL = Form(_plain_down, _canonical_up, _canonical_pair)


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


def _dot_last(m: Array, u: Array) -> Array:
    return lax.dot_general(m, u, (((m.ndim - 1,), (1,)), ((), ())))


def _dot_pixels(m: Array, v: Array) -> Array:
    """(pixels, O), (pixels, C) -> (C, O), written as XLA on CPU likes it best."""
    m, v = m.reshape(-1, m.shape[-1]), v.reshape(-1, v.shape[-1])
    return lax.dot_general(m, v, (((0,), (0,)), ((), ()))).T


def _interleave(grid: Grid) -> Array:
    """A 2x2 grid of (B, t, s, O), the pixels of each parity -> (B, 2t, 2s, O)."""
    b, t, s, o = grid[0][0].shape
    return jnp.stack([jnp.stack(row, 3) for row in grid], 2).reshape(b, 2 * t, 2 * s, o)


def _parities(y: Array) -> Grid:
    return [[y[:, i::2, j::2] for j in range(2)] for i in range(2)]


def _pad(a: Array, axis: int, before: int, after: int) -> Array:
    return jnp.pad(a, [(before, after) if i == axis else (0, 0) for i in range(a.ndim)])


def _pad_to(a: Array, size: Pair) -> Array:
    return jnp.pad(a, ((0, 0), (0, size[0] - a.shape[1]), (0, size[1] - a.shape[2]), (0, 0)))


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


def _tiles_3x3(x: Array) -> Grid:
    """x (B, 2t, 2s, C) -> the 4x4 grid of inputs of each tile of 2x2 outputs, (B, t, s, C)."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[x[:, i : i + h : 2, j : j + w : 2] for j in range(4)] for i in range(4)]


def _down_3x3(g: Geometry, x: Array, w: Array) -> Array:
    v, u = _both_axes(_F23.data, _tiles_3x3(x)), _both_axes(_F23.kernel, w)
    return _interleave(_both_axes(_F23.output, _products(dot, v, u)))


def _up_3x3(g: Geometry, y: Array, w: Array) -> Array:
    v, u = _both_axes(_F23.data, _tiles_3x3(y)), _both_axes(_F23.kernel, w[::-1, ::-1])
    return _interleave(_both_axes(_F23.output, _products(_dot_last, v, u)))


def _pair_3x3(g: Geometry, y: Array, x: Array) -> Array:
    m = _both_axes(_F23.output.T, _parities(y))
    u = _products(_dot_pixels, m, _both_axes(_F23.data, _tiles_3x3(x)))
    return jnp.stack([jnp.stack(row) for row in _both_axes(_F23.kernel.T, u)])


WINOGRAD_3X3 = _in_tiles(Form(_down_3x3, _up_3x3, _pair_3x3))


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
    v = _products(_dot_last, m, _both_axes(_F22.kernel, _block_kernel(w)))
    b, t, s, c = v[0][0].shape
    v = [[a.reshape(b, t, s, 2, c // 2) for a in row] for row in v]
    return _from_column_pairs(_add_tiles(_both_axes(_F22.data.T, v)).swapaxes(2, 3))


def _add_tiles(grid: Grid) -> Array:
    """Adjoint of cutting blocks (B, 2t + 1, 2s + 1, ...) into a 3x3 grid of (B, t, s, ...)."""

    def merge(first: Array, middle: Array, last: Array, axis: int) -> Array:
        even = _overlap(first, last, axis)
        both = jnp.stack([even, _pad(middle, axis, 0, 1)], axis + 1)
        shape = [2 * n if i == axis else n for i, n in enumerate(even.shape)]
        return lax.slice_in_dim(both.reshape(shape), 0, shape[axis] - 1, axis=axis)

    return merge(*(merge(*row, axis=2) for row in grid), axis=1)


def _pair_4x4(g: Geometry, y: Array, x: Array) -> Array:
    m = _both_axes(_F22.output.T, _parities(y))
    u = _products(_dot_pixels, m, _tiles_4x4(x))
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
    return _pad(first, axis, 0, 1) + _pad(second, axis, 1, 0)


def _down_patches(g: Geometry, x: Array, w: Array) -> Array:
    return dot(_patches(x), w.reshape(-1, w.shape[-1]))


def _up_patches(g: Geometry, y: Array, w: Array) -> Array:
    b, h, width, _ = y.shape
    c = w.shape[2]
    blocks = _dot_last(y, _block_kernel(w).reshape(16 * c, -1)).reshape(b, h, width, 2, 2, 4 * c)
    columns = _overlap(blocks[:, :, :, :, 0], blocks[:, :, :, :, 1], axis=2)
    x = _overlap(columns[:, :, :, 0], columns[:, :, :, 1], axis=1)
    return _from_column_pairs(x.reshape(b, h + 1, width + 1, 2, 2 * c).swapaxes(2, 3))


def _pair_patches(g: Geometry, y: Array, x: Array) -> Array:
    return _dot_pixels(y, _patches(x)).reshape(4, 4, x.shape[-1], y.shape[-1])


PATCHES = _in_tiles(Form(_down_patches, _up_patches, _pair_patches))


# ----------------------- slices: grouped convolutions, dense with a block-diagonal kernel a slice
#
# XLA on CPU runs each group apart, up to a hundred times slower than a few dense convolutions
# that multiply some zeros.


def _slices(g: Geometry, channels: int) -> tuple[Geometry, int]:
    """The dense geometry of a slice, and their number; 32 channels in a slice, or more."""
    want = max(1, channels // 32)
    return g._replace(groups=1), max(n for n in range(1, want + 1) if g.groups % n == 0)


def _each_slice(n: int, function: Callable[..., Array], *arrays: Array) -> Array:
    """The function of each of n slices of the arrays' last axes, joined."""
    slices = zip(*(jnp.split(a, n, -1) for a in arrays), strict=True)
    return jnp.concatenate([function(*parts) for parts in slices], -1)


def _block_diagonal(w: Array, groups: int) -> Array:
    """(kh, kw, c, groups * o) -> (kh, kw, groups * c, groups * o)."""
    kh, kw, c, o = w.shape
    diagonal = jnp.eye(groups, dtype=w.dtype).reshape(1, 1, groups, 1, groups, 1)
    return (w.reshape(kh, kw, 1, c, groups, -1) * diagonal).reshape(kh, kw, groups * c, o)


def _diagonal_blocks(w: Array, groups: int) -> Array:
    """Adjoint of `_block_diagonal`."""
    kh, kw, c, o = w.shape
    w = w.reshape(kh, kw, groups, c // groups, groups, o // groups)
    return jnp.einsum("hwgcgo->hwcgo", w).reshape(kh, kw, c // groups, o)


def _down_slices(g: Geometry, x: Array, w: Array) -> Array:
    dense, n = _slices(g, x.shape[-1])
    m = g.groups // n
    return _each_slice(n, lambda x, w: _plain_down(dense, x, _block_diagonal(w, m)), x, w)


def _up_slices(g: Geometry, y: Array, w: Array) -> Array:
    dense, n = _slices(g, w.shape[2] * g.groups)
    m = g.groups // n
    return _each_slice(n, lambda y, w: _canonical_up(dense, y, _block_diagonal(w, m)), y, w)


def _pair_slices(g: Geometry, y: Array, x: Array) -> Array:
    dense, n = _slices(g, x.shape[-1])
    m = g.groups // n
    return _each_slice(n, lambda y, x: _diagonal_blocks(_canonical_pair(dense, y, x), m), y, x)


SLICES = Form(_down_slices, _up_slices, _pair_slices)


# ------------------------------------------------ taps: depthwise convolutions, tap by tap


def _tap_views(g: Geometry, x: Array) -> list[list[Array]]:
    """What each tap of the kernel sees: a grid, as the kernel's, of (B, *g.output, C)."""
    (h, w), (p, q), (s, t) = g.output, g.padding, g.stride
    x = jnp.pad(x, ((0, 0), (p, p), (q, q), (0, 0)))

    def view(i: int, j: int) -> Array:
        return x[:, i : i + s * (h - 1) + 1 : s, j : j + t * (w - 1) + 1 : t]

    return [[view(i, j) for j in range(g.kernel[1])] for i in range(g.kernel[0])]


def _down_taps(g: Geometry, x: Array, w: Array) -> Array:
    views = _tap_views(g, x)
    return sum(v * w[None, None, i, j] for i, row in enumerate(views) for j, v in enumerate(row))


def _up_taps(g: Geometry, y: Array, w: Array) -> Array:
    x = jax.ShapeDtypeStruct((y.shape[0], *g.side, w.shape[-1]), y.dtype)
    return jax.linear_transpose(lambda x: _down_taps(g, x, w), x)(y)[0]


def _pair_taps(g: Geometry, y: Array, x: Array) -> Array:
    w = [[(v * y).sum((1, 2)).sum(0) for v in row] for row in _tap_views(g, x)]
    return jnp.stack([jnp.stack(row) for row in w])[:, :, None]


TAPS = Form(_down_taps, _up_taps, _pair_taps)


# --------------------------------- few features: stride 1 convolutions to an image, or to logits


def _pair_few_features(g: Geometry, y: Array, x: Array) -> Array:
    """The patches of y are small, those of x are not; seen from x, the taps are mirrored."""
    padding = tuple(k - 1 - p for k, p in zip(g.kernel, g.padding, strict=True))
    mirrored = g._replace(side=g.output, padding=padding)
    views = [view for row in _tap_views(mirrored, y) for view in row]
    w = _dot_pixels(jnp.concatenate(views[::-1], -1), x)
    return w.reshape(-1, *g.kernel, y.shape[-1]).transpose(1, 2, 0, 3)


FEW_FEATURES = Form(_plain_down, _canonical_up, _pair_few_features)
