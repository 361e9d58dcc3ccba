"""What Inception computes between its biases, each in the form that its platform wants."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.types import Array

LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x: Array, kernel: Array, stride: int, padding: str, precision: lax.Precision) -> Array:
    """x (B, H, W, C), kernel (kh, kw, C, O) -> (B, h, w, O); padding "SAME" or "VALID"."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, precision=precision
    )


def max_3x3_stride_2(x: Array) -> Array:
    """Maxima of 3x3 pixels, two apart, without padding."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def max_3x3(x: Array) -> Array:
    """Maxima of the 3x3 pixels around each."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def mean_3x3(x: Array) -> Array:
    """Means of the 3x3 pixels around each, of those that are in the image."""
    counts = [
        np.convolve(np.ones(n, np.float32), np.ones(3, np.float32), "same") for n in x.shape[1:3]
    ]
    total = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total / jnp.asarray(np.outer(*counts)).reshape(1, *x.shape[1:3], 1)
