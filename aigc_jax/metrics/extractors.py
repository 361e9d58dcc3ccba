"""What turns images into features: any pure function of variables and uint8 images."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aigc_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network that metrics look through.

    Attributes:
      name: of the network, e.g. "inception"; part of every number's provenance.
      variables: a pytree of arrays.
      apply: pure, `(variables, images) -> {"features": (B, D) float32, "logits": (B, K) float32}`
        ("logits" only where it has classes). Images are uint8 (B, H, W, C) as they are, or, where
        there is a `resize`, stacked results of it.
      channels: 1 or 3, of the images it reads.
      size: (H, W) of the images it reads; None: any.
      resize: on the host, one uint8 image (H, W, C) -> the array that `apply` takes too; None
        where images of other sizes are an error.
      resize_first: whether the host's `resize` is the exact form, to be used for every image; else
        it serves images of mixed sizes, and `apply` resizes on the device.
      resize_on_device: pure, uint8 (B, H, W, C) -> what `apply` takes too; compiled apart from it,
        so that a new size of images doesn't compile the network again.
      reads_labels: whether its classes are the images' labels.
      reads_asked: whether it reads what captions of shapes ask: `apply` gives "readings" (B, R)
        float32 too, packed as `metrics.attributes.Reading` says.
      batch_size: of images at once that suits it; its numbers don't depend on it.
      provenance: what a record says of it: JSON values, e.g. weights, sha256, protocol, precision.
    """

    name: str
    variables: Any
    apply: Callable[[Any, Array], dict[str, Array]]
    channels: int = 3
    size: tuple[int, int] | None = None
    resize: Callable[[np.ndarray], np.ndarray] | None = None
    resize_first: bool = False
    resize_on_device: Callable[[Array], Array] | None = None
    reads_labels: bool = False
    reads_asked: bool = False
    batch_size: int = 32
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
