"""Masks of what is known of an image, for inpainting: `"strokes|boxes"` draws one of the two.

===============  ============================================================================
centre(share)    a hole in the middle, of this share of either side (0.5)
boxes(n)         so many boxes (1..4), their sides 30 to 150 and 10 from the border or more
strokes(n)       so many strokes (1..3) of a brush 12 to 40 wide
half(share)      a hole at a random side, of this share of the image (0.5)
text(height)     lines of random letters, of this share of the smaller side (0.15..0.3)
random(share)    this share of the pixels (0.5), each by itself
===============  ============================================================================

Lengths are pixels where the smaller side has 256 of them, and go with it. Boxes are LaMa's (Suvorov
et al. 2022), strokes DeepFillv2's (Yu et al. 2019, Algorithm 1). A number may be a range, of which
each image draws its own. No mask is all hole, and none without.
"""

import functools
import math
import string
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aigc_jax.data import tensorflow
from aigc_jax.data.warps import grid
from aigc_jax.errors import UserError
from aigc_jax.operations import Kinds, Operation, Parameter, Range, fold

KINDS = Kinds("mask")
_SIDE = 256  # of the images for which the published lengths are
_BOX, _MARGIN = (30, 150), 10
_BRUSH, _VERTICES = (12, 40), (4, 11)
_ANGLE, _SPREAD = 2 * math.pi / 5, 2 * math.pi / 15
_GLYPH = (60, 36)  # height and width of a letter's cell
_SALT = 0x6D61736B  # what is drawn here goes with nothing else that is drawn by the same seed


def parse(text: str) -> tuple[Operation, ...]:
    """The kinds of "strokes|boxes(2)".

    Raises:
      UserError: an unknown one, too many arguments, or one out of range.
    """
    return KINDS.parse(text, "|")


def draw(text: str, seeds: Any, size: int | tuple[int, int]) -> Any:
    """One mask for each seed, of one of the kinds.

    Args:
      seeds: (B, 2) int32; a mask is a function of its own.
      size: S, or (H, W).

    Returns:
      (B, H, W, 1) float32: 1 = known, 0 = hole.

    Raises:
      UserError: see `parse`; an image of one pixel.
    """
    tf = tensorflow()
    height, width = (size, size) if isinstance(size, int) else size
    _check_room(height, width)
    masks = _batch(tf, parse(text), seeds, tf.constant([height, width]))
    return tf.ensure_shape(masks, (None, height, width, 1))


def arrays(text: str, seeds: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`draw` outside of a stream: (B, H, W, 1) float32."""
    _check_room(*size)
    tf, function = tensorflow(), _compiled(parse(text))
    return function(tf.constant(seeds, tf.int32), tf.constant(size, tf.int32)).numpy()


@functools.lru_cache(maxsize=16)
def _compiled(kinds: tuple[Operation, ...]) -> Any:
    tf = tensorflow()
    signature = [tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([2], tf.int32)]
    function = functools.partial(_batch, tf, kinds)
    function = tf.function(function, input_signature=signature, autograph=False)
    return function.get_concrete_function()


def _check_room(height: int, width: int) -> None:
    if height * width < 2:
        raise UserError(f"an image of {width}x{height} pixels has no room for a mask.")


def _batch(tf: Any, kinds: tuple[Operation, ...], seeds: Any, size: Any) -> Any:
    def one(seed: Any) -> Any:
        return tf.cast(~_hole(tf, kinds, size, fold(tf, seed, _SALT)), tf.float32)[..., None]

    return tf.map_fn(one, tf.convert_to_tensor(seeds), fn_output_signature=tf.float32)


def _hole(tf: Any, kinds: tuple[Operation, ...], size: Any, seed: Any) -> Any:
    """(H, W) bool of one of the kinds, with at least one pixel of either."""
    hole = KINDS.run_one(tf, kinds, size, fold(tf, seed, 0))
    count = tf.reduce_prod(size)
    place = tf.random.stateless_uniform([], fold(tf, seed, 1), maxval=count, dtype=tf.int32)
    pixel = tf.reshape(tf.equal(tf.range(count), place), size)
    return hole ^ (pixel & (tf.reduce_all(hole) | ~tf.reduce_any(hole)))


@KINDS.add(Parameter("share", 0.01, 0.99, Range(0.5, 0.5)))
def centre(tf: Any, size: Any, seed: Any, share: Any) -> Any:
    """A box in the middle, and the nearest to it of an odd rest."""
    sides = tf.round(share * tf.cast(size, tf.float32))
    first = tf.floor((tf.cast(size, tf.float32) - sides) / 2)
    return _boxes(tf, size, first[None], sides[None])


@KINDS.add(Parameter("n", 1, 100, Range(1, 4), whole=True))
def boxes(tf: Any, size: Any, seed: Any, n: Any) -> Any:
    """Boxes, anywhere but at the border."""
    u = tf.random.stateless_uniform(tf.stack([2, tf.cast(n, tf.int32), 2]), seed)
    scale = _scale(tf, size)
    sides, margin = tf.round(scale * _at(u[0], _BOX)), tf.round(scale * _MARGIN)
    room = tf.cast(size, tf.float32) - sides - 2 * margin
    return _boxes(tf, size, margin + tf.floor(u[1] * (room + 1)), sides)


@KINDS.add(Parameter("n", 1, 100, Range(1, 3), whole=True))
def strokes(tf: Any, size: Any, seed: Any, n: Any) -> Any:
    """Lines with round ends and joints, to and fro."""
    y, x = _middles(tf, size)
    y, x = y[:, :1], x[:1]

    def add(hole: Any, segment: Any) -> Any:
        start, move, radius = segment
        from_y, from_x = y - start[0], x - start[1]
        along = (from_y * move[0] + from_x * move[1]) / tf.maximum(tf.reduce_sum(move**2), 1e-6)
        along = tf.clip_by_value(along, 0, 1)
        squared = (from_y - along * move[0]) ** 2 + (from_x - along * move[1]) ** 2
        return hole | (squared <= radius**2)

    return tf.foldl(add, _segments(tf, size, seed, n), tf.zeros(size, tf.bool))


@KINDS.add(Parameter("share", 0.01, 0.99, Range(0.5, 0.5)))
def half(tf: Any, size: Any, seed: Any, share: Any) -> Any:
    """Left, right, top or bottom."""
    y, x = _shares(tf, size)
    side = tf.random.stateless_uniform([], seed, maxval=4, dtype=tf.int32)
    return tf.gather([x, 1 - x, y, 1 - y], side) < share


@KINDS.add(Parameter("height", 0.02, 1, Range(0.15, 0.3)))
def text(tf: Any, size: Any, seed: Any, height: Any) -> Any:
    """Lines of letters and figures, and a sixth of the places blank."""
    atlas = _atlas()
    count, *glyph = atlas.shape
    unit = height * tf.cast(tf.reduce_min(size), tf.float32) / glyph[0]
    shift = tf.random.stateless_uniform([2], fold(tf, seed, 0))
    y, x = (c / (unit * glyph[i]) + shift[i] for i, c in enumerate(_middles(tf, size)))
    lines = tf.cast([y[-1, 0], x[0, -1]], tf.int32) + 1
    letters = tf.random.stateless_uniform(
        lines, fold(tf, seed, 1), -count // 5, count, dtype=tf.int32
    )
    letter = tf.gather_nd(letters, tf.cast(tf.stack([y, x], -1), tf.int32))
    v, u = (tf.cast((c - tf.floor(c)) * glyph[i], tf.int32) for i, c in enumerate((y, x)))
    ink = tf.gather_nd(tf.constant(atlas), tf.stack([tf.maximum(letter, 0), v, u], -1))
    return ink & (letter >= 0)


@KINDS.add(Parameter("share", 0, 1, Range(0.5, 0.5)))
def random(tf: Any, size: Any, seed: Any, share: Any) -> Any:
    """Single pixels."""
    return tf.random.stateless_uniform(size, seed) < share


def _at(share: Any, ends: tuple[float, float]) -> Any:
    return ends[0] + share * (ends[1] - ends[0])


def _scale(tf: Any, size: Any) -> Any:
    return tf.cast(tf.reduce_min(size), tf.float32) / _SIDE


def _middles(tf: Any, size: Any) -> list[Any]:
    """The y and x of the pixels' middles, (H, W) float32 each."""
    return [c + 0.5 for c in grid(tf, size)]


def _shares(tf: Any, size: Any) -> list[Any]:
    """The same, as shares of the sides."""
    return [
        c / tf.cast(n, tf.float32)
        for c, n in zip(_middles(tf, size), tf.unstack(size), strict=True)
    ]


def _boxes(tf: Any, size: Any, first: Any, sides: Any) -> Any:
    """(H, W) bool of boxes by their first corners and their sides, (n, 2) each, y first."""

    def inside(axis: int) -> Any:
        places = tf.range(tf.cast(size[axis], tf.float32))
        start, side = first[:, axis, None], sides[:, axis, None]
        return tf.cast((places >= start) & (places < start + side), tf.float32)

    return tf.matmul(inside(0), inside(1), transpose_a=True) > 0


def _segments(tf: Any, size: Any, seed: Any, n: Any) -> tuple[Any, Any, Any]:
    """Starts and moves (m, 2), y first, and radii (m,), of the segments of n strokes.

    The published code turns half of the masks around, and drops the outcome; here it is kept.
    """
    n, most, sides = tf.cast(n, tf.int32), _VERTICES[1], tf.cast(size, tf.float32)
    seeds = [fold(tf, seed, i) for i in range(5)]
    start = sides * tf.random.stateless_uniform(tf.stack([n, 2]), seeds[0])
    low, high, width, count = tf.unstack(tf.random.stateless_uniform(tf.stack([4, n, 1]), seeds[1]))
    turn = tf.random.stateless_uniform(tf.stack([n, most]), seeds[2])
    angle = _at(turn, (_ANGLE - _SPREAD * low, _ANGLE + _SPREAD * high))
    length = (
        tf.norm(sides) / 8 * (1 + tf.random.stateless_normal(tf.stack([n, most]), seeds[3]) / 2)
    )
    length = tf.clip_by_value(length, 0, tf.norm(sides) / 4)
    fro = tf.constant([-1.0, 1.0] * most)[:most]
    around = tf.sign(tf.random.stateless_uniform([2], seeds[4], -1, 1))
    moves = length[..., None] * tf.stack([fro * tf.sin(angle), tf.cos(angle)], -1) * around
    places = [start]
    for step in range(most):
        places.append(tf.clip_by_value(places[-1] + moves[:, step], 0, sides))
    places = tf.stack(places, 1)
    starts, moves = places[:, :-1], places[:, 1:] - places[:, :-1]
    used = tf.range(float(most)) < tf.floor(_at(count, (_VERTICES[0], most + 1)))
    radii = tf.broadcast_to(_scale(tf, size) * _at(width, _BRUSH) / 2, tf.shape(used))
    return tuple(tf.boolean_mask(each, used) for each in (starts, moves, radii))


@functools.cache
def _atlas() -> np.ndarray:
    """(62, 60, 36) bool: letters and figures of Pillow's own font, ink True."""
    height, width = _GLYPH
    font = ImageFont.load_default(size=0.8 * height)

    def glyph(letter: str) -> np.ndarray:
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).text((width / 2, 0.75 * height), letter, 255, font, anchor="ms")
        return np.asarray(image) > 127

    return np.stack([glyph(letter) for letter in string.ascii_letters + string.digits])
