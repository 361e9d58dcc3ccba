"""The other filters against SciPy, scikit-image and definitions in float64."""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from aigc_jax.errors import UserError
from aigc_jax.filters import bilateral, gaussian, median, total_variation
from aigc_jax.filters.smoothing import _sorting_network

SHAPES = [(17, 12), (9, 14, 3)]


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 4])
def test_gaussian_is_scipys(shape, sigma):
    x = noise(shape)
    sides = (sigma, sigma, 0)[: len(shape)]
    truth = ndimage.gaussian_filter(x.astype(np.float64), sides, mode="mirror")
    np.testing.assert_allclose(gaussian(x, sigma), truth, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_median_is_scipys(shape, size):
    x = noise(shape)
    truth = ndimage.median_filter(x, (size, size, 1)[: len(shape)], mode="mirror")
    np.testing.assert_array_equal(median(x, size), truth)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 25, 49])
def test_the_network_sorts(n):
    """Zeros and ones suffice (Knuth's 0-1 principle); all of them where they are few."""
    rows = itertools.product((0, 1), repeat=n)
    if n > 9:
        draw = random.Random(0)
        rows = [draw.choices((0, 1), weights=(k + 1, 50 - k), k=n) for k in range(50)]
    for row in rows:
        row = list(row)
        for i, j in _sorting_network(n):
            assert 0 <= i < j < n
            row[i], row[j] = min(row[i], row[j]), max(row[i], row[j])
        assert row == sorted(row)


def bilateral64(x, sigma_range, sigma_space, radius):
    x = x.astype(np.float64).reshape(*x.shape[:2], -1)
    height, width, _ = x.shape
    padded = np.pad(x, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    values, weights = 0, 0
    for i, j in itertools.product(range(-radius, radius + 1), repeat=2):
        other = padded[i + radius :, j + radius :][:height, :width]
        square = np.mean((x - other) ** 2, -1, keepdims=True)
        w = np.exp(-(i**2 + j**2) / (2 * sigma_space**2) - square / (2 * sigma_range**2))
        values, weights = values + w * other, weights + w
    return values / weights


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma_space", "radius"), [(0.7, 3), (1.5, 5), (1.5, 2)])
def test_bilateral_is_its_definition(shape, sigma_space, radius):
    x = noise(shape)
    truth = bilateral64(x, 0.8, sigma_space, radius).reshape(shape)
    given = None if radius == np.ceil(3 * sigma_space) else radius
    np.testing.assert_allclose(bilateral(x, 0.8, sigma_space, radius=given), truth, atol=1e-5)


def test_bilateral_of_any_range_is_the_gaussian():
    x = noise((20, 20))
    truth = ndimage.gaussian_filter(x, 1.5, mode="mirror", radius=5)
    np.testing.assert_allclose(bilateral(x, 1e4, 1.5), truth, atol=1e-5)


@pytest.mark.parametrize("weight", [0.05, 0.5, 3])
@pytest.mark.parametrize("steps", [1, 30, 200])
def test_total_variation_is_scikit_images(weight, steps):
    restoration = pytest.importorskip("skimage.restoration")
    x = noise((17, 12, 3))
    options = {"eps": 0, "max_num_iter": steps + 1, "channel_axis": -1}
    truth = restoration.denoise_tv_chambolle(x.astype(np.float64), weight, **options)
    np.testing.assert_allclose(total_variation(x, weight, steps=steps), truth, atol=2e-5)


def test_total_variation_comes_to_the_minimum():
    """Of a step of height 1 between halves n wide, each end moves by weight / n."""
    step = np.repeat([0.0, 1.0], 4).astype(np.float32)[None].repeat(5, 0)
    u = total_variation(step, 0.4, steps=3000)
    np.testing.assert_allclose(u, np.where(step > 0, 0.9, 0.1), atol=1e-4)


FILTERS = {
    "gaussian": lambda x: gaussian(x, 1.0),
    "bilateral": lambda x: bilateral(x, 0.5, 1.0),
    "median": lambda x: median(x, 3),
    "total_variation": lambda x: total_variation(x, 0.3, steps=20),
}


@pytest.mark.parametrize("name", FILTERS)
def test_batches(name):
    x = noise((3, 10, 11, 2))
    mapped = jax.jit(jax.vmap(FILTERS[name]))(x)
    np.testing.assert_allclose(mapped, np.stack([FILTERS[name](image) for image in x]), atol=1e-6)
    assert mapped.dtype == jnp.float32


@pytest.mark.parametrize("name", FILTERS)
def test_constants_stay(name):
    np.testing.assert_allclose(FILTERS[name](jnp.full((6, 7), 0.3)), 0.3, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gaussian(x, 0), "sigma must be a number above 0, not 0"),
        (lambda x: bilateral(x, -1, 1), "sigma_range must be a number above 0, not -1"),
        (lambda x: bilateral(x, 1, 0), "sigma_space must be a number above 0, not 0"),
        (lambda x: bilateral(x, 1, 1, radius=0), "radius must be a number above 0, not 0"),
        (lambda x: median(x, 4), "size must be an odd number of pixels, not 4"),
        (lambda x: median(x, 7), "6x9 pixels, is smaller than size, 7"),
        (lambda x: total_variation(x, 0.0), "weight must be a number above 0, not 0.0"),
        (lambda x: total_variation(x, 0.1, steps=0), "steps must be a number above 0, not 0"),
        (lambda x: gaussian(x[0], 1), "not (9,)"),
        (lambda x: median(x.astype(jnp.int32)), "takes a float image, not int32"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UserError) as error:
        call(jnp.zeros((6, 9)))
    assert message in str(error.value)
