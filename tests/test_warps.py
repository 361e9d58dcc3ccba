"""Sampling between pixels, against scipy."""

import numpy as np
import pytest
from scipy import ndimage

from aigc_jax.data import tensorflow, warps


@pytest.mark.parametrize("shape", [(9, 14), (1, 5), (2, 1)])
def test_sampled_like_scipy(shape):
    tf, rng = tensorflow(), np.random.default_rng(0)
    image = rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)
    y, x = (rng.uniform(-3 * n, 3 * n, (6, 7)).astype(np.float32) for n in shape)
    found = warps.sampled(tf, tf.constant(image), y, x).numpy()
    truth = [
        ndimage.map_coordinates(c, [y, x], order=1, mode="mirror") for c in image.T.swapaxes(1, 2)
    ]
    np.testing.assert_allclose(found, np.stack(truth, -1), atol=1e-5)


def test_pixels_themselves_are_exact():
    tf = tensorflow()
    image = np.random.default_rng(0).uniform(-1, 1, (6, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(warps.sampled(tf, image, *warps.grid(tf, [6, 8])), image)


def test_mirrored():
    tf = tensorflow()
    line = warps.mirrored(tf, tf.range(-5, 9), 4).numpy()
    np.testing.assert_array_equal(line, [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2])
