"""Image quality against scikit-image, TensorFlow and float64 definitions written here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from aigc_jax.errors import UserError
from aigc_jax.metrics.image_quality import l1, ms_ssim, psnr, ssim, ssim_border, within

METRICS = [psnr, ssim, ms_ssim]


def noisy_pair(shape=(3, 40, 33, 3), noise=20, seed=0):
    """Smooth uint8 images of full range, and noisy copies."""
    rng = np.random.default_rng(seed)
    x = ndimage.gaussian_filter(rng.normal(size=shape), (0, 2, 2, 0))
    x = np.clip(127.5 + 400 * x, 0, 255).astype(np.uint8)
    scale = noise * np.arange(1, len(x) + 1).reshape(-1, 1, 1, 1)
    return x, np.clip(x + scale * rng.normal(size=shape), 0, 255).astype(np.uint8)


def ours(x):
    return jnp.asarray(x / 127.5 - 1, jnp.float32)


def skimage_ssim(x, y, data_range=255):
    metrics = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    options |= {"data_range": data_range, "channel_axis": -1}
    x, y = x.astype(np.float64), y.astype(np.float64)
    return [metrics.structural_similarity(a, b, **options) for a, b in zip(x, y, strict=True)]


def blurred(x, mode):
    """The 11x11 Gaussian of (B, H, W, C)."""
    return ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0), mode=mode, radius=(0, 5, 5, 0))


def terms64(x, y, width, mode="mirror"):
    """SSIM's two maps in float64, as its definition has them."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    mx, my = blurred(x, mode), blurred(y, mode)
    vx, vy = blurred(x * x, mode) - mx * mx, blurred(y * y, mode) - my * my
    cov = blurred(x * y, mode) - mx * my
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    return (2 * mx * my + c1) / (mx**2 + my**2 + c1), (2 * cov + c2) / (vx + vy + c2)


def ms_ssim64(x, y, width):
    """Wang et al. 2003, with the filter and the subsampling of its authors' code."""
    result = 1
    for i, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        luminance, structure = (t[:, 5:-5, 5:-5] for t in terms64(x, y, width))
        term = luminance * structure if i == 4 else structure
        result = result * np.maximum(term.mean((1, 2)), 0) ** weight
        size = (1, 2, 2, 1)
        x, y = (ndimage.uniform_filter(a, size, origin=(0, -1, -1, 0))[:, ::2, ::2] for a in (x, y))
    return result.mean(-1)


def test_psnr_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = noisy_pair()
    truth = [metrics.peak_signal_noise_ratio(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(psnr(ours(x), ours(y)), truth, rtol=1e-5)
    x, y = x.astype(np.float32), y.astype(np.float32)
    np.testing.assert_allclose(psnr(x, y, (0, 255)), truth, rtol=1e-5)


def test_psnr_of_a_constant_difference():
    x = jnp.zeros((2, 4, 4, 1))
    np.testing.assert_allclose(psnr(x, x + 0.2), 20, rtol=1e-5)
    assert (psnr(x, x) == jnp.inf).all()


def test_l1_is_numpys():
    x, y = noisy_pair()
    truth = np.abs(x.astype(np.float64) - y).mean((1, 2, 3)) / 255
    np.testing.assert_allclose(l1(ours(x), ours(y)), truth, rtol=1e-4)
    x, y = x.astype(np.float32), y.astype(np.float32)
    np.testing.assert_allclose(l1(x, y, (0, 255)), truth, rtol=1e-5)
    assert l1(jnp.zeros((1, 2, 2, 1)) - 1, jnp.ones((1, 2, 2, 1))) == 1


@pytest.mark.parametrize("levels", [1, 5, 10])
def test_within_is_numpys(levels):
    """Of Fu et al. 2019: a pixel is right if no channel is `levels` or more off."""
    x, y = noisy_pair(noise=3)
    off = np.abs(x.astype(np.int32) - y).max(-1)
    truth = (off < levels).mean((1, 2))
    assert 0 < truth.mean() < 1 and (off == levels).any()
    np.testing.assert_allclose(within(ours(x), ours(y), levels), truth, atol=1e-6)
    x, y = x.astype(np.float32), y.astype(np.float32)
    np.testing.assert_allclose(within(x, y, levels, (0, 255)), truth, atol=1e-6)
    np.testing.assert_allclose(within(x / 255, y / 255, levels, (0, 1)), truth, atol=1e-6)


@pytest.mark.parametrize("metric", [l1, functools.partial(within, levels=5)])
def test_l1_and_within_take_float_images_of_one_shape(metric):
    x = jnp.zeros((2, 4, 4, 3))
    for y, line in ((x[:, :3], "one shape"), (x.astype(jnp.uint8), "must be floats")):
        with pytest.raises(UserError, match=line):
            metric(x, y)


@pytest.mark.parametrize(("side", "border"), [(6, "reflect"), (10, "reflect"), (11, "valid")])
def test_the_border_that_fits(side, border):
    x = jnp.zeros((1, side, side, 1))
    assert ssim_border(side) == border and ssim(x, x, border=border) == 1


@pytest.mark.parametrize("noise", [1, 20, 200])
def test_ssim_is_scikit_images(noise):
    x, y = noisy_pair(noise=noise)
    np.testing.assert_allclose(ssim(ours(x), ours(y)), skimage_ssim(x, y), atol=5e-7)


@pytest.mark.parametrize("noise", [1, 20])
def test_ssim_with_reflected_borders(noise):
    x, y = noisy_pair(noise=noise)
    luminance, structure = terms64(x, y, 255, "mirror")
    truth = (luminance * structure).mean((1, 2, 3))
    np.testing.assert_allclose(ssim(ours(x), ours(y), border="reflect"), truth, atol=5e-7)
    assert abs(truth - ssim(ours(x), ours(y))).max() > 1e-4


def test_ssim_of_luma():
    x, y = noisy_pair()
    weights = np.array([0.299, 0.587, 0.114])
    truth = skimage_ssim((x @ weights)[..., None], (y @ weights)[..., None])
    np.testing.assert_allclose(ssim(ours(x), ours(y), luma=True), truth, atol=5e-7)


@pytest.mark.parametrize("level", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_ssim_does_not_cancel_in_faint_textures(level, noise):
    """Where variances are as small as 1e-8 of the squares, float32 as it comes is 1e-5 off."""
    rng = np.random.default_rng(0)
    x, y = (level + noise * rng.uniform(-1, 1, (2, 1, 32, 32, 1))).astype(np.float32)
    np.testing.assert_allclose(ssim(x, y, (0, 1)), skimage_ssim(x, y, 1), rtol=0, atol=2e-7)


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_ssim_of_constants(level):
    x = jnp.full((2, 16, 16, 1), level)
    np.testing.assert_allclose(ssim(x, x), 1, rtol=1e-6)
    a, b, c1 = level + 1, level / 2 + 1, 0.02**2
    truth = (2 * a * b + c1) / (a**2 + b**2 + c1)
    np.testing.assert_allclose(ssim(x, x / 2), truth, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 161, 176, 1), (1, 177, 163, 3)])
def test_ms_ssim_is_its_definition(shape):
    x, y = noisy_pair(shape)
    truth = ms_ssim64(x.astype(np.float64), y.astype(np.float64), 255)
    np.testing.assert_allclose(jax.jit(ms_ssim)(ours(x), ours(y)), truth, atol=5e-7)


def test_ms_ssim_is_tensorflows():
    tf = pytest.importorskip("tensorflow")
    x, y = noisy_pair((2, 175, 176, 3))
    truth = tf.image.ssim_multiscale(x, y, 255)
    np.testing.assert_allclose(jax.jit(ms_ssim)(ours(x), ours(y)), truth, atol=1e-5)


def test_ms_ssim_of_a_negative_is_zero():
    x = ours(noisy_pair((1, 161, 161, 1))[0])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ms_ssim(x, -x).sum()))(x)
    assert value == 0
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_are_finite_at_equal_images(metric):
    y = ours(noisy_pair((1, 161, 161, 1))[0])
    for x in (y, jnp.ones_like(y)):
        gradient = jax.jit(jax.grad(lambda x, y: metric(x, y).sum()))(x, x)
        assert jnp.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gradient_of_ssim_is_its_difference():
    x, y = map(ours, noisy_pair((1, 16, 16, 1)))
    direction = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def along(t):
        return ssim(x + t * direction, y).sum()

    slope = (along(1e-2) - along(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(along)(0.0), slope, rtol=1e-2)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_under_jit_and_vmap(metric):
    x, y = map(ours, noisy_pair((4, 16, 16, 3)))
    truth = metric(x, y)
    np.testing.assert_allclose(jax.jit(metric)(x, y), truth, rtol=1e-5)
    pairs = [a.reshape(2, 2, 16, 16, 3) for a in (x, y)]
    np.testing.assert_allclose(jax.vmap(metric)(*pairs).reshape(4), truth, rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    x, y = (ours(a).astype(jnp.bfloat16) for a in noisy_pair((1, 16, 16, 1)))
    assert ssim(x, y).dtype == jnp.float32
    np.testing.assert_array_equal(ssim(x, y), ssim(*(a.astype(jnp.float32) for a in (x, y))))


@pytest.mark.parametrize(
    ("metric", "shape", "options", "message"),
    [
        (ms_ssim, (1, 160, 200, 3), {}, "161x161 pixels, not 160x200"),
        (ssim, (1, 32, 10, 3), {}, "11x11 pixels, not 32x10"),
        (ssim, (1, 32, 32, 3), {"border": "same"}, "'same'"),
        (ssim, (1, 32, 32, 1), {"luma": True}, "3 channels"),
        (psnr, (32, 32, 3), {}, r"\(32, 32, 3\)"),
    ],
)
def test_what_is_refused(metric, shape, options, message):
    x = jnp.zeros(shape)
    with pytest.raises(UserError, match=message):
        metric(x, x, **options)


@pytest.mark.parametrize("metric", METRICS)
def test_integers_and_unequal_shapes_are_refused(metric):
    x = jnp.zeros((1, 176, 176, 3), jnp.uint8)
    with pytest.raises(UserError, match="uint8"):
        metric(x, x)
    with pytest.raises(UserError, match="one shape"):
        metric(jnp.zeros((2, 176, 176, 3)), jnp.zeros((1, 176, 176, 3)))
