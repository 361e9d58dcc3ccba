"""The minibatch standard deviation: by hand, of sub-batches, and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.minibatch_std import minibatch_std


def images(n, side=2, channels=3):
    return np.random.default_rng(0).normal(size=(n, side, side, channels)).astype(np.float32)


def plane(x, **arguments):
    y = np.asarray(minibatch_std(x, **arguments))
    np.testing.assert_array_equal(y[..., :-1], x)
    assert (y[..., -1] == y[:, :1, :1, -1]).all()
    return y[:, 0, 0, -1]


def by_hand(x, size):
    """Group k of n examples holds k, k + n / size, k + 2 n / size, ..."""
    apart = len(x) // size
    groups = [x[k::apart].std(0).mean() for k in range(apart)]
    return np.array([groups[i % apart] for i in range(len(x))])


@pytest.mark.parametrize(("n", "asked", "size"), [(8, 4, 4), (8, 32, 8), (6, 4, 3), (7, 4, 1)])
def test_by_hand(n, asked, size):
    x = images(n)
    np.testing.assert_allclose(plane(x, group_size=asked), by_hand(x, size), atol=1e-4)


@pytest.mark.parametrize("asked", [2, 3, 4, 32])
def test_sub_batches_are_apart(asked):
    x = images(16)
    together = plane(x, group_size=asked, groups=2)
    for k in range(2):
        alone = plane(x[k::2], group_size=asked)
        np.testing.assert_allclose(together[k::2], alone, rtol=1e-6)


@pytest.mark.parametrize(("asked", "groups"), [(4, 1), (4, 2), (32, 2), (2, 2)])
def test_devices_see_the_same_as_one(asked, groups):
    x = images(32)
    weights = np.random.default_rng(1).normal(size=(32, 2, 2, 4)).astype(np.float32)

    def parts(x, weights, axis_name=None):
        def loss(x):
            y = minibatch_std(x, asked, groups, axis_name)
            return (weights * y * y).sum(), y

        return jax.grad(loss, has_aux=True)(x)

    expected = parts(x, weights)
    split = lambda x: x.reshape(8, 4, *x.shape[1:])  # noqa: E731
    spread = jax.pmap(lambda *a: parts(*a, "data"), axis_name="data")(split(x), split(weights))
    for a, b in zip(spread, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a).reshape(b.shape), b, atol=1e-5)


def test_equal_images_have_finite_gradients():
    x = jnp.ones((4, 2, 2, 3))
    first = jax.grad(lambda x: minibatch_std(x, 4).sum())
    second = jax.grad(lambda x: (first(x) ** 2).sum())
    assert np.isfinite(first(x)).all() and np.isfinite(second(x)).all()


def test_half_precision():
    y = minibatch_std(jnp.asarray(images(8), jnp.bfloat16), 4)
    assert y.dtype == jnp.bfloat16
    exact = plane(images(8), group_size=4)
    np.testing.assert_allclose(y[:, 0, 0, -1].astype(jnp.float32), exact, rtol=1e-2)
