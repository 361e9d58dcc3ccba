"""The filter (1, 3, 3, 1) equals zero insertion and a 4x4 convolution, to the second derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.fir import fir_blur, fir_down, fir_up

WAYS = {
    "up": (fir_up, dict(up=2, pad=(2, 1), gain=4), (5, 6)),
    "down": (fir_down, dict(down=2, pad=(1, 1)), (6, 8)),
    "before a strided convolution": (lambda x: fir_blur(x, 2), dict(pad=(2, 2)), (6, 5)),
    "after a transposed one": (lambda x: fir_blur(x, 1, 4.0), dict(pad=(1, 1), gain=4), (9, 7)),
}
ways = pytest.mark.parametrize("name", WAYS)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@ways
def test_equals_zero_insertion_and_a_convolution(name):
    torch = pytest.importorskip("torch")
    from twin_stylegan2 import upfirdn

    function, arguments, side = WAYS[name]
    x = images(2, *side, 3)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    ty = upfirdn(tx, **arguments)
    (gradient,) = torch.autograd.grad(torch.tanh(ty).sum(), tx, create_graph=True)
    (second,) = torch.autograd.grad((gradient**2).sum(), tx)
    of_sum = jax.grad(lambda x: jnp.tanh(function(x)).sum())
    of_penalty = jax.grad(lambda x: (of_sum(x) ** 2).sum())
    ours = jax.jit(lambda x: (function(x), of_sum(x), of_penalty(x)))(x)
    for a, b in zip(ours, (ty, gradient, second), strict=True):
        np.testing.assert_allclose(a, b.detach().permute(0, 2, 3, 1), atol=1e-5)


def test_means_are_kept_inside():
    ones = jnp.ones((1, 8, 8, 1))
    for y in (fir_up(ones), fir_down(ones), fir_blur(ones, 2)):
        np.testing.assert_allclose(y[:, 2:-2, 2:-2], 1, rtol=1e-6)


@ways
def test_bfloat16_stays(name):
    function, _, side = WAYS[name]
    assert jax.eval_shape(function, jnp.ones((1, *side, 2), jnp.bfloat16)).dtype == jnp.bfloat16
