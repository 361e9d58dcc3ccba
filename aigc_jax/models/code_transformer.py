"""A decoder-only transformer over a grid of codes, in raster order (Radford et al. 2019).

The prior of an autoencoder with discrete latents (van den Oord et al. 2017; Esser et al. 2021):
p(codes | condition) = prod_t p(code_t | condition, code_0, ..., code_{t-1}). The input at position
t is code t - 1, or a start token made of the condition, plus what is learned of the row and the
column of t. A text's tokens are attended to in every block (Ding et al. 2021 have them in the
sequence itself; Saharia et al. 2022, A.1, found attention to them apart to be as good).

With `block` 2 a position stands for a square of 2x2 codes, so that the sequence is four times
shorter; a small network writes the square's codes one after another (as Lee et al. 2022, 3.2, those
of one place).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.attention import Cache, SelfAttention
from aigc_jax.layers.condition import Condition, CrossAttention, Encoded, Text, nothing
from aigc_jax.models.condition_encoder import ConditionEncoder
from aigc_jax.types import Array

_normal = nn.initializers.normal(0.02)


class Told(NamedTuple):
    """A condition as the blocks use it.

    Attributes:
      start: (B, 1, width), what stands before the first code.
      everywhere: (B, 1, width), what is added at all positions; 0 but for texts.
      text: encoded; None where there is none.
    """

    start: Array
    everywhere: Array | float = 0.0
    text: Encoded | None = None


class Block(nn.Module):
    """Pre-LN residual block: causal self-attention, then a GELU MLP four times as wide.

    Between the two, attention to a text, if there is one.

    Attributes:
      width, heads, dtype: as of `Transformer`.
      out_init: of the kernels that write to the residual stream.
      dropout: of what is written there.
      reads: whether there is a text.
    """

    width: int
    heads: int
    out_init: nn.initializers.Initializer
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    reads: bool = False

    def setup(self) -> None:
        """Two norms, the attention and the MLP."""
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.attention = SelfAttention(
            self.width, self.heads, True, _normal, self.out_init, self.dtype
        )
        if self.reads:
            self.reading = CrossAttention(self.heads, self.dtype)
        self.expand = nn.Dense(4 * self.width, kernel_init=_normal, dtype=self.dtype)
        self.contract = nn.Dense(self.width, kernel_init=self.out_init, dtype=self.dtype)

    def __call__(self, x: Array, text: Encoded | None, keys: Array | None) -> Array:
        """x (B, T, width), the text, keys (B,) for dropout or None -> (B, T, width)."""
        x = x + dropout(self.attention(self.norm1(x)), self.dropout, _apart(keys, 0))
        x = self._read(x, text)
        return x + dropout(self._mlp(self.norm2(x)), self.dropout, _apart(keys, 1))

    def step(
        self, x: Array, text: Encoded | None, position: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """One position, x (B, 1, width): see `SelfAttention.step`."""
        y, cache = self.attention.step(self.norm1(x), position, cache)
        x = self._read(x + y, text)
        return x + self._mlp(self.norm2(x)), cache

    def _read(self, x: Array, text: Encoded | None) -> Array:
        return self.reading(x[:, :, None], text)[:, :, 0] if self.reads else x

    def _mlp(self, x: Array) -> Array:
        return self.contract(nn.gelu(self.expand(x)))


class Transformer(nn.Module):
    """Codes -> logits of each code given the condition and the codes before it.

    Attributes:
      num_codes: K, the codebook's size.
      grid: (h, w) of the codes.
      block: side of the squares of codes that a position stands for; it must divide h and w
        (UserError). There are T = h * w / block^2 positions, of n = block^2 codes each.
      width: of the residual stream; `heads` must divide it (UserError).
      depth: blocks.
      heads: of the attention.
      num_classes: 0 for unconditional. The label `num_classes` stands for none.
      vocabulary: of texts' tokens, which are the condition then; 0: there are no texts.
      text_width, text_depth: of their encoder, see `ConditionEncoder`.
      dropout: of the embeddings and of what each layer writes to the residual stream.
      dtype: of the computation; logits are float32.
    """

    num_codes: int = 512
    grid: tuple[int, int] = (8, 8)
    width: int = 192
    depth: int = 6
    heads: int = 6
    block: int = 1
    num_classes: int = 0
    vocabulary: int = 0
    text_width: int = 128
    text_depth: int = 2
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """The embeddings, the blocks, the last norm and the head."""
        if self.block < 1 or any(side % self.block for side in self.grid):
            raise UserError(
                f"config.model.block is {self.block}: it must divide the sides of the "
                f"{self.grid[0]}x{self.grid[1]} codes."
            )
        embed = partial(nn.Embed, features=self.width, embedding_init=_normal, dtype=self.dtype)
        self.code = embed(self.num_codes * self.block**2)
        if self.block > 1:
            # Of a square's codes so far, and which of them is next.
            self.within, self.place = (embed(self.block**2 * n) for n in (self.num_codes, 1))
            self.norm_within = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
            self.expand = nn.Dense(2 * self.width, kernel_init=_normal, dtype=self.dtype)
            self.contract = nn.Dense(self.width, kernel_init=_normal, dtype=self.dtype)
        self.start = embed(self.num_classes + 1)
        reads = self.vocabulary > 0
        if reads:
            self.condition_encoder = ConditionEncoder(
                vocabulary=self.vocabulary,
                width=self.text_width,
                depth=self.text_depth,
                dtype=self.dtype,
            )
            self.everywhere = nn.Dense(self.width, kernel_init=_normal, dtype=self.dtype)
        self.row, self.column = (embed(side // self.block) for side in self.grid)
        # The residual stream keeps its variance, whatever the depth (Radford et al. 2019, 2.3).
        out_init = nn.initializers.normal(0.02 / math.sqrt(2 * self.depth))
        block = partial(Block, self.width, self.heads, out_init, self.dropout, self.dtype, reads)
        self.blocks = [block() for _ in range(self.depth)]
        self.norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.head = nn.Dense(self.num_codes, kernel_init=_normal, dtype=self.dtype)

    def __call__(
        self, codes: Array, condition: Condition = None, *, train: bool, keys: Array | None = None
    ) -> Array:
        """Logits of all positions at once, the true codes given (teacher forcing).

        Args:
          codes: (B, h, w) int32 in [0, num_codes).
          condition: labels (B,) int32 in [0, num_classes], or texts; None: none of these.
          train: whether to drop out, if `dropout` is above 0.
          keys: (B,) keys for that, one an example.

        Returns:
          (B, h * w, num_codes) float32, in raster order; a code's depend on the condition and the
          codes before it alone: those of the squares before, and before it in its own.
        """
        b, squares = codes.shape[0], self._squares(codes)
        keys = keys if train else None
        told = self.tell(condition, b)
        x = jnp.concatenate([told.start, self._embedded(squares[:, :-1])], 1)
        x = x + self._positions(jnp.arange(x.shape[1])) + told.everywhere
        x = dropout(x, self.dropout, _apart(keys, self.depth))
        for i, block in enumerate(self.blocks):
            x = block(x, told.text, _apart(keys, i))
        logits = [self.logits(x, squares, place) for place in range(self.block**2)]
        return self.raster(jnp.stack(logits, 2)).reshape(b, -1, self.num_codes)

    def step(
        self, codes: Array, position: Array, cache: list[Cache], told: Told
    ) -> tuple[Array, list[Cache]]:
        """What `logits` makes the logits of one position of, as `__call__` does: for sampling.

        Args:
          codes: (B, n) int32, at position - 1; whatever at position 0.
          position: () int32 in [0, T).
          cache: of the positions before; `empty_cache` at first.
          told: what `tell` made of the condition.

        Returns:
          (B, 1, width), and the cache with this position.
        """
        x = jnp.where(position == 0, told.start, self._embedded(codes[:, None]))
        x = x + self._positions(position.reshape(1)) + told.everywhere
        caches = []
        for block, old in zip(self.blocks, cache, strict=True):
            x, new = block.step(x, told.text, position, old)
            caches.append(new)
        return x, caches

    def logits(self, x: Array, codes: Array, place: int) -> Array:
        """Of the code at a place of each position's square.

        Args:
          x: (B, t, width), as the blocks leave it.
          codes: (B, t, n) int32, of which those before `place` matter.
          place: in [0, n).

        Returns:
          (B, t, num_codes) float32.
        """
        if self.block > 1:
            x = x + self.place(jnp.full((1, 1), place))
            for i in range(place):
                x = x + self.within(codes[..., i] + i * self.num_codes)
            x = x + self.contract(nn.gelu(self.expand(self.norm_within(x))))
        return self.head(self.norm(x)).astype(jnp.float32)

    def tell(self, condition: Condition, batch_size: int) -> Told:
        """What B conditions become, once for all positions; None: no label, or the empty text."""
        if not self.vocabulary:
            if condition is None:
                condition = jnp.full(batch_size, self.num_classes, jnp.int32)
            return Told(self.start(condition[:, None]))
        if not isinstance(condition, Text):
            raise ValueError("This network reads texts: pass them.")
        text = self.condition_encoder(condition)
        start = self.start(jnp.zeros((batch_size, 1), jnp.int32))
        return Told(start, self.everywhere(text.vector)[:, None], text)

    def empty_cache(self, batch_size: int) -> list[Cache]:
        """What `step` starts from: a cache for each block."""
        length = math.prod(self.grid) // self.block**2
        dim = self.width // self.heads
        return [Cache.empty(batch_size, length, self.heads, dim, self.dtype)] * self.depth

    def _positions(self, position: Array) -> Array:
        """(t,) int32 -> (1, t, width)."""
        row, column = jnp.divmod(position, self.grid[1] // self.block)
        return (self.row(row) + self.column(column))[None]

    def _embedded(self, codes: Array) -> Array:
        """(B, t, n) int32 -> (B, t, width)."""
        places = self.num_codes * jnp.arange(self.block**2)[None, None]
        return self.code(codes + places).sum(2)

    def _squares(self, codes: Array) -> Array:
        """(B, h, w) -> (B, T, n)."""
        (h, w), k = self.grid, self.block
        return (
            codes.reshape(-1, h // k, k, w // k, k).swapaxes(2, 3).reshape(-1, h * w // k**2, k**2)
        )

    def raster(self, squares: Array) -> Array:
        """(B, T, n, ...) -> (B, h, w, ...)."""
        (h, w), k, rest = self.grid, self.block, squares.shape[3:]
        squares = squares.reshape(-1, h // k, w // k, k, k, *rest)
        return squares.swapaxes(2, 3).reshape(-1, h, w, *rest)


def draw(
    model: nn.Module,
    variables: Any,
    keys: Array,
    condition: Condition = None,
    temperature: float = 1.0,
    top_k: int = 0,
    guidance: float = 0.0,
) -> Array:
    """Codes drawn one after another, each given those before it.

    Args:
      model: a `Transformer`.
      keys: (B,), one an example: it and its condition settle it, whatever those around it.
      condition: B labels in [0, num_classes] or texts, or None.
      temperature, top_k, guidance: static; see `methods.code_prior.sample`.

    Returns:
      (B, h, w) int32.
    """
    # With guidance every example goes through twice, with its condition and with none.
    passes = 2 if guidance else 1
    if guidance:
        both = condition, nothing(condition, model.num_classes)
        condition = jax.tree.map(lambda *pair: jnp.concatenate(pair), *both)
    apply = partial(model.apply, variables)
    told = apply(condition, passes * len(keys), method="tell")

    places = model.block**2

    def draw_next(carry: tuple[Array, Any], position: Array) -> tuple[tuple[Array, Any], Array]:
        before, cache = carry
        x, cache = apply(jnp.tile(before, (passes, 1)), position, cache, told, method="step")
        codes = jnp.zeros_like(before)
        for place in range(places):
            known = jnp.tile(codes, (passes, 1))[:, None]
            logits = apply(x, known, place, method="logits")[:, 0]
            if guidance:
                given, free = jnp.split(logits, 2)
                logits = given + guidance * (given - free)
            number = position * places + place
            code = choose(_apart(keys, number), logits / temperature, top_k)
            codes = codes.at[:, place].set(code)
        return (codes, cache), codes

    first = jnp.zeros((len(keys), places), jnp.int32)
    cache = apply(passes * len(keys), method="empty_cache")
    positions = jnp.arange(math.prod(model.grid) // places)
    _, codes = jax.lax.scan(draw_next, (first, cache), positions)
    return model.raster(codes.swapaxes(0, 1))


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
