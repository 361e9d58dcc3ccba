"""Total-variation denoising (Rudin, Osher, Fatemi 1992) by a dual projection (Chambolle 2004)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax.filters._image import check_positive, from_planes, to_planes
from aigc_jax.types import Array

_STEP = 0.25


def total_variation(image: Array, weight: float | Array, *, steps: int = 100) -> Array:
    """The u that minimises sum |grad u| + sum (u - image)^2 / (2 weight), each channel by itself.

    u = f - weight div p, with p found by (Chambolle 2004, section 3)

        p <- (p + t grad(div p - f / weight)) / (1 + t |grad(div p - f / weight)|),

    t = 1/4, forward differences, none across the border.

    Args:
      image: f, (H, W) or (H, W, C) float; jax.vmap takes a batch.
      weight: how smooth, in the units of the image.
      steps: how many of p, static.

    Returns:
      A float32 image of the same shape.

    Raises:
      UserError: weight or steps not positive, or an image of integers.
    """
    check_positive(weight=weight, steps=steps)
    return from_planes(_chambolle(to_planes(image, "total_variation"), weight, steps), image)


@functools.partial(jax.jit, static_argnums=2)
def _chambolle(planes: Array, weight: Array, steps: int) -> Array:
    def step(_: int, p: tuple[Array, Array]) -> tuple[Array, Array]:
        down, right = _gradient(_divergence(*p) - planes / weight)
        scale = 1 + _STEP * jnp.sqrt(down**2 + right**2)
        return (p[0] + _STEP * down) / scale, (p[1] + _STEP * right) / scale

    p = lax.fori_loop(0, steps, step, (jnp.zeros_like(planes), jnp.zeros_like(planes)))
    return planes - weight * _divergence(*p)


def _gradient(u: Array) -> tuple[Array, Array]:
    """Differences to the next row and to the next column, 0 at the last; (C, H, W) each."""
    down, right = jnp.diff(u, axis=1), jnp.diff(u, axis=2)
    return jnp.pad(down, ((0, 0), (0, 1), (0, 0))), jnp.pad(right, ((0, 0), (0, 0), (0, 1)))


def _divergence(down: Array, right: Array) -> Array:
    """Minus the adjoint of the gradient."""
    down = jnp.pad(down[:, :-1], ((0, 0), (1, 1), (0, 0)))
    right = jnp.pad(right[:, :, :-1], ((0, 0), (0, 0), (1, 1)))
    return jnp.diff(down, axis=1) + jnp.diff(right, axis=2)
