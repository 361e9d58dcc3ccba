"""Power spectra against a sum written out, and sharpness on photographs that are blurred."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.signal import get_window

from aigc_jax.errors import UserError
from aigc_jax.metrics.spectrum import checkerboard, power_spectrum, sharpness


@functools.cache
def photographs():
    """(32, 64, 64, 3) in [-1, 1]: tiles of two photographs."""
    datasets = pytest.importorskip("sklearn.datasets")
    tiles = [
        image[y : y + 64, x : x + 64]
        for image in datasets.load_sample_images().images
        for y, x in itertools.product(range(0, 400, 100), range(0, 600, 150))
    ]
    return (np.stack(tiles) / 127.5 - 1).astype(np.float32)


def blurred(images, sigma):
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0))


def brute_force(image):
    """(N, N, C) -> (N // 2 + 1,), by the definition, in float64."""
    n = len(image)
    grey = image.astype(np.float64).mean(-1)
    window = np.outer(get_window("hann", n), get_window("hann", n))
    grey = (grey - (grey * window).sum() / window.sum()) * window
    wave = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
    power = np.abs(wave @ grey @ wave) ** 2 / (window**2).sum()
    sums, counts = np.zeros(2 * n), np.zeros(2 * n)
    for i, j in itertools.product(range(n), range(n)):
        radius = round((min(i, n - i) ** 2 + min(j, n - j) ** 2) ** 0.5)
        sums[radius] += power[i, j]
        counts[radius] += 1
    return sums[: n // 2 + 1] / counts[: n // 2 + 1]


@pytest.mark.parametrize("side", [8, 15, 32])
def test_it_is_the_definition(side):
    rng = np.random.default_rng(0)
    images = (0.5 + rng.normal(size=(3, side, side, 2)).cumsum(1)).astype(np.float32)
    actual = jax.jit(power_spectrum)(images)
    expected = np.stack([brute_force(image) for image in images])
    assert actual.shape == (3, side // 2 + 1) and actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_white_noise_has_its_variance_everywhere():
    noise = 0.3 * np.random.default_rng(0).normal(size=(500, 32, 32, 1)).astype(np.float32)
    power = power_spectrum(noise).mean(0)
    assert abs(power[0]) < 1e-9
    np.testing.assert_allclose(power[2:], 0.09, rtol=0.05)


def test_a_wave_is_found_at_its_frequency_whatever_its_direction():
    y, x = np.mgrid[:48, :48] * 2 * np.pi / 48
    waves = np.stack([np.cos(10 * x), np.cos(10 * y + 1), np.cos(6 * x + 8 * y)])[..., None]
    power = power_spectrum(waves.astype(np.float32) + 3)
    assert (power.argmax(1) == 10).all()
    assert (power[:, [5, 15, 20]] < 1e-6 * power[:, 10:11]).all()


def test_natural_images_fall_about_as_one_over_the_square():
    power = np.asarray(power_spectrum(photographs()).mean(0))
    radius = np.arange(3, 17)
    slope = np.polyfit(np.log(radius), np.log(power[radius]), 1)[0]
    assert -3.5 < slope < -1.5


def test_channels_are_averaged():
    x = photographs()[:2]
    grey = x.mean(-1, keepdims=True)
    np.testing.assert_allclose(power_spectrum(x), power_spectrum(grey), rtol=1e-3, atol=1e-7)


def test_sharpness_falls_with_blur():
    real = power_spectrum(photographs())
    sigmas = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0]
    values = [sharpness(real, power_spectrum(blurred(photographs(), s))) for s in sigmas]
    assert values[0] == 1
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] < 1e-3


def test_sharpness_of_blur_is_what_the_blur_leaves():
    """A Gaussian of sigma s leaves exp(-(2 pi s f)^2) of the power at f cycles a pixel."""
    noise = np.random.default_rng(0).normal(size=(300, 32, 32, 1)).astype(np.float32)
    fourier = ndimage.fourier_gaussian(np.fft.fft2(noise, axes=(1, 2)), (0, 0.7, 0.7, 0))
    soft = np.fft.ifft2(fourier, axes=(1, 2)).real.astype(np.float32)
    frequency = np.arange(9, 17) / 32
    expected = np.exp(-((2 * np.pi * 0.7 * frequency) ** 2).mean())
    value = sharpness(power_spectrum(noise), power_spectrum(soft))
    np.testing.assert_allclose(value, expected, rtol=0.1)


def test_sharpness_by_hand():
    real, fake = np.random.default_rng(0).uniform(0.5, 2, (2, 5, 9)).astype(np.float32)
    value = sharpness(real, fake[:3])
    ratios = fake[:3].mean(0)[5:] / real.mean(0)[5:]
    np.testing.assert_allclose(value, ratios.prod() ** (1 / 4), rtol=1e-5)
    np.testing.assert_allclose(sharpness(fake[:3], real), 1 / value, rtol=1e-5)
    np.testing.assert_allclose(sharpness(real.mean(0), fake[:3].mean(0)), value, rtol=1e-5)


def test_noise_is_above_one_and_constants_are_at_zero():
    real, noise = photographs(), 0.1 * np.random.default_rng(0).normal(size=photographs().shape)
    power = power_spectrum(real)
    assert sharpness(power, power_spectrum((real + noise).astype(np.float32))) > 1.2
    assert sharpness(power, power_spectrum(np.full_like(real, 0.3))) < 1e-6
    assert sharpness(power, jnp.zeros_like(power)) == 0


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (np.zeros((2, 8, 9, 3), np.float32), "needs square images .* not .2, 8, 9, 3.: crop them"),
        (np.zeros((8, 8, 3), np.float32), "needs square images"),
        (np.zeros((2, 8, 8, 3), np.uint8), "needs floats, not uint8: convert"),
    ],
)
def test_wrong_images_are_told(images, line):
    with pytest.raises(UserError, match=line):
        power_spectrum(images)


def test_spectra_of_other_sizes_are_told():
    with pytest.raises(UserError, match="Spectra of 9 and of 5 frequencies"):
        sharpness(np.ones((2, 9)), np.ones((2, 5)))


def test_checkerboard_is_about_one_for_noise_and_photos():
    noise = np.random.default_rng(0).normal(size=(256, 32, 32, 3)).astype(np.float32)
    assert 0.9 < float(checkerboard(noise)) < 1.1
    assert 0.5 < float(checkerboard(photographs())) < 2


@pytest.mark.parametrize("period", [2, 4])
def test_checkerboard_sees_a_pattern(period):
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(64, 32, 32, 1)), (0, 3, 3, 0))
    smooth = (smooth / smooth.std()).astype(np.float32)
    rows = (np.arange(32) % period == 0).astype(np.float32)
    pattern = np.outer(rows, rows).reshape(1, 32, 32, 1)
    noisy = smooth + 0.05 * rng.normal(size=smooth.shape).astype(np.float32)
    without, weak, strong = (float(checkerboard(noisy + a * pattern)) for a in (0, 0.1, 0.5))
    assert 0.5 < without < 1.5
    assert 1.3 * without < weak < strong / 1.5


def test_checkerboard_of_small_images():
    with pytest.raises(UserError, match="32"):
        checkerboard(np.zeros((1, 30, 30, 1), np.float32))
