"""What the filters share: images as planes, and the checks of what a user gives."""

import jax
import jax.numpy as jnp

from aigc_jax.errors import UserError
from aigc_jax.types import Array


def to_planes(image: Array, name: str, **sides: int) -> Array:
    """(H, W) or (H, W, C) -> (C, H, W) float32; none of the named `sides` is larger than it."""
    image = jnp.asarray(image)
    if image.ndim not in (2, 3):
        raise UserError(
            f"{name} takes an image (H, W) or (H, W, C), not {image.shape}; map it over a batch "
            "with jax.vmap."
        )
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(f"{name} takes a float image, not {image.dtype}; convert it.")
    for side, least in sides.items():
        if min(image.shape[:2]) < least:
            raise UserError(
                f"{name}: the image, {image.shape[0]}x{image.shape[1]} pixels, is smaller than "
                f"{side}, {least}; choose a smaller one."
            )
    planes = image[None] if image.ndim == 2 else jnp.moveaxis(image, -1, 0)
    return planes.astype(jnp.float32)


def from_planes(planes: Array, image: Array) -> Array:
    """(C, H, W) -> the shape of `image`."""
    return planes[0] if jnp.ndim(image) == 2 else jnp.moveaxis(planes, 0, -1)


def check_positive(**values: float | Array) -> None:
    """Every value that is known now, not traced, is a number above 0."""
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not 0 < value < float("inf"):
            raise UserError(f"{name} must be a number above 0, not {value}.")


def check_odd(**values: int) -> None:
    """Every value is an odd number of pixels, 1 at least."""
    for name, value in values.items():
        if value < 1 or value % 2 != 1:
            raise UserError(f"{name} must be an odd number of pixels, not {value}.")
