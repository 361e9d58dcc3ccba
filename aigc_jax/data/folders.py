"""Folders of images: `folder:DIR`, with class subfolders and captions where there are any."""

import concurrent.futures
import functools
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aigc_jax.data import captions
from aigc_jax.data.dataset import Dataset, Request, progress, square, whole
from aigc_jax.data.generated import check_real
from aigc_jax.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
_BAD_SHARE = 0.01  # of unreadable files, above which the run fails
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")

_log = logging.getLogger(__name__)


def find_folder(path: str) -> Path | None:
    """The folder `path`, under the working directory or under `$AIGC_DATA_DIR/images`."""
    shared = os.environ.get("AIGC_DATA_DIR")
    roots = [Path(), *([Path(shared, "images")] if shared else [])]
    found = (root / os.path.expanduser(path) for root in roots)
    return next((folder for folder in found if folder.is_dir()), None)


def read_folder(request: Request, generated: bool = False) -> Dataset:
    """Every image below the folder, sorted by path; unreadable files are named and left out.

    UserError if they are not `generated` and a model made them.
    """
    folder = existing(request.place)
    root, halves = _split_root(folder, request)
    files = Files(f"folder:{request.place}", root)
    if not generated:
        check_real(files.name, root, files.paths)
    files.check(mode)
    channels = request.channels or (1 if files.grey else 3)
    held = files.held(request, channels, functools.partial(decode, channels=channels))
    names, labels = _labels(root, halves, files.paths)
    return Dataset(
        name=f"{files.name}/{request.split}" if root != folder else files.name,
        num_examples=len(files.paths),
        image_size=request.image_size,
        channels=channels,
        class_names=names,
        labels=labels,
        fields=captions.fields(files.name, root, files.paths),
        **held,
    )


def existing(place: str) -> Path:
    """`find_folder`, or a UserError."""
    folder = find_folder(place)
    if folder is None:
        raise UserError(f"no folder {place!r} in {Path.cwd()} or $AIGC_DATA_DIR/images")
    return folder


def _split_root(folder: Path, request: Request) -> tuple[Path, list[Path]]:
    """Where the split's images lie, and every folder whose subfolders name classes."""
    halves = [folder / "train", folder / "test"]
    if all(half.is_dir() for half in halves):
        if request.split not in ("train", "test"):
            raise UserError(f"folder:{request.place} has the splits 'train' and 'test' alone")
        return folder / request.split, halves
    whole(request, "folder", "put its images into subfolders 'train' and 'test'")
    return folder, [folder]


def image_files(root: Path, extensions: Collection[str] = EXTENSIONS) -> list[Path]:
    """Every image below `root`, in order; hidden files and folders are not data."""
    paths = [
        Path(where, name)
        for where, names in _walk(root)
        for name in names
        if os.path.splitext(name)[1].lower() in extensions
    ]
    return sorted(
        path
        for path in paths
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    for where, folders, names in os.walk(root, followlinks=True):
        # A link to a folder above it would be followed again and again.
        folders[:] = [folder for folder in folders if not _returns(Path(where, folder))]
        yield where, names


def _returns(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in [p.resolve() for p in folder.parents]


def _labels(
    root: Path, halves: list[Path], paths: list[Path]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """First-level subfolders as classes, where every image lies in one."""
    folders = [_class(root, path) for path in paths]
    if None in folders:
        return (), None
    # A class may be missing from one split: its number must not depend on that.
    others = {_class(half, path) for half in halves for path in image_files(half)} - {None}
    order = {name: number for number, name in enumerate(sorted({*folders, *others}))}
    return tuple(order), np.array([order[name] for name in folders], np.int32)


def _class(root: Path, path: Path) -> str | None:
    folders = path.relative_to(root).parts[:-1]
    return folders[0] if folders else None


def decode(path: Path, size: int, channels: int) -> np.ndarray:
    """One file as (S, S, C) uint8, as training reads it; raises whatever Pillow does."""
    return np.asarray(square(picture(path, channels), size)).reshape(size, size, channels)


def picture(path: Path, channels: int) -> Image.Image:
    """One file, turned as its EXIF says, in mode L or RGB; raises whatever Pillow does."""
    with Image.open(path) as image:
        image = eight_bit(ImageOps.exif_transpose(image))
        return image.convert("L" if channels == 1 else "RGB")


def eight_bit(image: Image.Image) -> Image.Image:
    """16 bits scaled to 8 (Pillow's `convert` clips them at 255), and a palette's transparency.

    Raises ValueError for integers that do not fit 16 bits.
    """
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels in [{pixels.min()}, {pixels.max()}], not in 16 bits")
        return Image.fromarray(np.round(pixels / 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def mode(path: Path) -> str:
    """Pillow's mode of a file, from its header."""
    with Image.open(path) as image:
        return image.mode


class Unreadable:
    """The files of a set that are no readable images: few are named and left out, many refused."""

    def __init__(self, name: str, total: int) -> None:
        self.files: dict[Any, Exception] = {}
        self._name, self._total = name, total
        self._lock = threading.Lock()

    def attempt(self, function: Callable[[Any], Any], file: Any) -> Any:
        """`function(file)`, or None where that fails, which is said once; for any thread.

        A UserError goes on: the file can be read, and is not what was asked for.
        """
        try:
            return function(file)
        except UserError:
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and others
            with self._lock:
                new = file not in self.files
                self.files[file] = error
            if new:
                _log.warning("skipped %s (unreadable: %d): %s", file, len(self.files), why(error))
            return None

    def refuse_many(self) -> None:
        """Raises UserError once more than one in a hundred could not be read."""
        with self._lock:  # other threads may be adding to it
            bad = sorted(self.files)
        if len(bad) > _BAD_SHARE * self._total:
            raise UserError(
                f"{len(bad)} of the {self._total} files of {self._name} are no readable images, "
                f"more than {_BAD_SHARE:.0%}: {', '.join(map(str, bad[:3]))} "
                f"({why(self.files[bad[0]])}); remove or replace them"
            )


def why(error: Exception) -> str:
    """The reason in one line; Pillow's names an object in memory, which tells nobody anything."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    return str(error).partition("\n")[0] or type(error).__name__


class Files:
    """The readable images below a folder, and what was wrong with the others.

    Raises UserError for a folder without images.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.paths = name, image_files(root)
        if not self.paths:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise UserError(f"no images in {str(root)!r}: looked for {kinds}")
        self.grey = False
        self._bad = Unreadable(name, len(self.paths))

    def check(self, mode: Callable[[Path], str]) -> None:
        """Leave out what has no image's header, and see whether all the rest is grey."""
        modes = self._each(mode)
        self.grey = all(mode in GREY for mode in modes if mode)
        self._keep(modes)

    def held(
        self, request: Request, channels: int, decode: Callable[[Path, int], np.ndarray]
    ) -> dict[str, Any]:
        """`Dataset.images` where they fit, else `Dataset.read`, by `decode(path, size)`."""
        size = request.image_size

        def one(path: Path) -> np.ndarray:
            return decode(path, size)

        if request.fits(len(self.paths), channels):
            return {"images": self._all(one, (size, size, channels))}
        return {"read": self._reader(one)}

    def _all(self, one: Callable[[Path], np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
        images = np.empty((len(self.paths), *shape), np.uint8)
        row = {path: number for number, path in enumerate(self.paths)}

        def fill(path: Path) -> bool:
            images[row[path]] = one(path)
            return True

        done = self._each(fill)
        self._keep(done)
        return images if all(done) else images[[ok is not None for ok in done]]

    def _reader(
        self, one: Callable[[Path], np.ndarray]
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """A file that turns out to be unreadable gives way to the next one."""
        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

        def readable(row: int) -> tuple[np.ndarray, int]:
            while (image := self._bad.attempt(one, self.paths[row])) is None:
                self._bad.refuse_many()
                row = (row + 1) % len(self.paths)
            return image, row

        def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            images, used = zip(*pool.map(readable, rows), strict=True)
            return np.stack(images), np.array(used, np.int64)

        return read

    def _each(self, function: Callable[[Path], Any]) -> list[Any]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(lambda path: self._bad.attempt(function, path), self.paths)
            return list(progress(results, self.name, total=len(self.paths)))

    def _keep(self, results: list[Any]) -> None:
        pairs = zip(self.paths, results, strict=True)
        self.paths = [path for path, result in pairs if result is not None]
        self._bad.refuse_many()
