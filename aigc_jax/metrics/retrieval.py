"""R-precision: whether a picture's own caption is the likeliest of many (Xu et al. 2018)."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.metrics import attributes

_CHUNK = 500  # pictures at once
_OTHERS = 99
_FOLDS = 10
_OPPOSITE = np.array([1, 0, 3, 2, -1])  # of above, below, left of, right of; -1 of -1


class RPrecision(NamedTuple):
    """Of N pictures, in folds.

    Attributes:
      value: the share whose own caption is likelier than every other's.
      std: of the shares of single folds.
      folds: how many, of equal size but for one picture.
      captions: that each picture was held against, its own too.
    """

    value: float
    std: float
    folds: int
    captions: int


def r_precision(readings: np.ndarray, asked: np.ndarray, seed: int = 0) -> RPrecision:
    """Ranks each picture's caption among those of 99 other scenes (AttnGAN, section 4).

    By the log-likelihood under a probe, in place of the original's similarity of learned
    embeddings. Captions that do not contradict a picture's own are none of the 99. A draw counts
    as its share of those that are equally likely.

    Args:
      readings: (N, R) float32, packed, see `attributes.Reading`.
      asked: (N, 16) int32, what caption i says, of which picture i was made.
      seed: of the drawn captions.

    Raises:
      UserError: a caption that none of the others contradicts.
    """
    others = contradicting(asked, _OTHERS, seed)
    starts = range(0, len(asked), _CHUNK)
    found = np.concatenate([_first(readings, asked, others, start) for start in starts])
    means = [fold.mean() for fold in np.array_split(found, min(_FOLDS, len(found)))]
    return RPrecision(float(found.mean()), float(np.std(means)), len(means), 1 + others.shape[1])


def contradicting(asked: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Rows of captions drawn for each of asked (N, 16), none of which may be true beside it.

    Returns:
      (N, K) int64, K = `most`, or as many as every caption has.

    Raises:
      UserError: K is 0.
    """
    rng, n = np.random.default_rng(seed), len(asked)
    found = []
    for one in asked:
        rows = rng.choice(n, min(n, 4 * most), replace=False)
        rows = rows[~agree(one, asked[rows])]
        if len(rows) < most < n:  # rare: of few, or much alike
            rows = rng.permutation(n)
            rows = rows[~agree(one, asked[rows])]
        found.append(rows[:most])
    count = min(map(len, found))
    if not count:
        raise UserError(
            f"r_precision: of {n} captions there is one that no other contradicts: take more."
        )
    return np.stack([rows[:count] for rows in found])


def agree(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K,) bool: whether a picture may be as caption (16,) and each of others (K, 16) say.

    They name as many objects, and there is a way to match these so that nothing said differs.
    """
    behind = _same(one[-1], others[:, -1])
    mine, theirs = _objects(one), _objects(others)
    ways = itertools.permutations(range(mine.shape[-2]))
    return behind & np.any([_agree_so(mine, theirs, list(way)) for way in ways], axis=0)


def _objects(asked: np.ndarray) -> np.ndarray:
    return asked[..., :-1].reshape(*asked.shape[:-1], attributes.OBJECTS, -1)


def _agree_so(mine: np.ndarray, theirs: np.ndarray, way: list[int]) -> np.ndarray:
    """Whether object k of mine (O, 5) may be object way[k] of theirs (K, O, 5): (K,)."""
    there, here = (theirs >= 0).any(-1)[:, way], (mine >= 0).any(-1)
    fits = (there == here).all(-1)
    fits &= _same(mine[:, :4], theirs[:, way, :4]).all((1, 2))
    for k, (first, second) in enumerate(itertools.pairwise(way)):
        if second == first + 1:
            fits &= _same(mine[k, 4], theirs[:, first, 4])
        elif second == first - 1:
            fits &= _same(mine[k, 4], _OPPOSITE[theirs[:, second, 4]])
    return fits


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal where both are said."""
    return (a == b) | (a < 0) | (b < 0)


def _first(readings: np.ndarray, asked: np.ndarray, others: np.ndarray, start: int) -> np.ndarray:
    """(n,) of the pictures from `start` on: 1 where their own caption is the likeliest."""
    rows = slice(start, start + _CHUNK)
    captions = np.concatenate([asked[rows, None], asked[others[rows]]], 1)
    reading = attributes.Reading.unpacked(jnp.asarray(readings[rows]))
    score = np.asarray(attributes.log_likelihood(reading, jnp.asarray(captions)))
    own, best = score[:, 0], score[:, 1:].max(1)
    ties = 1 + (score[:, 1:] == own[:, None]).sum(1)
    return np.where(own >= best, 1 / ties, 0)
