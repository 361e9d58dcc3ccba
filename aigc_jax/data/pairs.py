"""Pairs: `pairs:DIR`, images that hold two pictures of one scene side by side."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aigc_jax.data.dataset import Dataset, Request
from aigc_jax.data.folders import Files, existing, picture
from aigc_jax.errors import UserError


def read_pairs(request: Request) -> Dataset:
    """Every image below the folder, or below its subfolder of the split's name, sorted by path.

    Each half is resized whole to the square, as published sets of pairs are used (Isola et al.
    2017): nothing is cropped. `channels` of the set are both halves', left before right.
    """
    folder = existing(request.place)
    root = _split_root(folder, request)
    files = Files(f"pairs:{request.place}", root)
    files.check(_mode)
    channels = request.channels or (1 if files.grey else 3)
    held = files.held(request, 2 * channels, functools.partial(_decode, channels=channels))
    return Dataset(
        name=f"{files.name}/{request.split}" if root != folder else files.name,
        num_examples=len(files.paths),
        image_size=request.image_size,
        channels=2 * channels,
        **held,
    )


def halves(image: Image.Image, path: str | Path) -> tuple[Image.Image, Image.Image]:
    """The left and the right half of a side by side image.

    Raises UserError, which names `path`, for an odd width.
    """
    _check(image, path)
    middle = image.width // 2
    left = image.crop((0, 0, middle, image.height))
    return left, image.crop((middle, 0, image.width, image.height))


def _check(image: Image.Image, path: str | Path) -> None:
    if image.width % 2:
        raise UserError(
            f"{path} is no pair: its width of {image.width} pixels does not divide into two halves"
        )


def _mode(path: Path) -> str:
    with Image.open(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        _check(image, path)
        return image.mode


def _decode(path: Path, size: int, channels: int) -> np.ndarray:
    parts = halves(picture(path, channels), path)
    parts = [part.resize((size, size), Image.Resampling.BICUBIC) for part in parts]
    return np.concatenate([np.asarray(part).reshape(size, size, -1) for part in parts], axis=-1)


def _split_root(folder: Path, request: Request) -> Path:
    """`DIR/SPLIT`; DIR itself is all there is to train on where it has no such subfolders."""
    if (folder / request.split).is_dir():
        return folder / request.split
    splits = [name for name in ("train", "val", "test") if (folder / name).is_dir()]
    if splits:
        raise UserError(
            f"pairs:{request.place} has no split {request.split!r}, but {', '.join(splits)}: set "
            "config.data.split and config.eval.split"
        )
    if request.split not in ("train", "all"):
        raise UserError(
            f"pairs:{request.place} has no split {request.split!r}: put its images into "
            "subfolders 'train' and 'test'"
        )
    return folder
