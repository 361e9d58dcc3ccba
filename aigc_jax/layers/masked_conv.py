"""Convolutions of images with holes: partial ones, which know the hole, and gated, which learn it.

Masks are (B, H, W, 1), 1 where a pixel is known and 0 in holes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

from aigc_jax.layers.conv import Conv, conv
from aigc_jax.types import Array

Initializer = jax.nn.initializers.Initializer


def partial_conv(
    x: Array, mask: Array, kernel: Array, stride: int = 1, padding: int | None = None
) -> tuple[Array, Array]:
    """The convolution of the known pixels, scaled up by their share (Liu et al. 2018, section 3.1).

    Args:
      x: (B, H, W, C); values in holes are not looked at, unless they aren't finite.
      mask: (B, H, W, 1), or (B, H, W, C) where channels have holes of their own.
      kernel: (kh, kw, C, O).
      stride, padding: as of `conv`; zeros around the image are a hole.

    Returns:
      `(y, mask)`: y (B, h, w, O), kernel * (x mask) / (mean of mask in the window), 0 where all is
      unknown; and the updated mask (B, h, w, 1) float32: 1 where anything was known.
    """
    kh, kw = kernel.shape[:2]
    pads = ((kh - 1) // 2, (kw - 1) // 2) if padding is None else (padding, padding)
    share = mask.astype(jnp.float32).mean(-1, keepdims=True)
    for axis, size, pad in zip((1, 2), (kh, kw), pads, strict=True):
        share = _window_mean(share, axis, size, stride, pad)
    share = lax.stop_gradient(share)
    scale = jnp.where(share > 0, 1 / jnp.where(share > 0, share, 1), 0)
    y = conv(x * mask.astype(x.dtype), kernel, stride, padding)
    return y * scale.astype(y.dtype), (share > 0).astype(jnp.float32)


def _window_mean(x: Array, axis: int, size: int, stride: int, pad: int) -> Array:
    """Means along one axis, by additions alone, which are exact on every platform."""
    x = jnp.pad(x, [(pad, pad) if i == axis else (0, 0) for i in range(x.ndim)])
    last = (x.shape[axis] - size) // stride * stride
    views = (lax.slice_in_dim(x, i, i + last + 1, stride, axis) for i in range(size))
    return sum(views) / size


class PartialConv(nn.Module):
    """`partial_conv` with parameters `kernel` (k, k, C, features) and `bias` (features,).

    (x, mask) -> (y, updated mask); the bias is added where anything was known, y is 0 elsewhere.
    Computes in `dtype` (None: the common dtype of input and parameters).
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """x (B, H, W, C); mask (B, H, W, 1) or (B, H, W, C)."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y, mask = partial_conv(x, mask, kernel, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.astype(y.dtype).reshape(1, 1, 1, -1) * mask.astype(y.dtype)
        return y, mask


class GatedConv(nn.Module):
    """activation(a) * sigmoid(g), where one convolution makes both (Yu et al. 2019, section 3.1).

    x: (B, H, W, C) -> (B, h, w, features). One `Conv` of 2 * features: a first, then g.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = True
    activation: Callable[[Array], Array] | None = nn.elu
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve x."""
        both = Conv(
            2 * self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )(x)
        a, g = jnp.split(both, 2, -1)
        return (a if self.activation is None else self.activation(a)) * nn.sigmoid(g)
