"""Equalised learning rates: what is stored, what is used, and what Adam makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.conv import Conv
from aigc_jax.layers.equalized import EqualConv, EqualDense, equalized, leaky, unit_moment


@pytest.mark.parametrize("multiplier", [1.0, 0.01])
def test_dense_stores_large_weights_and_uses_small_ones(multiplier):
    x = np.random.default_rng(0).normal(size=(256, 200)).astype(np.float32)
    module = EqualDense(300, multiplier, bias=1.0)
    y, variables = module.init_with_output(jax.random.key(0), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (200, 300) and kernel.dtype == jnp.float32
    assert abs(kernel.std() * multiplier - 1) < 0.01
    np.testing.assert_array_equal(bias, np.ones(300))
    expected = x @ kernel * (multiplier / np.sqrt(200)) + multiplier
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert abs(y.std() - 1) < 0.02


def test_convolution():
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 32)).astype(np.float32)
    y, variables = EqualConv(64).init_with_output(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert abs(kernel.std() - 1) < 0.01
    plain = Conv(64).apply({"params": {"kernel": kernel, "bias": jnp.zeros(64)}}, x)
    np.testing.assert_allclose(y, plain / np.sqrt(9 * 32), atol=1e-5)


def test_hook_scales_by_the_fan_in():
    kernel = jnp.ones((3, 3, 4, 7))
    np.testing.assert_allclose(equalized(0.5)(None, kernel), 0.5 / 6, rtol=1e-6)


def test_gradient_is_scaled_as_the_weight():
    module, x = EqualDense(3, 0.01), jnp.ones((2, 16))
    params = module.init(jax.random.key(0), x)["params"]
    gradient = jax.grad(lambda p: module.apply({"params": p}, x).sum())(params)
    np.testing.assert_allclose(gradient["kernel"], 2 * 0.01 / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient["bias"], 2 * 0.01, rtol=1e-6)


def test_half_precision():
    y, variables = EqualDense(8, dtype=jnp.bfloat16).init_with_output(
        jax.random.key(0), jnp.ones((2, 4))
    )
    assert y.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_leaky_and_unit_moment():
    x = jnp.array([[-1.0, 2.0]])
    np.testing.assert_allclose(leaky(x), [[-0.2 * 2**0.5, 2 * 2**0.5]], rtol=1e-6)
    np.testing.assert_allclose(leaky(x, 1.0), [[-0.2, 2]], rtol=1e-6)
    y = unit_moment(jax.random.normal(jax.random.key(0), (5, 64)) * 7)
    np.testing.assert_allclose((y * y).mean(-1), 1, rtol=1e-5)
    assert np.isfinite(unit_moment(jnp.zeros((1, 4)))).all()
