"""Ways to compute a convolution, its adjoint in the input and its adjoint in the kernel.

`PLAIN` is XLA's own convolution and serves every geometry on every platform. The others, and those
of `_winograd`, are for XLA on CPU: `CANONICAL` serves every geometry without groups, each other
those that its heading names. Arrays are NHWC, kernels HWIO.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax.types import Array

Pair = tuple[int, int]


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


def dot_last(m: Array, u: Array) -> Array:
    return lax.dot_general(m, u, (((m.ndim - 1,), (1,)), ((), ())))


def dot_pixels(m: Array, v: Array) -> Array:
    """(pixels, O), (pixels, C) -> (C, O), written as XLA on CPU likes it best."""
    m, v = m.reshape(-1, m.shape[-1]), v.reshape(-1, v.shape[-1])
    return lax.dot_general(m, v, (((0,), (0,)), ((), ()))).T


def pad(a: Array, axis: int, before: int, after: int) -> Array:
    return jnp.pad(a, [(before, after) if i == axis else (0, 0) for i in range(a.ndim)])


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


# -------------------------- tap products: strided convolutions, their weight gradient tap by tap


def _pair_tap_products(g: Geometry, y: Array, x: Array) -> Array:
    return jnp.stack([jnp.stack([dot_pixels(y, view) for view in row]) for row in _tap_views(g, x)])


TAP_PRODUCTS = Form(_plain_down, _canonical_up, _pair_tap_products)


# --------------------------- few channels, few features: stride 1 from an image, to one, to logits
#
# A convolution whose rows are done apart: what the taps of a row see stands side by side in the
# channels, so that XLA has a (kh, 1) convolution of kw times the channels, which fill its products.


def _rows(g: Geometry) -> Geometry:
    """Of the convolution that is left."""
    side, kernel = (g.side[0], g.output[1]), (g.kernel[0], 1)
    return g._replace(side=side, kernel=kernel, padding=(g.padding[0], 0))


def _row_kernel(w: Array) -> Array:
    kh, kw, c, o = w.shape
    return w.reshape(kh, 1, kw * c, o)


def _side_by_side(g: Geometry, x: Array) -> Array:
    """x (B, H, W, C) -> (B, H, w, kw C): what each column of the output sees in a row."""
    x, w = pad(x, 2, g.padding[1], g.padding[1]), g.output[1]
    return jnp.concatenate([x[:, :, j : j + w] for j in range(g.kernel[1])], -1)


def _added_up(g: Geometry, x: Array) -> Array:
    """Adjoint of `_side_by_side`."""
    kw, p = g.kernel[1], g.padding[1]
    parts = enumerate(jnp.split(x, kw, -1))
    return sum(pad(part, 2, j, kw - 1 - j) for j, part in parts)[:, :, p : p + g.side[1]]


def _down_few_channels(g: Geometry, x: Array, w: Array) -> Array:
    return _plain_down(_rows(g), _side_by_side(g, x), _row_kernel(w))


def _up_few_channels(g: Geometry, y: Array, w: Array) -> Array:
    return _added_up(g, _canonical_up(_rows(g), y, _row_kernel(w)))


def _pair_few_channels(g: Geometry, y: Array, x: Array) -> Array:
    w = _pair_tap_products(_rows(g), y, _side_by_side(g, x))
    return w.reshape(*g.kernel, x.shape[-1], y.shape[-1])


FEW_CHANNELS = Form(_down_few_channels, _up_few_channels, _pair_few_channels)


def _mirrored(g: Geometry) -> Geometry:
    """Of the convolution by the mirrored kernel that `up` is, where padding is below the kernel."""
    padding = tuple(k - 1 - p for k, p in zip(g.kernel, g.padding, strict=True))
    return g._replace(side=g.output, padding=padding)


def _mirror(w: Array) -> Array:
    return w[::-1, ::-1].swapaxes(2, 3)


FEW_FEATURES = Form(
    lambda g, x, w: _up_few_channels(_mirrored(g), x, _mirror(w)),
    lambda g, y, w: _down_few_channels(_mirrored(g), y, _mirror(w)),
    lambda g, y, x: _mirror(_pair_few_channels(_mirrored(g), x, y)),
)
