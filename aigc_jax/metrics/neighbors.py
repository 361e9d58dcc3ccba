"""Nearest neighbours of features: how real a sample is, and whether it copies a training image."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.types import Array

_ROWS, _COLUMNS = 1024, 8192  # of a tile of distances: 32 MiB in float32


def nearest(
    x: np.ndarray, among: np.ndarray, k: int = 1, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Each point's k nearest, the nearest first.

    Args:
      x, among: (N, D) and (M, D), float32.
      same: x is `among`, and no point is a neighbour of its own.

    Returns:
      (N, k) float32 Euclidean distances, exact to rounding in float32, and (N, k) int32 rows.

    Raises:
      UserError: `among` has too few points.
    """
    if len(among) - same < k:
        raise UserError(f"{len(among)} images have no {k}-th neighbours.")
    centre = among.mean(0, dtype=np.float64).astype(np.float32)
    x, among = jnp.asarray(x - centre), jnp.asarray(among - centre)
    found = []
    for start in range(0, len(x), _ROWS):
        rows, best = x[start : start + _ROWS], None
        for column in range(0, len(among), _COLUMNS):
            near = _of_tile(rows, among[column : column + _COLUMNS], start, column, k, same)
            best = near if best is None else _merged(best, near, k)
        index = best[1]
        # From the differences themselves: products lose what is small.
        apart = jnp.linalg.norm(rows[:, None] - among[index], axis=-1)
        order = jnp.argsort(apart, 1)
        found.append([np.asarray(jnp.take_along_axis(y, order, 1)) for y in (apart, index)])
    distances, index = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return distances, index


def squared_distances(x: Array, y: Array) -> Array:
    """(n, D), (m, D) -> (n, m) squared distances, float32."""
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * product


@functools.partial(jax.jit, static_argnames=("k", "same"))
def _of_tile(
    x: Array, y: Array, row: Array, column: Array, k: int, same: bool
) -> tuple[Array, Array]:
    found = squared_distances(x, y)
    if same:
        own = row + jnp.arange(len(x))[:, None] == column + jnp.arange(len(y))[None]
        found = jnp.where(own, jnp.inf, found)
    values, index = jax.lax.top_k(-found, min(k, len(y)))
    return -values, index + column


@functools.partial(jax.jit, static_argnames="k")
def _merged(one: tuple[Array, Array], other: tuple[Array, Array], k: int) -> tuple[Array, Array]:
    found, index = (jnp.concatenate(parts, 1) for parts in zip(one, other, strict=True))
    values, place = jax.lax.top_k(-found, min(k, found.shape[1]))
    return -values, jnp.take_along_axis(index, place, 1)


def realism(
    fake: np.ndarray, real: np.ndarray, k: int = 3, radii: np.ndarray | None = None
) -> np.ndarray:
    """(M,) how real each generated image is (Kynkaanniemi et al. 2019, equation 3).

    The greatest quotient of a real image's distance to its k-th neighbour, and that to it, over the
    half of the real images whose neighbours are nearest: 1 on the manifold's border, more inside.

    Args:
      fake, real: (M, D), (N, D) features, float32.
      radii: (N,) each real image's distance to its k-th neighbour, where it is known already.
    """
    radii = nearest(real, real, k, same=True)[0][:, -1] if radii is None else radii
    kept = radii <= np.median(radii)
    real, radii = real[kept], jnp.asarray(radii[kept])
    centre = real.mean(0, dtype=np.float64).astype(np.float32)
    centred, found = jnp.asarray(real - centre), []
    for start in range(0, len(fake), _ROWS):
        rows = jnp.asarray(fake[start : start + _ROWS] - centre)
        best = jnp.zeros(len(rows))
        for column in range(0, len(real), _COLUMNS):
            at = slice(column, column + _COLUMNS)
            best = jnp.maximum(best, _quotients(rows, centred[at], radii[at]))
        found.append(np.asarray(best))
    return np.concatenate(found)


@jax.jit
def _quotients(x: Array, y: Array, radii: Array) -> Array:
    return (radii[None] / jnp.sqrt(jnp.maximum(squared_distances(x, y), 1e-12))).max(1)


def closeness(
    fake: np.ndarray, train: np.ndarray, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How near each sample is to its nearest training image, in that image's own terms.

    Args:
      fake, train: (M, D), (N, D) features, float32.
      own: what `own_distances` makes of `train`, where it is known already.

    Returns:
      (M,) its distance, over that image's own: far below 1 for a copy; and (M,) int32, which it is.
    """
    distances, index = nearest(fake, train)
    own, rows = own_distances(train) if own is None else own, index[:, 0]
    return distances[:, 0] / own[rows], rows


def own_distances(train: np.ndarray) -> np.ndarray:
    """(N,) from each training image to its nearest neighbour, half of their median at least.

    Of images that are there twice the copies are those most likely to be learned by heart.
    """
    own = nearest(train, train, same=True)[0][:, 0]
    typical = np.median(own[own > 0]) if (own > 0).any() else 1.0
    return np.maximum(own, typical / 2)


class Copying(NamedTuple):
    """Whether samples are nearer to the training images than new real images are.

    Attributes:
      value: the share of pairs of a sample and a held-out image in which the sample is the nearer:
        1/2 where it is as a held-out image is, 1 where all are copied, below 1/2 where samples
        keep away from the training images (they are less real).
      z: by how many standard deviations that differs from 1/2.
    """

    value: float
    z: float


def copying(fake: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Copying:
    """The test of data copying of Meehan et al. 2020, equation 2, of all images at once.

    Args:
      fake, train, held_out: features (M, D), (N, D), (L, D), float32.
    """
    from scipy import stats

    samples, others = (nearest(x, train)[0][:, 0] for x in (fake, held_out))
    m, n = len(samples), len(others)
    ranked = stats.mannwhitneyu(samples, others)
    share = 1 - float(ranked.statistic) / (m * n)
    return Copying(share, (share - 0.5) / np.sqrt((m + n + 1) / (12 * m * n)))
