"""Penalties of a convolutional critic and their gradients, against PyTorch's double backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.conv import conv
from aigc_jax.losses import penalties

KEYS = jax.random.split(jax.random.key(0), 4)


def drawn(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


REAL, FAKE = drawn(4, 8, 8, 3, seed=1), drawn(4, 8, 8, 3, seed=2)
PARAMS = {
    "first": drawn(3, 3, 3, 5, seed=3, scale=0.3),
    "bias": drawn(5, seed=4),
    "second": drawn(3, 3, 5, 6, seed=5, scale=0.3),
    "last": drawn(4 * 4 * 6, seed=6, scale=0.3),
}


def critic(params, x):
    """Softplus, whose second derivative counts, then a leaky ReLU, whose slope is all it has."""
    x = jax.nn.softplus(conv(x, params["first"], 1, 1) + params["bias"].reshape(1, 1, 1, -1))
    x = jax.nn.leaky_relu(conv(x, params["second"], 2, 1), 0.2)
    return x.reshape(len(x), -1) @ params["last"]


def theirs(torch, params, x):
    functional = torch.nn.functional
    nchw = lambda w: w.permute(3, 2, 0, 1)  # noqa: E731
    x = functional.conv2d(x.permute(0, 3, 1, 2), nchw(params["first"]), params["bias"], 1, 1)
    x = functional.conv2d(functional.softplus(x), nchw(params["second"]), None, 2, 1)
    return functional.leaky_relu(x, 0.2).permute(0, 2, 3, 1).flatten(1) @ params["last"]


def lines():
    t = np.asarray(jax.vmap(jax.random.uniform)(KEYS)).reshape(4, 1, 1, 1)
    return REAL + t * (FAKE - REAL)


@pytest.mark.parametrize(
    ("name", "args", "images", "of_squares"),
    [
        ("r1", (REAL,), lambda: REAL, lambda squares: squares.mean() / 2),
        ("r2", (FAKE,), lambda: FAKE, lambda squares: squares.mean() / 2),
        ("gradient_penalty", (REAL, FAKE, KEYS), lines, lambda s: ((s.sqrt() - 1) ** 2).mean()),
    ],
)
def test_penalties_are_pytorchs(name, args, images, of_squares):
    torch = pytest.importorskip("torch")
    weights = {k: torch.tensor(w, requires_grad=True) for k, w in PARAMS.items()}
    x = torch.tensor(images(), requires_grad=True)
    (slope,) = torch.autograd.grad(theirs(torch, weights, x).sum(), x, create_graph=True)
    expected = of_squares(slope.square().sum((1, 2, 3)))
    expected.backward()

    def ours(params):
        return getattr(penalties, name)(lambda x: critic(params, x), *args)

    value, grads = jax.jit(jax.value_and_grad(ours))(PARAMS)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for k, w in weights.items():
        np.testing.assert_allclose(grads[k], w.grad, rtol=1e-3, atol=1e-5, err_msg=k)
        assert np.abs(grads[k]).max() > 1e-3


def test_weighted_leaves_out_what_weighs_nothing():
    """And folds the keys, which are used elsewhere as they are."""
    linear = lambda x: jnp.sum(x**2, (1, 2, 3)) / 8  # noqa: E731
    off = {"gradient_penalty": 0.0, "r1": 0.0, "r2": 0.0}
    assert penalties.weighted(linear, REAL, FAKE, KEYS, off) == (0, {})
    weights = {"gradient_penalty": 2.0, "r1": 3.0, "r2": 0.0}
    total, terms = penalties.weighted(linear, REAL, FAKE, KEYS, weights)
    keys = jnp.stack([jax.random.fold_in(key, 1) for key in KEYS])
    assert terms.keys() == {"gradient_penalty", "r1"}
    np.testing.assert_array_equal(terms["r1"], penalties.r1(linear, REAL))
    np.testing.assert_allclose(terms["r1"], (REAL**2).sum((1, 2, 3)).mean() / 32, rtol=1e-5)
    of_lines = penalties.gradient_penalty(linear, REAL, FAKE, keys)
    np.testing.assert_allclose(terms["gradient_penalty"], of_lines, rtol=1e-6)
    np.testing.assert_allclose(total, 2 * of_lines + 3 * terms["r1"], rtol=1e-6)
