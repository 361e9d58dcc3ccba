"""Scenes of shapes as pictures; see `shapes`. Signed distances, with anti-aliasing."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from aigc_jax.data.shapes_scenes import PALETTE, RADII, SHAPES, TONES, Scenes

_SAMPLES = 4  # a pixel is so many by so many points, each with a ramp of its own width
_SHADE = 0.25  # of stripes and dots, as a share of the object's own colour
_STRIPES, _DOTS, _DOT = 0.62, 0.62, 0.2  # periods, and a dot's radius, in radii of the object
_LINE = 0.022  # the width of an outline, as a share of the side
_HOLE = 0.5  # of a ring
_ARM, _REACH = 0.32, 0.945  # of a cross: half the width of its arms, and how far they go


def pictures(scenes: Scenes, size: int) -> np.ndarray:
    """(B, S, S, 3) uint8."""
    objects = _Objects(scenes, size)
    whole, dark = objects.covered(_ink if scenes.texture.any() else None)
    return objects.painted(whole, dark)


def outlines(scenes: Scenes, size: int) -> np.ndarray:
    """(B, S, S, 3) uint8: lines along the objects' inner edges, in their colours."""
    objects = _Objects(scenes, size)
    whole, inner = objects.covered(lambda objects, at, d: _covers(d + _LINE * size))
    return objects.painted(whole - inner, np.zeros_like(whole))


def labels(scenes: Scenes, size: int, values: np.ndarray) -> np.ndarray:
    """(B, S, S) uint8: `values` (B, 3) where an object covers half of a pixel or more, else 0."""
    objects = _Objects(scenes, size)
    inside = objects.covered()[0] >= 0.5
    values = objects.of(values).astype(np.uint8)[:, None, None]
    return objects.added(np.zeros((objects.count, size, size), np.uint8), inside * values)


class _Points(NamedTuple):
    """Where some points lie in the objects: (M, P, P), the object a circle of radius 1."""

    x: np.ndarray
    y: np.ndarray


class _Objects:
    """The objects of all scenes, each with a square of pixels that it lies in."""

    def __init__(self, scenes: Scenes, size: int) -> None:
        self.scene, self.number = np.nonzero(scenes.present)
        self.count, self.size = len(scenes.present), size
        self.shape, self.texture = self.of(scenes.shape), self.of(scenes.texture)
        self.radius, turn = self.of(scenes.radius) * size, self.of(scenes.turn)
        self.centre = self.of(scenes.centre) * size
        self.colour = PALETTE[1:][self.of(scenes.colour)] + self.of(scenes.tone[:, 1:])
        self.ground = TONES[scenes.background] + scenes.tone[:, 0]
        self.side = min(size, int(np.ceil(2 * RADII.max() * size)) + 1)
        corner = np.floor(self.centre - self.side / 2 + 0.5).astype(np.int64)
        self.corner = np.clip(corner, 0, size - self.side)
        self._turned = (np.stack([np.cos(turn), np.sin(turn)]) / self.radius).astype(np.float32)

    def of(self, values: np.ndarray) -> np.ndarray:
        """(B, 3, ...) -> (M, ...)."""
        return values[self.scene, self.number]

    def covered(
        self, part: Callable[["_Objects", _Points, np.ndarray], np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The shares of pixels that lie in the objects, and in a part of them, (M, P, P) float32.

        `part(objects, points, distance)`: in which share of the points, where these lie in it.
        """
        whole = np.zeros((len(self.scene), self.side, self.side), np.float32)
        some = np.zeros_like(whole)
        for at in self._points():
            distance = self._distance(at)
            inside = _covers(distance)
            whole += inside
            if part is not None:
                some += inside * part(self, at, distance)
        return whole / _SAMPLES**2, some / _SAMPLES**2

    def painted(self, whole: np.ndarray, dark: np.ndarray) -> np.ndarray:
        """The objects where they cover, dark where shaded, on their backgrounds: uint8."""
        image = np.empty((self.count, self.size, self.size, 3), np.float32)
        image[:] = self.ground[:, None, None]
        over = (self.colour - self.ground[self.scene]).astype(np.float32)[:, None, None]
        shade = ((_SHADE - 1) * self.colour).astype(np.float32)[:, None, None]
        image = self.added(image, whole[..., None] * over + dark[..., None] * shade)
        return np.clip(image + 0.5, 0, 255).astype(np.uint8)

    def added(self, pictures: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """The pictures (B, S, S, ...) with the objects' (M, P, P, ...) added to them."""
        inside = np.arange(self.side)
        for number in range(3):  # one object of a picture at a time: their squares may meet
            some = self.number == number
            y = (self.corner[some, 1, None] + inside)[:, :, None]
            x = (self.corner[some, 0, None] + inside)[:, None, :]
            pictures[self.scene[some, None, None], y, x] += patches[some]
        return pictures

    def _points(self) -> Iterator[_Points]:
        """One point of each pixel after the other."""
        c, s = self._turned[..., None, None]
        for dy in range(_SAMPLES):
            for dx in range(_SAMPLES):
                x, y = self._offset(0, dx)[:, None], self._offset(1, dy)[:, :, None]
                yield _Points(c * x + s * y, c * y - s * x)

    def _offset(self, axis: int, sample: int) -> np.ndarray:
        """(M, P) from the objects' centres, in pixels."""
        first = self.corner[:, axis] - self.centre[:, axis] + (sample + 0.5) / _SAMPLES
        return (first[:, None] + np.arange(self.side)).astype(np.float32)

    def _distance(self, at: _Points) -> np.ndarray:
        """To the objects' edges, negative inside, (M, P, P), in pixels."""
        distance = np.empty_like(at.x)
        for shape, name in enumerate(SHAPES):
            some = self.shape == shape
            if some.any():
                distance[some] = _DISTANCES[name](at.x[some], at.y[some])
        return distance * self.radius[:, None, None].astype(np.float32)


def _covers(distance: np.ndarray) -> np.ndarray:
    """The share of a point's own square that lies inside, as if the edge were straight."""
    return np.clip(0.5 - distance * _SAMPLES, 0, 1)


def _ink(objects: _Objects, at: _Points, distance: np.ndarray) -> np.ndarray:
    """The share of each point in stripes and dots, (M, P, P)."""
    del distance
    share = np.zeros_like(at.x)
    for texture, find in ((1, _stripes), (2, _dots)):
        some = objects.texture == texture
        if some.any():
            radius = objects.radius[some, None, None].astype(np.float32)
            share[some] = _covers(find(at.x[some], at.y[some]) * radius)
    return share


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    del x
    return _from_middle(y, _STRIPES) - _STRIPES / 4


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(_from_middle(x, _DOTS), _from_middle(y, _DOTS)) - _DOT


def _from_middle(x: np.ndarray, period: float) -> np.ndarray:
    """How far x lies from the middle of its period; 0 is where two of them meet."""
    return np.abs(x / period - np.floor(x / period) - 0.5) * period


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 1


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    far = np.sqrt(x * x + y * y)
    return np.maximum(far - 1, _HOLE - far)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.5**0.5)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of equal sides, one of them below."""
    return np.maximum(y, np.abs(x) * np.float32(0.75**0.5) - y / 2) - 0.5


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - _REACH, short - _ARM)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: what lies on the inner side of all but one of the lines that make it."""
    angles = -np.pi / 2 + np.arange(5) * 2 * np.pi / 5
    first = second = np.full_like(x, -np.inf)
    for c, s in zip(np.cos(angles), np.sin(angles), strict=True):
        line = np.float32(c) * x + np.float32(s) * y
        first, second = np.maximum(first, line), np.maximum(second, np.minimum(first, line))
    return second - np.float32(np.cos(2 * np.pi / 5))


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "star": _star,
}
