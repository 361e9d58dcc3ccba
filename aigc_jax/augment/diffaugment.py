"""DiffAugment (Zhao et al. 2020): what a discriminator sees is disturbed, real and generated alike.

Each policy is applied to every image, by numbers of its own, and is differentiable; gradients reach
the generator through it. `"color,translation,cutout"` is the paper's; digits stay digits by
`"translation"` and a `"color"` of greys.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.types import Array


def parse(policies: str) -> tuple[str, ...]:
    """ "color,translation" -> their names; UserError for an unknown one."""
    names = tuple(name.strip() for name in policies.split(",") if name.strip())
    for name in names:
        if name not in POLICIES:
            raise UserError(
                f"unknown policy {name!r} of DiffAugment.{did_you_mean(name, POLICIES)}"
            )
    return names


def diffaugment(policies: tuple[str, ...], images: Array, keys: Array) -> Array:
    """Images (B, H, W, C) in [-1, 1] through each policy, by keys (B,); not clipped.

    Zeros fill what is cut out or moved in.
    """
    for place, name in enumerate(policies):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        u = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(own)
        images = POLICIES[name](images, u)
    return images


def _color(x: Array, u: Array) -> Array:
    """Brightness, saturation and contrast, in this order (section 4.1's code-level details)."""
    bright, colourful, contrast = (u[:, i].reshape(-1, 1, 1, 1).astype(x.dtype) for i in range(3))
    x = x + (bright - 0.5)
    grey = x.mean(-1, keepdims=True)
    x = grey + 2 * colourful * (x - grey)
    mean = x.mean((1, 2, 3), keepdims=True)
    return mean + (contrast + 0.5) * (x - mean)


def _translation(x: Array, u: Array) -> Array:
    """By up to an eighth of the side, in whole pixels."""
    for axis in (1, 2):
        n = x.shape[axis]
        most = round(n / 8)
        shift = jnp.floor(u[:, axis] * (2 * most + 1)) - most
        # A product with a shifted identity: no gather, whose gradient would be a scatter.
        place = jnp.arange(n)
        rows = place.reshape(1, -1, 1) + shift.reshape(-1, 1, 1) == place.reshape(1, 1, -1)
        rows = rows.astype(x.dtype)
        x = jnp.einsum("bpq,bqwc->bpwc" if axis == 1 else "bpq,bhqc->bhpc", rows, x)
    return x


def _cutout(x: Array, u: Array) -> Array:
    """A square of half the side, about a place anywhere, clipped at the border."""
    hole = True
    for axis in (1, 2):
        n = x.shape[axis]
        side = round(n / 2)
        middle = jnp.floor(u[:, axis] * (n + 1 - side % 2))
        place = jnp.arange(n)[None] - (middle - side // 2)[:, None]
        hit = (place >= 0) & (place < side)
        hole = hole & jnp.expand_dims(hit, 3 - axis)
    return x * ~hole[..., None]


POLICIES: dict[str, Callable[[Array, Array], Array]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
