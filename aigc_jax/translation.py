"""Images of any size through a translator: a run's, or a published PyTorch file's."""

import dataclasses
import functools
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import config as configs
from aigc_jax import latents, methods, runs, sampling, torch_weights
from aigc_jax.anysize import TILE, AnySize
from aigc_jax.data import as_is, pictures
from aigc_jax.data.dataset import to_channels
from aigc_jax.data.pairs import halves
from aigc_jax.domains import DIRECTIONS
from aigc_jax.errors import UserError
from aigc_jax.picture_files import PictureFiles


class Translator(AnySize):
    """A translator network on images of any size; instance norm sees the least padding there is.

    Attributes:
      grey: whether it was trained on grey images of equal channels alone: files are read so.
    """

    grey: bool = False

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

        multiple = run.method.multiple(run.spec)
        made = cls(apply, run.state, channels=run.config.channels, multiple=multiple, tile=tile)
        made.grey = run.config.task == "colorize" and _half(run.config, known) == "left"
        return made

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
        return "\n".join([*lines, *pictures.remarks(self.skipped)])


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
    files = _Halves(source, half if pairs else None)
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


class _Halves(PictureFiles):
    """Image files, of each the whole or a half."""

    def __init__(self, source: str, half: str | None) -> None:
        super().__init__(source)
        self._half = half
        for file, (height, width) in self.sizes.items() if half else ():
            if width % 2:
                raise UserError(
                    f"--pairs: {file.path} is {width} pixels wide, which is odd: a pair is two "
                    "images of one width side by side."
                )
            self.sizes[file] = height, width // 2

    def translate(self, network: Translator, out: Path) -> int:
        """Writes the translation of each; how many."""
        read, n = functools.partial(self._pixels, network), 0
        for files, at_once in self.batches(network):
            images = self.read(read, files)
            made = network(list(images.values()), at_once) if images else []
            self.write(dict(zip(images, made, strict=True)), out)
            n += len(images)
        if not n:
            raise self.none()
        return n

    def _pixels(self, network: Translator, path: Path) -> np.ndarray:
        """(H, W, channels) uint8."""
        image, _ = as_is.upright(path)
        image = image.convert("L" if network.grey or network.channels == 1 else "RGB")
        if self._half:
            image = halves(image, path)[self._half == "right"]
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        return to_channels(pixels, network.channels)
