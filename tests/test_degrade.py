"""Degradations against their definitions: statistics, impulse responses, scipy and Pillow."""

import functools
import io

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from scipy import ndimage

from aigc_jax.data import degrade, tensorflow
from aigc_jax.errors import UserError

# Each with what leaves an image as it is.
HARMLESS = (
    "noise(0)", "salt_pepper(0)", "speckle(0)", "blur(0)", "motion(0)", "motion(1)", "defocus(0)",
    "downsample(1)", "quantize(256)", "elastic(0)", "perspective(0)", "same",
)  # fmt: skip
SMOOTH = ("blur(3)", "motion(9)", "defocus(4)", "downsample(3)", "elastic(6)", "perspective(.2)")


@functools.cache
def compiled(text, channels):
    tf = tensorflow()
    operations = degrade.parse(text)
    images = tf.TensorSpec([None, None, None, channels])
    function = tf.function(
        lambda images, seeds: degrade.batch(operations, images, seeds),
        input_signature=[images, tf.TensorSpec([None, 2], tf.int32)],
        autograph=False,
    )
    return function.get_concrete_function()


def batch(text, images, seeds):
    tf = tensorflow()
    images = tf.constant(images, tf.float32)
    return compiled(text, images.shape[-1])(images, tf.constant(seeds, tf.int32)).numpy()


def one(text, image, seed=0):
    return batch(text, image[None], [[seed, 1]])[0]


def many(text, image, count):
    return batch(text, np.repeat(image[None], count, 0), [[i, 5] for i in range(count)])


def photo(height=48, width=64, channels=3):
    """Smooth, with noise on it, in [-1, 1], on the 256 levels."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=(height, width, channels)), (3, 3, 0))
    image = 128 + 300 * image + rng.normal(0, 4, image.shape)
    return (np.clip(np.round(image), 0, 255) / 127.5 - 1).astype(np.float32)


def grey(value, side=200, channels=1):
    return np.full((side, side, channels), value, np.float32)


def impulse(side=41):
    image = np.zeros((side, side, 1), np.float32)
    image[side // 2, side // 2] = 1
    return image


def ramps(height, width):
    """An image that says where each of its pixels lies: (y, x)."""
    return np.stack(np.mgrid[:height, :width], -1).astype(np.float32)


@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_noise_has_its_deviation(sigma):
    found = 127.5 * (one(f"noise({sigma})", grey(0.9)) - grey(0.9))
    assert scipy.stats.kstest(found.ravel(), "norm", (0, sigma)).pvalue > 0.01
    assert found.std() == pytest.approx(sigma, rel=0.015)  # of 40,000: 4 standard errors
    assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02


def test_each_image_draws_its_own_sigma_and_noise():
    found = 127.5 * many("noise(0..55)", grey(0, 32), 400)
    assert scipy.stats.kstest(found.std((1, 2, 3)), "uniform", (0, 55)).pvalue > 0.01
    assert abs(np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]) < 0.1


def test_nothing_is_clipped():
    assert (one("noise(25)", grey(1)) > 1).mean() == pytest.approx(0.5, abs=0.02)


def test_a_chain_goes_on_with_other_noise():
    found = one("noise(20),noise(20)", grey(0))
    assert 127.5 * found.std() == pytest.approx(20 * np.sqrt(2), rel=0.015)


@pytest.mark.parametrize("light", [0.05, 0.5, 1.0])
def test_photons_are_counted(light):
    counts = 30 * (one("poisson(30)", grey(2 * light - 1)) + 1) / 2
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
    assert counts.mean() == pytest.approx(30 * light, abs=4 * np.sqrt(30 * light) / 200)
    assert counts.var() == pytest.approx(30 * light, rel=0.06)


def test_no_photons_come_from_black():
    np.testing.assert_array_equal(one("poisson(30)", grey(-1)), -1)
    np.testing.assert_array_equal(one("poisson(30)", grey(-1.4)), -1)


def test_salt_and_pepper_take_whole_pixels():
    found = one("salt_pepper(0.3)", grey(0.2, channels=3))
    assert (found == found[..., :1]).all()
    shares = [(found[..., 0] == value).mean() for value in (np.float32(0.2), -1, 1)]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.01)


def test_speckle_goes_with_the_light():
    for light in (0, 0.3, 1):
        found = one("speckle(40)", grey(2 * light - 1))
        assert 127.5 * found.std() == pytest.approx(40 * light, rel=0.015)
        assert found.mean() == pytest.approx(2 * light - 1, abs=0.01)


@pytest.mark.parametrize("sigma", [0.6, 2, 20])
def test_blur_is_scipys(sigma):
    image = photo()
    truth = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror")
    np.testing.assert_allclose(one(f"blur({sigma})", image), truth, atol=2e-6)


def principal(kernel):
    """The variances of a kernel along its axes, and the direction of the longer one."""
    y, x = np.mgrid[:41, :41] - 20
    moments = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
    values, vectors = np.linalg.eigh(moments)
    return values, np.arctan2(*vectors[::-1, 1]) % np.pi


def test_motion_is_along_a_line():
    kernels = many("motion(20)", impulse(), 60)[..., 0]
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(kernels, kernels[:, ::-1, ::-1], atol=1e-6)
    found = [principal(kernel) for kernel in kernels]
    for (across, along), _ in found:
        assert along == pytest.approx(20**2 / 12, rel=0.06)
        assert across < 0.3
    angles = [angle for _, angle in found]
    assert scipy.stats.kstest(angles, "uniform", (0, np.pi)).pvalue > 0.01


def test_defocus_is_a_disc():
    kernel = one("defocus(6.5)", impulse())[..., 0]
    y, x = np.mgrid[:41, :41] - 20
    far = np.hypot(y, x)
    np.testing.assert_allclose(kernel[far <= 6], 1 / (np.pi * 6.5**2), rtol=0.02)
    np.testing.assert_allclose(kernel[far >= 7], 0, atol=1e-6)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)


def by_pillow(image, quality):
    image = Image.fromarray(np.round((image + 1) * 127.5).astype(np.uint8).squeeze())
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    pixels = np.asarray(Image.open(data), np.float32)
    return pixels.reshape(*pixels.shape[:2], -1) / 127.5 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 50, 95])
def test_jpeg_is_pillows(channels, quality):
    image = photo(channels=channels)
    found, truth = one(f"jpeg({quality})", image), by_pillow(image, quality)
    assert 127.5 * np.abs(found - truth).max() <= 3
    assert 127.5 * np.abs(found - truth).mean() < 0.1


def resized(channel, size):
    return np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("factor", [2, 3.3, 100 / 7])
def test_downsample_is_pillows_bicubic(factor):
    image = photo(50, 70, 1)
    fewer = round(70 / factor), round(50 / factor)
    truth = resized(resized(image[..., 0], fewer), (70, 50))
    np.testing.assert_allclose(one(f"downsample({factor})", image)[..., 0], truth, atol=1e-4)


def test_quantize_has_its_levels():
    found = one("quantize(4)", np.linspace(-1.2, 1.2, 1000, dtype=np.float32).reshape(1, -1, 1))
    np.testing.assert_allclose(np.unique(found), [-1, -1 / 3, 1 / 3, 1], atol=1e-6)
    steps = np.linspace(-1.2, 1.2, 1000)[1:][np.diff(found.ravel()) > 0]
    np.testing.assert_allclose(steps, [-2 / 3, 0, 2 / 3], atol=3e-3)


def test_an_elastic_field_has_its_size_and_smoothness():
    places = ramps(160, 160)
    moved = (many("elastic(3,5)", places, 40) - places)[:, 20:-20, 20:-20]
    assert moved.std() == pytest.approx(3, rel=0.04)
    for lag in (4, 8):  # white noise smoothed by a Gaussian: exp(-lag^2 / (4 s^2))
        for a, b in ((moved[:, lag:], moved[:, :-lag]), (moved[:, :, lag:], moved[:, :, :-lag])):
            assert (a * b).mean() / 9 == pytest.approx(np.exp(-(lag**2) / 100), abs=0.06)
    assert abs((moved[..., 0] * moved[..., 1]).mean()) < 0.4


def homography(places, onto):
    """3x3, from four points each, as rows (y, x)."""
    rows, values = [], []
    for (v, u), (y, x) in zip(places, onto, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    return np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)


def mapped(matrix, places):
    x, y, w = matrix @ np.stack(
        [places[..., 1].ravel(), places[..., 0].ravel(), 0 * places[..., 0].ravel() + 1]
    )
    return np.stack([y / w, x / w], -1).reshape(places.shape)


def test_a_perspective_is_one_and_moves_corners_so_far():
    places = ramps(81, 101)
    corners = np.array([[0, 0], [0, 100], [80, 100], [80, 0]])
    shifts = []
    for found in many("perspective(0.15)", places, 40):
        inner = np.array([[25, 25], [25, 75], [55, 75], [55, 25]])
        matrix = homography(inner, [found[y, x] for y, x in inner])
        np.testing.assert_allclose(
            found[20:60, 25:75], mapped(matrix, places)[20:60, 25:75], atol=1e-2
        )
        shifts.append((mapped(matrix, corners) - corners) / [80, 100])
    assert np.abs(shifts).max() < 0.152
    assert scipy.stats.kstest(np.ravel(shifts), "uniform", (-0.15, 0.3)).pvalue > 0.01


@pytest.mark.parametrize("text", HARMLESS)
def test_of_strength_zero_nothing_comes(text):
    np.testing.assert_allclose(
        one(text, photo()), photo(), atol=1e-4 if "perspective" in text else 2e-6
    )


@pytest.mark.parametrize("text", SMOOTH)
def test_a_constant_stays_so(text):
    np.testing.assert_allclose(one(text, grey(0.3, 37)), 0.3, atol=1e-5)


@pytest.mark.parametrize("text", sorted(degrade.KINDS))
def test_any_size_and_a_function_of_the_seed_alone(text):
    known = degrade.KINDS[text].parameters
    middle = [round((p.low + min(p.high, 40)) / 2) if p.whole else min(p.high, 6) for p in known]
    text = f"{text}({','.join(map(str, middle))})"
    for shape in ((1, 1, 3), (2, 9, 3), (17, 3, 3)):
        images = np.random.default_rng(0).uniform(-1, 1, (3, *shape))
        seeds = [[3, 4], [5, 6], [3, 4]]
        found = batch(text, images, seeds)
        assert found.shape == images.shape and np.isfinite(found).all()
        np.testing.assert_array_equal(batch(text, images[1:], seeds[1:]), found[1:])
        np.testing.assert_array_equal(batch(text, images[::-1], seeds[::-1]), found[::-1])


def test_blind_leaves_as_many_as_its_rows_say():
    image = photo(8, 8, 1)
    found = many("blind", image, 1200)
    same = (found == image).all((1, 2, 3)).sum()
    assert scipy.stats.binomtest(same, 1200, 1 / 4 / 2 / 5 / 2).pvalue > 0.01
    assert len({each.tobytes() for each in found}) > 1000


def test_shapes_are_known_before_it_runs():
    tf = tensorflow()
    operations = degrade.parse("blind,jpeg(3..9),elastic(2)")

    @functools.partial(tf.function, autograph=False)
    def shape():
        found = degrade.batch(operations, tf.zeros([4, 9, 7, 3]), tf.zeros([4, 2], tf.int32))
        assert found.shape == (4, 9, 7, 3) and found.dtype == tf.float32
        return found

    shape.get_concrete_function()


def test_arrays_are_clipped_and_rounded():
    images = np.round((np.stack([photo(), photo()[::-1]]) + 1) * 127.5).astype(np.uint8)
    found = degrade.arrays(degrade.parse("noise(50)"), images, [[1, 2], [3, 4]])
    truth = batch("noise(50)", images / np.float32(127.5) - 1, [[1, 2], [3, 4]])
    truth = np.clip(np.round((truth + 1) * np.float32(127.5)), 0, 255)
    assert found.dtype == np.uint8 and {0, 255} <= set(found.ravel())
    np.testing.assert_array_equal(found, truth)


def test_the_page_names_them_all():
    for name, kind in degrade.KINDS.items():
        parameters = ", ".join(p.name for p in kind.parameters)
        assert f"\n{name}({parameters}) " in degrade.__doc__ or f"\n{name} " in degrade.__doc__


def test_what_is_refused():
    with pytest.raises(UserError, match=r"^unknown degradation 'nois'. Did you mean 'noise'\?$"):
        degrade.parse("nois(25)")
    with pytest.raises(UserError, match=r"quality is a whole number from 1 to 100, not 0"):
        degrade.parse("noise(25),jpeg(0)")
