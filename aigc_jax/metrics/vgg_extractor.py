"""The features of precision and recall: VGG-16's second linear layer (Kynkaanniemi et al. 2019).

Images are resized to 224x224 by TensorFlow 1's bilinear rule and standardised with ImageNet's mean
and deviation, so that numbers are those of torch-fidelity.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax import lax

from aigc_jax import torch_weights
from aigc_jax.errors import UserError
from aigc_jax.metrics import resize
from aigc_jax.metrics.extractors import Extractor
from aigc_jax.models import vgg
from aigc_jax.types import Array, PyTree

Precision = Literal["highest", "high", "default"]

SIDE = 224
FILE = "vgg16-397923af.pth"
ADDRESS = f"https://download.pytorch.org/models/{FILE}"

# ImageNet's, of [0, 255].
_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3)
_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3)


def load(path: str | Path, precision: Precision = "highest") -> Extractor:
    """`extractor` of a file: torchvision's `vgg16-397923af.pth`, or its arrays in another format.

    The file's sha256 becomes part of the provenance, and "official" whether it is the published
    one's.

    Raises:
      UserError: a file that is missing, or that holds other arrays.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is not there: get {ADDRESS}.")
    digest = torch_weights.sha256(path)
    provenance = {
        "weights": Path(path).name,
        "sha256": digest,
        "official": digest.startswith("397923af"),
    }
    return extractor(torch_weights.load(path), precision, provenance)


def extractor(
    arrays: Mapping[str, np.ndarray],
    precision: Precision = "highest",
    provenance: Mapping[str, Any] | None = None,
) -> Extractor:
    """VGG-16 for metrics, from arrays under torchvision's names.

    Its `apply` takes uint8 images (B, H, W, 3) of any size, or float32 (B, 224, 224, 3) in [0, 255]
    from its `resize`, and gives "features" (B, 4096) float32: those after the ReLU.

    Args:
      arrays: `features.{i}.{weight,bias}`, `classifier.{0,3}.{weight,bias}`.
      precision: of every product; "highest" is true float32 on every platform.
      provenance: what is known of the arrays.

    Raises:
      UserError: names that are missing, or arrays of another shape.
    """
    net = vgg.VGG16(linear=True, precision=lax.Precision(precision))
    return Extractor(
        name="vgg16",
        variables=vgg.from_torch(arrays, net),
        apply=functools.partial(features, net),
        channels=3,
        resize=functools.partial(resize.tf1_host, side=SIDE),
        resize_on_device=functools.partial(resize.tf1, side=SIDE),
        provenance={
            "extractor": "vgg16-fc2",
            **(provenance or {}),
            "resize": "tf1",
            "precision": precision,
        },
    )


def features(net: vgg.VGG16, variables: PyTree, images: Array) -> dict[str, Array]:
    """What an `extractor` applies: images in [0, 255] -> {"features": (B, net.hidden)}, float32.

    Args:
      net: with its linear layers.
      variables: of `vgg.from_torch`.
      images: (B, H, W, 3), uint8 or float, of any size.
    """
    x = resize.tf1(images, SIDE)
    return {"features": net.apply(variables, (x - _MEAN) / _STD)["fc2"]}
