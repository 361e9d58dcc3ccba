"""Luma and colour differences against the matrix of ITU-R BT.601, written out."""

import jax.numpy as jnp
import numpy as np

from aigc_jax.layers.colour import luma, with_luma_of

# Y, Cb, Cr of R, G, B: Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402.
Y = np.array([0.299, 0.587, 0.114])
YCBCR = np.stack([Y, (np.array([0, 0, 1]) - Y) / 1.772, (np.array([1, 0, 0]) - Y) / 1.402])


def images(seed, low=-1.0):
    return np.random.default_rng(seed).uniform(low, 1, (2, 3, 4, 3)).astype(np.float32)


def test_luma():
    x = images(0)
    assert luma(x).shape == (2, 3, 4, 1)
    np.testing.assert_allclose(luma(x)[..., 0], x.astype(np.float64) @ Y, atol=1e-6)
    grey = jnp.linspace(-1, 1, 5).reshape(1, 5, 1, 1)
    np.testing.assert_allclose(luma(jnp.repeat(grey, 3, -1)), grey, atol=1e-6)


def test_luma_of_one_and_colour_of_the_other():
    colours, greys = images(1), images(2)
    mixed = np.asarray(with_luma_of(colours, greys), np.float64)
    wanted = np.concatenate([greys @ YCBCR[:1].T, colours @ YCBCR[1:].T], -1)
    wanted = wanted @ np.linalg.inv(YCBCR).T
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)
    np.testing.assert_allclose(with_luma_of(colours, colours), colours, atol=1e-6)
    assert np.abs(with_luma_of(images(1, 0.9), -images(2, 0.9))).max() < 2
