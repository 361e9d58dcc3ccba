"""Means and medians over a window: the Gaussian, the bilateral, the median."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.filters._image import check_odd, check_positive, from_planes, to_planes
from aigc_jax.filters._pairs import weighted_mean
from aigc_jax.types import Array


def gaussian(image: Array, sigma: float) -> Array:
    """The mean under a Gaussian window, cut off at 4 sigma; borders are reflected.

    Args:
      image: (H, W) or (H, W, C) float; jax.vmap takes a batch.
      sigma: in pixels, static.

    Returns:
      A float32 image of the same shape.

    Raises:
      UserError: sigma not positive, or an image of integers.
    """
    check_positive(sigma=sigma)
    radius = int(4 * sigma + 0.5)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    planes = to_planes(image, "gaussian")
    for axis in (1, 2):
        planes = _convolve(planes, (window / window.sum()).astype(np.float32), axis)
    return from_planes(planes, image)


def bilateral(
    image: Array,
    sigma_range: float | Array,
    sigma_space: float | Array,
    *,
    radius: int | None = None,
) -> Array:
    """The mean of the near pixels of a like value (Tomasi and Manduchi 1998).

    The weight of pixel y at x is exp(-|x - y|^2 / 2 sigma_space^2 - d^2 / 2 sigma_range^2), d^2 the
    mean square difference of their channels; borders are reflected.

    Args:
      image: (H, W) or (H, W, C) float; jax.vmap takes a batch.
      sigma_range: in the units of the image.
      sigma_space: in pixels.
      radius: of the window, in pixels, static; by default 3 sigma_space, rounded up, which then is
        static too.

    Returns:
      A float32 image of the same shape.

    Raises:
      UserError: a sigma or the radius not positive, or an image of integers.
    """
    check_positive(sigma_range=sigma_range, sigma_space=sigma_space)
    if radius is None:
        if isinstance(sigma_space, jax.core.Tracer):
            raise UserError("bilateral: give radius; a traced sigma_space cannot choose it.")
        radius = math.ceil(3 * sigma_space)
    check_positive(radius=radius)
    planes = to_planes(image, "bilateral")
    return from_planes(_bilateral(planes, sigma_range, sigma_space, radius), image)


def median(image: Array, size: int = 3) -> Array:
    """The median of a square window, of each channel by itself; borders are reflected.

    Args:
      image: (H, W) or (H, W, C) float; jax.vmap takes a batch.
      size: odd side of the window in pixels, static; the work grows as size^2 log^2 size.

    Returns:
      A float32 image of the same shape.

    Raises:
      UserError: a size that is not odd, an image smaller than the window or of integers.
    """
    check_odd(size=size)
    return from_planes(_median(to_planes(image, "median", size=size), size), image)


@functools.partial(jax.jit, static_argnums=2)
def _convolve(planes: Array, window: Array, axis: int) -> Array:
    """One axis with an odd, symmetric window."""
    length, margin = planes.shape[axis], len(window) // 2
    pad = [(margin, margin) if i == axis else (0, 0) for i in range(3)]
    padded = jnp.pad(planes, pad, mode="reflect")
    starts = enumerate(window)
    return sum(w * lax.slice_in_dim(padded, i, i + length, axis=axis) for i, w in starts)


@functools.partial(jax.jit, static_argnums=3)
def _bilateral(planes: Array, sigma_range: Array, sigma_space: Array, radius: int) -> Array:
    def weight(squares: Array, shift: Array) -> Array:
        space = jnp.sum(shift.astype(jnp.float32) ** 2) / sigma_space**2
        return jnp.exp(-0.5 * (space + squares / sigma_range**2))

    return weighted_mean(planes, radius, 0, [weight])


@functools.partial(jax.jit, static_argnums=1)
def _median(planes: Array, size: int) -> Array:
    _, height, width = planes.shape
    margin = size // 2
    padded = jnp.pad(planes, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    places = [(y, x) for y in range(size) for x in range(size)]
    window = [padded[:, y : y + height, x : x + width] for y, x in places]
    for i, j in _sorting_network(len(window)):
        window[i], window[j] = jnp.minimum(window[i], window[j]), jnp.maximum(window[i], window[j])
    return window[len(window) // 2]


def _sorting_network(n: int) -> Iterator[tuple[int, int]]:
    """Batcher's odd-even merge sort (1968): pairs to put in order, one after the other.

    Compilers drop what the median does not need.
    """
    run = 1
    while run < n:
        step = run
        while step:
            for first in range(step % run, n - step, 2 * step):
                for i in range(first, min(first + step, n - step)):
                    if i // (2 * run) == (i + step) // (2 * run):
                        yield i, i + step
            step //= 2
        run *= 2
