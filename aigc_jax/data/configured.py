"""The data that a config describes: its source, its training stream, its held-out images."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax.config import RESTORING
from aigc_jax.data import mixture, pipeline, sources, tasks, text
from aigc_jax.data.dataset import ENDLESS
from aigc_jax.errors import UserError
from aigc_jax.types import Batch

_CAPTIONS = 20_000  # of which a vocabulary is made

# Sources that have splits; others are read whole where they are named by themselves.
WITH_SPLITS = ("tfds:", "digits", "mnistm", "shapes")


def dataset(
    config: ConfigDict, split: str, source: str | None = None, image_size: int = 0
) -> sources.Dataset:
    """A split of `config.data.source` (or of `source`), at the config's size and channels."""
    return sources.load(
        source or config.data.source,
        split=split,
        data_dir=config.data.data_dir,
        image_size=image_size or config.image_size,
        channels=config.channels or None,
        cache_bytes=config.data.cache_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """The batches of a source, from any step on; `class_names` is () where it has no labels.

    `reader` read its captions; None where the task has none. `placed` says that the examples tell
    where things are in their images, so that these must not be moved.
    """

    batches: Callable[[int], Iterator[Batch]]
    class_names: tuple[str, ...]
    reader: Any = None
    placed: bool = False

    def __call__(self, step: int) -> Iterator[Batch]:
        """The batches from `step` on."""
        return self.batches(step)


def training(config: ConfigDict) -> tuple[ConfigDict, Stream]:
    """The config with `channels` and `num_classes` as the source has them, and its batches.

    Of two domains the labels are those of `data.a`, and `channels` is 3 if either is in colour.

    Returns:
      the resolved config, and the stream of this process's slices of `d_steps * batch_size`
      examples.

    Raises:
      UserError: labels out of range, or any of the source's own errors.
    """
    data, other = _training_sets(config)
    reader = _reader(config, data, lambda: data)
    task = _task(config, reader)
    config = config.copy_and_resolve_references()
    if reader is not None:
        config.vocabulary = reader.vocabulary_size
    config.channels = max(_channels(data), other.channels if other else 0)
    # A user's own task may pass labels on.
    labelled = config.task != "generate" and not reads_captions(config)
    if config.num_classes < 0:
        config.num_classes = data.num_classes if labelled else 0
    if labelled and data.num_classes > config.num_classes > 0:
        raise UserError(
            f"config.num_classes is {config.num_classes}, but {data.name} has labels up to "
            f"{data.num_classes - 1}: set it to {data.num_classes}, or to -1 for as many."
        )

    def batches(step: int) -> Iterator[Batch]:
        return pipeline.batches(
            data,
            task,
            other=other,
            batch_size=config.batch_size * config.d_steps,
            seed=config.seed,
            start=step,
            crop=config.image_size if config.data.load_size else None,
            flip=config.data.flip,
            turn=config.data.turn,
            augment=config.data.augment,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return config, Stream(batches, data.class_names, reader, data.placed)


def _training_sets(config: ConfigDict) -> tuple[sources.Dataset, sources.Dataset | None]:
    """The source, or the two domains."""
    split, size = config.data.split, config.data.load_size
    if config.data.mix:
        return _mixed(config, size), None
    if config.task != "unpaired":
        return dataset(config, split, image_size=size), None
    with _naming("data.a"):
        a = dataset(config, split, config.data.a, size)
    with _naming("data.b"):
        return a, dataset(config, split, config.data.b, size)


def _mixed(config: ConfigDict, size: int) -> sources.Dataset:
    """Of `data.mix`, grey images in colour where any are."""
    parts = mixture.check(config.data.mix)
    with _naming("data.mix"):
        read = [dataset(config, config.data.split, source, size) for source, _ in parts]
        if len({data.channels for data in read}) > 1 and not config.channels:
            config = config.copy_and_resolve_references()
            config.channels = 3
            read = [dataset(config, config.data.split, source, size) for source, _ in parts]
    return mixture.mixed(read, [share for _, share in parts])


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
    """A source's own error names the field of the config too."""
    try:
        yield
    except UserError as error:
        raise UserError(f"config.{field}: {error}") from None


def _channels(data: sources.Dataset) -> int:
    """Of one image; a pair holds two."""
    return data.channels // 2 if data.channels in (2, 6) else data.channels


def reads_captions(config: ConfigDict) -> bool:
    """Whether a batch holds captions, of which images are made."""
    try:
        task = tasks.find(config.task)
    except UserError:  # a user's own, which isn't here where a run is only used
        return False
    return "reader" in inspect.signature(task).parameters


def _reader(
    config: ConfigDict, data: sources.Dataset, learned: Callable[[], sources.Dataset]
) -> Any:
    """What reads the captions of `data` for the task; None for a task that reads none.

    Where `data.text.tokenizer` names no file, a vocabulary is made of the captions of `learned`,
    the data that is trained on: another's would have other numbers for the same words.
    """
    if not reads_captions(config) or "caption" not in data.fields:
        return None  # without captions the task says so

    def captions() -> np.ndarray:
        data = learned()
        rows = np.arange(min(data.num_examples, _CAPTIONS), dtype=np.int64)
        return data.fields["caption"].function(rows)

    return text.reader(config.data.text, captions)


def _task(config: ConfigDict, reader: Any = None) -> tasks.Task:
    task = tasks.find(config.task)
    known = inspect.signature(task).parameters
    offered = {"data": config.data, "reader": reader}
    wanted = {name: value for name, value in offered.items() if name in known}
    task = functools.partial(task, **wanted) if wanted else task
    if not config.data.swap:
        return task

    def swapped(example: Mapping[str, Any]) -> tasks.Fields:
        fields = task(example)
        if not {"a", "b"} <= fields.keys():
            raise UserError(f"config.data.swap: the task {config.task!r} has no pairs")
        return {**fields, "a": fields["b"], "b": fields["a"]}

    return swapped


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images to measure by; every iteration is one pass of batches with `valid`."""

    data: sources.Dataset
    task: tasks.Task
    batch_size: int
    other: sources.Dataset | None = None  # image i of it goes with image i of `data`
    domain: str = ""  # of `data`'s two, the one that the batches hold
    real: "HeldOut | None" = None  # of the target domain

    def __iter__(self) -> Iterator[Batch]:
        return pipeline.eval_batches(
            self.data, self.task, batch_size=self.batch_size, other=self.other
        )

    def __len__(self) -> int:
        return self.data.num_examples

    @property
    def name(self) -> str:
        """Of the source, its split and the size at which it is read."""
        name = f"{self.data.name} with {self.other.name}" if self.other else self.data.name
        name = f"{name} ({self.domain})" if self.domain else name
        size, channels = self.data.image_size, _channels(self.data)
        return f"{name} at {size}x{size}x{channels}"

    @property
    def targets(self) -> "HeldOut":
        """The real images that samples are compared with, as `image`.

        In translation those of the target domain, with a length of their own; else this itself.
        """
        return self.real or self


def seen_in_training(config: ConfigDict) -> HeldOut:
    """The images that a run is trained on, as `held_out` gives the others."""
    config = config.copy_and_resolve_references()
    config.data.load_size = 0
    return HeldOut(_training_sets(config)[0], _images, config.eval.batch_size)


def held_out_source(config: ConfigDict) -> str:
    """The source of the images that a run is measured by, for one that is trained on others."""
    kind, place = sources.parse(config.data.source)
    half = Path(place) / config.eval.split
    if kind == "folder" and not config.eval.source and half.is_dir():
        return f"folder:{half}"
    return config.eval.source or config.data.source


def held_out(config: ConfigDict, source: str | None = None) -> HeldOut:
    """The images of `config.eval.split`; every process reads all of them.

    In translation a batch holds the domain that `eval.direction` starts from, as `a` or `b`, with
    its labels if it has any; and the other one too where the truth is known: in the tasks with
    pairs, and with `eval.paired`.

    Args:
      source: read this instead; a folder or npz file of its own is read whole. In translation it
        takes the place of the target domain's real images alone.

    Raises:
      UserError: any of the sources' own errors; `eval.paired` with domains of two lengths.
    """
    if config.task in ("generate", "label", "scene", "segments"):
        return HeldOut(_measured(config, source), tasks.find(config.task), config.eval.batch_size)
    if config.task in RESTORING:
        return _damaged(config, source)
    if reads_captions(config):
        return _described(config, source)
    return (_unpaired if config.task == "unpaired" else _paired)(config, source)


def _measured(
    config: ConfigDict, source: str | None = None, image_size: int = 0
) -> sources.Dataset:
    """The config's source at `eval.split`, or another, whole where it is without splits."""
    source = source or config.eval.source or None
    whole = source is not None and not source.startswith(WITH_SPLITS)
    data = dataset(config, "all" if whole else config.eval.split, source, image_size)
    if data.num_examples == ENDLESS:
        raise UserError(
            f"{data.name} never ends, so that nothing can be measured on all of it: set "
            "config.eval.split to test"
        )
    return data


def _damaged(config: ConfigDict, source: str | None) -> HeldOut:
    """Damaged images, as they are before training crops them, and whole ones."""
    side, size = config.data.load_size or config.image_size, config.eval.batch_size
    data = _measured(config, image_size=side)
    real = _measured(config, source, side) if source else data
    return HeldOut(data, _task(config), size, real=HeldOut(real, _images, size))


def _described(config: ConfigDict, source: str | None) -> HeldOut:
    """Images with captions; another source's images alone take the place of the real ones."""
    data, size = _measured(config), config.eval.batch_size
    real = HeldOut(_measured(config, source), _images, size) if source else None
    headers = config.copy_and_resolve_references()
    headers.data.cache_bytes = 0  # for captions alone no image is decoded
    reader = _reader(config, data, lambda: dataset(headers, config.data.split))
    return HeldOut(data, _task(config, reader), size, real=real)


def _paired(config: ConfigDict, source: str | None) -> HeldOut:
    target, own = config.eval.direction[-1], "." in config.task
    task, size = _task(config), config.eval.batch_size
    data = _measured(config, source if own else None)  # a user's task makes of it what it does
    if source and not own:
        real = HeldOut(_measured(config, source), _images, size)
    else:
        real = HeldOut(data, _only(task, target), size, domain="" if own else target)
    return HeldOut(data, task, size, real=real)


def _unpaired(config: ConfigDict, source: str | None) -> HeldOut:
    origin, target = config.eval.direction.split("2")
    data, size, truth = _domain(config, origin), config.eval.batch_size, None
    if config.eval.paired:
        truth = _domain(config, target)
        _check_lengths(data, truth)
    real = _measured(config, source) if source else truth or _domain(config, target)
    task = _renamed(origin, target)
    return HeldOut(data, task, size, truth, real=HeldOut(real, _images, size))


def _domain(config: ConfigDict, name: str) -> sources.Dataset:
    """Held-out images of a domain."""
    if config.eval[name]:
        with _naming(f"eval.{name}"):
            return _measured(config, config.eval[name])
    with _naming(f"data.{name}"):
        return dataset(config, config.eval.split, config.data[name])


def _check_lengths(data: sources.Dataset, truth: sources.Dataset) -> None:
    if data.num_examples != truth.num_examples:
        raise UserError(
            f"config.eval.paired: {data.name} holds {data.num_examples} images and {truth.name} "
            f"{truth.num_examples}, so they are no pairs: name others in config.eval.a and eval.b"
        )


def _images(example: Mapping[str, Any]) -> tasks.Fields:
    return {**tasks.generate(example), **_labels(example)}


def _only(task: tasks.Task, field: str) -> tasks.Task:
    """One domain of a task, as `image`; what has no such domain is left as it is."""

    def only(example: Mapping[str, Any]) -> tasks.Fields:
        fields = task(example)
        return {"image": fields[field], **_labels(fields)} if field in fields else fields

    return only


def _renamed(origin: str, target: str) -> tasks.Task:
    """An image as the field `origin`, and what it becomes as `target` where that is known."""

    def renamed(example: Mapping[str, Any]) -> tasks.Fields:
        truth = {target: example["other"]} if "other" in example else {}
        return {origin: example["image"], **truth, **_labels(example)}

    return renamed


def _labels(fields: Mapping[str, Any]) -> tasks.Fields:
    return {"label": fields["label"]} if "label" in fields else {}
