"""A network on images of any size: padded to what it works at, and large ones in tiles."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import parallel, tiles
from aigc_jax.errors import UserError
from aigc_jax.types import to_uint8

TILE = 2048
_PIXELS = 2**20  # at once on each device


class AnySize:
    """A network from images to images of their size, on all devices, compiled once for each size.

    An image is padded at its right and bottom by reflection to the least multiple that the network
    works at, and cropped back: instance norm sees the padding, so there is no more of it than
    needed. One of more than `tile` pixels a side goes through in tiles that overlap by an eighth,
    in which they are blended linearly.

    Args:
      apply: (variables, (B, H, W, C) float32 in [-1, 1]) -> (B, H, W, C'), of the same size.
      channels: C.
      multiple: of which H and W must be.
      tile: pixels, at least two of those multiples.
      finish: [-1, 1] -> uint8.

    Raises:
      UserError: a smaller tile.
    """

    def __init__(
        self,
        apply: Callable[[Any, jax.Array], jax.Array],
        variables: Any,
        *,
        channels: int,
        multiple: int = 1,
        tile: int = TILE,
        finish: Callable[[jax.Array], jax.Array] = to_uint8,
    ) -> None:
        if tile < 2 * multiple:
            raise UserError(
                f"--tile {tile}: give {2 * multiple} or more: the network works at multiples of "
                f"{multiple} pixels, and tiles overlap by as many."
            )
        self.channels, self.multiple, self.tile = channels, multiple, tile // multiple * multiple
        self._layout = parallel.layout("jit", jax.local_devices())
        self._variables = self._layout.place_state(variables)
        self._finish = finish

        def applied(variables: Any, images: jax.Array) -> jax.Array:
            return apply(variables, _in_range(images))

        self._floats = self._layout.replicated(applied)
        self._whole = self._layout.replicated(lambda *args: finish(applied(*args)))

    def __call__(
        self, images: Sequence[np.ndarray], batch_size: int | None = None
    ) -> list[np.ndarray]:
        """What becomes of each image, (H, W, C') uint8.

        Args:
          images: (H, W, `channels`), of any sizes; uint8, or float32 as `apply` takes it.
          batch_size: fewer are filled up to so many, for one program; None: see `batch_size`.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.padded(*image.shape[:2]), []).append(i)
        found: dict[int, np.ndarray] = {}
        for size, members in groups.items():
            padded = [tiles.pad(images[i], size) for i in members]
            if max(size) > self.tile:
                made = map(self._tiled, padded)
            else:
                made = itertools.chain(*self._batches(self._whole, np.stack(padded), batch_size))
            found |= zip(members, made, strict=True)
        return [found[i][: x.shape[0], : x.shape[1]] for i, x in enumerate(images)]

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size at which an image goes through."""
        return tuple(-(-side // self.multiple) * self.multiple for side in (height, width))

    def batch_size(self, size: tuple[int, int], n: int) -> int:
        """How many of n images of a padded size go through at once, as many on each device."""
        fit = max(1, _PIXELS // (size[0] * size[1])) * len(self._layout.devices)
        return self._for_all(min(fit, n))

    def _for_all(self, n: int) -> int:
        devices = len(self._layout.devices)
        return -(-n // devices) * devices

    def _batches(
        self, function: Callable, stack: np.ndarray, batch_size: int | None = None
    ) -> Iterator[np.ndarray]:
        size = self._for_all(batch_size or self.batch_size(stack.shape[1:3], len(stack)))
        for start in range(0, len(stack), size):
            part = {"image": stack[start : start + size]}
            placed = self._layout.place_whole(parallel.padded(part, size))
            made = function(self._variables, placed["image"])
            yield np.asarray(made)[: len(part["image"])]

    def _tiled(self, image: np.ndarray) -> np.ndarray:
        cover = tiles.cover(image.shape[:2], self.tile, self.multiple)
        parts = self._batches(self._floats, tiles.cut(image, cover))
        whole = tiles.blend((tile for part in parts for tile in part), cover)
        return np.asarray(self._finish(whole))


def _in_range(images: jax.Array) -> jax.Array:
    """uint8 in [-1, 1]; floats as they are."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images
