"""The VQ-VAE's networks (van den Oord et al. 2017, section 4.1).

The default fields are the widths of Sonnet's example: for RGB, 662,723 parameters together, and
32x32 images become 8x8 codes.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import models
from aigc_jax.errors import UserError
from aigc_jax.layers import codebook
from aigc_jax.layers.conv import Conv, ConvTranspose
from aigc_jax.types import Array


class ResidualStack(nn.Module):
    """Blocks of ReLU, 3x3 to `block_width`, ReLU, 1x1 back, added to their input; then a ReLU."""

    blocks: int
    block_width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, h, w, C) -> (B, h, w, C)."""
        for _ in range(self.blocks):
            y = Conv(self.block_width, kernel_size=3, dtype=self.dtype)(nn.relu(x))
            x = x + Conv(x.shape[-1], kernel_size=1, dtype=self.dtype)(nn.relu(y))
        return nn.relu(x)


class Encoder(nn.Module):
    """Images -> vectors on a grid 2^halvings times smaller.

    Attributes:
      width: channels of the hidden layers; the first layer has half.
      halvings: how many 4x4 convolutions of stride 2 come first.
      blocks, block_width: residual blocks after them, and their inner channels.
      embedding_dim: D, of the vectors.
      dtype: of the computation.
    """

    width: int = 128
    halvings: int = 2
    blocks: int = 2
    block_width: int = 32
    embedding_dim: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """x (B, H, W, C) in [-1, 1] -> (B, H / 2^halvings, W / 2^halvings, D) float32.

        Raises UserError if the sides don't halve that often.
        """
        _check_sides(x, self.halvings)
        conv = partial(Conv, dtype=self.dtype)
        x = x.astype(self.dtype)
        for width in _widths(self.width, self.halvings):
            x = nn.relu(conv(width, kernel_size=4, stride=2, padding=1)(x))
        x = conv(self.width, kernel_size=3)(x)
        x = ResidualStack(self.blocks, self.block_width, self.dtype)(x)
        return conv(self.embedding_dim, kernel_size=1)(x).astype(jnp.float32)


class Decoder(nn.Module):
    """Vectors -> images, linear outputs; attributes as the encoder's, `channels` of the images."""

    channels: int = 3
    width: int = 128
    halvings: int = 2
    blocks: int = 2
    block_width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array, *, train: bool = False) -> Array:
        """z (B, h, w, D) -> (B, h * 2^halvings, w * 2^halvings, channels) float32, unbounded."""
        up = partial(ConvTranspose, kernel_size=4, stride=2, padding=1, dtype=self.dtype)
        x = Conv(self.width, kernel_size=3, dtype=self.dtype)(z.astype(self.dtype))
        x = ResidualStack(self.blocks, self.block_width, self.dtype)(x)
        for width in _widths(self.width, self.halvings)[-2::-1]:
            x = nn.relu(up(width)(x))
        return up(self.channels)(x).astype(jnp.float32)


def _widths(width: int, halvings: int) -> list[int]:
    return [max(1, width // 2)] + [width] * (halvings - 1)


def _check_sides(x: Array, halvings: int) -> None:
    if halvings < 1:
        raise UserError(f"config.encoder.halvings is {halvings}: it must be at least 1.")
    if any(side % 2**halvings for side in x.shape[1:3]):
        raise UserError(
            f"vqvae can't halve {x.shape[1]}x{x.shape[2]} images {halvings} times: take "
            f"config.image_size a multiple of {2**halvings}, or lower config.encoder.halvings."
        )


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A trained VQ-VAE's two halves; `weights` are what `methods.vqvae.weights` returns.

    Attributes:
      encoder: module(images, train=) -> (B, h, w, D).
      decoder: module(vectors, train=) -> (B, H, W, C).
    """

    encoder: nn.Module
    decoder: nn.Module

    def to_codes(self, weights: dict[str, Any], images: Array) -> Array:
        """images (B, H, W, C) in [-1, 1] -> codes (B, h, w) int32."""
        z = self.encoder.apply(weights["encoder"], images, train=False)
        return codebook.nearest(weights["codebook"], z)

    def to_images(self, weights: dict[str, Any], codes: Array) -> Array:
        """codes (B, h, w) int32 -> images (B, H, W, C) float32, clipped to [-1, 1]."""
        quantized = codebook.lookup(weights["codebook"], codes)
        images = self.decoder.apply(weights["decoder"], quantized, train=False)
        return jnp.clip(images, -1, 1)


def autoencoder(config: ConfigDict, axis_name: str | None = None) -> Autoencoder:
    """The networks of a run's config: `encoder`, `decoder`, `image_size`, `channels`, `dtype`.

    Raises:
      UserError: unknown names.
    """
    common = dict(
        image_size=config.image_size,
        channels=config.channels,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )
    return Autoencoder(
        models.build(config.encoder, "Encoder", **common),
        models.build(config.decoder, "Decoder", **common),
    )
