"""Which samples are good enough to train on: `"confidence(0.9),realism(1),copies(0.5)"`.

===================  ============================================================================
confidence(least)    the judge gives the label that was asked at least this probability (0.9)
realism(least)       the realism score is at least this (1: within the manifold of real images)
copies(share)        nearer to a training image than this share (0.5) of that image's distance to
                     its nearest neighbour: dropped
===================  ============================================================================
"""

import dataclasses
import functools
from collections import Counter

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import sample_scores
from aigc_jax.data import configured
from aigc_jax.errors import UserError
from aigc_jax.metrics import neighbors, protocols
from aigc_jax.operations import Kinds, Operation, Parameter, Range
from aigc_jax.sampling import in_turn
from aigc_jax.scoring import Seen, Viewer
from aigc_jax.sets import Filled

# Of (what is seen of samples, the same of training images, labels, a number): (B,) bool.
KINDS = Kinds("filter")
_MOST = 20_000  # training images that samples are compared with


@dataclasses.dataclass
class Known:
    """Training images, as a network sees them, and what is made of them once."""

    seen: Seen

    @functools.cached_property
    def radii(self) -> np.ndarray:
        """(N,) to each one's third neighbour."""
        features = self.seen.features
        return neighbors.nearest(features, features, 3, same=True)[0][:, -1]

    @functools.cached_property
    def own_distances(self) -> np.ndarray:
        """(N,) to each one's nearest."""
        return neighbors.own_distances(self.seen.features)


@KINDS.add(Parameter("least", 0, 1, Range(0.9, 0.9)))
def confidence(seen: Seen, known: Known, labels: np.ndarray | None, least: float) -> np.ndarray:
    """By the judge's classes."""
    chances = jax.nn.softmax(seen.logits)[np.arange(len(labels)), labels]
    return np.asarray(chances) >= least


@KINDS.add(Parameter("least", 0, 100, Range(1, 1)))
def realism(seen: Seen, known: Known, labels: np.ndarray | None, least: float) -> np.ndarray:
    """Kynkaanniemi et al. 2019, equation 3."""
    found = neighbors.realism(seen.features, known.seen.features, radii=known.radii)
    return found >= least


@KINDS.add(Parameter("share", 0, 1, Range(0.5, 0.5)))
def copies(seen: Seen, known: Known, labels: np.ndarray | None, share: float) -> np.ndarray:
    """Of training images."""
    own = known.own_distances
    return neighbors.closeness(seen.features, known.seen.features, own)[0] >= share


def parse(text: str) -> tuple[Operation, ...]:
    """The filters of a list; "": none. UserError for an unknown one, or a number out of range."""
    filters = KINDS.parse(text) if text.strip() else ()
    for operation in filters:
        low, high = operation.args[0]
        if low != high:
            raise UserError(f"'{operation}': a filter takes one number. Did you mean {low:g}?")
    return filters


@dataclasses.dataclass
class Sieve:
    """Samples (B, H, W, C) uint8 and labels (B,) or None -> (B,) bool, those to keep.

    Attributes:
      filters: in their order; a sample is dropped by the first that refuses it.
      viewer: what they see images through.
      known: the training images, as it sees them.
      dropped: how many samples each has refused so far.
    """

    filters: tuple[Operation, ...]
    viewer: Viewer
    known: Known
    dropped: Counter = dataclasses.field(default_factory=Counter)

    def __call__(self, images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Which to keep."""
        seen = self.viewer.see(of_arrays("samples", images, self.viewer), quiet=True)
        kept = np.ones(len(images), bool)
        for operation in self.filters:
            kind = KINDS[operation.name]
            passed = kind.function(seen, self.known, labels, operation.args[0].high)
            self.dropped[operation.name] += int((kept & ~passed).sum())
            kept &= passed
        return kept


def sieve(text: str, config: ConfigDict) -> Sieve | None:
    """What `text` asks, for samples of a run of `config`; None: nothing.

    Raises:
      UserError: `text` can't be read; the run has no network that sees its samples.
    """
    filters = parse(text)
    if not filters:
        return None
    viewer = viewer_of(config)
    known = training_images(config, viewer)
    if any(operation.name == "confidence" for operation in filters) and not reads_labels(
        viewer, known, config.num_classes
    ):
        raise UserError(
            "confidence is of labels: the run knows none, or its network reads other ones."
        )
    return Sieve(filters, viewer, Known(known))


def reads_labels(viewer: Viewer, seen: Seen, num_classes: int) -> bool:
    """Whether the network tells the classes of a run."""
    reads = viewer.extractor.reads_labels and seen.logits is not None
    return bool(num_classes) and reads and seen.logits.shape[-1] >= num_classes


def viewer_of(config: ConfigDict) -> Viewer:
    """The network that a run's samples are measured through. UserError: it has none."""
    if not config.eval.extractor:
        raise UserError(
            "Nothing looks at this run's samples: give --config.eval.extractor in training, a "
            "classifier's workdir or a config that trains one, such as digits_classifier."
        )
    return sample_scores.viewer_of(config, protocols.find(config.eval.protocol))


def training_images(config: ConfigDict, viewer: Viewer) -> Seen:
    """What `viewer` sees of a run's training images."""
    return viewer.see(training_filled(config, viewer))


def real_images(config: ConfigDict, viewer: Viewer) -> Seen:
    """What it sees of the held-out images that the run is measured by."""
    return viewer.see(_filled(configured.held_out(config).targets, config, viewer))


def training_filled(config: ConfigDict, viewer: Viewer) -> Filled:
    """A run's training images, 20,000 at most, drawn alike each time."""
    return _filled(configured.seen_in_training(config), config, viewer)


def _filled(images: configured.HeldOut, config: ConfigDict, viewer: Viewer) -> Filled:
    return sample_scores.filled(images, min(_MOST, len(images)), config, viewer)


def of_arrays(
    name: str, images: np.ndarray, viewer: Viewer, labels: np.ndarray | None = None
) -> Filled:
    """Images (N, H, W, C) uint8 as a set."""
    fields = {"image": images} | ({} if labels is None else {"label": labels})
    batches = functools.partial(in_turn, len(images), fields, 256)
    size, channels = images.shape[1:3], viewer.extractor.channels
    return Filled(name, len(images), size, channels, batches, lambda batch: batch["image"])
