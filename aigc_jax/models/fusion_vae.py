"""A residual VAE whose every block is told the condition: `fusion_gan`'s networks, the other way.

The condition joins the encoder's last map and modulates the decoder's convolutions; both may be
labels or texts, see `fusion_gan`.
"""

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.condition import Condition
from aigc_jax.models.fusion_blocks import analysis, encoder, leaky, synthesis
from aigc_jax.types import Array


class Encoder(nn.Module):
    """Images and conditions -> the posterior's mean and log scale.

    Attributes: as of `fusion_gan.Discriminator`; `hidden` is the width of a linear layer beside
    the latent.
    """

    image_size: int = 32
    latent_dim: int = 64
    width: int = 32
    patch: int = 1
    hidden: int = 256
    num_classes: int = 0
    vocabulary: int = 0
    text_width: int = 128
    text_depth: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, condition: Condition = None, *, train: bool
    ) -> tuple[Array, Array]:
        """x (B, S, S, C) in [-1, 1], B conditions -> mean, log_scale (B, latent_dim)."""
        x = analysis(self, x, train)
        x = leaky(x).reshape(len(x), -1)
        if condition is not None:
            x = jnp.concatenate([x, encoder(self)(condition).vector.astype(x.dtype)], -1)
        x = leaky(nn.Dense(self.hidden, dtype=self.dtype)(x))
        mean = nn.Dense(self.latent_dim, dtype=self.dtype, name="mean")(x)
        log_scale = nn.Dense(self.latent_dim, dtype=self.dtype, name="log_scale")(x)
        return mean.astype(jnp.float32), log_scale.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents and conditions -> the parameters of a likelihood.

    Attributes: as of `fusion_gan.Generator`, without a norm.
      outputs: parameters a pixel, see `aigc_jax.losses.likelihood`.
    """

    image_size: int = 32
    outputs: int = 3
    latent_dim: int = 64
    width: int = 32
    patch: int = 1
    hidden: int = 0
    condition: str = "concat,film"
    num_classes: int = 0
    vocabulary: int = 0
    text_width: int = 128
    text_depth: int = 2
    guidance: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array, condition: Condition = None, *, train: bool) -> Array:
        """z (B, latent_dim), B conditions -> (B, S, S, outputs) float32."""
        return synthesis(self, self.outputs)(z, condition, train)
