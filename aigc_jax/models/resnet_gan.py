"""The residual GANs: WGAN-GP's, SNGAN's, and SAGAN's with attention.

One pair of networks by its fields: Gulrajani et al. 2017 (no normalisation in the critic, which
takes means over the map), Miyato et al. 2018 (spectral normalisation in the discriminator, sums),
Miyato & Koyama 2018 (conditional batch norm, projection), Zhang et al. 2019 (attention, spectral
normalisation in both). At 32 pixels width 64 gives the published 256 and 128 channels.

===============  ==============================================================================
generator        ``concat`` to the latent; ``batch_norm``: its scales and biases
discriminator    ``concat`` to the image, as planes; ``projection``; ``auxiliary``: the class is
                 predicted of the image (Odena et al. 2017), a loss of `methods.gan` asks for it
===============  ==============================================================================
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.condition import check_label, concat_label, ways
from aigc_jax.models.resnet_blocks import judged, kit, synthesis, widths
from aigc_jax.types import Array


class Generator(nn.Module):
    """Latents -> images.

    Attributes:
      image_size: 16, 32, 64, 128 or 256. UserError otherwise.
      channels: of the image.
      latent_dim: of z.
      width: a quarter of the channels at 16 and 32 pixels; above, those of the last block are
        `width` or twice as many.
      condition: ways, see above; ignored where there is none.
      attention: the side of the map that attends to itself; 0: none.
      spectral: whether every linear layer is spectrally normalised.
      initialization: "glorot" (uniform; sqrt(2) times as much in the blocks) or "orthogonal".
      num_classes: 0 for unconditional.
      remat: whether blocks are computed again for the gradient, to save memory.
      dtype: of the computation.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 128
    width: int = 64
    condition: str = "batch_norm"
    attention: int = 0
    spectral: bool = False
    initialization: str = "glorot"
    num_classes: int = 0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None, *, train: bool) -> Array:
        """z (B, latent_dim) ~ N(0, 1), label (B,) int32 -> (B, S, S, channels) in [-1, 1]."""
        check_label(label, self.num_classes)
        told = ways(self.condition, "generator", ("concat", "batch_norm"))
        z, vector = z.astype(self.dtype), None
        if label is not None and "batch_norm" in told:
            vector = jax.nn.one_hot(label, self.num_classes, dtype=self.dtype)
        if label is not None and "concat" in told:
            z = concat_label(z, label, self.num_classes)
        blocks = len(widths(self.image_size, self.width)) - 1
        return synthesis(self, z, [vector] * blocks, kit(self, train))


class Discriminator(nn.Module):
    """Images -> logits; attributes as the generator's.

    With `auxiliary` it sows class logits (B, num_classes) in the collection of that name.

    Attributes:
      width: half of the channels at 16 and 32 pixels; above, those of the first block.
      pool: "sum" or "mean", over the last map.
    """

    image_size: int = 32
    width: int = 64
    condition: str = "projection"
    attention: int = 0
    spectral: bool = True
    initialization: str = "glorot"
    pool: str = "sum"
    num_classes: int = 0
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None = None, *, train: bool, groups: int = 1
    ) -> Array:
        """x (B, S, S, C) in [-1, 1], label (kB / groups,) int32 -> logits (kB,) float32.

        The batch interleaves `groups` sub-batches (example i is of sub-batch i % groups), which
        share their k labels each.
        """
        check_label(label, self.num_classes)
        return judged(self, x, label, groups, train)
