"""The pool of generated images of Shrivastava et al. 2017 (section 2.3), as CycleGAN keeps it.

It is a part of the state: jitted, checkpointed and resumed with it.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from aigc_jax.parallel import all_examples, own_examples
from aigc_jax.types import Array


class Pool(struct.PyTreeNode):
    """Images (N, H, W, C), of which the first `count`, () int32, are there."""

    images: Array
    count: Array


def init(size: int, image: Array) -> Pool | None:
    """An empty pool for `size` images like `image` (H, W, C); None for size 0."""
    if not size:
        return None
    return Pool(jnp.zeros((size, *image.shape), image.dtype), jnp.zeros((), jnp.int32))


def query(
    pool: Pool | None, images: Array, rng: Array, axis_name: str | None = None
) -> tuple[Pool | None, Array]:
    """What the discriminator is to see in place of `images` (B, H, W, C), and the new pool.

    One image after the other, in the order of the global batch: until the pool is full, an image is
    stored and returned; then, with probability 1/2, a stored one is returned and gives its place to
    the image, else the image itself is returned and not stored (Zhu et al. 2017, section 4).

    Args:
      rng: one key, the same on every device; draw i is of fold_in(rng, i).
    """
    if pool is None:
        return None, images
    everyone = all_examples(images, axis_name)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(len(everyone)))
    size = len(pool.images)

    def one(pool: Pool, example: tuple[Array, Array]) -> tuple[Pool, Array]:
        image, key = example
        coin, place = draw(key, size)
        full = pool.count == size
        swap, place = full & coin, jnp.where(full, place, pool.count)
        old = lax.dynamic_index_in_dim(pool.images, place, keepdims=False)
        kept = jnp.where(full & ~swap, old, image)
        stored = lax.dynamic_update_index_in_dim(pool.images, kept, place, 0)
        count = jnp.minimum(pool.count + 1, size)
        return Pool(stored, count), jnp.where(swap, old, image)

    pool, seen = lax.scan(one, pool, (everyone, keys))
    return pool, own_examples(seen, axis_name)


def draw(key: Array, size: int) -> tuple[Array, Array]:
    """Whether a full pool exchanges an image, () bool, and for which of its own, () int32."""
    coin, place = jax.random.split(key)
    return jax.random.bernoulli(coin), jax.random.randint(place, (), 0, size)
