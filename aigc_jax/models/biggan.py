"""BigGAN (Brock et al. 2019): the residual GAN whose every block is told class and latent.

Labels go through one embedding that all blocks share; the latent is cut into a chunk for the first
layer and one for each block, whose conditional batch norms see the embedding and their chunk
(appendix B, figure 15). Spectral normalisation is in every linear layer of both networks but the
shared embedding, which it cripples. Attention to itself at one size, orthogonal first weights.

Conditions as in `resnet_gan`. At 32 pixels width 96 gives the 384 and 192 channels that are common
for CIFAR-10; Brock et al. use 64.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.condition import check_label, concat_label, ways
from aigc_jax.layers.conv import Dense
from aigc_jax.models import resnet_gan
from aigc_jax.models.resnet_blocks import kit, synthesis, widths
from aigc_jax.types import Array


class Generator(nn.Module):
    """Latents -> images; attributes as of `resnet_gan.Generator`.

    Attributes:
      chunk: numbers of the latent for each block, and for the first layer.
      embedding: width of the shared embedding of labels.
    """

    image_size: int = 32
    channels: int = 3
    width: int = 96
    chunk: int = 20
    embedding: int = 128
    condition: str = "batch_norm"
    attention: int = 16
    spectral: bool = True
    initialization: str = "orthogonal"
    num_classes: int = 0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @property
    def latent_dim(self) -> int:
        """Of z: a chunk for each size of a map, 4x4 to the image's."""
        return self.chunk * len(widths(self.image_size, self.width))

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None, *, train: bool) -> Array:
        """z (B, latent_dim) ~ N(0, 1), label (B,) int32 -> (B, S, S, channels) in [-1, 1]."""
        check_label(label, self.num_classes)
        told = ways(self.condition, "generator", ("concat", "batch_norm"))
        first, *vectors = jnp.split(z.astype(self.dtype), self.latent_dim // self.chunk, -1)
        if label is not None and "batch_norm" in told:
            shared = self._embedded(label)
            vectors = [jnp.concatenate([shared, chunk], -1) for chunk in vectors]
        if label is not None and "concat" in told:
            first = concat_label(first, label, self.num_classes)
        return synthesis(self, first, vectors, kit(self, train))

    def _embedded(self, label: Array) -> Array:
        told = jax.nn.one_hot(label, self.num_classes, dtype=self.dtype)
        init = nn.initializers.orthogonal()
        shared = Dense(self.embedding, False, kernel_init=init, dtype=self.dtype, name="shared")
        return shared(told)


class Discriminator(resnet_gan.Discriminator):
    """Images -> logits: that of `resnet_gan` with BigGAN's width, attention and first weights."""

    width: int = 96
    attention: int = 16
    initialization: str = "orthogonal"
