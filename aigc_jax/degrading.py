"""Damaged copies of image files, for tests of what repairs them: degradations, and holes."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aigc_jax import latents, sampling
from aigc_jax.data import as_is, folders, masks, pictures
from aigc_jax.data import degrade as degradations
from aigc_jax.errors import UserError
from aigc_jax.operations import Operation
from aigc_jax.writers import save_png

IMAGES, MASKS = "images", "masks"
_HOLE = 128  # 0 of [-1, 1]


@dataclasses.dataclass(frozen=True)
class Degraded:
    """What `degrade` did.

    Attributes:
      n: how many images are in `out`.
      masks: whether their masks are in its subfolder.
      converted: how many there were of those that are no 8-bit images without transparency.
      skipped: the files that are no readable images.
    """

    n: int
    out: str
    masks: bool
    converted: dict[str, int]
    skipped: list[str]

    def told(self) -> str:
        """In a line or a few."""
        lines = [f"{self.n} images degraded in {self.out}"]
        if self.masks:
            lines = [
                f"{self.n} images degraded in {Path(self.out, IMAGES)}, their masks (white = hole) "
                f"in {Path(self.out, MASKS)}"
            ]
        return "\n".join([*lines, *pictures.remarks(self.skipped, self.converted)])


def degrade(
    source: str, out: str | Path, ops: str = "", seed: int = 0, mask: str | None = None
) -> Degraded:
    """Degrades images of any size, each to an 8-bit PNG at its path and stem below `out`.

    Grey images stay grey. Image i, in the order of `pictures.find`, has the seed (seed, i).

    Args:
      source: a folder or an image file.
      out: a new or empty folder.
      ops: of `data.degrade`, "noise(25),jpeg(40)"; "" for none.
      mask: of `data.masks`, "strokes|boxes": the images get holes, which are grey, and go to
        `out`/images, and the masks to `out`/masks, white where the hole is.

    Raises:
      UserError: neither ops nor mask, or one that can't be read; a seed that is no int32; no
        readable image; `out` is taken.
    """
    if not ops and not mask:
        raise UserError('Give --ops, e.g. "noise(25),jpeg(40)", or --mask, e.g. strokes, or both.')
    sampling.check_seed(seed)
    chain = _parsed("--ops", degradations.parse, ops) if ops else ()
    if mask:
        _parsed("--mask", masks.parse, mask)
    sampling.check_folder(out)
    files, bad = pictures.find(source), folders.Unreadable("", 0)
    targets = latents.targets(files)

    def one(number: int) -> list[str] | None:
        file = files[number]
        read = bad.attempt(as_is.read, file.path)
        if read is not None:
            parts = _damaged(read[0], chain, mask, np.array([[seed, number]]))
            for part, folder in zip(parts, (IMAGES, MASKS) if mask else ("",), strict=True):
                save_png(part, Path(out, folder, targets[file]))
        return read and read[1]

    done = [kinds for kinds in _each(one, len(files)) if kinds is not None]
    if not done:
        raise UserError(f"--input {source}: {len(files)} image files, and none can be read.")
    converted = Counter(kind for kinds in done for kind in kinds)
    return Degraded(len(done), str(out), bool(mask), dict(converted), sorted(map(str, bad.files)))


def _parsed(flag: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


def _each(function: Callable[[int], Any], n: int) -> list[Any]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(function, range(n))
        return list(tqdm(done, "images", n, delay=2, leave=False, disable=None))


def _damaged(
    image: np.ndarray, chain: Sequence[Operation], mask: str | None, seeds: np.ndarray
) -> list[np.ndarray]:
    """The damaged image, and the mask if there is one, white the hole; (H, W, C) uint8."""
    if chain:
        image = degradations.arrays(chain, image[None], seeds)[0]
    if not mask:
        return [image]
    hole = masks.arrays(mask, seeds, image.shape[:2])[0] == 0
    return [np.where(hole, np.uint8(_HOLE), image), np.uint8(255) * hole]
