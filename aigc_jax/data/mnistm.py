"""MNIST-M: `mnistm[:SPLIT]`, digits blended with crops of photographs.

Ganin et al. 2016 (Domain-adversarial training of neural networks, section 5.2.4) blend MNIST's
digits with patches of BSDS500 as |photo - digit|, a channel at a time. Here the photographs are
CIFAR-10's of the same split, so that the set is made of two that TFDS has.
"""

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from aigc_jax.data.dataset import Dataset, Request, progress, resized, to_channels
from aigc_jax.data.records import read_tfds

_SIZE = 28
_BLOCK = 1024  # digits at once


def read_mnistm(request: Request) -> Dataset:
    """MNIST's digits in its order, in colour, with its labels.

    SPLIT is as TFDS has it, e.g. "train[:30000]"; what lies behind a digit doesn't depend on it.
    All digits stay in memory at 28x28; where they don't fit `cache_bytes` at the size asked for,
    they are resized whenever they are read.
    """
    split = request.place or request.split
    parts = ["train", "test"] if split == "all" else split.split("+")
    images, labels, names = zip(*(_part(request, part) for part in parts), strict=True)
    channels = request.channels or 3
    images = to_channels(np.concatenate(images), channels)
    return Dataset(
        name=f"mnistm/{split}",
        num_examples=len(images),
        image_size=request.image_size,
        channels=channels,
        class_names=names[0],
        labels=np.concatenate(labels),
        **_held(request, images),
    )


def blend(digits: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """|photo - digit| for each channel.

    Args:
      digits: (N, S, S, 1) uint8.
      photos: (M, H, W, C) uint8, H and W at least S. Which one is taken, where it is cut and
        whether it is mirrored depends on nothing but the digit's own bytes.

    Returns:
      (N, S, S, C) uint8.
    """
    size = digits.shape[1]
    patches = np.lib.stride_tricks.sliding_window_view(photos, (size, size), axis=(1, 2))
    count, ys, xs = patches.shape[:3]
    number, mirrored = np.divmod(_hashes(digits), np.uint64(2))
    row, y, x = np.unravel_index(
        (number % np.uint64(count * ys * xs)).astype(np.int64), (count, ys, xs)
    )
    cut = np.moveaxis(patches[row, y, x], 1, -1)
    cut = np.where(mirrored[:, None, None, None] == 1, cut[:, :, ::-1], cut)
    return np.maximum(cut, digits) - np.minimum(cut, digits)


def _hashes(digits: np.ndarray) -> np.ndarray:
    """64 bits for each image, of its bytes: BLAKE2b."""
    bits = [hashlib.blake2b(digit.tobytes(), digest_size=8).digest() for digit in digits]
    return np.frombuffer(b"".join(bits), "<u8")


def _part(request: Request, part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Blended digits, labels and class names of one split or slice."""
    digits = _tfds(request, f"mnist/{part}", _SIZE, 1)
    photos = _tfds(request, f"cifar10/{part.partition('[')[0]}", 32, 3).images
    starts = range(0, digits.num_examples, _BLOCK)
    images = [blend(digits.images[start : start + _BLOCK], photos) for start in starts]
    return np.concatenate(images), digits.labels, digits.class_names


def _tfds(request: Request, place: str, size: int, channels: int) -> Dataset:
    return read_tfds(Request(place, "train", request.data_dir, size, channels, sys.maxsize))


def _held(request: Request, images: np.ndarray) -> dict[str, Any]:
    """`Dataset.images` where they fit, else `Dataset.read`."""
    size = request.image_size
    if not request.fits(len(images), images.shape[-1]):
        return {"read": _reader(images, size)}
    if size != _SIZE:
        images = np.stack([resized(image, size) for image in progress(images, "mnistm")])
    return {"images": images}


def _reader(images: np.ndarray, size: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([resized(images[row], size) for row in rows]), rows

    return read
