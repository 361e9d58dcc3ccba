"""Published figures, made again by whoever has the weights: expected and got.

The figures are those of torch-fidelity's README and tests for the original CIFAR-10, whose images
are lossless: a set that was compressed on the way gives others.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from aigc_jax import suite, torch_weights
from aigc_jax.errors import UserError
from aigc_jax.metrics import inception, inception_weights, protocols
from aigc_jax.scores import markdown
from aigc_jax.scoring import Seen, Viewer


class Figure(NamedTuple):
    """A published number: of the first set's images against the second's, where it has one."""

    metric: str
    fake: str
    real: str | None
    expected: float
    tolerance: float
    source: str


_FIDELITY = "torch-fidelity"
_FIGURES = (
    # util_dump_dataset_as_images.py -l 100, test_metric_isc_fidelity.py
    Figure("is", "train 100", None, 4.51089784587268, 1e-3, _FIDELITY),
    # .circleci/smoke_tests.py
    Figure("is", "train 256", None, 6.675409920681458, 1e-3, _FIDELITY),
    Figure("fid", "train 256", "test 256", 110.28082617202443, 1e-2, _FIDELITY),
    # tests/tf1/numerical_precision/test_metric_fid_fidelity.py, test_versions.py
    Figure("fid", "train 5000", "test 5000", 10.3233274, 1e-3, "TTUR under TensorFlow 1.14"),
    Figure("is", "train 5000", None, 10.75051, 1e-2, _FIDELITY),
    Figure("kid", "train 5000", "test 5000", -2.907863e-05, 1e-6, _FIDELITY),
    # torch-fidelity's README; pytorch-image-generation-metrics' README
    Figure("is", "train", None, 11.23678, 1e-3, _FIDELITY),
    Figure("fid", "train", "test", 3.1508, 5e-3, "TTUR"),
)


@dataclasses.dataclass
class _Array:
    """Images in memory, see `scoring.Images`."""

    name: str
    images: np.ndarray

    @property
    def n(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[1:3]

    def batches(
        self, batch_size: int, transform: Callable | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, self.n, batch_size):
            images = self.images[start : start + batch_size]
            yield images, np.ones(len(images), np.float32)


def run(weights: str | None, cifar10: str | None, quick: bool = False) -> bool:
    """Prints what the weights are and, with CIFAR-10 at hand, each figure; whether all agree.

    Args:
      weights: Inception's file; None: see `inception_weights.load`.
      cifar10: a folder with `data_batch_1` to 5 and `test_batch` (Python's or `.bin`).
      quick: only figures of at most 256 images.

    Raises:
      UserError: weights or images can't be read.
    """
    loaded = inception_weights.load(weights)
    print(f"{loaded.path}\n  sha256 {loaded.sha256}: {_verdict(loaded.official)}")
    if cifar10 is None:
        print("With --cifar10 DIR (the original's binary or Python batches), the figures follow.")
        return True
    halves = {half: read_cifar10(cifar10, half) for half in ("train", "test")}
    viewer, seen = Viewer(inception.extractor(loaded, protocols.PROTOCOLS["tf1"])), {}
    rows, agree = [], True
    figures = [f for f in _FIGURES if not quick or _count(f.fake) in (100, 256)]
    for figure in tqdm(figures, unit="figure"):
        for name in filter(None, (figure.fake, figure.real)):
            if name not in seen:
                seen[name] = _see(viewer, halves, name)
        got = _measure(figure, seen)
        good = abs(got - figure.expected) <= figure.tolerance
        agree &= good
        rows.append(_row(figure, got, good))
    print(markdown(["metric", "of", "expected", "got", "source", ""], rows))
    return agree


def _verdict(official: bool) -> str:
    return "a published file" if official else "NOT a published file, by its sha256"


def _count(name: str) -> int | None:
    return int(name.split()[1]) if " " in name else None


def _see(viewer: Viewer, halves: dict[str, np.ndarray], name: str) -> Seen:
    images, count = halves[name.split()[0]], _count(name)
    if count:  # as torch-fidelity's util_dump_dataset_as_images.py chooses and writes them
        images = images[np.random.RandomState(2020).choice(len(images), count, replace=False)]
    return viewer.see(_Array(name, images))


def _measure(figure: Figure, seen: dict[str, Seen]) -> float:
    real = seen[figure.real] if figure.real else None
    scores = suite.score([figure.metric], real, seen[figure.fake], suite.Settings())
    return scores[figure.metric]["value"]


def _row(figure: Figure, got: float, good: bool) -> list[str]:
    sets = " against ".join(filter(None, (figure.fake, figure.real)))
    verdict = "agrees" if good else f"differs by {abs(got - figure.expected):.2g}"
    return [figure.metric, sets, f"{figure.expected:.8g}", f"{got:.8g}", figure.source, verdict]


def read_cifar10(folder: str | Path, half: str) -> np.ndarray:
    """The original CIFAR-10's images in their order, (N, 32, 32, 3) uint8.

    Args:
      folder: as its archives unpack: `cifar-10-batches-bin` or `cifar-10-batches-py`, or above it.
      half: "train" or "test".

    Raises:
      UserError: the files aren't there, or are of another size.
    """
    names = ["test_batch"] if half == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    places = [Path(folder), *sorted(Path(folder).glob("cifar-10-batches-*"))]
    for place in places:
        for suffix, read in ((".bin", _read_binary), ("", _read_pickle)):
            paths = [place / (name + suffix) for name in names]
            if all(path.is_file() for path in paths):
                planes = np.concatenate([read(path) for path in paths])
                return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    raise UserError(
        f"{folder} holds no CIFAR-10: give the folder of data_batch_1 to 5 and test_batch, "
        "as cifar-10-binary.tar.gz or cifar-10-python.tar.gz unpacks."
    )


def _read_binary(path: Path) -> np.ndarray:
    content = np.fromfile(path, np.uint8)
    if len(content) != 10_000 * 3073:
        raise UserError(f"{path} is no batch of CIFAR-10: it has {len(content)} bytes.")
    return content.reshape(10_000, 3073)[:, 1:]


def _read_pickle(path: Path) -> np.ndarray:
    images = torch_weights.load(path).get("data")
    if images is None or images.shape != (10_000, 3072):
        raise UserError(f"{path} is no batch of CIFAR-10: its 'data' isn't (10000, 3072).")
    return images
