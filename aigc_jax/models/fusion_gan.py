"""A residual GAN whose every block is told the condition, after DF-GAN (Tao et al. 2022).

The generator modulates each convolution's input by the latent and the condition; the discriminator
joins the condition to its last map. Both may attend to a text's tokens. Published: `width` 32,
`patch` 1, no attention. With `patch` 2 images are made and read in blocks of 2x2 pixels (Shi et al.
2016), so that no convolution works at full size: a quarter of the cost.

With `blocks` "strided" the networks are DCGAN's instead, the textbook text-to-image GAN (GAN-CLS,
Reed et al. 2016): transposed and strided 4x4 convolutions with batch norm, the quickest on a CPU.

Ways to condition, any of them, joined by commas, for labels and texts alike:

===============  ==============================================================================
generator        ``concat`` to the latent at the input; ``film``: the vector modulates every
                 convolution's input; ``attention`` to the text's tokens
discriminator    ``concat`` to the last map (one-step-out, Tao et al. 2022); ``projection``
                 (Miyato & Koyama 2018); ``attention``; ``auxiliary``: classes or texts are
                 predicted of the image (Odena et al. 2017; Zhang et al. 2021), a loss of
                 `methods.gan` asks for it
===============  ==============================================================================
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.condition import (
    Condition,
    CrossAttention,
    Encoded,
    Projection,
    Text,
    discriminator_ways,
    each_of,
    for_each,
)
from aigc_jax.layers.conv import Conv
from aigc_jax.models.fusion_blocks import analysis, encoder, he, leaky, synthesis
from aigc_jax.types import Array


class Generator(nn.Module):
    """Latents and conditions -> images.

    Attributes:
      image_size: 8 * patch, 16 * patch, ... UserError otherwise.
      channels: of the image.
      latent_dim: of z.
      width: channels of the last block; each block before has twice as many, up to 8 width.
      blocks: "residual" or "strided", see above.
      patch: of residual blocks, 1 or 2, see above.
      hidden: width of the hidden layers of the modulation; 0: none.
      norm: "none", as published; "batch": the modulation is a conditional batch norm.
      condition: ways, see above; ignored where there is none.
      num_classes, vocabulary, text_width, text_depth: of the condition, see `ConditionEncoder`.
      guidance: see `ConditionEncoder.__call__`.
      dtype: of the computation.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 100
    width: int = 32
    blocks: str = "residual"
    patch: int = 1
    hidden: int = 0
    norm: str = "none"
    condition: str = "concat,film"
    num_classes: int = 0
    vocabulary: int = 0
    text_width: int = 128
    text_depth: int = 2
    guidance: float = 0.0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, condition: Condition = None, *, train: bool) -> Array:
        """z (B, latent_dim) ~ N(0, 1), B conditions -> (B, S, S, channels) in [-1, 1]."""
        return jnp.tanh(synthesis(self, self.channels)(z, condition, train))


class Discriminator(nn.Module):
    """Images and conditions -> logits; attributes as the generator's, `width` of the first map.

    With `auxiliary` it sows what it predicts in the collection of that name: for labels `logits`
    (B, num_classes); for texts `image` (B, text_width) and `text`, of every text, unit vectors.
    """

    image_size: int = 32
    width: int = 32
    blocks: str = "residual"
    patch: int = 1
    condition: str = "concat"
    num_classes: int = 0
    vocabulary: int = 0
    text_width: int = 128
    text_depth: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Array, condition: Condition = None, *, train: bool, groups: int = 1
    ) -> Array:
        """x (B, S, S, C) in [-1, 1], kB / groups conditions -> logits (kB,) float32.

        The batch interleaves `groups` sub-batches (example i is of sub-batch i % groups), which
        share their k conditions.
        """
        in_logits, each = ("concat", "projection", "attention"), each_of(x, condition, groups)
        # No way is before the maps that `auxiliary` reads.
        told = discriminator_ways(self.condition, in_logits, each, shown=())
        x = analysis(self, x, train, groups)
        if condition is None:
            return self._logits(x)
        encoded = encoder(self)(condition)
        if "auxiliary" in told:
            self._auxiliary(x, condition, encoded)
        x, encoded = for_each(x, encoded, groups)
        if "attention" in told:
            x = CrossAttention(dtype=self.dtype)(x, encoded)
        vector = encoded.vector[:, None, None]
        planes = jnp.broadcast_to(vector, (*x.shape[:3], vector.shape[-1]))
        logits = self._logits(jnp.concatenate([x, planes], -1) if "concat" in told else x)
        if "projection" in told:
            pooled = leaky(x).mean((1, 2))
            logits = logits + Projection(self.dtype)(pooled, encoded.vector)
        return logits

    def _logits(self, x: Array) -> Array:
        conv = partial(Conv, kernel_init=he, dtype=self.dtype)
        y = leaky(conv(2 * self.width, 3, use_bias=False, name="join")(x))
        return conv(1, 4, padding=0, name="logit")(y).astype(jnp.float32).reshape(-1)

    def _auxiliary(self, x: Array, condition: Condition, encoded: Encoded) -> None:
        pooled = leaky(x).reshape(len(x), -1)
        if not isinstance(condition, Text):
            logits = nn.Dense(self.num_classes, dtype=self.dtype, name="classhead")(pooled)
            self.sow("auxiliary", "logits", logits.astype(jnp.float32))
            return
        image = nn.Dense(self.text_width, dtype=self.dtype, name="imagehead")(pooled)
        text = nn.Dense(self.text_width, dtype=self.dtype, name="texthead")(encoded.vector)
        self.sow("auxiliary", "image", _unit(image))
        self.sow("auxiliary", "text", _unit(text))


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12)
