"""Mean and covariance of features: streaming on a device, in float64 on the host, in files.

A device needs no float64: `Moments` keeps the mean relative to a shift near it, merges batches by
Chan, Golub & LeVeque (1983, "Algorithms for computing the sample variance", eq. 2.1) and carries
the rounding errors of the covariance's additions along.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from aigc_jax.errors import UserError
from aigc_jax.parallel import psum
from aigc_jax.types import Array


class Moments(struct.PyTreeNode):
    """The moments of n feature vectors of D numbers, all float32 but n.

    Attributes:
      n: () int32.
      shift: (D,) a vector near the mean, arbitrary while n = 0.
      mean: (D,) the mean of x - shift.
      scatter: (D, D) the sum of (x - mu) (x - mu)^T.
      error: (D, D) what the rounding of `scatter` has lost.
    """

    n: Array
    shift: Array
    mean: Array
    scatter: Array
    error: Array


def init(dim: int) -> Moments:
    """The moments of no features of `dim` numbers: `merge`'s neutral element."""
    vector, matrix = (jnp.zeros(shape, jnp.float32) for shape in (dim, (dim, dim)))
    return Moments(jnp.zeros((), jnp.int32), vector, vector, matrix, matrix)


def update(state: Moments, features: Array, mask: Array | None = None) -> Moments:
    """Takes in features (B, D), any float; rows with mask (B,) = 0 are ignored, NaN or not."""
    return merge(state, _of_batch(features.astype(jnp.float32), mask))


def _of_batch(x: Array, mask: Array | None) -> Moments:
    valid = jnp.ones(len(x), bool) if mask is None else mask > 0
    n = valid.sum(dtype=jnp.int32)

    def mean(x: Array) -> Array:
        return jnp.where(valid[:, None], x, 0).sum(0) / jnp.maximum(n, 1)

    shift = mean(x)
    x = x - shift[None]
    rest = mean(x)  # what rounding has left of a large mean
    x = jnp.where(valid[:, None], x - rest[None], 0)
    scatter = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return Moments(n, shift, rest, scatter, jnp.zeros_like(scatter))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of features; associative and commutative but for rounding."""
    n = a.n + b.n
    weight_a, weight_b = (x.n / jnp.maximum(n, 1) for x in (a, b))
    shift = jnp.where(a.n > 0, a.shift, b.shift)
    mean_a, mean_b = (x.shift - shift + x.mean for x in (a, b))
    apart = mean_a - mean_b
    between = jnp.outer(apart, apart) * (weight_a * b.n)
    scatter, error = two_sum(a.scatter, b.scatter + between)
    mean = mean_a * weight_a + mean_b * weight_b
    return Moments(n, shift, mean, scatter, a.error + b.error + error)


def across(state: Moments, axis_name: str | None) -> Moments:
    """The moments over all devices of a mapped axis, on each of them; None: of this one."""
    n = psum(state.n, axis_name)
    weight = state.n / jnp.maximum(n, 1)
    shift = psum(weight * state.shift, axis_name)
    here = state.shift - shift + state.mean
    mean = psum(weight * here, axis_name)
    apart = here - mean
    scatter = psum(state.scatter + jnp.outer(apart, apart) * state.n, axis_name)
    return Moments(n, shift, mean, scatter, psum(state.error, axis_name))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(a + b rounded, what the rounding lost): Knuth, TAOCP vol. 2, section 4.2.2, theorem B."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What a Frechet distance needs to know of a set of images.

    Attributes:
      mu: (D,) float64, the mean.
      sigma: (D, D) float64, the covariance.
      n: of images; None: a file that doesn't say.
      meta: JSON values: where the numbers come from.
      spatial: of ADM's spatial features (Dhariwal & Nichol 2021), where the file has them.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spatial: "Statistics | None" = None

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` of mu, sigma (n, meta, mu_s, sigma_s), as pytorch-fid and EDM read it.

        Raises:
          UserError: the file can't be written.
        """
        arrays = {"mu": self.mu, "sigma": self.sigma, "meta": np.array(json.dumps(self.meta))}
        if self.n is not None:
            arrays["n"] = np.array(self.n, np.int64)
        if self.spatial:
            arrays |= {"mu_s": self.spatial.mu, "sigma_s": self.spatial.sigma}
        try:
            with open(path, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}.") from error


def finalize(state: Moments, ddof: int = 1) -> Statistics:
    """The statistics in float64, on the host; the covariance is divided by n - ddof.

    Raises:
      UserError: fewer than 2 features.
    """
    state = jax.tree.map(np.asarray, jax.device_get(state))
    n = int(state.n)
    _check_count(n)
    scatter = state.scatter.astype(np.float64) + state.error
    mu = state.shift.astype(np.float64) + state.mean
    return Statistics(mu, (scatter + scatter.T) / (2 * (n - ddof)), n)


def from_features(features: np.ndarray, ddof: int = 1, rows: int = 8192) -> Statistics:
    """The statistics of features (N, D), computed in float64, `rows` at a time.

    Raises:
      UserError: N < 2.
    """
    _check_count(len(features))
    mean = np.mean(features, 0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), rows):
        centred = features[start : start + rows] - mean
        scatter += centred.T @ centred
    return Statistics(mean, scatter / (len(features) - ddof), len(features))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features -> their mean (D,) and unbiased covariance (D, D), float64.

    Raises:
      UserError: N < 2.
    """
    statistics = from_features(features)
    return statistics.mu, statistics.sigma


def _check_count(n: int) -> None:
    if n < 2:
        raise UserError(f"A covariance needs at least 2 images, got {n}: raise --num.")


def load(path: str | os.PathLike, dim: int | None = None) -> Statistics:
    """Reads statistics in `.npz`: ours, or those of TTUR, pytorch-fid, EDM or ADM.

    Args:
      path: of the file; nothing in it is executed. Arrays of other names are ignored.
      dim: D that mu must have; None: any.

    Raises:
      UserError: no such file, or none of statistics: what is wrong with it, in a line.
    """
    arrays = _read(path)
    found = _statistics(path, arrays, "mu", "sigma")
    if dim is not None and len(found.mu) != dim:
        raise UserError(
            f"{path} holds statistics of {len(found.mu)} features, not of {dim}: "
            "they were made with another network."
        )
    spatial, (n, meta) = None, _extras(path, arrays)
    if {"mu_s", "sigma_s"} <= arrays.keys():
        spatial = dataclasses.replace(_statistics(path, arrays, "mu_s", "sigma_s"), n=n)
    return dataclasses.replace(found, n=n, meta=meta, spatial=spatial)


_KEYS = ("mu", "sigma", "mu_s", "sigma_s", "n", "meta")


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file of statistics.")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in _KEYS if key in arrays.files}
    except Exception as error:  # zipfile, numpy and zlib each raise their own
        raise UserError(f"{path} can't be read as .npz of mu and sigma.") from error


def _extras(path: str | os.PathLike, arrays: dict) -> tuple[int | None, dict]:
    try:
        n = int(arrays["n"]) if "n" in arrays else None
        meta = json.loads(str(arrays["meta"])) if "meta" in arrays else {}
        return n, dict(meta)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: n is no number of images, or meta no JSON: {error}.") from error


def _statistics(path: str | os.PathLike, arrays: dict, mu: str, sigma: str) -> Statistics:
    missing = [key for key in (mu, sigma) if key not in arrays]
    if missing:
        raise UserError(f"{path} has no {' and no '.join(missing)}: it is no file of statistics.")
    if problem := _problem(arrays[mu], arrays[sigma]):
        raise UserError(f"{path}: {sigma if 'covariance' in problem else mu} is {problem}.")
    return Statistics(arrays[mu].astype(np.float64), arrays[sigma].astype(np.float64))


def _problem(mu: np.ndarray, sigma: np.ndarray) -> str | None:
    """What makes these no mean and no covariance; None: nothing."""
    if mu.ndim != 1 or not mu.size or mu.dtype.kind != "f" or not np.isfinite(mu).all():
        return f"no finite mean (D,): {mu.dtype}{list(mu.shape)}"
    if sigma.shape != (len(mu), len(mu)) or sigma.dtype.kind != "f":
        return f"no covariance of {len(mu)} features: {sigma.dtype}{list(sigma.shape)}"
    if not np.isfinite(sigma).all():
        return "no covariance: it has entries that aren't finite"
    if np.abs(sigma - sigma.T).max() > 1e-5 * np.abs(sigma).max():
        return "no covariance: it isn't symmetric"
    if np.diagonal(sigma).min() < 0:
        return "no covariance: a variance is negative"
    return None
