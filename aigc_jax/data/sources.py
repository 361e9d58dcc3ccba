"""Where images come from: one grammar for every command.

    digits                         scikit-learn's 8x8 digits, on board
    tfds:NAME[/CONFIG][/SPLIT]     a TensorFlow Datasets set, e.g. tfds:mnist/train[:1000]
    folder:DIR                     PNG, JPEG, WebP, BMP, GIF; class subfolders become labels
    npz:FILE                       uint8 images, (N, H, W, C) or (N, H, W), and maybe labels
    generated:DIR                  what `aigc sample --as-dataset` wrote, and nothing else
    pairs:DIR                      side by side images of two kinds, for the task `pairs`
    mnistm[:SPLIT]                 MNIST's digits over photographs, made of MNIST and CIFAR-10
    shapes[:N][,textured][/SPLIT]  drawn scenes of 1 to N shapes and what is known of them, captions
                                   too; N is 1, 2 or 3 (default), SPLIT train, test, novel or all

Images are cropped to the central square and resized (bicubic, antialiased) to uint8 (S, S, C).
"""

import difflib
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aigc_jax.data.dataset import (
    Dataset,
    Request,
    progress,
    resized,
    square,
    to_channels,
    whole,
)
from aigc_jax.data.folders import find_folder, read_folder
from aigc_jax.data.generated import read_generated
from aigc_jax.data.mnistm import read_mnistm
from aigc_jax.data.pairs import read_pairs
from aigc_jax.data.records import prepared, read_tfds
from aigc_jax.data.shapes import read_shapes
from aigc_jax.errors import UserError, did_you_mean

_log = logging.getLogger(__name__)


def load(
    source: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    image_size: int,
    channels: int | None = None,
    cache_bytes: int = 2 << 30,
) -> Dataset:
    """The images of `source`, in memory when their `image_size` uint8 form fits `cache_bytes`.

    `split` is "train", "test" or "all" (a SPLIT in the source wins); `channels` is 1 or 3, None
    for what the source has (of pairs: one half of them); `data_dir` is where TFDS sets lie, by
    default `$AIGC_DATA_DIR/tfds` when it holds the set, else TFDS's own default. Raises UserError
    for what cannot be found, read or understood.
    """
    if channels not in (None, 1, 3):
        raise UserError(f"channels must be 1 or 3, not {channels}")
    kind, place = parse(source)
    request = Request(place, split, data_dir, image_size, channels, cache_bytes)
    dataset = _READERS[kind](request)
    _check_labels(dataset)
    return dataset


def parse(source: str) -> tuple[str, str]:
    """`"folder:DIR"` -> `("folder", "DIR")`; the kind of a bare path is guessed, and said.

    Raises UserError for an unknown kind and for a bare name that is no file or folder.
    """
    kind, colon, place = source.partition(":")
    if re.match(r"shapes([:,/]|$)", source):  # "shapes/test", "shapes,textured" too
        return "shapes", source.removeprefix("shapes").lstrip(":,")
    if source in ("digits", "mnistm") or (place and kind in _READERS and kind != "digits"):
        return kind, place
    if source and find_folder(source):
        return _guess("folder", source)
    if source.endswith(".npz") and not colon and os.path.exists(source):
        return _guess("npz", source)
    if not colon and source in prepared(None):
        raise UserError(f"no file or folder {source!r}. Did you mean 'tfds:{source}'?")
    raise UserError(f"cannot read the source {source!r}.{_hint(source)}")


def _guess(kind: str, path: str) -> tuple[str, str]:
    _log.warning("reading the source %r as '%s:%s'", path, kind, path)
    return kind, path


def _hint(source: str) -> str:
    kind = source.partition(":")[0]
    near = difflib.get_close_matches(kind, _READERS, n=1)
    forms = (
        "Write digits, tfds:NAME[/SPLIT], folder:DIR, npz:FILE, generated:DIR, pairs:DIR, "
        "mnistm[:SPLIT] or shapes[:N][,textured][/SPLIT]."
    )
    return (f" Did you mean {near[0]!r}?" if near else "") + f" {forms}"


def _check_labels(dataset: Dataset) -> None:
    if dataset.labels is None:
        return
    bad = dataset.labels[(dataset.labels < 0) | (dataset.labels >= dataset.num_classes)]
    if bad.size:
        raise UserError(
            f"{dataset.name} has the label {bad[0]}, which is not in [0, {dataset.num_classes}): "
            "correct the labels, or leave them out"
        )


def _digits(request: Request) -> Dataset:
    """Alpaydin & Kaynak 1998: 1,797 digits of 8x8; 30 of each class are the test split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = _digit_rows(digits.target, request.split)
    size, channels = request.image_size, request.channels or 1
    # Resized in float, then quantised once: 17 grey levels become smooth strokes.
    images = np.stack([np.asarray(square(Image.fromarray(image), size))
                       for image in digits.images[rows].astype(np.float32)])  # fmt: skip
    images = np.clip(np.round(images * (255 / 16)), 0, 255).astype(np.uint8)[..., None]
    return Dataset(
        name=f"digits/{request.split}",
        num_examples=len(rows),
        image_size=size,
        channels=channels,
        class_names=tuple("0123456789"),
        images=to_channels(images, channels),
        labels=digits.target[rows].astype(np.int32),
    )


def _digit_rows(labels: np.ndarray, split: str) -> np.ndarray:
    """Rows of the split, in order; the test rows are spread evenly, as writers are contiguous."""
    if split not in ("train", "test", "all"):
        raise UserError(
            f"digits has no split {split!r}.{did_you_mean(split, ['train', 'test', 'all'])}"
        )
    test = np.zeros(len(labels), bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        test[rows[np.linspace(0, len(rows) - 1, 30).astype(int)]] = True
    return np.flatnonzero({"train": ~test, "test": test, "all": test | True}[split])


def _npz(request: Request) -> Dataset:
    whole(request, "npz", "give the images to test on as an npz file of their own")
    images, labels = _read_npz(Path(request.place).expanduser())
    channels = request.channels or images.shape[-1]
    size = request.image_size
    images = to_channels(images, channels)
    if images.shape[1:3] != (size, size):
        images = np.stack([resized(image, size) for image in progress(images, request.place)])
    classes = 0 if labels is None else max(0, int(labels.max())) + 1
    return Dataset(
        name=f"npz:{request.place}",
        num_examples=len(images),
        image_size=size,
        channels=channels,
        class_names=tuple(map(str, range(classes))),
        images=images,
        labels=labels,
    )


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images = _first(arrays, "arr_0", "images")
            labels = _first(arrays, "arr_1", "labels", "label")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {str(path)!r} as an .npz file: {error}") from error
    if images is None:
        raise UserError(f"{str(path)!r} has no array 'arr_0' or 'images'")
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"{str(path)!r} holds images {images.dtype} {images.shape}: save them as uint8 "
            "(N, H, W, C) with C 1 or 3, or (N, H, W)"
        )
    if not len(images):
        raise UserError(f"{str(path)!r} holds no images")
    return images, None if labels is None else _npz_labels(labels, len(images), path)


def _first(arrays: Any, *names: str) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _npz_labels(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{str(path)!r} holds labels {labels.dtype} {labels.shape}: save {count} integers"
        )
    return labels.astype(np.int32)


# A new kind is one function here: from a Request to a Dataset.
_READERS = {
    "digits": _digits,
    "tfds": read_tfds,
    "folder": read_folder,
    "npz": _npz,
    "generated": read_generated,
    "pairs": read_pairs,
    "mnistm": read_mnistm,
    "shapes": read_shapes,
}
