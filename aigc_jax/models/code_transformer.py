"""A decoder-only transformer over a grid of codes, in raster order (Radford et al. 2019).

The prior of an autoencoder with discrete latents (van den Oord et al. 2017; Esser et al. 2021):
p(codes | label) = prod_t p(code_t | label, code_0, ..., code_{t-1}). The input at position t is
code t - 1, or a start token made of the label, plus what is learned of the row and the column of t.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.attention import Cache, SelfAttention
from aigc_jax.types import Array

_normal = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Pre-LN residual block: causal self-attention, then a GELU MLP four times as wide.

    Attributes:
      width, heads, dtype: as of `Transformer`.
      out_init: of the kernels that write to the residual stream.
      dropout: of what is written there.
    """

    width: int
    heads: int
    out_init: nn.initializers.Initializer
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Two norms, the attention and the MLP."""
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.attention = SelfAttention(
            self.width, self.heads, True, _normal, self.out_init, self.dtype
        )
        self.expand = nn.Dense(4 * self.width, kernel_init=_normal, dtype=self.dtype)
        self.contract = nn.Dense(self.width, kernel_init=self.out_init, dtype=self.dtype)

    def __call__(self, x: Array, keys: Array | None) -> Array:
        """x (B, T, width), keys (B,) for dropout or None -> (B, T, width)."""
        x = x + dropout(self.attention(self.norm1(x)), self.dropout, _apart(keys, 0))
        return x + dropout(self._mlp(self.norm2(x)), self.dropout, _apart(keys, 1))

    def step(self, x: Array, position: Array, cache: Cache) -> tuple[Array, Cache]:
        """One position, x (B, 1, width): see `SelfAttention.step`."""
        y, cache = self.attention.step(self.norm1(x), position, cache)
        x = x + y
        return x + self._mlp(self.norm2(x)), cache

    def _mlp(self, x: Array) -> Array:
        return self.contract(nn.gelu(self.expand(x)))


class Transformer(nn.Module):
    """Codes -> logits of each code given the label and the codes before it.

    Attributes:
      num_codes: K, the codebook's size.
      grid: (h, w) of the codes; T = h * w.
      width: of the residual stream; `heads` must divide it (UserError).
      depth: blocks.
      heads: of the attention.
      num_classes: 0 for unconditional. The label `num_classes` stands for none.
      dropout: of the embeddings and of what each layer writes to the residual stream.
      dtype: of the computation; logits are float32.
    """

    num_codes: int = 512
    grid: tuple[int, int] = (8, 8)
    width: int = 192
    depth: int = 6
    heads: int = 6
    num_classes: int = 0
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """The embeddings, the blocks, the last norm and the head."""
        embed = partial(nn.Embed, features=self.width, embedding_init=_normal, dtype=self.dtype)
        self.code = embed(self.num_codes)
        self.start = embed(self.num_classes + 1)
        self.row, self.column = embed(self.grid[0]), embed(self.grid[1])
        # The residual stream keeps its variance, whatever the depth (Radford et al. 2019, 2.3).
        out_init = nn.initializers.normal(0.02 / math.sqrt(2 * self.depth))
        block = partial(Block, self.width, self.heads, out_init, self.dropout, self.dtype)
        self.blocks = [block() for _ in range(self.depth)]
        self.norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.head = nn.Dense(self.num_codes, kernel_init=_normal, dtype=self.dtype)

    def __call__(
        self, codes: Array, label: Array | None = None, *, train: bool, keys: Array | None = None
    ) -> Array:
        """Logits of all positions at once, the true codes given (teacher forcing).

        Args:
          codes: (B, h, w) int32 in [0, num_codes).
          label: (B,) int32 in [0, num_classes]; None: no label.
          train: whether to drop out, if `dropout` is above 0.
          keys: (B,) keys for that, one an example.

        Returns:
          (B, T, num_codes) float32; those at t depend on the label and on the codes before t alone.
        """
        b = codes.shape[0]
        keys = keys if train else None
        before = self.code(codes.reshape(b, -1)[:, :-1])
        x = jnp.concatenate([self._start(label, b), before], 1)
        x = x + self._positions(jnp.arange(x.shape[1]))
        x = dropout(x, self.dropout, _apart(keys, self.depth))
        for i, block in enumerate(self.blocks):
            x = block(x, _apart(keys, i))
        return self._logits(x)

    def step(
        self, token: Array, position: Array, cache: list[Cache], label: Array | None = None
    ) -> tuple[Array, list[Cache]]:
        """Logits of one position, what `__call__` gives there: for sampling.

        Args:
          token: (B,) int32, the code at position - 1; whatever at position 0.
          position: () int32 in [0, T).
          cache: of the positions before; `empty_cache` at first.
          label: as of `__call__`.

        Returns:
          (B, num_codes) float32, and the cache with this position.
        """
        start = self._start(label, len(token))
        x = jnp.where(position == 0, start, self.code(token[:, None]))
        x = x + self._positions(position.reshape(1))
        caches = []
        for block, old in zip(self.blocks, cache, strict=True):
            x, new = block.step(x, position, old)
            caches.append(new)
        return self._logits(x)[:, 0], caches

    def empty_cache(self, batch_size: int) -> list[Cache]:
        """What `step` starts from: a cache for each block."""
        length, dim = math.prod(self.grid), self.width // self.heads
        return [Cache.empty(batch_size, length, self.heads, dim, self.dtype)] * self.depth

    def _start(self, label: Array | None, batch_size: int) -> Array:
        """(B, 1, width)."""
        if label is None:
            label = jnp.full(batch_size, self.num_classes, jnp.int32)
        return self.start(label[:, None])

    def _positions(self, position: Array) -> Array:
        """(t,) int32 -> (1, t, width)."""
        row, column = jnp.divmod(position, self.grid[1])
        return (self.row(row) + self.column(column))[None]

    def _logits(self, x: Array) -> Array:
        return self.head(self.norm(x)).astype(jnp.float32)


def draw(
    model: nn.Module,
    variables: Any,
    keys: Array,
    label: Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    guidance: float = 0.0,
) -> Array:
    """Codes drawn one after another, each given those before it.

    Args:
      model: a `Transformer`.
      keys: (B,), one an example: it and the label settle the example, whatever those around it.
      label: (B,) int32 in [0, num_classes], or None.
      temperature, top_k, guidance: static; see `methods.code_prior.sample`.

    Returns:
      (B, h, w) int32.
    """
    # With guidance every example goes through twice, with its label and with none.
    passes = 2 if guidance else 1
    if guidance:
        label = jnp.concatenate([label, jnp.full_like(label, model.num_classes)])
    apply = partial(model.apply, variables)

    def draw_next(carry: tuple[Array, Any], position: Array) -> tuple[tuple[Array, Any], Array]:
        code, cache = carry
        before = jnp.tile(code, passes)
        logits, cache = apply(before, position, cache, label, method="step")
        if guidance:
            given, free = jnp.split(logits, 2)
            logits = given + guidance * (given - free)
        code = choose(_apart(keys, position), logits / temperature, top_k)
        return (code, cache), code

    first = jnp.zeros(len(keys), jnp.int32)
    cache = apply(passes * len(keys), method="empty_cache")
    _, codes = jax.lax.scan(draw_next, (first, cache), jnp.arange(math.prod(model.grid)))
    return codes.T.reshape(-1, *model.grid)


def choose(keys: Array, logits: Array, top_k: int = 0) -> Array:
    """One of the codes by its logits (B, K), or of the top_k likeliest: (B,) int32; (B,) keys."""
    pick = jax.vmap(jax.random.categorical)
    if not top_k:
        return pick(keys, logits)
    # By rank, not by a threshold: XLA may round two copies of a logit differently.
    likely, codes = jax.lax.top_k(logits, top_k)
    return jnp.take_along_axis(codes, pick(keys, likely)[:, None], 1)[:, 0]


def dropout(x: Array, rate: float, keys: Array | None) -> Array:
    """x (B, ...) with a share `rate` of it zeroed and the rest scaled up; keys None: x.

    Each example has its own key, so that the layout of devices doesn't matter.
    """
    if keys is None or not rate:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def _apart(keys: Array | None, place: Array | int) -> Array | None:
    """Other keys for each place."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, place)
