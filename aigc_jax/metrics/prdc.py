"""Precision, recall, density and coverage of sets of features, by their nearest neighbours.

An image lies in a set's manifold where it is no farther from one of the set's images than that
image's k-th neighbour in the set is: the manifold is a union of balls.

The device compares all pairs in float32, tile by tile, and says where rounding could decide; those
few images are compared again on the host in float64. So the result is that of float64 throughout.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.metrics.neighbors import squared_distances
from aigc_jax.types import Array

_TILE = 4096  # rows and columns of a tile of distances: 64 MiB in float32
_SPARE = 3  # neighbours kept beyond the k-th, for when rounding swaps them


class PRDC(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density is at least 0 and may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


class PrecisionRecall(NamedTuple):
    """How many generated images lie in the real manifold; how many real ones in the generated."""

    precision: float
    recall: float


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> PRDC:
    """Density and coverage as Naeem et al. 2020, eq. 4 and 5, precision and recall beside them.

    An image lies in a ball where it is strictly nearer than the radius, as in their code.

    Args:
      real, fake: (N, D) and (M, D) features, float32 or float64.
      k: the neighbour that gives a ball its radius.

    Raises:
      UserError: k or fewer images on a side, or features that aren't finite.
      ValueError: the dimensions differ, or k < 1.
    """
    return _overlap(real, fake, k, strict=True)


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    An image on a ball's surface lies in it. Arguments and errors are those of `prdc`.
    """
    found = _overlap(real, fake, k, strict=False)
    return PrecisionRecall(found.precision, found.recall)


class _Points(NamedTuple):
    """A set of features: as given (N, D), and centred in float32 with squared norms (N,)."""

    given: np.ndarray
    centre: np.ndarray
    near: Array
    square: np.ndarray


def _overlap(real: np.ndarray, fake: np.ndarray, k: int, strict: bool) -> PRDC:
    _check(real, fake, k)
    centre = np.mean([x.mean(0, dtype=np.float64) for x in (real, fake)], 0)
    real, fake = _points(real, centre), _points(fake, centre)
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    count, margin, nearest, gap = _compare(real, fake, real_radii, fake_radii)
    slack = _slack(len(centre), np.float32)
    reach = slack * (real.square + fake.square.max())

    everyone = np.arange(len(real.given)), np.arange(len(fake.given))
    covered, recalled = nearest < real_radii, gap < 0
    unsure = np.flatnonzero(margin <= slack * fake.square)
    count[unsure] = 0
    for row, column in _blocks(unsure, everyone[0]):
        count[row] += _inside(fake, row, real, column, real_radii, strict).sum(1)
    unsure = np.flatnonzero(np.abs(nearest - real_radii) <= reach)
    covered[unsure] = False
    for row, column in _blocks(everyone[1], unsure):
        covered[column] |= _inside(fake, row, real, column, real_radii, strict).any(0)
    unsure = np.flatnonzero(np.abs(gap) <= reach)
    recalled[unsure] = False
    for row, column in _blocks(unsure, everyone[1]):
        recalled[row] |= _inside(real, row, fake, column, fake_radii, strict).any(1)

    parts = (count > 0).mean(), recalled.mean(), count.mean() / k, covered.mean()
    return PRDC(*map(float, parts))


def _check(real: np.ndarray, fake: np.ndarray, k: int) -> None:
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Features of {real.shape[1]} and {fake.shape[1]} numbers don't compare.")
    if k < 1:
        raise ValueError(f"k = {k}: the nearest neighbour is k = 1.")
    for name, x in {"real": real, "generated": fake}.items():
        if len(x) <= k:
            raise UserError(
                f"{len(x)} {name} images have no {k}-th neighbours: raise --num to over {k}."
            )
        if not np.isfinite(x).all():
            raise UserError(f"Features of {name} images aren't finite: has the training diverged?")


def _points(given: np.ndarray, centre: np.ndarray) -> _Points:
    near = given - centre.astype(np.result_type(given, np.float32))
    near = jnp.asarray(near, jnp.float32)
    return _Points(given, centre, near, np.asarray((near * near).sum(1)))


def _slack(dim: int, dtype: type) -> float:
    """The rounding error of a squared distance, over the sum of the points' squared norms."""
    return (4 + np.sqrt(dim)) * float(np.finfo(dtype).eps)


def _starts(n: int, size: int = _TILE) -> range:
    return range(0, n, size)


# ---- the radii of the balls ----


def _radii(points: _Points, k: int) -> np.ndarray:
    """(N,) float64: each point's squared distance to its k-th neighbour among the others."""
    starts = _starts(len(points.given))
    found = {i: [] for i in starts}
    for i, j in itertools.combinations_with_replacement(starts, 2):
        x, y = (points.near[start : start + _TILE] for start in (i, j))
        for of, among, tile in zip(
            (i, j), (j, i), _tile_neighbours(x, y, i == j, k + _SPARE), strict=False
        ):
            values, index = map(np.asarray, tile)
            found[of].append((values, index + among))
    return np.concatenate([_kth(points, i, k, *_least(found[i], k + _SPARE)) for i in starts])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _tile_neighbours(x: Array, y: Array, same: bool, count: int) -> list[tuple[Array, Array]]:
    """Each of x's nearest in y, squared distances and indices, and, if they differ, of y's in x."""
    squares = squared_distances(x, y)
    if same:
        squares = jnp.where(jnp.eye(len(x), dtype=bool), jnp.inf, squares)
    sides = [squares] if same else [squares, squares.T]
    nearest = [jax.lax.top_k(-side, min(count, side.shape[1])) for side in sides]
    return [(-values, index) for values, index in nearest]


def _least(tiles: list, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the neighbours found in each tile: the nearest `count`, their distances rising."""
    values, index = (np.concatenate(parts, 1) for parts in zip(*tiles, strict=True))
    order = np.argsort(values, 1)[:, :count]
    return np.take_along_axis(values, order, 1), np.take_along_axis(index, order, 1)


def _kth(points: _Points, start: int, k: int, values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The k-th of the neighbours in float64, of which float32 has left a few in question."""
    here = points.square[start : start + len(values)]
    error = 2 * _slack(len(points.centre), np.float32) * (here + points.square[index].max(1))
    kth = values[:, k - 1 : k]
    unsure = np.abs(values - kth) <= error[:, None]
    exact = np.where(values < kth, -np.inf, np.inf)
    row, column = np.nonzero(unsure)
    exact[row, column] = _pairs(points, start + row, points, index[row, column])
    found = np.sort(exact, 1)[:, k - 1]
    ties = np.flatnonzero(unsure[:, -1])  # more in question than were kept
    for i in _starts(len(ties), 256):
        some = ties[i : i + 256]
        found[some] = _kth_of_all(points, start + some, k)
    return found


def _kth_of_all(points: _Points, rows: np.ndarray, k: int) -> np.ndarray:
    everyone, here = np.arange(len(points.given)), np.arange(len(rows))
    blocks = [_exact_squares(points, rows, points, j)[0] for _, j in _blocks(rows, everyone)]
    squares = np.concatenate(blocks, 1)
    squares[here, rows] = np.inf
    index = np.argpartition(squares, k - 1, 1)[:, k - 1]
    found = squares[here, index]
    apart = found > 0
    found[apart] = _pairs(points, rows[apart], points, index[apart])
    return found


# ---- which points lie in which balls ----


def _compare(
    real: _Points, fake: _Points, real_radii: np.ndarray, fake_radii: np.ndarray
) -> tuple[np.ndarray, ...]:
    """What float32 says of all pairs, and how surely.

    Returns:
      (M,) in how many real balls each generated point lies; (M,) how far it is at least from the
      surface of one, less the error that is the ball's; (N,) the squared distance to the nearest
      generated point; (N,) the least of squared distance less squared radius over generated balls.
    """
    n, m = len(real.given), len(fake.given)
    count, margin = np.zeros(m, np.int64), np.full(m, np.inf)
    nearest, gap = np.full(n, np.inf), np.full(n, np.inf)
    for i in _starts(n):
        for j in _starts(m):
            at, of = slice(i, i + _TILE), slice(j, j + _TILE)
            r, s = (x.astype(np.float32) for x in (real_radii[at], fake_radii[of]))
            tile = _tile_compare(fake.near[of], s, real.near[at], r, real.square[at])
            inside, far, least, below = map(np.asarray, tile)
            count[of] += inside
            margin[of] = np.minimum(margin[of], far)
            nearest[at] = np.minimum(nearest[at], least)
            gap[at] = np.minimum(gap[at], below)
    return count, margin, nearest, gap


@jax.jit
def _tile_compare(fake: Array, s: Array, real: Array, r: Array, square: Array) -> tuple[Array, ...]:
    squares = squared_distances(fake, real)
    outside = squares - r[None]
    margin = jnp.abs(outside) - _slack(fake.shape[1], np.float32) * square[None]
    below = squares - s[:, None]
    return (outside < 0).sum(1), margin.min(1), squares.min(0), below.min(0)


# ---- what float32 leaves in question, in float64 ----


def _blocks(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of both in blocks of at most 1024 x 1024."""
    for i in _starts(len(rows), 1024):
        for j in _starts(len(columns), 1024):
            yield rows[i : i + 1024], columns[j : j + 1024]


def _inside(
    points: _Points,
    rows: np.ndarray,
    balls: _Points,
    columns: np.ndarray,
    radii: np.ndarray,
    strict: bool,
) -> np.ndarray:
    """(len(rows), len(columns)) bool: which of points[rows] lie in which of balls[columns]."""
    squares, error = _exact_squares(points, rows, balls, columns)
    radii = radii[columns]
    row, column = np.nonzero((squares > 0) & (np.abs(squares - radii) <= error))
    squares[row, column] = _pairs(points, rows[row], balls, columns[column])
    return squares < radii if strict else squares <= radii


def _exact_squares(
    x: _Points, rows: np.ndarray, y: _Points, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (n, m) in float64 and their errors; 0 where it may be the error's."""
    a, b = (p.given[i].astype(np.float64) - p.centre for p, i in ((x, rows), (y, columns)))
    total = np.square(a).sum(1)[:, None] + np.square(b).sum(1)
    squares, error = total - 2 * (a @ b.T), _slack(a.shape[1], np.float64) * total
    return np.where(squares > error, squares, 0), error


def _pairs(x: _Points, rows: np.ndarray, y: _Points, columns: np.ndarray) -> np.ndarray:
    """(n,) squared distances of pairs, from their differences: equal pairs give equal bits."""
    found = np.empty(len(rows))
    for i in _starts(len(rows), 2048):
        some = slice(i, i + 2048)
        apart = x.given[rows[some]].astype(np.float64) - y.given[columns[some]]
        found[some] = np.square(apart).sum(1)
    return found
