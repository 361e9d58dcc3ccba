"""Samples of a trained run, in any number, and the files they are written to."""

import functools
import inspect
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aigc_jax import parallel
from aigc_jax.errors import UserError
from aigc_jax.runs import Run
from aigc_jax.types import to_uint8
from aigc_jax.writers import save_png, tile


def generate(
    run: Run,
    n: int,
    *,
    label: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    **knobs: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """n images of a run, on all of this process's devices.

    Image i depends on the seed, the label and i, not on n or the batch size.

    Args:
      label: of all images; None: 0, 1, 2, ... in turn, where the run is conditional.
      **knobs: of the method's `sample`, e.g. truncation.

    Returns:
      (n, H, W, C) uint8, and (n,) int32 labels or None.

    Raises:
      UserError: a label that the run doesn't know, or a knob its method doesn't have.
    """
    if not hasattr(run.method, "sample"):
        raise UserError(f"{run.workdir} is a run of {run.config.method!r}, which makes no images.")
    labels = _labels(run, n, label)
    known = list(inspect.signature(run.method.sample).parameters)[4:]
    for name in knobs.keys() - set(known):
        raise UserError(f"The method {run.config.method!r} has no knob {name!r} for sampling.")
    layout = parallel.layout("jit", jax.local_devices())
    sample = functools.partial(run.method.sample, run.spec, **knobs)
    compiled = layout.replicated(lambda *args: to_uint8(sample(*args)))
    state, rng = layout.place_state(run.state), jax.random.key(seed)
    devices = len(layout.devices)
    batch_size = min(batch_size, math.ceil(n / devices) * devices) // devices * devices or devices
    images = []
    for start in range(0, n, batch_size):
        # The last batch is as large as the others, or the program would be compiled again.
        index = np.arange(start, start + batch_size, dtype=np.int32)
        batch = {"index": index}
        if labels is not None:
            batch["label"] = labels[np.minimum(index, n - 1)]
        images.append(np.asarray(compiled(state, rng, layout.place_batch(batch))))
    return np.concatenate(images)[:n], labels


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


def check_out(out: str | Path) -> None:
    """UserError if `out` is a folder that holds something or a file, or has another ending."""
    out = Path(out)
    if out.suffix in (".png", ".npz"):
        return
    if out.suffix:
        raise UserError(f"--out {out}: end it in .png (a grid), .npz, or nothing (a folder).")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is there already and not empty: name a new folder.")


def _labels(run: Run, n: int, label: int | None) -> np.ndarray | None:
    classes = run.config.num_classes
    if label is None:
        return np.arange(n, dtype=np.int32) % classes if classes else None
    if not classes:
        raise UserError(f"{run.workdir} is unconditional: leave out --label.")
    if not 0 <= label < classes:
        raise UserError(f"--label {label}: {run.workdir} knows the labels 0 to {classes - 1}.")
    return np.full(n, label, np.int32)


def _as_grid(images: np.ndarray) -> np.ndarray:
    """(N, ...) -> (rows, columns, ...), nearly square, the rest white."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    grid[: len(images)] = images
    return grid.reshape(rows, columns, *images.shape[1:])
