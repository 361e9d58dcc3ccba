"""Luma and colour of RGB images."""

import jax.numpy as jnp

from aigc_jax.types import Array

_BT601 = (0.299, 0.587, 0.114)


def luma(images: Array) -> Array:
    """(B, H, W, 3) -> (B, H, W, 1): .299 R + .587 G + .114 B (ITU-R BT.601), in the same range."""
    return jnp.sum(images * jnp.array(_BT601).reshape(1, 1, 1, 3), -1, keepdims=True)


def with_luma_of(images: Array, others: Array) -> Array:
    """The colour differences of `images` at the luma of `others`, both (B, H, W, 3).

    In the YCbCr space of those weights that takes Y of one and Cb, Cr of the other. Values may
    leave the range of the images by what no colour of that luma has.
    """
    return images + (luma(others) - luma(images))
