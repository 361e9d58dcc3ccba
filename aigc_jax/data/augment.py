"""Augmentations in tf.data, a batch at once: the twin of `aigc_jax.augment.arrays`."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.augment import chain as chains
from aigc_jax.augment.arrays import MAPS
from aigc_jax.augment.chain import Chain, Step, numbers
from aigc_jax.augment.kinds import LUMA
from aigc_jax.data import tensorflow
from aigc_jax.data.bits import uniform
from aigc_jax.data.degrade import KINDS as DAMAGES
from aigc_jax.data.warps import grid, sampled
from aigc_jax.operations import fold


def augment(chain: Chain, fields: Mapping[str, Any], seeds: Any) -> dict[str, Any]:
    """Batches of images, and what belongs to them, through a chain of augmentations.

    Args:
      chain: of `augment.parse`.
      fields: as of `augment.arrays.augment`, tensors of known shapes.
      seeds: (B, 2) int32; each example's result is a function of its own and of its fields.

    Returns:
      the same fields and shapes; images are float32, clipped to [-1, 1].
    """
    tf = tensorflow()
    u = uniform(tf, seeds, max(chain.draws, 1))
    fields = {name: tf.convert_to_tensor(x) for name, x in fields.items()}
    shapes = {name: x.shape for name, x in fields.items()}
    for place, step in enumerate(chain.steps):
        made = _step(tf, step, fields, u, (seeds, place))
        fields = {name: tf.ensure_shape(x, shapes[name]) for name, x in made.items()}
    clip = lambda name, x: x if name in MAPS else tf.clip_by_value(x, -1, 1)  # noqa: E731
    return {name: clip(name, x) for name, x in fields.items()}


def arrays(chain: Chain, fields: Mapping[str, np.ndarray], seeds: np.ndarray) -> dict[str, Any]:
    """`augment` outside of a stream, of uint8 images to uint8, rounded; maps as they are."""
    tf = tensorflow()
    floats = {
        name: tf.constant(x) if name in MAPS else tf.cast(x, tf.float32) / 127.5 - 1
        for name, x in fields.items()
    }
    made = augment(chain, floats, tf.constant(seeds, tf.int32))
    return {
        name: x.numpy() if name in MAPS else np.uint8(np.round((x.numpy() + 1) * 127.5))
        for name, x in made.items()
    }


def _step(tf: Any, step: Step, fields: dict[str, Any], u: Any, seeds: tuple[Any, int]) -> Any:
    if step.pixels:
        return _pixels(tf, step, fields, u, seeds)
    if step.colours:
        fields = fields | {
            name: _recoloured(tf, step, x, u) for name, x in fields.items() if name not in MAPS
        }
    if step.places:
        shape = next(iter(fields.values())).shape[1:3]
        matrices = chains.places(tf, step, u, tuple(shape))
        fields = {name: _warped(tf, x, matrices, name in MAPS) for name, x in fields.items()}
    return fields


def _recoloured(tf: Any, step: Step, images: Any, u: Any) -> Any:
    """See `augment.arrays.recoloured`."""
    channels = images.shape[-1]
    if channels in (2, 6):
        halves = tf.split(images, 2, -1)
        return tf.concat([_recoloured(tf, step, half, u) for half in halves], -1)
    mean = tf.reduce_mean(images, [1, 2])
    mean = mean if channels == 3 else tf.repeat(mean, 3, -1)
    told = chains.colours(tf, step, u, mean)
    scale, level = told[:, :, :3], told[:, :, 3]
    if channels == 3:
        pixels = tf.reshape(images, (-1, images.shape[1] * images.shape[2], 3))
        pixels = tf.matmul(pixels, scale, transpose_b=True) + level[:, None]
        return tf.reshape(pixels, tf.shape(images))
    luma = tf.constant(LUMA)
    scale = tf.linalg.matvec(tf.reduce_sum(scale, -1)[:, None], luma)
    level = tf.linalg.matvec(level[:, None], luma)
    return images * scale[:, None, None] + level[:, None, None]


def _warped(tf: Any, x: Any, matrices: Any, nearest: bool) -> Any:
    """See `augment.arrays.warped`."""
    images = x[..., None] if x.shape.rank == 3 else x
    height, width = images.shape[1:3]
    middle = lambda n: [(2 / n, 1 / n - 1), (n / 2, (n - 1) / 2)]  # noqa: E731
    (x_in, x_out), (y_in, y_out) = middle(width), middle(height)
    to_unit = tf.constant([[x_in[0], 0, x_in[1]], [0, y_in[0], y_in[1]], [0, 0, 1]])
    to_pixels = tf.constant([[x_out[0], 0, x_out[1]], [0, y_out[0], y_out[1]], [0, 0, 1]])
    m = tf.reshape(to_pixels @ matrices @ to_unit, (-1, 9))
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images if nearest else tf.cast(images, tf.float32),
        transforms=m[:, :8] / m[:, 8:],
        output_shape=[height, width],
        interpolation="NEAREST" if nearest else "BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )
    return tf.reshape(moved, tf.shape(x))


def _pixels(tf: Any, step: Step, fields: dict[str, Any], u: Any, seeds: tuple[Any, int]) -> Any:
    args, own = numbers(tf, step.pixels, u)
    name = step.pixels[1].name
    if name == "elastic":
        return _elastic(tf, fields, args, seeds)
    made = {}
    for place, (field, x) in enumerate(fields.items()):
        if field in MAPS:
            made[field] = x
        elif name == "cutout":
            made[field] = _cut(tf, x, args[0], own)
        else:
            damage = functools.partial(_damaged, tf, name, (*seeds, place))
            made[field] = damage(x, args)
    return made


def _damaged(tf: Any, name: str, seeds: tuple[Any, int, int], x: Any, args: list[Any]) -> Any:
    """By the function of `data.degrade` of that name, one image after another."""
    seeds, *places = seeds

    def one(each: tuple[Any, ...]) -> Any:
        image, seed, *told = each
        for place in places:
            seed = fold(tf, seed, place)
        return DAMAGES[name].function(tf, image, seed, *told)

    return tf.map_fn(one, (x, seeds, *args), fn_output_signature=tf.float32)


def _cut(tf: Any, x: Any, share: Any, own: list[Any]) -> Any:
    inside = tf.ones((1, 1, 1), tf.bool)
    for axis, u in ((1, own[0]), (2, own[1])):
        n = x.shape[axis]
        side = tf.round(share * n)
        start = tf.floor(u * (n + 1)) - tf.floor(side / 2)
        places = tf.range(n, dtype=tf.float32) - start[:, None]
        hit = (places >= 0) & (places < side[:, None])
        inside = inside & tf.expand_dims(hit, 3 - axis)
    return tf.where(inside[..., None], tf.zeros_like(x), x)


def _elastic(tf: Any, fields: dict[str, Any], args: list[Any], seeds: tuple[Any, int]) -> Any:
    """One field for all that an example has, from a flat image's noise (see `data.degrade`)."""
    first = next(iter(fields.values()))
    height, width = first.shape[1:3]
    moved = functools.partial(_moved, tf, (height, width), seeds[1])
    y, x = tf.map_fn(
        lambda each: moved(*each), (seeds[0], *args), fn_output_signature=(tf.float32, tf.float32)
    )
    return {name: _at(tf, image, y, x, name in MAPS) for name, image in fields.items()}


def _moved(tf: Any, size: tuple[int, int], place: int, seed: Any, *args: Any) -> tuple[Any, Any]:
    """Where the pixels of an image come from, by moving an image of their places."""
    y, x = grid(tf, size)
    return tuple(
        DAMAGES["elastic"].function(tf, each[..., None], fold(tf, seed, place), *args)[..., 0]
        for each in (y, x)
    )


def _at(tf: Any, image: Any, y: Any, x: Any, nearest: bool) -> Any:
    flat = image[..., None] if image.shape.rank == 3 else image
    places = (tf.round(y), tf.round(x)) if nearest else (y, x)
    moved = tf.map_fn(
        lambda each: sampled(tf, *each), (tf.cast(flat, tf.float32), *places),
        fn_output_signature=tf.float32,
    )  # fmt: skip
    return tf.cast(tf.reshape(moved, tf.shape(image)), image.dtype)
