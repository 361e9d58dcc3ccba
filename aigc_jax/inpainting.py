"""Holes in images filled: by a network trained to, or by a generator's latent search."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import config as configs
from aigc_jax import latent_search, latents, methods, runs, sampling
from aigc_jax.anysize import TILE, AnySize
from aigc_jax.data import as_is, pictures
from aigc_jax.data.dataset import to_channels
from aigc_jax.data.folders import why
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError
from aigc_jax.picture_files import PictureFiles
from aigc_jax.restoration import joined, split
from aigc_jax.writers import save_png

# Images (H, W, 1 or 3) uint8 and (H, W) bool, True in the hole -> the same uint8.
Filler = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]
_SEARCHED = 32  # images at once


class Inpainter(AnySize):
    """A network that fills holes, for images of any size, grey or in colour."""

    @classmethod
    def of_run(cls, run: runs.Run, tile: int = TILE) -> "Inpainter":
        """A run's of the task `inpaint`, by its averaged weights."""

        def apply(state: Any, images: jax.Array) -> jax.Array:
            return run.method.restore(run.spec, state, images[..., :-1], images[..., -1:])

        multiple = run.method.multiple(run.spec)
        return cls(apply, run.state, channels=run.config.channels, multiple=multiple, tile=tile)

    def fill(self, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """The image with its hole filled; what is known stays to the bit.

        Args:
          image: (H, W, 1 or 3) uint8.
          hole: (H, W) bool.
        """
        known = ~hole[..., None]
        parts = [part / np.float32(127.5) - 1 for part in split(image, self.channels)]
        made = self([np.concatenate([x * known, known], -1, dtype=np.float32) for x in parts])
        return np.where(known, image, joined(made, image.shape[-1]))


@dataclasses.dataclass(frozen=True)
class Inpainted:
    """What `inpaint` did."""

    n: int
    out: str
    skipped: list[str]
    converted: dict[str, int]

    def told(self) -> str:
        """In a line or a few."""
        lines = [f"{self.n} images filled in {self.out}"]
        return "\n".join([*lines, *pictures.remarks(self.skipped, self.converted)])


def inpaint(
    workdir: str | Path,
    source: str,
    mask: str,
    out: str | Path,
    *,
    label: int | None = None,
    seed: int = 0,
    step: int | None = None,
    tile: int = TILE,
) -> Inpainted:
    """Fills the holes of images, each to a PNG of its size and channels.

    Args:
      workdir: of a run of the task `inpaint`, which takes any size; or of a GAN's or a VAE's,
        whose latents are searched, for images of its own size.
      source: an image file, or a folder.
      mask: an image, white where the hole is, of the size of every image; or a folder of masks of
        the same names.
      out: x.png for one file; a new or empty folder.
      label: the class of the images, where a generator knows classes.
      seed: of the search.
      step: of the checkpoint; None: the newest.
      tile: see `AnySize`.

    Raises:
      UserError: the run fills no holes; no readable image; a mask that is missing, of another
        size, without a hole or all hole; `out` is taken.
    """
    to_file = Path(out).suffix == ".png"
    (sampling.check_out if to_file else sampling.check_folder)(out)
    config = configs.of_run(workdir)
    searched = _check_run(workdir, config)
    _check_numbers(config, label, seed, searched)
    files = PictureFiles(source)
    for flag, given in (("--input", source), ("--mask", mask)):
        if Path(out).exists() and Path(given).exists() and Path(out).samefile(given):
            raise UserError(f"--out {out} is {flag} itself: name another file.")
    if to_file and len(files.sizes) > 1:
        raise UserError(f"--out {out}: {len(files.sizes)} images go to a folder.")
    if searched:
        _check_sizes(files, config.image_size)
    holes = _Holes(files, mask)
    run = runs.load(workdir, step)
    fill = _searcher(run, label, seed, len(files.sizes)) if searched else _network(run, tile)
    converted: Counter[str] = Counter()
    n, progress = 0, files.progress()
    while some := list(itertools.islice(progress, _SEARCHED if searched else 1)):
        read = files.read(as_is.read, some)
        converted.update(kind for _, kinds in read.values() for kind in kinds)
        made = fill([image for image, _ in read.values()], list(map(holes, read)))
        _write(dict(zip(read, made, strict=True)), files, Path(out), to_file)
        n += len(made)
    if not n:
        raise files.none()
    return Inpainted(n, str(out), files.skipped, dict(converted))


def _write(made: dict[Picture, np.ndarray], files: PictureFiles, out: Path, to_file: bool) -> None:
    if not to_file:
        files.write(made, out)
    for image in made.values() if to_file else ():
        save_png(image, out)


def _check_run(workdir: str | Path, config: Any) -> bool:
    """Whether its latents are searched."""
    searched = not hasattr(methods.load(config.method), "restore")
    if searched:
        latents.check_method(config.method, "latents", "decode")
        latents.check_untold(config)
    elif config.task != "inpaint":
        raise UserError(
            f"The run {workdir} was trained without holes: aigc restore, or a run of the task "
            "inpaint."
        )
    return searched


def _check_numbers(config: Any, label: int | None, seed: int, searched: bool) -> None:
    sampling.check_seed(seed)
    if label is not None and not searched:
        raise UserError(f"--label {label}: the run knows no classes: leave it out.")
    sampling.class_labels(config, 1, label)


def _check_sizes(files: PictureFiles, side: int) -> None:
    for file, (height, width) in files.sizes.items():
        if (height, width) != (side, side):
            raise UserError(
                f"{file.path} is {width}x{height}, and the run makes images of {side}x{side} "
                "alone: give such, or a run of the task inpaint, which takes any size."
            )


def _network(run: runs.Run, tile: int) -> Filler:
    fill = Inpainter.of_run(run, tile).fill
    return lambda images, holes: [fill(*pair) for pair in zip(images, holes, strict=True)]


def _searcher(run: runs.Run, label: int | None, seed: int, n: int) -> Filler:
    """By the latents; `n`: how many images there will be. Without a label each class is tried."""
    search, first = latent_search.Search(run, batch_size=min(_SEARCHED, n)), 0

    def fill(images: Sequence[np.ndarray], holes: Sequence[np.ndarray]) -> list[np.ndarray]:
        nonlocal first
        if not images:
            return []
        parts = [split(image, run.config.channels) for image in images]
        repeated = [hole for hole, some in zip(holes, parts, strict=True) for _ in some]
        known = ~np.stack(repeated)[..., None]
        stack = np.stack([part for some in parts for part in some])
        labels = None if label is None else np.full(len(stack), label)
        made = iter(search(stack, known.astype(np.float32), labels, seed, first))
        first += len(stack)
        return [
            np.where(hole[..., None], joined([next(made) for _ in some], image.shape[-1]), image)
            for image, hole, some in zip(images, holes, parts, strict=True)
        ]

    return fill


class _Holes:
    """(H, W) bool for each image, checked."""

    def __init__(self, files: PictureFiles, mask: str) -> None:
        found = PictureFiles(mask, "--mask")
        if Path(mask).is_file():
            self._masks = dict.fromkeys(files.sizes, next(iter(found.sizes)))
            files.check_sizes(self._masks, found)
        else:
            self._masks = files.partners(found)
        found.read(_hole, list(set(self._masks.values())))  # all, before any is filled

    def __call__(self, file: Picture) -> np.ndarray:
        return _hole(self._masks[file].path)


def _hole(path: Path) -> np.ndarray:
    """(H, W) bool, True where a mask is white."""
    try:
        mask, kinds = as_is.read(path)
    except Exception as error:  # whatever Pillow raises
        raise UserError(f"--mask: {path} can't be read: {why(error)}.") from None
    if as_is.CLEAR in kinds:
        raise UserError(f"--mask: {path} is transparent: save it opaque, white where the hole is.")
    hole = to_channels(mask, 1)[..., 0] >= 128
    if hole.all() or not hole.any():
        what = "all white: nothing of the image is known" if hole.all() else "nowhere white"
        raise UserError(f"--mask: {path} is {what}: white is the hole, black what is kept.")
    return hole
