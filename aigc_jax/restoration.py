"""Damaged images of any size made whole: by a run, a published network or a classical filter."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import __version__, filters, latents, pair_scores, runs, sampling, torch_weights
from aigc_jax import config as configs
from aigc_jax.anysize import TILE, AnySize
from aigc_jax.data import as_is, degrade, pictures
from aigc_jax.data.dataset import to_channels
from aigc_jax.data.folders import why
from aigc_jax.data.pictures import Picture
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.picture_files import PictureFiles
from aigc_jax.runs import write_json
from aigc_jax.types import to_uint8

SCORES = "scores.json"
_LEAST_SSIM, _LEAST_FILTER = 6, 16  # pixels a side


class Restorer(AnySize):
    """A network or filter on images of any size, grey or in colour.

    A grey network takes the channels of a colour image one by one; one for colour takes a grey
    image as three equal channels, and the luma of what it makes.

    Attributes:
      least: pixels a side of the smallest image that it takes.
    """

    least: int = 1

    @classmethod
    def of_run(cls, run: runs.Run, tile: int = TILE) -> "Restorer":
        """A run's, by its averaged weights."""
        apply = functools.partial(run.method.restore, run.spec)
        multiple = run.method.multiple(run.spec)
        return cls(apply, run.state, channels=run.config.channels, multiple=multiple, tile=tile)

    @classmethod
    def of_weights(cls, path: str | Path, tile: int = TILE) -> "Restorer":
        """A published DnCNN's, of the two key layouts that are about.

        Raises:
          UserError: the file can't be read, or is of no known architecture.
        """
        from aigc_jax import models
        from aigc_jax.models import torch_restorers

        try:
            module, variables = torch_restorers.from_torch(torch_weights.load(path))
        except UserError as error:
            raise UserError(f"--weights {path}: {error}") from None
        apply = functools.partial(module.apply, train=False)
        return cls(
            apply, variables, channels=module.channels, multiple=models.multiple(module), tile=tile
        )

    @classmethod
    def of_filter(cls, name: str, sigma: float, tile: int = TILE) -> "Restorer":
        """A classical one, with its parameters for noise of `sigma` grey levels of 255.

        Raises:
          UserError: there is no such filter; sigma isn't above 0.
        """
        if name not in filters.DENOISERS:
            raise UserError(f"--method {name!r}.{did_you_mean(name, filters.DENOISERS)}")
        if not 0 < sigma <= 255:
            raise UserError(f"--sigma {sigma:g}: grey levels of 255, above 0 and up to 255.")
        if tile < 4 * _LEAST_FILTER:
            raise UserError(f"--tile {tile}: filters take tiles of {4 * _LEAST_FILTER} or more.")
        one = functools.partial(filters.DENOISERS[name], sigma=sigma / 127.5)

        def apply(variables: Any, images: jax.Array) -> jax.Array:
            return jax.vmap(one)(images)

        made = cls(apply, {}, channels=0, tile=tile)
        made.least = _LEAST_FILTER
        return made

    def __call__(
        self, images: Sequence[np.ndarray], batch_size: int | None = None
    ) -> list[np.ndarray]:
        """Each image made whole, (H, W, C) uint8 in its own channels.

        Args:
          images: (H, W, 1 or 3) uint8, or float32 in [-1, 1] but for noise.
          batch_size: see `AnySize`.
        """
        if not self.channels:
            return self._by_channels(images, batch_size)
        parts = [split(image, self.channels) for image in images]
        made = iter(super().__call__([part for some in parts for part in some], batch_size))
        return [
            joined([next(made) for _ in some], image.shape[-1])
            for some, image in zip(parts, images, strict=True)
        ]

    def _by_channels(
        self, images: Sequence[np.ndarray], batch_size: int | None
    ) -> list[np.ndarray]:
        """A filter takes both kinds as they are, but one of them at a time."""
        found: dict[int, np.ndarray] = {}
        for channels in {image.shape[-1] for image in images}:
            places = [i for i, image in enumerate(images) if image.shape[-1] == channels]
            made = super().__call__([images[i] for i in places], batch_size)
            found |= zip(places, made, strict=True)
        return [found[i] for i in range(len(images))]


def split(image: np.ndarray, channels: int) -> list[np.ndarray]:
    """(H, W, C) as a network of so many channels takes it, in parts."""
    if channels == image.shape[-1]:
        return [image]
    if channels == 1:
        return [image[..., i : i + 1] for i in range(image.shape[-1])]
    return [np.repeat(image, channels, -1)]


def joined(parts: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """What a network made of `split`'s parts, uint8, in so many channels."""
    return to_channels(np.concatenate(parts, -1), channels)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `restore` did.

    Attributes:
      n: how many images are in `out`.
      scores: as in scores.json; None without a truth.
      skipped: files that are no readable images.
      converted: how many there were of those that are no 8-bit images without transparency.
    """

    n: int
    out: str
    scores: dict[str, Any] | None
    skipped: list[str]
    converted: dict[str, int]

    def told(self, most: int = 100) -> str:
        """In a few lines; the scores of each image if there are no more than `most`."""
        lines = [f"{self.n} images restored in {self.out}"]
        if self.scores:
            images = self.scores["images"]
            for name, score in images.items() if len(images) <= most else ():
                lines.append(f"{_line(score)}  {name}")
            means = {name: self.scores[name]["value"] for name in ("psnr", "ssim")}
            means["input_psnr"] = self.scores["input_psnr"]["value"]
            lines.append(f"{_line(means)}  mean of {len(images)}")
        return "\n".join([*lines, *pictures.remarks(self.skipped, self.converted)])


def _line(score: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "exact" if value is None else f"{value:6.2f} dB"

    return (
        f"PSNR {number(score['psnr'])} (input {number(score['input_psnr'])}), "
        f"SSIM {score['ssim']:.4f}"
    )


def restore(
    source: str,
    out: str | Path,
    *,
    workdir: str | Path | None = None,
    weights: str | Path | None = None,
    method: str | None = None,
    sigma: float | None = None,
    target: str | None = None,
    ops: str | None = None,
    seed: int = 0,
    step: int | None = None,
    tile: int = TILE,
) -> Restored:
    """Restores images of any size, each to a PNG of its size and channels at its path.

    Args:
      source: a folder or an image file.
      out: a new or empty folder; scores.json beside the images where there is a truth.
      workdir, weights, method: one of a run's, a published DnCNN's file, or a filter's name with
        `sigma`, the noise in grey levels of 255.
      target: whole images of the same names (their endings may differ) and sizes to compare with.
      ops: the images are whole: this is done to them first (see `data.degrade`), without clipping
        or rounding, as the literature's tables have it, and the result is compared with them. The
        input's own PSNR is of what an 8-bit file would hold of it: at much noise above the tables'.
      seed: of `ops`: image i has (seed, i).
      step: of the run's checkpoint; None: the newest.
      tile: see `AnySize`.

    Raises:
      UserError: not one of the three; no readable image; a target that is missing or of another
        size; `out` is taken.
    """
    _check(workdir, weights, method, sigma, target, ops, step)
    chain = _chain(ops, seed) if ops else None
    sampling.check_folder(out)
    files = PictureFiles(source)
    truths = _truths(files, target) if target else None
    network = _network(workdir, weights, method, sigma, step, tile)
    _check_sizes(files, network, bool(target or ops))
    work = _Work(files, chain, truths, seed)
    found, n = {}, 0
    for some, at_once in files.batches(network):
        images = work.read(some)
        inputs = {file: work.damaged(file, image) for file, image in images.items()}
        whole = {file: work.truth(file, image) for file, image in images.items()}
        made = network(list(inputs.values()), at_once) if inputs else []
        files.write(dict(zip(inputs, made, strict=True)), Path(out))
        for (file, truth), result in zip(whole.items(), made, strict=True):
            if truth is not None:
                found[file.name] = work.compared(truth, inputs[file], result)
        n += len(images)
    if not n:
        raise files.none()
    scores = None
    if found:
        found = {file.name: found[file.name] for file in files.sizes if file.name in found}
        by = {"by": str(workdir or weights or f"{method} for sigma {sigma:g}"), "input": source}
        by |= {"degrade": ops, "seed": seed} if ops else {"target": target}
        means = [score["input_psnr"] for score in found.values() if score["input_psnr"] is not None]
        mean = float(np.mean(means)) if means else None
        scores = pair_scores.summary(found) | {"input_psnr": {"value": mean, "unit": "dB"}}
        scores |= {"provenance": by | {"skipped": files.skipped, "version": __version__}}
        write_json(Path(out) / SCORES, scores)
    return Restored(n, str(out), scores, files.skipped, dict(work.converted))


def _check(
    workdir: Any, weights: Any, method: Any, sigma: Any, target: Any, ops: Any, step: Any
) -> None:
    if sum(x is not None for x in (workdir, weights, method)) != 1:
        raise UserError(
            "Give one of a run's --workdir, --weights of a published DnCNN, or --method "
            f"({', '.join(filters.DENOISERS)})."
        )
    if (method is None) != (sigma is None):
        which = f"--method {method} needs" if method else "only --method takes"
        raise UserError(f"{which} --sigma, the noise in grey levels of 255, e.g. --sigma 25.")
    if target and ops:
        raise UserError("--degrade makes its own truth of the input: leave out --target.")
    if step is not None and workdir is None:
        raise UserError(f"--step {step} is of a run's checkpoint: give --workdir, or leave it out.")


def _chain(ops: str, seed: int) -> tuple[degrade.Operation, ...]:
    sampling.check_seed(seed)
    try:
        return degrade.parse(ops)
    except UserError as error:
        raise UserError(f"--degrade: {error}") from None


def _network(
    workdir: Any, weights: Any, method: str | None, sigma: float | None, step: Any, tile: int
) -> Restorer:
    if method is not None:
        return Restorer.of_filter(method, sigma, tile)
    if weights is not None:
        return Restorer.of_weights(weights, tile)
    config = configs.of_run(workdir)
    latents.check_method(config.method, "restore")
    if config.task == "inpaint":
        raise UserError(f"The run {workdir} fills holes: aigc inpaint, with --mask.")
    return Restorer.of_run(runs.load(workdir, step), tile)


def _truths(files: PictureFiles, target: str) -> dict[Picture, Path]:
    """The file of `target` that has the name of each."""
    theirs = PictureFiles(target, "--target")
    if len(files.sizes) == len(theirs.sizes) == 1:
        pairs = dict(zip(files.sizes, theirs.sizes, strict=True))
        files.check_sizes(pairs, theirs)
    else:
        pairs = files.partners(theirs)
    return {file: other.path for file, other in pairs.items()}


def _check_sizes(files: PictureFiles, network: Restorer, compared: bool) -> None:
    least, why = network.least, "filters need"
    if compared and least < _LEAST_SSIM:
        least, why = _LEAST_SSIM, "SSIM needs"
    for file, (height, width) in files.sizes.items():
        if min(height, width) < least:
            raise UserError(
                f"{file.path} is {width}x{height}: {why} {least} pixels a side: leave it out."
            )


class _Work:
    """What is done around the network: reading, damaging, comparing."""

    def __init__(
        self,
        files: PictureFiles,
        chain: tuple[degrade.Operation, ...] | None,
        truths: dict[Picture, Path] | None,
        seed: int,
    ) -> None:
        self._files, self._chain, self._truths, self._seed = files, chain, truths, seed
        self._quality = pair_scores.Quality()
        self.converted: Counter[str] = Counter()

    def read(self, files: list[Picture]) -> dict[Picture, np.ndarray]:
        found = self._files.read(as_is.read, files)
        self.converted.update(kind for _, kinds in found.values() for kind in kinds)
        return {file: image for file, (image, _) in found.items()}

    def damaged(self, file: Picture, image: np.ndarray) -> np.ndarray:
        if not self._chain:
            return image
        seeds = np.array([[self._seed, self._files.number[file]]])
        return degrade.floats(self._chain, image[None], seeds)[0]

    def truth(self, file: Picture, image: np.ndarray) -> np.ndarray | None:
        if self._chain:
            return image
        if self._truths is None:
            return None
        path = self._truths[file]
        try:
            truth, _ = as_is.read(path)
        except Exception as error:  # whatever Pillow raises
            raise UserError(f"--target: {path} can't be read: {why(error)}.") from None
        return to_channels(truth, image.shape[-1])

    def compared(self, truth: np.ndarray, source: np.ndarray, made: np.ndarray) -> dict[str, Any]:
        if source.dtype != np.uint8:
            source = np.asarray(to_uint8(source))
        (score,) = self._quality(truth[None], made[None])
        (before,) = self._quality(truth[None], source[None])
        finite = np.isfinite(before["psnr"])
        return score | {"input_psnr": before["psnr"] if finite else None}
