"""Images, through an extractor, to what it saw: the same for folders, for runs, and in training."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax import parallel
from aigc_jax.data.dataset import regroup
from aigc_jax.errors import UserError
from aigc_jax.metrics import statistics
from aigc_jax.metrics.extractors import Extractor
from aigc_jax.metrics.protocols import PROTOCOLS, Protocol
from aigc_jax.metrics.statistics import Statistics

_KEEP_BYTES = 2 << 30  # features of larger sets are summed up as they come


class Images(Interface):
    """A set of images in a fixed order. `data.images.open_images` gives one of a path."""

    name: str
    n: int  # at most: some may turn out unreadable
    size: tuple[int, int] | None  # None: mixed

    def batches(
        self, batch_size: int, transform: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """uint8 (B, H, W, C), or what `transform` makes of each, and a mask (B,)."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an extractor saw in a set of images.

    Attributes:
      name: of the set.
      statistics: mean and covariance of the features, and how they were made.
      features: (N, D) float32; None where they were summed up as they came.
      logits: (N, K) float32; None where the extractor has no classes.
      labels: (N,) int32, of images that have any, where the extractor reads those.
      readings: (N, R) float32; None where the extractor is no probe of attributes.
      asked: (N, 16) int32, what captions ask, of images that have any, where it is one.
    """

    name: str
    statistics: Statistics
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    labels: np.ndarray | None = None
    readings: np.ndarray | None = None
    asked: np.ndarray | None = None

    @property
    def n(self) -> int | None:
        """How many images; None where a statistics file does not tell."""
        return self.statistics.n

    @property
    def spatial(self) -> Statistics | None:
        """Of ADM's spatial features; None where the protocol has none."""
        return self.statistics.spatial

    def save(self, path: Path) -> None:
        """Writes `path`.npz, statistics as every program reads them, and what else was kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("features", "logits", "labels", "readings", "asked")
        kept = {name: getattr(self, name) for name in names}
        new = path.with_name(f"{path.name}_{os.getpid()}.new")
        with new.open("wb") as file:
            np.savez(file, **{name: x for name, x in kept.items() if x is not None})
        new.replace(f"{path}_features.npz")
        self.statistics.save(new)
        new.replace(f"{path}.npz")  # last: its presence says that all is there

    @classmethod
    def load(cls, path: Path, name: str) -> "Seen":
        """What `save` wrote."""
        with np.load(f"{path}_features.npz", allow_pickle=False) as arrays:
            return cls(name, statistics.load(f"{path}.npz"), **arrays)


class Viewer:
    """An extractor compiled for devices that share each batch, for any number of sets.

    Args:
      extractor: the network.
      protocol: the covariance's divisor; its name is recorded.
      layout: see `parallel.Layout.without_axis`; None: this process's devices.
      batch_size: of images at once, over all devices; numbers don't depend on it.
    """

    def __init__(
        self,
        extractor: Extractor,
        protocol: Protocol = PROTOCOLS["tf1"],
        layout: parallel.Layout | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.extractor, self.protocol = extractor, protocol
        self._layout = layout or parallel.layout("jit", jax.local_devices())
        devices = len(self._layout.devices)
        self.batch_size = -(-(batch_size or extractor.batch_size) // devices) * devices
        variables = jax.tree.map(np.asarray, extractor.variables)  # off what device they lie on
        self._variables = self._layout.place_state(variables)
        self.provenance = {"protocol": protocol.name, **extractor.provenance}
        self.provenance.setdefault("sha256", _fingerprint(variables))
        self._apply = self._layout.replicated(extractor.apply)
        self._resize = jax.jit(extractor.resize_on_device or (lambda images: images))

    def see(self, images: Images, keep: bool = True, quiet: bool = False) -> Seen:
        """Every image's features, with a progress bar.

        Args:
          images: of any sizes where the extractor resizes, else of its own.
          keep: the features, while they fit in memory; False sums them up as they come.

        Raises:
          UserError: images of another size; fewer than 2.
        """
        self._check_size(images)
        collect, dispatched = _Collector(keep, images.n), None
        with tqdm(
            total=images.n, desc=images.name, unit="img", leave=False,
            disable=True if quiet else None,
            dynamic_ncols=True,
        ) as bar:  # fmt: skip
            for batch, n in self._batches(images):
                placed = self._layout.place_whole(batch)
                placed = self._resize(placed) if batch.dtype == np.uint8 else placed
                found = self._apply(self._variables, placed)
                if dispatched:  # the device works on this batch while the last one is gathered
                    collect(*dispatched)
                dispatched = found, n
                bar.update(n)
            if dispatched:
                collect(*dispatched)
        if collect.n < 2:
            raise UserError(f"{images.name}: {collect.n} images can't be measured, 2 or more can.")
        kept = {name: np.concatenate(parts) for name, parts in collect.kept.items()}
        found = dataclasses.replace(
            collect.statistics(kept.get("features"), self.protocol.ddof),
            meta={**self.provenance, "images": images.name, "ddof": self.protocol.ddof},
        )
        read = {"labels": self.extractor.reads_labels, "asked": self.extractor.reads_asked}
        for name in [name for name, reads in read.items() if reads]:
            told = getattr(images, name, None)
            kept[name] = np.concatenate(told) if told else None
        return Seen(images.name, found, **kept)

    def _check_size(self, images: Images) -> None:
        reads = self.extractor.size
        if self.extractor.resize is None and reads and images.size != reads:
            has = "x".join(map(str, images.size)) if images.size else "several sizes"
            raise UserError(
                f"{images.name} has images of {has}, {self.extractor.name} reads "
                f"{'x'.join(map(str, reads))}."
            )

    def _batches(self, images: Images) -> Iterator[tuple[np.ndarray, int]]:
        resize, exact = self.extractor.resize, self.extractor.resize_first
        on_host = resize if exact or images.size is None else None
        pairs = images.batches(self.batch_size, on_host)
        return rebatch((x[mask > 0] for x, mask in pairs), self.batch_size)


def rebatch(arrays: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(batch of `size`, how many of it count); the last one is filled up with zeros."""
    for batch in regroup(arrays, size):
        filler = np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)
        yield np.concatenate([batch, filler]) if len(filler) else batch, len(batch)


def _fingerprint(tree: Any) -> str:
    """SHA-256 of the values of a tree of arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


class _Collector:
    """Gathers what the network gives of batch after batch, on the host or as moments."""

    def __init__(self, keep: bool, total: int) -> None:
        self.n, self.kept = 0, {}
        self._keep, self._total, self._moments = keep, total, {}
        self._update = jax.jit(statistics.update)

    def __call__(self, found: dict[str, jax.Array], n: int) -> None:
        self.n += n
        for name, x in found.items():
            fits = self._total * x.shape[1] * 4 <= _KEEP_BYTES
            if self._keep and fits and name != "spatial":
                self.kept.setdefault(name, []).append(np.asarray(x)[:n])
            elif name in ("features", "spatial"):
                state = self._moments.get(name) or statistics.init(x.shape[1])
                mask = (np.arange(len(x)) < n).astype(np.float32)
                self._moments[name] = self._update(state, x, mask)

    def statistics(self, features: np.ndarray | None, ddof: int) -> Statistics:
        """Of the features kept; None: of those summed up."""
        if features is not None:
            found = statistics.from_features(features, ddof)
        else:
            found = statistics.finalize(self._moments["features"], ddof)
        if "spatial" not in self._moments:
            return found
        spatial = statistics.finalize(self._moments["spatial"], ddof)
        return dataclasses.replace(found, spatial=spatial)
