"""Images of any size through a translator: a run's, or a published PyTorch file's."""

import dataclasses
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps
from tqdm import tqdm

from aigc_jax import config as configs
from aigc_jax import latents, methods, parallel, runs, sampling, tiles, torch_weights
from aigc_jax.data import folders, pictures
from aigc_jax.data.dataset import to_channels
from aigc_jax.data.pairs import halves
from aigc_jax.data.pictures import Picture
from aigc_jax.domains import DIRECTIONS
from aigc_jax.errors import UserError
from aigc_jax.types import to_uint8
from aigc_jax.writers import save_png

TILE = 2048
_PIXELS = 2**20  # at once on each device
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values of images on their side
_ALPHA = ("LA", "PA", "RGBA")


class Translator:
    """A translator network on all of this process's devices, compiled once for each size.

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
      grey: whether it was trained on grey images of equal channels alone: files are read so.

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
        grey: bool = False,
    ) -> None:
        if tile < 2 * multiple:
            raise UserError(
                f"--tile {tile}: give {2 * multiple} or more: the network works at multiples of "
                f"{multiple} pixels, and tiles overlap by as many."
            )
        self.channels, self.multiple, self.tile = channels, multiple, tile // multiple * multiple
        self.grey = grey
        self._layout = parallel.layout("jit", jax.local_devices())
        self._variables = self._layout.place_state(variables)
        self._finish = finish

        def translated(variables: Any, images: jax.Array) -> jax.Array:
            return apply(variables, images.astype(jnp.float32) / 127.5 - 1)

        self._floats = self._layout.replicated(translated)
        self._whole = self._layout.replicated(lambda *args: finish(translated(*args)))

    @classmethod
    def of_run(
        cls, run: runs.Run, direction: str | None = None, label: int | None = None, tile: int = TILE
    ) -> "Translator":
        """A run's, by its averaged weights; see `keywords` for direction and label."""
        known = keywords(run.config, direction, label)

        def apply(state: Any, images: jax.Array) -> jax.Array:
            told = dict(known)
            if "label" in told:
                told["label"] = jnp.full(len(images), label, jnp.int32)
            return run.method.translate(run.spec, state, images, **told)

        return cls(
            apply, run.state, channels=run.config.channels, multiple=run.method.multiple(run.spec),
            tile=tile, grey=run.config.task == "colorize" and _half(run.config, known) == "left",
        )  # fmt: skip

    @classmethod
    def of_weights(cls, path: str | Path, tile: int = TILE) -> "Translator":
        """A published PyTorch generator's, with PyTorch's rounding: (x + 1) / 2 * 255, cut off.

        Raises:
          UserError: the file can't be read, or is of no known architecture, or of other channels.
        """
        from aigc_jax.models import patchgan, torch_translators

        arrays = torch_weights.load(path)
        try:
            module, variables = torch_translators.from_torch(arrays)
        except UserError as error:
            raise UserError(f"--weights {path}: {error}") from None
        if isinstance(module, patchgan.Discriminator):
            raise UserError(f"--weights {path} are a discriminator's: take the generator's file.")
        multiple = torch_translators.multiple(module)
        apply = functools.partial(module.apply, train=False)
        taken, made = torch_translators.channels(module, variables)
        if not {taken, made} <= {1, 3}:
            raise UserError(
                f"--weights {path}: it makes {made} channels of {taken}, and images have 1 or 3."
            )
        return cls(apply, variables, channels=taken, multiple=multiple, tile=tile, finish=_cut_off)

    def __call__(
        self, images: Sequence[np.ndarray], batch_size: int | None = None
    ) -> list[np.ndarray]:
        """The translation of each image, (H, W, C') uint8.

        Args:
          images: (H, W, `channels`) uint8, of any sizes.
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


def _cut_off(images: jax.Array) -> jax.Array:
    return jnp.clip((images.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


def has_directions(method: ModuleType) -> bool:
    """Whether a method translates from a to b or back, and not to a class, or not at all."""
    translate = getattr(method, "translate", None)
    return translate is not None and "direction" in inspect.signature(translate).parameters


def check_direction(method: ModuleType, direction: str) -> None:
    """UserError for an unknown direction, and one that is not among a method's `DIRECTIONS`."""
    _check_known(direction)
    name = method.__name__.rpartition(".")[2]
    known = getattr(method, "DIRECTIONS", DIRECTIONS) if has_directions(method) else ()
    if direction not in known:
        which = f"translates {' and '.join(known)} alone" if known else "has no directions"
        raise UserError(f"--direction {direction}: the method {name!r} {which}.")


def _check_known(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise UserError(f"--direction {direction!r}: take {' or '.join(DIRECTIONS)}.")


def keywords(config: ConfigDict, direction: str | None, label: int | None) -> dict[str, Any]:
    """{"direction": ...} or {"label": ...}: what the `translate` of a run's method is told.

    Args:
      direction: None: "a2b".
      label: of a method that translates to a class.

    Raises:
      UserError: the method doesn't translate; an unknown direction or label; one that it lacks.
    """
    latents.check_method(config.method, "translate")
    method, name = methods.load(config.method), config.method
    if "label" in inspect.signature(method.translate).parameters:
        if direction is not None:
            check_direction(method, direction)
        if label is None:
            raise UserError(f"The method {name!r} translates to a class: give --label.")
        sampling.class_labels(config, 1, label)
        return {"label": label}
    if label is not None:
        raise UserError(f"--label {label}: the method {name!r} translates by --direction instead.")
    check_direction(method, direction or "a2b")
    return {"direction": direction or "a2b"}


@dataclasses.dataclass(frozen=True)
class Translation:
    """What `translate` did: how many images are in `out`, and which files were no readable ones."""

    n: int
    out: str
    skipped: list[str]

    def told(self) -> str:
        """In a line or two."""
        lines = [f"{self.n} images translated in {self.out}"]
        if self.skipped:
            lines.append(f"Skipped, as no readable image: {len(self.skipped)} files.")
        return "\n".join(lines)


def translate(
    workdir: str | Path | None,
    source: str,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    direction: str | None = None,
    label: int | None = None,
    step: int | None = None,
    pairs: bool = False,
    tile: int = TILE,
) -> Translation:
    """Translates images of any size, each to a PNG of its size at its path below `source`.

    Args:
      workdir: of a run; or None, with `weights` a published PyTorch generator's file.
      source: a folder or an image file; grey and colour become what the network reads, and what
        is transparent white.
      out: a new or empty folder.
      direction, label: see `keywords`; a file has neither, but for a direction with `pairs`.
      step: of the checkpoint; None: the newest.
      pairs: the images are pairs side by side, of which the half of the domain that is translated
        is taken: the left one for a2b, the right one for b2a; the other one where the run was
        trained with `data.swap`.
      tile: see `Translator`.

    Raises:
      UserError: the run doesn't translate; no readable image; a pair of odd width; `out` is taken.
    """
    if workdir is None or weights is not None:
        half = _half_of_weights(
            workdir, weights, pairs, direction=direction, label=label, step=step
        )
    else:
        config = configs.of_run(workdir)
        half = _half(config, keywords(config, direction, label))
    sampling.check_folder(out)
    files = _Files(source, half if pairs else None)
    if workdir is None:
        network = Translator.of_weights(weights, tile)
    else:
        network = Translator.of_run(runs.load(workdir, step), direction, label, tile)
    n = files.translate(network, Path(out))
    return Translation(n, str(out), files.skipped)


def _half_of_weights(
    workdir: object, weights: object, pairs: bool, *, direction: str | None, **of_runs: object
) -> str:
    """By the direction; UserError where a run is named too, or what a weight file doesn't have."""
    if (workdir is None) == (weights is None):
        raise UserError("Give a run's --workdir, or --weights of a published file: one of them.")
    if direction is not None:
        _check_known(direction)
    if not pairs:
        of_runs["direction"] = direction
    for name, value in of_runs.items():
        if value is not None:
            raise UserError(f"--{name} {value}: a weight file has one translator: leave it out.")
    return "right" if direction == "b2a" else "left"


def _half(config: ConfigDict, told: dict[str, Any]) -> str:
    """The half of a pair that a run translates, by its `keywords`."""
    of_b = told.get("direction") == "b2a"
    return "right" if of_b != config.data.swap else "left"


class _Files:
    """Image files, of each the whole or a half; those that can't be read are named and skipped."""

    def __init__(self, source: str, half: str | None) -> None:
        self._source, self._half, self._bad = source, half, folders.Unreadable("", 0)
        self._files = pictures.find(source)
        self._pool = ThreadPoolExecutor(os.cpu_count())
        sizes = zip(self._files, self._each(_size, self._files), strict=True)
        self._sizes = {file: size for file, size in sizes if size}
        if not self._sizes:
            raise self._none()
        if half:
            self._halve()

    @property
    def skipped(self) -> list[str]:
        """The files that turned out to be unreadable."""
        return sorted(map(str, self._bad.files))

    def translate(self, network: Translator, out: Path) -> int:
        """Writes the translation of each; how many."""
        targets, n = latents.targets(self._files), 0
        with tqdm(
            total=len(self._sizes), unit="image", delay=2, leave=False, disable=None
        ) as progress:
            for files, size in self._batches(network):
                images = self._each(functools.partial(self._read, network), files)
                read = {
                    f: image for f, image in zip(files, images, strict=True) if image is not None
                }
                made = network(list(read.values()), size) if read else []
                paths = [out / targets[file] for file in read]
                list(self._pool.map(save_png, made, paths))
                n += len(read)
                progress.update(len(files))
        if not n:
            raise self._none()
        return n

    def _batches(self, network: Translator) -> Iterator[tuple[list[Picture], int]]:
        """Files that go through at one size, and how many do at once."""
        groups: dict[tuple[int, int], list[Picture]] = {}
        for file, size in self._sizes.items():
            groups.setdefault(network.padded(*size), []).append(file)
        for size, files in groups.items():
            at_once = network.batch_size(size, len(files))
            for start in range(0, len(files), at_once):
                yield files[start : start + at_once], at_once

    def _each(self, function: Callable[[Path], Any], files: Sequence[Picture]) -> list[Any]:
        return list(self._pool.map(lambda file: self._bad.attempt(function, file.path), files))

    def _halve(self) -> None:
        for file, (height, width) in self._sizes.items():
            if width % 2:
                raise UserError(
                    f"--pairs: {file.path} is {width} pixels wide, which is odd: a pair is two "
                    "images of one width side by side."
                )
            self._sizes[file] = height, width // 2

    def _read(self, network: Translator, path: Path) -> np.ndarray:
        """(H, W, channels) uint8."""
        image = _picture(path, 1 if network.grey else network.channels)
        if self._half:
            image = halves(image, path)[self._half == "right"]
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        return to_channels(pixels, network.channels)

    def _none(self) -> UserError:
        n = len(self._files)
        return UserError(f"--input {self._source}: {n} image files, and none can be read.")


def _picture(path: Path, channels: int) -> Image.Image:
    """As training reads it, but for what is transparent, which is white."""
    with Image.open(path) as image:
        if image.mode not in _ALPHA and ("transparency" not in image.info or image.mode[0] == "I"):
            return folders.picture(path, channels)
        image = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("L" if channels == 1 else "RGB")


def _size(path: Path) -> tuple[int, int]:
    """(H, W) of an image once it is upright, by its header."""
    with Image.open(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _TURNED
        return (image.width, image.height) if turned else (image.height, image.width)
