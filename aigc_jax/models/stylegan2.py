"""StyleGAN2 (Karras et al. 2020b), with the details of its form for CIFAR-10 (the same 2020a).

A mapping network turns a latent into styles w, which modulate every convolution of the synthesis
network; that begins with a learned constant, adds noise to every map, and sums what its sizes say
of the image (the skip architecture). There is no tanh. All weights have equalised learning rates.

Published for 32x32: the defaults here, batch 64, Adam at 0.0025 with betas (0, 0.99), the
non-saturating loss, R1 with gamma 0.01 every 16 steps, ADA. At 10 classes G has 20,215,315
parameters and D 23,089,664. Above 32 pixels take D's `architecture` "resnet".

Ways to condition, joined by commas:

===============  ==============================================================================
generator        ``style``, as published: a layer embeds the label, and the unit embedding joins
                 the latent before the mapping; ``concat``: the one-hot label itself joins it
discriminator    ``projection``, as published: the logit is the dot product of the image's
                 features with the mapped label; ``concat``: one-hot planes join the last map;
                 ``auxiliary``: classes are predicted of the image (Odena et al. 2017)
===============  ==============================================================================

Half precision has no clamp here, other than in the published code: bfloat16 has float32's range.
"""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.condition import (
    check_label,
    concat_label,
    discriminator_ways,
    each_of,
    for_each,
    ways,
)
from aigc_jax.layers.equalized import EqualConv, EqualDense, leaky, unit_moment
from aigc_jax.layers.fir import fir_blur, fir_down, fir_up
from aigc_jax.layers.minibatch_std import minibatch_std
from aigc_jax.layers.modulated import ModulatedConv
from aigc_jax.parallel import pmean, split_keys
from aigc_jax.types import Array

_SLOW = 0.01  # learning rate of the mapping, relative
_KEEP = 0.995  # of the running mean of w, a step


def _resolutions(image_size: int) -> list[int]:
    """4, 8, ... image_size."""
    if image_size < 8 or image_size & (image_size - 1):
        raise UserError(
            f"stylegan2 can't make images of size {image_size}: take a power of two from 8 on, "
            "such as 32."
        )
    return [1 << i for i in range(2, image_size.bit_length())]


def _features(network: nn.Module, resolution: int) -> int:
    return min(network.channel_base // resolution, network.width)


class Mapping(nn.Module):
    """Latents, labels or both -> w, by fully connected layers (Karras et al. 2019, section 2).

    Attributes:
      features: of w and every layer.
      layers: their number.
      num_classes: 0 for unconditional.
      condition: "style" and "concat" as of the generator.
    """

    features: int
    layers: int
    num_classes: int = 0
    condition: tuple[str, ...] = ("style",)

    @nn.compact
    def __call__(self, z: Array | None, label: Array | None = None) -> Array:
        """z (B, latent_dim) or None, label (B,) or None -> (B, features) float32."""
        parts = [] if z is None else [unit_moment(z)]
        if self.num_classes and self.condition:
            one_hot = _one_hot(label, self.num_classes)
            if "style" in self.condition:
                parts.append(unit_moment(EqualDense(self.features, name="embed")(one_hot)))
            if "concat" in self.condition:
                parts.append(one_hot)
        x = jnp.concatenate(parts, -1)
        for i in range(self.layers):
            x = leaky(EqualDense(self.features, _SLOW, name=f"layer_{i}")(x))
        return x


def _one_hot(label: Array | None, num_classes: int) -> Array:
    empty = jnp.zeros((0 if label is None else len(label), 0))
    return concat_label(empty, label, num_classes)


class Layer(nn.Module):
    """Modulated convolution, noise, bias, activation (Karras et al. 2020b, figure 2)."""

    features: int
    up: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, w: Array, noise: Array | None) -> Array:
        """x (B, H, W, C), w (B, W), noise (B or 1, h, w, 1) -> (B, h, w, features)."""
        x = ModulatedConv(self.features, up=self.up, dtype=self.dtype, name="conv")(x, w)
        if noise is not None:
            strength = self.param("strength", nn.initializers.zeros, ())
            x = x + (strength.reshape(1, 1, 1, 1) * noise).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return leaky(x + bias.astype(x.dtype).reshape(1, 1, 1, -1))


class Synthesis(nn.Module):
    """One resolution of G: layers, and what they add to the image (section 4.1, figure 7b).

    Attributes:
      resolution: 4 begins with the constant, others double the size.
      features: of its maps.
      channels: of the image.
      noise: whether there is any.
      dtype: of the computation; images are float32.
    """

    resolution: int
    features: int
    channels: int
    noise: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array | None, image: Array | None, ws: Array, keys: Array | None
    ) -> tuple[Array, Array]:
        """Maps and image of half the size or None, ws (B, 2 or 3, W), keys (B,) -> both anew."""
        first = x is None
        if first:
            shape = (1, self.resolution, self.resolution, self.features)
            x = self.param("constant", nn.initializers.normal(1.0), shape)
            x = jnp.broadcast_to(x.astype(self.dtype), (len(ws), *shape[1:]))
        for i in (1,) if first else (0, 1):
            layer = Layer(self.features, up=i == 0, dtype=self.dtype, name=f"layer_{i}")
            noise = layer_noise(keys, self.resolution, i) if self.noise else None
            x = layer(x, ws[:, i - first], noise)
        rgb = ModulatedConv(self.channels, 1, demodulate=False, dtype=self.dtype, name="rgb")
        bias = self.param("rgb_bias", nn.initializers.zeros, (self.channels,))
        said = rgb(x, ws[:, 2 - first]).astype(jnp.float32) + bias.reshape(1, 1, 1, -1)
        return x, said if image is None else fir_up(image) + said


def layer_noise(keys: Array | None, resolution: int, i: int) -> Array:
    """The noise of layer i, 0 or 1, of a resolution r: (B, r, r, 1) ~ N(0, 1) of keys (B,).

    Without keys the same (1, r, r, 1) for ever.
    """
    keys = jax.random.key(0, impl="threefry2x32")[None] if keys is None else keys

    def draw(key: Array) -> Array:
        key = jax.random.fold_in(key, 2 * resolution + i)
        return jax.random.normal(key, (resolution, resolution, 1))

    return jax.vmap(draw)(keys)


class Generator(nn.Module):
    """Latents and labels -> images.

    `mapping` and `synthesis` are its halves: `generator.apply(variables, z, label, train=False,
    method="mapping")`. The running mean of w is in `batch_stats`.

    Attributes:
      image_size: a power of two from 8 on. UserError otherwise.
      channels: of the image.
      latent_dim: of z.
      w_dim: of w.
      mapping_layers: 2 for CIFAR-10, 8 in the first papers.
      width: the most channels a map has.
      channel_base: at resolution r there are min(channel_base / r, width).
      num_classes: 0 for unconditional.
      condition: ways, see above.
      style_mixing: how often a second latent styles the later layers in training; published 0 for
        CIFAR-10, else 0.9.
      truncation: psi of w = mean + psi (w - mean) outside training; None: 1.
      noise: whether maps get noise.
      remat: recompute the maps of each resolution in the backward pass, to save memory.
      dtype: of the maps; the mapping, styles and image sum are float32.
      axis_name: the pmapped axis over which the mean of w is taken.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    width: int = 512
    channel_base: int = 32768
    num_classes: int = 0
    condition: str = "style"
    style_mixing: float = 0.0
    truncation: float | None = None
    noise: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    needs_keys: ClassVar[bool] = True

    def setup(self) -> None:
        """Makes the networks; without a label's way to it the mapping is unconditional."""
        told = ways(self.condition, "generator", ("style", "concat"))
        self.mapping_network = Mapping(self.w_dim, self.mapping_layers, self.num_classes, told)
        self.mean = self.variable("batch_stats", "w_mean", jnp.zeros, (self.w_dim,))
        block = nn.remat(Synthesis) if self.remat else Synthesis
        self.block = {
            str(r): block(r, _features(self, r), self.channels, self.noise, self.dtype)
            for r in _resolutions(self.image_size)
        }

    @property
    def num_ws(self) -> int:
        """How many w an image takes: one a convolution, and one for the last toRGB."""
        return 2 * len(_resolutions(self.image_size))

    def __call__(
        self, z: Array, label: Array | None = None, *, train: bool, keys: Array | None = None
    ) -> Array:
        """z (B, latent_dim) ~ N(0, 1), label (B,) int32 -> (B, S, S, channels) float32.

        Each example's noise and style mixing are its key's, keys (B,); without keys the noise is
        the same for all, and no styles mix.
        """
        ws = self.mapping(z, label, train=train)
        if keys is None:
            return self.synthesis(ws, train=train)
        noise, mixing = split_keys(keys)
        if train and self.style_mixing:
            ws = self._mixed(ws, label, mixing)
        return self.synthesis(ws, noise, train=train)

    def mapping(self, z: Array, label: Array | None = None, *, train: bool) -> Array:
        """z (B, latent_dim), label (B,) int32 -> ws (B, num_ws, w_dim) float32, w over and over."""
        check_label(label)
        w = self.mapping_network(z, label)
        if train and self.is_mutable_collection("batch_stats") and not self.is_initializing():
            batch = pmean(jax.lax.stop_gradient(w).mean(0), self.axis_name)
            self.mean.value = _KEEP * self.mean.value + (1 - _KEEP) * batch
        if self.truncation is not None and not train:
            mean = self.mean.value[None]
            w = mean + self.truncation * (w - mean)
        return jnp.broadcast_to(w[:, None], (len(w), self.num_ws, self.w_dim))

    def synthesis(self, ws: Array, keys: Array | None = None, *, train: bool) -> Array:
        """ws (B, num_ws, w_dim), keys (B,) of the noise -> (B, S, S, channels) float32."""
        del train  # nothing here depends on it; the halves are called alike
        x = image = None
        for i, block in enumerate(self.block.values()):
            # A toRGB shares its w with the next resolution's first convolution.
            x, image = block(x, image, ws[:, max(0, 2 * i - 1) : 2 * i + 2], keys)
        return image

    def _mixed(self, ws: Array, label: Array | None, keys: Array) -> Array:
        """Another latent's w from a random layer on, in `style_mixing` of the examples."""

        def draw(key: Array) -> tuple[Array, Array]:
            of_z, of_layer, of_chance = jax.random.split(key, 3)
            layer = jax.random.randint(of_layer, (), 1, self.num_ws)
            mixes = jax.random.bernoulli(of_chance, self.style_mixing)
            return jax.random.normal(of_z, (self.latent_dim,)), jnp.where(mixes, layer, self.num_ws)

        z, first = jax.vmap(draw)(keys)
        other = self.mapping_network(z, label)[:, None]
        later = jnp.arange(self.num_ws)[None] >= first[:, None]
        return jnp.where(later[:, :, None], other, ws)


class Analysis(nn.Module):
    """One resolution of D: two convolutions, the second halves the size; beside a plain way or not.

    Attributes:
      features: of its output.
      residual: whether there is a plain way (section 4.1, figure 7c).
      dtype: of the computation.
    """

    features: int
    residual: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (B, H, W, C) -> (B, H / 2, W / 2, features)."""
        conv = partial(EqualConv, dtype=self.dtype)
        y = leaky(conv(x.shape[-1], name="conv_0")(x))
        y = conv(self.features, stride=2, padding=0, name="conv_1")(fir_blur(y, 2))
        if not self.residual:
            return leaky(y)
        plain = conv(self.features, 1, use_bias=False, name="skip")(fir_down(x))
        return leaky(y, 1.0) + plain * 0.5**0.5


class Discriminator(nn.Module):
    """Images -> logits; attributes as the generator's, `width` the most channels of a map.

    Attributes:
      architecture: "orig", of CIFAR-10, or "resnet".
      mapping_layers: of the label's mapping.
      mbstd_group: the most images whose deviation is taken together; published 32 for CIFAR-10,
        else 4 or 8.
    """

    image_size: int = 32
    width: int = 512
    channel_base: int = 32768
    architecture: str = "orig"
    mapping_layers: int = 8
    num_classes: int = 0
    condition: str = "projection"
    mbstd_group: int = 32
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool, groups: int = 1
    ) -> Array:
        """x (B, S, S, C) in [-1, 1], label (kB / groups,) int32 -> logits (kB,) float32.

        The batch interleaves `groups` sub-batches (example i is of sub-batch i % groups), which
        share their k labels, and not their minibatch standard deviations.
        """
        check_label(label)
        each = each_of(x, label if self.num_classes else None, groups)
        told = discriminator_ways(self.condition, ("projection", "concat"), each)
        x = self._maps(x)
        axis_name = None if self.is_initializing() else self.axis_name
        x = minibatch_std(x, self.mbstd_group, groups, axis_name)
        if not told:
            return self._dense(1, "logit", self._pooled(x))[:, 0]
        if "concat" in told:
            x, label = for_each(x, label, groups)
            groups = 1
            x = concat_label(x, label, self.num_classes)
        x = self._pooled(x)
        if "auxiliary" in told:
            self.sow("auxiliary", "logits", self._dense(self.num_classes, "classhead", x))
        if "projection" not in told:
            return self._dense(1, "logit", x)[:, 0]
        x = self._dense(_features(self, 4), "logit", x)
        to = Mapping(x.shape[-1], self.mapping_layers, self.num_classes, name="mapping")(
            None, label
        )
        x, to = for_each(x, to, groups)
        return jnp.sum(x * to, -1) / x.shape[-1] ** 0.5

    def _maps(self, x: Array) -> Array:
        """(B, S, S, C) -> (B, 4, 4, C')."""
        *resolutions, _ = reversed(_resolutions(self.image_size))
        residual = _is_residual(self.architecture)
        block = nn.remat(Analysis) if self.remat else Analysis
        first = _features(self, self.image_size)
        x = leaky(EqualConv(first, 1, dtype=self.dtype, name="rgb")(x))
        for r in resolutions:
            x = block(_features(self, r // 2), residual, self.dtype, name=f"block_{r}")(x)
        return x

    def _pooled(self, x: Array) -> Array:
        features = _features(self, 4)
        x = leaky(EqualConv(features, dtype=self.dtype, name="conv")(x))
        x = x.reshape(len(x), -1)
        return leaky(EqualDense(features, dtype=self.dtype, name="dense")(x))

    def _dense(self, features: int, name: str, x: Array) -> Array:
        return EqualDense(features, name=name)(x.astype(jnp.float32))


def _is_residual(architecture: str) -> bool:
    if architecture not in ("orig", "resnet"):
        raise UserError(
            f"config.discriminator.architecture is {architecture!r}."
            f"{did_you_mean(architecture, ('orig', 'resnet'))}"
        )
    return architecture == "resnet"
