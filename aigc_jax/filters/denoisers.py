"""The filters with the parameters that suit noise of a known strength.

They were chosen on BSD's 400 training crops, for noise of 5 to 75 grey levels of 255.
"""

from aigc_jax.filters.nl_means import nl_means
from aigc_jax.filters.smoothing import bilateral, gaussian, median
from aigc_jax.filters.total_variation import total_variation
from aigc_jax.types import Array

_LEVEL = 2 / 255  # a grey level of images in [-1, 1]


def _nl_means(image: Array, sigma: float) -> Array:
    return nl_means(image, sigma)


def _gaussian(image: Array, sigma: float) -> Array:
    return gaussian(image, 0.25 + 0.0233 * sigma / _LEVEL)


def _bilateral(image: Array, sigma: float) -> Array:
    return bilateral(image, 2.5 * sigma, 1.0 + 0.02 * sigma / _LEVEL)


def _median(image: Array, sigma: float) -> Array:
    level = sigma / _LEVEL
    return median(image, 3 if level < 27 else 5 if level < 45 else 7)


def _total_variation(image: Array, sigma: float) -> Array:
    return total_variation(image, min(0.6 + 0.006 * sigma / _LEVEL, 1.0) * sigma)


# name -> (image (H, W, C) in [-1, 1], sigma of the noise in its units) -> image; sigma is static.
DENOISERS = {
    "nlmeans": _nl_means,
    "gaussian": _gaussian,
    "bilateral": _bilateral,
    "median": _median,
    "tv": _total_variation,
}
