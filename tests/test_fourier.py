"""The Fourier layers against torch.fft; the whole FFC is tested in `test_lama`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers import fourier

KEY = jax.random.key(0)
sides = pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (4, 2)])


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@sides
def test_spectrum_is_torchs(torch, height, width):
    x = normal(2, height, width, 3)
    z = torch.fft.rfft2(torch.tensor(x), dim=(1, 2), norm="ortho").numpy()
    y = jax.jit(fourier.spectrum)(x)
    assert y.shape == (2, height, width // 2 + 1, 6)
    np.testing.assert_allclose(y[..., ::2], z.real, 1e-5, 1e-5)
    np.testing.assert_allclose(y[..., 1::2], z.imag, 1e-5, 1e-5)


@sides
def test_image_is_the_inverse(height, width):
    x = normal(2, height, width, 3)
    np.testing.assert_allclose(fourier.image(fourier.spectrum(x), width), x, 1e-5, 1e-5)


@sides
def test_spectra_of_no_image_are_taken_as_torch_does(torch, height, width):
    """What a ReLU leaves is such a spectrum; the gradient too."""
    y = np.maximum(normal(2, height, width // 2 + 1, 6), 0)
    ty = torch.tensor(y, requires_grad=True)
    pairs = ty.unflatten(-1, (3, 2))
    z = torch.complex(pairs[..., 0], pairs[..., 1])
    expected = torch.fft.irfft2(z, s=(height, width), dim=(1, 2), norm="ortho")
    ct = normal(2, height, width, 3)
    (expected * torch.tensor(ct)).sum().backward()
    found, pullback = jax.vjp(lambda y: fourier.image(y, width), jnp.asarray(y))
    np.testing.assert_allclose(found, expected.detach().numpy(), 1e-5, 1e-5)
    np.testing.assert_allclose(pullback(ct)[0], ty.grad.numpy(), 1e-5, 1e-5)


def test_one_layer_sees_the_whole_image():
    layer = fourier.FourierConv(share=0.5)
    x = normal(1, 16, 16, 8)
    variables = jax.jit(functools.partial(layer.init, train=False))(KEY, x)
    corner = lambda x: layer.apply(variables, x, train=False)[0, 0, 0].sum()  # noqa: E731
    seen = jax.jit(jax.grad(corner))(x)
    far = np.abs(seen[0, 3:, 3:])
    # But where the first ReLU of the transform is 0.
    assert (far[..., 4:] > 0).mean() > 0.5, "the global channels, everywhere"
    assert not np.any(far[..., :4]), "the local ones, nearby"


def test_spectra_are_float32_in_half_precision():
    x = jnp.asarray(normal(1, 4, 4, 4), jnp.bfloat16)
    assert fourier.spectrum(x).dtype == jnp.float32
    layer = fourier.FourierConv(dtype=jnp.bfloat16)
    y, variables = jax.jit(functools.partial(layer.init_with_output, train=False))(KEY, x)
    assert y.dtype == jnp.bfloat16 and bool(jnp.isfinite(y).all())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
