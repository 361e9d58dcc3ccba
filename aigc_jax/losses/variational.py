"""Terms of variational bounds (Kingma & Welling 2014; Burda et al. 2016), in nats."""

import math

import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp

from aigc_jax.parallel import pmean
from aigc_jax.types import Array


def kl_standard_normal(mean: Array, log_scale: Array) -> Array:
    """KL(N(mean, exp(log_scale)^2) || N(0, 1)) of each unit, in the shape of `mean`.

    Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean * mean + jnp.expm1(2 * log_scale)) - log_scale


def importance_bound(log_w: Array) -> Array:
    """log of the mean importance weight over the first axis, (k, ...) -> (...).

    A lower bound of log p(x) for log_w = log p(x, z) - log q(z | x), tighter with every sample; its
    gradient weighs the samples by their normalised weights (Burda et al. 2016, eq. 8 and 13).
    """
    return logsumexp(log_w, 0) - math.log(len(log_w))


def free_bits(kl: Array, nats: float, axis_name: str | None = None) -> Array:
    """The mean KL of a batch, of which each unit pays `nats` at least: a scalar.

    sum_j max(nats, mean_i kl_ij), its gradient that of the units above `nats` alone (Kingma et al.
    2016, Improving variational inference with inverse autoregressive flow, appendix C.8).

    Args:
      kl: (B, D), of each example and unit.
      axis_name: the mean that decides is over the examples of all devices.
    """
    mean = kl.mean(0)
    if not nats:  # a sampled divergence may be negative
        return mean.sum()
    return jnp.sum(jnp.where(pmean(lax.stop_gradient(mean), axis_name) > nats, mean, nats))
