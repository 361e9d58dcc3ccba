"""How varied images are, cheap enough for every training step."""

import jax
import jax.numpy as jnp

from aigc_jax.parallel import psum
from aigc_jax.types import Array


def within_class_variance(
    images: Array, label: Array | None, num_classes: int, axis_name: str | None = None
) -> Array:
    """The mean squared distance of an image's pixels to its class's mean image in the batch.

    A generator that makes one picture for each label scores 0, whatever the labels' variety.

    Args:
      images: (B, H, W, C).
      label: (B,) int32, or None: all of one class.
      num_classes: of the labels; 0 with label None.
      axis_name: the pmapped axis to take the batch over.

    Returns:
      a scalar, in squared units of the images.
    """
    x = images.reshape(len(images), -1).astype(jnp.float32)
    if label is None:
        count, total = jnp.full(1, len(x), jnp.float32), x.sum(0, keepdims=True)
    else:
        member = jax.nn.one_hot(label, num_classes, dtype=x.dtype)
        count, total = member.sum(0), member.T @ x
    count, total, square = psum((count, total, jnp.sum(x * x)), axis_name)
    between = jnp.sum(total**2 / jnp.maximum(count, 1)[:, None])
    return (square - between) / (count.sum() * x.shape[1])
