"""Two images of a batch in one: mixup and cutmix, for a classifier's training."""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.operations import Operation
from aigc_jax.types import Array, Batch


def mixed(operations: tuple[Operation, ...], batch: Batch, keys: Array) -> Batch:
    """Each image and the one beside it: 0 with 1, 2 with 3; a stream's order is random already.

    mixup (Zhang et al. 2018, equation 1): share of it, 1 - share of the other; cutmix (Yun et al.
    2019, equation 1): a box of 1 - share of the area is the other's, of which what the border cuts
    off is its own. The share is drawn from Beta(alpha, alpha), for each image its own.

    Args:
      operations: of which each image draws one.
      batch: `image` (B, H, W, C), B even, and `label` (B,).
      keys: (B,).

    Returns:
      `image`, `other_label` (B,) and `share` (B,) float32, of the image's own label.
    """
    image, count = batch["image"], len(batch["image"])
    other = jnp.arange(count) ^ 1
    which, of_share, of_place = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
    )
    place = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(of_place)
    ways = []
    for operation in operations:
        alpha = operation.args[0].high
        share = jax.vmap(lambda key, alpha=alpha: jax.random.beta(key, alpha, alpha))(of_share)
        ways.append(_WAYS[operation.name](image, image[other], share, place))
    images, shares = (jnp.stack(x) for x in zip(*ways, strict=True))
    way = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(operations)))(which)
    rows = jnp.arange(count)
    return {
        "image": images[way, rows],
        "other_label": batch["label"][other],
        "share": shares[way, rows],
    }


def _mixup(image: Array, other: Array, share: Array, place: Array) -> tuple[Array, Array]:
    own = share.reshape(-1, 1, 1, 1).astype(image.dtype)
    return own * image + (1 - own) * other, share


def _cutmix(image: Array, other: Array, share: Array, place: Array) -> tuple[Array, Array]:
    inside = jnp.ones((len(image), 1, 1), bool)
    for axis in (1, 2):
        n = image.shape[axis]
        half = jnp.sqrt(1 - share) * n / 2
        middle = place[:, axis - 1] * n
        low, high = jnp.round(middle - half), jnp.round(middle + half)
        pixels = jnp.arange(n)[None]
        hit = (pixels >= low[:, None]) & (pixels < high[:, None])
        inside = inside & jnp.expand_dims(hit, 3 - axis)
    own = 1 - inside.mean((1, 2), dtype=jnp.float32)
    return jnp.where(inside[..., None], other, image), own


_WAYS: dict[str, Any] = {"mixup": _mixup, "cutmix": _cutmix}
