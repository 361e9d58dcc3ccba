"""A Gaussian conditional random field over images (Chandra & Kokkinos 2016)."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from aigc_jax.types import Array

# One shift (down, right) to each of the 8 neighbours' pairs.
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


class GaussianCRF(nn.Module):
    """Images -> the mean of a Gaussian field around them, smooth where the guide is.

    The field's energy, for each channel of x, is

        E(x) = sum_i (x_i - b_i)^2 / 2 + sum_{ij} w_ij (x_i - x_j)^2 / 2,
        w_ij = a_d exp(-sum_c |g_ic - g_jc|^2 / 2 s_c^2),

    the second sum over pairs of neighbours; the precision I + L, L the graph's Laplacian, is
    positive definite as all w are. Its mean solves (I + L) x = b: by conjugate gradients, and so
    do its derivatives, without those of the iterations. The strength a_d of each direction and the
    bandwidth s_c of each channel of the guide are learned, and a condition is added to both (to
    their logarithms) by a linear map, at first zero.

    Attributes:
      neighbours: 4 or 8.
      strength: a at first, small: x is near b.
      bandwidth: s at first, in units of the guide.
      tolerance: conjugate gradients end at residuals of this share of b's length, in every image.
      iterations: or after so many.
    """

    neighbours: int = 8
    strength: float = 0.05
    bandwidth: float = 0.2
    tolerance: float = 1e-5
    iterations: int = 100

    @nn.compact
    def __call__(self, image: Array, guide: Array, condition: Array | None = None) -> Array:
        """The mean.

        Args:
          image: (B, H, W, C), b above, in any units.
          guide: (B, H, W, G).
          condition: (B, E), or None.

        Returns:
          (B, H, W, C) float32, within the range of each channel of `image`.

        Raises:
          ValueError: neighbours other than 4 or 8.
        """
        if self.neighbours not in (4, 8):
            raise ValueError(f"A pixel has 4 neighbours or 8, not {self.neighbours}.")
        shifts, features = _SHIFTS[: self.neighbours // 2], guide.shape[-1]
        size = len(image)
        constant = nn.initializers.constant
        strengths = self.param("log_strength", constant(jnp.log(self.strength)), (len(shifts),))
        bandwidths = self.param("log_bandwidth", constant(jnp.log(self.bandwidth)), (features,))
        logs = jnp.concatenate([strengths, bandwidths])
        logs = jnp.broadcast_to(logs, (size, *logs.shape))
        if condition is not None:
            zero = nn.initializers.zeros
            more = nn.Dense(logs.shape[1], use_bias=False, kernel_init=zero, name="condition")
            logs += more(condition.astype(jnp.float32))
        strengths, bandwidths = jnp.split(jnp.exp(logs), [len(shifts)], 1)
        image, guide = (x.astype(jnp.float32).swapaxes(2, 3) for x in (image, guide))
        guide /= bandwidths.reshape(size, 1, -1, 1)
        weights = [
            strengths[:, i].reshape(-1, 1, 1, 1) * _similarity(guide, shift)
            for i, shift in enumerate(shifts)
        ]
        return solve(image, weights, shifts, self.tolerance, self.iterations).swapaxes(2, 3)


def solve(
    b: Array,
    weights: list[Array],
    shifts: tuple[tuple[int, int], ...],
    tolerance: float = 1e-5,
    iterations: int = 100,
) -> Array:
    """The x of (I + L) x = b, with implicit derivatives.

    Args:
      b: (B, H, C, W) float32.
      weights: for each shift (down, right) those of the pairs (i, i + shift) inside, positive:
        (B, H - |down|, 1, W - |right|).
      tolerance, iterations: as of `GaussianCRF`.
    """

    def precision(x: Array) -> Array:
        return x + sum(_laplacian(x, w, s) for w, s in zip(weights, shifts, strict=True))

    def conjugate(matvec: Callable, b: Array) -> Array:
        return _conjugate_gradients(matvec, b, tolerance, iterations)

    return lax.custom_linear_solve(precision, b, conjugate, symmetric=True)


def _ends(x: Array, shift: tuple[int, int]) -> tuple[Array, Array]:
    """The first and the second pixel of each pair (i, i + s) inside: (B, H - |y|, C, W - |x|)."""
    (down, right), (height, width) = shift, (x.shape[1], x.shape[3])
    left, most = max(-right, 0), max(right, 0)
    first = x[:, : height - down, :, left : width - most]
    return first, x[:, down:, :, left + right : width - most + right]


def _similarity(guide: Array, shift: tuple[int, int]) -> Array:
    first, second = _ends(guide, shift)
    return jnp.exp(-jnp.sum((first - second) ** 2, 2, keepdims=True) / 2)


def _laplacian(x: Array, weights: Array, shift: tuple[int, int]) -> Array:
    """sum_j w_ij (x_i - x_j) over the pairs of one shift."""
    first, second = _ends(x, shift)
    flow = weights * (first - second)
    (down, right), rest = shift, (0, 0)
    left, most = max(-right, 0), max(right, 0)
    from_first = jnp.pad(flow, (rest, (0, down), rest, (left, most)))
    return from_first - jnp.pad(flow, (rest, (down, 0), rest, (most, left)))


def _conjugate_gradients(matvec: Callable, b: Array, tolerance: float, iterations: int) -> Array:
    """Hestenes & Stiefel 1952, each image by itself: what has converged stands still."""

    def dot(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, range(1, x.ndim), keepdims=True)

    enough = tolerance**2 * dot(b, b)

    def going(state: tuple) -> Array:
        _, _, _, square, k = state
        return (k < iterations) & jnp.any(square > enough)

    def step(state: tuple) -> tuple:
        x, residual, direction, square, k = state
        product = matvec(direction)
        live = square > enough
        length = jnp.where(live, square / jnp.where(live, dot(direction, product), 1), 0)
        x, residual = x + length * direction, residual - length * product
        new = dot(residual, residual)
        turn = jnp.where(live, new / jnp.where(live, square, 1), 0)
        direction = jnp.where(live, residual + turn * direction, direction)
        return x, residual, direction, jnp.where(live, new, square), k + 1

    residual = b - matvec(b)
    state = b, residual, residual, dot(residual, residual), 0
    return lax.while_loop(going, step, state)[0]
