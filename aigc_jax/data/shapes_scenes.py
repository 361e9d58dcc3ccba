"""What lies in a scene of shapes, as a function of its row alone; see `shapes`.

All numbers are drawn by hashing (row, split, purpose): no state, the same on every machine.
"""

import functools
from typing import NamedTuple

import numpy as np

from aigc_jax.data.dataset import ENDLESS

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("black", "grey", "white")
RELATIONS = ("above", "below", "left of", "right of")

OBJECTS = 3  # the most in a scene
# What pictures are painted with, up to a slight change of tone: (9, 3) uint8, sRGB. The first
# stands for every background, the others are the colours.
PALETTE = np.array(
    [[20, 20, 20], [215, 35, 40], [245, 135, 20], [245, 225, 40], [45, 165, 60],
     [60, 210, 220], [45, 80, 215], [130, 45, 170], [250, 140, 200]], np.uint8,
)  # fmt: skip
TONES = np.array([[20, 20, 20], [115, 115, 115], [240, 240, 240]], np.uint8)  # BACKGROUNDS
# (shape, colour) that no scene of the splits train and test has: one for each colour, so that
# every shape and every colour is still seen with others. A square is never red, the first.
HELD_OUT = frozenset(((5 * colour + 1) % len(SHAPES), colour) for colour in range(len(COLOURS)))
_NOVEL = np.array(sorted(HELD_OUT))
_EVERY = np.array(list(np.ndindex(len(SHAPES), len(COLOURS))))
_SEEN = np.array([pair for pair in _EVERY if tuple(pair) not in HELD_OUT])

RADII = np.array([[0.12, 0.135], [0.185, 0.205]])  # of SIZES, shares of the side
_GAP, _MARGIN = 0.04, 0.015  # between objects, and to the edge
_TURN = 0.15  # radians that an object is turned by at most
_TONE = 8  # levels that a colour is off by at most
_TRIES = 16  # layouts at once; four times as many at most

SPLITS = {"train": ENDLESS, "test": 10_000, "novel": 10_000, "all": ENDLESS}  # scenes


class Scenes(NamedTuple):
    """A batch of scenes; what is said of absent objects is 0."""

    present: np.ndarray  # (B, 3) bool: the first ones
    shape: np.ndarray  # (B, 3) int64, of SHAPES
    colour: np.ndarray  # (B, 3) int64, of COLOURS
    size: np.ndarray  # (B, 3) int64, of SIZES
    texture: np.ndarray  # (B, 3) int64, of TEXTURES
    centre: np.ndarray  # (B, 3, 2) float64: x to the right, y down, shares of the side
    radius: np.ndarray  # (B, 3) float64: of the circle that the object lies in
    turn: np.ndarray  # (B, 3) float64, radians, clockwise
    background: np.ndarray  # (B,) int64, of BACKGROUNDS
    tone: np.ndarray  # (B, 4, 3) float64: levels added to the background and the objects

    @property
    def field(self) -> np.ndarray:
        """(B, 3, 8) float32: present, shape, colour, size, texture, x, y, radius."""
        told = (self.present, self.shape, self.colour, self.size, self.texture,
                self.centre[..., 0], self.centre[..., 1], self.radius)  # fmt: skip
        return np.stack(told, axis=-1).astype(np.float32) * self.present[..., None]


def uniform(rows: np.ndarray, split: str, purpose: int, count: int) -> np.ndarray:
    """Rows (B,) -> (B, count) float64 in [0, 1): splitmix64 (Steele et al. 2014), a row a seed."""
    stream = np.uint64(list(SPLITS).index(split) * 1000 + purpose)
    seed = _mix(_mix(rows.astype(np.uint64)) ^ _mix(np.full(1, stream) + np.uint64(2**40)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(seed[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def pick(u: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) -> whole ones in [0, count)."""
    return (u * count).astype(np.int64)


def draw(rows: np.ndarray, split: str, most: int, textured: bool) -> Scenes:
    """The scenes of the rows (B,), of 1 to `most` objects.

    Objects lie inside the picture and apart from each other; no two of a scene are equal in shape
    and colour. A scene of the split novel has exactly one held-out pair of the two.
    """
    u = uniform(rows, split, 0, 32)
    count = 1 + pick(u[:, 0], most)
    present = np.arange(OBJECTS) < count[:, None]
    shape, colour = np.moveaxis(_pairs(u[:, 1:6], count, split), -1, 0)
    size = pick(u[:, 6:9], len(SIZES))
    texture = pick(u[:, 9:12], len(TEXTURES) if textured else 1)
    least, largest = RADII[size, 0], RADII[size, 1]
    radius = least + u[:, 12:15] * (largest - least)
    turn = (2 * u[:, 15:18] - 1) * _TURN
    tone = (2 * uniform(rows, split, 1, 12).reshape(-1, 4, 3) - 1) * _TONE
    centre = _layout(rows, split, present, radius)
    absent = ~present
    for values in (shape, colour, size, texture, radius, turn, centre):
        values[absent] = 0
    background = pick(u[:, 18], len(BACKGROUNDS))
    return Scenes(present, shape, colour, size, texture, centre, radius, turn, background, tone)


def _pairs(u: np.ndarray, count: np.ndarray, split: str) -> np.ndarray:
    """(B, 5) in [0, 1) -> (B, 3, 2) distinct seen pairs, one of them held out if the split is.

    Of the split all they are any.
    """
    among = _EVERY if split == "all" else _SEEN
    first, second, third = (pick(u[:, k], len(among) - k) for k in range(3))
    second += second >= first
    low, high = np.minimum(first, second), np.maximum(first, second)
    third += third >= low
    third += third >= high
    pairs = among[np.stack([first, second, third], axis=1)]
    if split == "novel":
        pairs[np.arange(len(u)), pick(u[:, 3], count)] = _NOVEL[pick(u[:, 4], len(_NOVEL))]
    return pairs


def _layout(rows: np.ndarray, split: str, present: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Centres (B, 3, 2): the first of many random layouts in which all objects lie apart."""
    centre = _quarters(rows, split, radius)
    open_ = np.arange(len(rows))  # those that no layout was found for
    for attempt in range(4):
        u = uniform(rows[open_], split, 10 + attempt, _TRIES * 6).reshape(-1, _TRIES, OBJECTS, 2)
        edge = radius[open_, None, :, None] + _MARGIN
        tried = edge + u * (1 - 2 * edge)
        good = _apart(tried, present[open_, None], radius[open_, None])
        found = good.any(axis=1)
        centre[open_[found]] = tried[found, good.argmax(axis=1)[found]]
        open_ = open_[~found]
        if not open_.size:
            break
    return centre


def _quarters(rows: np.ndarray, split: str, radius: np.ndarray) -> np.ndarray:
    """Centres (B, 3, 2), each in a quarter of the picture of its own."""
    u = uniform(rows, split, 2, 4 + 2 * OBJECTS)
    quarter = np.argsort(u[:, :4], axis=1)[:, :OBJECTS]
    corner = np.stack([quarter % 2, quarter // 2], axis=-1) / 2
    room = 0.25 - _GAP / 2 - radius[..., None]
    return corner + 0.25 + (2 * u[:, 4:].reshape(-1, OBJECTS, 2) - 1) * room


def _apart(centre: np.ndarray, present: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Whether no two objects touch: (..., 3, 2), (..., 3), (..., 3) -> (...)."""
    good = np.ones(centre.shape[:-2], bool)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        away = ((centre[..., i, :] - centre[..., j, :]) ** 2).sum(axis=-1)
        wanted = (radius[..., i] + radius[..., j] + _GAP) ** 2
        good &= (away >= wanted) | ~(present[..., i] & present[..., j])
    return good


class Source(NamedTuple):
    """What a row is a scene of."""

    split: str
    most: int
    textured: bool

    def scenes(self, rows: np.ndarray) -> Scenes:
        """The scenes of rows (B,); those of the last few batches are kept."""
        return _drawn(np.ascontiguousarray(rows, np.int64).tobytes(), self)


@functools.lru_cache(maxsize=16)
def _drawn(rows: bytes, source: Source) -> Scenes:
    scenes = draw(np.frombuffer(rows, np.int64), *source)
    for values in scenes:
        values.setflags(write=False)
    return scenes
