"""The residual blocks of `resnet_gan` and `biggan`, and how many there are at which width.

Miyato et al. 2018, tables 3 and 4 and figure 8; Brock et al. 2019, appendix B.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.attention import MapAttention
from aigc_jax.layers.condition import concat_label, discriminator_ways, each_of, for_each
from aigc_jax.layers.conv import Conv, ConvDownsample, Dense, UpsampleConv
from aigc_jax.layers.norm import BatchNorm, ConditionalBatchNorm
from aigc_jax.layers.spectral import spectral
from aigc_jax.types import Array

# Channels in units of the width, from 4x4 on (generators) and of each block (discriminators). At 32
# pixels Miyato et al. 2018, table 3, above Brock et al. 2019, tables 4 to 9 (64: their code).
_GENERATORS = {
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
}
_DISCRIMINATORS = {
    16: (2, 2, 2, 2),
    32: (2, 2, 2, 2),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}


def widths(image_size: int, width: int) -> list[int]:
    """A generator's channels at 4x4, 8x8, ... UserError: there are no such sizes."""
    return [width * times for times in _of_size(_GENERATORS, image_size)]


def _of_size(table: dict[int, tuple[int, ...]], image_size: int) -> tuple[int, ...]:
    if image_size not in table:
        known = ", ".join(map(str, table))
        raise UserError(f"This network can't make images of size {image_size}: take {known}.")
    return table[image_size]


class Kit(NamedTuple):
    """The layers that the blocks of one network are made of.

    Attributes:
      conv, up, down: of a block's main way, called with the number of features; they keep the
        size, double it before, halve it after.
      linear: every other linear layer, 1x1 convolutions as well.
      norm: (x, vector or None) -> x normalised; the identity of a discriminator.
      attention: a map's to itself.
    """

    conv: Callable[..., nn.Module]
    up: Callable[..., nn.Module]
    down: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    norm: Callable[[Array, Array | None], Array]
    attention: Callable[[], nn.Module]


def kit(network: nn.Module, train: bool) -> Kit:
    """That of a network with the fields `spectral`, `initialization`, `dtype` and `axis_name`."""
    main, rest, gains = _inits(network.initialization)
    given = dict(reparam=spectral(train) if network.spectral else None, dtype=network.dtype)
    if network.spectral:  # kernels of zeros have no direction of the largest singular value
        gains = rest

    def norm(x: Array, vector: Array | None) -> Array:
        if vector is None:
            return BatchNorm(axis_name=network.axis_name, dtype=network.dtype)(x, train=train)
        conditional = ConditionalBatchNorm(gains, axis_name=network.axis_name, **given)
        return conditional(x, vector, train=train)

    return Kit(
        conv=partial(Conv, kernel_init=main, **given),
        up=partial(UpsampleConv, kernel_init=main, **given),
        down=partial(ConvDownsample, kernel_init=main, **given),
        linear=partial(Dense, kernel_init=rest, **given),
        norm=norm,
        attention=partial(MapAttention, rest, **given),
    )


def _inits(name: str) -> tuple:
    """Of the main ways' convolutions, of the other linear layers, of conditional scales."""
    if name == "orthogonal":
        return (nn.initializers.orthogonal(),) * 3
    if name == "glorot":  # Gulrajani et al. 2017's code and Miyato et al. 2018's, section 4
        uniform = partial(nn.initializers.variance_scaling, mode="fan_avg", distribution="uniform")
        return uniform(2.0), uniform(1.0), nn.initializers.zeros
    hint = did_you_mean(name, ("orthogonal", "glorot"))
    raise UserError(f"A network's initialization is {name!r}.{hint}")


class UpBlock(nn.Module):
    """Twice the size: norm, ReLU, up, 3x3, norm, ReLU, 3x3, beside a 1x1 convolution."""

    features: int
    kit: Kit

    @nn.compact
    def __call__(self, x: Array, vector: Array | None) -> Array:
        """x (B, h, w, C), vector (B, W) or None -> (B, 2h, 2w, features)."""
        y = self.kit.up(self.features)(nn.relu(self.kit.norm(x, vector)))
        y = self.kit.conv(self.features)(nn.relu(self.kit.norm(y, vector)))
        # A 1x1 convolution may go before the copying of pixels, at a quarter of the cost.
        x = self.kit.linear(self.features)(x)
        return y + jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class DownBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, and the mean of 2x2 pixels, beside a 1x1 convolution or nothing.

    Attributes:
      features: of both convolutions.
      halve: whether the size is halved.
      first: of the network: an image isn't rectified.
    """

    features: int
    halve: bool
    first: bool
    kit: Kit

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C) -> (B, H, W, features), or half the size."""
        y = x if self.first else nn.relu(x)
        y = nn.relu(self.kit.conv(self.features)(y))
        y = (self.kit.down if self.halve else self.kit.conv)(self.features)(y)
        if not self.halve and x.shape[-1] == self.features:
            return x + y
        return self.kit.linear(self.features)(_halved(x) if self.halve else x) + y


def _halved(x: Array) -> Array:
    """The means of 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def synthesis(network: nn.Module, x: Array, vectors: list[Array | None], kit: Kit) -> Array:
    """A linear layer, the up-blocks and the image, inside a compact generator's call.

    Args:
      network: with the fields `image_size`, `channels`, `width`, `attention` and `remat`.
      x: (B, Z).
      vectors: that each block is told.

    Returns:
      (B, S, S, channels) float32 in [-1, 1].
    """
    first, *features = widths(network.image_size, network.width)
    _check_attention(network, [8 << i for i in range(len(features))])
    block = nn.remat(UpBlock) if network.remat else UpBlock
    x = kit.linear(16 * first)(x).reshape(-1, 4, 4, first)
    for i, (width, vector) in enumerate(zip(features, vectors, strict=True)):
        x = block(width, kit, name=f"block{i}")(x, vector)
        if x.shape[1] == network.attention:
            x = kit.attention()(x)
    x = kit.conv(network.channels)(nn.relu(kit.norm(x, None)))
    return jnp.tanh(x.astype(jnp.float32))


def analysis(network: nn.Module, x: Array, kit: Kit) -> Array:
    """Images (B, S, S, C) -> (B, s, s, F) in `dtype`, inside a compact discriminator's call."""
    block, x = nn.remat(DownBlock) if network.remat else DownBlock, x.astype(network.dtype)
    table = _of_size(_DISCRIMINATORS, network.image_size)
    # 32 pixels and below end at 8 and 4 with two blocks that keep the size, above at 4 with one.
    halvings = 2 if network.image_size <= 32 else len(table) - 1
    # A generator's last map may attend to itself; here the image itself does not.
    _check_attention(network, [network.image_size >> i for i in range(halvings + 1)])
    for i, times in enumerate(table):
        x = block(network.width * times, i < halvings, i == 0, kit, name=f"block{i}")(x)
        if x.shape[1] == network.attention and i < halvings:
            x = kit.attention()(x)
    return x


def judged(network: nn.Module, x: Array, label: Array | None, groups: int, train: bool) -> Array:
    """A discriminator's call: images and labels -> logits, see `resnet_gan.Discriminator`."""
    parts, each = kit(network, train), each_of(x, label, groups)
    told = discriminator_ways(network.condition, ("concat", "projection"), each)
    if "concat" in told:
        x, label = for_each(x, label, groups)
        x, groups = concat_label(x, label, network.num_classes), 1
    pooled = _pooled(nn.relu(analysis(network, x, parts)).astype(jnp.float32), network.pool)
    linear = partial(parts.linear, dtype=jnp.float32)
    if "auxiliary" in told:
        found = linear(network.num_classes, use_bias=False, name="classhead")(pooled)
        network.sow("auxiliary", "logits", found)
    logits = linear(1, name="logit")(pooled)[:, 0]
    if "projection" not in told:
        return logits
    (pooled, logits), label = for_each_of((pooled, logits), label, groups)
    embed = linear(pooled.shape[-1], use_bias=False, name="projection")
    return logits + jnp.sum(embed(jax.nn.one_hot(label, network.num_classes)) * pooled, -1)


def for_each_of(
    arrays: tuple[Array, ...], label: Array, groups: int
) -> tuple[tuple[Array, ...], Array]:
    """`for_each` of several arrays with the same labels."""
    pairs = [for_each(x, label, groups) for x in arrays]
    return tuple(x for x, _ in pairs), pairs[0][1]


def _check_attention(network: nn.Module, sides: list[int]) -> None:
    if network.attention and network.attention not in sides:
        known = ", ".join(map(str, sides))
        raise UserError(
            f"No map of this network has the side {network.attention} that its `attention` says: "
            f"take one of {known}, or 0 for none."
        )


def _pooled(x: Array, pool: str) -> Array:
    if pool not in ("sum", "mean"):
        raise UserError(
            f"config.discriminator.pool is {pool!r}.{did_you_mean(pool, ('sum', 'mean'))}"
        )
    return x.sum((1, 2)) if pool == "sum" else x.mean((1, 2))
