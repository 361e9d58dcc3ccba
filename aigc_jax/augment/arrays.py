"""Augmentations of batches of arrays, for a compiled step: pure, differentiable in the images."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.augment import chain as chains
from aigc_jax.augment.chain import Chain, Step, numbers
from aigc_jax.augment.kinds import LUMA
from aigc_jax.operations import Operation
from aigc_jax.types import Array

# Fields that hold no light: they move with the images, each place taking the nearest's value.
MAPS = ("mask", "segments")


def augment(chain: Chain, fields: Mapping[str, Array], keys: Array) -> dict[str, Array]:
    """Batches of images, and what belongs to them, through a chain of augmentations.

    Args:
      chain: of `chain.parse`.
      fields: images (B, H, W, C) in [-1, 1], C 1 or 3, or of pairs 2 or 6; and of the names in
        `MAPS` (B, H, W) or (B, H, W, 1) of any numbers, which are moved with the images and not
        otherwise changed. All of an example's fields are moved and recoloured alike.
      keys: (B,), one an example.

    Returns:
      the same fields, shapes and dtypes; images are clipped to [-1, 1].
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, (max(chain.draws, 1),)))(keys)
    fields = dict(fields)
    for place, step in enumerate(chain.steps):
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        fields = _step(step, fields, u, step_keys)
    return {name: x if name in MAPS else jnp.clip(x, -1, 1) for name, x in fields.items()}


def _step(step: Step, fields: dict[str, Array], u: Array, keys: Array) -> dict[str, Array]:
    images = [name for name in fields if name not in MAPS]
    if step.pixels:
        args, own = numbers(jnp, step.pixels, u)
        function = _PIXELS[step.pixels[1].name]
        return function(step.pixels[1], fields, args, own, keys)
    if step.colours:
        recolour = functools.partial(recoloured, step, u=u)
        fields = fields | {name: recolour(fields[name]) for name in images}
    if step.places:
        shape = next(iter(fields.values())).shape[1:3]
        matrices = chains.places(jnp, step, u, shape)
        fields = {name: warped(x, matrices, name in MAPS) for name, x in fields.items()}
    return fields


def recoloured(step: Step, images: Array, u: Array) -> Array:
    """Images (B, H, W, C) after the colours of a step; each of a pair by its own mean."""
    channels = images.shape[-1]
    if channels in (2, 6):
        halves = jnp.split(images, 2, -1)
        return jnp.concatenate([recoloured(step, half, u) for half in halves], -1)
    mean = jnp.broadcast_to(images.mean((1, 2)), (len(images), 3))
    told = chains.colours(jnp, step, u, mean).astype(images.dtype)
    if channels == 3:
        colour = jnp.einsum("bhwc,bdc->bhwd", images, told[:, :, :3])
        return colour + told[:, None, None, :, 3]
    # A grey image is one of three equal channels, of whose result the luma is kept.
    luma = jnp.asarray(LUMA, images.dtype)
    scale, level = told[:, :, :3].sum(-1) @ luma, told[:, :, 3] @ luma
    return images * scale[:, None, None, None] + level[:, None, None, None]


def warped(x: Array, matrices: Array, nearest: bool = False) -> Array:
    """x (B, H, W) or (B, H, W, C) at the places (B, 3, 3) say, bilinear; the border is mirrored.

    Args:
      matrices: from places in the result to places in x, see `kinds.Kind`.
      nearest: take the nearest pixel's value instead.
    """
    height, width = x.shape[1:3]
    xs, ys = ((2 * jnp.arange(n) + 1) / n - 1 for n in (width, height))
    xs, ys = xs.reshape(1, 1, -1), ys.reshape(1, -1, 1)
    m = matrices[:, :, :, None, None]
    to_x, to_y, w = (m[:, i, 0] * xs + m[:, i, 1] * ys + m[:, i, 2] for i in range(3))
    to_pixels = lambda place, n: ((place / w + 1) * n - 1) / 2  # noqa: E731
    return sampled(x, to_pixels(to_y, height), to_pixels(to_x, width), nearest)


def sampled(x: Array, y: Array, at_x: Array, nearest: bool = False) -> Array:
    """x (B, H, W, ...) at pixels y, at_x (B, h, w): (B, h, w, ...)."""
    flat = x.reshape(len(x), x.shape[1] * x.shape[2], -1)

    def pixels(row: Array, column: Array) -> Array:
        row, column = mirrored(row, x.shape[1]), mirrored(column, x.shape[2])
        index = (row * x.shape[2] + column).reshape(len(x), -1)
        return jax.vmap(lambda image, i: image[i])(flat, index)

    def whole(places: Array) -> tuple[Array, Array]:
        first = jnp.floor(places)
        share = (places - first).reshape(len(x), -1, 1).astype(x.dtype)
        return first.astype(jnp.int32), share

    if nearest:
        found = pixels(*(jnp.round(v).astype(jnp.int32) for v in (y, at_x)))
    else:
        (top, down), (left, right) = whole(y), whole(at_x)
        upper = pixels(top, left) * (1 - right) + pixels(top, left + 1) * right
        lower = pixels(top + 1, left) * (1 - right) + pixels(top + 1, left + 1) * right
        found = upper * (1 - down) + lower * down
    return found.reshape(*y.shape, *x.shape[3:])


def mirrored(places: Array, n: int) -> Array:
    """Where on a line of n pixels integers beyond it lie: ... 1 0 0 1 2 ..."""
    places = jnp.mod(places, 2 * n)
    return jnp.minimum(places, 2 * n - 1 - places)


# ---- neither places nor colours ----


def _noise(
    operation: Operation, fields: dict[str, Array], args: list[Array], own: Any, keys: Array
) -> dict[str, Array]:
    def noisy(x: Array, number: int) -> Array:
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), x.shape[1:])  # noqa: E731
        return x + (args[0] / 127.5).reshape(-1, 1, 1, 1) * jax.vmap(draw)(keys)

    return _of_images(fields, noisy)


def _blur(
    operation: Operation, fields: dict[str, Array], args: list[Array], own: Any, keys: Array
) -> dict[str, Array]:
    most = operation.args[0].high
    return _of_images(fields, lambda x, _: blurred(x, args[0], most))


def blurred(x: Array, sigma: Array, most: float) -> Array:
    """x (B, H, W, C), each by its own sigma (B,) of at most `most`, the border mirrored."""
    radius = max(1, round(4 * most))
    taps = jnp.arange(-radius, radius + 1)[None]
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdims=True)).astype(x.dtype)
    for axis in (1, 2):
        n = x.shape[axis]
        # A matrix for each image: its columns' share in each place.
        places = mirrored(jnp.arange(n)[:, None] + taps, n)
        hits = jax.nn.one_hot(places, n, dtype=x.dtype)
        rows = jnp.einsum("bt,ptq->bpq", weights, hits)
        spec = "bpq,bqwc->bpwc" if axis == 1 else "bpq,bhqc->bhpc"
        x = jnp.einsum(spec, rows, x)
    return x


def _cutout(
    operation: Operation, fields: dict[str, Array], args: list[Array], own: Any, keys: Array
) -> dict[str, Array]:
    def cut(x: Array, _: int) -> Array:
        inside = jnp.ones((len(x), 1, 1), bool)
        for axis, u in ((1, own[0]), (2, own[1])):
            n = x.shape[axis]
            side = jnp.round(args[0] * n)
            start = jnp.floor(u * (n + 1)) - jnp.floor(side / 2)
            places = jnp.arange(n)[None] - start[:, None]
            hit = (places >= 0) & (places < side[:, None])
            inside = inside & jnp.expand_dims(hit, 3 - axis)
        return jnp.where(inside[..., None], 0, x)

    return _of_images(fields, cut)


def _elastic(
    operation: Operation, fields: dict[str, Array], args: list[Array], own: Any, keys: Array
) -> dict[str, Array]:
    height, width = next(iter(fields.values())).shape[1:3]
    strength, smoothness = args
    draw = jax.vmap(lambda key: jax.random.normal(key, (height, width, 2)))
    field = blurred(draw(keys), smoothness, operation.args[1].high)
    # White noise of variance 1, so smoothed, has a variance of 1 / (4 pi sigma^2).
    field = field * (strength * smoothness * (2 * jnp.pi**0.5))[:, None, None, None]
    y = jnp.arange(height).reshape(1, -1, 1) + field[..., 0]
    x = jnp.arange(width).reshape(1, 1, -1) + field[..., 1]
    return {name: sampled(image, y, x, name in MAPS) for name, image in fields.items()}


def _of_images(fields: dict[str, Array], function: Any) -> dict[str, Array]:
    images = [name for name in fields if name not in MAPS]
    return fields | {name: function(fields[name], i) for i, name in enumerate(images)}


_PIXELS = {"noise": _noise, "blur": _blur, "cutout": _cutout, "elastic": _elastic}
