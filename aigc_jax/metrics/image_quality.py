"""How near two images are: PSNR, SSIM, MS-SSIM, L1, each as a metric or, negated, as a loss.

Images are float arrays (B, H, W, C) with values in `data_range`; results are (B,), one an image, in
float32. All are pure, and their gradients are finite everywhere.

SSIM is defined for values that start at 0, so values are first shifted by `data_range`'s lower end:
the results for images in [-1, 1] are those of the same images in [0, 255].

With `luma`, RGB is first reduced to the BT.601 luma .299 R + .587 G + .114 B. Papers on restoration
whose Y comes from MATLAB's rgb2ycbcr squeeze it to [16, 235], which adds 20 log10(255 / 219) = 1.32
dB to its PSNR.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.types import Array

Range = tuple[float, float]

_RADIUS, _SIGMA = 5, 1.5
_K1, _K2 = 0.01, 0.03
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SIDE = 2 * _RADIUS + 1
_MIN_SIDE = (_SIDE - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1) + 1


def psnr(x: Array, y: Array, data_range: Range = (-1.0, 1.0), *, luma: bool = False) -> Array:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / MSE); inf where x equals y.

    Args:
      x, y: (B, H, W, C) float images.
      data_range: the lowest and the highest value that images can have.
      luma: compare the luma of RGB images only.

    Raises:
      UserError: shapes that differ, or integer images.
    """
    x, y, width = _prepare(x, y, data_range, luma)
    error = jnp.mean((x - y) ** 2, (1, 2, 3))
    positive = jnp.where(error > 0, error, 1)
    return jnp.where(error > 0, 20 * jnp.log10(width) - 10 * jnp.log10(positive), jnp.inf)


def hole_psnr(x: Array, y: Array, mask: Array, data_range: Range = (-1.0, 1.0)) -> Array:
    """`psnr` of the pixels that a mask (B, H, W, 1) hides, where it is 0; at most 100 dB.

    x, y: (B, H, W, C) float images. Raises UserError as `psnr` does.
    """
    x, y, width = _prepare(x, y, data_range, luma=False)
    hole = 1 - jnp.moveaxis(mask, -1, 1)
    error = (((x - y) ** 2) * hole).sum((1, 2, 3)) / (hole.sum((1, 2, 3)) * x.shape[1] + 1e-9)
    return 20 * jnp.log10(width) - 10 * jnp.log10(jnp.maximum(error, width**2 * 1e-10))


def l1(x: Array, y: Array, data_range: Range = (-1.0, 1.0)) -> Array:
    """Mean absolute difference over pixels and channels, as a share of the range: 0 to 1.

    x, y: (B, H, W, C) float images. Raises UserError as `psnr` does.
    """
    x, y, width = _prepare(x, y, data_range, luma=False)
    return jnp.mean(jnp.abs(x - y), (1, 2, 3)) / width


def within(x: Array, y: Array, levels: int, data_range: Range = (-1.0, 1.0)) -> Array:
    """The share of pixels whose every channel differs by less than `levels` of 255 grey levels.

    The accuracy of Fu et al. 2019 (GcGAN, section 4.2: delta 5 or 10), of images rounded to 8 bits.
    x, y: (B, H, W, C) float images. Raises UserError as `psnr` does.
    """
    x, y, width = _prepare(x, y, data_range, luma=False)
    x, y = (jnp.round(image * (255 / width)) for image in (x, y))
    return jnp.mean(jnp.max(jnp.abs(x - y), 1) < levels, (1, 2))


def ssim_border(side: int) -> str:
    """The `border` of `ssim` for images of this side: mirrored where its window doesn't fit."""
    return "valid" if side >= 11 else "reflect"


def ssim(
    x: Array,
    y: Array,
    data_range: Range = (-1.0, 1.0),
    *,
    border: str = "valid",
    luma: bool = False,
) -> Array:
    """Structural similarity (Wang et al. 2004, eq. 13), the mean over pixels and channels.

    Gaussian windows of 11x11 pixels, sigma 1.5, population covariance, K1 = .01, K2 = .03.

    Args:
      x, y: (B, H, W, C) float images.
      data_range: the lowest and the highest value that images can have.
      border: "valid" averages over the windows inside the image, as Wang's code and scikit-image
        do; "reflect" over all pixels, the image being mirrored at its border, as torchmetrics does.
      luma: compare the luma of RGB images only.

    Raises:
      UserError: shapes that differ, integer images, an unknown border, or images of fewer than 11
        pixels a side (6 with "reflect").
    """
    if border not in ("valid", "reflect"):
        raise UserError(f"ssim: border must be 'valid' or 'reflect', not {border!r}.")
    x, y, width = _prepare(x, y, data_range, luma)
    _check_side(x, _SIDE if border == "valid" else _RADIUS + 1, "ssim")
    if border == "reflect":
        margin = ((0, 0), (0, 0), (_RADIUS, _RADIUS), (_RADIUS, _RADIUS))
        x, y = (jnp.pad(image, margin, "reflect") for image in (x, y))
    luminance, structure = _similarity(x, y, width)
    return _mean_near_one(luminance * structure, (1, 2, 3))


def ms_ssim(x: Array, y: Array, data_range: Range = (-1.0, 1.0), *, luma: bool = False) -> Array:
    """Multi-scale SSIM (Wang et al. 2003, eq. 7 with its section 3.2's weights of five scales).

    Scales are halved by the mean of 2x2 pixels, odd sides after repeating their last pixels. The
    windows are `ssim`'s with border "valid". Negative terms count as 0, for their powers are
    undefined; results are the mean over channels.

    Args:
      x, y: (B, H, W, C) float images.
      data_range: the lowest and the highest value that images can have.
      luma: compare the luma of RGB images only.

    Raises:
      UserError: shapes that differ, integer images, or images of fewer than 161 pixels a side.
    """
    x, y, width = _prepare(x, y, data_range, luma)
    _check_side(x, _MIN_SIDE, "ms_ssim")
    terms = []
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale > 0:
            x, y = _halve(x), _halve(y)
        luminance, structure = _similarity(x, y, width)
        last = scale == len(_SCALE_WEIGHTS) - 1
        term = luminance * structure if last else structure
        terms.append(_positive_power(_mean_near_one(term, (2, 3)), weight))
    return jnp.mean(math.prod(terms), -1)


def _prepare(x: Array, y: Array, data_range: Range, luma: bool) -> tuple[Array, Array, float]:
    """Both images as float32 (B, C, H, W) that starts at 0, and the width of their range."""
    if x.shape != y.shape or x.ndim != 4:
        raise UserError(
            f"Images to compare must have one shape (B, H, W, C), not {x.shape} and {y.shape}."
        )
    for image in (x, y):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"Images to compare must be floats, not {image.dtype}: convert them, and give the "
                "data_range that they then have."
            )
    if luma and x.shape[-1] != 3:
        raise UserError(f"Luma needs 3 channels (RGB), not the {x.shape[-1]} of {x.shape}.")
    low, high = data_range
    x, y = (jnp.moveaxis(image.astype(jnp.float32), -1, 1) - low for image in (x, y))
    return (_luma(x), _luma(y), high - low) if luma else (x, y, high - low)


def _luma(x: Array) -> Array:
    red, green, blue = jnp.split(x, 3, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _check_side(x: Array, side: int, metric: str) -> None:
    height, width = x.shape[2:]
    if min(height, width) < side:
        raise UserError(
            f"{metric} needs images of at least {side}x{side} pixels, not {height}x{width}; "
            "use larger ones."
        )


def _similarity(x: Array, y: Array, width: float) -> tuple[Array, Array]:
    """The luminance term, and contrast times structure (Wang et al. 2004, eq. 6, 9, 10).

    Both are (B, C, H - 10, W - 10), written in the difference and the sum of the images instead of
    the images: 4 xy = (x + y)^2 - (x - y)^2, which keeps the digits of what little differs.
    """
    c1, c2 = (_K1 * width) ** 2, (_K2 * width) ** 2
    mean_d, var_d = _local_moments(x - y)
    mean_s, var_s = _local_moments(x + y)
    product = (mean_s - mean_d) * (mean_s + mean_d)
    luminance = (product + 2 * c1) / (mean_s**2 + mean_d**2 + 2 * c1)
    return luminance, (var_s - var_d + 2 * c2) / (var_s + var_d + 2 * c2)


def _local_moments(x: Array) -> tuple[Array, Array]:
    """The mean and the variance in every window."""
    # E[x^2] - E[x]^2 cancels in float32 if the mean is large. The variance doesn't depend on the
    # shift, hence neither do gradients.
    shift = lax.stop_gradient(jnp.mean(x, (2, 3), keepdims=True))
    mean, square = _windows(jnp.stack([x - shift, (x - shift) ** 2]))
    return mean + shift, square - mean**2


def _windows(x: Array) -> Array:
    """(..., H, W) -> (..., H - 10, W - 10): weighted means, as products with banded matrices.

    On every platform these, and their gradients, are as fast as convolutions or faster.
    """
    rows, columns = map(_band, x.shape[-2:])
    x = jnp.einsum("...hw,jw->...hj", x, columns, precision=lax.Precision.HIGHEST)
    return jnp.einsum("...hj,ih->...ij", x, rows, precision=lax.Precision.HIGHEST)


def _band(size: int) -> np.ndarray:
    """(size - 10, size) float32: the Gaussian window at each of its places."""
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    places = [w * np.eye(size - _SIDE + 1, size, i) for i, w in enumerate(weights)]
    return np.sum(places, 0, dtype=np.float32)


def _halve(x: Array) -> Array:
    b, c, h, w = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, h % 2), (0, w % 2)), "edge")
    return jnp.mean(x.reshape(b, c, (h + 1) // 2, 2, (w + 1) // 2, 2), (3, 5))


def _mean_near_one(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean, whose float32 sum is of what lacks to 1: that of alike images keeps its digits."""
    return 1 - jnp.mean(1 - x, axes)


def _positive_power(x: Array, exponent: float) -> Array:
    """max(x, 0)^exponent, with gradient 0 where x is not positive."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** exponent, 0)
