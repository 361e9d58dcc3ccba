"""Image files of any size: read in threads, in groups of one size; a PNG written of each."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
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


class PictureFiles:
    """The image files of a folder, or one file; those that can't be read are named and left out.

    Args:
      source: as a user gave it.
      flag: by which.

    Attributes:
      flag: as given.
      number: {file: its place} of all of them, readable or not.
      sizes: {file: (H, W)} of those with an image's header, in order.

    Raises:
      UserError: there are none.
    """

    def __init__(self, source: str, flag: str = "--input") -> None:
        self._source, self.flag = source, flag
        self._bad = folders.Unreadable("", 0)
        self._files = pictures.find(source, flag=flag)
        self.number = {file: i for i, file in enumerate(self._files)}
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

    def partners(self, others: "PictureFiles") -> dict[Picture, Picture]:
        """{file: the one of `others` that has its name}, or its stem, and its size.

        Raises:
          UserError: there is none for a file, or several of one stem, or one of another size.
        """
        by_name = {other.name: other for other in others.sizes}
        stems: dict[str, list[Picture]] = {}
        for other in others.sizes:
            stems.setdefault(_stem(other), []).append(other)
        pairs, missing = {}, []
        for file in self.sizes:
            found = [by_name[file.name]] if file.name in by_name else stems.get(_stem(file), [])
            if len(found) > 1:
                raise UserError(
                    f"{others.told()} has {found[0].name} and {found[1].name} for {file.name}: "
                    "leave one of them."
                )
            if found:
                pairs[file] = found[0]
            else:
                missing.append(file.name)
        if missing:
            more = f", nor of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{others.told()} has no image of the name of {missing[0]}{more}: give images of "
                "the same names."
            )
        self.check_sizes(pairs, others)
        return pairs

    def check_sizes(self, pairs: Mapping[Picture, Picture], others: "PictureFiles") -> None:
        """UserError where a file and its partner differ in size."""
        for file, other in pairs.items():
            (h, w), (h2, w2) = self.sizes[file], others.sizes[other]
            if (h, w) != (h2, w2):
                raise UserError(
                    f"{others.flag}: {other.path} is {w2}x{h2} and {file.path} {w}x{h}: they must "
                    "be of one size."
                )

    def told(self) -> str:
        """As a user gave it: "--target truth"."""
        return f"{self.flag} {self._source}"

    def write(self, images: Mapping[Picture, np.ndarray], out: Path) -> None:
        """(H, W, C) uint8 each, to its place."""
        paths: Iterable[Path] = [out / self._targets[file] for file in images]
        list(self._pool.map(save_png, images.values(), paths))

    def none(self) -> UserError:
        """To be raised when none could be read."""
        n = len(self._files)
        return UserError(f"{self.flag} {self._source}: {n} image files, and none can be read.")


def _stem(file: Picture) -> str:
    return Path(file.name).with_suffix("").as_posix()


def size(path: Path) -> Size:
    """(H, W) of an image once it is upright, by its header."""
    with Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)
