"""Terms of variational bounds against torch.distributions, closed forms and sums by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax.losses import variational

close = functools.partial(np.testing.assert_allclose, rtol=1e-5)


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


MEAN, LOG_SCALE = (normal((2, 3, 5), i) for i in (1, 2))


def test_divergence_is_torchs():
    torch = pytest.importorskip("torch")
    law = torch.distributions
    q = law.Normal(torch.from_numpy(MEAN), torch.from_numpy(LOG_SCALE).exp())
    p = law.Normal(torch.zeros(2, 3, 5), torch.ones(2, 3, 5))
    kl = law.kl_divergence(q, p)
    close(variational.kl_standard_normal(MEAN, LOG_SCALE), kl, atol=1e-6)


def test_kl_near_the_prior_keeps_its_digits():
    """KL(N(m, e^s) || N(0, 1)) = (m^2 + 2 s^2) / 2 + O(s^3): 1e-6 here, next to terms of 1."""
    mean, log_scale = np.float32(1e-3), np.float32(2e-4)
    truth = (np.float64(mean) ** 2 + np.expm1(2 * np.float64(log_scale))) / 2 - log_scale
    close(variational.kl_standard_normal(mean, log_scale), truth, rtol=1e-3)
    assert variational.kl_standard_normal(jnp.zeros(()), jnp.zeros(())) == 0


def test_kl_is_the_mean_log_ratio():
    n = 200_000
    mean, log_scale = MEAN[0, :1], 0.5 * LOG_SCALE[0, :1]
    z = mean + np.exp(log_scale) * normal((n, 5), 7)
    ratio = stats.norm.logpdf(z, mean, np.exp(log_scale)).sum(-1) - stats.norm.logpdf(z).sum(-1)
    kl = variational.kl_standard_normal(mean, log_scale).sum()
    assert abs(ratio.mean() - kl) < 4 * ratio.std() / math.sqrt(n)


def test_importance_bound():
    log_w = normal((7, 3), 3) * 5
    truth = np.log(np.exp(np.float64(log_w)).mean(0))
    close(variational.importance_bound(log_w), truth)
    close(variational.importance_bound(log_w - 1000), truth - 1000)  # exp(-1000) is 0 in float32
    assert (variational.importance_bound(log_w[:1]) == log_w[0]).all()


def test_importance_bounds_gradient_weighs_the_samples():
    log_w = normal((7, 3), 4) * 5
    weights = np.exp(np.float64(log_w))
    slope = jax.grad(lambda w: variational.importance_bound(w).sum())(log_w)
    close(slope, weights / weights.sum(0), atol=1e-7)


KL = np.array([[0.3, 0.0, 0.9], [0.5, 0.1, 0.5]], np.float32)  # means .4, .05, .7


@pytest.mark.parametrize("nats", [0.0, 0.1, 0.5, 2.0])
def test_free_bits_clamp_each_units_mean(nats):
    value, slope = jax.value_and_grad(variational.free_bits)(KL, nats)
    mean = KL.mean(0)
    close(value, np.maximum(mean, nats).sum())
    close(slope, np.broadcast_to((mean > nats) / 2, (2, 3)))


def test_no_free_bits_is_no_clamp():
    """A sampled KL may be negative: without free bits it counts as it is, and has its gradient."""
    kl = np.array([[0.3, -0.4], [0.1, 0.2]], np.float32)
    value, slope = jax.value_and_grad(variational.free_bits)(kl, 0.0)
    close(value, 0.1)
    close(slope, np.full((2, 2), 0.5))


def test_free_bits_decide_by_all_devices():
    """On 8 devices, each with other means than the whole batch: same value, same gradient."""
    kl = np.abs(normal((16, 4), 5)) * np.array([0.1, 0.5, 1.0, 2.0], np.float32)
    nats = float(np.median(kl.mean(0)))
    decided = jax.pmap(
        jax.value_and_grad(functools.partial(variational.free_bits, nats=nats, axis_name="data")),
        axis_name="data",
    )
    value, slope = decided(kl.reshape(8, 2, 4))
    whole, gradient = jax.value_and_grad(variational.free_bits)(kl, nats)
    close(value.mean(), whole)
    close(slope.reshape(16, 4) / 8, gradient)
    assert 0 < (gradient[0] > 0).sum() < 4
