"""Schedules against their formulas, optimizers by their names, the moving average of weights."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import config as configs
from aigc_jax import optim
from aigc_jax.errors import UserError


def section(**fields):
    config = configs.default().optimizer
    config.update(dict(lr=0.5) | fields)
    return config


def rates(steps, **fields):
    rate = optim.schedule(section(**fields), steps)
    return [float(rate(t)) if callable(rate) else rate for t in range(steps + 1)]


def test_linear_after_a_hold():
    """CycleGAN's: half of the steps flat, then straight to 0."""
    expected = [0.5] * 6 + [0.4, 0.3, 0.2, 0.1, 0.0]
    np.testing.assert_allclose(rates(10, schedule="linear", hold=0.5), expected, atol=1e-6)


def test_cosine_after_a_hold():
    t = np.arange(11)
    expected = np.where(t < 4, 0.5, 0.25 * (1 + np.cos(np.pi * (t - 4) / 6)))
    np.testing.assert_allclose(rates(10, schedule="cosine", hold=0.4), expected, atol=1e-6)


@pytest.mark.parametrize(("hold", "flat"), [(0.0, 2), (0.1, 2), (0.6, 6)])
def test_a_hold_counts_from_the_start_warmup_and_all(hold, flat):
    found = rates(10, schedule="linear", hold=hold, warmup_steps=2)
    np.testing.assert_allclose(found[:2], [0.0, 0.25], atol=1e-6)
    np.testing.assert_allclose(found[2 : flat + 1], 0.5, atol=1e-6)
    np.testing.assert_allclose(np.diff(found[flat:]), -0.5 / (10 - flat), atol=1e-6)
    assert found[-1] == pytest.approx(0, abs=1e-6)


def test_without_a_hold_all_steps_decay():
    np.testing.assert_allclose(rates(4, schedule="linear"), [0.5, 0.375, 0.25, 0.125, 0])
    assert rates(4) == [0.5] * 5
    np.testing.assert_allclose(rates(4, schedule="linear", hold=1.0)[:4], 0.5)
    old = section(schedule="linear")
    del old["hold"]  # of a run from before there was one
    assert float(optim.schedule(old, 4)(2)) == 0.25


def test_an_optimizer_takes_what_it_knows():
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.array([0.1, -2.0, 0.0])}
    for name, theirs in (("sgd", optax.sgd(0.5)), ("adam", optax.adam(0.5, 0.5, 0.999))):
        tx = optim.optimizer(section(name=name), 10)
        new, _ = optim.update(tx, grads, tx.init(params), params)
        expected = optax.apply_updates(params, theirs.update(grads, theirs.init(params))[0])
        np.testing.assert_allclose(new["w"], expected["w"], rtol=1e-6)
    own = optim.optimizer(section(name="sgd"), 10, lr=0.25, b1=None)
    new, _ = optim.update(own, grads, own.init(params), params)
    np.testing.assert_allclose(new["w"], 1 - 0.25 * grads["w"])


def test_a_decay_ends_where_and_when_it_is_told():
    """At `end` of the rate after `decay_steps`, however long the run."""
    t = np.minimum(np.arange(11), 4) / 4
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2
    found = rates(10, schedule="cosine", end=0.1, decay_steps=4)
    np.testing.assert_allclose(found, 0.5 * cosine, atol=1e-6)
    found = rates(10, schedule="linear", end=0.1, decay_steps=4)
    np.testing.assert_allclose(found, 0.5 * (1 - 0.9 * t), atol=1e-6)
    np.testing.assert_allclose(rates(4, schedule="linear", end=0.5)[-1], 0.25)
    held = rates(10, schedule="linear", end=0.2, decay_steps=8, hold=0.5, warmup_steps=2)
    line = 0.5 * np.array([0, 0.5, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(held, line, atol=1e-6)
    old = section(schedule="linear")
    del old["end"], old["decay_steps"]  # of a run from before there were any
    assert float(optim.schedule(old, 4)(4)) == 0.0


def test_annealed_is_half_a_cosine():
    found = [float(optim.annealed(jnp.int32(t), 0.9, 0.99, 8)) for t in (0, 2, 4, 8, 100)]
    turn = [(1 + np.cos(np.pi * share)) / 2 for share in (0, 0.25, 0.5, 1, 1)]
    np.testing.assert_allclose(found, 0.99 - 0.09 * np.array(turn), rtol=1e-6)


@pytest.mark.parametrize("decay_steps", [0, 4])
def test_b2_moves_as_it_is_told(decay_steps):
    """Adam written out, whose bias correction takes the b2 of its step too."""
    fields = dict(lr=0.1, b1=0.5, b2=0.9, b2_end=0.99, decay_steps=decay_steps)
    tx, params = optim.optimizer(section(**fields), 8), {"w": jnp.array([1.0, -2.0])}
    opt, w, m, v = tx.init(params), np.array([1.0, -2.0]), 0.0, 0.0
    for t in range(10):
        grad = np.array([0.3 + 0.1 * t, np.sin(t)])
        params, opt = optim.update(tx, {"w": jnp.float32(grad)}, opt, params)
        share = min(t / (decay_steps or 8), 1)
        b2 = 0.99 - 0.09 * (1 + np.cos(np.pi * share)) / 2
        m, v = 0.5 * m + 0.5 * grad, b2 * v + (1 - b2) * grad**2
        mean, square = m / (1 - 0.5 ** (t + 1)), v / (1 - b2 ** (t + 1))
        w = w - 0.1 * mean / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(params["w"], w, rtol=1e-4)


def test_b2_moves_beside_a_rate_that_does():
    fields = dict(b2_end=0.9, schedule="cosine", b2=0.5)
    tx, params = optim.optimizer(section(**fields), 4), {"w": jnp.ones(2)}
    opt = tx.init(params)
    for t in range(4):
        _, opt = optim.update(tx, params, opt, params)
        seen = opt.hyperparams
        np.testing.assert_allclose(seen["learning_rate"], rates(4, schedule="cosine")[t], rtol=1e-5)
        np.testing.assert_allclose(seen["b2"], optim.annealed(jnp.int32(t), 0.5, 0.9, 4), rtol=1e-5)


def test_an_update_may_be_as_short_as_it_is_told():
    """The step alone: what the optimizer remembers is the same."""
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.array([0.1, -2.0, 0.5])}
    tx = optim.optimizer(section(), 10)
    whole, opt = optim.update(tx, grads, tx.init(params), params)
    short, other = optim.update(tx, grads, tx.init(params), params, jnp.float32(0.25))
    np.testing.assert_allclose(short["w"], 1 + (whole["w"] - 1) / 4, rtol=1e-6)
    np.testing.assert_array_equal(opt[0].nu["w"], other[0].nu["w"])


def test_no_b2_to_move():
    with pytest.raises(UserError, match=r"b2_end: sgd has no b2; leave it out"):
        optim.optimizer(section(name="sgd", b2_end=0.99), 10)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"name": "adan"}, "Unknown optimizer 'adan'. Did you mean 'adam'"),
    ],
)
def test_unknown_names(fields, line):
    with pytest.raises(UserError, match=line):
        optim.optimizer(section(**fields), 10)


def test_averaged_counts_the_images_seen():
    old, new, step = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, jnp.int32(5)
    assert optim.averaged(None, new, step, 8, 100.0, 0.05) is None
    found = optim.averaged(old, new, step, 8, 100.0, 0.05)
    # 40 images seen: a half-life of 2, of which 8 are four.
    np.testing.assert_allclose(found["w"], 1 - 0.5**4, rtol=1e-5)
    late = optim.averaged(old, new, jnp.int32(10_000), 8, 100.0, 0.05)
    np.testing.assert_allclose(late["w"], 1 - 0.5 ** (8 / 100), rtol=1e-4)
    first = optim.averaged(old, new, jnp.int32(0), 8, 100.0, 0.05)
    np.testing.assert_allclose(first["w"], 1)
