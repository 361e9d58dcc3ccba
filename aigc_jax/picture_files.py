"""Image files of any size: read in threads, in groups of one size; a PNG written of each."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from aigc_jax import latents
from aigc_jax.anysize import AnySize
from aigc_jax.data import folders, pictures
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError
from aigc_jax.writers import save_png

T = TypeVar("T")
Size = tuple[int, int]

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values of images on their side
_ALPHA = ("LA", "PA", "RGBA")


class PictureFiles:
    """The image files of a folder, or one file; those that can't be read are named and left out.

    Args:
      source: as a user gave it.
      flag: by which.

    Attributes:
      sizes: {file: (H, W)} of those with an image's header, in order.

    Raises:
      UserError: there are none.
    """

    def __init__(self, source: str, flag: str = "--input") -> None:
        self._source, self._flag = source, flag
        self._bad = folders.Unreadable("", 0)
        self._files = pictures.find(source, flag=flag)
        self._targets = latents.targets(self._files)
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self.sizes: dict[Picture, Size] = self.read(size, self._files)
        if not self.sizes:
            raise self.none()

    @property
    def skipped(self) -> list[str]:
        """The files that turned out to be unreadable."""
        return sorted(map(str, self._bad.files))

    def read(self, function: Callable[[Path], T], files: Sequence[Picture]) -> dict[Picture, T]:
        """`function(path)` of each file that can be read."""
        found = self._pool.map(lambda file: self._bad.attempt(function, file.path), files)
        pairs = zip(files, found, strict=True)
        return {file: result for file, result in pairs if result is not None}

    def progress(self) -> Iterator[Picture]:
        """File by file, with a progress bar."""
        return iter(tqdm(self.sizes, unit="image", delay=2, leave=False, disable=None))

    def batches(self, network: AnySize) -> Iterator[tuple[list[Picture], int]]:
        """Files that go through a network at one size, and how many do at once; a progress bar."""
        groups: dict[Size, list[Picture]] = {}
        for file, (height, width) in self.sizes.items():
            groups.setdefault(network.padded(height, width), []).append(file)
        with tqdm(
            total=len(self.sizes), unit="image", delay=2, leave=False, disable=None
        ) as progress:
            for padded, files in groups.items():
                at_once = network.batch_size(padded, len(files))
                for start in range(0, len(files), at_once):
                    yield files[start : start + at_once], at_once
                    progress.update(len(files[start : start + at_once]))

    def name(self, file: Picture) -> str:
        """Of a file's PNG below the folder that is written to."""
        return self._targets[file]

    def write(self, images: Mapping[Picture, np.ndarray], out: Path) -> None:
        """(H, W, C) uint8 each, to its place."""
        paths: Iterable[Path] = [out / self.name(file) for file in images]
        list(self._pool.map(save_png, images.values(), paths))

    def none(self) -> UserError:
        """To be raised when none could be read."""
        n = len(self._files)
        return UserError(f"{self._flag} {self._source}: {n} image files, and none can be read.")


def picture(path: Path, channels: int) -> Image.Image:
    """As training reads it, but for what is transparent, which is white."""
    with Image.open(path) as image:
        if not transparent(image):
            return folders.picture(path, channels)
        image = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("L" if channels == 1 else "RGB")


def transparent(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a colour that stands for none."""
    return image.mode in _ALPHA or ("transparency" in image.info and image.mode[0] != "I")


def size(path: Path) -> Size:
    """(H, W) of an image once it is upright, by its header."""
    with Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)
