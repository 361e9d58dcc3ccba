"""LaMa's inpainting network, of fast Fourier convolutions (Suvorov et al. 2022, section 2.1).

Three halvings, residual blocks that see the whole image, three doublings. The default fields are
LaMa-Fourier, 27,048,835 parameters; 18 blocks are Big LaMa.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError
from aigc_jax.layers.conv import Conv, ConvTranspose, reflect_pad
from aigc_jax.layers.fourier import FourierConv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.types import Array


class Restorer(nn.Module):
    """Images with holes -> whole ones of the same size.

    Attributes:
      channels: of the images.
      width: channels at full size; each level doubles them.
      levels: halvings.
      blocks: residual blocks, of two Fourier convolutions each.
      share: of the channels at the bottom that are global, between 0 and 1.
      dtype: of the computation; spectra are float32.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    channels: int = 3
    width: int = 64
    levels: int = 3
    blocks: int = 9
    share: float = 0.75
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """x (B, H, W, channels) in [-1, 1], 0 where unknown -> the same shape, float32 in [-1, 1].

        `mask` (B, H, W, 1): 1 where known; None: all is. UserError for sides that aren't multiples
        of `multiple(self)` or are below 2 of them.
        """
        self._check(x)
        mask = jnp.ones_like(x[..., :1]) if mask is None else mask
        y = jnp.concatenate([x, mask.astype(x.dtype)], -1).astype(self.dtype)
        conv = partial(Conv, use_bias=False, dtype=self.dtype)
        first = conv(self.width, 7, padding=0, name="first")
        y = self._normed(first(reflect_pad(y, 3)), train, "first_norm")
        for i in range(self.levels):
            down = conv(self.width << (i + 1), stride=2, padding=0, name=f"down_{i}")
            y = self._normed(down(reflect_pad(y, 1)), train, f"down_norm_{i}")
        fourier = partial(FourierConv, self.share, self.axis_name, self.dtype)
        for i in range(self.blocks):
            inside = fourier(name=f"block_{i}_a")(y, train=train)
            y = y + fourier(name=f"block_{i}_b")(inside, train=train)
        for i in reversed(range(self.levels)):
            up = ConvTranspose(
                self.width << i, 3, output_padding=1, dtype=self.dtype, name=f"up_{i}"
            )
            y = self._normed(up(y), train, f"up_norm_{i}")
        y = Conv(self.channels, 7, padding=0, dtype=self.dtype, name="last")(reflect_pad(y, 3))
        return 2 * nn.sigmoid(y.astype(jnp.float32)) - 1

    def _normed(self, x: Array, train: bool, name: str) -> Array:
        norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=name)
        return nn.relu(norm(x, train=train))

    def _check(self, x: Array) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"lama's share is {self.share}: take one between 0 and 1.")
        (height, width), size = x.shape[1:3], multiple(self)
        if height % size or width % size or min(height, width) < 2 * size:
            raise UserError(
                f"lama of {self.levels} levels takes sides that are multiples of {size}, at least "
                f"{2 * size}, not {height}x{width}."
            )


def multiple(module: Restorer) -> int:
    """Sizes that the network takes are multiples of this."""
    return 1 << module.levels
