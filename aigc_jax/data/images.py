"""Images of any path, for metrics: as they are, neither cropped nor resized, in a fixed order.

    DIR                          every image below it, by relative path; also folder:DIR
    FILE.zip                     the same of an archive; also zip:FILE
    FILE.npz                     uint8 (N, H, W[, C]) in 'arr_0' or 'images'; also npz:FILE
    tfds:NAME[/CONFIG][/SPLIT]   a TensorFlow Datasets set, by default its split 'train'
    digits[/SPLIT]               scikit-learn's 8x8 digits: train (the default), test or all

Pixels are what Pillow's `convert("RGB")` or `convert("L")` gives, as the reference implementations
of the metrics read them: alpha is dropped, EXIF orientation and colour profiles are not applied.
The one departure: 16-bit grey is scaled to 8 bits, where Pillow clips it at 255. What is done to
images that are not plain is said once, with how many there are.
"""

import collections
import dataclasses
import difflib
import functools
import io
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from aigc_jax.data import pixels, sources
from aigc_jax.data.archives import image_array, is_statistics, zip_images
from aigc_jax.data.dataset import progress, regroup, subset
from aigc_jax.data.folders import EXTENSIONS, Unreadable, find_folder, image_files
from aigc_jax.data.records import encoded, prepared
from aigc_jax.errors import UserError

__all__ = ["Images", "is_statistics", "open_images"]

Transform = Callable[[np.ndarray], np.ndarray]
Size = tuple[int, int]  # height, width

_EXTENSIONS = EXTENSIONS | {".tif", ".tiff"}
_KINDS = ("folder", "zip", "npz", "tfds")
_BLOCK_BYTES = 4 << 20  # of arrays that are read image by image

_log = logging.getLogger(__name__)


class Images:
    """Images in a fixed order, which can be read any number of times.

    Attributes:
      name: of the source, resolved: "tfds:cifar10/test".
      n: how many there are; fewer are read where some turn out unreadable.
      channels: 1 or 3, of every image read.
    """

    def __init__(self, name: str, n: int, channels: int) -> None:
        self.name, self.n, self.channels = name, n, channels
        self._said: set[str] = set()

    def __len__(self) -> int:
        return self.n

    @property
    def size(self) -> Size | None:
        """(H, W) of every image, None where they differ or nobody knows.

        For files it is read from their headers, once, when it is first asked for.
        """
        raise NotImplementedError

    @property
    def failed(self) -> list[str]:
        """Names of the files found to be unreadable so far."""
        return []

    def read(
        self, transform: Transform | None = None, threads: int | None = None
    ) -> Iterator[np.ndarray]:
        """Every readable image in order, uint8 (H, W, channels), or what `transform` makes of it.

        Decoding and `transform` run in `threads` threads, by default one a core, a few images
        ahead of the caller. Arrays may be read-only. Raises UserError once more than 1 % of the
        files could not be read.
        """
        threads = threads or os.cpu_count() or 1
        return (image for _, image in self._named(transform, threads, 4 * threads))

    def batches(
        self, batch_size: int, transform: Transform | None = None, threads: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`read` in stacks (B, ...), with masks (B,) float32; one batch is read ahead.

        The last batch is filled up with zeros, whose mask is 0. Raises UserError for images of
        several sizes, naming two of them.
        """
        threads = threads or os.cpu_count() or 1
        named = self._named(transform, threads, max(batch_size, threads))
        first = None
        while several := list(itertools.islice(named, batch_size)):
            first = first or several[0]
            yield _filled(self._stack(several, first), batch_size)

    def _named(
        self, transform: Transform | None, threads: int, ahead: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The images with their names, so many `ahead` of the caller."""
        raise NotImplementedError

    def _stack(self, several: list[tuple[str, np.ndarray]], first: tuple[str, Any]) -> np.ndarray:
        for name, image in several:
            if image.shape != first[1].shape:
                raise self._mixed(first[0], first[1].shape, name, image.shape)
        return np.stack([image for _, image in several])

    def _mixed(self, name: str, size: tuple, other: str, other_size: tuple) -> UserError:
        sizes = ("x".join(map(str, s)) for s in (size, other_size))
        return UserError(
            f"{self.name} holds images of several sizes ({name} is {next(sizes)}, {other} is "
            f"{next(sizes)}), where one is needed: resize them first"
        )

    def _say(self, counts: collections.Counter) -> None:
        """Each kind of conversion once, however often the images are read."""
        for kind in sorted(counts.keys() - self._said):
            _log.warning("%s: %d of %d images %s", self.name, counts[kind], self.n, kind)
        self._said.update(counts)


@dataclasses.dataclass(frozen=True, order=True)
class _File:
    name: str
    open: Callable[[], BinaryIO] = dataclasses.field(compare=False)

    def __str__(self) -> str:
        return self.name


class _Files(Images):
    """Images as encoded files, wherever these lie."""

    def __init__(
        self,
        name: str,
        n: int,
        channels: int,
        files: Callable[[], Iterable[_File]],
        sizes: dict[Size, str] | None = None,
    ) -> None:
        super().__init__(name, n, channels)
        self._files = files
        self._bad = Unreadable(name, n)
        if sizes is not None:
            self._sizes = sizes  # not to be looked for

    @functools.cached_property
    def _sizes(self) -> dict[Size, str]:
        """Every size that occurs, by the files' headers, and the first file that has it."""
        sizes: dict[Size, str] = {}
        threads = os.cpu_count() or 1
        headers = _in_threads(self._header, self._files(), threads, 64 * threads)
        for name, size in progress(headers, f"sizes of {self.name}", total=self.n):
            self._bad.refuse_many()
            if size is not None:
                sizes.setdefault(size, name)
        return sizes

    def _header(self, file: _File) -> tuple[str, Size | None]:
        return file.name, self._bad.attempt(lambda file: pixels.size(file.open), file)

    @property
    def size(self) -> Size | None:
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    @property
    def failed(self) -> list[str]:
        return sorted(map(str, self._bad.files))

    def batches(
        self, batch_size: int, transform: Transform | None = None, threads: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if transform is None and len(self._sizes) > 1:  # known before hours of work
            (size, name), (other_size, other) = itertools.islice(self._sizes.items(), 2)
            raise self._mixed(name, size, other, other_size)
        return super().batches(batch_size, transform, threads)

    def _named(
        self, transform: Transform | None, threads: int, ahead: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        def one(file: _File) -> tuple[str, np.ndarray | None, list[str]]:
            decoded = self._bad.attempt(lambda file: pixels.decode(file.open, self.channels), file)
            if decoded is None:
                return file.name, None, []
            image, kinds = decoded
            # Not within the attempt: what fails here is no fault of the file.
            return file.name, transform(image) if transform else image, kinds

        counts: collections.Counter = collections.Counter()
        for name, image, kinds in _in_threads(one, self._files(), threads, ahead):
            self._bad.refuse_many()
            counts.update(kinds)
            if image is not None:
                yield name, image
        self._say(counts)


class _Arrays(Images):
    """Images of one size in one array, in memory or in a file."""

    def __init__(
        self,
        name: str,
        n: int,
        channels: int,
        shape: tuple[int, ...],
        blocks: Callable[[int], Iterator[np.ndarray]],
    ) -> None:
        super().__init__(name, n, channels)
        self._shape, self._source = shape, blocks
        self._taken = np.zeros(shape[0], bool)
        self._taken[subset(shape[0], n)] = True
        self._kinds = pixels.kinds(shape[3] if len(shape) == 4 else 1, channels)

    @property
    def size(self) -> Size:
        return self._shape[1], self._shape[2]

    def batches(
        self, batch_size: int, transform: Transform | None = None, threads: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if transform is not None:
            return super().batches(batch_size, transform, threads)
        return (_filled(block, batch_size) for block in self._blocks(batch_size))

    def _blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The images, (rows, H, W, channels) uint8; the last block may be smaller."""
        for block in regroup(self._taken_blocks(rows), rows):
            block = block[..., None] if block.ndim == 3 else block
            yield pixels.convert(block, self.channels)
        self._say(collections.Counter(dict.fromkeys(self._kinds, self.n)))

    def _taken_blocks(self, rows: int) -> Iterator[np.ndarray]:
        start = 0
        for block in self._source(rows):
            taken = self._taken[start : start + len(block)]
            yield block if taken.all() else block[taken]
            start += len(block)

    def _named(
        self, transform: Transform | None, threads: int, ahead: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        rows = max(1, _BLOCK_BYTES // int(np.prod(self._shape[1:])))
        images = (image for block in self._blocks(rows) for image in block)
        if transform is not None:
            images = _in_threads(transform, images, threads, ahead)
        return ((f"image {i}", image) for i, image in enumerate(images))


def _in_threads(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int, ahead: int
) -> Iterator[Any]:
    """`map`, with at most `ahead` results under way beyond the one the caller has."""
    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _filled(images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    count = len(images)
    mask = (np.arange(batch_size) < count).astype(np.float32)
    if count < batch_size:
        zeros = np.zeros((batch_size - count, *images.shape[1:]), images.dtype)
        images = np.concatenate([images, zeros])
    return images, mask


def open_images(
    path: str, *, channels: int = 3, num: int | None = None, data_dir: str | None = None
) -> Images:
    """The images at `path`, of the grammar above, or `num` of them at most, drawn alike each time.

    `data_dir` is where TFDS sets lie, as for `sources.load`. Nothing is decoded yet. From here on
    Pillow's DecompressionBombWarning is an error in this process, as its documentation advises, so
    that a monstrous file counts as unreadable.

    Raises UserError for what cannot be found or holds no images, for fewer than `num` images, and
    for `channels` other than 1 and 3.
    """
    if channels not in (1, 3):
        raise UserError(f"channels must be 1 or 3, not {channels}")
    if num is not None and num < 1:
        raise UserError(f"num must be at least 1, not {num}")
    kind, place = _parse(path)
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    if kind == "tfds":
        return _tfds(place, channels, num, data_dir)
    return {"folder": _folder, "zip": _zip, "npz": _npz, "digits": _digits}[kind](
        place, channels, num
    )


def _parse(path: str) -> tuple[str, str]:
    kind, _, place = path.partition(":")
    if place and kind in ("folder", "tfds"):
        return kind, place
    if kind in ("zip", "npz") and Path(place).expanduser().is_file():
        return kind, place
    if path.partition("/")[0] == "digits":
        return "digits", path.partition("/")[2] or "train"
    if path and find_folder(path):
        return "folder", path
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".zip", ".npz") and Path(path).expanduser().is_file():
        return suffix[1:], path
    raise _lost(path)


def _lost(path: str) -> UserError:
    kind, _, rest = path.partition(":")
    place = Path(rest if kind in _KINDS else path).expanduser()
    if path and place.is_file():
        return UserError(f"{path!r} is one file: give a folder, a .zip or an .npz of images")
    if path in prepared(None):
        return UserError(f"no folder or file {path!r}. Did you mean 'tfds:{path}'?")
    beside = place.parent.iterdir() if place.parent.is_dir() else ()
    known = [str(p) for p in beside if p.suffix.lower() in (".zip", ".npz") or p.is_dir()]
    known += ["digits", *(f"{k}:{rest}" for k in _KINDS if rest and kind not in _KINDS)]
    near = difflib.get_close_matches(str(place), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"no images at {path!r}.{hint} Give a folder, a .zip, an .npz, tfds:NAME[/SPLIT] or digits."
    )


def _folder(place: str, channels: int, num: int | None) -> Images:
    folder = find_folder(place)
    if folder is None:
        raise _lost(place)
    files = [
        _File(path.relative_to(folder).as_posix(), functools.partial(open, path, "rb"))
        for path in image_files(folder, _EXTENSIONS)
    ]
    return _listed(f"folder:{Path(place)}", files, channels, num)


def _zip(place: str, channels: int, num: int | None) -> Images:
    files = [_File(*file) for file in zip_images(place, _EXTENSIONS)]
    return _listed(f"zip:{place}", files, channels, num)


def _listed(name: str, files: list[_File], channels: int, num: int | None) -> Images:
    if not files:
        raise UserError(f"no images in {name}: looked for {', '.join(sorted(_EXTENSIONS))}")
    files = [files[i] for i in subset(len(files), num)]
    return _Files(name, len(files), channels, lambda: files)


def _npz(place: str, channels: int, num: int | None) -> Images:
    array = image_array(place)
    name = f"npz:{place}"
    n = len(subset(array.shape[0], num))
    return _Arrays(name, n, channels, array.shape, array.blocks)


def _digits(split: str, channels: int, num: int | None) -> Images:
    dataset = sources.load("digits", split=split, image_size=8, channels=1)
    images = dataset.images[subset(dataset.num_examples, num)]

    def blocks(rows: int) -> Iterator[np.ndarray]:
        return (images[start : start + rows] for start in range(0, len(images), rows))

    return _Arrays(dataset.name, len(images), channels, images.shape, blocks)


def _tfds(place: str, channels: int, num: int | None, data_dir: str | None) -> Images:
    found = encoded(place, data_dir)
    rows = subset(found.num_examples, num)
    taken = set(rows.tolist())

    def files() -> Iterator[_File]:
        for i, data in enumerate(found.read()):
            if i in taken:
                yield _File(f"record {i}", functools.partial(io.BytesIO, data))

    known = None not in found.shape[:2]
    sizes = {found.shape[:2]: "every image"} if known else {}  # {}: it would take decoding them
    return _Files(found.name, len(rows), channels, files, sizes)
