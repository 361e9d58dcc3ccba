"""An image file at its own size, grey or in colour as it is."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aigc_jax.data.folders import eight_bit

SIXTEEN = "of 16 bits, scaled to 8"
CLEAR = "with transparency, put on white"


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """A file, turned as its EXIF says, and how it was converted: `SIXTEEN`, `CLEAR`.

    Returns:
      (H, W, 1 or 3) uint8, and those of the two that hold.

    Raises:
      whatever Pillow does, for what is no readable image.
    """
    with Image.open(path) as file:
        if file.mode == "F":
            raise ValueError("pixels of floats: save it with 8 or 16 bits")
        deep = file.mode.startswith("I") or _is_deep(path)
        grey = eight_bit(file).mode in ("1", "L", "LA")
    image, clear = upright(path)
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1), [SIXTEEN] * deep + [CLEAR] * clear


def upright(path: Path) -> tuple[Image.Image, bool]:
    """A file in 8 bits, turned as its EXIF says, and whether it had transparency: white now."""
    with Image.open(path) as file:
        image = eight_bit(ImageOps.exif_transpose(file))
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), True


def _is_deep(path: Path) -> bool:
    """Whether a PNG has 16 bits for each channel, of which Pillow reads 8 in colour."""
    with open(path, "rb") as file:
        header = file.read(25)
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[24:] == bytes([16])
