"""A data set of a run's samples: class folders or TFRecords, with a manifest of what made them."""

import dataclasses
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from aigc_jax import __version__, runs, sampling, sifting
from aigc_jax.data import tensorflow
from aigc_jax.data.generated import MANIFEST, is_marked, manifest, marked
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.runs import Run
from aigc_jax.sifting import Sieve

FORMATS = ("folder", "tfds")
_SHARD = 10_000  # images of a TFRecord file
_TRIES = 50  # samples drawn at most for one that passes


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some images in a row.

    Attributes:
      start: the number of the first.
      images: (B, H, W, C) uint8.
      labels: (B,) int32, or None.
      drawn: (B,) which draws they are: with texts in turn, of which text.
    """

    start: int
    images: np.ndarray
    labels: np.ndarray | None
    drawn: np.ndarray


def export(
    run: Run,
    out: str | Path,
    n: int,
    *,
    form: str = "folder",
    per_class: bool = False,
    label: int | None = None,
    text: Sequence[str] = (),
    seed: int = 0,
    keep: str = "",
    real: ConfigDict | None = None,
    **knobs: Any,
) -> dict[str, Any]:
    """Samples of a run as a data set, made on all of this process's devices as they are written.

    Image i is that of `sampling.generate`, or the i-th of those that `keep` lets pass, of each
    class as many as without it. No more than a few hundred are in memory at once.

    Args:
      out: a new folder.
      n: how many; with `per_class` of each class.
      form: "folder", PNGs in a folder for each class, or right there where there are none (texts in
        metadata.jsonl); "tfds", sharded TFRecords for `tfds.builder_from_directory`.
      label, text, seed, **knobs: as of `sampling.generate`.
      keep: filters of `sifting`, "confidence(0.9),copies"; "": all are kept.
      real: the config whose training images samples are compared with; None: the run's own.

    Returns:
      the manifest.

    Raises:
      UserError: see `sampling.generate`; an unknown form; `per_class` without classes or with a
        label; `out` is there already; too few samples pass.
    """
    check(form, per_class, run.config.num_classes, label)
    check_out(out)
    out, count = Path(out), n * run.config.num_classes if per_class else n
    sieve = sifting.sieve(keep, real or run.config)
    names = runs.class_names(run.workdir, run.config) if run.config.num_classes else []
    _clear(out)
    told = {
        "generated": True,
        "complete": False,
        "num_images": count,
        "format": form,
        "class_names": names,
        "workdir": str(run.workdir.absolute()),
        "method": run.config.method,
        "step": run.step,
        "seed": seed,
        "label": label,
        "texts": list(text),
        "knobs": knobs,
        "keep": keep,
        "aigc_jax": __version__,
        "command": " ".join(sys.argv),
    }
    runs.write_json(out / MANIFEST, told)  # at once: a part of them is no more real
    writer = {"folder": _Folder, "tfds": _Records}[form](out, count, names, text)
    asked = {"label": label, "text": text, "seed": seed, **knobs}
    chunks = _passing(run, count, sieve, **asked) if sieve else _all(run, count, **asked)
    bar = tqdm(total=count, unit="img", disable=not sys.stderr.isatty())
    with bar, ThreadPoolExecutor(1) as pool, writer:
        before: Future | None = None
        for chunk in chunks:
            if before is not None:
                before.result()  # one is written while the next is made, not more
            before = pool.submit(writer.write, chunk)
            bar.update(len(chunk.images))
        before.result()
    told |= {"complete": True, "dropped": dict(sieve.dropped) if sieve else {}}
    runs.write_json(out / MANIFEST, told)
    return told


def _all(run: Run, count: int, **asked: Any) -> Iterator[Chunk]:
    for start, images, labels in sampling.chunks(run, count, **asked):
        yield Chunk(start, images, labels, np.arange(start, start + len(images)))


def _passing(run: Run, count: int, sieve: Sieve, **asked: Any) -> Iterator[Chunk]:
    """Those that pass; as many of each label as without a sieve."""
    labels = sampling.class_labels(run.config, count, asked["label"])
    quota = None if labels is None else np.bincount(labels, minlength=run.config.num_classes)
    done = 0
    for drawn, images, own in sampling.chunks(run, _TRIES * count, **asked):
        kept = np.flatnonzero(sieve(images, own))
        if quota is not None:
            wanted = np.array([i for i in kept if _take(quota, own[i])], int)
            sieve.dropped["surplus"] += len(kept) - len(wanted)  # of classes that are full
            kept = wanted
        kept = kept[: count - done]
        if len(kept):
            yield Chunk(done, images[kept], None if own is None else own[kept], drawn + kept)
            done += len(kept)
        if done == count:
            return
        if drawn >= _TRIES * 512 and done * _TRIES < drawn:  # it would never end
            break
    refused = ", ".join(f"{name} dropped {n}" for name, n in sieve.dropped.items())
    if quota is not None:
        worst = int(quota.argmax())
        refused += f"; most are missing of class {worst}"
    raise UserError(
        f"--keep lets {done} samples of {drawn + len(images)} pass ({refused}): ask less."
    )


def _take(quota: np.ndarray, label: int) -> bool:
    quota[label] -= 1
    return quota[label] >= 0


def check_out(out: str | Path) -> None:
    """UserError if `out` is taken; a set that was not finished may be written anew."""
    told = manifest(Path(out))
    if told is None or told.get("complete"):
        sampling.check_folder(out, "--as-dataset")


def _clear(out: Path) -> None:
    """Removes what was written of a set that was not finished, and nothing else."""
    ours = {MANIFEST, "metadata.jsonl", "dataset_info.json", "features.json"}
    for path in out.rglob("*"):
        if path.name in ours or path.name.startswith("train.tfrecord-") or is_marked(path):
            path.unlink()


def check(form: str, per_class: bool, num_classes: int, label: int | None) -> None:
    """UserError for what can't be written."""
    if form not in FORMATS:
        raise UserError(f"--format {form}: there is no such.{did_you_mean(form, FORMATS)}")
    if per_class and not num_classes:
        raise UserError("--per-class: the run knows no classes: leave it out.")
    if per_class and label is not None:
        raise UserError("--per-class is of all classes: leave it out, or --label.")


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    # Of small images run lengths alone are as short as matches, and quicker to find.
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return marked(file.getvalue())


class _Folder:
    """PNGs, and metadata.jsonl where there are texts."""

    def __init__(self, out: Path, count: int, names: list[str], texts: Sequence[str]) -> None:
        self._out, self._names, self._texts = out, names, texts
        self._digits = max(6, len(str(count - 1)))

    def __enter__(self) -> "_Folder":
        for name in self._names:
            (self._out / name).mkdir(exist_ok=True)
        self._lines = (self._out / "metadata.jsonl").open("w") if self._texts else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines:
            self._lines.close()

    def write(self, chunk: Chunk) -> None:
        """All of a chunk's files."""
        for i, image in enumerate(chunk.images, chunk.start):
            of_class = self._names[chunk.labels[i - chunk.start]] if self._names else ""
            path = self._out / of_class / f"{i:0{self._digits}d}.png"
            path.write_bytes(_png(image))
            if self._lines:
                text = self._texts[chunk.drawn[i - chunk.start] % len(self._texts)]
                line = {"file_name": str(path.relative_to(self._out)), "text": text}
                self._lines.write(json.dumps(line) + "\n")


class _Records:
    """TFRecord files of `_SHARD` images, and what TFDS has to know of them."""

    def __init__(self, out: Path, count: int, names: list[str], texts: Sequence[str]) -> None:
        if texts:
            raise UserError("--format tfds holds no texts: take --format folder.")
        self._out, self._count, self._names = out, count, names
        self._lengths = [min(_SHARD, count - i) for i in range(0, count, _SHARD)]
        self._tf, self._file, self._shape, self._bytes = tensorflow(), None, None, 0

    def __enter__(self) -> "_Records":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self._describe()

    def write(self, chunk: Chunk) -> None:
        """All of a chunk's records."""
        self._shape = chunk.images.shape[1:]
        for i, image in enumerate(chunk.images, chunk.start):
            if i % _SHARD == 0:
                self._open(i // _SHARD)
            label = int(chunk.labels[i - chunk.start]) if self._names else None
            record = self._record(_png(image), label)
            self._bytes += len(record)
            self._file.write(record)

    def _open(self, shard: int) -> None:
        if self._file is not None:
            self._file.close()
        name = f"train.tfrecord-{shard:05d}-of-{len(self._lengths):05d}"
        self._file = self._tf.io.TFRecordWriter(str(self._out / name))

    def _record(self, png: bytes, label: int | None) -> bytes:
        train = self._tf.train
        fields = {"image": train.Feature(bytes_list=train.BytesList(value=[png]))}
        if label is not None:
            fields["label"] = train.Feature(int64_list=train.Int64List(value=[label]))
        return train.Example(features=train.Features(feature=fields)).SerializeToString()

    def _describe(self) -> None:
        import tensorflow_datasets as tfds

        features = {"image": tfds.features.Image(shape=self._shape, encoding_format="png")}
        if self._names:
            features["label"] = tfds.features.ClassLabel(names=self._names)
        template = tfds.core.ShardedFileTemplate(
            data_dir=self._out,
            split="train",
            filetype_suffix="tfrecord",
            template="{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        split = tfds.core.SplitInfo(
            name="train",
            shard_lengths=self._lengths,
            num_bytes=self._bytes,
            filename_template=template,
        )
        tfds.folder_dataset.write_metadata(
            data_dir=str(self._out),
            features=tfds.features.FeaturesDict(features),
            split_infos=[split],
            filename_template=template.template,
            description="Images that a model made: see manifest.json.",
        )
