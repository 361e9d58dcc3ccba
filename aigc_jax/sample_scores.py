"""The scores of a run's samples beside real images; where made of images, of baselines too."""

import functools
import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import __version__, networks, parallel, runs, sampling, suite
from aigc_jax import config as configs
from aigc_jax.data import configured
from aigc_jax.data.dataset import subset
from aigc_jax.errors import UserError
from aigc_jax.methods import command
from aigc_jax.metrics import protocols
from aigc_jax.scores import BASELINES, Evaluation
from aigc_jax.scoring import Seen, Viewer
from aigc_jax.sets import Filled, see
from aigc_jax.types import Batch, to_uint8


class SampleScores:
    """Measures the samples of any state of one run; see `evaluate.Evaluator` for the arguments.

    A run that translates is given the held-out images of its source domain, and measured beside
    those of the target domain, and one that restores damaged and whole ones; so is each of its
    method's `baselines`.

    Args:
      asked: False leaves out the label accuracy of translations where it tells nothing: without
        labels (True refuses), of one class, or of classes that the judge or the target domain
        names otherwise.
    """

    def __init__(
        self,
        config: ConfigDict,
        method: ModuleType,
        spec: Any,
        layout: parallel.Layout,
        metrics: Sequence[str],
        real: str | None,
        num: int | None,
        settings: suite.Settings | None,
        cache: Path | None,
        asked: bool = True,
    ) -> None:
        section = config.eval
        self._config, self._metrics, self._asked = config, metrics, asked
        self._real, self._num, self._cache = real, num, cache
        self._settings = settings or suite.Settings(protocols.find(section.protocol))
        self._viewer = viewer_of(config, self._settings.protocol, layout)
        self._translates = command(method) is not None
        # What they are made of, images or captions, is the held-out examples' own.
        self._follows = self._translates or configured.reads_captions(config)
        self._sampler = sampling.Sampler(method, spec, layout)
        self._baselines = {}
        if hasattr(method, "baselines"):
            made = functools.partial(_baseline, method, spec)
            self._baselines = {
                name: sampling.to_numpy(functools.partial(made, name), layout) for name in BASELINES
            }

    def __call__(self, state: Any, rng: Any) -> Evaluation:
        """The scores of a state that lies as the layout places it, each after its baselines'."""
        real, found = self._reference, {}
        for name, images in self._baselines.items():
            seen = self._seen_baseline(name, functools.partial(images, state, rng))
            found |= {f"{name}_{metric}": score for metric, score in self._scores(seen).items()}
        fake = self._viewer.see(
            self._filled("samples", functools.partial(self._sampler, state, rng))
        )
        told = provenance(self._viewer, real, fake)
        if self._translates:
            told["inputs"] = self._held_out.name
        return Evaluation(found | self._scores(fake), told)

    def _scores(self, seen: Seen) -> dict[str, suite.Score]:
        names = self._metrics
        if not self._asked and self._translates and not self._tell_labels(seen):
            names = [name for name in names if name != "label_accuracy"]
        return suite.score(names, self._reference, seen, self._settings)

    def _tell_labels(self, seen: Seen) -> bool:
        """Whether there are several classes, and their numbers mean the same on both sides."""
        if seen.labels is None or len(np.unique(seen.labels)) < 2:
            return False
        held, judge = self._held_out, self._config.eval.extractor
        known = [held.targets.data.class_names]
        if runs.is_run(judge):
            known.append(tuple(runs.class_names(judge, configs.of_run(judge))))
        ours = held.data.class_names
        # An npz file names as many classes as its highest label tells of.
        return all(theirs[: len(ours)] == ours[: len(theirs)] for theirs in known)

    def _filled(self, name: str, image: Callable[[Batch], np.ndarray]) -> Filled:
        batches, n = self._to_fill
        size, channels = (self._config.image_size,) * 2, self._viewer.extractor.channels
        return Filled(name, n, size, channels, batches, image)

    def _seen_baseline(self, name: str, image: Callable[[Batch], np.ndarray]) -> Seen:
        if name != "copied":
            return self._viewer.see(self._filled(name, image))
        if self._copied is None:  # it is of the held-out images alone, whatever the state
            self._copied = self._cached(self._filled(name, image))
        return self._copied

    _copied: Seen | None = None

    @functools.cached_property
    def _held_out(self) -> configured.HeldOut | None:
        """The held-out examples of the run's own pipeline; None where none are needed."""
        if self._real_is_path:
            return configured.held_out(self._config) if self._follows else None
        return configured.held_out(self._config, self._real)

    @property
    def _real_is_path(self) -> bool:
        return bool(self._real) and not self._real.startswith(configured.WITH_SPLITS)

    @property
    def _most(self) -> int:
        return self._config.eval.num_samples if self._num is None else self._num

    @functools.cached_property
    def _to_fill(self) -> tuple[Callable[[], Iterator[Batch]], int]:
        """What samples are made of, and how many.

        Images to translate or captions; else the labels of the real images where there are any.
        """
        most = self._most
        held = self._held_out if self._follows or self._needs_real else None
        if held is not None and (self._follows or self._num is None or most <= len(held)):
            return functools.partial(some, held, most), min(most, len(held))
        labels = sampling.class_labels(self._config, most)
        batch_size = self._config.eval.batch_size
        fields = {} if labels is None else {"label": labels}
        return functools.partial(sampling.in_turn, most, fields, batch_size), most

    @property
    def needs_held_out(self) -> bool:
        """Whether there is anything to read of the run's own."""
        return self._follows or (self._needs_real and not self._real_is_path)

    @property
    def _needs_real(self) -> bool:
        return any(suite.METRICS[name].of_real for name in self._metrics)

    @functools.cached_property
    def _reference(self) -> Seen | None:
        if not self._needs_real:
            return None
        if self._real_is_path:
            seen = see(self._real, self._viewer, self._num)
            suite.check_sides(self._metrics, seen)
            return seen
        held = self._held_out.targets
        n = min(self._most if self._translates else self._to_fill[1], len(held))
        return self._cached(filled(held, n, self._config, self._viewer))

    def _cached(self, images: Filled) -> Seen:
        # Of several processes, all have to see or none.
        if self._cache is None or jax.process_count() > 1:
            return self._viewer.see(images)
        path = self._cache / self._key(images)
        if path.with_suffix(".npz").exists():
            try:
                return Seen.load(path, images.name)
            except (OSError, ValueError, zipfile.BadZipFile):  # it is made again
                logging.warning("%s can't be read.", path.with_suffix(".npz"))
        seen = self._viewer.see(images)
        try:
            seen.save(path)
        except (OSError, UserError) as error:
            logging.warning("%s is not kept: %s", path, error)
        return seen

    def _key(self, images: Filled) -> str:
        """Of the images and labels themselves, so that what changed on the disk is seen anew."""
        made = json.dumps([self._viewer.provenance, images.name], sort_keys=True)
        digest = hashlib.sha256(made.encode())
        for pixels, _ in images.batches(0):
            digest.update(np.ascontiguousarray(pixels))
        for told in (*images.labels, *images.asked):
            digest.update(np.ascontiguousarray(told))
        return digest.hexdigest()[:16]


def _baseline(
    method: ModuleType, spec: Any, name: str, state: Any, rng: Any, batch: Batch
) -> jax.Array:
    return method.baselines(spec, state, batch)[name]


def viewer_of(
    config: ConfigDict, protocol: protocols.Protocol, layout: parallel.Layout | None = None
) -> Viewer:
    """The network that a run's samples are measured through; Inception where it names none."""
    section = config.eval
    network = networks.load(
        section.extractor or "inception", section.weights, protocol, section.precision
    )
    return Viewer(network, protocol, layout, section.extractor_batch_size)


def filled(held: configured.HeldOut, n: int, config: ConfigDict, viewer: Viewer) -> Filled:
    """n of the examples' images, as `viewer` takes them."""
    return Filled(
        name_of(held, n), n, (config.image_size,) * 2, viewer.extractor.channels,
        functools.partial(some, held, n), lambda batch: np.asarray(to_uint8(batch["image"])),
    )  # fmt: skip


def name_of(held: configured.HeldOut, n: int) -> str:
    """Of n of the held-out examples."""
    return held.name if n == len(held) else f"{held.name}, {n} of {len(held)}"


def some(held: configured.HeldOut, num: int) -> Iterator[Batch]:
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


def provenance(viewer: Viewer, real: Seen | None, fake: Seen) -> dict[str, Any]:
    """How the numbers of two sets were made."""
    sides = {"fake": fake.name, "n_fake": fake.n}
    if real is not None:
        sides |= {"real": real.name, "n_real": real.n}
    return {**viewer.provenance, **sides, "version": __version__}
