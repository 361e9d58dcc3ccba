"""The Inception-v3 of FID: TensorFlow's classify_image graph of 2015-12-05, in float32.

Not torchvision's network: average pools leave padding out of the mean, the last block pools by
maximum, and there are 1008 classes (Heusel et al. 2017, TTUR; Szegedy et al. 2016, table 1).
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from typing import Protocol as Interface

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.metrics import _inception_forms as forms
from aigc_jax.metrics import resize
from aigc_jax.metrics.extractors import Extractor
from aigc_jax.metrics.inception_weights import Weights
from aigc_jax.metrics.protocols import Protocol
from aigc_jax.types import Array

Precision = Literal["highest", "high", "default"]
Variables = Mapping[str, Mapping[str, Array]]

EPSILON = 1e-3  # of every batch norm
# Where fewer products pay on CPU for the transforms, and for seconds of compiling them.
WINOGRAD = {
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "Conv2d_4a_3x3",
    "Mixed_7b.branch3x3dbl_2",
    "Mixed_7c.branch3x3dbl_2",
}
SMALLEST = 75  # pixels: the stem and two reductions leave one of them


class Unit(Interface):
    """Convolution, batch norm and ReLU of one name; `pooled`: of the 3x3 mean of the input."""

    def __call__(
        self, name: str, x: Array, stride: int = 1, padding: str = "SAME", pooled: bool = False
    ) -> Array:
        """x (B, H, W, C) -> (B, h, w, O)."""


def variables(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The official arrays, with every batch norm folded into its convolution.

    Args:
      arrays: float32 by PyTorch's names: NAME.conv.weight (O, I, kh, kw), NAME.bn.weight, .bias,
        .running_mean and .running_var (O,) of 94 names, fc.weight (1008, 2048), fc.bias (1008,).

    Returns:
      {NAME: {"kernel" (kh, kw, I, O), "bias" (O,)}, "fc": {"kernel" (2048, 1008), "bias"}},
      folded in float64, then float32.
    """
    names = [name.removesuffix(".conv.weight") for name in arrays if name.endswith(".conv.weight")]
    fc = {"kernel": np.ascontiguousarray(arrays["fc.weight"].T), "bias": arrays["fc.bias"]}
    return {**{name: _fold(arrays, name) for name in names}, "fc": fc}


def _fold(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    kernel, gamma, beta, mean, variance = (
        np.asarray(arrays[f"{name}.{part}"], np.float64)
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    scale = gamma / np.sqrt(variance + EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * scale
    return {"kernel": kernel.astype(np.float32), "bias": (beta - mean * scale).astype(np.float32)}


def apply(variables: Variables, x: Array, precision: Precision = "highest") -> dict[str, Array]:
    """Features of images that have been scaled.

    Args:
      variables: as `variables` gives them.
      x: (B, H, W, 3) float32, about [-1, 1]; 299x299, or any other size of at least 75.
      precision: of every product; "highest" is true float32 on every platform, whatever JAX's
        flags say; "high" (bfloat16 in three passes on TPU) and "default" (TensorFloat-32 on GPU,
        bfloat16 on TPU) move FID by up to a few percent.

    Returns:
      float32: "64", "192", "768" and "2048" (B, that many), the means over pixels where the network
      has so many channels; "logits_unbiased" and "logits" (B, 1008), without and with the last
      bias; "spatial" (B, 2023 for 299x299), the features of sFID: the first seven channels of
      Mixed_6d.branch1x1, flattened.

    Raises:
      UserError: images smaller than 75x75.
    """
    if min(x.shape[1:3]) < SMALLEST:
        raise UserError(
            f"Inception: images of {x.shape[1]}x{x.shape[2]} vanish in the network; resize them to "
            f"299x299 first ({SMALLEST}x{SMALLEST} is the least)."
        )
    level = lax.Precision(precision)
    unit = functools.partial(_unit, variables, level)
    x, taps = forms.in_pairs(functools.partial(large_layers, unit), x)
    taps |= small_layers(unit, x)
    product = jnp.matmul(taps["2048"], variables["fc"]["kernel"], precision=level)
    return {
        **taps,
        "logits_unbiased": product,
        "logits": product + variables["fc"]["bias"].reshape(1, -1),
    }


def extractor(weights: Weights, protocol: Protocol, precision: Precision = "highest") -> Extractor:
    """Inception under a protocol, for metrics.

    Its `apply` takes uint8 images (B, H, W, 3) of any size, or float32 (B, 299, 299, 3) in
    [0, 255] from its `resize` or `resize_on_device`, and gives "features" (B, 2048), "logits"
    (B, 1008), and "spatial" (B, 2023) where the protocol asks for it.
    """
    return Extractor(
        name="inception",
        variables=jax.tree.map(jnp.asarray, variables(weights.arrays)),
        apply=functools.partial(_extract, protocol, precision),
        channels=3,
        resize=resize.HOST[protocol.resize],
        resize_on_device=resize.DEVICE[protocol.resize],
        # Pillow computes in float64; on the device, only nearly so.
        resize_first=protocol.resize == "clean",
        provenance={
            "extractor": "inception-2015-12-05",
            "weights": Path(weights.path).name,
            "sha256": weights.sha256,
            "official": weights.official,
            "protocol": protocol.name,
            "precision": precision,
        },
    )


def _extract(
    protocol: Protocol, precision: Precision, variables: Variables, images: Array
) -> dict[str, Array]:
    taps = _taps(protocol, precision, variables, images)
    outputs = {"features": taps["2048"], "logits": taps[protocol.logits]}
    return outputs | ({"spatial": taps["spatial"]} if protocol.spatial else {})


def _taps(
    protocol: Protocol, precision: Precision, variables: Variables, images: Array
) -> dict[str, Array]:
    if images.dtype == jnp.uint8:
        images = resize.DEVICE[protocol.resize](images)
    return apply(variables, scale(images, protocol.scaling), precision)


def scale(images: Array, scaling: str) -> Array:
    """[0, 255] -> the network's input, as `Protocol.scaling` says."""
    return (images - 128) / 128 if scaling == "tf1" else 2 * (images / 255) - 1


def _unit(
    variables: Variables,
    precision: lax.Precision,
    name: str,
    x: Array,
    stride: int = 1,
    padding: str = "SAME",
    pooled: bool = False,
) -> Array:
    kernel, bias = variables[name]["kernel"], variables[name]["bias"]
    y = forms.conv(x, kernel, stride, padding, precision, winograd=name in WINOGRAD)
    # The mean commutes with a 1x1 convolution, which leaves it fewer channels.
    y = forms.mean_3x3(y) if pooled else y
    return jax.nn.relu(y + bias.reshape(1, 1, 1, -1))


def large_layers(unit: Unit, x: Array) -> tuple[Array, dict[str, Array]]:
    """All before the blocks of 17x17 pixels, and the taps "64" and "192"."""
    taps = {}
    x = unit("Conv2d_1a_3x3", x, stride=2, padding="VALID")
    x = unit("Conv2d_2a_3x3", x, padding="VALID")
    x = unit("Conv2d_2b_3x3", x)
    x = forms.max_3x3(x, stride=2)
    taps["64"] = x.mean((1, 2))
    x = unit("Conv2d_3b_1x1", x)
    x = unit("Conv2d_4a_3x3", x, padding="VALID")
    x = forms.max_3x3(x, stride=2)
    taps["192"] = x.mean((1, 2))
    for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _join(_block_a(_within(unit, block), x))
    return _join(_block_b(_within(unit, "Mixed_6a"), x)), taps


def small_layers(unit: Unit, x: Array) -> dict[str, Array]:
    """The blocks of 17x17 and of 8x8 pixels; the taps "spatial", "768" and "2048"."""
    taps = {}
    for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        branches = _block_c(_within(unit, block), x)
        if block == "Mixed_6d":
            taps["spatial"] = branches[0][..., :7].reshape(len(x), -1)
        x = _join(branches)
    taps["768"] = x.mean((1, 2))
    x = _join(_block_d(_within(unit, "Mixed_7a"), x))
    x = _join(_block_e(_within(unit, "Mixed_7b"), x, max_pool=False))
    x = _join(_block_e(_within(unit, "Mixed_7c"), x, max_pool=True))
    taps["2048"] = x.mean((1, 2))
    return taps


def _within(unit: Unit, block: str) -> Unit:
    return lambda name, *args, **options: unit(f"{block}.{name}", *args, **options)


def _join(branches: list[Array]) -> Array:
    return jnp.concatenate(branches, -1)


def _chain(unit: Unit, x: Array, *names: str) -> Array:
    return functools.reduce(lambda x, name: unit(name, x), names, x)


def _block_a(unit: Unit, x: Array) -> list[Array]:
    return [
        unit("branch1x1", x),
        _chain(unit, x, "branch5x5_1", "branch5x5_2"),
        _chain(unit, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        unit("branch_pool", x, pooled=True),
    ]


def _block_b(unit: Unit, x: Array) -> list[Array]:
    double = _chain(unit, x, "branch3x3dbl_1", "branch3x3dbl_2")
    return [
        unit("branch3x3", x, stride=2, padding="VALID"),
        unit("branch3x3dbl_3", double, stride=2, padding="VALID"),
        forms.max_3x3(x, stride=2),
    ]


def _block_c(unit: Unit, x: Array) -> list[Array]:
    return [
        unit("branch1x1", x),
        _chain(unit, x, *(f"branch7x7_{i}" for i in range(1, 4))),
        _chain(unit, x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
        unit("branch_pool", x, pooled=True),
    ]


def _block_d(unit: Unit, x: Array) -> list[Array]:
    long = _chain(unit, x, *(f"branch7x7x3_{i}" for i in range(1, 4)))
    return [
        unit("branch3x3_2", unit("branch3x3_1", x), stride=2, padding="VALID"),
        unit("branch7x7x3_4", long, stride=2, padding="VALID"),
        forms.max_3x3(x, stride=2),
    ]


def _block_e(unit: Unit, x: Array, max_pool: bool) -> list[Array]:
    single = unit("branch3x3_1", x)
    double = _chain(unit, x, "branch3x3dbl_1", "branch3x3dbl_2")
    pooled = (
        unit("branch_pool", forms.max_3x3(x)) if max_pool else unit("branch_pool", x, pooled=True)
    )
    return [
        unit("branch1x1", x),
        unit("branch3x3_2a", single),
        unit("branch3x3_2b", single),
        unit("branch3x3dbl_3a", double),
        unit("branch3x3dbl_3b", double),
        pooled,
    ]
