"""One evaluation loop: a method's own `eval_step`, and samples judged by a domain classifier."""

import functools
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import runs
from aigc_jax.errors import UserError
from aigc_jax.metrics.fid import frechet_distance
from aigc_jax.metrics.statistics import moments
from aigc_jax.types import Batch


def own_metrics(eval_step: Any, state: Any, batches: Iterable[Batch], rng: Any) -> dict[str, float]:
    """Means of what `eval_step(state, batch, rng) -> {name: (sum, count)}` tells of each batch."""
    totals: dict[str, np.ndarray] = {}
    step = jax.jit(eval_step)
    for batch in batches:
        for name, pair in step(state, batch, rng).items():
            totals[name] = totals.get(name, 0) + np.array(pair, np.float64)
    return {name: float(total / max(count, 1)) for name, (total, count) in totals.items()}


class Judge:
    """A trained classifier that reads images: labels, and the features for a Frechet distance.

    Args:
      workdir: of a run of the method `classifier`. UserError if it is of another.
    """

    def __init__(self, workdir: str) -> None:
        run = runs.load(workdir)
        if not hasattr(run.method, "predict"):
            raise UserError(f"{workdir} is a run of {run.config.method!r}, not of a classifier.")
        self.config = run.config
        self._predict = jax.jit(functools.partial(run.method.predict, run.spec, run.state))

    def read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, S, S, C) in [-1, 1] -> (predicted labels (B,), features (B, D))."""
        size, channels = self.config.image_size, self.config.channels
        if images.shape[1:] != (size, size, channels):
            raise UserError(
                f"The classifier reads {size}x{size}x{channels} images, these are "
                f"{'x'.join(map(str, images.shape[1:]))}: train one of the same size."
            )
        logits, features = self._predict(images)
        return np.argmax(logits, -1), np.asarray(features)


def judge_samples(
    judge: Judge, sample: Any, state: Any, rng: Any, batches: Iterable[Batch], num_samples: int
) -> dict[str, float]:
    """Compares generated images with real ones of the same labels.

    Args:
      judge: the classifier.
      sample: (state, rng, batch) -> images, compiled here; it gets the real batch's labels.
      batches: real images with `valid`, as `data.pipeline.eval_batches` gives them.
      num_samples: at most this many.

    Returns:
      `label_accuracy` of the samples and `label_accuracy_real` (where there are labels), `fd`, the
      Frechet distance in the classifier's features, and `num_samples` on each side.
    """
    sample = jax.jit(sample)
    real, fake, right, right_real = [], [], [], []
    for batch in _first(batches, num_samples):
        valid = batch["valid"] > 0
        images = np.asarray(sample(state, rng, batch))
        fake_label, fake_features = judge.read(images)
        real_label, real_features = judge.read(batch["image"])
        fake.append(fake_features[valid])
        real.append(real_features[valid])
        if "label" in batch:
            right.append((fake_label == batch["label"])[valid])
            right_real.append((real_label == batch["label"])[valid])
    real, fake = np.concatenate(real), np.concatenate(fake)
    metrics = {"fd": frechet_distance(*moments(real), *moments(fake))}
    if right:
        metrics["label_accuracy"] = float(np.concatenate(right).mean())
        metrics["label_accuracy_real"] = float(np.concatenate(right_real).mean())
    return metrics | {"num_samples": float(len(fake))}


def _first(batches: Iterable[Batch], num: int) -> Iterator[Batch]:
    """The batches that hold the first `num` examples; later ones are marked invalid."""
    seen = 0
    for batch in batches:
        if seen >= num:
            return
        place = seen + np.cumsum(batch["valid"])
        yield {**batch, "valid": batch["valid"] * (place <= num)}
        seen = int(place[-1])


def scores(
    config: ConfigDict,
    method: ModuleType,
    spec: Any,
    state: Any,
    rng: Any,
    source: str | None = None,
) -> dict[str, float]:
    """All that can be measured of a state on `config.eval.split`, by name; {} for nothing.

    Args:
      source: of the real images; None: the config's.
    """
    from aigc_jax.data import configured

    found = {}
    if hasattr(method, "eval_step"):
        eval_step = functools.partial(method.eval_step, spec)
        found |= own_metrics(eval_step, state, configured.held_out(config, source), rng)
    if config.eval.extractor:
        judge = Judge(config.eval.extractor)
        sample = functools.partial(method.sample, spec)
        batches = configured.held_out(config, source)
        found |= judge_samples(judge, sample, state, rng, batches, config.eval.num_samples)
    return {f"eval_{name}": value for name, value in found.items()}


def run_scores(
    run: runs.Run, source: str | None, extractor: str | None, num: int | None, seed: int
) -> dict[str, float]:
    """The scores of a trained run; None takes what its config says.

    Raises:
      UserError: there is nothing to measure it by.
    """
    config = run.config
    config.eval.extractor = extractor or config.eval.extractor
    config.eval.num_samples = config.eval.num_samples if num is None else num
    if config.eval.num_samples < 2:
        raise UserError(f"--num {num}: it must be at least 2.")
    found = scores(config, run.method, run.spec, run.state, jax.random.key(seed), source)
    if not found:
        raise UserError(
            f"{run.workdir} has no metrics of its own: give --extractor a classifier's workdir "
            "(aigc train --config=digits_classifier or mnist_classifier trains one)."
        )
    return found
