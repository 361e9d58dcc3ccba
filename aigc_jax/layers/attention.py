"""Attention (Vaswani et al. 2017): of arrays, of a sequence to itself, of a map to itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Dense, Reparametrization
from aigc_jax.types import Array

Initializer = jax.nn.initializers.Initializer


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1): PyTorch's, heads before last.

    Args:
      q: (B, T, heads, D), who asks.
      k, v: (B, S, heads, D), what is asked.
      mask: bool, broadcastable to (B, heads, T, S), of rank 4: True where t may see s. A row that
        may see nothing takes the mean of v.

    Returns:
      (B, T, heads, D) of v's dtype; the softmax is in float32.
    """
    logits = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def causal_mask(length: int) -> Array:
    """(1, 1, length, length) bool: t sees s <= t."""
    return jnp.tri(length, dtype=bool).reshape(1, 1, length, length)


class Cache(NamedTuple):
    """Keys and values of the positions so far, (B, T, heads, D) each; what is to come is zero."""

    k: Array
    v: Array

    @classmethod
    def empty(cls, batch_size: int, length: int, heads: int, dim: int, dtype: Any) -> "Cache":
        """A cache before the first of `length` positions."""
        zeros = jnp.zeros((batch_size, length, heads, dim), dtype)
        return cls(zeros, zeros)


class SelfAttention(nn.Module):
    """Multi-head self-attention, over a sequence or one position at a time.

    Parameters: `qkv`, a linear layer to the queries, keys and values of all heads in this order
    (PyTorch's `in_proj`, transposed), and `out`. UserError if `heads` does not divide `width`.

    Attributes:
      width: of the input and the output.
      heads: of width / heads each.
      causal: whether a position sees only itself and what is before it.
      kernel_init, out_init: of the two kernels.
      dtype: of the computation.
    """

    width: int
    heads: int
    causal: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()
    out_init: Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """The two linear layers."""
        if self.heads < 1 or self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide a width of {self.width}: "
                "change model.heads or model.width."
            )
        self.qkv = nn.Dense(3 * self.width, kernel_init=self.kernel_init, dtype=self.dtype)
        self.out = nn.Dense(self.width, kernel_init=self.out_init, dtype=self.dtype)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """x (B, T, width) -> the same; mask (bool, as of `attend`) restricts it further."""
        q, k, v = self._heads(x)
        if self.causal:
            causal = causal_mask(x.shape[1])
            mask = causal if mask is None else causal & mask
        return self.out(attend(q, k, v, mask).reshape(x.shape))

    def step(self, x: Array, position: Array, cache: Cache) -> tuple[Array, Cache]:
        """One position of the causal sequence, given those before it.

        Args:
          x: (B, 1, width).
          position: () int32, of x, less than the cache's T.
          cache: of the positions before; `Cache.empty` at first.

        Returns:
          (B, 1, width), what `__call__` gives at this position, and the cache with it.
        """
        q, k, v = self._heads(x)
        put = jax.lax.dynamic_update_slice_in_dim
        cache = Cache(put(cache.k, k, position, 1), put(cache.v, v, position, 1))
        length = cache.k.shape[1]
        seen = (jnp.arange(length) <= position).reshape(1, 1, 1, length)
        return self.out(attend(q, *cache, seen).reshape(x.shape)), cache

    def _heads(self, x: Array) -> list[Array]:
        """Queries, keys and values, (B, T, heads, D) each."""
        split = jnp.split(self.qkv(x), 3, -1)
        return [part.reshape(*x.shape[:2], self.heads, -1) for part in split]


class MapAttention(nn.Module):
    """A map's attention to itself, added to it: x + sigma * A(x) (Zhang et al. 2019, section 3).

    Queries and keys have an eighth of the channels, values a half; keys and values are the largest
    of each 2x2 pixels, and products are not scaled, as in the authors' code. `sigma` is 0 at first.

    Attributes:
      kernel_init, reparam: of the four linear layers, which have no biases.
      dtype: of the computation; the softmax is in float32.
    """

    kernel_init: Initializer = nn.initializers.orthogonal()
    reparam: Reparametrization | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C), sides even -> the same."""
        b, h, w, c = x.shape

        def linear(name: str, features: int, y: Array) -> Array:
            given = dict(kernel_init=self.kernel_init, reparam=self.reparam, dtype=self.dtype)
            return Dense(features, use_bias=False, name=name, **given)(y)

        q = linear("query", max(1, c // 8), x).reshape(b, h * w, -1)
        k = _largest(linear("key", max(1, c // 8), x))
        v = _largest(linear("value", max(1, c // 2), x))
        logits = jnp.einsum("btd,bsd->bts", q, k, preferred_element_type=jnp.float32)
        seen = jax.nn.softmax(logits).astype(v.dtype) @ v
        seen = linear("out", c, seen.reshape(b, h, w, -1))
        sigma = self.param("sigma", nn.initializers.zeros, ())
        return x + sigma.astype(x.dtype) * seen


def _largest(x: Array) -> Array:
    """Of each 2x2 pixels: (B, H, W, C) -> (B, H W / 4, C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4)).reshape(b, -1, c)
