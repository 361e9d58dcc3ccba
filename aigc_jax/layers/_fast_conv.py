"""The convolution and its two adjoints, each in the form that its platform wants.

A convolution is bilinear in its input and its kernel. Three bilinear maps are each other's
derivatives, so derivatives of every order stay among the three:

    down(g, x, w) -> y     the convolution of geometry g
    up(g, y, w) -> x       its adjoint in x: the transposed convolution, and the input gradient
    pair(g, y, x) -> w     its adjoint in w: the weight gradient

TPU and GPU are fastest with XLA's own convolution, as long as autodiff never sees a transposed
one: its rule reverses whole activations. XLA on CPU is several times slower than what
`_cpu_form` chooses. Arrays are NHWC, kernels HWIO.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax.layers._conv_forms import (
    CANONICAL,
    FEW_CHANNELS,
    FEW_FEATURES,
    PLAIN,
    SLICES,
    TAP_PRODUCTS,
    TAPS,
    Form,
    Geometry,
    dot,
)
from aigc_jax.layers._winograd import PATCHES, WINOGRAD_3X3, WINOGRAD_4X4
from aigc_jax.types import Array


def _cpu_form(g: Geometry, channels: int, features: int) -> Form:
    """The fastest form on CPU, as measured; channels and features are those of all groups."""
    if g.groups > 1:
        return TAPS if g.groups == channels == features else SLICES
    if g == Geometry(g.side, (4, 4), (2, 2), (1, 1)):
        return PATCHES if channels <= 4 else WINOGRAD_4X4
    if g.stride != (1, 1) or max(g.padding) >= min(g.kernel):
        return TAP_PRODUCTS if max(g.kernel) <= 3 else CANONICAL
    # With few channels, transforming the image costs more than the products that it saves.
    if g.kernel == (3, 3) and min(channels, features) > 32:
        return WINOGRAD_3X3
    if features <= min(8, channels - 1):
        return FEW_FEATURES
    return FEW_CHANNELS if channels <= 8 and min(g.kernel) > 4 else CANONICAL


def _choose(map_name: str, g: Geometry, a: Array, b: Array, channels: int, features: int) -> Array:
    """One of the maps, in the form that the platform wants; decided while lowering."""
    plain = functools.partial(getattr(PLAIN, map_name), g)
    form = _cpu_form(g, channels, features)

    def on_cpu(a: Array, b: Array) -> Array:
        wide = jnp.promote_types(a.dtype, jnp.float32)  # CPUs have no half-precision products
        return getattr(form, map_name)(g, a.astype(wide), b.astype(wide)).astype(a.dtype)

    return lax.platform_dependent(a, b, cpu=on_cpu, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def down(g: Geometry, x: Array, w: Array) -> Array:
    """(B, *g.side, C), (kh, kw, C // groups, O) -> (B, *g.output, O)."""
    return _choose("down", g, x, w, x.shape[-1], w.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def up(g: Geometry, y: Array, w: Array) -> Array:
    """(B, *g.output, O), (kh, kw, C // groups, O) -> (B, *g.side, C)."""
    return _choose("up", g, y, w, w.shape[2] * g.groups, y.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair(g: Geometry, y: Array, x: Array) -> Array:
    """(B, *g.output, O), (B, *g.side, C) -> (kh, kw, C // groups, O)."""
    return _choose("pair", g, y, x, x.shape[-1], y.shape[-1])


down.defvjp(
    lambda g, x, w: (down(g, x, w), (x, w)),
    lambda g, xw, y: (up(g, y, xw[1]), pair(g, y, xw[0])),
)
up.defvjp(
    lambda g, y, w: (up(g, y, w), (y, w)),
    lambda g, yw, x: (down(g, x, yw[1]), pair(g, yw[0], x)),
)
pair.defvjp(
    lambda g, y, x: (pair(g, y, x), (y, x)),
    lambda g, yx, w: (down(g, yx[1], w), up(g, yx[0], w)),
)


def conv(g: Geometry, x: Array, w: Array) -> Array:
    """`down`, or a matrix product where every output pixel sees its own or all input pixels."""
    if g.groups == 1 and _covers(g):
        y = dot(x.reshape(x.shape[0], -1), w.reshape(-1, w.shape[-1]))
        return y.reshape(-1, 1, 1, w.shape[-1])
    return dot(x, w[0, 0]) if _is_pointwise(g) else down(g, x, w)


def conv_transpose(g: Geometry, y: Array, w: Array) -> Array:
    """`up`, or a matrix product where every input pixel makes its own or all output pixels."""
    if _covers(g):
        x = dot(y.reshape(y.shape[0], -1), w.reshape(-1, w.shape[-1]).T)
        return x.reshape(-1, *w.shape[:3])
    return dot(y, w[0, 0].T) if _is_pointwise(g) else up(g, y, w)


def fold_nearest(w: Array) -> Array:
    """Kernel of nearest x2 then 3x3, (3, 3, C, O) -> that of `up` 4x4 stride 2, (4, 4, O, C)."""

    def fold(w: Array) -> Array:
        return jnp.stack([w[2], w[1] + w[2], w[0] + w[1], w[0]])

    return fold(fold(w).swapaxes(0, 1)).transpose(1, 0, 3, 2)


def _covers(g: Geometry) -> bool:
    return g.side == g.kernel and g.padding == (0, 0)


def _is_pointwise(g: Geometry) -> bool:
    return g == Geometry(g.side, (1, 1), (1, 1), (0, 0))
