"""Images that a model made: `generated:DIR`, written by `aigc sample --as-dataset`.

A manifest says which run made them, and every PNG is marked, so that nothing takes them for real.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax.data.dataset import Dataset, Request
from aigc_jax.errors import UserError

MANIFEST = "manifest.json"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYWORD, _WORD = b"Software", b"aigc_jax: generated"
_HEAD = len(_SIGNATURE) + 25  # the signature and the first chunk, of the image's sizes


def marked(png: bytes) -> bytes:
    """A PNG file with a text chunk behind its header that says that it was generated."""
    body = b"tEXt" + _KEYWORD + b"\0" + _WORD
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:_HEAD] + chunk + png[_HEAD:]


def is_marked(path: Path) -> bool:
    """Whether a file is a PNG that says so; False where it can't be read."""
    try:
        with path.open("rb") as file:
            return _KEYWORD + b"\0" + _WORD in file.read(_HEAD + 64)
    except OSError:
        return False


def manifest(folder: Path) -> dict[str, Any] | None:
    """What is told of a folder of generated images; None where there is none."""
    try:
        told = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and told.get("generated") is True else None


def check_real(name: str, root: Path, files: Iterable[Path]) -> None:
    """UserError if a folder's images were made by a model, by its manifest or its files' marks."""
    above = [folder for folder in (root, root.parent) if manifest(folder)]
    # Of a folder with a few strays among real images too; a mark is read in microseconds.
    stray = next((file for file in files if is_marked(file)), None)
    if above or stray:
        what = f"{above[0] / MANIFEST} says" if above else f"{stray} is marked, and perhaps others"
        remedy = (
            "name it generated:DIR, which says so"
            if above
            else "take them out, or write them anew by aigc sample --as-dataset"
        )
        raise UserError(f"{name} holds images that a model made ({what}): {remedy}.")


def read_generated(request: Request) -> Dataset:
    """Class folders or TFRecords beside a manifest; all of them are the training split."""
    from aigc_jax.data import folders, records

    root = folders.existing(request.place)
    told = manifest(root)
    if told is None:
        raise UserError(
            f"generated:{request.place} has no {MANIFEST} that says what made its images: name it "
            "folder:DIR if they are real, or write them by aigc sample --as-dataset."
        )
    name, form = f"generated:{request.place}", told.get("format")
    there = form != "tfds" or (root / "dataset_info.json").is_file()
    if not (told.get("complete") and there):
        raise UserError(f"{name} was not finished: write it anew by aigc sample --as-dataset.")
    if request.split.startswith("train"):  # a part of the real images is no part of these
        request = dataclasses.replace(request, split="train")
    if form == "tfds":
        return dataclasses.replace(records.read_prepared(root, request), name=name)
    data = folders.read_folder(request, generated=True)
    return dataclasses.replace(_numbered(data, told.get("class_names") or ()), name=name)


def _numbered(data: Dataset, names: Sequence[str]) -> Dataset:
    """With the classes of the run that made it, in their order, though some may have no images."""
    if data.labels is None or not set(data.class_names) <= set(names):
        return data
    numbers = np.array([names.index(name) for name in data.class_names], np.int32)
    return dataclasses.replace(data, labels=numbers[data.labels], class_names=tuple(names))
