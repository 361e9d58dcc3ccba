"""A modulated convolution is one whose every example has weights of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers.modulated import ModulatedConv, demodulation, modulated_conv

KINDS = {
    "3x3": (3, True, False),
    "3x3, up": (3, True, True),
    "3x3, not demodulated": (3, False, False),
    "1x1, not demodulated": (1, False, False),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(kind, dtype=jnp.float32):
    size, demodulate, up = KINDS[kind]
    module = ModulatedConv(5, size, demodulate, up, dtype)
    x, w = normal(0, 3, 4, 6, 7), normal(1, 3, 8)
    return module, module.init(jax.random.key(0), x, w), x, w


@kinds
def test_equals_grouped_convolutions_to_the_second_derivative(kind):
    torch = pytest.importorskip("torch")
    import twin_stylegan2 as twin

    size, demodulate, up = KINDS[kind]
    module, variables, x, w = build(kind)
    network = twin.ModulatedConv(7, 5, 8, size, demodulate, up)
    twin.copy_weights(variables, network)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tw = torch.tensor(w, requires_grad=True)
    ty = network(tx, tw)
    (gradient,) = torch.autograd.grad(torch.tanh(ty / 4).sum(), tw, create_graph=True)
    (gradient**2).sum().backward()

    def penalty(variables, x, w):
        of_w = jax.grad(lambda w: jnp.tanh(module.apply(variables, x, w) / 4).sum())
        return (of_w(w) ** 2).sum()

    y, (dv, dx) = jax.jit(
        lambda *a: (module.apply(*a), jax.grad(penalty, (0, 1))(*a))
    )(variables, x, w)  # fmt: skip
    near = dict(atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(y, ty.detach().permute(0, 2, 3, 1), **near)
    np.testing.assert_allclose(dx, tx.grad.permute(0, 2, 3, 1), **near)
    kernel = network.kernel.grad.permute(2, 3, 1, 0)
    np.testing.assert_allclose(dv["params"]["kernel"], kernel, **near)
    affine = network.affine.kernel.grad.T
    np.testing.assert_allclose(dv["params"]["affine"]["kernel"], affine, **near)


def test_demodulated_weights_have_norm_one():
    kernel, style = normal(0, 3, 3, 7, 5), normal(1, 2, 7)
    own = kernel[None] * style.reshape(2, 1, 1, 7, 1)
    norms = np.sqrt((own**2).sum((1, 2, 3)))
    np.testing.assert_allclose(demodulation(kernel, style) * norms, 1, rtol=1e-5)


def test_outputs_keep_their_size():
    x = normal(0, 8, 16, 16, 64)
    style = 3 + normal(1, 8, 64)
    y = modulated_conv(x, normal(2, 3, 3, 64, 32), style)[:, 1:-1, 1:-1]
    up = modulated_conv(x, normal(2, 3, 3, 64, 32), style, up=True)
    assert abs(y.std() - 1) < 0.05 and up.shape == (8, 32, 32, 32)


@kinds
def test_half_precision(kind):
    module, variables, x, w = build(kind)
    exact = module.apply(variables, x, w)
    half = build(kind, jnp.bfloat16)[0].apply(variables, x, w)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.03 * float(exact.std()) * 3)
