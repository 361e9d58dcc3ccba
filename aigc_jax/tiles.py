"""Images padded to a size, and large ones in overlapping tiles, blended where two overlap."""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
    """A tile along one side of an image: its first pixel, and the weight (T,) of each."""

    start: int
    weight: np.ndarray

    @property
    def slice(self) -> slice:
        """Its pixels."""
        return slice(self.start, self.start + len(self.weight))


Tile = tuple[Span, Span]  # rows, columns


def cover(size: tuple[int, int], tile: int, multiple: int) -> list[Tile]:
    """Tiles of one size that cover an image (H, W), of `tile` pixels a side at most."""
    rows, columns = (spans(side, tile, multiple) for side in size)
    return [(row, column) for row in rows for column in columns]


def spans(side: int, tile: int, multiple: int) -> list[Span]:
    """Tiles along a side, overlapping by an eighth; the weights of each pixel sum to 1.

    They start at multiples, where a network that takes strides does the same in a tile as in the
    whole.

    Args:
      side, tile: multiples of `multiple`; a tile is of two or more, or the whole side.
    """
    if side <= tile:
        return [Span(0, np.ones(side, np.float32))]
    overlap = max(multiple, tile // 8 // multiple * multiple)
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    rise = np.minimum(1, np.arange(1, tile + 1) / (overlap + 1))
    total, weights = np.zeros(side), []
    for start in starts:
        first = rise if start > 0 else np.ones(tile)
        last = rise[::-1] if start < side - tile else np.ones(tile)
        weights.append(first * last)
        total[start : start + tile] += weights[-1]
    return [
        Span(start, (weight / total[start : start + tile]).astype(np.float32))
        for start, weight in zip(starts, weights, strict=True)
    ]


def pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) to the size by reflection at the right and bottom, again and again if need be."""
    grown = [(0, side - here) for side, here in zip(size, image.shape, strict=False)]
    return np.pad(image, [*grown, (0, 0)], mode="reflect")


def cut(image: np.ndarray, tiles: Iterable[Tile]) -> np.ndarray:
    """The tiles of an image (H, W, C): (N, T, T', C)."""
    return np.stack([image[row.slice, column.slice] for row, column in tiles])


def blend(images: Iterable[np.ndarray], tiles: Iterable[Tile]) -> np.ndarray:
    """The image (H, W, C) float32 that the images (T, T', C) of its tiles make together."""
    tiles, images = list(tiles), iter(images)
    size = [max(tile[i].slice.stop for tile in tiles) for i in (0, 1)]
    whole = None
    for (row, column), image in zip(tiles, images, strict=True):
        if whole is None:
            whole = np.zeros((*size, image.shape[-1]), np.float32)
        weight = row.weight[:, None] * column.weight[None]
        whole[row.slice, column.slice] += weight[..., None] * image
    return whole
