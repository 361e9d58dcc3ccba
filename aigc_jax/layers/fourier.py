"""Fast Fourier convolutions, whose receptive field is the whole image (Chi et al. 2020).

As LaMa has them (Suvorov et al. 2022, section 2.1): without local Fourier units.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.layers.conv import Conv, reflect_pad
from aigc_jax.layers.norm import BatchNorm
from aigc_jax.types import Array


def spectrum(x: Array) -> Array:
    """The orthonormal transform of real images, its parts as channels.

    x (B, H, W, C) -> (B, H, W // 2 + 1, 2 C) float32, channel by channel real and imaginary part.
    In float32 whatever the dtype of x.
    """
    z = jnp.fft.rfft2(x.astype(jnp.float32), axes=(1, 2), norm="ortho")
    return jnp.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], -1)


def image(y: Array, width: int) -> Array:
    """The inverse of `spectrum` for images of that width: (B, H, W // 2 + 1, 2 C) -> (B, H, W, C).

    Spectra that no real image has are taken as PyTorch's `irfft2` does.
    """
    y = y.astype(jnp.float32).reshape(*y.shape[:-1], -1, 2)
    # Axis by axis: the two-dimensional inverse of such spectra is undefined in cuFFT.
    z = jnp.fft.ifft(y[..., 0] + 1j * y[..., 1], axis=1, norm="ortho")
    return jnp.fft.irfft(z, width, axis=2, norm="ortho")


class SpectralTransform(nn.Module):
    """A 1x1 convolution in the frequencies, between two in the pixels (section 3.3 of Chi et al.).

    x (B, H, W, C) -> (B, H, W, features): 1x1 to features // 2, batch norm, ReLU; what 1x1, batch
    norm and ReLU make of its spectrum, added; 1x1 to features.
    """

    features: int
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Transform x."""
        x = self._normed(x, self.features // 2, train, "reduce")
        changed = self._normed(spectrum(x), 2 * x.shape[-1], train, "spectral")
        x = x + image(changed, x.shape[2]).astype(x.dtype)
        return Conv(self.features, 1, use_bias=False, dtype=self.dtype, name="expand")(x)

    def _normed(self, x: Array, features: int, train: bool, name: str) -> Array:
        x = Conv(features, 1, use_bias=False, dtype=self.dtype, name=name)(x)
        norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=f"{name}_norm")
        return nn.relu(norm(x, train=train))


class FourierConv(nn.Module):
    """A 3x3 convolution of local channels beside a spectral transform of global ones.

    x (B, H, W, C) -> the same shape. The last int(share C) channels are global. Local ones go to
    both by 3x3, global ones to the local by 3x3 and to themselves by `SpectralTransform`; borders
    are mirrored; then batch norm and ReLU.

    Attributes:
      share: of the channels that are global, between 0 and 1, not included.
      axis_name: the pmapped axis over which batch norm takes its statistics.
      dtype: of the computation; None: that of input and parameters.
    """

    share: float = 0.75
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Convolve x, of sides of at least 2."""
        wide = int(self.share * x.shape[-1])
        local = x.shape[-1] - wide
        padded, far = reflect_pad(x, 1), x[..., local:]
        near = self._conv(x.shape[-1], "from_local")(padded[..., :local])
        back = self._conv(local, "global_to_local")(padded[..., local:])
        transform = SpectralTransform(wide, self.axis_name, self.dtype, name="global_to_global")
        y = near + jnp.concatenate([back, transform(far, train=train)], -1)
        norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="norm")
        return nn.relu(norm(y, train=train))

    def _conv(self, features: int, name: str) -> Conv:
        return Conv(features, 3, padding=0, use_bias=False, dtype=self.dtype, name=name)
