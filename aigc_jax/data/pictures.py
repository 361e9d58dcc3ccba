"""Image files by name, each with the class it is taken for, read as training reads its images."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from aigc_jax.data.folders import Unreadable, decode, find_folder, image_files
from aigc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file; `name` is its path below the folder that was given."""

    path: Path
    name: str
    label: int | None = None


def find(
    source: str, class_names: Sequence[str] | None = None, flag: str = "--input"
) -> list[Picture]:
    """The images of a folder, in order, or the one of a file.

    Args:
      class_names: where given, the images must lie in subfolders of these names, or of a class's
        number; a picture's label is its name's place here.
      flag: by which a user gave the source.

    Raises:
      UserError: there are no images, or one lies elsewhere.
    """
    root, paths = _files(source, flag)
    names = [path.relative_to(root).as_posix() for path in paths]
    if class_names is None:
        return [Picture(path, name) for path, name in zip(paths, names, strict=True)]
    labels = {str(label): label for label in range(len(class_names))}
    labels |= {name: label for label, name in enumerate(class_names)}
    for name in names:
        if "/" not in name or name.partition("/")[0] not in labels:
            known = ", ".join(class_names[:10]) + ", ..." * (len(class_names) > 10)
            raise UserError(
                f"--input {source}: the run is conditional: give --label, or put the images into "
                f"subfolders named after its classes ({known}), unlike {name}."
            )
    return [
        Picture(path, name, labels[name.partition("/")[0]])
        for path, name in zip(paths, names, strict=True)
    ]


def remarks(skipped: Sequence[str], converted: Mapping[str, int] | None = None) -> list[str]:
    """Lines on files that are no readable images, and on how many were converted, and how."""
    lines = [f"Images {kind}: {count}." for kind, count in (converted or {}).items()]
    return lines + [f"Skipped, as no readable image: {len(skipped)} files."] * bool(skipped)


def _files(source: str, flag: str) -> tuple[Path, list[Path]]:
    place = Path(source).expanduser()
    if place.is_file():
        return place.parent, [place]
    root = find_folder(source.removeprefix("folder:")) if source else None
    if root is None:
        raise UserError(f"{flag} {source}: there is no such folder or image file.")
    paths = image_files(root)
    if not paths:
        raise UserError(f"{flag} {source}: the folder holds no images.")
    return root, paths


class Reader:
    """Pictures at one size; those that can't be read are named, counted, and left out.

    Attributes:
      resized: how many were of another size so far.
    """

    def __init__(self, image_size: int, channels: int) -> None:
        self._size, self._channels = image_size, channels
        self._bad = Unreadable("", 0)
        self.resized = 0

    def __call__(self, pictures: Sequence[Picture]) -> list[np.ndarray | None]:
        """(S, S, C) uint8 for each, None where it can't be read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda p: self._bad.attempt(self._read, p.path), pictures))
        self.resized += sum(pair[1] for pair in found if pair)
        return [pair and pair[0] for pair in found]

    def stacks(
        self, pictures: Sequence[Picture], size: int
    ) -> Iterator[tuple[list[Picture], np.ndarray]]:
        """The readable ones and their images (B, S, S, C), of `size` files at a time."""
        starts = range(0, len(pictures), size)
        for start in tqdm(starts, "images", delay=2, leave=False, disable=None):
            some = pictures[start : start + size]
            images = self(some)
            kept = [i for i, image in enumerate(images) if image is not None]
            if kept:
                yield [some[i] for i in kept], np.stack([images[i] for i in kept])

    @property
    def skipped(self) -> list[str]:
        """The files that turned out to be unreadable."""
        return sorted(map(str, self._bad.files))

    def _read(self, path: Path) -> tuple[np.ndarray, bool]:
        with Image.open(path) as image:
            resized = image.size != (self._size, self._size)
        return decode(path, self._size, self._channels), resized
