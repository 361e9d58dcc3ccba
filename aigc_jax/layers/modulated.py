"""Convolutions whose weights a style scales (Karras et al. 2020b, section 2.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from aigc_jax.layers.conv import conv, conv_transpose
from aigc_jax.layers.equalized import EqualDense
from aigc_jax.layers.fir import fir_blur
from aigc_jax.types import Array


def modulated_conv(
    x: Array, kernel: Array, style: Array, demodulate: bool = True, up: bool = False
) -> Array:
    """A convolution with every example's own weights: w' = s w, w'' = w' / |w'| if demodulated.

    The style scales the input's channels and |w'| divides the output's, so that one kernel serves
    all examples: the same numbers, and no grouped convolution.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, C, O).
      style: (B, C), float32.
      up: doubles the size by the transposed convolution of stride 2 and the filter (1, 3, 3, 1);
        for k = 3.

    Returns:
      (B, H, W, O), or (B, 2H, 2W, O), of x's dtype.
    """
    x = x * _to_pixels(style, x)
    w = kernel.astype(x.dtype)
    y = fir_blur(conv_transpose(x, w.swapaxes(2, 3), 2), 1, 4.0) if up else conv(x, w)
    return y * _to_pixels(demodulation(kernel, style), y) if demodulate else y


def demodulation(kernel: Array, style: Array) -> Array:
    """1 / |w'| of every output channel: kernel (k, k, C, O), style (B, C) -> (B, O), float32."""
    kernel, style = kernel.astype(jnp.float32), style.astype(jnp.float32)
    squares = jnp.sum(kernel * kernel, (0, 1))
    return lax.rsqrt(jnp.dot(style * style, squares, precision="highest") + 1e-8)


def _to_pixels(v: Array, x: Array) -> Array:
    return v.astype(x.dtype)[:, None, None]


class ModulatedConv(nn.Module):
    """`modulated_conv` with the style affine in w: x (B, H, W, C), w (B, W) -> (B, H, W, features).

    Parameters `kernel` (k, k, C, features) and those of the layer `affine`; no bias.

    Attributes:
      demodulate: without it the style is scaled by 1 / sqrt(fan in), an equalised learning rate.
      up: twice the size.
      dtype: of the convolution; styles and |w'| are float32.
    """

    features: int
    kernel_size: int = 3
    demodulate: bool = True
    up: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        """Convolve x."""
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        style = EqualDense(channels, bias=1.0, name="affine")(w.astype(jnp.float32))
        if not self.demodulate:
            style = style / (self.kernel_size * channels**0.5)
        return modulated_conv(x.astype(self.dtype), kernel, style, self.demodulate, self.up)
