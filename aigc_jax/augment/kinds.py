"""Augmentations by name, as users list them: `"rotate(15),flip,crop(0.8),color(0.2)"`.

=====================  ============================================================================
flip(p), vflip(p)      mirror left to right, or top to bottom, with probability p (1/2)
turn                   by 0, 90, 180 or 270 degrees
rotate(degrees)        by up to so many, either way
crop(share)            a square of at least this share of the side, at a random place, resized
zoom(share)            larger or smaller by a factor of up to 1 + share
stretch(share)         wider and lower or the other way, by a factor of up to 1 + share
translate(share)       by up to this share of the side along each axis, in whole pixels
shear(degrees)         along each axis by up to so many
perspective(share)     each corner moves by up to this share of the side, either way
brightness(x)          times a factor of 1 - x to 1 + x, of light in [0, 1]
contrast(x)            the same, of the difference from the image's mean luma
saturation(x)          the same, of the difference from each pixel's luma
hue(degrees)           turned about the grey axis by up to so many
color(x)               brightness, contrast and saturation
grey(p)                without colour, with probability p (0.2)
negative(p)            light and dark exchanged, with probability p (0.5)
noise(sigma)           Gaussian, of a standard deviation in grey levels of 255
blur(sigma)            Gaussian, in pixels
cutout(share)          a square of this share of the side, at a random place, becomes mid-grey
elastic(strength)      each place moves by a smooth random field of this many pixels
same                   nothing
randaugment(n, x)      n of rotate, shear, translate, brightness, contrast, saturation and same,
                       other ones for each image, at the strength x from 0 to 10
mixup(alpha)           with another image of the batch, see `augment.mixing`; so is
cutmix(alpha)          a box of it; in config.augment alone
=====================  ============================================================================

A number may be a range, `blur(0..2)`, of which every image draws its own.

What moves pixels is a map from places to places, and what changes colours one from colours to
colours: both matrices, here as functions of numbers, for JAX and TensorFlow alike (`xp` is either).
A chain of them is one matrix, so that an image is sampled once, however long the chain.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aigc_jax.operations import Kinds, Parameter, Range

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
KINDS = Kinds("augmentation")

Rows = Sequence[Sequence[Any]]
Shape = tuple[int, int]  # H, W


class Kind(NamedTuple):
    """How an augmentation is made.

    Attributes:
      function: (xp, u, args) -> rows of a matrix, where it has one: `u` are (B,) numbers of its
        own in [0, 1), `args` those of its parameters.
      parameters: what may be asked of it.
      stage: "place" for a matrix (3, 3) from places in the result to places in the image, where
        the middle is 0 and the borders are -1 and 1, x before y; "colour" for one (3, 4), from a
        colour in [0, 1] and 1 to a colour; "both" for a `function` that is told `shape` and makes
        the former, or `mean` and makes the latter; "pixels" for what is neither, "batch" for what
        takes more than an image.
      draws: how many numbers `u` are.
    """

    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    stage: str
    draws: int


def _add(stage: str, draws: int, *parameters: Parameter) -> Callable[[Callable], Callable]:
    def added(function: Callable) -> Callable:
        KINDS[function.__name__] = Kind(function, parameters, stage, draws)
        return function

    return added


_HALF = Parameter("p", 0, 1, Range(0.5, 0.5))


# ---- places ----


@_add("place", 1, _HALF)
def flip(xp: Any, u: Sequence[Any], p: Any, shape: Shape) -> Rows:
    """Left to right."""
    return [[_heads(xp, u[0], p), 0, 0], [0, 1, 0], [0, 0, 1]]


@_add("place", 1, _HALF)
def vflip(xp: Any, u: Sequence[Any], p: Any, shape: Shape) -> Rows:
    """Top to bottom."""
    return [[1, 0, 0], [0, _heads(xp, u[0], p), 0], [0, 0, 1]]


@_add("place", 1)
def turn(xp: Any, u: Sequence[Any], shape: Shape) -> Rows:
    """By quarters, exact: no cosine is."""
    quarters = xp.floor(4 * u[0])
    cosine = xp.abs(quarters - 2) - 1  # 1, 0, -1, 0
    sine = xp.where(quarters == 1, 1.0, xp.where(quarters == 3, -1.0, 0.0))
    return _turned(cosine, sine, shape)


@_add("place", 1, Parameter("degrees", 0, 180))
def rotate(xp: Any, u: Sequence[Any], degrees: Any, shape: Shape) -> Rows:
    """Counter-clockwise where it is positive."""
    angle = _either(u[0], degrees) * (math.pi / 180)
    return _turned(xp.cos(angle), xp.sin(angle), shape)


@_add("place", 3, Parameter("share", 0.05, 1))
def crop(xp: Any, u: Sequence[Any], share: Any, shape: Shape) -> Rows:
    """A square to the whole."""
    side = share + u[0] * (1 - share)
    return [[side, 0, _either(u[1], 1 - side)], [0, side, _either(u[2], 1 - side)], [0, 0, 1]]


@_add("place", 1, Parameter("share", 0, 1))
def zoom(xp: Any, u: Sequence[Any], share: Any, shape: Shape) -> Rows:
    """Evenly in the logarithm."""
    factor = (1 + share) ** (1 - 2 * u[0])
    return [[factor, 0, 0], [0, factor, 0], [0, 0, 1]]


@_add("place", 1, Parameter("share", 0, 1))
def stretch(xp: Any, u: Sequence[Any], share: Any, shape: Shape) -> Rows:
    """At an unchanged area."""
    factor = (1 + share) ** (u[0] - 0.5)
    return [[factor, 0, 0], [0, 1 / factor, 0], [0, 0, 1]]


@_add("place", 2, Parameter("share", 0, 1))
def translate(xp: Any, u: Sequence[Any], share: Any, shape: Shape) -> Rows:
    """By whole pixels, so that nothing is blurred."""
    sides = zip(u, reversed(shape), strict=True)
    x, y = (xp.floor(_either(each, share) * n + 0.5) * (2 / n) for each, n in sides)
    return [[1, 0, x], [0, 1, y], [0, 0, 1]]


@_add("place", 2, Parameter("degrees", 0, 60))
def shear(xp: Any, u: Sequence[Any], degrees: Any, shape: Shape) -> Rows:
    """x by y, then y by x."""
    angles = [_either(each, degrees) * (math.pi / 180) for each in u]
    x, y = (xp.sin(angle) / xp.cos(angle) for angle in angles)
    x, y = x / _aspect(shape), y * _aspect(shape)
    return [[1, x, 0], [y, 1 + x * y, 0], [0, 0, 1]]


@_add("place", 8, Parameter("share", 0, 0.2))
def perspective(xp: Any, u: Sequence[Any], share: Any, shape: Shape) -> Rows:
    """The square to a quadrilateral (Heckbert 1989, section 2.2.3)."""
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]  # x, y
    moved = [
        [end + _either(u[2 * i + axis], share) for axis, end in enumerate(corner)]
        for i, corner in enumerate(corners)
    ]
    p, q, r, s = moved
    a, b, c = (
        [f(i) for i in (0, 1)]
        for f in (
            lambda i: q[i] - r[i],
            lambda i: s[i] - r[i],
            lambda i: p[i] - q[i] + r[i] - s[i],
        )
    )
    area = _cross(a, b)
    g, h = _cross(c, b) / area, _cross(a, c) / area
    square = [[q[i] - p[i] + g * q[i], s[i] - p[i] + h * s[i], p[i]] for i in (0, 1)] + [[g, h, 1]]
    # From [0, 1] to [-1, 1] on both sides: to = 2 square - 1 w, of from = (v + 1) / 2.
    to = [[2 * x - w for x, w in zip(row, square[2], strict=True)] for row in square[:2]]
    to.append(square[2])
    return [[x / 2, y / 2, (x + y) / 2 + one] for x, y, one in to]


# ---- colours ----


@_add("colour", 1, Parameter("x", 0, 1))
def brightness(xp: Any, u: Sequence[Any], x: Any, mean: Any) -> Rows:
    """Black stays black."""
    return _scaled(1 + _either(u[0], x), 0)


@_add("colour", 1, Parameter("x", 0, 1))
def contrast(xp: Any, u: Sequence[Any], x: Any, mean: Any) -> Rows:
    """The mean luma stays."""
    factor = 1 + _either(u[0], x)
    return _scaled(factor, (1 - factor) * mean)


@_add("colour", 1, Parameter("x", 0, 1))
def saturation(xp: Any, u: Sequence[Any], x: Any, mean: Any) -> Rows:
    """The luma stays."""
    return _saturated(1 + _either(u[0], x))


@_add("colour", 1, Parameter("degrees", 0, 180))
def hue(xp: Any, u: Sequence[Any], degrees: Any, mean: Any) -> Rows:
    """By Rodrigues's formula about (1, 1, 1)."""
    angle = _either(u[0], degrees) * (math.pi / 180)
    cosine, sine = xp.cos(angle), xp.sin(angle) / math.sqrt(3)
    same, other = (1 + 2 * cosine) / 3, (1 - cosine) / 3
    return [
        [same, other - sine, other + sine, 0],
        [other + sine, same, other - sine, 0],
        [other - sine, other + sine, same, 0],
    ]


@_add("colour", 3, Parameter("x", 0, 1))
def color(xp: Any, u: Sequence[Any], x: Any, mean: Any) -> Rows:
    """The luma's part of all three is done first, as brightness and contrast keep greys grey."""
    bright, factor, colourful = (1 + _either(each, x) for each in u)
    rows = _saturated(colourful)
    level = (1 - factor) * bright * mean
    return [[*(bright * factor * entry for entry in row[:3]), level] for row in rows]


@_add("colour", 1, Parameter("p", 0, 1, Range(0.2, 0.2)))
def grey(xp: Any, u: Sequence[Any], p: Any, mean: Any) -> Rows:
    """Three equal channels."""
    return _saturated(xp.where(u[0] < p, 0.0, 1.0))


@_add("colour", 1, _HALF)
def negative(xp: Any, u: Sequence[Any], p: Any, mean: Any) -> Rows:
    """1 less the light."""
    return _scaled(_heads(xp, u[0], p), xp.where(u[0] < p, 1.0, 0.0))


# ---- either ----


def _picked(function: Callable[..., Rows], most: float, place: int | None = None) -> Callable:
    """One at a strength from 0 to 1, either way: along one axis, where it has two."""

    def rows(xp: Any, sign: Any, strength: Any, **more: Any) -> Rows:
        u = [sign] if place is None else [sign if i == place else 0.5 for i in (0, 1)]
        return function(xp, u, most * strength, **more)

    return rows


# As far as they are matrices, the list of Cubuk et al. 2020, section 4, at its strengths at 10.
_ANY_PLACE = [
    _picked(rotate, 30), *(_picked(shear, 16.7, axis) for axis in (0, 1)),
    *(_picked(translate, 0.45, axis) for axis in (0, 1)),
]  # fmt: skip
_ANY_COLOUR = [_picked(function, 0.9) for function in (brightness, contrast, saturation)]


@_add("both", 2, Parameter("n", 1, 4, whole=True), Parameter("x", 0, 10))
def randaugment(xp: Any, u: Sequence[Any], n: Any, x: Any, **more: Any) -> Rows:
    """One of them, each as likely; `chain.parse` takes n of these."""
    kinds, first = (_ANY_PLACE, 1) if "shape" in more else (_ANY_COLOUR, 1 + len(_ANY_PLACE))
    width = 3 if "shape" in more else 4
    pick = xp.floor(u[0] * (1 + len(_ANY_PLACE) + len(_ANY_COLOUR)))
    sign = xp.where(u[1] < 0.5, 0.0, 1.0)
    chosen = [[float(i == j) for j in range(width)] for i in range(3)]
    for number, kind in enumerate(kinds, first):
        rows = kind(xp, sign, x / 10, **more)
        chosen = [
            [xp.where(pick == number, 1.0 * new, old) for new, old in zip(*pair, strict=True)]
            for pair in zip(rows, chosen, strict=True)
        ]
    return chosen


# ---- pixels: see `augment.arrays` and `data.augment` ----

for _name, _draws, _parameters in (
    ("noise", 0, [Parameter("sigma", 0, 255)]),
    ("blur", 0, [Parameter("sigma", 0, 10)]),
    ("cutout", 2, [Parameter("share", 0, 1)]),
    ("elastic", 0, [Parameter("strength", 0, 100), Parameter("smoothness", 1, 16, Range(4, 4))]),
):
    KINDS[_name] = Kind(None, tuple(_parameters), "pixels", _draws)
for _name in ("mixup", "cutmix"):
    KINDS[_name] = Kind(None, (Parameter("alpha", 0.01, 10, Range(1, 1)),), "batch", 0)
KINDS["same"] = Kind(lambda xp, u, shape: [[1, 0, 0], [0, 1, 0], [0, 0, 1]], (), "place", 0)


def _either(u: Any, most: Any) -> Any:
    """From -most to most."""
    return (2 * u - 1) * most


def _heads(xp: Any, u: Any, p: Any) -> Any:
    """-1 with probability p, else 1."""
    return xp.where(u < p, -1.0, 1.0)


def _cross(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return a[0] * b[1] - a[1] * b[0]


def _turned(cosine: Any, sine: Any, shape: Shape) -> Rows:
    """y runs down, so that this turns the image counter-clockwise."""
    return [
        [cosine, -sine / _aspect(shape), 0],
        [sine * _aspect(shape), cosine, 0],
        [0, 0, 1],
    ]


def _aspect(shape: Shape) -> float:
    """A unit of x over a unit of y."""
    return shape[1] / shape[0]


def _scaled(factor: Any, level: Any) -> Rows:
    return [[factor if i == j else 0 for j in range(3)] + [level] for i in range(3)]


def _saturated(factor: Any) -> Rows:
    rest = 1 - factor
    return [[rest * LUMA[j] + (factor if i == j else 0) for j in range(3)] + [0] for i in range(3)]
