"""Whether a run copies its training images: those nearest to its samples, and a test."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax import sampling, sifting
from aigc_jax.data import pixels
from aigc_jax.errors import UserError
from aigc_jax.metrics import neighbors
from aigc_jax.runs import Run
from aigc_jax.sets import Filled
from aigc_jax.writers import tile

_ROWS, _NEAREST, _COPY = 8, 4, 0.5


@dataclasses.dataclass(frozen=True)
class Memorized:
    """What samples have of the training images; beside it, what new real images have of them.

    Attributes:
      copying: see `metrics.neighbors.Copying`.
      copies, held_out_copies: shares that are nearer to a training image than half of that
        image's distance to its own nearest neighbour.
      closeness, held_out_closeness: medians of that quotient.
      n, n_train, n_held_out: how many images.
      network: the features' network.
    """

    copying: float
    z: float
    copies: float
    held_out_copies: float
    closeness: float
    held_out_closeness: float
    n: int
    n_train: int
    n_held_out: int
    network: str

    def told(self) -> str:
        """In two lines."""
        nearer = (
            "nearer to the training images than new real ones are: some may be copies"
            if self.z > 3
            else "no nearer to the training images than new real ones are"
        )
        return (
            f"{self.n} samples are {nearer} (in {100 * self.copying:.1f}% of pairs the sample is "
            f"nearer; 50% is as it should be)\n"
            f"{100 * self.copies:.2g}% are copies by distance, of held-out images "
            f"{100 * self.held_out_copies:.2g}%; compared with {self.n_train} training images"
        )


def memorized(run: Run, out: str | Path, num: int = 1000, seed: int = 0, **knobs: Any) -> Memorized:
    """Compares samples with their nearest training images, in the features of the run's network.

    Args:
      out: x.png: a row for each of the 8 closest samples, and of 8 others from close to far; each
        beside its 4 nearest training images.
      num: samples.
      **knobs: of the method's `sample`.

    Raises:
      UserError: the run draws nothing, or has no network that sees its samples.
    """
    sampling.check_draws(run.method, knobs)
    viewer = sifting.viewer_of(run.config)
    every = sifting.training_filled(run.config, viewer)
    train, held_out = viewer.see(every), sifting.real_images(run.config, viewer)
    if train.name == held_out.name:
        raise UserError(
            f"{train.name} is what the run was trained on, and what it is measured by: no images "
            "are held out to compare with. Name the split by data.split in training, not in "
            "data.source."
        )
    images, _ = sampling.generate(run, num, seed=seed, **knobs)
    fake = viewer.see(sifting.of_arrays("samples", images, viewer)).features
    own = neighbors.own_distances(train.features)
    close, _ = neighbors.closeness(fake, train.features, own)
    others, _ = neighbors.closeness(held_out.features, train.features, own)
    images = pixels.convert(images, every.channels)
    _page(_lines(images, fake, train.features, close, every), Path(out))
    found = neighbors.copying(fake, train.features, held_out.features)
    return Memorized(
        copying=found.value,
        z=float(found.z),
        copies=float((close < _COPY).mean()),
        held_out_copies=float((others < _COPY).mean()),
        closeness=float(np.median(close)),
        held_out_closeness=float(np.median(others)),
        n=len(fake),
        n_train=train.n,
        n_held_out=held_out.n,
        network=run.config.eval.extractor,
    )


def _page(lines: list[np.ndarray], path: Path) -> None:
    """The closest on the left, the others on the right."""
    from matplotlib.figure import Figure

    parts = {"the closest samples": lines[:_ROWS], "others, from close to far": lines[_ROWS:]}
    parts = {title: part for title, part in parts.items() if part}
    size = 4.5 * len(parts), 0.9 + 0.9 * len(lines[:_ROWS])
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(parts)))
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        picture = tile(np.stack(part)).squeeze()
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{title}:\nsample, and its nearest training images", fontsize=10)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _lines(
    images: np.ndarray, fake: np.ndarray, train: np.ndarray, close: np.ndarray, every: Filled
) -> list[np.ndarray]:
    """Rows (1 + neighbours, H, W, C)."""
    order = close.argsort()
    later = np.linspace(_ROWS, len(order) - 1, _ROWS).astype(int) if len(order) > _ROWS else []
    shown = order[[*range(min(_ROWS, len(order))), *later]]
    near = neighbors.nearest(fake[shown], train, min(_NEAREST, len(train)))[1]
    there = _rows_of(every, set(near.reshape(-1).tolist()))
    return [
        np.stack([images[i], *(there[j] for j in row)]) for i, row in zip(shown, near, strict=True)
    ]


def _rows_of(every: Filled, wanted: set[int]) -> dict[int, np.ndarray]:
    found, start = {}, 0
    for batch, _ in every.batches(256):
        found |= {i: batch[i - start] for i in wanted if start <= i < start + len(batch)}
        start += len(batch)
    return found
