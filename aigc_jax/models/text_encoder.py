"""A small transformer that reads a caption; its blocks are CLIP's too (Radford et al. 2021)."""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.attention import SelfAttention
from aigc_jax.types import Array

_normal = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Pre-LN residual block (Radford et al. 2019): self-attention, then a wider MLP.

    Attributes:
      width, heads, dtype: as of `Transformer`.
      hidden: the MLP's width; 0 for 4 * width.
      causal: whether a token sees only itself and what is before it.
      activation: of the MLP.
      out_init: of the kernels that write to the residual stream.
    """

    width: int
    heads: int
    hidden: int = 0
    causal: bool = False
    activation: Callable[[Array], Array] = nn.gelu
    out_init: nn.initializers.Initializer = _normal
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """x (B, T, width) -> the same; mask as of `attend`."""
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype)
        attention = SelfAttention(
            self.width,
            self.heads,
            self.causal,
            _normal,
            self.out_init,
            self.dtype,
            name="attention",
        )
        x = x + attention(norm(name="norm1")(x), mask)
        hidden = self.hidden or 4 * self.width
        y = dense(hidden, kernel_init=_normal, name="expand")(norm(name="norm2")(x))
        y = self.activation(y)
        return x + dense(self.width, kernel_init=self.out_init, name="contract")(y)


class Transformer(nn.Module):
    """Token ids -> one vector of the caption, and one of each token in its context.

    Bidirectional, with learned positions; what `mask` leaves out changes nothing.

    Attributes:
      vocabulary: how many ids there are.
      length: T, the most tokens of a caption.
      width: of the vectors, E; `heads` must divide it (UserError).
      depth: blocks.
      heads: of the attention.
      dtype: of the computation; what is returned is float32.
    """

    vocabulary: int
    length: int
    width: int = 128
    depth: int = 2
    heads: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        """Reads captions.

        Args:
          tokens: (B, T) int32 in [0, vocabulary), T at most `length` (UserError).
          mask: (B, T) bool, True for a real token.

        Returns:
          (B, width) float32, the mean over the real tokens, 0 where there is none; and
          (B, T, width) float32, 0 where the mask is False.
        """
        t = tokens.shape[1]
        if t > self.length:
            raise UserError(
                f"A caption of {t} tokens for a text encoder of {self.length}: cut it, or train "
                "with a larger config.data.text.length."
            )
        embed = partial(nn.Embed, features=self.width, embedding_init=_normal, dtype=self.dtype)
        x = embed(self.vocabulary, name="token")(tokens)
        x = x + embed(self.length, name="position")(jnp.arange(t)[None])
        out_init = nn.initializers.normal(0.02 / math.sqrt(2 * max(self.depth, 1)))
        block = partial(Block, self.width, self.heads, out_init=out_init, dtype=self.dtype)
        for i in range(self.depth):
            x = block(name=f"layer_{i}")(x, seen(mask))
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x).astype(jnp.float32)
        return mean(x, mask), x * mask[..., None]


def seen(mask: Array) -> Array:
    """(B, T) bool, True for a real token -> (B, 1, 1, T), the mask of `attend`."""
    return mask[:, None, None]


def mean(features: Array, mask: Array) -> Array:
    """The mean of (B, T, E) over what the mask (B, T) keeps: (B, E), 0 where it keeps nothing."""
    weight = mask.astype(features.dtype)
    weight = weight / jnp.maximum(weight.sum(1, keepdims=True), 1)
    return jnp.einsum("bt,bte->be", weight, features)
