"""Random numbers of each example of a batch at once, by hashing: TensorFlow draws one at a time."""

from typing import Any

import numpy as np


def u64(tf: Any, value: int) -> Any:
    """A uint64 scalar."""
    return tf.constant(value, tf.uint64)


def hashed(tf: Any, seed: int, t: Any) -> Any:
    """64 random bits for each integer, of any shape -> uint64: splitmix64 (Steele et al. 2014)."""
    z = tf.cast(t, tf.uint64) * u64(tf, 0x9E3779B97F4A7C15) + u64(tf, seed % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, u64(tf, shift)))
        z = z * u64(tf, factor)
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, u64(tf, 31)))


def uniform(tf: Any, seeds: Any, count: int) -> Any:
    """Numbers in [0, 1), (B, count) float32, by the seeds (B, 2) int32 of each example."""
    own = hashed(tf, 3, tf.bitcast(seeds, tf.uint64))[:, None]
    bits = hashed(tf, 5, own + tf.constant(np.arange(count, dtype=np.uint64))[None])
    return tf.cast(tf.bitwise.right_shift(bits, u64(tf, 40)), tf.float32) * 2.0**-24
