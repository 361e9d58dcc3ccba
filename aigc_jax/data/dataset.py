"""A source of images once it is read, and what the readers of every kind share."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from aigc_jax.errors import UserError

ENDLESS = 2**31 - 1  # how many examples a source has that draws them as they are read


@dataclasses.dataclass(frozen=True)
class Stream:
    """Examples without random access.

    `records(seed, epoch)`: one pass as a tf.data.Dataset of undecoded records, in the order of
    the files when `seed` is None; `epoch` is a scalar int64 tensor. `decode(records)`, of a
    batch of them: {'image' (B, S, S, C) uint8, 'label' (B,) int32 if labelled}.
    """

    records: Callable[[int | None, Any], Any]
    decode: Callable[[Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Field:
    """What a source tells of each image beside its label; made only for tasks that use it.

    `function`: rows (B,) int64 -> (B, *shape) of `dtype`; texts are `object`, of Python strings.
    """

    function: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    dtype: type


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images of one size, and their labels if there are any.

    Exactly one of `images` (in memory), `read` (random access to files) and `stream` is set.
    """

    name: str  # resolved: "tfds:mnist/train"
    num_examples: int
    image_size: int
    channels: int  # 1 or 3; of pairs 2 or 6, the left half's and then the right half's
    class_names: tuple[str, ...] = ()  # () without labels
    images: np.ndarray | None = None  # (N, S, S, C) uint8
    labels: np.ndarray | None = None  # (N,) int32; None for a stream, which brings its own
    # Rows (B,) int64 -> images (B, S, S, C) uint8 and the rows they are of, which differ from
    # those asked for where a file turned out to be unreadable.
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    stream: Stream | None = None
    fields: Mapping[str, Field] = dataclasses.field(default_factory=dict)  # none of a stream
    # The fields tell where things lie, so that the images must stay as they are.
    placed: bool = False

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, S, C) of one image."""
        return self.image_size, self.image_size, self.channels


@dataclasses.dataclass(frozen=True)
class Request:
    """What `load` was asked for, less the kind."""

    place: str
    split: str
    data_dir: str | None
    image_size: int
    channels: int | None
    cache_bytes: int

    def fits(self, count: int, channels: int) -> bool:
        """Whether the decoded set may be held in memory."""
        return count * self.image_size**2 * channels <= self.cache_bytes


def whole(request: Request, kind: str, remedy: str) -> None:
    """For sources without splits, where "train" and "all" are everything."""
    if request.split not in ("train", "all"):
        raise UserError(f"{kind}:{request.place} has no split {request.split!r}: {remedy}")


def square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized to (size, size)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: with `resize(box=...)` the filter would reach beyond the square.
    image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BICUBIC)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """`square` of an array (H, W, C) uint8."""
    mode = image[..., 0] if image.shape[-1] == 1 else image
    return np.asarray(square(Image.fromarray(mode), size)).reshape(size, size, -1)


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """(..., C) uint8 with C in {1, 3} -> the same with `channels` (grey: ITU-R 601 luma)."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma = images.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    return np.round(luma)[..., None].astype(np.uint8)


def subset(count: int, num: int | None) -> np.ndarray:
    """Rows of at most `num` of `count` examples, in order, the same each time; None: all.

    They are drawn, as sets are sorted by class or alternate between kinds.
    """
    if num is None or num >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(0).permutation(count)[:num])


def regroup(blocks: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in blocks of `rows`; the last one may be smaller."""
    held, count = [], 0
    for block in blocks:
        held, count = [*held, block], count + len(block)
        while count >= rows:
            whole = np.concatenate(held) if len(held) > 1 else held[0]
            yield whole[:rows]
            held, count = [whole[rows:]], count - rows
    if count:
        yield np.concatenate(held)


def progress(items: Iterable[Any], name: str, **kwargs: Any) -> Iterable[Any]:
    """A progress bar on stderr, for what takes more than two seconds."""
    return tqdm(items, desc=f"reading {name}", delay=2, leave=False, **kwargs)
