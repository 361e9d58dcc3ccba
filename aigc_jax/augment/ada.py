"""Adaptive discriminator augmentation (Karras et al. 2020a): the pipeline "bgc" at probability p.

Blitting, geometry and colour of its appendix B, each transformation applied with probability p to
each image; as long as p is below 0.8 the generator does not learn them (section 2.2). Geometry is
one warp of the image, enlarged twice by an orthogonal wavelet's low-pass filter (sym6) and back, so
that it doesn't alias; colour is one matrix.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.augment.arrays import mirrored, warped
from aigc_jax.types import Array

# Daubechies's least asymmetric wavelet of 6 vanishing moments (1992, table 6.3), as a low-pass.
_SYM6 = np.array(
    [
        0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
        0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
        -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
    ]
)  # fmt: skip


def bgc(images: Array, keys: Array, p: Array) -> Array:
    """Images (B, H, W, C) in [-1, 1], C 1 or 3, augmented at probability p, by keys (B,).

    Args:
      p: () in [0, 1].

    Returns:
      the same shape; not clipped. With p = 0 the images themselves, to rounding.
    """
    draws = jax.vmap(lambda key: jax.random.uniform(key, (24,)))(keys)
    normals = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), (9,)))(keys)
    images = blitted(images, draws[:, :7], p)
    matrices = geometry(draws[:, 7:14], normals[:, :4], p)
    smooth = resampled(images, matrices)
    # Where nothing is to move, nothing is filtered.
    still = jnp.all(jnp.abs(matrices - jnp.eye(3)[None]) < 1e-6, (1, 2))
    images = jnp.where(still.reshape(-1, 1, 1, 1), images, smooth)
    return recoloured(images, colours(draws[:, 14:], normals[:, 4:], p))


def blitted(x: Array, u: Array, p: Array) -> Array:
    """Mirrored, turned by quarters, moved by whole pixels of up to an eighth of the side."""
    b, size = len(x), x.shape[1]
    on = lambda i: (u[:, i] < p).reshape(-1, 1, 1, 1)  # noqa: E731
    heads = (u[:, 1] < 0.5).reshape(-1, 1, 1, 1)
    x = jnp.where(on(0) & heads, x[:, :, ::-1], x)
    quarters = jnp.floor(4 * u[:, 3]).reshape(-1, 1, 1, 1)
    turned = functools.reduce(
        lambda y, k: jnp.where(quarters == k, jnp.rot90(x, k, (1, 2)), y), (1, 2, 3), x
    )
    x = jnp.where(on(2), turned, x)
    for axis, column in ((1, 5), (2, 6)):
        shift = jnp.round((2 * u[:, column] - 1) * size / 8)
        shift = jnp.where(u[:, 4] < p, shift, 0).astype(jnp.int32)
        places = mirrored(jnp.arange(size)[None] + shift[:, None], size)
        rows = jax.nn.one_hot(places, size, dtype=x.dtype)
        x = jnp.einsum("bpq,bqwc->bpwc" if axis == 1 else "bpq,bhqc->bhpc", rows, x)
    return x.reshape(b, size, size, -1)


def geometry(u: Array, normal: Array, p: Array) -> Array:
    """(B, 3, 3): scaled, turned, stretched, turned again, moved; see `kinds.Kind`."""
    # Two turns, of which one at least is to happen with probability p.
    once = 1 - jnp.sqrt(1 - p)
    log2 = 0.2 * math.log(2)
    scale = jnp.exp(jnp.where(u[:, 0] < p, normal[:, 0] * log2, 0))
    angles = [jnp.where(u[:, i] < once, math.pi * (2 * u[:, i + 1] - 1), 0) for i in (1, 4)]
    ratio = jnp.exp(jnp.where(u[:, 3] < p, normal[:, 1] * log2, 0))
    # In units of half a side: an eighth of the side is the deviation.
    moved = jnp.where((u[:, 6:] < p), 0.25 * normal[:, 2:4], 0)
    steps = [
        _matrix([[1 / scale, 0, 0], [0, 1 / scale, 0], [0, 0, 1]]),
        _turn(angles[0]),
        _matrix([[1 / ratio, 0, 0], [0, ratio, 0], [0, 0, 1]]),
        _turn(angles[1]),
        _matrix([[1, 0, -moved[:, 0]], [0, 1, -moved[:, 1]], [0, 0, 1]]),
    ]
    return functools.reduce(jnp.matmul, steps)


def resampled(x: Array, matrices: Array) -> Array:
    """`arrays.warped` at twice the resolution."""
    n = x.shape[1]
    up, down, late = _resizers(n)
    both_ways = lambda m, y: jnp.einsum("pq,rs,bqsc->bprc", m, m, y)  # noqa: E731
    # The enlarged image's pixels lie `late` further on than pixels of half the side would.
    there, back = jnp.eye(3).at[:2, 2].set(late / n), jnp.eye(3).at[:2, 2].set(-late / n)
    x = both_ways(jnp.asarray(up, x.dtype), x)
    return both_ways(jnp.asarray(down, x.dtype), warped(x, there @ matrices @ back))


@functools.lru_cache
def _resizers(n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Matrices (2n, n) and (n, 2n) that enlarge a line twice and shrink it, borders mirrored.

    The filter is orthogonal, so that away from the borders the second undoes the first. Also how
    far the enlarged line's pixels are shifted, in its pixels: the filter isn't quite symmetric.
    """
    middle = 5
    up, down = np.zeros((2 * n, n)), np.zeros((n, 2 * n))
    fold = lambda i, m: min(i % (2 * m), 2 * m - 1 - i % (2 * m))  # noqa: E731
    for j in range(-6, n + 6):
        for k, tap in enumerate(_SYM6):
            i = 2 * j + k - middle
            if 0 <= i < 2 * n:
                up[i, fold(j, n)] += math.sqrt(2) * tap
            if 0 <= j < n:
                down[j, fold(i, 2 * n)] += tap / math.sqrt(2)
    centre = float(np.arange(12) @ _SYM6 / _SYM6.sum())
    return up, down, centre - middle - 0.5


def colours(u: Array, normal: Array, p: Array) -> Array:
    """(B, 3, 4): brightness, contrast, the luma turned over, hue, saturation, in [-1, 1]."""
    bright = jnp.where(u[:, 0] < p, 0.2 * normal[:, 0], 0)
    contrast = jnp.exp(jnp.where(u[:, 1] < p, 0.5 * math.log(2) * normal[:, 1], 0))
    over = jnp.where((u[:, 2] < p) & (u[:, 3] < 0.5), 1.0, 0.0)
    angle = jnp.where(u[:, 4] < p, math.pi * (2 * u[:, 5] - 1), 0)
    colourful = jnp.exp(jnp.where(u[:, 6] < p, math.log(2) * normal[:, 2], 0))
    axis = np.ones((1, 3, 3)) / 3  # onto the grey axis
    eye = np.eye(3)[None]
    cross = np.array([[[0, -1, 1], [1, 0, -1], [-1, 1, 0]]]) / math.sqrt(3)
    each = lambda x: x[:, None, None]  # noqa: E731
    flip = eye - 2 * each(over) * axis
    turn = each(jnp.cos(angle)) * (eye - axis) + each(jnp.sin(angle)) * cross + axis
    richer = axis + each(colourful) * (eye - axis)
    linear = richer @ turn @ flip
    level = linear @ (each(contrast * bright) * np.ones((1, 3, 1)))
    return jnp.concatenate([linear * each(contrast), level], -1)


def recoloured(x: Array, told: Array) -> Array:
    """x (B, H, W, C) by (B, 3, 4); a grey image is three equal channels, then their mean."""
    told = told.astype(x.dtype)
    if x.shape[-1] == 3:
        moved = jnp.einsum("bhwc,bdc->bhwd", x, told[:, :, :3])
        return moved + told[:, None, None, :, 3]
    mean = told.mean(1)
    scale, level = mean[:, :3].sum(-1), mean[:, 3]
    return x * scale.reshape(-1, 1, 1, 1) + level.reshape(-1, 1, 1, 1)


def adapted(p: Array, sign: Array, images: int, target: float, kimg: float) -> Array:
    """p after a step (section 3): up where the real images' logits are too often above 0.

    Args:
      sign: () mean of the signs of their logits, r_t (eq. 1).
      images: real ones since p was last changed.
      kimg: thousands of images in which p goes from 0 to 1.
    """
    return jnp.clip(p + jnp.sign(sign - target) * images / (1000 * kimg), 0, 1)


def _turn(angle: Array) -> Array:
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return _matrix([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def _matrix(rows: Sequence[Sequence[Array | float]]) -> Array:
    one = next(x for row in rows for x in row if not isinstance(x, (int, float))) * 0 + 1
    return jnp.stack([jnp.stack([x * one for x in row], -1) for row in rows], 1)
