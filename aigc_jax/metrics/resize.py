"""Resizing to the 299x299 pixels of Inception: the conventions that published numbers rest on.

Each in two forms: on the device, uint8 (B, H, W, 3) -> float32 (B, 299, 299, 3), and on the host,
for images of mixed sizes, one uint8 (H, W, C) -> float32 (299, 299, 3), where C = 1 is repeated.
Values stay in [0, 255], unrounded. An image of 299x299 is returned unchanged by each of them.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from aigc_jax.types import Array

SIDE = 299


def tf1(images: Array, side: int = SIDE) -> Array:
    """TensorFlow 1's bilinear: `tf.raw_ops.ResizeBilinear` without its options, to the bit."""
    return _bilinear(images, *_tf1_steps(side, *images.shape[1:3]))


def tf1_host(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """`tf1` of one image."""
    return _bilinear_host(image, *_tf1_steps(side, *image.shape[:2]))


def half_pixel(images: Array) -> Array:
    """Bilinear between pixel centres, not antialiased: PyTorch's `F.interpolate`."""
    return _bilinear(images, *_half_pixel_steps(*images.shape[1:3]))


def half_pixel_host(image: np.ndarray) -> np.ndarray:
    """`half_pixel` of one image."""
    return _bilinear_host(image, *_half_pixel_steps(*image.shape[:2]))


def clean(images: Array) -> Array:
    """Pillow's antialiased bicubic in floating point, clipped (Parmar et al. 2022, clean-fid)."""
    rows, columns = map(_bicubic_matrix, images.shape[1:3])
    x = images.astype(jnp.float32)
    x = jnp.einsum("bhwc,vw->bhvc", x, columns, precision=lax.Precision.HIGHEST)
    x = jnp.einsum("bhvc,uh->buvc", x, rows, precision=lax.Precision.HIGHEST)
    return jnp.clip(x, 0, 255)


def clean_host(image: np.ndarray) -> np.ndarray:
    """`clean` of one image, by Pillow itself."""
    channels = _three_channels(image).astype(np.float32).transpose(2, 0, 1)
    resized = [Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in channels]
    return np.clip(np.stack([np.asarray(c) for c in resized], -1), 0, 255)


DEVICE: dict[str, Callable[[Array], Array]] = {"tf1": tf1, "half_pixel": half_pixel, "clean": clean}
HOST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tf1": tf1_host,
    "half_pixel": half_pixel_host,
    "clean": clean_host,
}

# Along one axis: the two neighbours of every output pixel, and the weight of the second.
Steps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _steps(source: np.ndarray, size: int) -> Steps:
    low = np.floor(source).astype(np.int32)
    return low, np.minimum(low + 1, size - 1), source - low.astype(np.float32)


def _tf1_steps(side: int, *sizes: int) -> list[Steps]:
    out = np.arange(side, dtype=np.float32)
    return [_steps(out * (np.float32(size) / np.float32(side)), size) for size in sizes]


def _half_pixel_steps(*sizes: int) -> list[Steps]:
    # PyTorch rounds the scale, but the position only once: it is a fused product and sum.
    centre, scales = np.arange(SIDE) + 0.5, [np.float32(size / SIDE) for size in sizes]
    sources = [np.maximum(centre * float(scale) - 0.5, 0).astype(np.float32) for scale in scales]
    return [_steps(source, size) for source, size in zip(sources, sizes, strict=True)]


def _bilinear(images: Array, rows: Steps, columns: Steps) -> Array:
    x = images.astype(jnp.float32)
    for axis, (low, high, weight) in ((2, columns), (1, rows)):
        a, b = jnp.take(x, low, axis), jnp.take(x, high, axis)
        weight = jnp.asarray(weight).reshape([-1 if i == axis else 1 for i in range(4)])
        # The bounds hold anyway. They keep the compiler from fusing the product with the sum,
        # which would round once where TensorFlow rounds twice.
        x = a + jnp.clip((b - a) * weight, -255, 255)
    return x


def _bilinear_host(image: np.ndarray, rows: Steps, columns: Steps) -> np.ndarray:
    x = _three_channels(image).astype(np.float32)
    for axis, (low, high, weight) in ((1, columns), (0, rows)):
        a, b = x.take(low, axis), x.take(high, axis)
        x = a + (b - a) * weight.reshape([-1 if i == axis else 1 for i in range(3)])
    return x


def _three_channels(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


@functools.cache
def _bicubic_matrix(size: int) -> np.ndarray:
    """(299, size) float32: Keys' cubic (a = -0.5), widened by the ratio where it shrinks."""
    if size == SIDE:
        return np.eye(SIDE, dtype=np.float32)
    ratio = size / SIDE
    width = max(ratio, 1.0)
    centre = (np.arange(SIDE)[:, None] + 0.5) * ratio
    pixel = np.arange(size)
    first = np.maximum(np.floor(centre - 2 * width + 0.5), 0)
    inside = (pixel >= first) & (pixel < np.floor(centre + 2 * width + 0.5))
    weights = np.where(inside, _cubic((pixel + 0.5 - centre) / width), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
