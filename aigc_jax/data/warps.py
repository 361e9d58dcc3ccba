"""Images sampled at other places than their pixels' own, by TensorFlow; the border is mirrored."""

import functools
from typing import Any


def grid(tf: Any, size: Any) -> tuple[Any, Any]:
    """The y and x of the pixels of an image of `size` (H, W), float32 (H, W) each."""
    lines = [tf.range(tf.cast(n, tf.float32)) for n in tf.unstack(size)]
    return tf.meshgrid(*lines, indexing="ij")


def mirrored(tf: Any, places: Any, n: Any) -> Any:
    """Where on a line of n pixels places beyond it lie: ... 2 1 0 1 2 ...; integers or floats."""
    last = tf.cast(n - 1, places.dtype)
    places = tf.math.floormod(places, tf.maximum(2 * last, 1))
    return tf.minimum(places, tf.abs(2 * last - places))


def sampled(tf: Any, image: Any, y: Any, x: Any) -> Any:
    """The image (H, W, C) at the places y, x (h, w) float32, bilinear: (h, w, C)."""
    height, width, _ = tf.unstack(tf.shape(image))
    (y, above, below), (x, left, right) = _between(tf, y, height), _between(tf, x, width)
    corner = functools.partial(_corner, tf, image)
    upper = corner(above, left) * (1 - x) + corner(above, right) * x
    lower = corner(below, left) * (1 - x) + corner(below, right) * x
    return upper * (1 - y) + lower * y


def _between(tf: Any, places: Any, n: Any) -> tuple[Any, Any, Any]:
    """Of two pixels of a line of n: the share of the second (h, w, 1), and which they are."""
    places = mirrored(tf, places, n)
    first = tf.cast(places, tf.int32)
    share = places - tf.floor(places)
    return share[..., None], first, tf.minimum(first + 1, n - 1)


def _corner(tf: Any, image: Any, y: Any, x: Any) -> Any:
    return tf.gather_nd(image, tf.stack([y, x], -1))
