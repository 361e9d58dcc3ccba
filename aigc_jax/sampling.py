"""Samples of a trained run, in any number, and the files they are written to."""

import functools
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import parallel
from aigc_jax.data import configured
from aigc_jax.data import text as readers
from aigc_jax.data.folders import EXTENSIONS
from aigc_jax.errors import UserError
from aigc_jax.methods import command
from aigc_jax.runs import Run
from aigc_jax.types import Batch, to_uint8
from aigc_jax.writers import save_png, tile

_log = logging.getLogger(__name__)

# Endings by which a user means a file.
_OF_FILES = EXTENSIONS | {".npz", ".tif", ".tiff"}


class Sampler:
    """A method's `sample`, compiled once, for any state and number of images.

    Args:
      method, spec: as of a `Run`.
      layout: of the state's devices, without an axis; None: all of this process.
      **knobs: of the method's `sample`, e.g. truncation.

    Raises:
      UserError: the method makes no images, or has no such knob.
    """

    def __init__(
        self, method: ModuleType, spec: Any, layout: parallel.Layout | None = None, **knobs: Any
    ) -> None:
        self.layout = layout or parallel.layout("jit", jax.local_devices())
        check_knobs(method, knobs)
        self._sample = to_numpy(functools.partial(method.sample, spec, **knobs), self.layout)

    def __call__(self, state: Any, rng: Any, batch: Batch) -> np.ndarray:
        """(B, H, W, C) uint8, an image for each example of a batch of numpy arrays.

        `state` lies as the layout places it. B may be any number: it is rounded up to one for each
        device, and the images of the surplus are dropped.
        """
        return self._sample(state, rng, batch)


def to_numpy(
    function: Callable[[Any, Any, Batch], jax.Array], layout: parallel.Layout
) -> Callable[[Any, Any, Batch], np.ndarray]:
    """A compiled `function(state, rng, batch) -> images` of numpy batches, see `Sampler`."""
    compiled = layout.replicated(lambda *args: to_uint8(function(*args)))

    def images(state: Any, rng: Any, batch: Batch) -> np.ndarray:
        whole = parallel.padded(batch, len(layout.devices))
        made = compiled(state, rng, layout.place_whole(whole))
        return np.asarray(made)[: len(batch["index"])]

    return images


def check_draws(method: ModuleType, knobs: Iterable[str] = ()) -> None:
    """As `check_knobs`; and UserError if its `sample` needs images, which it changes."""
    name = method.__name__.rpartition(".")[2]
    if does := command(method):
        raise UserError(f"The method {name!r} draws no images, it {does}s them: aigc {does}.")
    check_knobs(method, knobs)


def check_knobs(method: ModuleType, knobs: Iterable[str] = ()) -> None:
    """UserError if the method makes no images, or its `sample` has no such keywords."""
    name = method.__name__.rpartition(".")[2]
    if not hasattr(method, "sample"):
        instead = ": aigc reconstruct shows what it does" if hasattr(method, "encode") else ""
        raise UserError(f"The method {name!r} makes no images{instead}.")
    known = list(inspect.signature(method.sample).parameters)[4:]
    for knob in knobs:
        if knob not in known:
            has = f"it has {', '.join(f'--{k}' for k in known)}" if known else "it has none"
            raise UserError(f"--{knob}: the method {name!r} has no such knob for sampling, {has}.")


def check_values(knobs: Mapping[str, float]) -> None:
    """UserError for a knob's value that means nothing."""
    for name, value in knobs.items():
        least, enough = "above", value > 0
        if name == "top_k":  # of which 0 is none
            least, enough = "at least", value >= 0
        if name == "guidance":  # 0: as it is; -1: without the condition
            if not -1 <= value < math.inf:
                raise UserError(f"--guidance {value}: it must be at least -1, and finite.")
            continue
        if not (enough and value < math.inf):
            raise UserError(f"--{name} {value}: it must be {least} 0, and finite.")


def in_turn(n: int, fields: Mapping[str, np.ndarray], batch_size: int) -> Iterator[Batch]:
    """Batches of `index` 0 to n - 1 and of fields (n, ...), all of one size."""
    batch_size = min(batch_size, n)
    for start in range(0, n, batch_size):
        # The last batch is as large as the others, or the program would be compiled again.
        index = np.arange(start, start + batch_size, dtype=np.int32)
        rows = np.minimum(index, n - 1)
        valid = (index < n).astype(np.float32)
        yield {"index": index, "valid": valid, **{name: x[rows] for name, x in fields.items()}}


def generate(
    run: Run,
    n: int,
    *,
    label: int | None = None,
    text: str | Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 256,
    **knobs: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """n images of a run, on all of this process's devices.

    Image i depends on the seed, the label or text and i, not on n or the batch size.

    Args:
      label: of all images; None: 0, 1, 2, ... in turn, where the run is conditional on labels.
      text: of all images, or several in turn, where it is conditional on texts.
      **knobs: of the method's `sample`, e.g. truncation.

    Returns:
      (n, H, W, C) uint8, and (n,) int32 labels or None.

    Raises:
      UserError: see `check_draws`, `class_labels` and `text_fields`.
    """
    parts = [*chunks(run, n, label=label, text=text, seed=seed, batch_size=batch_size, **knobs)]
    images = np.concatenate([images for _, images, _ in parts])
    labels = class_labels(run.config, n, label)
    return images, labels


def chunks(
    run: Run,
    n: int,
    *,
    label: int | None = None,
    text: str | Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 256,
    **knobs: Any,
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """What `generate` returns, a part at a time, behind the number of its first image."""
    check_draws(run.method, knobs)
    labels = class_labels(run.config, n, label)
    fields = text_fields(run.config, n, [text] if isinstance(text, str) else text)
    fields |= {} if labels is None else {"label": labels}
    sampler = Sampler(run.method, run.spec, **knobs)
    state, rng = sampler.layout.place_state(run.state), jax.random.key(seed)
    for batch in in_turn(n, fields, batch_size):
        start = int(batch["index"][0])
        rows = slice(start, min(start + batch_size, n))
        images = sampler(state, rng, batch)[: rows.stop - start]
        yield start, images, None if labels is None else labels[rows]


def write(images: np.ndarray, labels: np.ndarray | None, out: str | Path) -> None:
    """(N, H, W, C) uint8 to `x.png` (one grid), `x.npz` (`arr_0`, labels in `arr_1`) or a folder.

    Raises:
      UserError: see `check_out`.
    """
    check_out(out)
    out = Path(out)
    if out.suffix == ".png":
        save_png(tile(_as_grid(images)), out)
    elif out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, *(x for x in (images, labels) if x is not None))
    else:
        for i, image in enumerate(images):
            save_png(image, out / f"{i:06d}.png")


def check_seed(seed: int) -> None:
    """UserError for a seed that is no int32 from 0 on, as TensorFlow and JAX take them alike."""
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed {seed}: take one from 0 to {2**31 - 1}.")


def check_out(out: str | Path) -> None:
    """UserError if `out` is a folder that holds something or a file, or has another ending."""
    out = Path(out)
    if out.suffix in (".png", ".npz"):
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: name a file.")
        _check_writable(out, out.parent)
        return
    if out.suffix:
        raise UserError(f"--out {out}: end it in .png (a grid), .npz, or nothing (a folder).")
    check_folder(out)


def check_folder(out: str | Path, flag: str = "--out") -> None:
    """UserError if `out` is a file, holds something, or can't be made where it is."""
    out = Path(out)
    if out.suffix.lower() in _OF_FILES and not out.is_dir():
        raise UserError(f"{flag} {out}: this makes a folder: leave out the ending {out.suffix}.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{flag} {out} is there already and not empty: name a new folder.")
    _check_writable(out, out, flag)


def _check_writable(out: Path, folder: Path, flag: str = "--out") -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"{flag} {out}: nothing can be written to {there}.")


def class_labels(config: ConfigDict, n: int, label: int | None = None) -> np.ndarray | None:
    """(n,) int32: `label`, or each class of a conditional run in turn; None: unconditional.

    Raises:
      UserError: there is no such label.
    """
    classes = config.num_classes
    if label is None:
        return np.arange(n, dtype=np.int32) % classes if classes else None
    if not classes:
        raise UserError(f"The run is unconditional: leave out --label {label}.")
    if not 0 <= label < classes:
        raise UserError(f"--label {label}: the run knows the labels 0 to {classes - 1}.")
    return np.full(n, label, np.int32)


def check_texts(config: ConfigDict, texts: Sequence[str]) -> None:
    """UserError for a text for a run that reads none, or none for one that does."""
    reads = configured.reads_captions(config)
    if texts and not reads:
        raise UserError(f"The run reads no texts: leave out --text {texts[0]!r}.")
    if reads and not texts:
        raise UserError('The run draws what a text says: give --text "...".')


def text_fields(config: ConfigDict, n: int, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """A batch's fields (n, ...) of texts in turn; {} for a run that reads none.

    Words that the run has never seen are told as a warning.

    Raises:
      UserError: see `check_texts`; a text that is empty or too long.
    """
    check_texts(config, texts)
    if not texts:
        return {}
    reader = readers.reader(config.data.text)
    for each in texts:
        reader.check(each)
        if unknown := reader.unknown(each):
            _log.warning("The run has never seen %s.", ", ".join(map(repr, unknown)))
    return {name: x[np.arange(n) % len(texts)] for name, x in reader(texts).items()}


def _as_grid(images: np.ndarray) -> np.ndarray:
    """(N, ...) -> (rows, columns, ...), nearly square, the rest white."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    grid[: len(images)] = images
    return grid.reshape(rows, columns, *images.shape[1:])
