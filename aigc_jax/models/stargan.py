"""StarGAN's networks (Choi et al. 2018, tables 4 and 5), after its published code.

One generator takes an image and the class it is to become; one discriminator judges patches and
tells the class. At 128 pixels with 5 classes they have 8,430,528 and 44,762,048 parameters.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.condition import concat_label
from aigc_jax.layers.conv import Conv, ConvTranspose
from aigc_jax.layers.norm import InstanceNorm
from aigc_jax.types import Array


class Generator(nn.Module):
    """(images, labels) -> images of the same size.

    Borders are zeros: mirrored ones would leave the label's planes constant, which instance norm
    takes away.

    Attributes:
      num_classes: of the labels.
      channels: of the result.
      width: channels of the first layer; 2 and 4 times as many follow.
      blocks: residual blocks.
      dtype: of the computation.
    """

    num_classes: int
    channels: int = 3
    width: int = 64
    blocks: int = 6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array, *, train: bool = False) -> Array:
        """x (B, H, W, C) in [-1, 1], sides multiples of 4, label (B,) -> (B, H, W, channels)."""
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        up = partial(ConvTranspose, use_bias=False, dtype=self.dtype)

        def norm(x: Array) -> Array:
            return InstanceNorm(dtype=self.dtype)(x)

        x = concat_label(x.astype(self.dtype), label, self.num_classes)
        x = nn.relu(norm(conv(self.width, 7)(x)))
        for k in (2, 4):
            x = nn.relu(norm(conv(k * self.width, 4, stride=2, padding=1)(x)))
        for _ in range(self.blocks):
            y = nn.relu(norm(conv(4 * self.width)(x)))
            x = x + norm(conv(4 * self.width)(y))
        for k in (2, 1):
            x = nn.relu(norm(up(k * self.width)(x)))
        return jnp.tanh(conv(self.channels, 7)(x).astype(jnp.float32))


class Discriminator(nn.Module):
    """Images -> (logits of patches, logits of classes).

    Attributes:
      num_classes: of the labels.
      image_size: a power of 2 or a multiple of a high one; layers halve it until 2 pixels are left,
        6 at most.
      width: channels of the first layer; each layer doubles them.
      dtype: of the computation.
    """

    num_classes: int
    image_size: int = 128
    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        """x (B, S, S, C) in [-1, 1], S the image_size -> (B, h, w) and (B, K) float32."""
        layers = min(6, self.image_size.bit_length() - 2)
        if layers < 1 or x.shape[1:3] != (self.image_size,) * 2 or self.image_size % (1 << layers):
            raise UserError(
                f"stargan's discriminator takes square images whose side is 2**k times 2 or 3, not "
                f"{x.shape[1]}x{x.shape[2]} with image_size {self.image_size}."
            )
        conv = partial(Conv, dtype=self.dtype)
        x = x.astype(self.dtype)
        for i in range(layers):
            x = nn.leaky_relu(conv(self.width << i, 4, stride=2, padding=1)(x), 0.01)
        patches = conv(1, 3, use_bias=False)(x)[..., 0]
        classes = conv(self.num_classes, x.shape[1:3], padding=0, use_bias=False)(x)[:, 0, 0]
        return patches.astype(jnp.float32), classes.astype(jnp.float32)


def multiple(module: Generator) -> int:
    """Sizes that the generator takes are multiples of this."""
    return 4
