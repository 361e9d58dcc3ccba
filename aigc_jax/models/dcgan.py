"""DCGAN (Radford et al. 2016): strided 4x4 convolutions, batch norm, no biases, logits out.

At 32x32 and width 64 the generator is 100-256-128-64-3 and the discriminator 3-64-128-256-1; each
doubling of the image adds a layer of twice the channels. Labels are concatenated to the latent and,
as constant planes, to the discriminator's image.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import LabelConv, concat_label, for_each
from aigc_jax.layers.conv import Conv, ConvTranspose
from aigc_jax.layers.init import around_one, scaled_normal
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.types import Array

_normal = scaled_normal(0.02)


def _num_layers(image_size: int) -> int:
    """How many 4x4 stride-2 layers lie between 4x4 and the image."""
    layers = image_size.bit_length() - 3
    if image_size not in (16, 32, 64, 128, 256):
        raise UserError(
            f"dcgan can't make images of size {image_size}: take 16, 32, 64, 128 or 256."
        )
    return layers


class Generator(nn.Module):
    """Latents -> images.

    Attributes:
      image_size: 16, 32, 64, 128 or 256. UserError otherwise.
      channels: of the image.
      latent_dim: of z.
      width: channels of the last hidden layer; each layer before has twice as many.
      num_classes: 0 for unconditional.
      dtype: of the computation.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 100
    width: int = 64
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None, *, train: bool) -> Array:
        """z (B, latent_dim) ~ N(0, 1), label (B,) int32 -> (B, S, S, channels) in [-1, 1]."""
        layers = _num_layers(self.image_size)
        up = partial(ConvTranspose, use_bias=False, kernel_init=_normal, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, scale_init=around_one, dtype=self.dtype)
        x = concat_label(z.astype(self.dtype), label, self.num_classes)[:, None, None, :]
        x = up(self.width << (layers - 1), kernel_size=4, stride=1, padding=0)(x)
        for i in reversed(range(layers)):
            x = nn.relu(norm()(x, train=train))
            features = self.width << (i - 1) if i else self.channels
            x = up(features, kernel_size=4, stride=2, padding=1)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images -> logits; attributes as the generator's, `width` the channels of the first layer."""

    image_size: int = 32
    width: int = 64
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool, groups: int = 1
    ) -> Array:
        """x (B, S, S, C) in [-1, 1], label (kB / groups,) int32 -> logits (kB,) float32.

        The batch interleaves `groups` sub-batches (example i is of sub-batch i % groups), and
        batch norm takes the statistics of each: real and fake share one pass, not their moments.
        They share their k labels too, and with each label they are a sub-batch of their own.
        """
        layers = _num_layers(self.image_size)
        conv = partial(Conv, use_bias=False, kernel_init=_normal, dtype=self.dtype)
        norm = partial(BatchNorm, axis_name=self.axis_name, scale_init=around_one, dtype=self.dtype)
        first = partial(LabelConv, self.num_classes, kernel_init=_normal, dtype=self.dtype)
        images = len(x)
        if label is not None:
            x, label = for_each(x, label, groups)
        groups *= len(x) // images
        x = first(self.width, kernel_size=4, stride=2, padding=1)(x, label)
        x = nn.leaky_relu(x, 0.2)
        for i in range(1, layers):
            x = conv(self.width << i, kernel_size=4, stride=2, padding=1)(x)
            x = nn.leaky_relu(norm()(x, train=train, groups=groups), 0.2)
        return conv(1, kernel_size=4, stride=1, padding=0)(x).astype(jnp.float32).reshape(-1)
