"""LPIPS v0.1, the learned perceptual distance of images (Zhang et al. 2018), metric or loss."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from aigc_jax import torch_weights
from aigc_jax.errors import UserError, did_you_mean
from aigc_jax.models import alexnet, vgg
from aigc_jax.types import Array, PyTree

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _File:
    """A published file: its address, and how its sha256 begins."""

    address: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class _Net:
    """A network, its activations that are compared and their channels, and where weights are."""

    module: Callable[..., nn.Module]
    from_torch: Callable[[Arrays], PyTree]
    taps: Mapping[str, int]
    trunk: _File
    heads: _File


_TORCHVISION = "https://download.pytorch.org/models"
_AUTHORS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"
_NETS = {
    "vgg": _Net(
        vgg.VGG16,
        vgg.from_torch,
        {"relu1_2": 64, "relu2_2": 128, "relu3_3": 256, "relu4_3": 512, "relu5_3": 512},
        _File(f"{_TORCHVISION}/vgg16-397923af.pth", "397923af"),
        _File(
            f"{_AUTHORS}/vgg.pth",
            "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        ),
    ),
    "alex": _Net(
        alexnet.AlexNet,
        alexnet.from_torch,
        {"relu1": 64, "relu2": 192, "relu3": 384, "relu4": 256, "relu5": 256},
        _File(f"{_TORCHVISION}/alexnet-owt-7be5be79.pth", "7be5be79"),
        _File(
            f"{_AUTHORS}/alex.pth",
            "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        ),
    ),
}

# ImageNet's mean and standard deviation, of images in [-1, 1], as the authors round them.
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
_STD = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


def load(trunk_path: str | Path, heads_path: str | Path, net: str = "vgg") -> PyTree:
    """Variables of `lpips` from published files.

    A file whose sha256 isn't the published one's is taken with a logged warning: distances are
    LPIPS's only if its values are the same.

    Args:
      trunk_path: torchvision's weights of VGG-16 or AlexNet, `vgg16-397923af.pth` or
        `alexnet-owt-7be5be79.pth`.
      heads_path: the authors' linear weights v0.1, `vgg.pth` or `alex.pth`, which the package
        lpips holds too.
      net: "vgg" or "alex".

    Returns:
      {"trunk": the network's variables, "heads": {activation: (C,)}}, float32.

    Raises:
      UserError: an unknown net, a file that is missing, or one that holds other arrays.
    """
    spec = _find(net)
    trunk = _read(trunk_path, spec.trunk)
    heads = _read(heads_path, spec.heads)
    return from_torch(trunk, heads, net)


def from_torch(trunk: Arrays, heads: Arrays, net: str = "vgg") -> PyTree:
    """Variables of `lpips` from arrays under their published names.

    Args:
      trunk: `features.{i}.{weight,bias}`, torchvision's.
      heads: `lin{i}.model.1.weight` (1, C, 1, 1), i = 0..4.
      net: "vgg" or "alex".

    Returns:
      As `load`.

    Raises:
      UserError: an unknown net, names that are missing, or arrays of another shape.
    """
    spec = _find(net)
    keys = {tap: f"lin{i}.model.1.weight" for i, tap in enumerate(spec.taps)}
    found = {tap: np.shape(heads.get(key, ())) for tap, key in keys.items()}
    wrong = [keys[tap] for tap, n in spec.taps.items() if found[tap] != (1, n, 1, 1)]
    if wrong:
        raise UserError(
            f"These are not LPIPS's linear weights for {net!r}: {', '.join(wrong)} missing or of "
            f"another shape. Take {spec.heads.address}."
        )
    return {
        "trunk": spec.from_torch(trunk),
        "heads": {tap: jnp.asarray(heads[key].ravel(), jnp.float32) for tap, key in keys.items()},
    }


def lpips(
    variables: PyTree,
    x: Array,
    y: Array,
    net: str = "vgg",
    precision: lax.PrecisionLike = lax.Precision.HIGHEST,
) -> Array:
    """The distance of every pair of images (Zhang et al. 2018, eq. 1).

    Args:
      variables: of `load`.
      x, y: (B, H, W, 3) float, in [-1, 1], at least 16x16 for "vgg", 31x31 for "alex".
      net: "vgg" or "alex", as loaded.
      precision: of the convolutions; a loss may do with less than a metric.

    Returns:
      (B,) float32, 0 up to rounding where x equals y. Gradients are finite, also where all
      activations are 0.

    Raises:
      UserError: an unknown net, or images that differ in shape, or are not RGB, floats, or large
        enough.
    """
    spec = _find(net)
    _check_images(x, y)
    trunk = spec.module(precision=precision)
    of_x, of_y = (trunk.apply(variables["trunk"], _standardised(image)) for image in (x, y))
    heads = variables["heads"]
    return sum(_distance(of_x[tap], of_y[tap], heads[tap]) for tap in spec.taps)


def _distance(a: Array, b: Array, weights: Array) -> Array:
    """Of activations (B, H, W, C), with one weight (C,) a channel: (B,)."""
    difference = (_unit(a) - _unit(b)) ** 2
    return jnp.sum(jnp.mean(difference, (1, 2)) * weights[None], -1)


def _unit(x: Array) -> Array:
    """x / (|x| + 1e-10) along channels."""
    square = jnp.sum(x**2, -1, keepdims=True)
    # The root of 0 has no derivative; x is 0 there anyway.
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / (jnp.where(square > 0, norm, 0) + 1e-10)


def _standardised(x: Array) -> Array:
    return (x.astype(jnp.float32) - _MEAN) / _STD


def _check_images(x: Array, y: Array) -> None:
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3:
        raise UserError(f"LPIPS compares images (B, H, W, 3), not {x.shape} with {y.shape}.")
    for image in (x, y):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"LPIPS reads floats in [-1, 1], not {image.dtype}: convert images first, uint8 by "
                "x / 127.5 - 1."
            )


def _find(net: str) -> _Net:
    if net not in _NETS:
        raise UserError(f"LPIPS has no net {net!r}.{did_you_mean(net, _NETS)}")
    return _NETS[net]


def _read(path: str | Path, published: _File) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise UserError(f"{path} is not there: get it from {published.address}.")
    digest = torch_weights.sha256(path)
    if not digest.startswith(published.sha256):
        logging.warning(
            "%s is not the published %s (its sha256 is %s...): its distances compare only if the "
            "values are the same.",
            path,
            published.address,
            digest[:8],
        )
    return torch_weights.load(path)
