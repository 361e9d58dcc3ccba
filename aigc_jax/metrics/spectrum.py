"""Power spectra of images, and by them how sharp generated images are beside real ones.

The power of natural images falls with frequency f about as 1 / f^2, and by how much differs widely
from one image to another (van der Schaaf & van Hateren 1996); networks that make images miss it at
the high end, some by blur, some by artefacts of upsampling (Durall et al. 2020).
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UserError
from aigc_jax.types import Array


def power_spectrum(images: Array) -> Array:
    """The power of each image at each frequency, averaged over directions.

    Channels are averaged, the mean is taken out, a Hann window is laid over the image, and |FFT|^2
    is averaged over the frequencies whose radius rounds to the same integer (Durall et al. 2020,
    azimuthal integration, which has no window). Without the window the jump from one border to the
    opposite one leaks into all frequencies, again as 1 / f^2, and hides blur. It is divided by the
    window's energy: white noise of variance v (of the channels' mean) has power v from 2 cycles on,
    whatever the size.

    Args:
      images: (B, N, N, C) float, any range; the result is in its units squared.

    Returns:
      (B, N // 2 + 1) float32: the power at 0, 1, ..., N // 2 cycles per image, the last being the
      finest grid along an axis; at 0 it is 0. The corners of the spectrum, finer still but in few
      directions, are left out.

    Raises:
      UserError: images that are not square, or not floats.
    """
    _check(images)
    side = images.shape[1]
    radius, power = _radius(side), _windowed_power(images)
    of_radius = jax.ops.segment_sum(power.reshape(len(images), -1).T, radius, radius.max() + 1)
    return (of_radius.T / np.bincount(radius)[None])[:, : side // 2 + 1]


def checkerboard(images: Array) -> Array:
    """How far the power at the checkerboard's frequencies stands out from its surroundings.

    Strided layers that double an image twice leave patterns of period 4 and 2 (Odena et al. 2016):
    power at the multiples of N / 4 along both axes. It is compared with that three frequencies
    away, in logarithms, of the mean spectrum (see `power_spectrum`) of all images; the geometric
    mean over these 15 frequencies is told.

    Args:
      images: (B, N, N, C) float, any range, N a multiple of 4 and at least 32.

    Returns:
      () float32, about 1 without a pattern: compare with real images' value.

    Raises:
      UserError: images that are not square, of another side, or not floats.
    """
    _check(images)
    side = images.shape[1]
    if side % 4 or side < 32:
        raise UserError(f"checkerboard needs sides that are 32, 36, 40, ..., not {side}: crop.")
    power = jnp.log(_windowed_power(images).mean(0) + 1e-12)
    steps = np.arange(-3, 4)
    ring = [(i, j) for i in steps for j in steps if max(abs(i), abs(j)) == 3]
    lattice = np.array([(i, j) for i in range(4) for j in range(4) if i or j]) * (side // 4)
    around = (lattice[:, None] + np.array(ring)[None]) % side
    excess = power[tuple(lattice.T)] - power[tuple(around.transpose(2, 0, 1))].mean(1)
    return jnp.exp(excess.mean())


def sharpness(real_power: Array, fake_power: Array) -> Array:
    """The power of generated images at high frequencies, relative to that of real ones.

    Of each set the mean spectrum is taken: single images differ too much to be compared. Then
    follows the geometric mean of the ratios over the upper half of the frequencies. As power falls
    so steeply, a ratio of sums would tell of the lowest of them alone; in logarithms every
    frequency counts alike, and exchanging the sets inverts the value.

    Args:
      real_power, fake_power: (..., R), spectra of `power_spectrum` or means of them, of images of
        one size.

    Returns:
      () float32: 1, as sharp as real; below, blurred; above, noise, artefacts or too much contrast.
      0 where all generated images are constant.

    Raises:
      UserError: spectra of images of different sizes.
    """
    if real_power.shape[-1] != fake_power.shape[-1]:
        raise UserError(
            f"Spectra of {real_power.shape[-1]} and of {fake_power.shape[-1]} frequencies don't "
            "compare: take images of one size."
        )
    real, fake = (_upper_half(power) for power in (real_power, fake_power))
    return jnp.exp(jnp.mean(jnp.log(fake) - jnp.log(real)))


def _windowed_power(images: Array) -> Array:
    """(B, N, N): |FFT|^2 of the channels' mean under the window, by the window's energy."""
    window = _hann(images.shape[1])
    grey = images.astype(jnp.float32).mean(-1)
    mean = jnp.sum(grey * window, (1, 2), keepdims=True) / window.sum()
    return jnp.abs(jnp.fft.fft2((grey - mean) * window)) ** 2 / (window**2).sum()


def _upper_half(power: Array) -> Array:
    """(..., R) -> (R // 2,): of the mean, what lies above half of the highest frequency."""
    frequencies = power.shape[-1]
    return jnp.mean(power.reshape(-1, frequencies), 0)[-(frequencies // 2) :]


def _hann(side: int) -> np.ndarray:
    """The window (1, side, side), periodic as the transform is."""
    row = np.sin(np.pi * np.arange(side) / side) ** 2
    return np.outer(row, row)[None].astype(np.float32)


def _radius(side: int) -> np.ndarray:
    """The rounded distance from 0 of each frequency of the transform, in its order: (side^2,)."""
    k = np.fft.fftfreq(side, 1 / side)
    return np.rint(np.hypot(k[:, None], k[None])).astype(np.int32).ravel()


def _check(images: Array) -> None:
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise UserError(
            f"A power spectrum needs square images (B, N, N, C), not {images.shape}: crop them."
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"A power spectrum needs floats, not {images.dtype}: convert images first, uint8 by "
            "x / 127.5 - 1."
        )
