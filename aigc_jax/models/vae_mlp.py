"""The fully connected VAE of Burda et al. 2016 (section 5): 784-200-200-50, tanh.

Labels are concatenated to the encoder's image and to the decoder's latent.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.condition import concat_label
from aigc_jax.types import Array

_Dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())


class Encoder(nn.Module):
    """Images -> the posterior's mean and log scale.

    Attributes:
      latent_dim: of z.
      width, depth: of the hidden layers.
      num_classes: 0 for unconditional.
      dtype: of the computation.
    """

    latent_dim: int = 50
    width: int = 200
    depth: int = 2
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None, *, train: bool) -> tuple[Array, Array]:
        """x (B, H, W, C) in [-1, 1], label (B,) int32 -> mean, log_scale (B, latent_dim)."""
        # From 0 to 1, as in the paper: most pixels of a drawing are then no input at all.
        x = (x.reshape(len(x), -1) + 1) / 2
        x = concat_label(x.astype(self.dtype), label, self.num_classes)
        for _ in range(self.depth):
            x = jnp.tanh(_Dense(self.width, dtype=self.dtype)(x))
        mean = _Dense(self.latent_dim, dtype=self.dtype, name="mean")(x)
        log_scale = _Dense(self.latent_dim, dtype=self.dtype, name="log_scale")(x)
        return mean.astype(jnp.float32), log_scale.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents -> the parameters of a likelihood; attributes as the encoder's.

    Attributes:
      image_size: in pixels.
      outputs: parameters a pixel, see `aigc_jax.losses.likelihood`.
    """

    image_size: int = 28
    outputs: int = 1
    latent_dim: int = 50
    width: int = 200
    depth: int = 2
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None, *, train: bool) -> Array:
        """z (B, latent_dim), label (B,) int32 -> (B, S, S, outputs) float32."""
        x = concat_label(z.astype(self.dtype), label, self.num_classes)
        for _ in range(self.depth):
            x = jnp.tanh(_Dense(self.width, dtype=self.dtype)(x))
        side = self.image_size
        x = _Dense(side * side * self.outputs, dtype=self.dtype, name="pixels")(x)
        return x.reshape(-1, side, side, self.outputs).astype(jnp.float32)
