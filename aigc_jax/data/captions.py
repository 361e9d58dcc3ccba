"""Captions of image folders: a .txt file beside each image, or metadata.jsonl at the top.

metadata.jsonl is as Hugging Face's ImageFolder has it, one {"file_name": ..., "text": ...} a line,
`file_name` from the folder on; `text` is a string or a list of them. Where an image has several
captions, in lines or in a list, one is drawn whenever it is used.
"""

import concurrent.futures
import functools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax.data import tensorflow
from aigc_jax.data.dataset import Field
from aigc_jax.errors import UserError

METADATA = "metadata.jsonl"

_log = logging.getLogger(__name__)


def fields(name: str, root: Path, paths: Sequence[Path]) -> dict[str, Field]:
    """The field `caption` of the images `paths` below `root`; none where there are no captions.

    Args:
      name: of the source, for messages.

    Returns:
      texts whose lines are the captions of one image, "" where it has none. Read once they are
      asked for, which raises UserError for files that cannot be understood.
    """
    if not (root / METADATA).is_file() and not any(_beside(path).is_file() for path in paths):
        return {}

    @functools.cache
    def texts() -> np.ndarray:
        return _texts(name, root, paths)

    return {"caption": Field(lambda rows: texts()[rows], (), object)}


def one_of(captions: Any, seed: Any) -> Any:
    """One line of each text, all as likely: (B,) tf.string, (B, 2) int32 -> (B,) tf.string."""
    tf = tensorflow()
    lines = tf.strings.split(captions, "\n")
    bits = tf.cast(tf.bitcast(seed[:, 1], tf.uint32), tf.int64)
    return tf.gather(lines, bits % lines.row_lengths(), batch_dims=1)


def _texts(name: str, root: Path, paths: Sequence[Path]) -> np.ndarray:
    """(N,) object, of strings."""
    if (root / METADATA).is_file():
        told = dict(_told(root / METADATA))
        found = [told.get(path.relative_to(root).as_posix(), ()) for path in paths]
    else:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = list(pool.map(_lines, map(_beside, paths)))
    without = [path for path, captions in zip(paths, found, strict=True) if not captions]
    if len(without) == len(paths):
        raise UserError(f"{name}: none of the {len(paths)} images has a caption that is not empty")
    if without:
        _log.warning(
            "%s: %d of %d images have no caption and count as without text, the first of them %s",
            name,
            len(without),
            len(paths),
            without[0],
        )
    return np.array(["\n".join(captions) for captions in found], object)


def _beside(path: Path) -> Path:
    return path.with_suffix(".txt")


def _lines(path: Path) -> tuple[str, ...]:
    """The captions in a file, () without one."""
    try:
        return _cleaned(path.read_text("utf-8-sig").splitlines())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the caption {path} cannot be read as UTF-8: {error}") from None


def _told(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """File names and captions."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file, captions = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{path}:{number}: not of the form {{"file_name": "a.png", "text": "a caption"}}'
            ) from None
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise UserError(f"{path}:{number}: text is neither a string nor a list of strings")
        yield str(file), _cleaned(captions)


def _cleaned(captions: Sequence[str]) -> tuple[str, ...]:
    """Each on one line, without those that are empty."""
    joined = (" ".join(caption.split()) for caption in captions)
    return tuple(caption for caption in joined if caption)
