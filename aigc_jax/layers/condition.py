"""Ways to feed a condition to a network. Here: concatenation (Mirza & Osindero 2014)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from aigc_jax.layers.conv import Initializer, conv
from aigc_jax.types import Array


def concat_label(x: Array, label: Array | None, num_classes: int) -> Array:
    """Appends the one-hot label to the last axis: to a latent, or to an image as constant planes.

    Args:
      x: (B, C) or (B, H, W, C).
      label: (B,) int32 in [0, num_classes); None with num_classes = 0, which returns x.

    Returns:
      (B, ..., C + num_classes), of x's dtype.
    """
    if not num_classes:
        return x
    one_hot = _one_hot(label, num_classes, x.dtype)
    one_hot = one_hot.reshape(len(one_hot), *[1] * (x.ndim - 2), num_classes)
    return jnp.concatenate([x, jnp.broadcast_to(one_hot, (*x.shape[:-1], num_classes))], -1)


class LabelConv(nn.Module):
    """The convolution of an image with its label's one-hot planes: `conv(concat_label(x, label))`.

    The same parameter and the same value, but no plane is made: a constant plane's response is one
    map a class, and each example takes its own. With num_classes = 0 it is the plain convolution.

    Attributes:
      num_classes: of the labels.
      features, kernel_size, stride, padding, dtype, kernel_init: as of `Conv`; there is no bias.
    """

    num_classes: int
    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int | None = None
    dtype: jnp.dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """x (B, H, W, C), label (B,) int32 in [0, num_classes) -> (B, h, w, features)."""
        channels, k = x.shape[-1], self.kernel_size
        shape = (k, k, channels + self.num_classes, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = conv(x, kernel[:, :, :channels], self.stride, self.padding)
        if not self.num_classes:
            return y
        plane = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
        planes = kernel[:, :, channels:].reshape(k, k, 1, -1)
        maps = conv(plane, planes, self.stride, self.padding)
        maps = maps.reshape(-1, self.num_classes, self.features).swapaxes(0, 1)
        one_hot = _one_hot(label, self.num_classes, x.dtype)
        return y + (one_hot @ maps.reshape(self.num_classes, -1)).reshape(y.shape)


def _one_hot(label: Array | None, num_classes: int, dtype: jnp.dtype) -> Array:
    if label is None:
        raise ValueError(f"This network is conditional on {num_classes} classes: pass a label.")
    return jax.nn.one_hot(label, num_classes, dtype=dtype)
