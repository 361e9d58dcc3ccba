"""Pixels moved between the plane, the channels and the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.types import Array, PyTree


def unshuffle(x: Array, size: int) -> Array:
    """Blocks of size x size pixels as channels: (B, H, W, C) -> (B, H / size, W / size, size^2 C).

    The channels of a block lie row by row. ValueError unless size divides H and W.
    """
    b, h, w, c = x.shape
    if h % size or w % size:
        raise ValueError(f"{size} does not divide {h}x{w}.")
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)


def shuffle(x: Array, size: int) -> Array:
    """The inverse of `unshuffle`: (B, h, w, size^2 C) -> (B, h size, w size, C).

    ValueError unless size^2 divides the channels.
    """
    b, h, w, c = x.shape
    if c % (size * size):
        raise ValueError(f"{size}^2 does not divide {c} channels.")
    x = x.reshape(b, h, w, size, size, c // (size * size)).swapaxes(2, 3)
    return x.reshape(b, h * size, w * size, c // (size * size))


def dilated(layer: Callable[..., PyTree], dilation: int, *arrays: PyTree) -> PyTree:
    """A layer whose taps stand `dilation` pixels apart, by one whose taps are neighbours.

    Args:
      layer: (n, h, w, C), ... -> (n, h, w, O), or a tree of them; translation-invariant, of
        unchanged size, with zeros around the images.
      dilation: pixels between taps.
      *arrays: (B, H, W, C) or trees of them, any sides.

    Returns:
      (B, H, W, O), or the tree.
    """
    if dilation == 1:
        return layer(*arrays)
    height, width = jax.tree.leaves(arrays)[0].shape[1:3]
    phases = jax.tree.map(lambda x: _phases(x, dilation), arrays)
    merge = lambda y: _merged(y, dilation)[:, :height, :width]  # noqa: E731
    return jax.tree.map(merge, layer(*phases))


def _phases(x: Array, size: int) -> Array:
    """(B, H, W, C) -> (B size^2, ceil(H / size), ceil(W / size), C): every size-th pixel together.

    A layer sees one phase in each image, and zeros around it as around the whole.
    """
    b, h, w, c = x.shape
    rows, columns = -(-h // size), -(-w // size)
    x = jnp.pad(x, ((0, 0), (0, rows * size - h), (0, columns * size - w), (0, 0)))
    x = x.reshape(b, rows, size, columns, size, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b * size * size, rows, columns, c)


def _merged(y: Array, size: int) -> Array:
    """The inverse of `_phases`, with the zeros below and right."""
    n, rows, columns, c = y.shape
    y = y.reshape(-1, size, size, rows, columns, c).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(n // size**2, rows * size, columns * size, c)
