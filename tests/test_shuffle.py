"""Moved pixels against loops, and dilated layers against PyTorch."""

import jax
import numpy as np
import pytest

from aigc_jax.layers.conv import conv
from aigc_jax.layers.shuffle import dilated, shuffle, unshuffle


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_blocks_are_channels_row_by_row():
    x = images(2, 4, 6, 3)
    y = unshuffle(x, 2)
    assert y.shape == (2, 2, 3, 12)
    for row, column, i, j in np.ndindex(2, 3, 2, 2):
        block = y[:, row, column, 3 * (2 * i + j) :][:, :3]
        np.testing.assert_array_equal(block, x[:, 2 * row + i, 2 * column + j])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shuffle_is_the_inverse(size):
    x = images(2, 6, 12, 2)
    np.testing.assert_array_equal(shuffle(unshuffle(x, size), size), x)


@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
def test_dilated_is_torchs_dilation(dilation):
    torch = pytest.importorskip("torch")
    x, w = images(2, 7, 10, 3), images(3, 3, 3, 4)
    found = jax.jit(lambda x: dilated(lambda x: conv(x, w), dilation, x))(x)
    nchw = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(w.transpose(3, 2, 0, 1))
    expected = torch.nn.functional.conv2d(*nchw, padding=dilation, dilation=dilation)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), 1e-5, 1e-5)


def test_dilated_takes_several_arrays_and_returns_trees():
    x, y = images(2, 7, 5, 3), images(2, 7, 5, 1)
    found = dilated(lambda a, b: {"sum": a + b, "b": b}, 3, x, y)
    np.testing.assert_array_equal(found["sum"], x + y)
    np.testing.assert_array_equal(found["b"], y)


def test_mistakes():
    with pytest.raises(ValueError, match="2 does not divide 3x4"):
        unshuffle(images(1, 3, 4, 1), 2)
    with pytest.raises(ValueError, match="does not divide 6 channels"):
        shuffle(images(1, 3, 4, 6), 2)
