"""Ways to feed a condition to a network, a label or a text.

Concatenation (Mirza & Osindero 2014), affine modulation (Perez et al. 2018; behind a batch norm it
is the conditional one of de Vries et al. 2017), projection (Miyato & Koyama 2018), attention to a
text's tokens (Xu et al. 2018; Zhu et al. 2019).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.attention import attend
from aigc_jax.layers.conv import Initializer, conv
from aigc_jax.types import Array, Batch

BEGIN, END = 2, 3  # token ids around every text (0 fills up, 1 is an unknown word)


class Text(NamedTuple):
    """A batch of texts.

    Attributes:
      tokens: (B, T) int32, for an encoder that is trained; or (B, T, E) float32, features of one
        that is not, T = 0 where only the sentence is kept.
      mask: (B, T) bool, False where a text has ended.
      sentence: (B, E) float32, of an encoder that is not trained; else None.
    """

    tokens: Array
    mask: Array
    sentence: Array | None = None


Condition = Array | Text | None


class Encoded(NamedTuple):
    """A condition as networks use it.

    Attributes:
      vector: (B, W).
      features: (B, T, W), of a text's tokens; None where there are none.
      mask: (B, T) bool, as of `Text`.
    """

    vector: Array
    features: Array | None = None
    mask: Array | None = None


def of_batch(batch: Batch, num_classes: int, prefix: str = "") -> Condition:
    """What a batch's images are conditioned on: its text, else its labels, else nothing.

    Args:
      batch: with `text` (B, T) int32 and `text_mask`; or `text_embedding` (B, E) and perhaps
        `text_features` (B, T, E) and `text_mask`; or `label` (B,) int32.
      num_classes: of the labels, 0: they are ignored.
      prefix: of the fields' names, "wrong_" for texts that are not true of their images.
    """
    get = lambda name: batch.get(f"{prefix}{name}")  # noqa: E731
    if get("text") is not None:
        return Text(get("text"), get("text_mask"))
    if get("text_embedding") is not None:
        sentence, features = get("text_embedding"), get("text_features")
        if features is None:
            features = jnp.zeros((len(sentence), 0, sentence.shape[-1]), sentence.dtype)
            return Text(features, jnp.zeros(features.shape[:2], bool), sentence)
        return Text(features, get("text_mask"), sentence)
    return get("label") if num_classes else None


def nothing(condition: Condition, num_classes: int) -> Condition:
    """Conditions of the same shapes that say nothing: the empty text, the label `num_classes`."""
    if not isinstance(condition, Text):
        return None if condition is None else jnp.full_like(condition, num_classes)
    if condition.sentence is not None:
        return Text(*(jnp.zeros_like(part) for part in condition))
    length = condition.tokens.shape[1]
    empty = jnp.where(jnp.arange(length) == 0, BEGIN, jnp.where(jnp.arange(length) == 1, END, 0))
    tokens = jnp.broadcast_to(empty.astype(jnp.int32)[None], condition.tokens.shape)
    return Text(tokens, tokens != 0)


def said(condition: Condition, keep: Array, num_classes: int) -> Condition:
    """The conditions where keep (B,) bool is True; elsewhere ones that say nothing."""
    if condition is None:
        return None

    def choose(told: Array, empty: Array) -> Array:
        return jnp.where(keep.reshape(-1, *[1] * (told.ndim - 1)), told, empty)

    return jax.tree.map(choose, condition, nothing(condition, num_classes))


def for_grid(batch: Batch, num_classes: int, columns: int = 8) -> Batch:
    """The fields by which `sample` fills a grid: a row a class, or a text; else rows alike.

    Returns:
      `index` 0, 1, ... of rows * columns images, and `label` or the text's fields.
    """
    texts = [name for name in batch if name.startswith("text")]
    rows = min(8, len(batch["image"])) if texts else min(num_classes, 16) or 8
    index = jnp.arange(rows * columns, dtype=jnp.int32)
    told = {name: jnp.repeat(batch[name][:rows], columns, axis=0) for name in texts}
    return {"index": index, **(told or {"label": index // columns})}


def for_each(x: Array, condition: Condition | Encoded, groups: int = 1) -> tuple[Array, Any]:
    """Every image with every one of its conditions.

    Args:
      x: (nB, ...), of `groups` = n images that share their conditions, one after another.
      condition: (kB, ...) arrays, k for each such group.

    Returns:
      (nkB, ...) both, an image's k conditions one after another.
    """
    rows, each = len(x) // groups, each_of(x, condition, groups)

    def shared(y: Array) -> Array:
        y = y.reshape(rows, 1, each, *y.shape[1:])
        y = jnp.broadcast_to(y, (rows, groups, *y.shape[2:]))
        return y.reshape(rows * groups * each, *y.shape[3:])

    condition = condition if groups == 1 else jax.tree.map(shared, condition)
    return x if each == 1 else jnp.repeat(x, each, axis=0), condition


class Film(nn.Module):
    """x * (1 + scale) + shift, both affine in a vector and 0 at first (Perez et al. 2018, eq. 2).

    Attributes:
      hidden: width of a hidden layer before both (Tao et al. 2022); 0: none.
      dtype: of the computation.
    """

    hidden: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, vector: Array) -> Array:
        """x (B, ..., C), vector (B, W) -> as x."""
        if self.hidden:
            vector = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(vector))
        zeros = nn.initializers.zeros
        affine = nn.Dense(2 * x.shape[-1], kernel_init=zeros, dtype=self.dtype)(vector)
        affine = affine.reshape(len(x), *[1] * (x.ndim - 2), -1)
        scale, shift = jnp.split(affine, 2, -1)
        return x * (1 + scale) + shift


class CrossAttention(nn.Module):
    """x + attention from each pixel to the tokens of its text; the identity at first.

    Attributes:
      heads: each of as many channels as x has, over `heads`.
      dtype: of the computation.
    """

    heads: int = 4
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, encoded: Encoded) -> Array:
        """x (B, H, W, C) -> the same; a condition without tokens is one token, its vector.

        UserError if `heads` does not divide C.
        """
        b, h, w, c = x.shape
        if c % self.heads:
            raise UserError(f"{self.heads} heads of attention do not divide {c} channels.")
        features, mask = encoded.features, encoded.mask
        if features is None:
            features, mask = encoded.vector[:, None], jnp.ones((b, 1), bool)
        to = lambda name, y: nn.Dense(c, name=name, dtype=self.dtype)(y)  # noqa: E731
        split = lambda y: y.reshape(b, -1, self.heads, c // self.heads)  # noqa: E731
        norm = nn.LayerNorm(dtype=self.dtype)(x.reshape(b, h * w, c))
        q, k, v = split(to("query", norm)), split(to("key", features)), split(to("value", features))
        seen = attend(q, k, v, mask[:, None, None, :]).reshape(b, h, w, c)
        zeros = nn.initializers.zeros
        return x + nn.Dense(c, kernel_init=zeros, name="out", dtype=self.dtype)(seen)


class Projection(nn.Module):
    """The part of a logit that depends on the condition: <V vector, x> (Miyato & Koyama 2018)."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, vector: Array) -> Array:
        """x (B, C), vector (B, W) -> (B,)."""
        projected = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype)(vector)
        return jnp.sum(x * projected, -1, dtype=jnp.float32)


def concat_label(x: Array, label: Array | None, num_classes: int) -> Array:
    """Appends the one-hot label to the last axis: to a latent, or to an image as constant planes.

    Args:
      x: (B, C) or (B, H, W, C).
      label: (B,) int32 in [0, num_classes); None with num_classes = 0, which returns x.

    Returns:
      (B, ..., C + num_classes), of x's dtype.
    """
    check_label(label)
    if not num_classes:
        return x
    one_hot = _one_hot(label, num_classes, x.dtype)
    one_hot = one_hot.reshape(len(one_hot), *[1] * (x.ndim - 2), num_classes)
    return jnp.concatenate([x, jnp.broadcast_to(one_hot, (*x.shape[:-1], num_classes))], -1)


class LabelConv(nn.Module):
    """The convolution of an image with its label's one-hot planes: `conv(concat_label(x, label))`.

    The same parameter and the same value, but no plane is made: a constant plane's response is one
    map a class, and each example takes its own. With num_classes = 0 it is the plain convolution.

    Attributes:
      num_classes: of the labels.
      features, kernel_size, stride, padding, dtype, kernel_init: as of `Conv`; there is no bias.
    """

    num_classes: int
    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dtype: jnp.dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """x (B, H, W, C), label (B,) int32 in [0, num_classes) -> (B, h, w, features)."""
        check_label(label)
        channels, k = x.shape[-1], self.kernel_size
        shape = (k, k, channels + self.num_classes, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = conv(x, kernel[:, :, :channels], self.stride, self.padding)
        if not self.num_classes:
            return y
        plane = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
        planes = kernel[:, :, channels:].reshape(k, k, 1, -1)
        maps = conv(plane, planes, self.stride, self.padding)
        maps = maps.reshape(-1, self.num_classes, self.features).swapaxes(0, 1)
        one_hot = _one_hot(label, self.num_classes, x.dtype)
        return y + (one_hot @ maps.reshape(self.num_classes, -1)).reshape(y.shape)


def ways(condition: str, network: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of "concat,film"; UserError for an unknown one."""
    parts = tuple(part.strip() for part in condition.split(",") if part.strip())
    for part in parts:
        if part not in known:
            hint = did_you_mean(part, known)
            raise UserError(f"config.{network}.condition holds {part!r}.{hint}")
    return parts


def discriminator_ways(
    condition: str,
    in_logits: tuple[str, ...],
    each: int,
    shown: tuple[str, ...] = ("concat",),
) -> tuple[str, ...]:
    """The parts of a discriminator's "projection,auxiliary"; none without conditions.

    Args:
      condition: as in its config.
      in_logits: the ways it has, besides `auxiliary`: logits depend on the condition by them.
      each: conditions of an image, see `each_of`: more than one where some are wrong.
      shown: those by which what `auxiliary` reads has seen the condition.

    Raises:
      UserError: an unknown way; `auxiliary` with what it is to tell in sight; several conditions
        that no logit depends on.
    """
    told = ways(condition, "discriminator", (*in_logits, "auxiliary"))
    if not each:
        return ()
    seen = [way for way in told if way in shown]
    if seen and "auxiliary" in told:
        raise UserError(
            f"config.discriminator.condition is {condition!r}, but {seen[0]} shows what auxiliary "
            "is to tell: take projection beside auxiliary."
        )
    if each > 1 and not {*in_logits} & {*told}:
        raise UserError(
            "config.conditioning.mismatch is above 0, and the discriminator's logits don't depend "
            f"on the condition: add one of {', '.join(in_logits)} to "
            "config.discriminator.condition."
        )
    return told


def each_of(x: Array, condition: Condition | Encoded, groups: int = 1) -> int:
    """How many conditions an image has, see `for_each`."""
    leaves = jax.tree.leaves(condition)
    return len(leaves[0]) * groups // len(x) if leaves else 0


def check_label(condition: Condition, num_classes: int = 0) -> None:
    """UserError for a text, of a network that reads labels; ValueError for none of its classes."""
    if num_classes and condition is None:
        raise ValueError(f"This network is conditional on {num_classes} classes: pass a label.")
    if isinstance(condition, Text):
        raise UserError("This network reads labels, not texts: take fusion_gan or fusion_vae.")


def _one_hot(label: Array | None, num_classes: int, dtype: jnp.dtype) -> Array:
    if label is None:
        raise ValueError(f"This network is conditional on {num_classes} classes: pass a label.")
    return jax.nn.one_hot(label, num_classes, dtype=dtype)
