"""Several sources as one: `config.data.mix = [("tfds:mnist", 0.5), ("generated:DIR", 0.5)]`."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.data.dataset import ENDLESS, Dataset
from aigc_jax.errors import UserError


def check(mix: Sequence[Sequence[object]]) -> list[tuple[str, float]]:
    """The sources and their shares; UserError if they are none, or don't sum to 1."""
    for part in mix:
        named = len(part) == 2 and isinstance(part[0], str)
        if not (named and isinstance(part[1], (int, float)) and 0 < part[1] <= 1):
            raise UserError(
                f"config.data.mix holds {part!r}: write (SOURCE, SHARE), a share above 0 and at "
                "most 1, such as ('tfds:mnist', 0.5)."
            )
    total = math.fsum(share for _, share in mix)
    if abs(total - 1) > 1e-6:
        raise UserError(f"The shares of config.data.mix sum to {total:g}: make them sum to 1.")
    return [(source, float(share)) for source, share in mix]


def mixed(parts: Sequence[Dataset], shares: Sequence[float]) -> Dataset:
    """One dataset of which each part has its share.

    It is as long as every part is read once at least: the others are read several times over, each
    of their images as often as any other of it, or once more.

    Args:
      parts: of one size, the same channels and classes, in memory or with random access.
      shares: of each, above 0, of sum 1.

    Raises:
      UserError: they differ; one is a stream of records.
    """
    first = parts[0]
    for part in parts:
        _check_alike(first, part)
    ends = [part.num_examples for part in parts]
    total = min(ENDLESS, max(math.ceil(n / share) for n, share in zip(ends, shares, strict=True)))
    # Where each part begins among the rows; what rounding leaves is the last one's.
    starts = np.round(np.cumsum([0, *shares]) * total).astype(np.int64)

    def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row the part, and the row there."""
        part = np.searchsorted(starts[1:-1], rows, side="right")
        return part, (rows - starts[part]) % np.array(ends)[part]

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part, own = split(rows)
        images = np.empty((len(rows), *first.shape), np.uint8)
        for i, data in enumerate(parts):
            here = np.flatnonzero(part == i)
            if len(here) and data.images is not None:
                images[here] = data.images[own[here]]
            elif len(here):
                images[here], used = data.read(own[here])
                rows = rows.copy()
                rows[here] += used - own[here]
        return images, rows

    labels = None
    if first.labels is not None:
        part, own = split(np.arange(total))
        labels = np.empty(total, np.int32)
        for i, data in enumerate(parts):
            labels[part == i] = data.labels[own[part == i]]
    told = " + ".join(f"{share:g} {part.name}" for part, share in zip(parts, shares, strict=True))
    return dataclasses.replace(
        first,
        name=told,
        num_examples=total,
        images=None,
        labels=labels,
        read=read,
        stream=None,
        fields={},
        placed=any(part.placed for part in parts),
    )


def _check_alike(first: Dataset, part: Dataset) -> None:
    if part.stream is not None:
        raise UserError(
            f"{part.name} is too large for memory, and stored as records, which can't be mixed: "
            "raise config.data.cache_bytes."
        )
    if part.shape != first.shape:
        sizes = ["x".join(map(str, data.shape)) for data in (first, part)]
        raise UserError(
            f"config.data.mix: {first.name} has images of {sizes[0]} and {part.name} of "
            f"{sizes[1]}: set config.channels to 1 or 3."
        )
    if part.class_names != first.class_names:
        a, b = (
            f"{data.num_classes} classes ({', '.join(data.class_names[:3])}, ...)"
            if data.num_classes
            else "no labels"
            for data in (first, part)
        )
        raise UserError(
            f"config.data.mix: {first.name} has {a} and {part.name} {b}: their classes must have "
            "the same names."
        )
