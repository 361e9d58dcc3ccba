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
        kinds = [SIXTEEN] * file.mode.startswith("I")
        image = eight_bit(ImageOps.exif_transpose(file))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        kinds.append(CLEAR)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1), kinds
