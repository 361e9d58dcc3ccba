"""Whether pictures of shapes show what their captions ask: what a probe reads, held against it."""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES
from aigc_jax.types import Array

OBJECTS = 3  # that a caption may ask
OF_OBJECTS = ("shape", "colour", "size", "texture", "relation")
NAMES = (*OF_OBJECTS, "background", "count", "all")
CLASSES = tuple(map(len, (SHAPES, COLOURS, SIZES, TEXTURES)))
_SOFTNESS = 0.04  # shares of the side over which a relation's probability rises
_LEAST = -9.0  # no log-probability counts as lower: a probe is not to be had by its own certainty
_CHUNK = 1000  # pictures at once


class Reading(NamedTuple):
    """What a probe reads of N pictures, float32; M objects of each, likelier ones first.

    Attributes:
      present: (N, M) log-odds that the object is there.
      centre: (N, M, 2) x (to the right) and y (down), as shares of the side.
      classes: (N, M, sum(CLASSES)) log-probabilities of shapes, colours, sizes and textures.
      background: (N, len(BACKGROUNDS)) log-probabilities.
    """

    present: Array
    centre: Array
    classes: Array
    background: Array

    def packed(self) -> Array:
        """All of it, (N, R)."""
        objects = jnp.concatenate([self.present[..., None], self.centre, self.classes], -1)
        return jnp.concatenate([objects.reshape(len(objects), -1), self.background], -1)

    @classmethod
    def unpacked(cls, x: Array) -> "Reading":
        """What `packed` packed. ValueError for another width."""
        each = 3 + sum(CLASSES)
        objects, rest = divmod(x.shape[-1] - len(BACKGROUNDS), each)
        if objects < OBJECTS or rest:
            raise ValueError(f"{x.shape[-1]} numbers are no reading of {OBJECTS} objects or more.")
        found = x[:, : objects * each].reshape(len(x), objects, each)
        return cls(found[..., 0], found[..., 1:3], found[..., 3:], x[:, objects * each :])


def asked_of(scene: Array, background: Array) -> Array:
    """Scenes (N, 3, 8) on backgrounds (N,) as asked (N, 16) int32: all but the relations."""
    there, labels = scene[..., :1] > 0, scene[..., 1:5].astype(jnp.int32)
    labels = jnp.pad(jnp.where(there, labels, -1), ((0, 0), (0, 0), (0, 1)), constant_values=-1)
    return jnp.concatenate([labels.reshape(len(scene), -1), background[:, None]], 1)


def shares(readings: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Of each attribute the share of those asked that are right; see `judge`.

    Args:
      readings: (N, R) float32, packed.
      asked: (N, 16) int32, as the source `shapes` gives it.

    Returns:
      those of NAMES that are asked at all.
    """
    right, said = {name: 0.0 for name in NAMES}, {name: 0.0 for name in NAMES}
    for start in range(0, len(asked), _CHUNK):
        rows = slice(start, start + _CHUNK)
        a, b = judge(Reading.unpacked(jnp.asarray(readings[rows])), jnp.asarray(asked[rows]))
        for name in NAMES:
            right[name] += float((a[name] * b[name]).sum())
            said[name] += float(b[name].sum())
    return {name: right[name] / said[name] for name in NAMES if said[name]}


@jax.jit
def judge(reading: Reading, asked: Array) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """What of asked (N, 16) a picture shows: {name: (N, k) 0 or 1}, and where it is asked.

    The objects asked are matched with those read so that most is right, then that the caption is
    likeliest. What is asked of an object that isn't there is wrong. `count`: as many objects as
    asked, no more; `all`: everything asked is right, the count too.
    """
    return jax.vmap(_judge)(reading, asked)


@jax.jit
def log_likelihood(reading: Reading, asked: Array) -> Array:
    """(N, K) float32: of captions asked (N, K, 16), K for each picture, under the probe."""
    each = jax.vmap(lambda one, captions: jax.vmap(functools.partial(_likelihood, one))(captions))
    return each(reading, asked)


def _judge(reading: Reading, asked: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    said = _said(asked)
    there = reading.present > 0
    read = jnp.stack([part.argmax(-1) for part in _parts(reading.classes)], -1)
    pairs = (said[:, None, :4] == read[None]) & there.reshape(1, -1, 1)
    both = there[:, None] & there[None]
    relations = (_lead(reading.centre, said[:-1, 4]) > 0) & both[None]
    chosen = _matched(pairs, relations)
    right = jnp.where(said >= 0, chosen, False).sum((1, 2))
    best = jnp.argmax(right * 1e4 + jnp.maximum(_assigned(reading, asked), -5e3))
    chosen, is_said = chosen[best], said >= 0
    found = {name: chosen[:, i] for i, name in enumerate(OF_OBJECTS)}
    where = {name: is_said[:, i] for i, name in enumerate(OF_OBJECTS)}
    found["background"] = (reading.background.argmax(-1) == asked[-1])[None]
    where["background"] = (asked[-1] >= 0)[None]
    found["count"] = (there.sum() == is_said.any(1).sum())[None]
    where["count"] = jnp.ones(1, bool)
    whole = [(found[name] | ~where[name]).all() for name in found]
    found["all"], where["all"] = jnp.stack(whole).all()[None], jnp.ones(1, bool)
    return found, where


def _likelihood(reading: Reading, asked: Array) -> Array:
    return _assigned(reading, asked).max()


def _assigned(reading: Reading, asked: Array) -> Array:
    """The log-likelihood of a caption (16,), for each way to match its objects: (P,)."""
    said = _said(asked)
    is_object = (said >= 0).any(1)
    parts = _parts(jnp.maximum(reading.classes, _LEAST))
    # -1, of what isn't said, is no class: its row is 0, and so is what it adds.
    terms = [jax.nn.one_hot(said[:, i], part.shape[-1]) @ part.T for i, part in enumerate(parts)]
    present = jnp.maximum(jax.nn.log_sigmoid(reading.present), _LEAST)
    absent = jnp.maximum(jax.nn.log_sigmoid(-reading.present), _LEAST)
    pairs = sum(terms) + jnp.where(is_object[:, None], (present - absent)[None], 0)
    relations = jax.nn.log_sigmoid(_lead(reading.centre, said[:-1, 4]) / _SOFTNESS)
    relations = jnp.where(said[:-1, 4].reshape(-1, 1, 1) >= 0, jnp.maximum(relations, _LEAST), 0)
    chosen = _matched(pairs[..., None], relations)
    behind = jax.nn.one_hot(asked[-1], len(BACKGROUNDS)) @ jnp.maximum(reading.background, _LEAST)
    return chosen.sum((1, 2)) + absent.sum() + behind


def _said(asked: Array) -> Array:
    """(16,) -> (OBJECTS, 5)."""
    return asked[:-1].reshape(OBJECTS, len(OF_OBJECTS))


def _parts(classes: Array) -> list[Array]:
    return jnp.split(classes, np.cumsum(CLASSES)[:-1], -1)


def _lead(centre: Array, relation: Array) -> Array:
    """By how much a relation is the clearest of the four, of each two objects: (R, M, M).

    centre (M, 2), relation (R,); -1, no relation, gives any.
    """
    x, y = (centre[None, :, i] - centre[:, None, i] for i in range(2))
    across, down = jnp.abs(x), jnp.abs(y)
    return jnp.stack([y - across, -y - across, x - down, -x - down])[relation]


def _matched(pairs: Array, relations: Array) -> Array:
    """What belongs to each way of matching, (P, OBJECTS, attributes + 1), relations last.

    pairs (OBJECTS, M, attributes), relations (OBJECTS - 1, M, M) between an object and the next.
    """
    ways = _ways(pairs.shape[1])
    own = jnp.stack([pairs[k, ways[:, k]] for k in range(OBJECTS)], 1)
    between = [relations[k, ways[:, k], ways[:, k + 1]] for k in range(OBJECTS - 1)]
    between = jnp.stack([*between, jnp.zeros_like(between[0])], 1)
    return jnp.concatenate([own, between[..., None]], -1)


def _ways(objects: int) -> np.ndarray:
    """(P, OBJECTS): every way to take OBJECTS of them in turn."""
    return np.array(list(itertools.permutations(range(objects), OBJECTS)))
