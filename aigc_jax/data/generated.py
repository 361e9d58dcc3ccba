"""Images that a model made: `generated:DIR`, written by `aigc sample --as-dataset`.

A manifest says which run made them, and every PNG is marked, so that nothing takes them for real.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError):
        return None


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
    name = f"generated:{request.place}"
    if not told.get("complete"):
        raise UserError(f"{name} was not finished: write it anew by aigc sample --as-dataset.")
    if told.get("format") == "tfds":
        return dataclasses.replace(records.read_prepared(root, request), name=name)
    return dataclasses.replace(folders.read_folder(request, generated=True), name=name)
