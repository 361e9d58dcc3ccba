"""Features kept whole, for the metrics that need each of them (KID, precision and recall)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from aigc_jax.parallel import all_examples, psum
from aigc_jax.types import Array


class Buffer(struct.PyTreeNode):
    """Room for feature vectors, filled from the front.

    Attributes:
      features: (capacity, D) float32.
      n: () int32, how many it holds.
      dropped: () int32, how many found no room.
    """

    features: Array
    n: Array
    dropped: Array


def init(capacity: int, dim: int) -> Buffer:
    """An empty buffer for `capacity` vectors of `dim` numbers: 4 * capacity * dim bytes."""
    zero = jnp.zeros((), jnp.int32)
    return Buffer(jnp.zeros((capacity, dim), jnp.float32), zero, zero)


def update(state: Buffer, features: Array, mask: Array | None = None) -> Buffer:
    """Appends the rows of features (B, D) whose mask (B,) isn't 0, in their order."""
    valid = jnp.ones(len(features), bool) if mask is None else mask > 0
    capacity = len(state.features)
    place = state.n + jnp.cumsum(valid, dtype=jnp.int32) - 1
    place = jnp.where(valid, place, capacity)
    kept = state.features.at[place].set(features.astype(jnp.float32), mode="drop")
    total = state.n + valid.sum(dtype=jnp.int32)
    n = jnp.minimum(total, capacity)
    return Buffer(kept, n, state.dropped + total - n)


def merge(a: Buffer, b: Buffer) -> Buffer:
    """The features of both, a's first, in a buffer with the room of both."""
    room = jnp.zeros_like(b.features)
    grown = a.replace(features=jnp.concatenate([a.features, room]), dropped=a.dropped + b.dropped)
    return update(grown, b.features, jnp.arange(len(b.features)) < b.n)


def across(state: Buffer, axis_name: str | None) -> Buffer:
    """The features of all devices of a mapped axis, in the axis' order, on each of them.

    The buffer has the room of all. None: this device's.
    """
    if axis_name is None:
        return state
    features = all_examples(state.features, axis_name)
    valid = all_examples(jnp.arange(len(state.features)) < state.n, axis_name)
    empty = init(*features.shape).replace(dropped=psum(state.dropped, axis_name))
    return update(empty, features, valid)


def compute(state: Buffer) -> np.ndarray:
    """The features (n, D) float32, on the host.

    Raises:
      ValueError: features were dropped for want of room.
    """
    state = jax.device_get(state)
    if state.dropped:
        raise ValueError(
            f"{state.dropped} features found no room in a buffer for {len(state.features)}: "
            "give init the number of images as capacity."
        )
    return np.asarray(state.features[: int(state.n)])
