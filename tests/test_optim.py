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
