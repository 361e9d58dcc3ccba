"""DnCNN, the residual denoiser (Zhang et al. 2017, section III).

A column of 3x3 convolutions that predicts what to take away. Depth 17 with 64 channels is DnCNN-S,
556,097 parameters for grey images; depth 20 is DnCNN-B. `shuffle` 2 runs it at half the resolution
on four times the channels (FFDNet, Zhang et al. 2018): the same depth at a quarter of the cost.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.conv import Conv
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.layers.shuffle import shuffle, unshuffle
from aigc_jax.types import Array

_NORMS = ("batch", "none")
_SMALLEST_SCALE = 0.025  # of batch norm's first scales, as published


class Restorer(nn.Module):
    """Degraded images -> restored ones of the same size.

    Attributes:
      channels: of the images.
      depth: convolutions, at least 3.
      width: channels of the hidden layers.
      norm: of the hidden layers but the first: "batch", or "none", for which convolutions have a
        bias instead (the published weights with merged norms). UserError otherwise.
      use_bias: of the convolutions without a norm. Without norm and biases nothing is added
        anywhere, and the network holds at noise levels it never saw (Mohan et al. 2020).
      shuffle: 2: the network sees blocks of 2x2 pixels as channels. 1: it sees pixels.
      dtype: of the computation.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    channels: int = 1
    depth: int = 17
    width: int = 64
    norm: str = "batch"
    use_bias: bool = True
    shuffle: int = 1
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """x (B, H, W, channels) in [-1, 1] -> the same shape, float32, not clipped.

        UserError for a mask, which this network has no use for, and for sides that aren't
        multiples of `multiple(self)`.
        """
        self._check(x, mask)
        # Inside, black is 0 as in the paper: borders are black, and weights fit published ones.
        y = unshuffle((x.astype(self.dtype) + 1) / 2, self.shuffle)
        channels = y.shape[-1]
        y = nn.relu(self._conv(self.width, self.use_bias, "first")(y))
        for i in range(1, self.depth - 1):
            y = nn.relu(self._hidden(y, train, i))
        y = shuffle(self._conv(channels, self.use_bias, "last")(y), self.shuffle)
        return x.astype(jnp.float32) - 2 * y.astype(jnp.float32)

    def _hidden(self, x: Array, train: bool, i: int) -> Array:
        if self.norm == "none":
            return self._conv(self.width, self.use_bias, f"conv_{i}")(x)
        x = self._conv(self.width, False, f"conv_{i}")(x)
        norm = BatchNorm(
            axis_name=self.axis_name, scale_init=_scales, dtype=self.dtype, name=f"norm_{i}"
        )
        return norm(x, train=train)

    def _conv(self, features: int, use_bias: bool, name: str) -> Conv:
        init = nn.initializers.normal((2 / (9 * self.width)) ** 0.5)
        return Conv(features, kernel_init=init, use_bias=use_bias, dtype=self.dtype, name=name)

    def _check(self, x: Array, mask: Array | None) -> None:
        if mask is not None:
            raise UserError("dncnn takes no mask: for images with holes take unet or lama.")
        if self.norm not in _NORMS:
            name = self.norm
            raise UserError(f"dncnn has no norm {name!r}.{did_you_mean(name, _NORMS)}")
        if self.depth < 3 or self.shuffle not in (1, 2):
            raise UserError(
                f"dncnn of depth {self.depth} and shuffle {self.shuffle}: take a depth of at least "
                "3, and 1 or 2 for shuffle."
            )
        height, width = x.shape[1:3]
        if height % self.shuffle or width % self.shuffle:
            raise UserError(
                f"dncnn with shuffle {self.shuffle} takes sides that are multiples of it, not "
                f"{height}x{width}."
            )


def multiple(module: Restorer) -> int:
    """Sizes that the network takes are multiples of this."""
    return module.shuffle


def _scales(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """As published: N(0, 2 / (9 C)), none nearer to 0 than 0.025."""
    x = (2 / (9 * shape[0])) ** 0.5 * jax.random.normal(key, shape, dtype)
    return jnp.where(x < 0, -1, 1) * jnp.maximum(jnp.abs(x), _SMALLEST_SCALE)
