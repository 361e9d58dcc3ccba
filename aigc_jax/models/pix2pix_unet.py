"""The U-Net generator of pix2pix (Isola et al. 2017, appendix 6.1.1).

4x4 convolutions of stride 2 down to one pixel and transposed ones back, with a skip connection at
every size. With 8 levels it takes 256 pixels (54,413,955 parameters with batch norm), with 7 it
takes 128 (41,828,995).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.layers.conv import Conv, ConvTranspose
from aigc_jax.layers.init import around_one, scaled_normal
from aigc_jax.layers.norm import BatchNorm, InstanceNorm
from aigc_jax.types import Array

_NORMS = ("batch", "instance")
_normal = scaled_normal(0.02)


class Generator(nn.Module):
    """Images -> images of the same size.

    Attributes:
      channels: of the result.
      width: channels of the first level; each doubles them, up to 8 times.
      levels: halvings; 0: down to one pixel of `image_size`, a power of 2.
      norm: "batch" or "instance"; UserError otherwise.
      dropout: of the widest levels on the way up, the innermost excepted: 3 of 8.
      image_size: where `levels` is 0.
      dtype: of the computation.
      axis_name: the pmapped axis over which batch norm takes its statistics.
    """

    channels: int = 3
    width: int = 64
    levels: int = 0
    norm: str = "batch"
    dropout: float = 0.5
    image_size: int = 256
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, keys: Array | None = None) -> Array:
        """x (B, H, W, C) in [-1, 1], sides multiples of 2**levels -> (B, H, W, channels), float32.

        `keys`: (B,) one for each image, for dropout in training; None: no dropout. UserError for
        other sides.
        """
        self._check(x)
        levels, x, skips = multiple(self).bit_length() - 1, x.astype(self.dtype), []
        biased = self.norm == "instance"
        for i in range(levels):
            x = nn.leaky_relu(x, 0.2) if i else x
            inner = 0 < i < levels - 1
            x = Conv(
                self.width * min(1 << i, 8), 4, stride=2, padding=1, kernel_init=_normal,
                use_bias=biased, dtype=self.dtype, name=f"down_{i}",
            )(x)  # fmt: skip
            x = self._normalise(x, train, f"down_norm_{i}") if inner else x
            skips.append(x)
        x = skips.pop()
        for i in reversed(range(levels)):
            features = self.width * min(1 << (i - 1), 8) if i else self.channels
            x = ConvTranspose(
                features, kernel_init=_normal, dtype=self.dtype, name=f"up_{i}",
                use_bias=biased or not i,
            )(nn.relu(x))  # fmt: skip
            if i:
                x = self._normalise(x, train, f"up_norm_{i}")
                # PyTorch's blocks between the innermost and those that change the width.
                if 4 <= i < levels - 1 and keys is not None:
                    x = _dropout(x, self.dropout, keys, i)
                x = jnp.concatenate([skips.pop(), x], -1)
        return jnp.tanh(x.astype(jnp.float32))

    def _check(self, x: Array) -> None:
        if self.norm not in _NORMS:
            name = self.norm
            raise UserError(f"pix2pix_unet has no norm {name!r}.{did_you_mean(name, _NORMS)}")
        height, width = x.shape[1:3]
        if height % multiple(self) or width % multiple(self):
            raise UserError(
                f"pix2pix_unet of {multiple(self).bit_length() - 1} levels takes sides that are "
                f"multiples of {multiple(self)}, not {height}x{width}."
            )

    def _normalise(self, x: Array, train: bool, name: str) -> Array:
        if self.norm == "instance":
            return InstanceNorm(use_scale=False, use_bias=False, dtype=self.dtype, name=name)(x)
        norm = BatchNorm(
            axis_name=self.axis_name, scale_init=around_one, dtype=self.dtype, name=name
        )
        return norm(x, train=train)


def multiple(module: Generator) -> int:
    """Sizes that the network takes are multiples of this."""
    return 1 << (module.levels or (module.image_size - 1).bit_length())


def _dropout(x: Array, rate: float, keys: Array, level: int) -> Array:
    """Inverted dropout whose mask depends on each image's key alone."""

    def mask(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, level), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(mask)(keys), x / (1 - rate), 0).astype(x.dtype)
