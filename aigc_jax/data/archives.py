"""Files that hold many images, read piece by piece: .zip of image files, .npz of one array."""

import dataclasses
import functools
import io
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import numpy as np

from aigc_jax.errors import UserError

_KEYS = ("arr_0", "images")
_STATISTICS = ("mu", "sigma")
_DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def zip_images(path: str, extensions: Collection[str]) -> list[tuple[str, Callable[[], BinaryIO]]]:
    """(name, opener) of the images in an archive, sorted by name; hidden ones are not data.

    Openers may be called by several threads. Raises UserError for what is no archive, and for
    images under a password.
    """
    archive, lock = _open(path, "a .zip"), threading.Lock()
    files = [(PurePosixPath(info.filename), info) for info in archive.infolist()]
    files = [
        (name, info)
        for name, info in sorted(files, key=lambda file: file[0])
        if name.suffix.lower() in extensions and not any(p.startswith(".") for p in name.parts)
    ]
    locked = [name for name, info in files if info.flag_bits & 1]
    if locked:
        raise UserError(f"{path!r} is encrypted ({locked[0]}): unpack it and give the folder")
    return [(str(name), functools.partial(_member, archive, info, lock)) for name, info in files]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, lock: threading.Lock) -> BinaryIO:
    # Opening and closing count references without a lock of their own; reading has one.
    with lock:
        file = archive.open(info)
    try:
        return io.BytesIO(file.read())
    finally:
        with lock:
            file.close()


def _open(path: str, kind: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(Path(path).expanduser())
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path!r} as {kind} file: {reason}") from error


def is_statistics(path: str) -> bool:
    """Whether `path` is an .npz with arrays `mu` and `sigma`, by its list of contents alone.

    Reference files of ADM's evaluator (`VIRTUAL_*.npz`) are, and hold images besides.
    """
    try:
        with zipfile.ZipFile(Path(path.removeprefix("npz:")).expanduser()) as archive:
            return _arrays(archive).issuperset(_STATISTICS)
    except (OSError, zipfile.BadZipFile):
        return False


def _arrays(archive: zipfile.ZipFile) -> set[str]:
    return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """The images of an .npz, `arr_0` or `images`, left in the file: of `shape`, (N, H, W[, C])."""

    path: str
    key: str
    shape: tuple[int, ...]

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array in order, in read-only pieces of `rows` images. Raises UserError for damage."""
        with _open(self.path, "an .npz") as archive, archive.open(f"{self.key}.npy") as file:
            _, fortran, _ = _header(file)
            if fortran:  # its images are not stored one after the other
                yield from _fortran_blocks(file, self.shape, rows)
                return
            for start in range(0, self.shape[0], rows):
                yield self._next(file, min(rows, self.shape[0] - start))

    def _next(self, file: IO[bytes], rows: int) -> np.ndarray:
        shape = (rows, *self.shape[1:])
        try:
            return np.frombuffer(file.read(int(np.prod(shape))), np.uint8).reshape(shape)
        except _DAMAGE as error:
            raise UserError(f"{self.path!r} is damaged: {error}; write it anew") from error


def _fortran_blocks(file: IO[bytes], shape: tuple[int, ...], rows: int) -> Iterator[np.ndarray]:
    whole = np.frombuffer(file.read(), np.uint8).reshape(shape[::-1]).T
    for start in range(0, len(whole), rows):
        yield np.ascontiguousarray(whole[start : start + rows])


def image_array(path: str) -> ImageArray:
    """Finds the uint8 images of an .npz from its header.

    Raises UserError for a file that is none, for one without the key, for statistics, and for
    arrays that are not uint8 (N, H, W, C), C in {1, 3, 4}, or (N, H, W).
    """
    with _open(path, "an .npz") as archive:
        found = _arrays(archive)
        key = next((key for key in _KEYS if key in found), None)
        if key is None:
            raise UserError(_no_images(path, found))
        try:
            with archive.open(f"{key}.npy") as file:
                shape, _, dtype = _header(file)
        except _DAMAGE as error:
            raise UserError(f"{path!r} is damaged: {error}; write it anew") from error
    wrong = _wrong(shape, dtype)
    if wrong:
        raise UserError(f"{path!r} holds {wrong}")
    return ImageArray(path, key, shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """(shape, Fortran order, dtype) of a .npy, whose data come next."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _no_images(path: str, found: set[str]) -> str:
    if found.issuperset(_STATISTICS):
        return f"{path!r} holds statistics (mu, sigma), where images are needed"
    names = ", ".join(sorted(found)) or "nothing"
    return f"{path!r} has no array 'arr_0' or 'images' (it holds {names}): rename the images"


def _wrong(shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """What is wrong with an array of images, and the remedy."""
    if dtype.hasobject:
        return "Python objects: save one uint8 array, or a folder of files where sizes differ"
    if np.issubdtype(dtype, np.floating):
        return f"float images ({dtype}): save uint8 in [0, 255]"
    if dtype != np.uint8:
        return f"{dtype} images: save uint8 in [0, 255]"
    if len(shape) not in (3, 4):
        return f"an array {shape}: save images as (N, H, W, C) or (N, H, W)"
    if 0 in shape:
        return f"no images: its array is {shape}"
    if len(shape) == 4 and shape[3] not in (1, 3, 4):
        last = " (channels last: transpose(0, 2, 3, 1))" if shape[1] in (1, 3, 4) else ""
        return f"images of {shape[3]} channels, {shape}: save 1, 3 or 4{last}"
    return None
