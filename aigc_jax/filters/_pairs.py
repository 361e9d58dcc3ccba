"""Means over a window whose weights belong to pairs of pixels, each worked out once."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.types import Array

Stage = Callable[[Array, Array], Array]


def weighted_mean(planes: Array, radius: int, margin: int, stages: Sequence[Stage]) -> Array:
    """Each pixel's mean over its window, (C, H, W) -> (C, H, W); borders are reflected.

    A shift s of half the window serves two: the weight of the pair (x, x + s) is that of x + s in
    the mean of x, and of x in the mean of x + s. A pixel's own weight is 1.

    The loop is a pipeline: each of its steps has one shift in every stage. So what one stage hands
    to the next lies in memory; fused, XLA would work it out anew for each of its uses.

    Args:
      radius: the window is (2 radius + 1)^2 pixels.
      margin: pixels that the stages take off each border.
      stages: functions of an array (H', W') and the shift (2,) int32. The first takes the squared
        differences between the image and the shifted image, the mean over channels; the last
        returns the weights, which are 0 where differences are infinite.
    """
    channels, height, width = planes.shape
    reach = radius + margin
    padded = jnp.pad(planes, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")

    def cut(start: Array, size: tuple[int, int]) -> Array:
        return lax.dynamic_slice(padded, (0, *(start + reach)), (channels, *size))

    def squares(shift: Array, _: Array) -> Array:
        size = (height + radius + 2 * margin, width + radius + 2 * margin)
        start = _first_pair(shift) - margin
        return jnp.mean((cut(start, size) - cut(start + shift, size)) ** 2, 0)

    def add(sums: tuple[Array, Array], weights: Array, shift: Array) -> tuple[Array, Array]:
        start, size = -_first_pair(shift), (height, width)
        ahead = lax.dynamic_slice(weights, start, size)[None]
        behind = lax.dynamic_slice(weights, start - shift, size)[None]
        values = ahead * cut(shift, size) + behind * cut(-shift, size)
        return sums[0] + values, sums[1] + ahead + behind

    def step(carry: tuple, shifts: Array) -> tuple[tuple, None]:
        sums, handed = carry
        made = zip((squares, *stages), (shifts[0], *handed), shifts, strict=False)
        made = [stage(x, shift) for stage, x, shift in made]
        return (add(sums, handed[-1], shifts[-1]), made), None

    sums = (planes, jnp.ones_like(planes[:1]))
    handed = _nothing_yet((squares, *stages))
    shifts = _staggered(_half_window(radius), len(handed))
    ((values, weights), _), _ = lax.scan(step, (sums, handed), shifts)
    return values / weights


def _first_pair(shift: Array) -> Array:
    """Row and column of the first x of the pairs (x, x + s) of which one lies in the image."""
    return -jnp.maximum(shift, 0)


def _nothing_yet(stages: Sequence[Stage]) -> list[Array]:
    """What each stage hands on before the first shift has come to it: weights of 0."""
    shift = x = jax.ShapeDtypeStruct((2,), jnp.int32)
    handed = []
    for stage in stages:
        x = jax.eval_shape(stage, x, shift)
        handed.append(jnp.full(x.shape, jnp.inf, x.dtype))
    return [*handed[:-1], jnp.zeros_like(handed[-1])]


def _half_window(radius: int) -> np.ndarray:
    """One shift (down, right) of each pair s, -s of a window, without 0: (N, 2) int32."""
    side = range(-radius, radius + 1)
    shifts = [(y, x) for y in range(radius + 1) for x in side if (y, x) > (0, 0)]
    return np.array(shifts, np.int32).reshape(-1, 2)


def _staggered(shifts: np.ndarray, late: int) -> np.ndarray:
    """(N, 2) -> (N + late, late + 1, 2): for each step its shift, the one before, and so on."""
    return np.stack([np.pad(shifts, ((i, late - i), (0, 0))) for i in range(late + 1)], 1)
