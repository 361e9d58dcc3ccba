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

    def cut(row: Array, column: Array, size: tuple[int, int]) -> Array:
        return lax.dynamic_slice(padded, (0, reach + row, reach + column), (channels, *size))

    def squares(shift: Array) -> Array:
        size = (height + radius + 2 * margin, width + radius + 2 * margin)
        row, column = _origin(shift)
        first = cut(row - margin, column - margin, size)
        second = cut(row + shift[0] - margin, column + shift[1] - margin, size)
        return jnp.mean((first - second) ** 2, 0)

    def add(sums: tuple[Array, Array], weights: Array, shift: Array) -> tuple[Array, Array]:
        start = jnp.stack(_origin(shift))
        ahead, behind = (
            lax.dynamic_slice(weights, at, (height, width))[None] for at in (-start, -start - shift)
        )
        values = ahead * cut(*shift, (height, width)) + behind * cut(*-shift, (height, width))
        return sums[0] + values, sums[1] + ahead + behind

    def step(carry: tuple, shifts: Array) -> tuple[tuple, None]:
        sums, *handed = carry
        made = [stage(x, s) for stage, x, s in zip(stages, handed, shifts[1:], strict=False)]
        return (add(sums, handed[-1], shifts[-1]), squares(shifts[0]), *made), None

    sums = (planes, jnp.ones_like(planes[:1]))
    shifts = _half_window(radius)
    empty = [jax.eval_shape(squares, shifts[0])]
    for stage in stages:
        empty.append(jax.eval_shape(stage, empty[-1], shifts[0]))
    handed = [jnp.full(x.shape, jnp.inf) for x in empty[:-1]] + [jnp.zeros(empty[-1].shape)]
    ((values, weights), *_), _ = lax.scan(step, (sums, *handed), _staggered(shifts, len(handed)))
    return values / weights


def _origin(shift: Array) -> tuple[Array, Array]:
    """Row and column of the first pair of a shift: those before pixel 0, 0 that reach the image."""
    return -shift[0], -jnp.maximum(shift[1], 0)


def _half_window(radius: int) -> np.ndarray:
    """One shift (down, right) of each pair s, -s of a window, without 0: (N, 2) int32."""
    side = range(-radius, radius + 1)
    shifts = [(y, x) for y in range(radius + 1) for x in side if (y, x) > (0, 0)]
    return np.array(shifts, np.int32).reshape(-1, 2)


def _staggered(shifts: np.ndarray, late: int) -> np.ndarray:
    """(N, 2) -> (N + late, late + 1, 2): of each step its shift, the one before, and so on."""
    rows = [np.pad(shifts, ((i, late - i), (0, 0))) for i in range(late + 1)]
    return np.stack(rows, 1)
