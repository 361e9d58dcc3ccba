"""AlexNet as torchvision has it (Krizhevsky 2014, one column): the features of LPIPS "alex".

The network is frozen: its weights come from a file of torchvision's, `alexnet-owt-7be5be79.pth`.
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

# Channels, kernel, stride, padding, and whether a pooling comes before.
_LAYERS = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
_PREFIXES = {f"conv{i}": f"features.{n}" for i, n in enumerate((0, 3, 6, 8, 10), 1)}


class AlexNet(nn.Module):
    """Images -> activations of the five convolutions.

    Attributes:
      precision: of every product.
    """

    precision: lax.PrecisionLike = lax.Precision.HIGHEST

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """x (B, H, W, 3), normalised as its user says -> "relu1" ... "relu5", each (B, h, w, C).

        Raises:
          UserError: images of fewer than 31 pixels a side.
        """
        if min(x.shape[1:3]) < 31:
            raise UserError(
                f"AlexNet reads images of at least 31x31, not {x.shape[1]}x{x.shape[2]}; "
                "use larger ones."
            )
        taps = {}
        for i, (features, size, stride, pad, pooled) in enumerate(_LAYERS, 1):
            x = nn.max_pool(x, (3, 3), (2, 2)) if pooled else x
            x = nn.Conv(
                features, (size, size), stride, pad, precision=self.precision, name=f"conv{i}"
            )(x)
            x = taps[f"relu{i}"] = nn.relu(x)
        return taps


def from_torch(arrays: Mapping[str, np.ndarray]) -> PyTree:
    """Variables of `AlexNet` from arrays under torchvision's names.

    These are `features.{0,3,6,8,10}.{weight,bias}`; others are ignored.

    Raises:
      UserError: names that are missing, or arrays of another shape.
    """
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    like = jax.eval_shape(AlexNet().init, jax.random.key(0), image)["params"]
    return {"params": _torchvision.to_params(arrays, _PREFIXES, like, "AlexNet")}
