"""The stream of batches: a function of the seed and the step, so that a resume needs nothing else.

Example number t of the stream (t = step * batch_size + place in the global batch) is row
`index_shuffle(t % N, (seed, t // N))` of the source: a fresh permutation every epoch, no state.
Sources too large for memory and stored as records have no random access; they are shuffled file
by file and through a buffer, seeded by (seed, epoch), and starting in the middle of an epoch
reads past the records before it, undecoded: at most one pass over the files.

Two unpaired domains are two such streams side by side, each with numbers of its own.
"""

import atexit
import collections
import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from aigc_jax.augment import Chain, parse
from aigc_jax.data import tensorflow
from aigc_jax.data.augment import augment as augmented
from aigc_jax.data.bits import hashed, u64
from aigc_jax.data.dataset import Dataset, Field
from aigc_jax.data.tasks import Task
from aigc_jax.errors import UserError

_ROWS = "rows"  # of the source, which the fields are made of; no task sees them
_INDEX_RANGE = 2**31  # `index` is int32 and wraps; the order of the stream is counted in int64
_AS_IT_IS = parse("")
_THREADS = 2  # enough to stay ahead of a step, few enough to leave the cores to XLA


def batches(
    dataset: Dataset,
    task: Task,
    *,
    batch_size: int,
    seed: int,
    other: Dataset | None = None,
    start: int = 0,
    crop: int | None = None,
    flip: bool = False,
    turn: bool = False,
    augment: str = "",
    shuffle: bool = True,
    repeat: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of every global batch from step `start` on, as read-only numpy.

    `batch_size` counts the examples of all processes. The batches of all processes, concatenated
    in order, are those of a single one; `start=k` equals skipping k batches, bit for bit.

    `crop` cuts each image to (crop, crop) at a random place; `flip` mirrors it left to right with
    probability 1/2; `turn` turns it by 0, 90, 180 or 270 degrees; `augment` lists what else is done
    to it then (see `augment.kinds`). `repeat=False` ends after the
    last full batch of the first epoch.

    `other` is a second domain: the task's examples have its images as `other`, in an order of
    their own, cropped and flipped by themselves; where only one of the two is grey, its channel
    is repeated. An epoch is one of the larger domain.

    Raises UserError for sizes that do not fit together.
    """
    count = max(dataset.num_examples, other.num_examples if other else 0)
    full = count // batch_size
    if not repeat and not full:
        raise UserError(
            f"batch_size {batch_size} is more than the {count} examples of "
            f"{dataset.name}: lower batch_size"
        )
    plan = _Plan(
        dataset, batch_size, seed, process_index, process_count,
        start=start, stop=None if repeat else full,
        shuffle=shuffle, crop=crop, flip=flip, turn=turn,
        augment=parse(augment),
    )  # fmt: skip
    return _run(task, plan, other)


def eval_batches(
    dataset: Dataset,
    task: Task,
    *,
    batch_size: int,
    other: Dataset | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass in the order of the source, the same number of steps in every process.

    The last global batch is filled up with examples to be ignored: `valid` (B,) float32 is 1 for
    an example of the source and 0 for a filler. Image i of `other` goes with image i of the source.
    """
    steps = -(-dataset.num_examples // batch_size)
    plan = _Plan(dataset, batch_size, 0, process_index, process_count, stop=steps, padded=True)
    return _run(task, plan, other)


def prefetch(batches: Iterable[Any], put: Callable[[Any], Any], size: int = 2) -> Iterator[Any]:
    """`put(batch)` for every batch, applied `size` batches ahead of use.

    `put` places a batch on the devices; as JAX's transfers are asynchronous, the copy of the
    next batches then runs beside the step of this one.
    """
    iterator = iter(batches)
    ready = collections.deque(put(batch) for batch in itertools.islice(iterator, size))
    while ready:
        yield ready.popleft()
        ready.extend(put(batch) for batch in itertools.islice(iterator, 1))


@dataclasses.dataclass(frozen=True)
class _Plan:
    dataset: Dataset
    batch_size: int  # of all processes
    seed: int
    process_index: int
    process_count: int
    start: int = 0
    stop: int | None = None
    shuffle: bool = False
    crop: int | None = None
    flip: bool = False
    turn: bool = False
    augment: Chain = _AS_IT_IS
    padded: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise UserError(
                f"batch_size {self.batch_size} does not divide among {self.process_count} "
                f"processes: use a multiple of {self.process_count}"
            )
        moved = self.crop is not None or self.flip or self.turn or self.augment.moves
        if self.dataset.placed and moved:
            raise UserError(
                f"{self.dataset.name} tells where things lie, which flip, turn, load_size and an "
                "augment that moves pixels would make false: leave them out"
            )

    @property
    def local_size(self) -> int:
        return self.batch_size // self.process_count


def _run(task: Task, plan: _Plan, other: Dataset | None) -> Iterator[dict[str, np.ndarray]]:
    tf = tensorflow()
    plans = [plan]
    if other is not None:
        plans.append(dataclasses.replace(plan, dataset=other, seed=_other_seed(plan.seed)))
    finish = _plain(tf, lambda *parts: _fields(tf, task, plans, parts))
    examples = tf.data.Dataset.zip(tuple(_examples(tf, plan) for plan in plans))
    examples = examples.map(finish, num_parallel_calls=_THREADS).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = _THREADS
    options.threading.max_intra_op_parallelism = 1
    return _ended_at_exit(_told(examples.with_options(options).as_numpy_iterator()))


def _ended_at_exit(batches: Iterator[Any]) -> Iterator[Any]:
    """The same; Python would wait for ever for the threads of a stream that outlives it."""
    stream = weakref.ref(batches)

    def end() -> None:
        with contextlib.suppress(ValueError):  # another thread is at it
            if batches := stream():
                batches.close()

    atexit.register(end)  # after TensorFlow's own, so that it is called before them
    weakref.finalize(batches, atexit.unregister, end).atexit = False
    return batches


def _told(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """A UserError raised inside TensorFlow, which hands it on as text, is one again."""
    try:
        yield from batches
    except Exception as error:
        _, mine, line = getattr(error, "message", "").partition("UserError: ")
        if not mine:
            raise
        raise UserError(line.splitlines()[0]) from None


def _plain(tf: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Without autograph, so that a UserError raised in a task reaches the user as it is."""
    return tf.autograph.experimental.do_not_convert(function)


def _positions(tf: Any, plan: _Plan) -> Any:
    """A dataset of the positions t (B / processes,) int64 of this process, one batch a step."""
    stop = np.iinfo(np.int64).max if plan.stop is None else plan.stop
    offset = np.arange(plan.local_size) + plan.process_index * plan.local_size
    steps = tf.data.Dataset.range(plan.start, stop)
    return steps.map(lambda step: step * plan.batch_size + offset)


def _examples(tf: Any, plan: _Plan) -> Any:
    """A dataset of (t, example), as the source has them."""
    return _streamed(tf, plan) if plan.dataset.stream else _indexed(tf, plan)


def _indexed(tf: Any, plan: _Plan) -> Any:
    """Sources with random access: (t, example), a whole batch at once."""
    data = plan.dataset
    # No Python in the stream where images are in memory: it would wait for the interpreter's lock.
    images = None if data.images is None else tf.constant(data.images)
    labels = None if data.labels is None else tf.constant(data.labels)

    def read(t: Any) -> Any:
        rows = _rows(tf, plan, t)
        if images is not None:
            image = tf.gather(images, rows)
        else:
            image, rows = tf.numpy_function(data.read, [rows], [tf.uint8, tf.int64])
        example = {
            "image": tf.ensure_shape(image, (plan.local_size, *data.shape)),
            _ROWS: rows,
        }
        if labels is not None:
            example["label"] = tf.ensure_shape(tf.gather(labels, rows), (plan.local_size,))
        return t, example

    return _positions(tf, plan).map(_plain(tf, read), num_parallel_calls=_THREADS)


def _rows(tf: Any, plan: _Plan, t: Any) -> Any:
    """Positions of the stream -> rows of the source, both (B,) int64."""
    count = plan.dataset.num_examples
    rows, epoch = t % count, t // count
    if not plan.shuffle:
        return rows
    seed = tf.stack([tf.zeros_like(t), tf.fill(tf.shape(t), _i64(tf, plan.seed)), epoch], axis=1)
    # The op behind tf.random.experimental.index_shuffle, whose 4 rounds are too few: of 60,000
    # rows, the orders of two epochs correlate by 0.9. With 8 and more they do not.
    return tf.raw_ops.RandomIndexShuffle(
        index=rows, seed=seed, max_index=_i64(tf, count - 1), rounds=12
    )


def _other_seed(seed: int) -> int:
    """For the numbers of a second domain, which are not those of another run, of seed + 1.

    Of 31 bits, as the permutation takes no more than 32 of a seed; never the seed itself, as
    seed * (an even number) + (an odd one) is never 0.
    """
    return (seed * 0x9E3779B1 + 0x85EBCA6B) % 2**31


def _i64(tf: Any, value: int) -> Any:
    return tf.constant(value, tf.int64)


def _streamed(tf: Any, plan: _Plan) -> Any:
    """Sources of records: (t, example), in the order of the files or shuffled by epoch."""
    data, seed = plan.dataset, plan.seed if plan.shuffle else None
    epoch, skip = divmod(plan.start * plan.batch_size, data.num_examples)
    epochs = tf.data.Dataset.range(epoch, np.iinfo(np.int64).max)
    records = epochs.flat_map(lambda epoch: data.stream.records(seed, epoch))
    mine = slice(plan.process_index * plan.local_size, (plan.process_index + 1) * plan.local_size)
    records = records.skip(skip).batch(plan.batch_size).map(lambda batch: batch[mine])

    def decode(batch: Any) -> dict[str, Any]:
        example = data.stream.decode(batch)
        if "label" in example:
            _check_labels(tf, data, example["label"])
        return example

    examples = records.map(_plain(tf, decode), num_parallel_calls=_THREADS)
    return tf.data.Dataset.zip(_positions(tf, plan), examples)


def _check_labels(tf: Any, data: Dataset, label: Any) -> None:
    inside = tf.reduce_all((label >= 0) & (label < data.num_classes))
    line = f"UserError: {data.name} has labels outside of [0, {data.num_classes})"
    tf.debugging.Assert(inside, [line])


def _fields(tf: Any, task: Task, plans: Sequence[_Plan], parts: Sequence[Any]) -> dict[str, Any]:
    """The task's fields, from examples with images in [-1, 1]."""
    (plan, *_), ((t, first), *_) = plans, parts
    images = [_image(tf, plan, *part) for plan, part in zip(plans, parts, strict=True)]
    channels = max(image.shape[-1] for image in images)
    images = [_repeated(tf, image, channels) for image in images]
    example = {
        **{name: value for name, value in first.items() if name != _ROWS},
        **_told_of(tf, plan, first),
        **dict(zip(("image", "other"), images, strict=False)),
        "index": tf.cast(t % _INDEX_RANGE, tf.int32),
        "seed": tf.bitcast(hashed(tf, plan.seed + 1, hashed(tf, plan.seed, t)), tf.int32),
    }
    fields = {**task(example), "index": example["index"]}
    if plan.padded:
        fields["valid"] = tf.cast(t < plan.dataset.num_examples, tf.float32)
    return fields


def _told_of(tf: Any, plan: _Plan, example: dict[str, Any]) -> dict[str, Any]:
    """The source's own fields; being stateless, those that the task leaves are never computed."""

    def make(field: Field) -> Any:
        dtype = tf.as_dtype(field.dtype)
        value = tf.numpy_function(field.function, [example[_ROWS]], dtype, stateful=False)
        return tf.ensure_shape(value, (plan.local_size, *field.shape))

    return {name: make(field) for name, field in plan.dataset.fields.items()}


def _image(tf: Any, plan: _Plan, t: Any, example: dict[str, Any]) -> Any:
    """(B, S, S, C) float32 in [-1, 1], cropped and flipped as position t says."""
    bits, image = hashed(tf, plan.seed, t), example["image"]
    if plan.crop is not None:
        image = _cropped(tf, image, plan.crop, bits)
    if plan.flip:
        heads = tf.cast(tf.bitwise.right_shift(bits, u64(tf, 63)), tf.bool)
        image = tf.where(heads[:, None, None, None], tf.reverse(image, axis=[2]), image)
    if plan.turn:
        image = _turned(tf, image, bits)
    image = tf.cast(image, tf.float32) / 127.5 - 1
    if plan.augment.steps:
        seeds = tf.bitcast(hashed(tf, plan.seed + 2, bits), tf.int32)
        image = augmented(plan.augment, {"image": image}, seeds)["image"]
    return image


def _turned(tf: Any, image: Any, bits: Any) -> Any:
    """(B, S, S, C) turned by as many quarters as bits 61 (one) and 62 (two) say."""
    quarter = lambda x: tf.reverse(tf.transpose(x, [0, 2, 1, 3]), axis=[1])  # noqa: E731
    for bit, turn in ((61, quarter), (62, lambda x: tf.reverse(x, axis=[1, 2]))):
        shifted = tf.bitwise.right_shift(bits, u64(tf, bit))
        heads = tf.cast(tf.bitwise.bitwise_and(shifted, u64(tf, 1)), tf.bool)
        image = tf.where(heads[:, None, None, None], turn(image), image)
    return image


def _cropped(tf: Any, image: Any, size: int, bits: Any) -> Any:
    """(B, L, L, C) -> (B, size, size, C), at a place by `bits` (B,) uint64."""
    places = u64(tf, image.shape[1] - size + 1)
    for axis in (1, 2):
        start, bits = tf.cast(bits % places, tf.int32), bits // places
        image = tf.gather(image, start[:, None] + tf.range(size), axis=axis, batch_dims=1)
    return image


def _repeated(tf: Any, image: Any, channels: int) -> Any:
    """A grey image in so many equal channels; others as they are."""
    return tf.repeat(image, channels, axis=-1) if image.shape[-1] == 1 < channels else image
