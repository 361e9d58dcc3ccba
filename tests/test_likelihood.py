"""Likelihoods against torch.distributions, SciPy and sums written out in float64."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.losses import likelihood

NAMES = ("bernoulli", "gaussian", "discretized_logistic", "logistic_mixture")
KEYS = jax.random.split(jax.random.key(0), 4)
LEVELS = np.arange(256) / 127.5 - 1
close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
log_prob = jax.jit(lambda law, x, params: law.log_prob(x, params), static_argnums=0)
observe = jax.jit(lambda law, keys, images: law.observe(keys, images), static_argnums=0)
sample = jax.jit(lambda law, keys, params: law.sample(keys, params), static_argnums=0)
mean_of = jax.jit(lambda law, params: law.mean(params), static_argnums=0)


def eight_bit(shape, seed=0):
    """Images of random levels, all black and all white ones among them."""
    v = np.random.default_rng(seed).integers(0, 256, shape)
    v[..., 0, 0, :], v[..., 0, 1, :] = 0, 255
    return (v / 127.5 - 1).astype(np.float32)


def normal(shape, seed=1, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def bin_mass(x, mean, log_scale):
    """P(x) of one logistic over 256 bins as the papers define it, float64."""
    x, mean = np.float64(x), np.float64(mean)
    inverse = np.exp(-np.clip(np.float64(log_scale), -7, 7))
    upper = np.where(x > 0.999, 1, sigmoid((x + 1 / 255 - mean) * inverse))
    lower = np.where(x < -0.999, 0, sigmoid((x - 1 / 255 - mean) * inverse))
    return upper - lower


def by_hand(x, params, components=10):
    """A pixel's probability under the mixture, x (C,) and params (outputs,): plain sums."""
    p, channels = np.float64(params), len(x)
    logits, rest = p[:components], p[components:].reshape(-1, channels, components)
    weights = np.exp(logits) / np.exp(logits).sum()
    total = 0.0
    for k in range(components):
        mean, log_scale = rest[0, :, k].copy(), rest[1, :, k]
        if channels == 3:
            a, b, c = np.tanh(rest[2, :, k])
            mean[1] += a * x[0]
            mean[2] += b * x[0] + c * x[1]
        total += weights[k] * np.prod([bin_mass(*t) for t in zip(x, mean, log_scale, strict=True)])
    return total


# ---- log-probabilities ----


def test_bernoulli_is_torchs():
    torch = pytest.importorskip("torch")
    x, logits = np.sign(normal((4, 3, 3, 2), 1)), normal((4, 3, 3, 2), 2, 5.0)
    truth = torch.distributions.Bernoulli(logits=torch.from_numpy(logits))
    value = log_prob(likelihood.Bernoulli(2), x, logits)
    close(value, truth.log_prob(torch.from_numpy((x + 1) / 2)).sum((1, 2, 3)))
    close(mean_of(likelihood.Bernoulli(2), logits), 2 * truth.mean - 1, atol=1e-6)


def test_gaussian_is_torchs_and_the_bins():
    torch = pytest.importorskip("torch")
    x, mean, log_scale = (normal((4, 3, 3, 3), i) for i in range(3))
    truth = torch.distributions.Normal(torch.from_numpy(mean), torch.from_numpy(log_scale).exp())
    truth = truth.log_prob(torch.from_numpy(x)).sum((1, 2, 3)) + 27 * math.log(2 / 256)
    close(log_prob(likelihood.Gaussian(3), x, np.concatenate([mean, log_scale], -1)), truth)


def test_gaussian_bounds_the_dequantised_likelihood():
    """E_u log p(v + u) + log width <= log of the density's integral over the bin (Theis, eq. 5)."""
    stats = pytest.importorskip("scipy.stats")
    gaussian, level = likelihood.Gaussian(1), 40
    keys = jax.random.split(jax.random.key(1), 20_000)
    x = observe(gaussian, keys, np.full((20_000, 1, 1, 1), LEVELS[level], np.float32))
    for mean, log_scale in ((-0.66, -4.0), (0.1, -1.0)):
        params = jnp.full((20_000, 1, 1, 2), jnp.array([mean, log_scale]))
        edges = np.array([level, level + 1]) / 128 - 1
        mass = np.diff(stats.norm.cdf(edges, mean, math.exp(log_scale)))[0]
        bound = log_prob(gaussian, x, params).mean()
        assert bound <= math.log(mass) + 1e-4
        close(bound, math.log(mass), atol=0.1)


def test_no_deviation_below_the_floor_is_likelier():
    """On average over the noise of dequantisation, the best mean given."""
    u = np.linspace(0, 1, 10_001)
    x = (40 + u) / 128 - 1
    floor = likelihood.Gaussian.log_scale_floor
    scales = np.exp(floor + np.linspace(-1, 1, 201))
    mean_log_density = -np.log(scales) - ((x - x.mean()) ** 2).mean() / (2 * scales**2)
    assert mean_log_density.argmax() == 100


@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -4.0, -1.0, 1.0, 6.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.003, 0.6, 1.0])
def test_discretized_logistic_over_all_levels(mean, log_scale):
    logistic = likelihood.DiscretizedLogistic(1)
    x = LEVELS.reshape(256, 1, 1, 1).astype(np.float32)
    params = jnp.broadcast_to(jnp.array([mean, log_scale]), (256, 1, 1, 2))
    p = np.exp(np.float64(log_prob(logistic, x, params)))
    close(p.sum(), 1, rtol=3e-5)
    np.testing.assert_allclose(p, bin_mass(LEVELS, mean, log_scale), rtol=2e-4, atol=1e-8)
    off = mean_of(logistic, params[:1]).item() - p @ LEVELS
    assert abs(off) < (3e-4 if log_scale > -5 else 1 / 255)  # the mean before rounding


def test_discretized_logistic_is_exact_in_its_tails():
    """Where both float32 sigmoids are 1: there, 1 - sigmoid(t) is exp(-t)."""
    x, mean, log_scale = LEVELS[150], -0.8, -5.0
    near, far = ((x - mean + side / 255) * math.exp(-log_scale) for side in (-1, 1))
    truth = -near + math.log1p(-math.exp(near - far))
    assert truth < math.log(1e-38)
    x = np.full((1, 1, 1, 1), x, np.float32)
    params = np.array([mean, log_scale], np.float32).reshape(1, 1, 1, 2)
    close(log_prob(likelihood.DiscretizedLogistic(1), x, params), [truth])


@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_mixture_is_the_papers(channels):
    mixture = likelihood.LogisticMixture(channels)
    x = eight_bit((2, 3, 3, channels))
    params = normal((2, 3, 3, mixture.outputs))
    truth = [
        sum(math.log(by_hand(x[b, i, j], params[b, i, j])) for i in range(3) for j in range(3))
        for b in range(2)
    ]
    close(log_prob(mixture, x, params), truth)


def test_logistic_mixture_sums_to_one():
    """Over all 256 levels of grey; in colour over a channel's, the others summed out by steps."""
    mixture = likelihood.LogisticMixture(1, components=3)
    params = jnp.broadcast_to(normal((1, 1, 1, mixture.outputs)), (256, 1, 1, mixture.outputs))
    close(np.exp(log_prob(mixture, LEVELS.reshape(-1, 1, 1, 1), params)).sum(), 1)

    colour = likelihood.LogisticMixture(3, components=2)
    # Scales so large that only the outermost levels have mass: 8 colours are all there is.
    params = np.zeros((1, 1, 1, colour.outputs), np.float32)
    params[..., 2:8] = normal(6, 3, 300.0)
    params[..., 8:14] = 6.5
    params[..., 14:] = normal(6, 4)
    edges = np.array(list(itertools.product([-1, 1], repeat=3)), np.float32).reshape(8, 1, 1, 3)
    total = np.exp(log_prob(colour, edges, jnp.broadcast_to(params, (8, 1, 1, colour.outputs))))
    assert 0.99 < total.sum() <= 1 + 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e2, 1e5])
def test_gradients_stay_finite(name, scale):
    law = likelihood.get(name, 3)
    params = jnp.asarray(normal((4, 3, 3, law.outputs), 5, scale))
    x = observe(law, KEYS, eight_bit((4, 3, 3, 3)))
    value, slope = jax.value_and_grad(lambda p: log_prob(law, x, p).sum())(params)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    images = mean_of(law, params)
    assert jnp.isfinite(images).all() and jnp.abs(images).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope(name):
    law = likelihood.get(name, 1)
    x = observe(law, KEYS[:1], eight_bit((1, 2, 3, 1)))
    params, direction = normal((1, 2, 3, law.outputs), 6), normal((1, 2, 3, law.outputs), 7)
    along = lambda t: log_prob(law, x, params + t * direction)[0]  # noqa: E731
    slope = jax.grad(along)(0.0)
    close(slope, (along(1e-2) - along(-1e-2)) / 2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_parameters_are_read_in_float32(name):
    law = likelihood.get(name, 3)
    x, params = eight_bit((4, 3, 3, 3)), normal((4, 3, 3, law.outputs)).astype(jnp.bfloat16)
    x = observe(law, KEYS, x)
    value = log_prob(law, x, params)
    assert (
        value.dtype == mean_of(law, params).dtype == sample(law, KEYS, params).dtype == jnp.float32
    )
    close(value, log_prob(law, x, params.astype(np.float32)))


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes(name):
    """Of k samples an image, as an importance weighted bound has them."""
    law = likelihood.get(name, 3)
    x = observe(law, KEYS, eight_bit((4, 3, 3, 3)))
    params = normal((2, 4, 3, 3, law.outputs))
    value = log_prob(law, x[None], params)
    close(value, np.stack([log_prob(law, x, p) for p in params]))
    close(mean_of(law, params)[1], mean_of(law, params[1]), atol=1e-6)


# ---- what is observed, drawn, expected ----


def test_bernoulli_binarises():
    law, n = likelihood.Bernoulli(1), 20_000
    keys = jax.random.split(jax.random.key(2), n)
    grey = np.array([-1, -0.5, 0.2, 1], np.float32)
    images = np.broadcast_to(grey.reshape(1, 2, 2, 1), (n, 2, 2, 1))
    x = observe(law, keys, images)
    assert set(np.unique(x)) == {-1.0, 1.0}
    close(x.mean(0).ravel(), grey, atol=5 / math.sqrt(n))
    assert (x[:, 0, 0] == -1).all() and (x[:, 1, 1] == 1).all()  # certain pixels stay


def test_gaussian_dequantises():
    law = likelihood.Gaussian(1)
    keys = jax.random.split(jax.random.key(3), 256)
    x = observe(law, keys, np.broadcast_to(LEVELS[:, None, None, None], (256, 16, 16, 1)))
    v = (np.asarray(x) + 1) * 128
    assert (np.floor(v) == np.arange(256).reshape(-1, 1, 1, 1)).all()
    u = (v - np.floor(v)).ravel()
    close(np.histogram(u, 8, (0, 1))[0] / len(u), 1 / 8, rtol=0.05)
    close(x.mean(), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["discretized_logistic", "logistic_mixture"])
def test_discrete_ones_see_the_image_itself(name):
    images = eight_bit((4, 3, 3, 3))
    assert (observe(likelihood.get(name, 3), KEYS, images) == images).all()


@pytest.mark.parametrize("name", ["gaussian", "bernoulli"])
def test_observations_depend_on_their_own_key(name):
    law, images = likelihood.get(name, 3), eight_bit((4, 3, 3, 3))
    x = observe(law, KEYS, images)
    assert (observe(law, KEYS[2:], images[2:]) == x[2:]).all()
    same = observe(law, KEYS, np.broadcast_to(images[2:3], images.shape))
    assert not (same[0] == same[1]).all()


def draws(law, params, n=40_000):
    params = jnp.broadcast_to(params, (n, 1, 1, law.outputs))
    return np.asarray(sample(law, jax.random.split(jax.random.key(4), n), params)).reshape(n, -1)


def levels(x):
    v = (x.astype(np.float64) + 1) * 127.5
    np.testing.assert_allclose(v, v.round(), atol=1e-3)
    return v.round().astype(int)


def assert_histogram(v, p):
    """Total variation within what as many draws of p itself would show."""
    expected = np.sqrt(p * (1 - p) / len(v)).sum() / 2
    found = np.abs(np.bincount(v, minlength=len(p)) / len(v) - p).sum() / 2
    assert found < 1.3 * expected + 1e-3


def test_bernoulli_samples():
    logit = np.array([0.7], np.float32)
    white = draws(likelihood.Bernoulli(1), logit) > 0
    assert_histogram(white.ravel().astype(int), np.array([sigmoid(-0.7), sigmoid(0.7)]))


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -3.0), (-0.95, -2.0), (0.4, 0.5)])
def test_gaussian_samples(mean, log_scale):
    stats = pytest.importorskip("scipy.stats")
    cdf = stats.norm.cdf(np.arange(257) / 128 - 1, mean, math.exp(log_scale))
    cdf[0], cdf[-1] = 0, 1
    v = levels(draws(likelihood.Gaussian(1), np.array([mean, log_scale], np.float32)))
    assert_histogram(v.ravel(), np.diff(cdf))


def test_gaussian_mean_is_that_of_its_samples():
    law, params = likelihood.Gaussian(1), np.array([0.37, -3.0], np.float32)
    mean = mean_of(law, params.reshape(1, 1, 1, 2)).item()
    close(draws(law, params).mean(), mean, atol=1e-3)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -3.0), (-0.95, -2.0), (0.4, 0.5)])
def test_discretized_logistic_samples(mean, log_scale):
    law = likelihood.DiscretizedLogistic(1)
    v = levels(draws(law, np.array([mean, log_scale], np.float32)))
    assert_histogram(v.ravel(), bin_mass(LEVELS, mean, log_scale))


def test_grey_mixture_samples_and_mean():
    law = likelihood.LogisticMixture(1, components=2)
    params = np.array([0.5, -0.3, -0.6, 0.4, -3.0, -2.0], np.float32)
    p = np.array([by_hand([x], params, 2) for x in LEVELS])
    v = levels(draws(law, params))
    assert_histogram(v.ravel(), p)
    close(mean_of(law, params.reshape(1, 1, 1, -1)).item(), p @ LEVELS, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["bernoulli", "discretized_logistic", "logistic_mixture"])
def test_colour_samples_follow_the_log_probability(name):
    """The mean of d log p / d params over samples of p is 0, for every parameter."""
    law, n = likelihood.get(name, 3), 20_000
    params = normal((1, 1, 1, law.outputs), 8)
    if name == "logistic_mixture":
        params[..., 40:70] -= 2.5  # narrow enough to meet the edges seldom
        params[..., 70:] *= 2  # strong shifts
    x = draws(law, params, n)
    params = jnp.broadcast_to(params, (n, 1, 1, law.outputs))
    total = lambda p: log_prob(law, x.reshape(n, 1, 1, 3), p).sum()  # noqa: E731
    score = np.asarray(jax.jit(jax.grad(total))(params)).reshape(n, -1)
    error = score.std(0) / math.sqrt(n) + 2e-4  # scores of rare events
    assert (np.abs(score.mean(0)) < 4.5 * error).all()
    assert (score.std(0) > 0).all()
    off = np.abs(mean_of(law, params[:1]).ravel() - x.mean(0))
    assert (off < 4.5 * x.std(0) / math.sqrt(n) + 0.004).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_depend_on_their_own_key(name):
    law = likelihood.get(name, 3)
    params = jnp.broadcast_to(normal((1, 3, 3, law.outputs)), (4, 3, 3, law.outputs))
    x = sample(law, KEYS, params)
    assert x.shape == (4, 3, 3, 3)
    assert (sample(law, KEYS[2:], params[2:]) == x[2:]).all()
    assert not (x[0] == x[1]).all()


# ---- names ----


def test_outputs_and_units():
    outputs = {n: [likelihood.get(n, c).outputs for c in (1, 3)] for n in NAMES}
    assert list(outputs.values()) == [[1, 3], [2, 6], [2, 6], [30, 100]]
    units = [likelihood.get(n, 1).unit for n in NAMES]
    assert units == ["nats", "bits/dim", "bits/dim", "bits/dim"]


def test_what_is_wrong_is_named():
    with pytest.raises(UserError, match=r"'gausian'. Did you mean 'gaussian'"):
        likelihood.get("gausian", 1)
    with pytest.raises(UserError, match="1 or 3 channels, not 2: use 'discretized_logistic'"):
        likelihood.get("logistic_mixture", 2)
