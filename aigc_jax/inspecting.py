"""What is in a data set, before anyone trains on it: `aigc inspect`."""

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from aigc_jax import runs, sampling
from aigc_jax.data import folders, pipeline, sources, tasks
from aigc_jax.data.dataset import Dataset, progress, resized, subset, to_channels
from aigc_jax.picture_files import PictureFiles
from aigc_jax.writers import tile

_log = logging.getLogger(__name__)

_SIDE = 16  # of the pictures by which near-duplicates are found
_NEAR = 4.0  # grey levels, root mean square of their difference
_FLAT = 2.0  # grey levels, the standard deviation below which an image is constant
_FAINT = 8.0  # below which it is nearly so
_BLURRED = 0.15  # of the median's share of fine detail
_RARE, _SHOWN, _BLOCK = 0.5, 8, 2048


@dataclasses.dataclass(frozen=True)
class Table:
    """The images of a source.

    Attributes:
      name: of the source.
      images: (N, S, S, C) uint8, central squares.
      labels: (N,) int32, or None.
      class_names: () without labels.
      names: of each image, a file's or a row's number.
      sizes: how many files are of each (H, W); {} where images come as they are.
      corrupt: files that can't be read.
      total: images of the source, of which these may be a part.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    names: list[str]
    sizes: dict[tuple[int, int], int]
    corrupt: list[str]
    total: int


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know before training.

    Attributes:
      line: in words.
      rows: (K, n) of the images that show it, n of each example; of `against` too from N on.
    """

    line: str
    rows: tuple[tuple[int, ...], ...] = ()


def inspect(
    source: str,
    against: str | None = None,
    out: str | Path = "inspection",
    *,
    split: str = "train",
    num: int = 20_000,
    image_size: int = 64,
    data_dir: str | None = None,
) -> list[str]:
    """Looks through a source of images, and compares it with another, such as its test set.

    Writes `out`/page.png, a contact sheet and pictures of what was found, and `out`/report.json.

    Args:
      source, against: as of `data.sources`.
      out: a new or empty folder.
      split: of a source that has some and names none.
      num: images of each at most; drawn at random, the same each time.
      image_size: of the squares that are looked at.

    Returns:
      a line for each finding; what is as it should be, is told too.

    Raises:
      UserError: the sources' own; `out` is taken.
    """
    if not {path.name for path in Path(out).glob("*")} <= {"page.png", "report.json"}:
        sampling.check_folder(out)  # but what was found before may go
    look = functools.partial(_table, split=split, num=num, size=image_size, data_dir=data_dir)
    data = look("--data", source)
    other = look("--against", against) if against else None
    found = [*_contents(data), *_balance(data), *_quality(data), *_twins(data)]
    if other is not None:
        found += _shared(data, other)
    every = data.images if other is None else _joined(data.images, other.images)
    _page(data, every, found, Path(out) / "page.png")
    report = {
        "source": data.name,
        "against": other and other.name,
        "images": len(data.images),
        "findings": [
            {"line": finding.line, "images": [_named(data, other, row) for row in finding.rows]}
            for finding in found
        ],
        "statistics": _statistics(data.images),
    }
    runs.write_json(Path(out) / "report.json", report)
    return [finding.line for finding in found]


# ---- reading ----


def _table(
    flag: str, source: str, *, split: str, num: int, size: int, data_dir: str | None
) -> Table:
    kind, place = sources.parse(source)
    if kind == "folder":
        return _of_folder(flag, place, split, num, size)
    data = sources.load(source, split=split, image_size=size, data_dir=data_dir, cache_bytes=0)
    if data.num_examples > num:
        _log.warning("%s: %d of %d images are looked at.", data.name, num, data.num_examples)
    parts = list(progress(_read(data, num), data.name))
    images = np.concatenate([images for images, *_ in parts])[:num]
    rows = np.concatenate([rows for _, rows, _ in parts])[:num]
    labels = np.concatenate([labels for *_, labels in parts])[:num] if data.num_classes else None
    names = [f"row {row}" for row in rows]
    return Table(data.name, images, labels, data.class_names, names, {}, [], data.num_examples)


def _read(data: Dataset, num: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Images, rows and labels, part by part."""
    if data.stream is None:
        rows = subset(data.num_examples, num) if data.num_examples < 2**31 - 1 else np.arange(num)
        for part in np.array_split(rows, -(-len(rows) // 256)):
            images, used = (data.images[part], part) if data.read is None else data.read(part)
            yield images, used, None if data.labels is None else data.labels[used]
        return
    task = tasks.label if data.num_classes else tasks.generate
    batches = pipeline.eval_batches(data, task, batch_size=256)
    for batch in itertools.islice(batches, -(-num // 256)):
        valid = batch["valid"] > 0
        images = np.uint8(np.round((batch["image"] + 1) * 127.5))
        yield images[valid], batch["index"][valid], batch.get("label", batch["index"])[valid]


def _of_folder(flag: str, place: str, split: str, num: int, size: int) -> Table:
    """By files, so that each can be named."""
    root = folders.existing(place)
    if all((root / half).is_dir() for half in ("train", "test")):
        root = root / split
    files = PictureFiles(str(root), flag)
    every = sorted(files.sizes, key=lambda file: file.name)
    chosen = [every[row] for row in subset(len(every), num)]

    def square(path: Path) -> np.ndarray:
        grey = folders.mode(path) in folders.GREY
        return folders.decode(path, size, 1 if grey else 3)

    read = {}
    for part in progress(np.array_split(chosen, -(-len(chosen) // 256)), place):
        read |= files.read(square, list(part))
    channels = max(image.shape[-1] for image in read.values())
    images = np.stack([to_channels(image, channels) for image in read.values()])
    tops = [Path(file.name).parts[0] if "/" in file.name else "" for file in read]
    names = tuple(sorted(set(tops) - {""}))
    labels = None
    if names and all(tops):
        labels = np.array([names.index(top) for top in tops], np.int32)
    sizes = Counter(files.sizes[file] for file in read)
    told = [file.name for file in read]
    classes = names if labels is not None else ()
    return Table(
        f"folder:{place}", images, labels, classes, told, dict(sizes), files.skipped, len(every)
    )


# ---- looking ----


def _contents(data: Table) -> Iterator[Finding]:
    kind = "colour" if data.images.shape[-1] == 3 else "grey"
    some = "" if len(data.images) == data.total else f" (of {data.total})"
    yield Finding(f"{len(data.images)} images{some}, {kind}, in {data.name}")
    if kind == "colour":
        spread = data.images.max(-1).astype(int) - data.images.min(-1)
        grey = np.flatnonzero(spread.reshape(len(spread), -1).max(1) <= 8)
        if len(grey):
            yield Finding(f"{_share(grey, data)} are grey though stored in colour", _each(grey))
    if data.sizes:
        common, count = max(data.sizes.items(), key=lambda item: item[1])
        sides = [min(size) for size in data.sizes]
        told = f"{common[1]}x{common[0]}" if len(data.sizes) == 1 else (
            f"{len(data.sizes)} sizes, most often {common[1]}x{common[0]} ({count}), the shorter "
            f"side from {min(sides)} to {max(sides)}"
        )  # fmt: skip
        yield Finding(f"sizes: {told}")
    if data.corrupt:
        more = ", ..." if len(data.corrupt) > 3 else ""
        files = f"{', '.join(data.corrupt[:3])}{more}"
        yield Finding(f"{len(data.corrupt)} files can't be read: {files}")
    found = _statistics(data.images)
    means, stds = (", ".join(f"{x:.0f}" for x in found[k]) for k in ("mean", "std"))
    yield Finding(f"levels: mean {means}, standard deviation {stds}, of 255")


def _statistics(images: np.ndarray) -> dict[str, list[float]]:
    flat = images.reshape(-1, images.shape[-1])
    # float64 sums of blocks: a million images' float32 sum would be off.
    blocks = np.array_split(flat, max(1, len(flat) // 1_000_000))
    mean = sum(block.sum(0, dtype=np.float64) for block in blocks) / len(flat)
    square = sum((block.astype(np.float64) ** 2).sum(0) for block in blocks) / len(flat)
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(square - mean**2, 0)).tolist()}


def _balance(data: Table) -> Iterator[Finding]:
    if data.labels is None:
        return
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    most, least = counts.argmax(), counts.argmin()
    fewest, names = counts[least], data.class_names
    told = f"{fewest} ({names[least]}) to {counts[most]} ({names[most]}) images"
    told = f"{fewest} images each" if counts[most] == fewest else told
    yield Finding(f"{len(counts)} classes of {told}")
    rare = [name for name, n in zip(data.class_names, counts, strict=True)
            if n < _RARE * np.median(counts)]  # fmt: skip
    if rare:
        yield Finding(f"rare classes, under half of the median: {', '.join(rare)}")


def _quality(data: Table) -> Iterator[Finding]:
    grey = _luma(data.images)
    spread = grey.std((1, 2))
    flat = np.flatnonzero(spread < _FLAT)
    faint = np.flatnonzero((spread >= _FLAT) & (spread < _FAINT))
    fine = _fine(grey) / np.maximum(spread, 1e-3) ** 2
    sharp = np.median(fine[spread >= _FAINT]) if (spread >= _FAINT).any() else 0
    blurred = np.flatnonzero((spread >= _FAINT) & (fine < _BLURRED * sharp))
    blurred = blurred[fine[blurred].argsort()]
    for rows, what in ((flat, "constant"), (faint, "nearly blank"), (blurred, "blurred")):
        yield Finding(
            f"{what}: {_share(rows, data)}" if len(rows) else f"{what}: none", _each(rows)
        )


def _luma(images: np.ndarray) -> np.ndarray:
    """(N, S, S) float32."""
    return to_channels(images, 1)[..., 0].astype(np.float32)


def _fine(grey: np.ndarray) -> np.ndarray:
    """(N,) the power of a Laplacian (Pech-Pacheco et al. 2000)."""
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * middle).var((1, 2))


def _twins(data: Table) -> Iterator[Finding]:
    exact = _groups(_digests(data.images))
    count = sum(len(rows) - 1 for rows in exact)
    yield Finding(
        f"exact duplicates: {count or 'none'}" + (f" in {len(exact)} groups" if exact else ""),
        tuple(tuple(rows[:2]) for rows in exact),
    )
    same = {row: rows[0] for rows in exact for row in rows}
    small = _small(data.images)
    near = [(i, j) for i, j in _near(small, small) if i < j]
    near = [(i, j) for i, j in near if same.get(i, i) != same.get(j, j)]
    yield Finding(f"near-duplicates: {len(near) or 'none'}", tuple(near))


def _shared(data: Table, other: Table) -> Iterator[Finding]:
    """With the rows of `other` counted from len(data.images) on."""
    n = len(data.images)
    left, right = _small(data.images), _small(other.images)
    near = [(i, n + j) for i, j in _near(left, right)]
    exact = 0
    if data.images.shape[1:] == other.images.shape[1:]:
        there = set(_digests(other.images))
        exact = sum(digest in there for digest in _digests(data.images))
    of_both = len({j for _, j in near})
    yield Finding(
        f"shared with {other.name}: {exact or 'none'} exactly, {of_both} of its "
        f"{len(other.images)} images nearly",
        tuple(near),
    )


def _digests(images: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def _groups(keys: Sequence[bytes]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _small(images: np.ndarray) -> np.ndarray:
    """(N, D) float32: 16x16 grey pictures less their means."""
    grey = to_channels(images, 1)
    small = np.stack([resized(image, _SIDE) for image in grey]) if grey.shape[1] != _SIDE else grey
    flat = small.reshape(len(small), -1).astype(np.float32)
    return flat - flat.mean(1, keepdims=True)


def _near(left: np.ndarray, right: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i != j within one set, that differ by at most `_NEAR`; flat ones aside."""
    dim, apart = left.shape[1], left is not right
    limit = _NEAR**2 * dim
    powers = [(x * x).sum(1) for x in (left, right)]
    for i in range(0, len(left), _BLOCK):
        for j in range(0, len(right), _BLOCK):
            a, b = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
            distance = powers[0][a, None] + powers[1][None, b] - 2 * left[a] @ right[b].T
            close = (distance <= limit) & (powers[0][a, None] > 4 * limit)
            for p, q in np.argwhere(close).tolist():
                if apart or i + p != j + q:
                    yield i + p, j + q


# ---- showing ----


def _share(rows: np.ndarray, data: Table) -> str:
    return f"{len(rows)} ({100 * len(rows) / len(data.images):.2g}%)"


def _each(rows: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple((int(row),) for row in rows)


def _named(data: Table, other: Table | None, rows: Sequence[int]) -> list[str]:
    names = data.names + (other.names if other else [])
    return [names[row] for row in rows]


def _joined(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    channels = max(left.shape[-1], right.shape[-1])
    return np.concatenate([to_channels(left, channels), to_channels(right, channels)])


def _page(data: Table, every: np.ndarray, found: Sequence[Finding], path: Path) -> None:
    """A contact sheet, a row a class where there are, and a strip for each finding."""
    from matplotlib.figure import Figure

    shown = [finding for finding in found if finding.rows]
    sheet = _contact(data)
    heights = [max(2.0, 9 * sheet.shape[0] / sheet.shape[1]), *[1.3] * len(shown)]
    figure = Figure(figsize=(10, sum(heights) + 0.4 * len(heights)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights))
    axes[0].set_title(found[0].line, fontsize=10, loc="left")
    _show(axes[0], sheet)
    for axis, finding in zip(axes[1:], shown, strict=True):
        rows = [row for example in finding.rows for row in example][: 2 * _SHOWN]
        _show(axis, tile(every[rows][None]))
        axis.set_title(finding.line, fontsize=9, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _show(axis: object, image: np.ndarray) -> None:
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.axis("off")


def _contact(data: Table) -> np.ndarray:
    rng, columns = np.random.RandomState(0), 2 * _SHOWN
    if data.labels is None:
        rows = rng.permutation(len(data.images))[: columns * 6]
        rows = rows[: max(len(rows) // columns, 1) * columns]
        return tile(data.images[rows].reshape(-1, min(columns, len(rows)), *data.images.shape[1:]))
    lines = []
    for label in np.unique(data.labels)[:16]:
        mine = rng.permutation(np.flatnonzero(data.labels == label))[:columns]
        line = np.full((columns, *data.images.shape[1:]), 255, np.uint8)
        line[: len(mine)] = data.images[mine]
        lines.append(line)
    return tile(np.stack(lines))
