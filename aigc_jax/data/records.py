"""TensorFlow Datasets: `tfds:NAME[/CONFIG][/SPLIT]`."""

import dataclasses
import difflib
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax.data import tensorflow
from aigc_jax.data.dataset import Dataset, Request, Stream, progress
from aigc_jax.errors import UserError, did_you_mean

_SHUFFLE_BYTES = 256 << 20  # of undecoded records in the shuffle buffer

_log = logging.getLogger(__name__)


def _tfds_root(name: str, data_dir: str | None) -> str | None:
    """Where the set lies or would be prepared; None is TFDS's own default."""
    shared = os.environ.get("AIGC_DATA_DIR")
    if data_dir is not None or not shared:
        return data_dir
    root = os.path.join(shared, "tfds")
    return root if os.path.isdir(os.path.join(root, re.split("[:/]", name)[0])) else None


def prepared(data_dir: str | None) -> list[str]:
    """Names of the sets under `data_dir`, `$AIGC_DATA_DIR/tfds` and TFDS's own default."""
    shared = os.environ.get("AIGC_DATA_DIR")
    roots = [data_dir, shared and os.path.join(shared, "tfds"), _default_root()]
    paths = (path for root in roots if root for path in Path(root).glob("*/**/features.json"))
    return sorted({path.parents[1].name for path in paths})


def _default_root() -> str:
    return os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split's images, undecoded."""

    name: str  # resolved: "tfds:mnist/train"
    num_examples: int
    shape: tuple[int | None, int | None, int | None]  # (H, W, C), None for what varies
    read: Callable[[], Iterator[bytes]]  # PNG or JPEG files, in the order of the records


def read_tfds(request: Request) -> Dataset:
    """A prepared set, or one that is downloaded and prepared now; its image and its label."""
    return _dataset(request, *_open(request.place, request.split, request.data_dir))


def read_prepared(folder: Path, request: Request) -> Dataset:
    """A set that lies in a folder of its own, as TFDS or `aigc sample --as-dataset` wrote it."""
    tensorflow()
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    info = _split_info(builder, request.split)
    return _dataset(request, str(folder), builder, info, *_features(tfds, builder))


def _dataset(
    request: Request, name: str, builder: Any, info: Any, image: str, label: str | None
) -> Dataset:
    tf = tensorflow()
    channels = request.channels or (1 if builder.info.features[image].shape[-1] == 1 else 3)
    dataset = Dataset(
        name=name,
        num_examples=info.num_examples,
        image_size=request.image_size,
        channels=channels,
        class_names=tuple(builder.info.features[label].names) if label else (),
    )
    every = sum(part.num_examples for part in builder.info.splits.values())
    buffer = max(1000, _SHUFFLE_BYTES * every // max(1, int(builder.info.dataset_size)))
    records = _records(tf, dataset.name, info.file_instructions, min(buffer, info.num_examples))
    stream = Stream(records, _decoder(tf, dataset, image, label))
    if request.fits(dataset.num_examples, channels):
        return _in_memory(tf, dataset, stream)
    return dataclasses.replace(dataset, stream=stream)


def encoded(place: str, data_dir: str | None) -> Encoded:
    """The images of `NAME[/CONFIG][/SPLIT]`, by default of "train", as they were stored."""
    tf = tensorflow()
    name, builder, info, image, _ = _open(place, "train", data_dir)
    records = _records(tf, name, info.file_instructions, 1)
    wanted = {image: tf.io.FixedLenFeature([], tf.string)}

    def read() -> Iterator[bytes]:
        batches = records(None, 0).batch(64).prefetch(2)
        for batch in batches.map(lambda x: tf.io.parse_example(x, wanted)[image]):
            yield from batch.numpy()

    return Encoded(name, info.num_examples, builder.info.features[image].shape, read)


def _open(place: str, split: str, data_dir: str | None) -> tuple[str, Any, Any, str, str | None]:
    """Resolved name, builder, the split's info, the names of the image and of the label."""
    import tensorflow_datasets as tfds

    name, _, rest = place.partition("/")
    config, _, own_split = rest.rpartition("/")
    split = own_split or split
    builder = _builder(tfds, f"{name}/{config}" if config else name, data_dir)
    info = _split_info(builder, split)
    return (
        f"tfds:{name}{'/' + config if config else ''}/{split}",
        builder,
        info,
        *_features(tfds, builder),
    )


def _builder(tfds: Any, name: str, data_dir: str | None) -> Any:
    root = _tfds_root(name, data_dir)
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError:
        return _prepare(tfds, name, root)


def _prepare(tfds: Any, name: str, root: str | None) -> Any:
    """Download a set that TFDS knows by name."""
    where = root or _default_root()
    try:
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = [*prepared(root), *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Prepared: {', '.join(prepared(root))}."
        raise UserError(f"unknown TFDS set {name!r}, and none lies in {where}.{hint}") from error
    reason = _unreachable(builder)
    if reason is None:
        _log.warning("tfds:%s is not in %s: downloading it", name, where)
        try:
            builder.download_and_prepare()
        except Exception as error:  # the network's, the disk's, the set's own scripts'
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if reason is not None:
        raise UserError(
            f"the TFDS set {name!r} is not in {where} and cannot be downloaded ({reason}): run "
            f"`tfds build {name} --data_dir={where}` where there is a network, or say where the "
            "set lies by data_dir or $AIGC_DATA_DIR/tfds"
        )
    return builder


def _unreachable(builder: Any) -> str | None:
    """Why no download can work. TFDS would try for minutes before it says so."""
    host = urllib.parse.urlsplit(next(iter(builder.url_infos), "")).hostname
    if host is None or urllib.request.getproxies():
        return None
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"no network: cannot find {host}"
    return None


def _split_info(builder: Any, split: str) -> Any:
    splits = builder.info.splits
    try:
        return splits["+".join(splits) if split == "all" else split]
    except (KeyError, ValueError) as error:
        hint = did_you_mean(split.partition("[")[0], [*splits, "all"])
        raise UserError(f"{builder.info.full_name} has no split {split!r}.{hint}") from error


def _features(tfds: Any, builder: Any) -> tuple[str, str | None]:
    """The names of the image's feature and of the label's, None without one."""
    every = builder.info.features
    images = [k for k, f in every.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in every.items() if isinstance(f, tfds.features.ClassLabel)]
    if not images or every[images[0]].np_dtype != np.uint8:
        raise UserError(
            f"the TFDS set {builder.info.full_name} has no feature that is an 8-bit image: its "
            f"features are {', '.join(every)}"
        )
    image = "image" if "image" in images else images[0]
    return image, "label" if "label" in labels else next(iter(labels), None)


def _decoder(tf: Any, dataset: Dataset, image: str, label: str | None) -> Callable[[Any], Any]:
    """`Stream.decode`. A batch at a time is several times as fast as TFDS, one by one."""
    wanted = {image: tf.io.FixedLenFeature([], tf.string)}
    if label:
        wanted[label] = tf.io.FixedLenFeature([], tf.int64)
    spec = tf.TensorSpec(dataset.shape, tf.uint8)

    def one(encoded: Any) -> Any:
        pixels = tf.io.decode_image(encoded, expand_animations=False)
        return _fit(tf, pixels, dataset.image_size, dataset.channels)

    def decode(records: Any) -> dict[str, Any]:
        parsed = tf.io.parse_example(records, wanted)
        fields = {"image": tf.map_fn(one, parsed[image], fn_output_signature=spec)}
        if label:
            fields["label"] = tf.cast(parsed[label], tf.int32)
        return fields

    return tf.autograph.experimental.do_not_convert(decode)


def _fit(tf: Any, image: Any, size: int, channels: int) -> Any:
    """`square`, `to_channels` and the loss of an alpha channel, in TensorFlow."""
    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    image = tf.cond(side == size, lambda: image, lambda: _resize(tf, image, side, size))
    found = shape[2]
    if channels == 1:
        image = tf.cond(found < 3, lambda: image[..., :1], lambda: _luma(tf, image))
    else:
        image = tf.cond(found < 3, lambda: tf.repeat(image[..., :1], 3, 2), lambda: image[..., :3])
    return tf.ensure_shape(image, (size, size, channels))


def _resize(tf: Any, image: Any, side: Any, size: int) -> Any:
    def bicubic(antialias: bool) -> Any:
        return tf.image.resize(image, (size, size), "bicubic", antialias=antialias)

    # Upwards there is nothing to filter, and the op that cannot is 8 times as fast.
    resized = tf.cond(side > size, lambda: bicubic(True), lambda: bicubic(False))
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _luma(tf: Any, image: Any) -> Any:
    luma = tf.tensordot(tf.cast(image[..., :3], tf.float32), [0.299, 0.587, 0.114], 1)
    return tf.cast(tf.round(luma), tf.uint8)[..., None]


def _in_memory(tf: Any, dataset: Dataset, stream: Stream) -> Dataset:
    examples = stream.records(None, 0).batch(256)
    examples = examples.map(stream.decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    images = np.empty((dataset.num_examples, *dataset.shape), np.uint8)
    labels = np.zeros(dataset.num_examples, np.int32)
    starts = range(0, dataset.num_examples, 256)
    done = 0
    for batch in progress(examples.as_numpy_iterator(), dataset.name, total=len(starts)):
        rows = slice(done, done + len(batch["image"]))
        images[rows], labels[rows] = batch["image"], batch.get("label", 0)
        done = rows.stop
    if done != dataset.num_examples:
        raise UserError(
            f"{dataset.name} holds {done} examples where {dataset.num_examples} are promised: "
            "prepare the set anew"
        )
    return dataclasses.replace(
        dataset, images=images, labels=labels if dataset.num_classes else None
    )


def _records(
    tf: Any, name: str, instructions: Any, buffer: int
) -> Callable[[int | None, Any], Any]:
    """`Stream.records`, from the (file, skip, take) of the split.

    Shuffled, 16 files are read in turns into a buffer of so many records. TFDS has shuffled
    the records when it wrote them, so that a set of few files loses nothing by this.
    """
    parts = [(part.filename, part.skip, part.take) for part in instructions]
    if not all(".tfrecord" in file for file, _, _ in parts):
        raise UserError(
            f"{name} is not stored as TFRecords: prepare it by `tfds build --file_format=tfrecord`"
        )

    def read(file: Any, skip: Any, take: Any) -> Any:
        return tf.data.TFRecordDataset(file).skip(skip).take(take)

    def records(seed: int | None, epoch: Any) -> Any:
        names, skips, takes = zip(*parts, strict=True)
        columns = list(names), np.array(skips, np.int64), np.array(takes, np.int64)
        files = tf.data.Dataset.from_tensor_slices(columns)
        if seed is None:
            return files.flat_map(read)
        # One number for the pass, of (seed, epoch): nearby pairs give unrelated orders.
        pair = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
        key = tf.random.stateless_uniform([], pair, 0, 2**31 - 1, tf.int64)
        files = files.shuffle(len(parts), seed=key, reshuffle_each_iteration=False)
        mixed = files.interleave(read, cycle_length=16, block_length=16)
        return mixed.shuffle(buffer, seed=key, reshuffle_each_iteration=False)

    return records
