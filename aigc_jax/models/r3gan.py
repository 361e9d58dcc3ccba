"""R3GAN (Huang et al. 2024, section 3, configuration E): residual networks, no normalisation.

Each stage, from 4x4 up to the image's size, has residual blocks of a 1x1 convolution to twice the
channels, a grouped 3x3 and a 1x1 back, which begins at zero (Zhang et al. 2019, Fixup). Stages are
joined by the filter (1, 3, 3, 1) / 8 along both axes. The images aren't bounded by a tanh. Both
are made for the relativistic loss with R1 and R2, which `methods.gan` has.

Published: width 768 for 32x32 (20.78 and 21.28 million parameters with ten classes), for 64x64 and
for 256x256; for ImageNet width 1536 with `group_width` 32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import (
    Condition,
    LabelConv,
    check_label,
    discriminator_ways,
    each_of,
    for_each,
    ways,
)
from aigc_jax.layers.conv import Conv, Dense, Initializer
from aigc_jax.layers.fir import fir_down, fir_up
from aigc_jax.types import Array

_SIZES = (8, 16, 32, 64, 128, 256)

leaky = partial(nn.leaky_relu, negative_slope=0.2)
unit = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def fixup(blocks: int) -> Initializer:
    """First weights before a leaky ReLU, in a network of so many blocks of three layers."""
    return nn.initializers.variance_scaling(2 / (1 + 0.2**2) * blocks**-0.5, "fan_in", "normal")


def stages(network: nn.Module) -> list[int]:
    """Channels of the stages 4x4, 8x8, ...: `width` up to 32x32, then half with each doubling.

    The network has the fields `image_size`, `width`, `blocks`, `group_width`. UserError where they
    don't fit.
    """
    size, width, group = network.image_size, network.width, network.group_width
    if network.blocks < 1:
        raise UserError(f"r3gan's blocks is {network.blocks}: take at least 1.")
    if size not in _SIZES:
        known = ", ".join(map(str, _SIZES[:-1]))
        raise UserError(f"r3gan can't make images of size {size}: take {known} or {_SIZES[-1]}.")
    count = size.bit_length() - 2
    multiple = (group << max(0, count - 4)) // math.gcd(group, 2)
    if width < 1 or width % multiple:
        raise UserError(
            f"Groups of {group} channels don't divide twice the channels of each of r3gan's stages "
            f"up to {size}x{size} for width {width}: take a multiple of {multiple}, or another "
            "group_width."
        )
    return [width >> max(0, i - 3) for i in range(count)]


class Block(nn.Module):
    """x + what three convolutions make of it, 1x1, grouped 3x3, 1x1; the identity at first.

    Attributes:
      blocks: of the network; the more, the smaller the first weights.
      group_width: channels of a group.
      dtype: of the computation.
    """

    blocks: int
    group_width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (B, h, w, C) -> the same."""
        features, inner = x.shape[-1], 2 * x.shape[-1]
        conv = partial(Conv, dtype=self.dtype)
        init, groups = fixup(self.blocks), inner // self.group_width
        y = leaky(conv(inner, 1, kernel_init=init)(x))
        y = leaky(conv(inner, 3, groups=groups, kernel_init=init)(y))
        zeros = nn.initializers.zeros
        return x + conv(features, 1, use_bias=False, kernel_init=zeros)(y)


class Generator(nn.Module):
    """Latents -> images.

    Attributes:
      image_size: 8, 16, 32, 64, 128 or 256. UserError otherwise.
      channels: of the image.
      latent_dim: of z.
      width: channels of the stages up to 32x32; each later stage has half as many. UserError
        unless groups divide twice the channels of each.
      group_width: channels of a group of the 3x3 convolutions.
      blocks: of a stage.
      num_classes: 0 for unconditional.
      condition: "concat", to the latent; "": the label is ignored.
      remat: whether each block's inner maps are computed again for its gradients, to save memory.
      dtype: of the computation, but the stage of 4x4 is in float32, as published.
      axis_name: unused, as examples don't meet; other generators need it.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 64
    width: int = 768
    group_width: int = 16
    blocks: int = 2
    num_classes: int = 0
    condition: str = "concat"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, label: Condition = None, *, train: bool) -> Array:
        """z (B, latent_dim) ~ N(0, 1), label (B,) int32 in [0, num_classes], the last: none said.

        Returns (B, S, S, channels) float32; the images trained on are in [-1, 1].
        """
        widths = stages(self)
        x = self._first(z.astype(jnp.float32), label)
        for i, width in enumerate(widths):
            if i:
                x = fir_up(_pointwise(self, width, f"halve_{4 << i}", x.astype(self.dtype)))
            x = _blocks(self, x, i)
        conv = partial(Conv, kernel_size=1, use_bias=False, kernel_init=unit, dtype=self.dtype)
        return conv(self.channels, name="image")(x).astype(jnp.float32)

    def _first(self, z: Array, label: Condition) -> Array:
        """z and the label -> (B, 4, 4, width) float32: a learned map, its channels weighted."""
        told = ways(self.condition, "generator", ("concat",))
        check_label(label, self.num_classes if told else 0)
        if told and self.num_classes:
            z = jnp.concatenate([z, _embedded(self, label, self.latent_dim, unit)], -1)
        weights = Dense(self.width, use_bias=False, kernel_init=unit, name="latent")(z)
        basis = self.param("basis", nn.initializers.normal(1.0), (1, 4, 4, self.width))
        return basis * weights[:, None, None, :]


class Discriminator(nn.Module):
    """Images -> logits; attributes as the generator's, its mirror.

    Ways to condition, joined by commas: `projection` (Miyato & Koyama 2018), as published, with no
    term that is the same for all labels, so that the logit is 0 where the label says nothing;
    `concat`, the one-hot label as planes beside the image; `auxiliary`, which sows class `logits`
    (B, num_classes) in the collection of that name (Odena et al. 2017), for a loss of
    `methods.gan`.
    """

    image_size: int = 32
    width: int = 768
    group_width: int = 16
    blocks: int = 2
    num_classes: int = 0
    condition: str = "projection"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, label: Condition = None, *, train: bool, groups: int = 1) -> Array:
        """x (B, S, S, C) in [-1, 1], label (kB / groups,) int32 -> logits (kB,) float32.

        The batch interleaves `groups` sub-batches (example i is of sub-batch i % groups), which
        share their k labels.
        """
        check_label(label, self.num_classes)
        each = each_of(x, label if self.num_classes else None, groups)
        told = discriminator_ways(self.condition, ("concat", "projection"), each)
        if "concat" in told:
            (x, label), groups = for_each(x, label, groups), 1
        x = self._features(x, label, self.num_classes if "concat" in told else 0)
        if "auxiliary" in told:
            classes = Dense(self.num_classes, kernel_init=unit, name="classhead")(x)
            self.sow("auxiliary", "logits", classes)
        if told:
            x, label = for_each(x, label, groups)
        linear = partial(Dense, use_bias=False, kernel_init=unit, name="logit")
        if "projection" not in told:
            return linear(1)(x).reshape(-1)
        init = nn.initializers.normal((self.width * self.num_classes) ** -0.5)
        return jnp.sum(linear(self.width)(x) * _embedded(self, label, self.width, init), -1)

    def _features(self, x: Array, label: Array | None, num_classes: int) -> Array:
        """Images, labels beside them if there are num_classes -> (B, width) float32."""
        widths = stages(self)
        # One of the label's planes is 1, the others 0.
        init = nn.initializers.normal((x.shape[-1] + (num_classes > 0)) ** -0.5)
        first = partial(LabelConv, kernel_size=1, kernel_init=init, dtype=self.dtype)
        x = first(num_classes, widths[-1], name="image")(x, label)
        for i in reversed(range(len(widths))):
            x = _blocks(self, x, i)
            if i:
                x = _pointwise(self, widths[i - 1], f"double_{4 << i}", fir_down(x))
        last = partial(Conv, kernel_size=4, padding=0, use_bias=False, kernel_init=unit)
        x = last(self.width, groups=self.width, name="basis")(x.astype(jnp.float32))
        return x.reshape(-1, self.width)


def _blocks(network: nn.Module, x: Array, stage: int) -> Array:
    """The blocks of a stage, inside a compact module's call."""
    block = nn.remat(Block) if network.remat else Block
    total = network.blocks * len(stages(network))
    dtype = network.dtype if stage else jnp.float32
    for i in range(network.blocks):
        name = f"block_{4 << stage}_{i}"
        x = block(total, network.group_width, dtype, name=name)(x.astype(dtype))
    return x


def _pointwise(network: nn.Module, features: int, name: str, x: Array) -> Array:
    """x (B, h, w, C) -> (B, h, w, features) by a 1x1 convolution, if that is another number."""
    if x.shape[-1] == features:
        return x
    conv = partial(Conv, kernel_size=1, use_bias=False, kernel_init=unit)
    return conv(features, dtype=network.dtype, name=name)(x)


def _embedded(network: nn.Module, label: Array, features: int, init: Initializer) -> Array:
    """label (B,) -> (B, features) float32; zeros for the label that says nothing."""
    one_hot = jax.nn.one_hot(label, network.num_classes)
    return Dense(features, use_bias=False, kernel_init=init, name="label")(one_hot)
