"""The Inception score: exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4).

Images are dealt to splits, each split has its score, and what is told is the scores' mean and
standard deviation. The deal is the protocol's: Salimans et al. take ten splits of images in random
order, ADM (Dhariwal & Nichol 2021) consecutive chunks of 5000.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from aigc_jax.errors import UserError
from aigc_jax.metrics.statistics import two_sum
from aigc_jax.parallel import psum
from aigc_jax.types import Array


class Score(NamedTuple):
    """Mean and standard deviation (ddof 0) over the splits' scores, and those scores."""

    value: float
    std: float
    splits: tuple[float, ...]


def inception_score(
    logits: np.ndarray,
    splits: int = 10,
    shuffle_seed: int | None = 2020,
    split_size: int | None = None,
) -> Score:
    """The score in float64 on the host; by default torch-fidelity's, to rounding.

    Args:
      logits: (N, K), without the bias of the network's last layer, as Salimans et al.'s script.
      splits: how many.
      shuffle_seed: of `numpy.random.RandomState`; None: images stay in their order.
      split_size: of chunks that follow each other, the last one perhaps smaller, in place of
        `splits` of equal size. ADM: 5000, with shuffle_seed None.

    Raises:
      UserError: N < splits, or N < 1.
    """
    of = _split_of(len(logits), splits, shuffle_seed, split_size)
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(np.bincount(of))[:-1]
    return _score([_log_score(part) for part in np.split(np.asarray(logits)[order], ends)])


def _log_score(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    return (p * log_p).sum(1).mean() - _sum_x_log_x(p.mean(0))


def _sum_x_log_x(x: np.ndarray) -> float:
    return float(np.sum(x * np.log(np.where(x > 0, x, 1))))


def _score(log_scores: list[float]) -> Score:
    scores = np.exp(log_scores)
    return Score(float(scores.mean()), float(scores.std()), tuple(map(float, scores)))


def _split_of(n: int, splits: int, seed: int | None, split_size: int | None) -> np.ndarray:
    """(n,) int32: the split that the image at each index belongs to."""
    if split_size is None and n < splits:
        raise UserError(f"{n} images can't be dealt to {splits} splits: raise --num.")
    if n < 1:
        raise UserError("An Inception score needs images, got none: raise --num.")
    order = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    if split_size:
        bounds = np.arange(split_size, n, split_size)
    else:
        bounds = np.arange(1, splits) * n // splits
    found = np.empty(n, np.int32)
    found[order] = np.searchsorted(bounds, np.arange(n), side="right")
    return found


class Splits(struct.PyTreeNode):
    """Sums over the images of each of S splits; sums are float32, with what their rounding lost.

    Attributes:
      split_of: (N,) int32, the split of the image at each index.
      n: (S,) int32.
      p: (2, S, K) the sum of probabilities.
      p_log_p: (2, S) the sum of sum_k p log p.
    """

    split_of: Array
    n: Array
    p: Array
    p_log_p: Array


def init(
    num_classes: int,
    splits: int,
    n: int,
    shuffle_seed: int | None = 2020,
    split_size: int | None = None,
) -> Splits:
    """No images yet, of n to come; the arguments are those of `inception_score`.

    Raises:
      UserError: as `inception_score`.
    """
    split_of = _split_of(n, splits, shuffle_seed, split_size)
    count = int(split_of.max()) + 1
    return Splits(
        jnp.asarray(split_of),
        jnp.zeros(count, jnp.int32),
        jnp.zeros((2, count, num_classes), jnp.float32),
        jnp.zeros((2, count), jnp.float32),
    )


def update(state: Splits, logits: Array, index: Array, mask: Array | None = None) -> Splits:
    """Takes in logits (B, K) of the images at index (B,) int32 of all.

    Rows with mask (B,) = 0 are ignored, NaN or not, and so are indices outside of [0, N).
    """
    valid = (index >= 0) & (index < len(state.split_of))
    valid = valid if mask is None else valid & (mask > 0)
    split = state.split_of[jnp.clip(index, 0, len(state.split_of) - 1)]
    member = jax.nn.one_hot(split, len(state.n)) * valid[:, None]
    log_p = jax.nn.log_softmax(jnp.where(valid[:, None], logits.astype(jnp.float32), 0))
    p = jnp.exp(log_p)
    return state.replace(
        n=state.n + member.sum(0).astype(jnp.int32),
        p=_add(state.p, _matmul(member.T, p)),
        p_log_p=_add(state.p_log_p, _matmul(member.T, (p * log_p).sum(1))),
    )


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _add(pair: Array, x: Array) -> Array:
    total, lost = two_sum(pair[0], x)
    return jnp.stack([total, pair[1] + lost])


def merge(a: Splits, b: Splits) -> Splits:
    """The sums over the images of both, which are different images of one set."""
    p, p_log_p = (_add(x, y[0]).at[1].add(y[1]) for x, y in ((a.p, b.p), (a.p_log_p, b.p_log_p)))
    return a.replace(n=a.n + b.n, p=p, p_log_p=p_log_p)


def across(state: Splits, axis_name: str | None) -> Splits:
    """The sums over all devices of a mapped axis, on each of them; None: of this one."""
    sums = psum((state.n, state.p, state.p_log_p), axis_name)
    return state.replace(**dict(zip(("n", "p", "p_log_p"), sums, strict=True)))


def compute(state: Splits) -> Score:
    """The score, on the host in float64.

    Raises:
      UserError: a split has no image: fewer came than `init` was told.
    """
    state = jax.device_get(state)
    if not state.n.all():
        raise UserError(
            f"Only {state.n.sum()} of {len(state.split_of)} images came, and a split of the "
            "Inception score has none: lower --num."
        )
    p, p_log_p = (x.astype(np.float64).sum(0) for x in (state.p, state.p_log_p))
    n = state.n.astype(np.float64)
    logs = p_log_p / n - [_sum_x_log_x(q) for q in p / n[:, None]]
    return _score(list(logs))
