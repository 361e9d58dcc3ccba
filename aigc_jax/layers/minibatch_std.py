"""The minibatch standard deviation (Karras et al. 2018, section 3)."""

import jax.numpy as jnp

from aigc_jax.parallel import all_examples, own_examples
from aigc_jax.types import Array


def minibatch_std(
    x: Array, group_size: int, groups: int = 1, axis_name: str | None = None
) -> Array:
    """Appends a plane: the mean over pixels and channels of a group's standard deviation.

    The batch is that of all devices on `axis_name`. It interleaves `groups` sub-batches (example i
    is of sub-batch i % groups), which share no group; a sub-batch's groups interleave as well.

    Args:
      x: (B, H, W, C).
      group_size: of the groups; where it doesn't divide a sub-batch, the next smaller that does.

    Returns:
      (B, H, W, C + 1), of x's dtype.
    """
    everyone = all_examples(x, axis_name).astype(jnp.float32)
    size = _divisor(len(everyone) // groups, group_size)
    members = everyone.reshape(size, len(everyone) // size, *x.shape[1:])
    centred = members - members.mean(0, keepdims=True)
    deviation = jnp.sqrt((centred * centred).mean(0) + 1e-8).mean((1, 2, 3))
    own = own_examples(jnp.tile(deviation, size), axis_name).astype(x.dtype)
    plane = jnp.broadcast_to(own[:, None, None, None], (*x.shape[:3], 1))
    return jnp.concatenate([x, plane], -1)


def _divisor(n: int, largest: int) -> int:
    return max(size for size in range(1, max(1, min(n, largest)) + 1) if n % size == 0)
