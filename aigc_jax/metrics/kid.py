"""The kernel Inception distance (Binkowski et al. 2018, section 4): an unbiased squared MMD.

The kernel is (x.y / D + 1)^3. Kernels are computed in float32 on the device, their sums in float64
on the host. A value below 0 is legal: it says that the sets are alike.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from aigc_jax.errors import UserError
from aigc_jax.types import Array


class Score(NamedTuple):
    """A distance and how sure it is.

    Attributes:
      value: the squared MMD, or its mean over subsets.
      std: over subsets (ddof 0); of the whole sample, its standard error.
      subset_size: images in a subset, on each side; None: the whole sample.
    """

    value: float
    std: float
    subset_size: int | None

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(low, high) of the whole sample's value, by the normal distribution.

        Raises:
          ValueError: of subsets, which overlap: their spread is no standard error.
        """
        if self.subset_size:
            raise ValueError("An interval needs the whole sample's value: kid(..., subsets=None).")
        reach = scipy.stats.norm.ppf((1 + confidence) / 2) * self.std
        return self.value - float(reach), self.value + float(reach)


def kid(
    real: np.ndarray,
    fake: np.ndarray,
    subsets: int | None = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> Score:
    """The distance between features.

    By default the number of torch-fidelity with the generated images as its input 1: for each
    subset `RandomState(seed)` draws from the generated ones, then from the real, without
    replacement. `subsets=None` takes every pair of images instead, which varies less and draws
    nothing; its standard error is the jackknife's, which is never too small on average (Efron &
    Stein 1981).

    Args:
      real, fake: (N, D) and (M, D) features.
      subsets: how many; None: the whole sample.
      subset_size: images of each side in a subset, at most N and M; the score tells what was taken.
      seed: of the subsets.

    Raises:
      UserError: fewer than 2 images (3 with subsets None) on a side.
      ValueError: the dimensions differ.
    """
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Features of {real.shape[1]} and {fake.shape[1]} numbers don't compare.")
    smaller, needed = min(len(real), len(fake)), 2 if subsets else 3
    if smaller < needed:
        raise UserError(f"KID needs at least {needed} images a side, got {smaller}: raise --num.")
    real, fake = jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32)
    if subsets is None:
        return _of_all(real, fake)
    return _of_subsets(real, fake, subsets, min(subset_size, smaller), seed)


def _kernel(x: Array, y: Array) -> Array:
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return (product / x.shape[1] + 1) ** 3


def _self_kernel(x: Array) -> Array:
    return ((x * x).sum(1) / x.shape[1] + 1) ** 3


def _of_subsets(real: Array, fake: Array, subsets: int, size: int, seed: int) -> Score:
    rng, draws = np.random.RandomState(seed), []
    for _ in range(subsets):
        draws.append([rng.choice(len(x), size, replace=False) for x in (fake, real)])
    draws = np.array(draws, np.int32)
    sums = np.asarray(_subset_sums(fake, real, draws[:, 0], draws[:, 1]), np.float64).sum(-1)
    values = (sums[:, 0] + sums[:, 1]) / (size * (size - 1)) - 2 * sums[:, 2] / size**2
    return Score(float(values.mean()), float(values.std()), size)


@jax.jit
def _subset_sums(x: Array, y: Array, of_x: Array, of_y: Array) -> Array:
    """(S, n) draws of x, y -> (S, 3, n) row sums: k(x, x) and k(y, y) off the diagonal, k(x, y)."""

    def sums(draw: tuple[Array, Array]) -> Array:
        a, b = x[draw[0]], y[draw[1]]
        own = [_kernel(z, z).sum(1) - _self_kernel(z) for z in (a, b)]
        return jnp.stack([*own, _kernel(a, b).sum(1)])

    return jax.lax.map(sums, (of_x, of_y))


def _of_all(x: Array, y: Array) -> Score:
    n, m = len(x), len(y)
    own_x, own_y = (_row_sums(z, z) - _host(_self_kernel(z)) for z in (x, y))
    cross_x, cross_y = _row_sums(x, y), _row_sums(y, x)
    total_x, total_y, cross = own_x.sum(), own_y.sum(), cross_x.sum()

    def value(total_x: float, n: float, total_y: float, m: float, cross: float) -> float:
        return total_x / (n * (n - 1)) + total_y / (m * (m - 1)) - 2 * cross / (n * m)

    without_x = value(total_x - 2 * own_x, n - 1, total_y, m, cross - cross_x)
    without_y = value(total_x, n, total_y - 2 * own_y, m - 1, cross - cross_y)
    variance = (n - 1) * np.var(without_x) + (m - 1) * np.var(without_y)
    return Score(float(value(total_x, n, total_y, m, cross)), float(np.sqrt(variance)), None)


def _row_sums(x: Array, y: Array, tile: int = 2048) -> np.ndarray:
    """(N,) float64: the sum over all of y (M, D) of the kernel with each of x (N, D)."""
    found = np.zeros(len(x))
    for i in range(0, len(x), tile):
        for j in range(0, len(y), tile):
            found[i : i + tile] += _host(_tile_sums(x[i : i + tile], y[j : j + tile]))
    return found


@jax.jit
def _tile_sums(x: Array, y: Array) -> Array:
    return _kernel(x, y).sum(1)


def _host(x: Array) -> np.ndarray:
    return np.asarray(x, np.float64)
