"""Degradations of images, each a seeded function of TensorFlow, in chains: `"blur(2),noise(25)"`.

=============================  ==================================================================
noise(sigma)                   Gaussian, of a standard deviation in grey levels of 255
poisson(peak)                  photon counts, of so many photons at white
salt_pepper(share)             this share of the pixels becomes black or white, as many of each
speckle(sigma)                 Gaussian in proportion to the light: sigma at white, 0 at black
blur(sigma)                    Gaussian, in pixels
motion(length)                 along a line of so many pixels, at a random angle
defocus(radius)                over a disc, in pixels
jpeg(quality)                  as libjpeg has it, 1 to 100
downsample(factor)             to a smaller size and back: bicubic, the way down antialiased
quantize(levels)               so many for each channel, evenly spaced from black to white
elastic(strength, smoothness)  each place moves by a smooth random field, of a standard deviation
                               of strength pixels in either direction: white noise, smoothed by a
                               Gaussian (8 pixels)
perspective(share)             each corner moves by up to this share of the side, either way
blind                          a random chain, see `BLIND`
same                           nothing
=============================  ==================================================================

A number may be a range, `noise(0..55)`: every image then draws its own. Adding a degradation is
adding one function. It takes TensorFlow, an image (H, W, C) float32, in [-1, 1] but for what
earlier noise made of it, a seed (2,) int32, and a float32 scalar for each parameter, and returns
an image of the same shape, which nobody clips.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from aigc_jax.data import tensorflow
from aigc_jax.data.warps import grid, mirrored, sampled
from aigc_jax.operations import Kinds, Operation, Parameter, Range, fold

# What may befall a photograph, in the order in which it does: of each row one at random.
BLIND = (
    "same|blur(0..3)|motion(0..15)|defocus(0..4)",
    "same|downsample(1..4)",
    "same|noise(0..55)|poisson(10..1000)|speckle(0..55)|salt_pepper(0..0.1)",
    "same|jpeg(20..95)",
)
KINDS = Kinds("degradation")


def parse(text: str) -> tuple[Operation, ...]:
    """A chain of degradations, "noise(0..55),jpeg(40)".

    Raises:
      UserError: an unknown one, too few or too many arguments, or one out of range.
    """
    return KINDS.parse(text)


def apply(operations: Sequence[Operation], image: Any, seed: Any) -> Any:
    """One image through a chain.

    Args:
      image: (H, W, C) float32 in [-1, 1], C 1 or 3; H and W may be unknown until it is run.
      seed: (2,) int32; the result is a function of it and of the image.

    Returns:
      the same shape, float32, not clipped.
    """
    tf, degraded = tensorflow(), image
    for place, operation in enumerate(operations):
        degraded = KINDS.run(tf, operation, degraded, fold(tf, seed, place))
    return tf.ensure_shape(degraded, image.shape)


def batch(operations: Sequence[Operation], images: Any, seeds: Any) -> Any:
    """`apply` to each of (B, H, W, C), by its own of `seeds` (B, 2)."""
    tf = tensorflow()
    return tf.map_fn(
        lambda each: apply(operations, *each),
        (tf.convert_to_tensor(images), tf.convert_to_tensor(seeds)),
        fn_output_signature=tf.float32,
    )


def arrays(operations: Sequence[Operation], images: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """`batch` outside of a stream: images (B, H, W, C) uint8 to uint8, clipped and rounded."""
    return _run(operations, images, seeds, rounded=True)


def floats(operations: Sequence[Operation], images: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """`batch` outside of a stream: images (B, H, W, C) uint8 to float32, neither of the two."""
    return _run(operations, images, seeds, rounded=False)


def _run(
    operations: Sequence[Operation], images: np.ndarray, seeds: np.ndarray, rounded: bool
) -> np.ndarray:
    tf, function = tensorflow(), _compiled(tuple(operations), images.shape[-1], rounded)
    return function(tf.constant(images), tf.constant(seeds, tf.int32)).numpy()


@functools.lru_cache(maxsize=16)
def _compiled(operations: tuple[Operation, ...], channels: int, rounded: bool) -> Any:
    tf = tensorflow()
    images = tf.TensorSpec([None, None, None, channels], tf.uint8)

    def degraded(images: Any, seeds: Any) -> Any:
        made = batch(operations, tf.cast(images, tf.float32) / 127.5 - 1, seeds)
        return _bytes(tf, made) if rounded else made

    signature = [images, tf.TensorSpec([None, 2], tf.int32)]
    function = tf.function(degraded, input_signature=signature, autograph=False)
    return function.get_concrete_function()


@KINDS.add(Parameter("sigma", 0, 255))
def noise(tf: Any, image: Any, seed: Any, sigma: Any) -> Any:
    """Gaussian."""
    return image + sigma / 127.5 * tf.random.stateless_normal(tf.shape(image), seed)


@KINDS.add(Parameter("peak", 0.1, 1e6))
def poisson(tf: Any, image: Any, seed: Any, peak: Any) -> Any:
    """Photon counts over the peak; what is darker than black counts as black."""
    rate = peak * tf.maximum((image + 1) / 2, 0)
    counts = tf.random.stateless_poisson(tf.shape(image), seed, rate, tf.float32)
    return 2 * counts / peak - 1


@KINDS.add(Parameter("share", 0, 1))
def salt_pepper(tf: Any, image: Any, seed: Any, share: Any) -> Any:
    """Whole pixels, all channels of them."""
    u = tf.random.stateless_uniform(tf.concat([tf.shape(image)[:2], [1]], 0), seed)
    hit = tf.where(u < share / 2, -tf.ones_like(u), tf.ones_like(u))
    return tf.where(u < share, hit, image)


@KINDS.add(Parameter("sigma", 0, 255))
def speckle(tf: Any, image: Any, seed: Any, sigma: Any) -> Any:
    """Gaussian times the light."""
    return image + (image + 1) / 2 * noise(tf, tf.zeros_like(image), seed, sigma)


@KINDS.add(Parameter("sigma", 0, 50))
def blur(tf: Any, image: Any, seed: Any, sigma: Any) -> Any:
    """Gaussian, cut off at four sigma; the border is mirrored."""
    return _convolved(tf, image, _gaussian(tf, sigma))


@KINDS.add(Parameter("length", 0, 200))
def motion(tf: Any, image: Any, seed: Any, length: Any) -> Any:
    """Over a line a pixel wide, through the pixel in the middle; of one pixel, no blur."""
    angle = math.pi * tf.random.stateless_uniform([], seed)
    reach = tf.maximum(length - 1, 0) / 2
    y, x = _around(tf, reach + 1)
    along = x * tf.cos(angle) + y * tf.sin(angle)
    across = y * tf.cos(angle) - x * tf.sin(angle)
    beyond = tf.maximum(tf.abs(along) - reach, 0)
    return _convolved(tf, image, _unit(tf, tf.maximum(1 - tf.sqrt(beyond**2 + across**2), 0)))


@KINDS.add(Parameter("radius", 0, 50))
def defocus(tf: Any, image: Any, seed: Any, radius: Any) -> Any:
    """Over a disc, the edge of which is a pixel wide."""
    y, x = _around(tf, radius + 1)
    disc = tf.clip_by_value(radius + 0.5 - tf.sqrt(x**2 + y**2), 0, 1)
    return _convolved(tf, image, _unit(tf, disc))


@KINDS.add(Parameter("quality", 1, 100, whole=True))
def jpeg(tf: Any, image: Any, seed: Any, quality: Any) -> Any:
    """To 8 bits, colour at half the resolution as usual, and back."""
    data = tf.raw_ops.EncodeJpegVariableQuality(
        images=_bytes(tf, image), quality=tf.cast(quality, tf.int32)
    )
    pixels = tf.io.decode_jpeg(data, channels=image.shape[-1], dct_method="INTEGER_ACCURATE")
    return tf.cast(pixels, tf.float32) / 127.5 - 1


@KINDS.add(Parameter("factor", 1, 32))
def downsample(tf: Any, image: Any, seed: Any, factor: Any) -> Any:
    """Bicubic, to the nearest size and back."""
    size = tf.shape(image)[:2]
    fewer = tf.maximum(tf.cast(tf.round(tf.cast(size, tf.float32) / factor), tf.int32), 1)
    small = tf.image.resize(image, fewer, "bicubic", antialias=True)
    return tf.image.resize(small, size, "bicubic", antialias=True)


@KINDS.add(Parameter("levels", 2, 256, whole=True))
def quantize(tf: Any, image: Any, seed: Any, levels: Any) -> Any:
    """To the nearest level, black and white the outermost ones."""
    share = tf.clip_by_value((image + 1) / 2, 0, 1)
    return 2 * tf.round(share * (levels - 1)) / (levels - 1) - 1


@KINDS.add(Parameter("strength", 0, 100), Parameter("smoothness", 1, 100, Range(8, 8)))
def elastic(tf: Any, image: Any, seed: Any, strength: Any, smoothness: Any) -> Any:
    """Simard et al. 2003; bilinear, the border mirrored."""
    kernel, size = _gaussian(tf, smoothness), tf.shape(image)[:2]
    kernel = strength * kernel / tf.norm(kernel)  # white noise of variance 1 gets strength^2
    larger = tf.concat([size + tf.shape(kernel) - 1, [2]], 0)
    field = _valid(tf, tf.random.stateless_normal(larger, seed), kernel)
    y, x = grid(tf, size)
    return sampled(tf, image, y + field[..., 0], x + field[..., 1])


@KINDS.add(Parameter("share", 0, 0.2))
def perspective(tf: Any, image: Any, seed: Any, share: Any) -> Any:
    """The unit square to a quadrilateral by Heckbert (1989, section 2.2.3); bilinear, mirrored."""
    size = tf.shape(image)[:2]
    height, width = tf.unstack(tf.cast(size - 1, tf.float32))
    moved = share * tf.random.stateless_uniform([4, 2], seed, -1, 1)
    corners = moved + tf.constant([[0, 0], [0, 1], [1, 1], [1, 0]], tf.float32)
    p, q, r, s = tf.unstack(corners)
    a, b, c = q - r, s - r, p - q + r - s
    area = _cross(a, b)
    g, h = _cross(c, b) / area, _cross(a, c) / area
    y, x = grid(tf, size)
    u, v = x / tf.maximum(width, 1), y / tf.maximum(height, 1)
    w = g * u + h * v + 1
    y, x = (
        ((q[i] - p[i] + g * q[i]) * u + (s[i] - p[i] + h * s[i]) * v + p[i]) / w for i in (0, 1)
    )
    return sampled(tf, image, y * height, x * width)


@KINDS.add()
def same(tf: Any, image: Any, seed: Any) -> Any:
    """The image itself."""
    return image


@KINDS.add()
def blind(tf: Any, image: Any, seed: Any) -> Any:
    """One of each row of `BLIND`."""
    shape = image.shape
    for place, row in enumerate(BLIND):
        image = KINDS.run_one(tf, KINDS.parse(row, "|"), image, fold(tf, seed, place))
        image = tf.ensure_shape(image, shape)
    return image


def _bytes(tf: Any, image: Any) -> Any:
    return tf.cast(tf.clip_by_value(tf.round((image + 1) * 127.5), 0, 255), tf.uint8)


def _cross(a: Any, b: Any) -> Any:
    return a[0] * b[1] - a[1] * b[0]


def _unit(tf: Any, kernel: Any) -> Any:
    return kernel / tf.reduce_sum(kernel)


def _gaussian(tf: Any, sigma: Any) -> Any:
    """(2 r + 1, 2 r + 1), of sum 1, r = 4 sigma to the nearest; sigma 0 is no blur."""
    radius = tf.floor(4 * sigma + 0.5)
    x = tf.range(-radius, radius + 1)
    line = _unit(tf, tf.exp(-0.5 * (x / tf.maximum(sigma, 1e-6)) ** 2))
    return line[:, None] * line


def _around(tf: Any, radius: Any) -> tuple[Any, Any]:
    """The y and x of the pixels around one, (2 r + 1, 2 r + 1) each."""
    radius = tf.math.ceil(radius)
    return tf.meshgrid(*[tf.range(-radius, radius + 1)] * 2, indexing="ij")


def _convolved(tf: Any, image: Any, kernel: Any) -> Any:
    """By a kernel of odd sizes, the border mirrored: ... 2 1 0 1 2 ..."""
    for axis in (0, 1):
        n, radius = tf.shape(image)[axis], tf.shape(kernel)[axis] // 2
        image = tf.gather(image, mirrored(tf, tf.range(-radius, n + radius), n), axis=axis)
    return _valid(tf, image, kernel)


def _valid(tf: Any, image: Any, kernel: Any) -> Any:
    """Each channel convolved with a kernel, without a border; by FFT, at any kernel's size."""
    planes = tf.transpose(image, [2, 0, 1])
    size, edge = tf.shape(planes)[1:], tf.shape(kernel) - 1
    spectrum = tf.signal.rfft2d(planes) * tf.signal.rfft2d(kernel, size)
    planes = tf.signal.irfft2d(spectrum, size)[:, edge[0] :, edge[1] :]
    return tf.transpose(planes, [1, 2, 0])
