"""VGG-16 (Simonyan & Zisserman 2015, configuration D): features of perceptual losses and metrics.

The networks here are frozen: their weights come from a file of torchvision's, `vgg16-397923af.pth`.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UserError
from aigc_jax.models import _torchvision
from aigc_jax.types import Array, PyTree

_DEPTHS = (2, 2, 3, 3, 3)
_CONVS = [(i, j) for i, depth in enumerate(_DEPTHS, 1) for j in range(1, depth + 1)]
# torchvision numbers convolutions, ReLUs and poolings through: two a convolution, one a stage.
_PREFIXES = {f"conv{i}_{j}": f"features.{2 * n + i - 1}" for n, (i, j) in enumerate(_CONVS)}
_PREFIXES |= {"fc1": "classifier.0", "fc2": "classifier.3"}


class VGG16(nn.Module):
    """Images -> activations.

    Attributes:
      widths: channels of the five stages.
      hidden: of the two linear layers.
      linear: whether to apply these too, which fixes the size of the images to 224x224.
      precision: of every product.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    linear: bool = False
    precision: lax.PrecisionLike = lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """x (B, H, W, 3), normalised as its user says -> activations by name, all after their ReLU.

        "relu1_1", "relu1_2" (B, H, W, 64) ... "relu5_3" (B, H // 16, W // 16, 512), and "fc1",
        "fc2" (B, 4096) where they are applied.

        Raises:
          UserError: images of fewer than 16 pixels a side, or not of 224x224 with `linear`.
        """
        _check_size(x, self.linear)
        taps = {}
        for i, j in _CONVS:
            if i > 1 and j == 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.Conv(self.widths[i - 1], (3, 3), precision=self.precision, name=f"conv{i}_{j}")(
                x
            )
            x = taps[f"relu{i}_{j}"] = nn.relu(x)
        return taps | (self._linear(x) if self.linear else {})

    def _linear(self, x: Array) -> dict[str, Array]:
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        fc1 = nn.relu(nn.Dense(self.hidden, precision=self.precision, name="fc1")(x))
        fc2 = nn.relu(nn.Dense(self.hidden, precision=self.precision, name="fc2")(fc1))
        return {"fc1": fc1, "fc2": fc2}


def _check_size(x: Array, linear: bool) -> None:
    if linear and x.shape[1:3] != (224, 224):
        raise UserError(
            f"VGG16's linear layers read images of 224x224, not {x.shape[1]}x{x.shape[2]}; "
            "resize the images first."
        )
    if min(x.shape[1:3]) < 16:
        raise UserError(
            f"VGG16 reads images of at least 16x16, not {x.shape[1]}x{x.shape[2]}; use larger ones."
        )


def from_torch(arrays: Mapping[str, np.ndarray], net: VGG16 | None = None) -> PyTree:
    """Variables of `net` (None: `VGG16()`) from arrays under torchvision's names.

    These are `features.{0,2,5,...,28}.{weight,bias}`, and where `net` is linear
    `classifier.{0,3}.{weight,bias}`; others are ignored.

    Raises:
      UserError: names that are missing, or arrays of another shape.
    """
    net = VGG16() if net is None else net
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    like = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    params = _torchvision.to_params(arrays, _PREFIXES, like, "VGG16")
    if net.linear:
        params["fc1"]["kernel"] = _channels_last(params["fc1"]["kernel"])
    return {"params": params}


def _channels_last(kernel: Array) -> Array:
    """(C * 7 * 7, O), as torch flattens an image, -> (7 * 7 * C, O), as we do."""
    return kernel.reshape(-1, 7, 7, kernel.shape[1]).transpose(1, 2, 0, 3).reshape(kernel.shape)
