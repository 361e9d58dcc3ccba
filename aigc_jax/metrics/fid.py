"""The Frechet distance between Gaussians (Heusel et al. 2017, eq. 6; Dowson & Landau 1982).

|mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2)). With any factors S_i = L_i L_i^T the
root's trace is the nuclear norm of L_1^T L_2, the sum of its singular values. That needs no root of
a matrix that isn't symmetric, and holds below full rank, where the eigenvalues of S_1 S_2 that
other implementations take are mostly rounding errors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.stats

from aigc_jax.errors import UserError
from aigc_jax.metrics.statistics import Statistics, from_features
from aigc_jax.types import Array


class Frechet(NamedTuple):
    """A distance and what it is made of.

    Attributes:
      value: the distance, squared as all papers tell it; rounding may leave it just below 0.
      mean_part: |mu_1 - mu_2|^2.
      covariance_part: the rest.
      rank_a, rank_b: of the covariances, numerically.
    """

    value: float
    mean_part: float
    covariance_part: float
    rank_a: int
    rank_b: int


class _Gaussian(NamedTuple):
    """mu (D,), the covariance's trace, and L (D, R) with covariance L L^T."""

    mu: np.ndarray
    trace: float
    factor: np.ndarray
    full: bool

    @property
    def rank(self) -> int:
        return self.factor.shape[1]


def frechet_distance(
    mu1: np.ndarray,
    sigma1: np.ndarray,
    mu2: np.ndarray,
    sigma2: np.ndarray,
    method: str = "auto",
) -> float:
    """The distance of two Gaussians, in float64; see `frechet`.

    Args:
      mu1, mu2: (D,) means.
      sigma1, sigma2: (D, D) covariances.
      method: "auto" or "reference".
    """
    return frechet(Statistics(mu1, sigma1), Statistics(mu2, sigma2), method).value


def frechet(a: Statistics, b: Statistics, method: str = "auto") -> Frechet:
    """The distance of two Gaussians and its parts, in float64.

    Args:
      a, b: statistics of D features each; where they aren't finite, neither is the result.
      method: "auto": the nuclear norm, exact at any rank. "reference": the eigenvalues of the
        covariances' product, for the digits that torch-fidelity and torchmetrics print: they differ
        at full rank by rounding, below it (N <= D) by some 1e-5 of the value.

    Raises:
      ValueError: the dimensions differ, or an unknown method.
    """
    if len(a.mu) != len(b.mu):
        raise ValueError(f"Statistics of {len(a.mu)} and of {len(b.mu)} features don't compare.")
    if not all(np.isfinite(x).all() for s in (a, b) for x in (s.mu, s.sigma)):
        return Frechet(np.nan, np.nan, np.nan, 0, 0)
    if method not in ("auto", "reference"):
        raise ValueError(f"method {method!r} is neither 'auto' nor 'reference'.")
    root = _eigenvalue_root(a.sigma, b.sigma) if method == "reference" else None
    return _frechet(_gaussian(a), _gaussian(b), root)


def frechet_from_features(x: np.ndarray, y: np.ndarray, ddof: int = 1) -> Frechet:
    """The distance of the Gaussians fitted to features, in float64, exact at any N.

    Where N <= D the features themselves are the covariance's factor, and no (D, D) matrix is made.

    Args:
      x, y: (N, D) and (M, D), any float.
      ddof: covariances are divided by N - ddof: 1, or 0 as StyleGAN's.

    Raises:
      UserError: N < 2 or M < 2.
      ValueError: the dimensions differ.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"Features of {x.shape[1]} and {y.shape[1]} numbers don't compare.")
    return _frechet(_fitted(x, ddof), _fitted(y, ddof))


def _frechet(a: _Gaussian, b: _Gaussian, root: float | None = None) -> Frechet:
    shift = a.mu - b.mu
    root = _root_trace(a, b) if root is None else root
    mean, covariance = float(shift @ shift), float(a.trace + b.trace - 2 * root)
    return Frechet(mean + covariance, mean, covariance, a.rank, b.rank)


def _root_trace(a: _Gaussian, b: _Gaussian) -> float:
    """tr((S_a S_b)^(1/2)), the nuclear norm of L_a^T L_b."""
    product = a.factor.T @ b.factor
    if a.full and b.full:
        values = np.linalg.eigvalsh(product @ product.T)  # the squares: a third of an SVD's time
        roots = np.sqrt(np.maximum(values, np.finfo(float).tiny))
        error = np.finfo(float).eps * values[-1] * np.sum(0.5 / roots)
        if error < 1e-10 * roots.sum():
            return roots.sum()
    return scipy.linalg.svdvals(product).sum() if product.size else 0.0


def _eigenvalue_root(sigma1: np.ndarray, sigma2: np.ndarray) -> float:
    return np.sqrt(np.linalg.eigvals(sigma1 @ sigma2).astype(np.complex128)).real.sum()


def _gaussian(s: Statistics) -> _Gaussian:
    mu, sigma = s.mu.astype(np.float64), s.sigma.astype(np.float64)
    if s.n is not None and s.n <= len(mu):  # of rank n - 1; all beyond it is rounding
        values, vectors = np.linalg.eigh(sigma)
        values, vectors = np.maximum(values[1 - s.n :], 0), vectors[:, 1 - s.n :]
        return _Gaussian(mu, values.sum(), vectors * np.sqrt(values), False)
    return _Gaussian(mu, np.trace(sigma), *_factor(sigma))


def _factor(sigma: np.ndarray) -> tuple[np.ndarray, bool]:
    """L with L L^T = sigma, and whether sigma is positive definite beyond rounding."""
    relative_cut = 1e-14 * len(sigma)
    try:
        factor = np.linalg.cholesky(sigma)
        pivots = np.square(np.diagonal(factor))
        if pivots.min() > relative_cut * pivots.max():
            return factor, True
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(sigma)
    kept = values > relative_cut * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept]), False


def _known(x: Statistics | np.ndarray, ddof: int) -> _Gaussian:
    return _gaussian(x) if isinstance(x, Statistics) else _fitted(x, ddof)


def _fitted(features: np.ndarray, ddof: int) -> _Gaussian:
    n, dim = features.shape
    if n > dim or n < 2:
        return _gaussian(from_features(features, ddof))
    x = features.astype(np.float64)
    mu = x.mean(0)
    factor = (x - mu).T / np.sqrt(n - ddof)
    return _Gaussian(mu, np.sum(factor**2), factor, False)


def frechet_on_device(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> Array:
    """The distance in float32, () under jit, where there is no float64.

    NaN where a covariance isn't positive definite in float32: at N <= D or with features that are
    always 0, take `frechet`.

    Args:
      mu1, mu2: (D,) means.
      sigma1, sigma2: (D, D) covariances.
    """
    with jax.default_matmul_precision("highest"):
        factors = [jnp.linalg.cholesky(s.astype(jnp.float32)) for s in (sigma1, sigma2)]
        root = jnp.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
        return jnp.sum((mu1 - mu2) ** 2) + jnp.trace(sigma1 + sigma2) - 2 * root


class Extrapolated(NamedTuple):
    """A distance at infinitely many images.

    Attributes:
      value: the intercept of the line through the points (1 / size, distance).
      slope: of that line: at N images the bias is slope / N.
      sizes: of the subsets.
      distances: at those sizes.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def fid_infinity(
    fake: np.ndarray,
    real: Statistics | np.ndarray,
    sizes: int = 15,
    seed: int = 0,
    ddof: int = 1,
) -> Extrapolated:
    """The distance without the bias of finitely many generated images (Chong & Forsyth 2020).

    Random subsets of `sizes` evenly spaced sizes up to all are compared with the same `real`, and
    a line in 1 / size is fitted by least squares. The bias of finitely many real images stays.

    Args:
      fake: (N, D) features.
      real: (M, D) features or their statistics.
      sizes: how many subsets, from min(5000, max(N // 10, 2)) images to N.
      seed: of the subsets.
      ddof: covariances of features are divided by N - ddof.

    Raises:
      UserError: N < 20, too few for a line.
    """
    n = len(fake)
    if n < 20:
        raise UserError(f"FID_infinity needs at least 20 generated images, got {n}: raise --num.")
    target = _known(real, ddof)
    rng = np.random.default_rng(seed)
    counts = np.linspace(min(5000, max(n // 10, 2)), n, sizes).astype(int)
    found = [_frechet(_fitted(fake[rng.permutation(n)[:k]], ddof), target).value for k in counts]
    slope, value = np.polyfit(1 / counts, found, 1)
    return Extrapolated(float(value), float(slope), tuple(map(int, counts)), tuple(found))


def interval(
    fake: np.ndarray,
    real: Statistics | np.ndarray,
    confidence: float = 0.95,
    groups: int = 10,
    seed: int = 0,
    ddof: int = 1,
) -> tuple[float, float]:
    """(low, high): where other draws of as many images would put the distance's expectation.

    The delete-a-group jackknife of both sides (Shao & Tu 1995, section 2.3), with Student's t of
    groups - 1 degrees, around the distance itself. A percentile bootstrap would lie above it:
    resampled sets hold fewer different images, and the distance falls with their number. That bias
    of finitely many images is in the value and isn't part of the interval; see `fid_infinity`.

    Args:
      fake: (N, D) features.
      real: (M, D) features; or their statistics, which are then taken as exact.
      confidence: of the interval.
      groups: to leave out in turn: one distance each for either side.
      seed: of the deal to groups.
      ddof: covariances of features are divided by N - ddof.

    Raises:
      UserError: fewer than 2 images for each group.
    """
    a, b = _known(fake, ddof), _known(real, ddof)
    variance = _jackknife(fake, b, groups, seed, ddof)
    if not isinstance(real, Statistics):
        variance += _jackknife(real, a, groups, seed + 1, ddof)
    reach = scipy.stats.t.ppf((1 + confidence) / 2, groups - 1) * np.sqrt(variance)
    value = _frechet(a, b).value
    return float(value - reach), float(value + reach)


def _jackknife(features: np.ndarray, other: _Gaussian, groups: int, seed: int, ddof: int) -> float:
    """The variance of the distance that comes from `features`."""
    n = len(features)
    if n < 2 * groups:
        raise UserError(f"An interval needs at least {2 * groups} images, got {n}: raise --num.")
    group = np.random.default_rng(seed).permutation(n) % groups
    found = [_frechet(_fitted(features[group != k], ddof), other).value for k in range(groups)]
    return (groups - 1) * np.var(found)


def warnings_for(n_real: int | None, n_fake: int, dim: int) -> list[str]:
    """What is to be told beside a distance: a sentence each, none where all is well.

    Args:
      n_real: real images; None: statistics from a file that doesn't say.
      n_fake: generated images.
      dim: of the features.

    Raises:
      UserError: fewer than 2 images on a side.
    """
    known = {"real": n_real, "generated": n_fake}
    known = {name: n for name, n in known.items() if n is not None}
    for name, n in known.items():
        if n < 2:
            raise UserError(f"A covariance needs at least 2 {name} images, got {n}: raise --num.")
    found = []
    if few := _counted(known, 9_999):
        found.append(
            f"{few} images: FID falls as images are added, so compare it with values of as many "
            "alone; fid_infinity estimates where it ends."
        )
    if few := _counted(known, dim):
        found.append(
            f"{few} images, no more than the {dim} features: other tools carry noise here from "
            "the third digit on."
        )
    return found


def _counted(counts: dict[str, int], most: int) -> str:
    return " and ".join(f"{n} {name}" for name, n in counts.items() if n <= most)
