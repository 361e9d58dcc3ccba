"""The blocks of `fusion_gan` and `fusion_vae`: residual, each told the condition."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.condition import Condition, CrossAttention, Encoded, Film, ways
from aigc_jax.layers.conv import Conv, ConvTranspose, UpsampleConv
from aigc_jax.layers.init import scaled_normal
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.layers.shuffle import shuffle, unshuffle
from aigc_jax.models.condition_encoder import ConditionEncoder
from aigc_jax.types import Array

_TOLD = ("concat", "film", "attention")  # ways to tell a generator its condition

he = nn.initializers.variance_scaling(2 / (1 + 0.2**2), "fan_in", "normal")
leaky = partial(nn.leaky_relu, negative_slope=0.2)


def doublings(image_size: int, patch: int) -> int:
    """How often 4x4 is doubled on the way to the image's patches. UserError: it isn't."""
    count = (image_size // max(patch, 1) // 4).bit_length() - 1
    if patch < 1 or count < 1 or 4 * patch << count != image_size:
        raise UserError(
            f"These networks can't make images of size {image_size} in patches of {patch}: a size "
            "is 8, 16, 32, ... patches, and a patch 1 or 2 pixels."
        )
    return count


def is_strided(network: nn.Module) -> bool:
    """Whether its `blocks` are "strided" and not "residual". UserError: neither."""
    blocks = getattr(network, "blocks", "residual")
    if blocks not in ("residual", "strided"):
        raise UserError(
            f"A network's blocks are {blocks!r}.{did_you_mean(blocks, ('residual', 'strided'))}"
        )
    return blocks == "strided"


def encoder(network: nn.Module) -> ConditionEncoder:
    """That of a network with the fields `num_classes`, `vocabulary`, `text_width`, `text_depth`."""
    return ConditionEncoder(
        num_classes=network.num_classes,
        vocabulary=network.vocabulary,
        width=network.text_width,
        depth=network.text_depth,
        dtype=network.dtype,
        name="condition_encoder",
    )


def _alike(count: int, key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """A kernel that makes the pixels of a patch alike at first, without a pattern (Aitken 2017)."""
    small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
    one = small(key, (*shape[:-1], shape[-1] // count), dtype)
    return jnp.tile(one, count)


class Up(nn.Module):
    """Twice the size and two modulated convolutions, beside a plain way (Tao et al. 2022, 3.3)."""

    features: int
    double: bool
    hidden: int
    norm: Callable[[Array], Array]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, vector: Array) -> Array:
        """x (B, h, w, C), vector (B, W) -> (B, 2h, 2w, features), or (B, h, w, features)."""

        def told(y: Array) -> Array:
            return leaky(Film(self.hidden, self.dtype)(self.norm(y), vector))

        conv = partial(Conv, kernel_init=he, dtype=self.dtype)
        first = UpsampleConv if self.double else Conv
        y = first(self.features, kernel_init=he, dtype=self.dtype)(told(x))
        y = conv(self.features)(told(y))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, use_bias=False)(x)
        if self.double:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return (x + y) * 2**-0.5


class Synthesis(nn.Module):
    """Latents and conditions -> maps of the image's size, unbounded.

    Attributes: as of `fusion_gan.Generator`.
    """

    image_size: int
    channels: int
    width: int
    patch: int
    hidden: int
    condition: str
    num_classes: int
    vocabulary: int
    text_width: int
    text_depth: int
    guidance: float
    dtype: jnp.dtype
    blocks: str = "residual"
    norm: str = "none"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, condition: Condition, train: bool) -> Array:
        """z (B, D), B conditions -> (B, S, S, channels) float32."""
        told, norm = ways(self.condition, "generator", _TOLD), self._norm(train)
        z = z.astype(self.dtype)
        encoded = None if condition is None else encoder(self)(condition, self.guidance)
        both = z if encoded is None else jnp.concatenate([z, encoded.vector], -1)
        count = doublings(self.image_size, 2 if is_strided(self) else self.patch)
        features = [self.width * min(8, 1 << i) for i in reversed(range(count + 1))]
        x = nn.Dense(16 * features[0], dtype=self.dtype)(both if "concat" in told else z)
        x = x.reshape(-1, 4, 4, features[0])
        attend = CrossAttention(dtype=self.dtype) if "attention" in told and encoded else None
        made = self._strided if is_strided(self) else self._residual
        return made(x, features, norm, both if "film" in told else z, attend, encoded)

    def _residual(
        self,
        x: Array,
        features: list[int],
        norm: Callable[[Array], Array],
        vector: Array,
        attend: nn.Module | None,
        encoded: Encoded | None,
    ) -> Array:
        for i, width in enumerate(features):
            x = Up(width, i > 0, self.hidden, norm, self.dtype)(x, vector)
            x = attend(x, encoded) if attend and i == 1 else x
        init = partial(_alike, self.patch**2)
        conv = Conv(self.channels * self.patch**2, 3, kernel_init=init, dtype=self.dtype)
        return shuffle(conv(leaky(norm(x))), self.patch).astype(jnp.float32)

    def _strided(
        self,
        x: Array,
        features: list[int],
        norm: Callable[[Array], Array],
        vector: Array,
        attend: nn.Module | None,
        encoded: Encoded | None,
    ) -> Array:
        up = partial(ConvTranspose, kernel_init=scaled_normal(0.02), dtype=self.dtype)
        for i, width in enumerate([*features[1:], self.channels]):
            x = nn.relu(Film(self.hidden, self.dtype)(norm(x), vector))
            x = attend(x, encoded) if attend and i == 1 else x
            x = up(width)(x)
        return x.astype(jnp.float32)

    def _norm(self, train: bool) -> Callable[[Array], Array]:
        if self.norm not in ("none", "batch"):
            hint = did_you_mean(self.norm, ("none", "batch"))
            raise UserError(f"config.generator.norm is {self.norm!r}.{hint}")
        if self.norm == "none":
            return lambda x: x
        norm = partial(BatchNorm, use_scale=False, use_bias=False, dtype=self.dtype)
        return lambda x: norm(axis_name=self.axis_name)(x, train=train)


class Down(nn.Module):
    """Half the size: the mean of 2x2 pixels and a way of two convolutions, at unchanged variance.

    DF-GAN's learned weight of the second way starts at 0, from where Adam takes thousands of steps
    to 1; here both weigh the same.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, 2h, 2w, C) -> (B, h, w, features)."""
        conv = partial(Conv, kernel_init=he, dtype=self.dtype)
        y = leaky(conv(self.features, 4, stride=2, padding=1)(x))
        y = leaky(conv(self.features)(y))
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        if c != self.features:
            x = Conv(self.features, 1, dtype=self.dtype)(x)
        return (x + y) * 2**-0.5


def analysis(network: nn.Module, x: Array, train: bool, groups: int = 1) -> Array:
    """Images (B, S, S, C) -> (B, 4, 4, F), inside a compact module's call.

    The network has the fields `image_size`, `width`, `blocks`, `patch`, `dtype`, `axis_name`.
    """
    width, x = network.width, x.astype(network.dtype)
    if not is_strided(network):
        conv = Conv(width, 3, kernel_init=he, dtype=network.dtype)
        x = conv(unshuffle(x, network.patch))
        for i in range(doublings(network.image_size, network.patch)):
            x = Down(width * min(8, 2 << i), network.dtype)(x)
        return x
    down = partial(Conv, kernel_size=4, stride=2, padding=1, dtype=network.dtype)
    down = partial(down, use_bias=False, kernel_init=scaled_normal(0.02))
    norm = partial(BatchNorm, axis_name=network.axis_name, dtype=network.dtype)
    x = leaky(down(width)(x))
    for i in range(doublings(network.image_size, 2)):
        x = leaky(norm()(down(width * min(8, 2 << i))(x), train=train, groups=groups))
    return x


def synthesis(network: nn.Module, channels: int) -> Synthesis:
    """That of a network which has the fields that `Synthesis` has."""
    names = {field.name for field in dataclasses.fields(Synthesis)}
    names -= {"parent", "name", "channels"}
    fields = {name: getattr(network, name) for name in names if hasattr(network, name)}
    return Synthesis(**fields, channels=channels, name="synthesis")
