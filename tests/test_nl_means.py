"""NL-means against its definition in float64, pixel by pixel, and scikit-image's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from aigc_jax.errors import UserError
from aigc_jax.filters import nl_means
from aigc_jax.filters.nl_means import best_patch


def picture(shape, seed=0):
    """Smooth patches with edges, in [-1, 1], and the same with noise of sigma 0.2."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (3, 3, 0)[: len(shape)])
    clean = np.clip(np.sign(smooth) * 0.5 + 4 * smooth, -1, 1).astype(np.float32)
    return clean, (clean + rng.normal(0, 0.2, shape)).astype(np.float32)


def brute_force(image, sigma, patch_size, search, h):
    """Every pixel with every other of its window, patch by patch."""
    image = image.astype(np.float64)
    image = image[..., None] if image.ndim == 2 else image
    height, width, _ = image.shape
    half, radius = patch_size // 2, search // 2
    tent = half + 1 - np.abs(np.arange(-half, half + 1))
    window = np.outer(tent, tent)[..., None] / (np.sum(tent) ** 2 * image.shape[-1])
    reach = half + radius
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")

    def patch(y, x):
        return padded[
            y + reach - half : y + reach + half + 1, x + reach - half : x + reach + half + 1
        ]

    result = np.zeros_like(image)
    shifts = list(itertools.product(range(-radius, radius + 1), repeat=2))
    for y, x in itertools.product(range(height), range(width)):
        pairs = [np.sum(window * (patch(y, x) - patch(y + i, x + j)) ** 2) for i, j in shifts]
        excess = np.maximum(np.array(pairs) - 2 * sigma**2, 0)
        weights = np.where(np.any(shifts, axis=1), np.exp(-excess / h**2), 1)
        values = np.array([padded[y + i + reach, x + j + reach] for i, j in shifts])
        result[y, x] = weights @ values / weights.sum()
    return result


CASES = [(1, 3), (3, 5), (5, 5), (7, 7), (9, 3), (3, 1)]


@pytest.mark.parametrize(("patch_size", "search"), CASES)
def test_grey_is_the_definitions(patch_size, search):
    _, noisy = picture((13, 10))
    truth = brute_force(noisy, 0.2, patch_size, search, 0.15)[..., 0]
    ours = nl_means(noisy, 0.2, patch_size=patch_size, search=search, h=0.15)
    np.testing.assert_allclose(ours, truth, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_share_their_weights(channels):
    _, noisy = picture((9, 12, channels))
    ours = nl_means(noisy, 0.2, patch_size=5, search=7, h=0.1)
    np.testing.assert_allclose(ours, brute_force(noisy, 0.2, 5, 7, 0.1), atol=1e-5)


def test_default_h():
    _, noisy = picture((12, 12))
    truth = brute_force(noisy, 0.2, 9, 21, 2 * 0.2 / 3)[..., 0]
    np.testing.assert_allclose(nl_means(noisy, 0.2, patch_size=9), truth, atol=1e-5)


def test_units_do_not_matter():
    _, noisy = picture((16, 16))
    truth = nl_means(noisy, 0.2)
    grey = nl_means(noisy * 127.5 + 127.5, 0.2 * 127.5, data_range=(0, 255))
    np.testing.assert_allclose((grey - 127.5) / 127.5, truth, atol=1e-5)


def test_batches_and_many_sigmas():
    _, noisy = picture((4, 11, 12))
    sigmas = jnp.array([0.05, 0.1, 0.2, 0.3])
    each = [
        nl_means(x, float(s), patch_size=5, search=5) for x, s in zip(noisy, sigmas, strict=True)
    ]
    mapped = jax.jit(jax.vmap(lambda x, s: nl_means(x, s, patch_size=5, search=5)))(noisy, sigmas)
    np.testing.assert_allclose(mapped, np.stack(each), atol=1e-6)


def test_constants_stay_and_the_patch_may_fill_the_image():
    np.testing.assert_allclose(
        nl_means(jnp.full((7, 7, 3), 0.3), 0.1, patch_size=7), 0.3, rtol=1e-5
    )
    assert jnp.isfinite(nl_means(picture((3, 3))[1], 0.1, patch_size=3)).all()


@pytest.mark.parametrize("level", [15, 25, 50])
def test_psnr_is_level_with_scikit_images(level):
    """On equal terms never 0.1 dB behind its slow, Gaussian-weighted mode; by default ahead."""
    restoration = pytest.importorskip("skimage.restoration")
    data = pytest.importorskip("skimage.data")
    clean = data.camera()[100:200, 180:280].astype(np.float32) / 255
    sigma = level / 255
    noisy = (clean + np.random.default_rng(0).normal(0, sigma, clean.shape)).astype(np.float32)
    equal = {"patch_size": 7, "h": 0.6 * sigma, "sigma": sigma}
    theirs = restoration.denoise_nl_means(noisy, patch_distance=10, fast_mode=False, **equal)
    ours = nl_means(noisy, search=21, **equal)
    default = nl_means(noisy, sigma, data_range=(0, 1))
    theirs, ours, default = (
        -10 * np.log10(np.mean((np.asarray(x) - clean) ** 2)) for x in (theirs, ours, default)
    )
    assert ours > theirs - 0.1
    assert default > theirs + 0.1


def test_patches_grow_with_the_noise():
    patches = [best_patch(level / 255, (0, 1)) for level in range(1, 120)]
    assert patches == sorted(patches)
    assert set(patches) == {3, 5, 7, 9, 11, 13}
    assert best_patch(0.2) == best_patch(0.1, (0, 1)) == best_patch(25.5, (0, 255))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0}, "sigma must be a number above 0, not 0"),
        ({"sigma": -0.1}, "sigma must be a number above 0, not -0.1"),
        ({"sigma": float("nan")}, "sigma must be a number above 0, not nan"),
        ({"h": 0.0}, "h must be a number above 0, not 0.0"),
        ({"patch_size": 4}, "patch_size must be an odd number of pixels, not 4"),
        ({"search": 20}, "search must be an odd number of pixels, not 20"),
        ({"search": -1}, "search must be an odd number"),
        ({"patch_size": 11}, "8x9 pixels, is smaller than patch_size, 11"),
        ({"image": jnp.zeros((2, 8, 9, 1))}, "not (2, 8, 9, 1); map it over a batch with jax.vmap"),
        ({"image": jnp.zeros((8, 9), jnp.uint8)}, "takes a float image, not uint8"),
    ],
)
def test_mistakes(options, message):
    options = {"image": jnp.zeros((8, 9)), "sigma": 0.1} | options
    with pytest.raises(UserError) as error:
        nl_means(**options)
    assert message in str(error.value)


def test_traced_sigma_needs_a_patch():
    with pytest.raises(UserError, match="give patch_size"):
        jax.jit(nl_means)(jnp.zeros((16, 16)), 0.1)
