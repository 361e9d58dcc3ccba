"""The data that a config describes: its source, its training stream, its held-out images."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from aigc_jax.data import pipeline, sources, tasks
from aigc_jax.errors import UserError
from aigc_jax.types import Batch


def dataset(config: ConfigDict, split: str, source: str | None = None) -> sources.Dataset:
    """A split of `config.data.source` (or of `source`), at the config's size and channels."""
    return sources.load(
        source or config.data.source,
        split=split,
        data_dir=config.data.data_dir,
        image_size=config.image_size,
        channels=config.channels or None,
        cache_bytes=config.data.cache_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """The batches of a source, from any step on; `class_names` is () where it has no labels."""

    batches: Callable[[int], Iterator[Batch]]
    class_names: tuple[str, ...]

    def __call__(self, step: int) -> Iterator[Batch]:
        """The batches from `step` on."""
        return self.batches(step)


def training(config: ConfigDict) -> tuple[ConfigDict, Stream]:
    """The config with `channels` and `num_classes` as the source has them, and its batches.

    Returns:
      the resolved config, and the stream of this process's slices of `d_steps * batch_size`
      examples.

    Raises:
      UserError: labels out of range, or any of the source's own errors.
    """
    task = tasks.find(config.task)
    data = dataset(config, config.data.split)
    config = config.copy_and_resolve_references()
    config.channels = data.channels
    labelled = config.task != "generate"  # a user's own task may pass labels on
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
            batch_size=config.batch_size * config.d_steps,
            seed=config.seed,
            start=step,
            flip=config.data.flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return config, Stream(batches, data.class_names)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Images to measure by; every iteration is one pass of batches with `valid`."""

    data: sources.Dataset
    task: tasks.Task
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        return pipeline.eval_batches(self.data, self.task, batch_size=self.batch_size)

    def __len__(self) -> int:
        return self.data.num_examples

    @property
    def name(self) -> str:
        """Of the source, its split and the size at which it is read."""
        return f"{self.data.name} at {'x'.join(map(str, self.data.shape))}"


def held_out(config: ConfigDict, source: str | None = None) -> HeldOut:
    """The images of `config.eval.split`; every process reads all of them.

    Args:
      source: read this instead; a folder or npz file of its own is read whole.
    """
    whole = source is not None and not source.startswith(("tfds:", "digits"))
    data = dataset(config, "all" if whole else config.eval.split, source)
    return HeldOut(data, tasks.find(config.task), config.eval.batch_size)
