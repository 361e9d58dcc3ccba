"""The Frechet distance between Gaussians (Heusel et al. 2017, eq. 6; Dowson & Landau 1982)."""

import numpy as np


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)).

    The root's trace is the sum of the singular values of sigma1^(1/2) sigma2^(1/2), which needs no
    root of a matrix that isn't symmetric and stays exact below full rank.

    Args:
      mu1, mu2: (D,) means.
      sigma1, sigma2: (D, D) covariances.
    """
    shift = mu1.astype(np.float64) - mu2.astype(np.float64)
    product = _factor(sigma1).T @ _factor(sigma2)
    root = np.linalg.svd(product, compute_uv=False).sum()
    return float(shift @ shift + np.trace(sigma1) + np.trace(sigma2) - 2 * root)


def _factor(sigma: np.ndarray) -> np.ndarray:
    """L with L L^T = sigma, of a covariance of any rank."""
    values, vectors = np.linalg.eigh(sigma.astype(np.float64))
    return vectors * np.sqrt(np.maximum(values, 0))
