"""A codebook for vector quantisation, learned by moving averages.

Van den Oord et al. 2017, appendix A.1: codes are not trained by gradients, each follows the mean of
the vectors that chose it. All functions are pure; those that look across examples take `axis_name`
and give every device the same codebook.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from aigc_jax.parallel import all_examples, psum
from aigc_jax.types import Array

_HIGHEST = lax.Precision.HIGHEST


class Codebook(struct.PyTreeNode):
    """K codes of D numbers, and what their update carries from step to step, all float32.

    Attributes:
      embeddings: (K, D), the codes.
      counts: (K,), how many vectors of a batch choose each code: a moving average, unbiased.
      sums: (K, D), the sum of those vectors, likewise.
      steps: () int32, updates so far.
    """

    embeddings: Array
    counts: Array
    sums: Array
    steps: Array


def init(rng: Array, size: int, dim: int) -> Codebook:
    """A codebook of (size, dim), uniform with variance 1 / dim; `start` gives it real vectors."""
    return Codebook(
        embeddings=jax.random.uniform(rng, (size, dim), minval=-1) * (3 / dim) ** 0.5,
        counts=jnp.zeros(size),
        sums=jnp.zeros((size, dim)),
        steps=jnp.zeros((), jnp.int32),
    )


def nearest(codebook: Codebook, z: Array) -> Array:
    """The code nearest to each vector: z (..., D) -> (...) int32; of equals, the first."""
    vectors = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
    product = jnp.einsum("nd,kd->nk", vectors, codebook.embeddings, precision=_HIGHEST)
    # |z - e|^2 without |z|^2, which is the same for every code.
    distance = jnp.sum(codebook.embeddings**2, -1)[None] - 2 * product
    argmin = lax.platform_dependent(distance, cpu=_argmin_by_groups, default=_argmin)
    return argmin.reshape(z.shape[:-1])


def _argmin(x: Array) -> Array:
    return jnp.argmin(x, -1).astype(jnp.int32)


def _argmin_by_groups(x: Array) -> Array:
    """`_argmin` of (N, K), four times as fast on CPU, where XLA vectorises min but not argmin."""
    groups = x.reshape(len(x), -1, math.gcd(x.shape[1], 16))
    group = _argmin(groups.min(-1))
    inside = jnp.take_along_axis(groups, group[:, None, None], 1)[:, 0]
    return group * groups.shape[-1] + _argmin(inside)


def lookup(codebook: Codebook, codes: Array) -> Array:
    """The vectors of codes (...) int32 in [0, K): (..., D) float32."""
    return codebook.embeddings[codes]


def draw(z: Array, num: int, rng: Array, axis_name: str | None = None) -> Array:
    """`num` of the global batch's vectors at random: z (..., D) -> (num, D).

    No vector is drawn twice before all are drawn once.
    """
    z = all_examples(z.reshape(-1, z.shape[-1]).astype(jnp.float32), axis_name)
    rows = jax.random.permutation(rng, len(z))
    return z[rows[jnp.arange(num) % len(z)]]


def start(codebook: Codebook, fresh: Array) -> Codebook:
    """The codebook; before its first update, with `fresh` (K, D) for its codes."""
    first = codebook.steps == 0
    return codebook.replace(embeddings=jnp.where(first, fresh, codebook.embeddings))


def update(
    codebook: Codebook,
    z: Array,
    codes: Array,
    fresh: Array,
    decay: float = 0.99,
    epsilon: float = 1e-5,
    revive_below: float = 0.0,
    axis_name: str | None = None,
) -> tuple[Codebook, Array]:
    """One step of the moving averages, then new life for codes that hardly any vector chooses.

    Averages are weighted as Adam's, without bias towards their start at zero. Codes are the
    averaged sums over the averaged counts; `epsilon` smooths these, so that a code which nothing
    has chosen for long fades to 0. With `revive_below`, a code whose average count falls below that
    share of even use becomes the vector that `fresh` has for it, with that much weight in both
    averages, lest the old sum draws it back (Dhariwal et al. 2020, Jukebox).

    Args:
      z: (..., D), this device's vectors.
      codes: (...) int32, what they chose.
      fresh: (K, D) vectors of the global batch, see `draw`.
      decay: of the averages, per step.
      revive_below: 0 revives none.

    Returns:
      the codebook and how many of its codes were revived, () int32.
    """
    size = len(codebook.embeddings)
    z, codes = z.reshape(-1, z.shape[-1]).astype(jnp.float32), codes.reshape(-1)
    members = jax.nn.one_hot(codes, size, axis=0)
    batch_sums = jnp.einsum("kn,nd->kd", members, z, precision=_HIGHEST)
    count, batch_sums = psum((members.sum(1), batch_sums), axis_name)

    steps = codebook.steps + 1
    rate = (1 - decay) / (1 - decay ** steps.astype(jnp.float32))
    counts = codebook.counts + rate * (count - codebook.counts)
    sums = codebook.sums + rate * (batch_sums - codebook.sums)

    floor = revive_below * count.sum() / size
    dead = counts < floor
    counts = jnp.where(dead, floor, counts)
    sums = jnp.where(dead[:, None], floor * fresh, sums)
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + size * epsilon) * total
    embeddings = jnp.where(dead[:, None], fresh, sums / smoothed[:, None])
    return Codebook(embeddings, counts, sums, steps), dead.sum()


def histogram(codes: Array, size: int, axis_name: str | None = None) -> Array:
    """How often each code occurs: codes (...) int32 -> (size,) float32."""
    return psum(jax.nn.one_hot(codes.reshape(-1), size, axis=0).sum(1), axis_name)


def perplexity(counts: Array) -> Array:
    """exp of the entropy of counts (K,): from 1, one code, to K, all of them evenly; a scalar."""
    p = counts / counts.sum()
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p)))
