"""A conditional random field over labels, by mean field (Krahenbuhl & Koltun 2011; Zheng 2015)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.layers._pairs import (
    half_window,
    inside,
    pair_distances,
    pair_products,
    pair_sums,
)
from aigc_jax.types import Array


class Potentials(NamedTuple):
    """What the field's energy is made of, for each image.

    Attributes:
      unary: (B, H, W, K), the logits of a pixel by itself.
      compatibility: (B, K, K), symmetric: what it costs that neighbours have these two labels.
      weights: (B, 2), of the bilateral and the spatial kernel, positive.
      bandwidths: (3,), of the bilateral kernel in pixels and in units of the guide, and of the
        spatial kernel in pixels.
    """

    unary: Array
    compatibility: Array
    weights: Array
    bandwidths: Array


class MeanFieldCRF(nn.Module):
    """Unary logits -> probabilities of labels that agree with their neighbours'.

    The energy of a labelling x, with logits u, is

        E(x) = -sum_i u_i(x_i) + sum_{i<j} k_ij c(x_i, x_j),  k = w_1 N(k_1) + w_2 N(k_2),
        k_1 = exp(-|p_i - p_j|^2 / 2 a^2 - |g_i - g_j|^2 / 2 b^2),
        k_2 = exp(-|p_i - p_j|^2 / 2 s^2),

    p the positions and g the guide. N divides by sqrt(n_i n_j), n the kernel's sums over the
    window, the pixel itself included (so n >= 1); a pixel sends no message to itself. The
    compatibility c (at first Potts': 1 for different labels), the weights and the bandwidths are
    learned, and a condition is added to logits, weights and c by a linear map, at first zero.

    From Q = softmax(u) all pixels are updated at once: Q_i = softmax(u_i - sum_j k_ij c Q_j). With
    a Potts c each update lowers the variational free energy if w_1 / min n_1 + w_2 / min n_2 <= 2
    (whatever the guide if w_1 + w_2 <= 2, as n >= 1; the defaults are above that): an update
    minimises -H(Q) plus the pairwise term's tangent, so it gains the divergence of old from new, at
    least |dQ|^2, and the term lies above its tangent by no more than half of |dQ|^2 times minus the
    least eigenvalue of k. (That holds for `window=None`; cutting a Gaussian off at the window adds
    a little to that eigenvalue.) Where the couplings are stronger, or where labels repel, updates
    may go back and forth.

    Attributes:
      window: odd side in pixels of the neighbourhood (ConvCRF's, Teichmann & Cipolla 2018); None:
        all pixels, which takes (H W)^2 numbers an image.
      iterations: updates of Q.
      weights: w_1 and w_2 at first.
      bandwidths: a (pixels), b (units of the guide) and s (pixels) at first.
    """

    window: int | None = 7
    iterations: int = 5
    weights: tuple[float, float] = (3.0, 1.0)
    bandwidths: tuple[float, float, float] = (3.0, 0.2, 1.0)

    def __call__(self, unary: Array, guide: Array, condition: Array | None = None) -> Array:
        """The probabilities.

        Args:
          unary: (B, H, W, K) logits.
          guide: (B, H, W, C), pixels that look alike here are coupled more.
          condition: (B, E), or None.

        Returns:
          (B, H, W, K) float32, 1 in sum over K.

        Raises:
          UserError: a window that is not odd, or no iteration.
        """
        potentials = self.potentials(unary, condition)
        return infer(potentials, guide, self.window, self.iterations)

    @nn.compact
    def potentials(self, unary: Array, condition: Array | None = None) -> Potentials:
        """The energy's parts, float32; arguments as of the call."""
        if self.iterations < 1:
            raise UserError(f"A CRF of {self.iterations} iterations does nothing: take 1 or more.")
        unary = unary.astype(jnp.float32)
        size, labels = len(unary), unary.shape[-1]
        compatibility = self.param("compatibility", lambda _: 1 - jnp.eye(labels))
        weights = self.param("weights", lambda _: _inverse_softplus(self.weights))
        bandwidths = self.param("log_bandwidths", lambda _: jnp.log(jnp.array(self.bandwidths)))
        compatibility = jnp.broadcast_to(compatibility, (size, labels, labels))
        weights = jnp.broadcast_to(weights, (size, 2))
        if condition is not None:
            sizes = labels, 2, labels**2
            zero = nn.initializers.zeros
            more = nn.Dense(sum(sizes), kernel_init=zero, use_bias=False, name="condition")
            more = more(condition.astype(jnp.float32))
            unary += more[:, :labels].reshape(size, 1, 1, labels)
            weights += more[:, labels : labels + 2]
            compatibility += more[:, labels + 2 :].reshape(size, labels, labels)
        compatibility = (compatibility + compatibility.swapaxes(1, 2)) / 2
        return Potentials(unary, compatibility, nn.softplus(weights), jnp.exp(bandwidths))


def infer(potentials: Potentials, guide: Array, window: int | None, iterations: int) -> Array:
    """Q after that many updates from softmax(unary): (B, H, W, K); see `MeanFieldCRF`."""
    unary = _rows(potentials.unary)
    couple = couplings(potentials, guide, window)

    def update(q: Array, _: None) -> tuple[Array, None]:
        return nn.softmax(unary - costs(couple(q), potentials.compatibility), axis=2), None

    return _rows(lax.scan(update, nn.softmax(unary, axis=2), None, length=iterations)[0])


def free_energy(q: Array, potentials: Potentials, guide: Array, window: int | None) -> Array:
    """(B,) the variational free energy E_Q[E(x)] - H(Q) of Q (B, H, W, K): above -log Z."""
    q, unary = _rows(q), _rows(potentials.unary)
    cost = costs(couplings(potentials, guide, window)(q), potentials.compatibility)
    log_q = jnp.log(jnp.maximum(q, jnp.finfo(q.dtype).tiny))
    return jnp.sum(q * (log_q - unary + cost / 2), (1, 2, 3))


def couplings(potentials: Potentials, guide: Array, window: int | None) -> Callable:
    """x (B, H, K, W) -> sum_j k_ij x_j, the same shape."""
    guide = guide.astype(jnp.float32)
    if window is None:
        kernel = dense_kernel(guide, potentials.weights, potentials.bandwidths)
        return partial(jnp.einsum, "bhwij,bikj->bhkw", kernel)
    if window < 3 or window % 2 == 0:
        raise UserError(f"A CRF's window has an odd side of 3 pixels or more: not {window}.")
    return partial(
        pair_sums, local_kernel(_rows(guide), window, potentials.weights, potentials.bandwidths)
    )


def costs(coupled: Array, compatibility: Array) -> Array:
    """(B, H, K, W), (B, K, K) -> (B, H, K, W): sum over l' of c(l, l') coupled(l')."""
    size, labels, _ = compatibility.shape
    columns = compatibility.reshape(size, 1, labels, labels, 1)
    # A sum of planes and no matrix product: these are few labels, and the pixels fill the lanes.
    return sum(coupled[:, :, k : k + 1] * columns[:, :, k] for k in range(labels))


def local_kernel(guide: Array, window: int, weights: Array, bandwidths: Array) -> Array:
    """The couplings of the pairs in a window, as `pair_sums` takes them; guide (B, H, C, W)."""
    _, height, _, width = guide.shape
    near, alike, smooth = 1 / (2 * bandwidths**2)
    apart = jnp.array([y**2 + x**2 for y, x in half_window(window)], jnp.float32)
    apart, pairs = apart.reshape(-1, 1, 1, 1), inside(height, width, window)
    bilateral = pairs * jnp.exp(-near * apart - alike * pair_distances(guide, window))
    spatial = pairs * jnp.exp(-smooth * apart)
    first, second = (weights[:, i].reshape(1, -1, 1, 1) for i in (0, 1))
    return first * _normalised(bilateral, guide) + second * _normalised(spatial, guide[:1])


def _normalised(kernel: Array, image: Array) -> Array:
    kernel = lax.optimization_barrier(kernel)  # laid down, else its exponentials are taken anew
    window = 2 * (kernel.shape[2] - image.shape[1]) + 1
    scale = lax.rsqrt(1 + pair_sums(kernel, jnp.ones_like(image[:, :, :1])))
    return kernel * pair_products(scale, scale / 2, window)


def dense_kernel(guide: Array, weights: Array, bandwidths: Array) -> Array:
    """The couplings of all pairs, 0 of a pixel with itself: (B, H, W, H, W); guide (B, H, W, C)."""
    size, height, width, channels = guide.shape
    near, alike, smooth = bandwidths
    place = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    place = place.reshape(1, -1, 2).astype(jnp.float32)
    guide = guide.reshape(size, -1, channels)
    places = jnp.broadcast_to(place, (size, *place.shape[1:]))
    bilateral = _gaussian(jnp.concatenate([places / near, guide / alike], -1))
    first, second = (weights[:, i].reshape(-1, 1, 1) for i in (0, 1))
    kernel = first * bilateral + second * _gaussian(place / smooth)
    return kernel.reshape(size, *[height, width] * 2)


def _gaussian(x: Array) -> Array:
    """(B, N, E) -> (B, N, N): exp(-|x_i - x_j|^2 / 2), normalised, 0 on the diagonal."""
    x -= x.mean(1, keepdims=True)  # keeps the squares small that are about to cancel
    squares = jnp.sum(x**2, -1, keepdims=True)
    products = jnp.einsum("bie,bje->bij", x, x, precision="highest")
    distances = squares + squares.swapaxes(1, 2) - 2 * products
    other = 1 - jnp.eye(x.shape[1]).reshape(1, *[x.shape[1]] * 2)
    kernel = other * jnp.exp(-jnp.maximum(distances, 0) / 2)
    scale = lax.rsqrt(1 + kernel.sum(-1, keepdims=True))
    return kernel * scale * scale.swapaxes(1, 2)


def _rows(x: Array) -> Array:
    """(B, H, W, K) -> (B, H, K, W), and back."""
    return x.swapaxes(2, 3)


def _inverse_softplus(x: tuple[float, ...]) -> Array:
    return jnp.log(jnp.expm1(jnp.array(x)))
