"""Losses against closed forms, penalties against PyTorch's double backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.losses import adversarial, penalties

REAL = np.array([-3.0, -0.5, 0.2, 2.0], np.float32)
FAKE = np.array([1.5, -2.0, 0.1, 0.4], np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize(
    ("name", "d_loss", "g_loss"),
    [
        (
            "non_saturating",
            -np.log(sigmoid(REAL)).mean() - np.log(1 - sigmoid(FAKE)).mean(),
            -np.log(sigmoid(FAKE)).mean(),
        ),
        (
            "least_squares",
            ((REAL - 1) ** 2).mean() / 2 + (FAKE**2).mean() / 2,
            ((FAKE - 1) ** 2).mean() / 2,
        ),
        (
            "hinge",
            np.maximum(1 - REAL, 0).mean() + np.maximum(1 + FAKE, 0).mean(),
            -FAKE.mean(),
        ),
        ("wasserstein", FAKE.mean() - REAL.mean(), -FAKE.mean()),
        (
            "relativistic",
            -np.log([sigmoid(REAL[i] - FAKE[i]) for i in range(4)]).mean(),  # pairs, by index
            -np.log([sigmoid(FAKE[i] - REAL[i]) for i in range(4)]).mean(),
        ),
    ],
)
def test_closed_form(name, d_loss, g_loss):
    loss = adversarial.get(name)
    np.testing.assert_allclose(loss.discriminator(REAL, FAKE), d_loss, rtol=1e-6)
    np.testing.assert_allclose(g_of(loss)(FAKE), g_loss, rtol=1e-6)


def g_of(loss):
    """G's loss of fake logits."""
    return (lambda fake: loss.generator(fake, REAL)) if loss.relativistic else loss.generator


NAMES = [k for k, v in vars(adversarial).items() if isinstance(v, adversarial.AdversarialLoss)]


@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_finite_differences(name):
    loss = adversarial.get(name)
    slopes = jax.grad(loss.discriminator, (0, 1))(REAL, FAKE)
    both = (*slopes, jax.grad(g_of(loss))(FAKE))
    of_real = lambda x: loss.discriminator(x, FAKE)  # noqa: E731
    of_fake = lambda x: loss.discriminator(REAL, x)  # noqa: E731
    places = (of_real, REAL), (of_fake, FAKE), (g_of(loss), FAKE)
    for (value, at), slope in zip(places, both, strict=True):
        for i in range(4):
            step = np.float32(0.02) * np.eye(4, dtype=np.float32)[i]
            measured = (value(at + step) - value(at - step)) / 0.04
            np.testing.assert_allclose(slope[i], measured, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "real", "fake", "least"),
    [
        # Of D that tells all; Mao et al. 2017: b = 1, a = 0; the margin of the hinge.
        ("non_saturating", 40.0, -40.0, 0.0),
        ("least_squares", 1.0, 0.0, 0.0),
        ("hinge", 1.0, -1.0, 0.0),
        ("relativistic", 20.0, -20.0, 0.0),
    ],
)
def test_the_least_that_a_discriminator_pays(name, real, fake, least):
    loss, ones = adversarial.get(name), jnp.ones(4)
    np.testing.assert_allclose(loss.discriminator(real * ones, fake * ones), least, atol=1e-6)
    slopes = jax.grad(loss.discriminator, (0, 1))(1.01 * real * ones, 1.01 * fake * ones - 0.01)
    assert all(np.abs(x).max() < 0.01 for x in slopes)
    assert loss.discriminator(REAL, FAKE) > least


def test_where_real_and_generated_images_are_alike():
    """D can't do better than to say nothing: 2 log 2 (Goodfellow et al. 2014, theorem 1), ..."""
    loss, same = adversarial.get, jnp.zeros(4)
    for name, value, at in (
        ("non_saturating", 2 * np.log(2), 0.0),
        ("least_squares", 0.25, 0.5),
        ("relativistic", np.log(2), 0.0),
        ("hinge", 2.0, 0.0),
        ("wasserstein", 0.0, 0.0),
    ):
        pays = lambda x: loss(name).discriminator(x, x)  # noqa: B023, E731
        np.testing.assert_allclose(pays(same + at), value, rtol=1e-6)
        np.testing.assert_allclose(jax.grad(pays)(same + at), 0, atol=1e-7)
    # Of the relativistic loss every common shift is alike; G and D pay the same.
    shifted = adversarial.relativistic.discriminator(REAL + 3, FAKE + 3)
    np.testing.assert_allclose(shifted, adversarial.relativistic.discriminator(REAL, FAKE), 1e-5)
    np.testing.assert_allclose(g_of(adversarial.relativistic)(REAL), np.log(2), rtol=1e-6)


def test_only_the_relativistic_generator_sees_real_images():
    assert [name for name in NAMES if adversarial.get(name).relativistic] == ["relativistic"]


def test_large_logits_stay_finite():
    huge = jnp.array([1e4, -1e4])
    loss = adversarial.non_saturating
    total = lambda x: loss.discriminator(x, x) + loss.generator(x)  # noqa: E731
    assert jnp.isfinite(jax.grad(total)(huge)).all()


def test_unknown_loss():
    with pytest.raises(UserError, match="Did you mean 'hinge'"):
        adversarial.get("hing")


def test_penalties_of_a_linear_critic():
    w = np.random.default_rng(0).normal(size=(4, 4, 3)).astype(np.float32)
    critic = lambda x: jnp.einsum("bhwc,hwc->b", x, w)  # noqa: E731
    real, fake = jnp.ones((5, 4, 4, 3)), jnp.zeros((5, 4, 4, 3))
    keys = jax.random.split(jax.random.key(0), 5)
    square = (w**2).sum()
    np.testing.assert_allclose(penalties.r1(critic, real), square / 2, rtol=1e-5)
    np.testing.assert_allclose(penalties.r2(critic, fake), square / 2, rtol=1e-5)
    penalty = penalties.gradient_penalty(critic, real, fake, keys)
    np.testing.assert_allclose(penalty, (np.sqrt(square) - 1) ** 2, rtol=1e-5)


def test_gradient_of_penalties_equals_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    w = rng.normal(size=(12, 7)).astype(np.float32)
    v = rng.normal(size=7).astype(np.float32)
    real = rng.normal(size=(5, 2, 2, 3)).astype(np.float32)
    fake = rng.normal(size=(5, 2, 2, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    t = np.array(jax.vmap(jax.random.uniform)(keys))[:, None, None, None]

    def ours(w):
        critic = lambda x: jnp.tanh(x.reshape(5, -1) @ w) @ v  # noqa: E731
        return (
            penalties.gradient_penalty(critic, real, fake, keys)
            + 3 * penalties.r1(critic, real)
            + 5 * penalties.r2(critic, fake)
        )

    tw, tv = torch.tensor(w, requires_grad=True), torch.tensor(v)

    def norms(x):
        x = torch.tensor(x, requires_grad=True)
        out = torch.tanh(x.reshape(5, -1) @ tw) @ tv
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return g.pow(2).sum((1, 2, 3))

    lines = norms(real + t * (fake - real))
    loss = ((lines.sqrt() - 1) ** 2).mean() + 1.5 * norms(real).mean() + 2.5 * norms(fake).mean()
    loss.backward()
    value, grad = jax.value_and_grad(ours)(w)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, tw.grad, rtol=1e-4, atol=1e-5)


def test_gradient_penalty_of_a_dead_critic_has_a_gradient():
    """The norm's slope at 0 is infinite: a plain square root would give NaN here."""
    images, keys = jnp.ones((2, 2, 2, 1)), jax.random.split(jax.random.key(0), 2)

    def loss(w):
        critic = lambda x: (x * w).sum((1, 2, 3))  # noqa: E731
        return penalties.gradient_penalty(critic, images, images, keys)

    assert jnp.isfinite(jax.grad(loss)(0.0))
