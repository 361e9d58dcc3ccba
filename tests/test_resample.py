"""Binomial filters against PyTorch's convolutions with them, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.resample import blur_down, blur_up

SHAPES = [(8, 8), (7, 5), (2, 9), (6, 4)]


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("function", "name"), [(blur_down, "Down"), (blur_up, "Up")])
def test_values_and_gradients_equal_torchs(shape, function, name):
    twins = pytest.importorskip("torch_twins")
    layer, x = getattr(twins, name)(3), random(2, *shape, 3)
    tx = twins.nchw(x).requires_grad_()
    expected = layer(tx)
    ct = np.random.default_rng(1).normal(size=twins.nhwc(expected).shape).astype(np.float32)
    (expected * twins.nchw(ct)).sum().backward()
    y, pullback = jax.vjp(function, x)
    np.testing.assert_allclose(y, twins.nhwc(expected), 1e-5, 1e-6)
    np.testing.assert_allclose(pullback(jnp.asarray(ct))[0], twins.nhwc(tx.grad), 1e-5, 1e-6)


def test_a_row_by_hand():
    row = jnp.asarray([0.0, 4, 8, 0]).reshape(1, 1, 4, 1) * jnp.ones((1, 4, 1, 1))
    np.testing.assert_allclose(blur_down(row)[0, 0, :, 0], [2, 5])
    np.testing.assert_allclose(blur_up(row)[0, 0, :, 0], [0, 1, 3, 5, 7, 6, 2, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_constants_stay_and_dtypes_do(shape):
    x = jnp.full((1, *shape, 2), 3, jnp.bfloat16)
    down, up = blur_down(x), blur_up(x)
    assert down.shape == (1, -(-shape[0] // 2), -(-shape[1] // 2), 2)
    assert up.shape == (1, 2 * shape[0], 2 * shape[1], 2)
    assert down.dtype == up.dtype == jnp.bfloat16
    assert np.all(np.asarray(down) == 3) and np.all(np.asarray(up) == 3)
