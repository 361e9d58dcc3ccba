"""Non-local means (Buades, Coll and Morel 2005): means of the pixels whose patches look alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.filters._image import check_odd, check_positive, from_planes, to_planes
from aigc_jax.filters._pairs import weighted_mean
from aigc_jax.types import Array

# The best patch up to each share of noise in the range, as `h` tuned on BSD's 400 training crops.
_PATCHES = ((8 / 255, 3), (20 / 255, 5), (32 / 255, 7), (42 / 255, 9), (60 / 255, 11))
_LARGEST = 13


def nl_means(
    image: Array,
    sigma: float | Array,
    *,
    patch_size: int | None = None,
    search: int = 21,
    h: float | Array | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> Array:
    """Denoises by NL-means.

    The weight of pixel y in the mean at x, for all y of the search window, is

        exp(-max(d^2(x, y) - 2 sigma^2, 0) / h^2),

    d^2 the mean square difference of the two patches over channels and pixels, which a tent
    weights: (k - |i|) (k - |j|) at (i, j) from the centre, patch_size = 2 k - 1. That is two box
    sums, and near the Gaussian of the paper. At its centre 2 sigma^2 is what noise alone gives.
    Borders are reflected.

    Args:
      image: (H, W) or (H, W, C) float, in any units; jax.vmap takes a batch.
      sigma: the noise's standard deviation, in the units of the image.
      patch_size: odd side of the patch in pixels, static; by default 3 to 13 as sigma grows.
      search: odd side of the search window in pixels, static.
      h: how fast weights fall, in the units of the image; by default 2 sigma / sqrt(patch_size).
      data_range: the lowest and the highest value that images can have: the default patch depends
        on the share of it that sigma is, nothing else does.

    Returns:
      A float32 image of the same shape.

    Raises:
      UserError: sigma or h not positive, a side that is not odd, an image smaller than the patch,
        an image of integers, or a traced sigma without patch_size.
    """
    check_positive(sigma=sigma)
    if patch_size is None:
        patch_size = best_patch(sigma, data_range)
    check_odd(patch_size=patch_size, search=search)
    h = 2 * sigma / patch_size**0.5 if h is None else h
    check_positive(h=h)
    planes = to_planes(image, "nl_means", patch_size=patch_size)
    return from_planes(_nl_means(planes, sigma, h, patch_size // 2, search // 2), image)


def best_patch(sigma: float, data_range: tuple[float, float] = (-1.0, 1.0)) -> int:
    """The patch for noise of this standard deviation: 3 to 13 pixels a side, more for more noise.

    Raises UserError for a traced sigma.
    """
    if isinstance(sigma, jax.core.Tracer):
        raise UserError("nl_means: give patch_size; a traced sigma cannot choose it.")
    share = sigma / (data_range[1] - data_range[0])
    return next((patch for most, patch in _PATCHES if share <= most), _LARGEST)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _nl_means(planes: Array, sigma: Array, h: Array, half: int, radius: int) -> Array:
    def across(squares: Array, _: Array) -> Array:
        return _tent_mean(squares, half + 1, 1)

    def weigh(means: Array, _: Array) -> Array:
        distances = _tent_mean(means, half + 1, 0)
        return jnp.exp(-jnp.maximum(distances - 2 * sigma**2, 0) / h**2)

    return weighted_mean(planes, radius, half, (across, weigh))


def _tent_mean(x: Array, k: int, axis: int) -> Array:
    """Means with weights 1, 2, ..., k, ..., 2, 1: n -> n - 2 k + 2 along the axis."""
    tent = np.convolve(np.ones(k), np.ones(k)).astype(np.float32) / k**2
    length = x.shape[axis] - len(tent) + 1
    return sum(
        weight * lax.slice_in_dim(x, i, i + length, axis=axis) for i, weight in enumerate(tent)
    )
