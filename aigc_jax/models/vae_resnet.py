"""A convolutional VAE: strided 4x4 convolutions between stages of residual blocks, no norms.

The image is halved until its side is 8 or less (28, 14, 7); labels are concatenated to the image,
as constant planes, and to the latent.
"""

import itertools
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import LabelConv, concat_label
from aigc_jax.layers.conv import Conv, ConvTranspose
from aigc_jax.types import Array

_he = nn.initializers.he_normal()
# The same for a 4x4 transposed convolution of stride 2, whose outputs see a quarter of the taps.
_he_up = nn.initializers.variance_scaling(8.0, "fan_in", "normal", in_axis=-1, out_axis=-2)


def _halvings(image_size: int) -> int:
    """How often the side is halved on the way to the latent: at least once."""
    count = next(n for n in itertools.count(1) if image_size >> n <= 8)
    if image_size % (1 << count):
        raise UserError(
            f"vae_resnet halves the image to 8 pixels or less, which size {image_size} does not "
            "allow: take 28, 32, 64, ..."
        )
    return count


class ResBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3; the last starts at zero, the block at the identity."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, h, w, C) -> the same."""
        y = Conv(x.shape[-1], 3, kernel_init=_he, dtype=self.dtype)(nn.relu(x))
        y = Conv(x.shape[-1], 3, kernel_init=nn.initializers.zeros, dtype=self.dtype)(nn.relu(y))
        return x + y


class Encoder(nn.Module):
    """Images -> the posterior's mean and log scale.

    Attributes:
      latent_dim: of z.
      width: channels of the first stage; each stage has twice as many.
      depth: residual blocks a stage.
      hidden: width of a linear layer beside the latent; 0: none.
      num_classes: 0 for unconditional.
      dtype: of the computation.
    """

    latent_dim: int = 64
    width: int = 32
    depth: int = 1
    hidden: int = 0
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None, *, train: bool) -> tuple[Array, Array]:
        """x (B, S, S, C) in [-1, 1], label (B,) int32 -> mean, log_scale (B, latent_dim)."""
        x = x.astype(self.dtype)
        for i in range(_halvings(x.shape[1])):
            down = {"kernel_size": 4, "stride": 2, "padding": 1, "kernel_init": _he}
            if i == 0:
                x = LabelConv(self.num_classes, self.width, dtype=self.dtype, **down)(x, label)
            else:
                x = Conv(self.width << i, dtype=self.dtype, **down)(nn.relu(x))
            for _ in range(self.depth):
                x = ResBlock(self.dtype)(x)
        x = nn.relu(x).reshape(len(x), -1)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, kernel_init=_he, dtype=self.dtype)(x))
        dense = partial(nn.Dense, self.latent_dim, dtype=self.dtype)
        mean, log_scale = dense(name="mean")(x), dense(name="log_scale")(x)
        return mean.astype(jnp.float32), log_scale.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents -> the parameters of a likelihood; attributes as the encoder's, mirrored.

    Attributes:
      image_size: in pixels; UserError where it can't be halved to 8 or less.
      outputs: parameters a pixel, see `aigc_jax.losses.likelihood`.
    """

    image_size: int = 28
    outputs: int = 1
    latent_dim: int = 64
    width: int = 32
    depth: int = 1
    hidden: int = 0
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None, *, train: bool) -> Array:
        """z (B, latent_dim), label (B,) int32 -> (B, S, S, outputs) float32."""
        stages = _halvings(self.image_size)
        side, channels = self.image_size >> stages, self.width << max(0, stages - 1)
        x = concat_label(z.astype(self.dtype), label, self.num_classes)
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, kernel_init=_he, dtype=self.dtype)(x))
        x = nn.Dense(side * side * channels, dtype=self.dtype)(x).reshape(-1, side, side, channels)
        for i in reversed(range(stages)):
            for _ in range(self.depth):
                x = ResBlock(self.dtype)(x)
            # The image's own scale has as many channels as the first stage.
            features = self.width << max(0, i - 1)
            x = ConvTranspose(features, kernel_init=_he_up, dtype=self.dtype)(nn.relu(x))
        x = Conv(self.outputs, 3, dtype=self.dtype)(nn.relu(x))
        return x.astype(jnp.float32)
