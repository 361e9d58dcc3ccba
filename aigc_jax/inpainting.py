"""Holes in images filled: by a network trained to, or by a generator's latent search."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from aigc_jax import config as configs
from aigc_jax import latent_search, latents, methods, runs, sampling
from aigc_jax.anysize import TILE, AnySize
from aigc_jax.data import as_is
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError
from aigc_jax.picture_files import PictureFiles
from aigc_jax.restoration import joined, split
from aigc_jax.writers import save_png

# (H, W, 1 or 3) uint8 and (H, W) bool, True in the hole -> the same uint8.
Filler = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
        made = self([np.concatenate([part * known, known], -1, np.float32) for part in parts])
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
        lines += [f"Images {kind}: {count}." for kind, count in self.converted.items()]
        if self.skipped:
            lines.append(f"Skipped, as no readable image: {len(self.skipped)} files.")
        return "\n".join(lines)


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
    _check_run(workdir, config)
    files = PictureFiles(source)
    if to_file and len(files.sizes) > 1:
        raise UserError(f"--out {out}: {len(files.sizes)} images go to a folder.")
    holes = _Holes(files, mask)
    fill = _filler(runs.load(workdir, step), label, seed, tile)
    converted: Counter[str] = Counter()
    n = 0
    for file in files.progress():
        for image, kinds in files.read(as_is.read, [file]).values():
            converted.update(kinds)
            made = fill(image, holes(file))
            save_png(made, out) if to_file else files.write({file: made}, Path(out))
            n += 1
    if not n:
        raise files.none()
    return Inpainted(n, str(out), files.skipped, dict(converted))


def _check_run(workdir: str | Path, config: Any) -> None:
    method = methods.load(config.method)
    if hasattr(method, "restore") and config.task != "inpaint":
        raise UserError(
            f"The run {workdir} was trained without holes: aigc restore, or a run of the task "
            "inpaint."
        )
    if not hasattr(method, "restore"):
        latents.check_method(config.method, "latents", "decode")


def _filler(run: runs.Run, label: int | None, seed: int, tile: int) -> Filler:
    if hasattr(run.method, "restore"):
        if label is not None:
            raise UserError(f"--label {label}: the run knows no classes: leave it out.")
        return Inpainter.of_run(run, tile).fill
    return functools.partial(_searched, latent_search.Search(run), run.config, label, seed)


def _searched(
    search: "latent_search.Search",
    config: Any,
    label: int | None,
    seed: int,
    image: np.ndarray,
    hole: np.ndarray,
) -> np.ndarray:
    labels = sampling.class_labels(config, 1, label)
    known = ~hole[..., None]
    parts = split(image, config.channels)
    made = [search(p[None], known[None].astype(np.float32), labels, seed=seed)[0] for p in parts]
    return np.where(known, image, joined(made, image.shape[-1]))


class _Holes:
    """(H, W) bool for each image, checked."""

    def __init__(self, files: PictureFiles, mask: str) -> None:
        masks = PictureFiles(mask, "--mask").sizes
        names = {_stem(other): other for other in masks}
        only = next(iter(masks)) if len(masks) == 1 and Path(mask).is_file() else None
        self._masks: dict[Picture, Picture] = {}
        for file, size in files.sizes.items():
            other = only or names.get(_stem(file))
            if other is None:
                raise UserError(f"--mask {mask} has no mask of the name of {file.name}.")
            if masks[other] != size:
                (h, w), (h2, w2) = size, masks[other]
                raise UserError(
                    f"--mask: {other.path} is {w2}x{h2} and {file.path} {w}x{h}: a mask has the "
                    "size of its image."
                )
            self._masks[file] = other

    def __call__(self, file: Picture) -> np.ndarray:
        path = self._masks[file].path
        with Image.open(path) as image:
            hole = np.asarray(image.convert("L")) >= 128
        if hole.all() or not hole.any():
            what = "all white: nothing of the image is known" if hole.all() else "all black"
            raise UserError(f"--mask: {path} is {what}: white is the hole, black what is kept.")
        return hole


def _stem(file: Picture) -> str:
    return Path(file.name).with_suffix("").as_posix()
