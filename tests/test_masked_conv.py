"""Partial convolutions against their definition pixel by pixel, gated ones against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.conv import conv
from aigc_jax.layers.masked_conv import GatedConv, PartialConv, partial_conv

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def holes(*shape, share=0.6, seed=1):
    """Many small holes, and one that no window of 5 sees through."""
    known = np.random.default_rng(seed).uniform(size=shape) < share
    known[:, :6, :6] = 0
    return known.astype(np.float32)


def by_definition(x, mask, kernel, stride, padding):
    """Liu et al., eq. 1 and 2, in float64: sum(1) / sum(M) over a window and its channels."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    mask = np.broadcast_to(mask, x.shape)
    edges = (0, 0), (padding, padding), (padding, padding), (0, 0)
    x, mask = np.pad(x * mask, edges), np.pad(mask, edges)
    k = kernel.shape[0]
    h, w = ((n - k) // stride + 1 for n in x.shape[1:3])
    y, new = np.zeros((len(x), h, w, kernel.shape[-1])), np.zeros((len(x), h, w, 1))
    for b, i, j in np.ndindex(len(x), h, w):
        place = b, slice(i * stride, i * stride + k), slice(j * stride, j * stride + k)
        if mask[place].sum():
            seen = np.tensordot(x[place], kernel, 3)
            y[b, i, j] = seen * mask[place].size / mask[place].sum()
            new[b, i, j] = 1
    return y, new


@pytest.mark.parametrize("mask_channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 1, 0), (5, 2, 2), (1, 1, 0)]
)
def test_partial_conv_is_the_definition(size, stride, padding, mask_channels):
    x, kernel = normal(2, 11, 9, 3), normal(size, size, 3, 4)
    mask = holes(2, 11, 9, mask_channels)
    found = jax.jit(partial_conv, static_argnums=(3, 4))(x, mask, kernel, stride, padding)
    y, new = by_definition(x, mask, kernel, stride, padding)
    assert 0 < new.mean() < 1
    np.testing.assert_allclose(found[0], y, 1e-5, 1e-5)
    np.testing.assert_array_equal(found[1], new)


def test_without_holes_it_is_a_convolution_but_at_the_border():
    x, kernel = normal(2, 8, 8, 3), normal(3, 3, 3, 4)
    y, new = partial_conv(x, np.ones((2, 8, 8, 1), np.float32), kernel)
    plain = conv(x, kernel)
    np.testing.assert_allclose(y[:, 1:-1, 1:-1], plain[:, 1:-1, 1:-1], 1e-5, 1e-5)
    np.testing.assert_allclose(y[:, 0, 0], plain[:, 0, 0] * 9 / 4, 1e-5, 1e-5)
    np.testing.assert_array_equal(new, np.ones((2, 8, 8, 1)))


def test_what_holes_hide_changes_nothing():
    x, mask = normal(2, 12, 12, 3), holes(2, 12, 12, 1)
    layer = PartialConv(4)
    variables = layer.init(KEY, x, mask)
    run = jax.jit(lambda x: layer.apply(variables, x, mask)[0])
    np.testing.assert_array_equal(run(x), run(np.where(mask, x, 1e4)))
    gradient = jax.grad(lambda x: (run(x) ** 2).sum())(jnp.asarray(x))
    assert np.all(gradient[np.broadcast_to(mask == 0, x.shape)] == 0)
    assert np.all(np.isfinite(gradient)) and np.any(gradient)


def test_biases_are_added_where_anything_was_known():
    x, mask = normal(2, 12, 12, 3), holes(2, 12, 12, 1)
    params = {"kernel": normal(3, 3, 3, 4), "bias": normal(4, seed=5)}
    y, new = PartialConv(4).apply({"params": params}, x, mask)
    expected, known = by_definition(x, mask, params["kernel"], 1, 1)
    np.testing.assert_allclose(y, expected + params["bias"].reshape(1, 1, 1, 4) * known, 1e-4, 1e-5)
    assert np.all(np.asarray(y)[np.broadcast_to(np.asarray(new) == 0, y.shape)] == 0)
    without = PartialConv(4, use_bias=False).init(KEY, x, mask)["params"]
    assert set(without) == {"kernel"}


@pytest.mark.parametrize("activation", ["elu", None])
def test_gated_conv_is_torchs(activation):
    torch = pytest.importorskip("torch")
    layer = GatedConv(4, stride=2, padding=1, activation=activation and jax.nn.elu)
    x = normal(2, 8, 6, 3)
    params = layer.init(KEY, x)["params"]
    params = jax.tree.map(lambda a: normal(*a.shape, seed=7) / 3, params)
    kernel, bias = params["Conv_0"]["kernel"], params["Conv_0"]["bias"]
    arrays = (
        torch.tensor(a) for a in (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), bias)
    )
    both = torch.nn.functional.conv2d(*arrays, stride=2, padding=1)
    value = torch.nn.functional.elu(both[:, :4]) if activation else both[:, :4]
    expected = (value * torch.sigmoid(both[:, 4:])).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, 1e-4, 1e-5)


def test_half_precision_keeps_masks_exact():
    x, mask = normal(2, 12, 12, 3), holes(2, 12, 12, 1)
    layer = PartialConv(4, dtype=jnp.bfloat16)
    y, new = layer.apply(layer.init(KEY, x, mask), x, mask)
    assert y.dtype == jnp.bfloat16 and new.dtype == jnp.float32
    np.testing.assert_array_equal(new, by_definition(x, mask, normal(3, 3, 3, 4), 1, 1)[1])
