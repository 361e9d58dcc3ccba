"""The equalised learning rate (Karras et al. 2018, section 4.1): weights N(0, 1), scaled in use.

Adam's steps don't depend on a gradient's scale, so with weights of one size every layer learns at
one speed; `lr_multiplier` slows a layer down by so much.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from aigc_jax.layers.conv import Conv, Reparametrization
from aigc_jax.types import Array


def equalized(lr_multiplier: float = 1.0) -> Reparametrization:
    """The hook for a layer's `reparam`: its kernel times lr_multiplier / sqrt(fan in).

    The kernel's first weights are to be N(0, 1 / lr_multiplier^2).
    """

    def scaled(module: nn.Module, kernel: Array) -> Array:
        return kernel * (lr_multiplier / float(np.sqrt(np.prod(kernel.shape[:-1]))))

    return scaled


EqualConv = partial(Conv, kernel_init=nn.initializers.normal(1.0), reparam=equalized())


def leaky(x: Array, gain: float = 2**0.5) -> Array:
    """Leaky ReLU of slope 0.2, and a gain that keeps the second moment, nearly."""
    return nn.leaky_relu(x, 0.2) * gain


class EqualDense(nn.Module):
    """x @ kernel + bias with an equalised learning rate: (..., C) -> (..., features).

    Attributes:
      lr_multiplier: also the bias's gain.
      bias: its first value.
      dtype: of the computation (None: the common dtype of x and the parameters).
    """

    features: int
    lr_multiplier: float = 1.0
    bias: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Parameters `kernel` (C, features) and `bias` (features,), float32."""
        init = nn.initializers.normal(1 / self.lr_multiplier)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        kernel = equalized(self.lr_multiplier)(self, kernel)
        x, kernel, bias = promote_dtype(x, kernel, bias * self.lr_multiplier, dtype=self.dtype)
        return x @ kernel + bias.reshape(*[1] * (x.ndim - 1), -1)


def unit_moment(x: Array) -> Array:
    """x (..., C) over the root of its mean square over C, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-8)
