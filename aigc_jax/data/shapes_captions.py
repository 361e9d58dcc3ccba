"""What is said of a scene of shapes, true and false, as numbers and words; see `shapes`."""

import itertools

import numpy as np

from aigc_jax.data.shapes_grammar import phrases
from aigc_jax.data.shapes_scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Scenes,
    Source,
    pick,
    uniform,
)

MARGIN = 0.08  # of the side: by how much a relation that is said must be the clearest
_SAID = {"size": 0.7, "texture": 0.7, "relation": 0.75, "background": 0.3}  # how often
_WRONG_TRIES = 12
_SWAPPED = 0.3  # of changed captions: two objects change places in one attribute

_KINDS = np.array(
    [[len(SHAPES), len(COLOURS), len(SIZES), len(TEXTURES), len(RELATIONS)]] * OBJECTS
)
_VALUES = np.append(_KINDS.ravel(), len(BACKGROUNDS))  # (16,): how many each place of `asked` has


def asked(source: Source, rows: np.ndarray) -> np.ndarray:
    """(B,) -> (B, 16) int32: what the captions of the rows say, -1 for what they don't."""
    scenes, u = source.scenes(rows), uniform(rows, source.split, 20, 16)
    order = np.argsort(u[:, :3] + 2 * ~scenes.present, axis=1)
    take = lambda values: np.take_along_axis(values, order, axis=1)  # noqa: E731
    size = np.where(u[:, 3:6] < _SAID["size"], take(scenes.size), -1)
    said = (u[:, 6:9] < _SAID["texture"]) & source.textured
    texture = np.where(said, take(scenes.texture), -1)
    relation = np.where(u[:, 9:12] < _SAID["relation"], _relations(scenes, order), -1)
    told = np.stack([take(scenes.shape), take(scenes.colour), size, texture, relation], axis=-1)
    told[~take(scenes.present)] = -1
    ground = np.where(u[:, 12] < _SAID["background"], scenes.background, -1)
    return np.column_stack([told.reshape(-1, 15), ground]).astype(np.int32)


def _relations(scenes: Scenes, order: np.ndarray) -> np.ndarray:
    """How each object lies to the next, (B, 3), -1 where that isn't clear."""
    centre = np.take_along_axis(scenes.centre, order[..., None], axis=1)
    leads = _leads(centre[:, :-1], centre[:, 1:])
    found = np.where(leads.max(axis=-1) >= MARGIN, leads.argmax(axis=-1), -1)
    found[~scenes.present[:, 1:]] = -1
    return np.column_stack([found, np.full(len(found), -1)])


def _leads(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By how much each of RELATIONS is the clearest of a to b: (..., 2) twice -> (..., 4)."""
    right, down = np.moveaxis(b - a, -1, 0)
    x, y = np.abs(right), np.abs(down)
    return np.stack([down - x, -down - x, right - y, -right - y], axis=-1)


def holds(
    asked: np.ndarray,
    scene: np.ndarray,
    background: np.ndarray | None = None,
    margin: float = 0.0,
) -> np.ndarray:
    """Whether what is asked is true of a scene, which may hold more.

    Args:
      asked: (..., 16) int.
      scene: (..., 3, 8) float32, the field of that name.
      background: (...) int, of BACKGROUNDS; None: what is asked of it is taken to be true.
      margin: a relation is true where it is the clearest of the four by so much, in shares of
        the side; below 0, where it is not clearly false.

    Returns:
      (...) bool.
    """
    told = asked[..., :-1].reshape(*asked.shape[:-1], OBJECTS, 5)
    good = np.zeros(np.broadcast_shapes(asked.shape[:-1], scene.shape[:-2]), bool)
    for order in itertools.permutations(range(OBJECTS)):
        good |= _holds_of(told, scene[..., order, :], margin)
    if background is not None:
        good &= (asked[..., -1] < 0) | (asked[..., -1] == background)
    return good


def _holds_of(told: np.ndarray, scene: np.ndarray, margin: float) -> np.ndarray:
    """Whether each object is as told; (..., 3, 5) and (..., 3, 8) -> (...)."""
    same = ((told[..., :4] < 0) | (told[..., :4] == scene[..., 1:5])).all(axis=-1)
    there = (scene[..., 0] > 0) | (told < 0).all(axis=-1)
    centre, relation = scene[..., 5:7], told[..., :-1, 4]
    leads = _leads(centre[..., :-1, :], centre[..., 1:, :])
    true = (relation < 0)[..., None] | (np.arange(4) != relation[..., None]) | (leads > margin)
    return (same & there).all(axis=-1) & true.all(axis=(-2, -1))


def captions(source: Source, rows: np.ndarray) -> np.ndarray:
    """(B,) -> (B,) object: what is true of the scenes of the rows."""
    return phrases(asked(source, rows), _style(source, rows))


def wrong_captions(source: Source, rows: np.ndarray) -> np.ndarray:
    """(B,) -> (B,) object: what is false of the scenes of the rows.

    One in two is the scene's own caption with one thing changed, the others another scene's. Like
    true captions they name no two equal objects, and held-out pairs only where scenes have them:
    else a caption could be told from its words alone to be false.
    """
    told, style = _wrong(source, rows)
    return phrases(told, style)


def _wrong(source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What they say, (B, 16), and how, (B, S)."""
    scenes, right, style = source.scenes(rows), asked(source, rows), _style(source, rows)
    told, open_ = right.copy(), np.arange(len(rows))
    for attempt in range(_WRONG_TRIES):
        u = uniform(rows[open_], source.split, 30 + attempt, 8)
        lend = u[:, 1] < 0.5
        other = pick(u[lend, 0], SPLITS[source.split])
        tried = _changed(right[open_], u)
        tried[lend] = asked(source, other)
        false = ~holds(tried, scenes.field[open_], scenes.background[open_], -MARGIN)
        good = false & _sayable(source, tried)
        told[open_[good]] = tried[good]
        style[open_[good & lend]] = _style(source, other[good[lend]])
        open_ = open_[~good]
        if not open_.size:
            break
    for row in open_:  # for certain: the first object in a colour that is nowhere
        used = set(scenes.colour[row][scenes.present[row]])
        free = (colour for colour in range(len(COLOURS)) if colour not in used)
        told[row, 1] = next(c for c in free if (told[row, 0], c) not in HELD_OUT)
    return told, style


def _changed(told: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One thing that is said changed, or two objects' attributes exchanged; (B, 16)."""
    told, each = told.copy(), np.arange(len(told))
    several = told[:, 5] >= 0
    swap = several & (u[:, 2] < _SWAPPED)
    rows, kind = each[swap], pick(u[swap, 3], 4)
    first = 5 * pick(u[swap, 4], np.where(told[swap, 10] >= 0, OBJECTS, 2))
    second = np.where(told[swap, 10] >= 0, (first + 5) % 15, 5 - first)
    told[rows, first + kind], told[rows, second + kind] = (
        told[rows, second + kind], told[rows, first + kind],
    )  # fmt: skip
    rows = each[~swap]
    said = told[rows] >= 0
    nth = pick(u[rows, 3], said.sum(axis=1))
    place = (said.cumsum(axis=1) > nth[:, None]).argmax(axis=1)
    value, values = told[rows, place], _VALUES[place]
    other = (value + 1 + pick(u[rows, 4], values - 1)) % values
    told[rows, place] = np.where(values == 4, value ^ 1, other)
    return told


def _sayable(source: Source, told: np.ndarray) -> np.ndarray:
    """Whether no two objects are equal in shape and colour, and none is held out; (B,)."""
    shape, colour = told[:, 0:15:5], told[:, 1:15:5]
    pair = np.where(shape < 0, -1 - np.arange(OBJECTS), shape * len(COLOURS) + colour)
    good = (pair[:, 0] != pair[:, 1]) & (pair[:, 0] != pair[:, 2]) & (pair[:, 1] != pair[:, 2])
    if source.split in ("novel", "all"):
        return good
    held = [shape * len(COLOURS) + colour for shape, colour in HELD_OUT]
    return good & ~np.isin(pair, held).any(axis=1)


def _style(source: Source, rows: np.ndarray) -> np.ndarray:
    """(B,) -> (B, 20) in [0, 1): the choices of words."""
    return uniform(rows, source.split, 21, 20)
