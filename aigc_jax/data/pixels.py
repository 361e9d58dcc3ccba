"""An encoded image to uint8, as Pillow converts it, and in words what that did to it."""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image

from aigc_jax.data.folders import eight_bit

_ORIENTATION = 0x0112  # EXIF's tag
_ALPHA = "have an alpha channel, which is dropped, not blended"
_BANDS = {"1": 1, "L": 1, "I": 1, "LA": 2, "La": 2, "RGBA": 4, "RGBa": 4}  # the others: 3


def size(file: Callable[[], BinaryIO]) -> tuple[int, int]:
    """(H, W) of an encoded image, from its header. `file` opens it."""
    with file() as data, Image.open(data) as image:
        return image.height, image.width


def decode(file: Callable[[], BinaryIO], channels: int) -> tuple[np.ndarray, list[str]]:
    """(H, W, channels) uint8 by Pillow's `convert`, and the kinds of conversion that it took.

    Of several frames the first is read; 16-bit grey is scaled (see `folders.eight_bit`). Raises
    ValueError for float pixels, and whatever Pillow raises for broken files.
    """
    with file() as data, Image.open(data) as image:
        if image.mode == "F":
            raise ValueError("float pixels: save 8 bits")
        said = _said(image, channels)
        image.load()
        if _orientation(image) != 1:
            said.append("have an EXIF orientation, which is not applied")
        image = eight_bit(image)
        mode = "L" if channels == 1 else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels), said


def _said(image: Image.Image, channels: int) -> list[str]:
    mode = image.mode
    bands = _BANDS.get(mode.partition(";")[0], 3)
    said = kinds(bands, channels)
    if ("transparency" in image.info or mode == "PA") and _ALPHA not in said:
        said.append(_ALPHA)
    if mode in ("P", "PA"):
        said.append("have a palette, which is looked up")
    elif bands == 3 and mode != "RGB":
        said.append(f"are {mode}, converted without a colour profile")
    if mode.startswith("I"):
        said.append("have 16 bits, scaled to 8 by round(v / 257) (Pillow would clip them at 255)")
    elif image.format in ("PNG", "TIFF") and image.tile and ";16" in str(image.tile[0][3]):
        said.append("have 16 bits a channel, of which the upper 8 are kept")
    if getattr(image, "is_animated", False):
        said.append("have several frames: the first is read")
    return said


def kinds(found: int, channels: int) -> list[str]:
    """What happens to images of so many channels on the way to `channels`."""
    said = [_ALPHA] if found in (2, 4) else []
    if found < 3 and channels == 3:
        said.append("are grey, repeated over 3 channels")
    if found >= 3 and channels == 1:
        said.append("are in colour, turned grey (ITU-R 601 luma)")
    return said


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of a broken block, which the pixels do not need
        return 1


def convert(images: np.ndarray, channels: int) -> np.ndarray:
    """(..., C) uint8, C in {1, 3, 4}, to `channels`, to the bit as Pillow converts images."""
    found = images.shape[-1]
    if found == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1) if found == 1 else images[..., :3].copy()
    luma = images[..., :3].astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]
