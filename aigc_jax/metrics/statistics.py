"""Moments of features."""

import numpy as np


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) features -> their mean (D,) and unbiased covariance (D, D), float64.

    Raises:
      ValueError: N < 2.
    """
    if len(features) < 2:
        raise ValueError(f"A covariance needs at least 2 features, got {len(features)}.")
    features = features.astype(np.float64)
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)
