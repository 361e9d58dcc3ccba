"""Evaluation of runs and of images: a method's own metrics, and samples through a network."""

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from aigc_jax import config as configs
from aigc_jax import methods, parallel, runs, scores, suite
from aigc_jax.data import configured, images
from aigc_jax.errors import UserError
from aigc_jax.sample_scores import SampleScores, name_of, provenance, some
from aigc_jax.scores import Evaluation
from aigc_jax.scoring import Viewer
from aigc_jax.sets import see
from aigc_jax.translation import check_direction, has_directions
from aigc_jax.types import Batch


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
        None: all, of a method that translates `eval.num_samples`.
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
        self._config, self._asked = config, metrics
        own = [name for name in metrics if name not in suite.METRICS]
        self._own = self._samples = None
        if hasattr(method, "eval_step") and (own or not metrics):
            most = config.eval.num_samples if methods.command(method) else None
            self._own = _Own(config, method, spec, layout, own, most if num is None else num)
        else:
            suite.check(metrics)
        named = [name for name in metrics if name in suite.METRICS]
        if not metrics and hasattr(method, "sample"):
            named = configured_metrics(config)
        if named:
            self._samples = SampleScores(
                config, method, spec, layout, named, real, num, settings, cache, bool(metrics)
            )
        self._way = {"direction": config.eval.direction} if has_directions(method) else {}

    def check(self) -> None:
        """UserError where the run's own held-out images are needed, and can't be read."""
        if self._own or (self._samples and self._samples.needs_held_out):
            headers = self._config.copy_and_resolve_references()
            headers.data.cache_bytes = 0  # no more is decoded than must be
            configured.held_out(headers)

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
        return Evaluation(scores.beside_baselines(found, self._asked), provenance | self._way)


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
            some(held, n), desc="test images", unit="batch", leave=False, delay=2, disable=None
        )
        found = own_metrics(self._step, state, batches, rng, self._layout, self._scores)
        found = scores.beside_baselines(found, self._names)
        return Evaluation(found, {"real": name_of(held, n), "n_real": n})

    def _check_names(self, state: Any, held: configured.HeldOut, rng: Any) -> None:
        """UserError, before anything is computed, for names that the method doesn't know."""
        if not self._names:
            return
        shapes = jax.eval_shape(self._whole, state, next(iter(held)), rng)
        with np.errstate(all="ignore"):
            known = self._scores({name: np.zeros(x.shape) for name, (x, _) in shapes.items()})
        for name in self._names:
            suite.check([name], list(known))


def check_asked(
    fake: str,
    metrics: Sequence[str],
    k: int | None = None,
    direction: str | None = None,
    extractor: str | None = None,
    split: str | None = None,
) -> None:
    """UserError where what only some runs have is asked of something else.

    Args:
      fake: what is measured, maybe a run.
      k: importance samples of an nll.
      direction: of a run that translates.
      extractor: in place of the run's own, whose judge knows one domain.
      split: of a run's source.
    """
    if not runs.is_run(fake):
        if k is not None:
            raise UserError(f"--k {k} is for the nll of a run, which {fake} is not.")
        for name, value in (("direction", direction), ("split", split)):
            if value is not None:
                raise UserError(f"--{name} {value} is for a run, which {fake} is not.")
        return
    config = configs.of_run(fake)
    name = config.method
    method = methods.load(name)
    if direction is not None:
        check_direction(method, direction)
        if extractor is None:
            _check_judge(config, fake, metrics, direction)
    if k is not None and metrics and "nll" not in metrics:
        raise UserError(f"--k {k} is for nll: add it to --metrics, or leave out --k.")
    if k is not None and not hasattr(method, "eval_step"):
        raise UserError(f"--k {k}: the method {name!r} has no nll.")


def _check_judge(config: ConfigDict, workdir: str, metrics: Sequence[str], direction: str) -> None:
    """UserError where the judge that a run trained is not of the domain that is measured."""
    judge, target = Path(config.eval.extractor), config.eval.direction[-1]
    own = config.eval.extractor and judge.resolve().parent == Path(workdir).resolve()
    sampled = not metrics or any(name in suite.METRICS for name in metrics)
    if own and sampled and direction[-1] != target:
        raise UserError(
            f"--direction {direction}: the run's judge, {judge}, is of domain {target}: give "
            f"--extractor inception, or the workdir of a classifier of domain {direction[-1]}."
        )


def reconfigured(run: runs.Run, **fields: Any) -> runs.Run:
    """The run with fields of its config's `eval` section set, those that aren't None."""
    config = run.config.copy_and_resolve_references()
    config.eval.update({name: value for name, value in fields.items() if value is not None})
    return dataclasses.replace(run, config=config, spec=run.method.from_config(config))


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


def usual_metrics(real: str | None, fake: str) -> list[str]:
    """What images are measured by unless it is said: what their sides can tell."""
    if real is None:
        return ["is"]
    return ["fid"] if images.is_statistics(real) or images.is_statistics(fake) else ["fid", "kid"]


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
    told = provenance(viewer, reference, seen) | {"seed": seed}
    return Evaluation(suite.score(metrics, reference, seen, settings), told)
