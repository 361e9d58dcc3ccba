"""Evaluation of runs and of images: a method's own metrics, and samples through a network."""

import functools
import hashlib
import inspect
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aigc_jax import __version__, networks, parallel, runs, scores, suite
from aigc_jax.data import configured, images
from aigc_jax.data.dataset import subset
from aigc_jax.errors import UserError
from aigc_jax.metrics import protocols
from aigc_jax.sampling import Sampler, class_labels, in_turn
from aigc_jax.scoring import Seen, Viewer
from aigc_jax.sets import Filled, see
from aigc_jax.types import Batch, to_uint8


class Evaluation(NamedTuple):
    """Records by metric, and how they were made."""

    scores: dict[str, suite.Score]
    provenance: dict[str, Any]


class Evaluator:
    """Measures states of one run: programs, network and reference are made once.

    Args:
      config: of the run; its `eval` section says by what.
      method, spec: as of a `runs.Run`.
      layout: of the states; None: this process's devices.
      metrics: names of `suite.METRICS` and of the method's own; (): those of the config, and all
        of the method's own.
      real: in place of the config's source: another `tfds:` one, read as the run reads its own, or
        the path of images or statistics, see `sets.see`.
      num: samples, whatever the number of real images; None: as many as there are of those, and
        `eval.num_samples` at most. The method's own metrics are of so many real images at most;
        None: all.
      settings: how numbers are made of features.
      cache: a folder that keeps what the network saw of the real images.

    Raises:
      UserError: an unknown metric; a network that can't be read.
    """

    def __init__(
        self,
        config: ConfigDict,
        method: ModuleType,
        spec: Any,
        layout: parallel.Layout | None = None,
        *,
        metrics: Sequence[str] = (),
        real: str | None = None,
        num: int | None = None,
        settings: suite.Settings | None = None,
        cache: Path | None = None,
    ) -> None:
        layout = (layout or parallel.layout("jit", jax.local_devices())).without_axis()
        self._asked = metrics
        own = [name for name in metrics if name not in suite.METRICS]
        self._own = self._samples = None
        if hasattr(method, "eval_step") and (own or not metrics):
            self._own = _Own(config, method, spec, layout, own, num)
        else:
            suite.check(metrics)
        named = [name for name in metrics if name in suite.METRICS]
        if not metrics and hasattr(method, "sample"):
            named = configured_metrics(config)
        if named:
            self._samples = _Samples(
                config, Sampler(method, spec, layout), named, real, num, settings, cache
            )

    def __call__(self, state: Any, rng: Any) -> Evaluation:
        """All scores of a state that lies as the layout places it.

        Raises:
          UserError: no images to measure by, or not as the metrics need them.
        """
        found, provenance = {}, {}
        if self._own:
            found, provenance = self._own(state, rng)
        if self._samples:
            more, provenance = self._samples(state, rng)
            found |= more
        return Evaluation({name: found[name] for name in self._asked or found}, provenance)


def configured_metrics(config: ConfigDict) -> list[str]:
    """The config's metrics of samples; none without a network.

    Raises:
      UserError: an unknown one.
    """
    names = [name.strip() for name in config.eval.metrics.split(",") if name.strip()]
    suite.check(names)
    if not config.num_classes or config.eval.extractor in ("inception", "vgg16"):
        names = [name for name in names if name != "label_accuracy"]
    return names if config.eval.extractor else []


def own_metrics(
    eval_step: Callable,
    state: Any,
    batches: Iterable[Batch],
    rng: Any,
    layout: parallel.Layout,
    scores: Callable[[dict[str, np.ndarray]], Mapping[str, suite.Score]] | None = None,
) -> dict[str, suite.Score]:
    """Records of what a compiled `eval_step(state, batch, rng) -> {name: (sum, count)}` tells.

    Args:
      batches: of numpy arrays, with `valid`.
      scores: makes records of the means, float64 arrays of the sums' shapes; None: each mean, a
        number then, is one.

    Returns:
      {name: {"value": ..., ..., "n": how many examples it is of}}.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        batch = layout.place_whole(parallel.padded(batch, len(layout.devices)))
        for name, (total, count) in eval_step(state, batch, rng).items():
            sums[name] = sums.get(name, 0) + np.asarray(total, np.float64)
            counts[name] = counts.get(name, 0) + float(count)
    means = {name: total / max(counts[name], 1) for name, total in sums.items()}
    most = max(counts.values(), default=0)
    return {
        name: {**record, "n": int(counts.get(name, most))}
        for name, record in (scores or _plain_records)(means).items()
    }


def _plain_records(means: Mapping[str, np.ndarray]) -> dict[str, suite.Score]:
    for name, mean in means.items():
        if mean.ndim:
            raise ValueError(f"{name!r} is {mean.shape}: the method needs scores(spec, means).")
    return {name: {"value": float(mean)} for name, mean in means.items()}


class _Own:
    """A method's own metrics, `names` of them or all, of the held-out images or `num` of them."""

    def __init__(
        self,
        config: ConfigDict,
        method: ModuleType,
        spec: Any,
        layout: parallel.Layout,
        names: Sequence[str],
        num: int | None,
    ) -> None:
        self._config, self._layout, self._names, self._num = config, layout, names, num
        self._whole = functools.partial(method.eval_step, spec)
        step = self._whole
        if names and "metrics" in inspect.signature(method.eval_step).parameters:
            step = functools.partial(step, metrics=tuple(names))
        self._step = layout.replicated(step)
        scores = getattr(method, "scores", None)
        self._scores = functools.partial(scores, spec) if scores else _plain_records

    def __call__(self, state: Any, rng: Any) -> Evaluation:
        held = configured.held_out(self._config)
        self._check_names(state, held, rng)
        n = min(self._num or len(held), len(held))
        batches = tqdm(
            _some(held, n), desc="test images", unit="batch", leave=False, delay=2, disable=None
        )
        found = own_metrics(self._step, state, batches, rng, self._layout, self._scores)
        found = {name: found[name] for name in self._names or found}
        name = held.name if n == len(held) else f"{held.name}, {n} of {len(held)}"
        return Evaluation(found, {"real": name, "n_real": n})

    def _check_names(self, state: Any, held: configured.HeldOut, rng: Any) -> None:
        """UserError, before anything is computed, for names that the method doesn't know."""
        if not self._names:
            return
        shapes = jax.eval_shape(self._whole, state, next(iter(held)), rng)
        with np.errstate(all="ignore"):
            known = self._scores({name: np.zeros(x.shape) for name, (x, _) in shapes.items()})
        for name in self._names:
            suite.check([name], list(known))


class _Samples:
    """The scores of a run's samples beside real images."""

    def __init__(
        self,
        config: ConfigDict,
        sampler: Sampler,
        metrics: Sequence[str],
        real: str | None,
        num: int | None,
        settings: suite.Settings | None,
        cache: Path | None,
    ) -> None:
        section = config.eval
        self._config, self._sampler, self._metrics = config, sampler, metrics
        self._real, self._num, self._cache = real, num, cache
        self._settings = settings or suite.Settings(protocols.find(section.protocol))
        network = networks.load(
            section.extractor or "inception",
            section.weights,
            self._settings.protocol,
            section.precision,
        )
        self._viewer = Viewer(
            network, self._settings.protocol, sampler.layout, section.extractor_batch_size
        )

    def __call__(self, state: Any, rng: Any) -> Evaluation:
        real = self._reference
        batches, n = self._to_fill
        sample = functools.partial(self._sampler, state, rng)
        size = (self._config.image_size,) * 2
        channels = self._viewer.extractor.channels
        fake = self._viewer.see(Filled("samples", n, size, channels, batches, sample))
        found = suite.score(self._metrics, real, fake, self._settings)
        return Evaluation(found, _provenance(self._viewer, real, fake))

    @functools.cached_property
    def _held_out(self) -> configured.HeldOut | None:
        """The real images as the run's own pipeline reads them; None where `real` is a path."""
        if self._real and not self._real.startswith(("tfds:", "digits")):
            return None
        return configured.held_out(self._config, self._real)

    @functools.cached_property
    def _to_fill(self) -> tuple[Callable[[], Iterator[Batch]], int]:
        """What samples are made of, the labels of the real images where there are any; how many."""
        most = self._config.eval.num_samples if self._num is None else self._num
        if self._needs_real and self._held_out is not None:
            held = self._held_out
            if self._num is None or most <= len(held):
                return functools.partial(_some, held, most), min(most, len(held))
        labels = class_labels(self._config, most)
        return functools.partial(in_turn, most, labels, self._config.eval.batch_size), most

    @property
    def _needs_real(self) -> bool:
        return any(suite.METRICS[name].of_real for name in self._metrics)

    @functools.cached_property
    def _reference(self) -> Seen | None:
        if not self._needs_real:
            return None
        held = self._held_out
        if held is None:
            seen = see(self._real, self._viewer, self._num)
            suite.check_sides(self._metrics, seen)
            return seen
        n = min(self._to_fill[1], len(held))
        name = held.name if n == len(held) else f"{held.name}, {n} of {len(held)}"
        real = Filled(
            name, n, held.data.shape[:2], self._viewer.extractor.channels,
            functools.partial(_some, held, n), lambda batch: np.asarray(to_uint8(batch["image"])),
        )  # fmt: skip
        return self._cached(real)

    def _cached(self, real: Filled) -> Seen:
        # Of several processes, all have to see or none.
        if self._cache is None or jax.process_count() > 1:
            return self._viewer.see(real)
        path = self._cache / self._key(real)
        if path.with_suffix(".npz").exists():
            try:
                return Seen.load(path, real.name)
            except (OSError, ValueError, zipfile.BadZipFile):  # it is made again
                logging.warning("%s can't be read.", path.with_suffix(".npz"))
        seen = self._viewer.see(real)
        try:
            seen.save(path)
        except (OSError, UserError) as error:
            logging.warning("%s is not kept: %s", path, error)
        return seen

    def _key(self, real: Filled) -> str:
        """Of the images themselves, so that what changed on the disk is seen anew."""
        made = json.dumps([self._viewer.provenance, real.name], sort_keys=True)
        digest = hashlib.sha256(made.encode())
        for pixels, _ in real.batches(0):
            digest.update(np.ascontiguousarray(pixels))
        return digest.hexdigest()[:16]


def _some(held: Any, num: int) -> Iterator[Batch]:
    """Held-out batches in which `num` examples, drawn alike each time, are valid."""
    taken = np.zeros(len(held), np.float32)
    taken[subset(len(held), num)] = 1
    start = 0
    for batch in held:
        rows = taken[start : start + len(batch["valid"])]
        valid = batch["valid"] * np.pad(rows, (0, len(batch["valid"]) - len(rows)))
        start += len(rows)
        if valid.any():
            yield {**batch, "valid": valid}


def run_scores(
    run: runs.Run,
    metrics: Sequence[str] = (),
    real: str | None = None,
    num: int | None = None,
    seed: int = 0,
    settings: suite.Settings | None = None,
) -> Evaluation:
    """The scores of a trained run, which are added to its scores.jsonl too.

    Args:
      run: its config's `eval` section says what the arguments leave open.
      seed: of the samples.

    Raises:
      UserError: there is nothing to measure it by, or see `Evaluator`.
    """
    evaluator = Evaluator(
        run.config, run.method, run.spec, metrics=metrics, real=real, num=num, settings=settings,
        cache=run.workdir / "reference",
    )  # fmt: skip
    state = parallel.layout("jit", jax.local_devices()).place_state(run.state)
    found = evaluator(state, jax.random.key(seed))
    if not found.scores:
        raise UserError(
            f"{run.workdir} has no metrics of its own: give --extractor a classifier's workdir "
            "(aigc train --config=digits_classifier or mnist_classifier trains one), or --metrics."
        )
    return record(run.workdir, run.config, run.step, found, seed)


def record(
    workdir: Path, config: ConfigDict, step: int, found: Evaluation, seed: int
) -> Evaluation:
    """Adds an evaluation to a run's scores.jsonl; returns it with the run, step and seed told."""
    told = {**found.provenance, "fake": f"{workdir} step {step}", "seed": seed}
    images_seen = step * config.batch_size * config.d_steps
    try:
        scores.append(workdir, step, images_seen, found.scores, told)
    except OSError as error:  # what was measured is worth showing
        logging.warning("%s: no record was added, %s.", workdir, error.strerror)
    return Evaluation(found.scores, told)


def image_scores(
    metrics: Sequence[str],
    real: str | None,
    fake: str,
    viewer: Viewer,
    settings: suite.Settings,
    num: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """The scores of images anywhere, see `see`.

    Raises:
      UserError: as `see` and `suite.score` do.
    """
    suite.check_names(metrics, real is not None)
    seen = see(fake, viewer, num, seed) if images.is_statistics(fake) else None
    reference = None if real is None else see(real, viewer, num, seed)
    suite.check_sides(metrics, reference, seen)
    seen = seen or see(fake, viewer, num, seed)
    provenance = _provenance(viewer, reference, seen) | {"seed": seed}
    return Evaluation(suite.score(metrics, reference, seen, settings), provenance)


def _provenance(viewer: Viewer, real: Seen | None, fake: Seen) -> dict[str, Any]:
    sides = {"fake": fake.name, "n_fake": fake.n}
    if real is not None:
        sides |= {"real": real.name, "n_real": real.n}
    return {**viewer.provenance, **sides, "version": __version__}
